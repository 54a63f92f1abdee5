"""Expected values come from diffusers' own pipelines and schedulers, from formulas written out here in float64, or from finite differences."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler

from assay.denoiser import GROUPS, Denoiser, to_pictures
from assay.errors import AssayError, BadInput, Misconfigured, Missing, Unsupported
from assay.loading import load, locate
from assay.noise import normal
from assay.testing import save_tiny, tiny
from assay.testing.pipelines import tiny_pipeline
from assay.training.recipe import untrained
from assay.training.unet import UNetSettings

pytestmark = pytest.mark.portable

PROMPTS = ["red circle", "blue ring, solid style", "green cross", "a", "purple square, outline style"]
SEEDS = [3, 1, 4, 15, 9]


def by_diffusers(denoiser: Denoiser, count: int, **options) -> torch.Tensor:
    """Draw by the pipeline itself."""
    pipeline = denoiser.pipeline
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[:count]]
    return pipeline(PROMPTS[:count], guidance_scale=4.0, generator=generators, output_type="pt", **options).images


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_is_that_of_diffusers_bit_for_bit(denoiser, eta):
    denoiser.forget_text()  # an encoding kept from another batch may differ in its last bit
    ours = denoiser.generate(PROMPTS[:2], SEEDS[:2], steps=3, guidance=4.0, eta=eta)
    assert torch.equal(ours, by_diffusers(denoiser, 2, num_inference_steps=3, eta=eta))


def test_negative_prompts_are_those_of_diffusers(denoiser):
    negative = ["green cross", "red"]
    denoiser.forget_text()
    ours = denoiser.generate(PROMPTS[:2], SEEDS[:2], steps=2, guidance=4.0, negative=negative)
    assert torch.equal(ours, by_diffusers(denoiser, 2, num_inference_steps=2, negative_prompt=negative))
    assert not torch.equal(ours, denoiser.generate(PROMPTS[:2], SEEDS[:2], steps=2, guidance=4.0))


def test_a_schedule_that_ends_in_pure_noise_samples_as_in_diffusers():
    # alpha-bar is 0 at the first step, where epsilon says nothing of the image: only v can be guided there (Lin et al. 2023, Sec. 3.1).
    pipeline = tiny_pipeline("sd-v")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    model = Denoiser(pipeline)
    assert model.alphas_cumprod[-1] == 0
    ours = model.generate(PROMPTS[:1], SEEDS[:1], steps=2, guidance=4.0)
    assert torch.equal(ours, by_diffusers(model, 1, num_inference_steps=2))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_batch_order_and_shard_leave_images_within_one_level(denoiser, eta):
    options = {"steps": 2, "guidance": 4.0, "eta": eta}
    whole = denoiser.generate(PROMPTS, SEEDS, batch=5, **options)
    backwards = denoiser.generate(PROMPTS[::-1], SEEDS[::-1], batch=2, **options).flip(0)
    shard = denoiser.generate(PROMPTS[3:], SEEDS[3:], **options)
    assert (whole - backwards).abs().max() <= 1 / 255
    assert (whole[3:] - shard).abs().max() <= 1 / 255
    assert (whole[0] - whole[1]).abs().max() > 2 / 255  # the bound above could fail


def test_an_image_depends_on_its_own_seed_alone(sd):
    first = sd.sample(PROMPTS[:2], [1, 2], steps=2)
    second = sd.sample(PROMPTS[:2], [1, 3], steps=2)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=1e-5)
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_stopping_early(sd, eta):
    # Before the first step there is the seed's noise; after the last, the sample.
    noise = normal(sd.latent_shape, [7])
    assert torch.equal(sd.sample(["a"], [7], steps=3, stop=0, eta=eta), noise)
    assert torch.equal(sd.sample(["a"], [7], steps=3, stop=3, eta=eta), sd.sample(["a"], [7], steps=3, eta=eta))
    assert not torch.equal(sd.sample(["a"], [7], steps=3, stop=2, eta=eta), sd.sample(["a"], [7], steps=3, eta=eta))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sampling_left_off_goes_on_where_it_was(sd, eta):
    """What `stop` returns is what `skip` begins with; the noise of each step is the same."""
    half = sd.sample(["a", "b"], [7, 8], steps=4, stop=1, eta=eta)
    assert torch.equal(sd.sample(["a", "b"], [7, 8], steps=4, start=half, skip=1, eta=eta), sd.sample(["a", "b"], [7, 8], steps=4, eta=eta))


@pytest.mark.parametrize(("side", "rows"), [(8, [64, 6]), (16, [64, 6]), (64, [8] * 8 + [6]), (128, [2] * 35), (512, [1] * 70)])
def test_large_latents_are_sampled_a_few_at_a_time(monkeypatch, side, rows):
    model, sampled, told = tiny(), [], []
    model.pipeline.unet.register_to_config(sample_size=side)
    monkeypatch.setattr(model, "_sample_batch", lambda conditioning, seeds, *_: sampled.append(len(seeds)) or torch.zeros(len(seeds), 1))
    assert len(model.sample(["a"] * 70, range(70), batch=64, progress=lambda *numbers: told.append(numbers))) == 70
    assert sampled == rows
    assert told[-1] == (70, 70)


def test_passes_count_samples_through_the_network(sd):
    before = sd.passes
    sd.sample(PROMPTS[:3], SEEDS[:3], steps=2, guidance=1.0)
    assert sd.passes - before == 2 * 3
    sd.sample(PROMPTS[:3], SEEDS[:3], steps=2, guidance=4.0, batch=2)
    assert sd.passes - before == 2 * 3 + 2 * 2 * 3  # the prompt and the empty prompt


def test_timesteps_are_the_schedulers(sd):
    scheduler = DDIMScheduler.from_config(sd.pipeline.scheduler.config)
    scheduler.set_timesteps(7)
    assert torch.equal(sd.timesteps(7), scheduler.timesteps)


def test_seeds_and_prompts_must_agree(sd):
    with pytest.raises(Misconfigured, match="2 seeds for 1 prompts"):
        sd.sample(["a"], [1, 2])
    with pytest.raises(Misconfigured):
        sd.sample(["a", "b"], [1, 2], negative=["c"])
    assert sd.generate([], []).shape == (0, 3, 32, 32)


def inputs(denoiser: Denoiser):
    clean, noise = normal((2, 3, *denoiser.latent_shape), [5])[0]
    return clean, noise, torch.tensor([1, 500, 999]), denoiser.conditioning(PROMPTS[:3])


@torch.no_grad()
def test_views_are_one_prediction(denoiser):
    # x_t = a x0 + s e and v = a e - s x0, in float64. The quotient by a (0.07 at the last timestep) magnifies float32's 6e-8 to 1e-5.
    clean, noise, t, conditioning = inputs(denoiser)
    x_t = denoiser.noised(clean, t, noise)
    epsilon, x0, v = (denoiser.predict(x_t, t, conditioning, view).double() for view in ("epsilon", "x0", "v"))
    a = denoiser.alphas_cumprod[t].double().sqrt()[:, None, None, None]
    s = (1 - denoiser.alphas_cumprod[t].double()).sqrt()[:, None, None, None]
    torch.testing.assert_close(a * x0 + s * epsilon, x_t.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a * epsilon - s * x0, v, rtol=1e-5, atol=1e-5)
    raw = denoiser.unet(x_t, t, **denoiser.family.unet_inputs(conditioning)).sample
    assert torch.equal(denoiser.predict(x_t, t, conditioning, "epsilon" if denoiser.native == "epsilon" else "v"), raw)


@torch.no_grad()
def test_loss_is_the_formula_of_every_sample(denoiser):
    # From diffusers' own add_noise and get_velocity, one sample at a time.
    clean, noise, t, conditioning = inputs(denoiser)
    scheduler = denoiser.pipeline.scheduler
    losses = denoiser.loss(clean, t, noise, conditioning)
    for row in range(3):
        one = slice(row, row + 1)
        noisy = scheduler.add_noise(clean[one], noise[one], t[one])
        raw = denoiser.unet(noisy, t[one], **denoiser.family.unet_inputs(conditioning[one])).sample
        target = noise[one] if denoiser.native == "epsilon" else scheduler.get_velocity(clean[one], noise[one], t[one])
        torch.testing.assert_close(losses[row], (raw - target).square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
def test_gradients_reach_the_embeddings(kind):
    # Central differences in float64: the error of a step h is O(h ** 2).
    model = tiny(kind)
    model.pipeline.to(torch.float64)
    family = model.family
    ids = family.tokenize(PROMPTS[:1])
    embeddings = [tensor.clone().requires_grad_() for tensor in family.embed(ids)]
    weight = normal((1, 24, 32), [1])[0].double()

    def value(given):
        conditioning = family.encode(ids, given)
        pooled = conditioning.extra.get("text_embeds", torch.zeros(1))
        return (conditioning.states * weight[..., : conditioning.states.shape[-1]]).sum() + pooled.square().sum()

    assert torch.equal(value(embeddings), value(None))
    gradients = torch.autograd.grad(value(embeddings), embeddings)
    for index, gradient in enumerate(gradients):
        way = normal(embeddings[index].shape, [index])[0].double()
        with torch.no_grad():
            ahead, behind = ([*embeddings[:index], embeddings[index] + step * way, *embeddings[index + 1 :]] for step in (1e-5, -1e-5))
            difference = (value(ahead) - value(behind)) / 2e-5
        torch.testing.assert_close((gradient * way).sum(), difference, rtol=1e-6, atol=1e-8)


def test_gradients_reach_embeddings_through_the_loss(denoiser):
    clean, noise, t, _ = inputs(denoiser)
    ids = denoiser.family.tokenize(PROMPTS[:3])
    embeddings = [tensor.clone().requires_grad_() for tensor in denoiser.family.embed(ids)]
    denoiser.loss(clean, t, noise, denoiser.family.encode(ids, embeddings)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in embeddings)


def test_conditioning_is_cached_without_changing_it(sd):
    sd.forget_text()
    together = sd.conditioning([*PROMPTS, ""])
    passes = []
    encoder = sd.pipeline.text_encoder
    handle = encoder.register_forward_hook(lambda *_: passes.append(1))
    again = sd.conditioning(["", PROMPTS[2], PROMPTS[2]])
    handle.remove()
    assert not passes
    assert torch.equal(again.states, together.states[[5, 2, 2]])
    alone = encoder(sd.family.tokenize([PROMPTS[2]])[0]).last_hidden_state[0]
    torch.testing.assert_close(together.states[2], alone, rtol=1e-5, atol=1e-5)


def test_weight_groups_hold_what_their_names_say(denoiser):
    # From the modules' own types and names, not from the names of the tensors.
    cross = {f"unet.{name}": module for name, module in denoiser.unet.named_modules() if name.endswith(".attn2")}
    keys_and_values = {f"{name}.{part}.weight" for name in cross for part in ("to_k", "to_v")}
    assert set(denoiser.group("cross_attention.kv")) == keys_and_values
    assert set(denoiser.group("cross_attention")) == {f"{name}.{key}" for name, module in cross.items() for key, _ in module.named_parameters()}
    selfs = {f"unet.{name}": module for name, module in denoiser.unet.named_modules() if name.endswith(".attn1")}
    both = {f"{name}.{key}" for name, module in (cross | selfs).items() for key, _ in module.named_parameters()}
    assert set(denoiser.group("attention")) == both
    dense = {
        f"unet.{name}.weight"
        for name, module in denoiser.unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and ".attn2." not in name
    }
    assert set(denoiser.group("not_cross_attention")) == dense
    encoders = 2 if denoiser.family.name == "sdxl" else 1
    assert len(denoiser.group("token_embeddings")) == encoders
    assert all("decoder" in key or "post_quant" in key for key in denoiser.group("decoder"))
    parts = [set(denoiser.group(name)) for name in ("unet", "text_encoder", "token_embeddings", "decoder")]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set(denoiser.weights()) - set.union(*parts) == {key for key in denoiser.weights() if key.startswith(("vae.encoder.", "vae.quant_conv."))}


def test_an_empty_or_unknown_group_is_refused(sd, monkeypatch):
    with pytest.raises(Unsupported, match="cross_attention, "):
        sd.group("everything")
    only_vae = {key: tensor for key, tensor in sd.weights().items() if key.startswith("vae.")}
    monkeypatch.setattr(sd, "weights", lambda: only_vae)
    for name in GROUPS:
        if name != "decoder":
            with pytest.raises(Unsupported, match="no weights"):
                sd.group(name)


@torch.no_grad()
def test_latents_are_the_autoencoders_scaled_means(sd):
    images = normal((2, 3, 32, 32), [1])[0].sigmoid()
    mean = sd.pipeline.vae.encode(images * 2 - 1).latent_dist.mean
    assert torch.equal(sd.latents(images), mean * 0.5)  # the tiny pipelines' scaling factor
    decoded = sd.pipeline.vae.decode(mean).sample / 2 + 0.5
    torch.testing.assert_close(sd.images(mean * 0.5), decoded.clamp(0, 1), rtol=0, atol=1e-6)


def test_what_is_not_finite_is_refused_and_large_images_are_decoded_few_at_a_time(sd, monkeypatch):
    """Undefined pixels would be judged as black: refused. Five images of 32 x 32 with room for two are decoded by two, to the same."""
    latents = torch.randn(5, *sd.latent_shape, generator=torch.Generator().manual_seed(0))
    latents[3, 0, 0, 0] = float("nan")
    with pytest.raises(Unsupported, match="not finite"):
        sd.images(latents)
    whole, decoded = sd.generate(["x"] * 5, range(5), steps=2), []
    decode = sd.pipeline.vae.decode
    monkeypatch.setattr(sd.pipeline.vae, "decode", lambda part: decoded.append(len(part)) or decode(part))
    monkeypatch.setattr("assay.denoiser.DECODED", 2 * 32 * 32)
    torch.testing.assert_close(sd.generate(["x"] * 5, range(5), steps=2), whole, rtol=0, atol=1e-5)
    assert decoded == [2, 2, 1]


def test_pictures_round_to_the_nearest_level():
    picture = to_pictures(torch.tensor([0.0, 1.0, 0.4999 / 255, 254.5001 / 255])[None, None].repeat(1, 3, 1, 1))[0]
    assert [picture.getpixel((x, 0))[0] for x in range(4)] == [0, 255, 0, 255]


def test_digest_belongs_to_weights_and_schedule(tmp_path, sd):
    loaded = load(save_tiny(tmp_path / "m"))
    assert loaded.digest == sd.digest
    assert tiny(seed=1).digest != sd.digest
    changed = tiny()
    with torch.no_grad():
        next(changed.unet.parameters())[0] += 1e-6
    assert changed.digest != sd.digest
    other = tiny_pipeline()
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, beta_end=0.013)
    assert Denoiser(other).digest != sd.digest


def test_predictions_of_another_kind_are_refused():
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="sample")
    with pytest.raises(Unsupported, match="sample"):
        Denoiser(pipeline)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
def test_parts_that_do_not_fit_are_refused(kind):
    """As of a checkpoint put together of several, or for another task: the network would fail in the middle of a pass, in words of matrices."""
    for part, other in (
        ("text_encoder", None),
        ("tokenizer", None),
        ("vae", None),
        ("unet", {"cross_attention_dim": 20}),
        ("unet", {"in_channels": 9}),
    ):
        pipeline = tiny_pipeline(kind)
        if other is None:
            setattr(pipeline, part, None)
        else:
            pipeline.unet = type(pipeline.unet).from_config({**pipeline.unet.config, "_use_default_values": [], **other})
        with pytest.raises(Unsupported, match=f"no {part}" if other is None else f"UNet .*{next(iter(other.values()))}"):
            Denoiser(pipeline)


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(BadInput, match=r"model_index\.json"):
        load(tmp_path)
    for text in ("{", "[1]", "\udcff"):
        (tmp_path / "model_index.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(BadInput, match="damaged"):
            load(tmp_path)


def test_an_unknown_pipeline_is_refused_by_name_with_what_is_supported(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(Unsupported, match=r"FluxPipeline.*StableDiffusionPipeline, StableDiffusionXLPipeline"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_corrupt_weights(tmp_path, part):
    file = save_tiny(tmp_path / "m") / part
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be loaded"):
        load(tmp_path / "m")


@pytest.mark.parametrize("model", ["nobody/nothing-of-this-name", "./nowhere", "/nowhere/at/all", "word"])
def test_a_model_that_is_nowhere(model):
    with pytest.raises(Missing):
        load(model)


def test_a_device_that_is_not_there(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(Unsupported, match="--device"):
            load(tmp_path, device=device)


def test_errors_are_one_paragraph_with_a_remedy():
    with pytest.raises(AssayError) as caught:
        locate("/nowhere/at/all")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_model_may_ship_with_a_unet_alone(tmp_path, monkeypatch):
    """As emoji32 does: what its folder does not hold is another model's."""
    base = load(save_tiny(tmp_path / "base"))
    shape = {"widths": (8, 8), "attention": (True, True), "heads": 2, "groups": 4}
    small = untrained(base, UNetSettings(**shape), side=8, name="small")
    small.unet.save_pretrained(tmp_path / "small" / "unet")
    small.pipeline.save_config(tmp_path / "small")
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["model_index.json", "unet"]
    monkeypatch.setattr("assay.loading.SHARING", {str(tmp_path / "small"): str(tmp_path / "base")})
    loaded = load(tmp_path / "small")
    assert loaded.digest == small.digest != base.digest
    assert loaded.image_size == base.image_size // 2
    assert torch.equal(loaded.generate(["red circle"], [0], steps=2), small.generate(["red circle"], [0], steps=2))


