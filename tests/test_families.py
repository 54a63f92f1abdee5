"""Expected values come from diffusers' `encode_prompt` and from the components' own forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig

from assay.denoiser import Denoiser
from assay.errors import Unsupported
from assay.families import SUPPORTED, family_of
from assay.families.sd import Conditioning, feeding
from assay.noise import normal
from assay.testing.pipelines import tiny_pipeline

pytestmark = pytest.mark.portable


@torch.no_grad()
def test_conditioning_is_what_diffusers_encodes(denoiser):
    prompts = ["red circle", "blue ring, solid style"]
    ours = denoiser.conditioning(prompts)
    theirs = denoiser.pipeline.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    torch.testing.assert_close(ours.states, theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(denoiser.conditioning([""]).states, theirs[1][:1], rtol=1e-5, atol=1e-5)
    if denoiser.family.name == "sdxl":
        torch.testing.assert_close(ours.extra["text_embeds"], theirs[2], rtol=1e-5, atol=1e-5)
        assert ours.extra["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2  # original size, crop, target size: 32x32 pixels


def test_sdxl_guides_away_from_zeros_only_if_configured():
    pipeline = tiny_pipeline("sdxl")
    assert not Denoiser(pipeline).conditioning([""]).states.any()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert Denoiser(pipeline).conditioning([""]).states.any()


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
def test_passes_do_not_depend_on_where_the_weights_were_read_to(kind):
    made, pipeline = Denoiser(tiny_pipeline(kind)), tiny_pipeline(kind)
    for module in family_of(pipeline).components.values():
        for tensor in module.parameters():
            room = torch.empty(tensor.numel() + 32)
            start = -(room.data_ptr() // 4) % 16 + 1  # 4 bytes after an address that 64 divides
            tensor.data = room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor.data)
    elsewhere = Denoiser(pipeline)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in elsewhere.weights().values())
    images = [model.generate(["red circle"], [1], steps=2) for model in (made, elsewhere)]
    assert torch.equal(*images)


def test_conditioning_joins_slices_and_repeats():
    states, extra = normal((3, 4, 5), [1])[0], {"pooled": normal((3, 2), [2])[0]}
    whole = Conditioning(states, extra)
    parts = Conditioning.cat([whole[:1], whole[[1, 2]]])
    assert torch.equal(parts.states, states)
    assert torch.equal(parts.extra["pooled"], extra["pooled"])
    assert torch.equal(whole[torch.tensor([2, 0])].states, states[[2, 0]])
    repeated = whole[:1].expand(4)
    assert len(repeated) == 4
    assert torch.equal(repeated.extra["pooled"][3], extra["pooled"][0])


def test_prompts_are_cut_to_the_context(sd):
    ids = sd.family.tokenize(["x" * 500])[0]
    assert ids.shape == (1, 24)  # the tiny context
    assert (ids[0, 0], ids[0, -1]) == (512, 513)  # start and end token


def test_given_embeddings_are_used_once_and_the_hook_goes(sd):
    encoder = sd.pipeline.text_encoder
    ids = sd.family.tokenize(["red circle"])
    plain = sd.family.encode(ids).states
    other = sd.family.encode(ids, [torch.zeros(1, 24, 16)]).states
    assert not torch.equal(plain, other)
    with pytest.raises(RuntimeError, match="stop"), feeding(encoder, torch.zeros(1, 24, 16)):
        raise RuntimeError("stop")
    assert torch.equal(sd.family.encode(ids).states, plain)


def test_families_are_chosen_by_the_pipelines_class(denoiser):
    assert type(denoiser.pipeline).__name__ in SUPPORTED
    assert type(family_of(denoiser.pipeline)) is type(denoiser.family)


def test_other_pipelines_are_refused_by_name():
    class FluxPipeline:
        pass

    with pytest.raises(Unsupported, match=r"FluxPipeline.*StableDiffusionXLPipeline"):
        family_of(FluxPipeline())


def unet_with(pipeline: Any, **settings: Any) -> None:
    pipeline.unet = type(pipeline.unet).from_config({**pipeline.unet.config, "_use_default_values": [], **settings})


def words_of_two_vectors(pipeline: Any) -> None:
    vectors = {"<cat>": torch.zeros(2, 16)}
    pipeline.load_textual_inversion(vectors, token="<cat>", text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda pipeline: pipeline.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"])), "LoRA.*fuse_lora"),
        (lambda pipeline: pipeline.text_encoder.add_adapter(LoraConfig(r=1, target_modules=["q_proj"])), "LoRA.*fuse_lora"),
        (lambda pipeline: unet_with(pipeline, time_cond_proj_dim=8), "distilled"),
        (lambda pipeline: unet_with(pipeline, sample_size=(16, 24)), "sample_size"),
        (lambda pipeline: pipeline.vae.register_to_config(latents_mean=[0.0] * 4), "latents_mean"),
        (lambda pipeline: pipeline.vae.register_to_config(latents_std=[1.0] * 4), "latents_std"),
        (lambda pipeline: setattr(pipeline.text_encoder.config, "use_attention_mask", True), "use_attention_mask"),
        (words_of_two_vectors, "several vectors"),
    ],
)
def test_what_diffusers_would_draw_otherwise_is_refused(kind, change, match):
    pipeline = tiny_pipeline(kind)
    change(pipeline)
    with pytest.raises(Unsupported, match=match):
        Denoiser(pipeline, "changed")


def test_a_word_of_one_vector_is_drawn_as_in_diffusers():
    pipeline = tiny_pipeline()
    pipeline.load_textual_inversion({"<cat>": torch.ones(1, 16)}, token="<cat>")
    model = Denoiser(pipeline)
    theirs = pipeline.encode_prompt(["a <cat>"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(model.conditioning(["a <cat>"]).states, theirs[0], rtol=1e-5, atol=1e-5)


def test_sdxl_decodes_in_float32_where_half_would_overflow():
    # diffusers' own pipeline upcasts the autoencoder of SDXL, and not that of SD, before it decodes.
    pipeline = tiny_pipeline("sdxl")
    pipeline.to(torch.float16)
    model = Denoiser(pipeline)
    assert (pipeline.vae.dtype, model.dtype) == (torch.float32, torch.float16)
    with torch.no_grad():
        images = model.images(normal(model.latent_shape, [1]))
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    half = tiny_pipeline()
    half.to(torch.float16)
    assert Denoiser(half).pipeline.vae.dtype == torch.float16