def test_more_steps_than_the_model_has_are_refused(sd):
    """A thousand timesteps; with an offset of one, as Stable Diffusion 1.5 is configured, the thousandth step would be the timestep 1000."""
    for steps in (0, -1, 1001):
        with pytest.raises(Misconfigured, match=f"in {steps} steps"):
            sd.sample(["a"], [0], steps=steps)
    pipeline = tiny().pipeline

    def spaced(offset: int) -> Denoiser:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, steps_offset=offset, timestep_spacing="leading")
        return Denoiser(pipeline)

    assert int(spaced(0).timesteps(1000).max()) == int(spaced(1).timesteps(999).max()) == 999
    with pytest.raises(Misconfigured, match="in 1000 steps"):
        spaced(1).timesteps(1000)


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, FlowMatchEulerDiscreteScheduler])
def test_noise_schedules_of_another_kind_are_refused(scheduler):
    """Their configs name no betas: DDIM would sample by betas of its own, and every picture would be wrong without a word."""
    pipeline = tiny().pipeline
    pipeline.scheduler = scheduler()
    with pytest.raises(Unsupported, match=scheduler.__name__):
        Denoiser(pipeline)


def test_noise_schedules_that_ddim_does_not_have_are_refused():
    pipeline = tiny().pipeline
    pipeline.scheduler = HeunDiscreteScheduler(beta_schedule="exp")
    with pytest.raises(Unsupported, match="HeunDiscreteScheduler"):
        Denoiser(pipeline)
    pipeline.scheduler = EulerDiscreteScheduler()
    pipeline.scheduler.alphas_cumprod = pipeline.scheduler.alphas_cumprod**2
    with pytest.raises(Unsupported, match="EulerDiscreteScheduler"):
        Denoiser(pipeline)


def test_a_last_alpha_bar_kept_above_zero_is_ddims_zero():
    pipeline = tiny("sd-v").pipeline
    pipeline.scheduler = EulerDiscreteScheduler(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    assert pipeline.scheduler.alphas_cumprod[-1] > 0
    model = Denoiser(pipeline)
    assert model.alphas_cumprod[-1] == 0
    assert torch.allclose(model.alphas_cumprod[:-1], pipeline.scheduler.alphas_cumprod[:-1])


def test_the_setup_is_that_of_the_model_wherever_it_lies(denoiser, tmp_path):
    """Made in memory, saved, loaded in half precision, saved from that and used: the same words and configurations."""
    denoiser.pipeline.save_pretrained(tmp_path / "saved")
    half = load(tmp_path / "saved", dtype=torch.float16)
    half.conditioning(PROMPTS)
    half.pipeline.save_pretrained(tmp_path / "again")
    assert half.setup == load(tmp_path / "again").setup == denoiser.setup
