"""The detectors on traces built by hand; the gradient of triggering tokens against finite differences in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from assay.denoiser import Denoiser
from assay.memorization import anisotropy, attention_entropy, bright_ending, noise_difference, one_step
from assay.memorization.trace import Trace
from assay.noise import normal
from assay.testing import KINDS, tiny
from assay.testing.pipelines import tiny_pipeline


def built(**given):
    """A trace of one prompt, one draw, two steps, one layer, 4 tokens and 1 x 2 x 2 latents."""
    plain = {
        "guidance": torch.zeros(1, 1, 2, 1, 2, 2),
        "attention": torch.full((1, 1, 2, 1, 4), 0.25),
        "ending": torch.full((1, 1, 2, 2), 0.1),
        "late": torch.zeros(1, 1, 1, 2, 2),
        "late_empty": torch.zeros(1, 1, 1, 2, 2),
        "ends": torch.tensor([2]),
        "latents": torch.zeros(1, 1, 1, 2, 2),
        "leap": torch.ones(1, 1),
    }
    return Trace(**(plain | given))


def test_magnitudes_by_hand():
    guidance = torch.zeros(1, 1, 2, 1, 2, 2)
    guidance[0, 0, 0, 0] = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # norm 5
    guidance[0, 0, 1, 0] = 0.5  # norm 1
    trace = built(guidance=guidance)
    assert noise_difference.first(trace) == pytest.approx([5.0])
    assert noise_difference.mean(trace) == pytest.approx([3.0])


def test_one_step_is_averaged_over_draws():
    assert one_step.confidence(built(leap=torch.tensor([[1.0, 4.0]]))) == pytest.approx([2.5])


def test_entropy_of_even_attention_is_log_n_and_of_one_token_nothing():
    assert attention_entropy.entropy(torch.full((7,), 1 / 7).double()).item() == pytest.approx(math.log(7), rel=1e-6)
    assert attention_entropy.entropy(torch.tensor([0.0, 1.0, 0.0])).item() == 0
    assert attention_entropy.e(built(), 0) == pytest.approx([math.log(4)], rel=1e-6)


def test_entropies_by_hand():
    """First step: all to the beginning token. Second: even over 4. Summary tokens are the last two: 2 x 1/4 log 4 = log 2 of entropy."""
    attention = torch.full((1, 1, 2, 1, 4), 0.25)
    attention[0, 0, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    trace = built(attention=attention)
    assert attention_entropy.whole(trace, 1) == pytest.approx([math.log(4)], rel=1e-6)
    assert attention_entropy.summary(trace, 1) == pytest.approx([math.log(2)], rel=1e-6)
    assert attention_entropy.d(trace, 1) == pytest.approx([math.log(4) + math.log(2)], rel=1e-6)
    assert attention_entropy.d(trace, 2) == pytest.approx([math.log(4) / 2 + math.log(2) / 2], rel=1e-6)
    assert attention_entropy.e(trace, 0) == pytest.approx([0.0])
    assert attention_entropy.beginning(trace, 1) == pytest.approx([-0.25])


def test_entropy_is_that_of_attention_averaged_over_layers():
    """Two layers that each look at one token of their own: on average even over two, log 2; each alone, 0."""
    attention = torch.zeros(1, 1, 2, 2, 4)
    attention[..., 0, 0], attention[..., 1, 3] = 1, 1
    trace = built(attention=attention)
    assert attention_entropy.whole(trace, 2) == pytest.approx([math.log(2)])
    assert attention_entropy.e(trace, 1) == pytest.approx([0.0])


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=4))
def test_entropy_lies_between_nothing_and_log_n(weights):
    p = torch.tensor(weights, dtype=torch.float64)
    assert 0 <= attention_entropy.entropy(p / p.sum()).item() <= math.log(4) + 1e-9


def test_the_masked_magnitude_by_hand():
    guidance = torch.zeros(1, 1, 2, 1, 2, 2)
    guidance[..., 0, 0], guidance[..., 1, 1] = 3.0, 4.0
    even = built(guidance=guidance, ending=torch.full((1, 1, 2, 2), 0.37))
    assert bright_ending.masked(even) == pytest.approx(noise_difference.mean(even), rel=1e-6)  # an even map changes nothing
    ending = torch.zeros(1, 1, 2, 2)
    ending[..., 0, 0] = 0.8  # mean 0.2: (3 x 0.8) / 0.2
    assert bright_ending.masked(built(guidance=guidance, ending=ending)) == pytest.approx([12.0], rel=1e-6)
    assert bright_ending.brightness(built(ending=ending)) == pytest.approx([0.2])


def test_the_region_of_a_bright_place_is_that_place():
    ending = torch.full((4, 4), 0.01)
    ending[1, 2] = 0.5
    region = bright_ending.region(ending)
    assert (region == 1).nonzero().tolist() == [[1, 2]]
    assert region.sum() == 1
    assert bright_ending.region(torch.full((4, 4), 0.3)).sum() == 0
    picture = np.asarray(bright_ending.overlay(Image.new("RGB", (8, 8), (40, 200, 90)), ending)).astype(int)
    redder = picture[..., 0] - picture[..., 1] > 50
    assert redder.sum() == 4
    assert redder[2:4, 4:6].all()


def test_alignment_by_hand():
    """Four places: along, against, across and along: a mean cosine of 1/4."""
    empty = torch.tensor([[[1.0, 1.0], [1.0, 2.0]], [[0.0, 0.0], [0.0, 2.0]]])  # two channels
    pull = torch.tensor([[[2.0, -3.0], [0.0, 1.0]], [[0.0, 0.0], [5.0, 1.0]]])
    guidance = torch.ones(1, 1, 2, 1, 2, 2)  # norm 2
    trace = built(late=(empty + pull)[None, None], late_empty=empty[None, None], guidance=guidance)
    assert anisotropy.alignment(trace) == pytest.approx([0.25])
    assert anisotropy.combined(trace, 2.0) == pytest.approx([2.5])


class Double(Denoiser):
    """The whole of it in float64, so that differences can be taken."""

    def predict(self, x_t, t, conditioning, view="epsilon"):
        assert self.view == view == "epsilon"
        return self.unet(x_t, t, **self.family.unet_inputs(conditioning), return_dict=False)[0]


@pytest.mark.parametrize(("kind", "at"), [("sd-epsilon", "states"), ("sdxl", "embeddings")])
def test_significance_against_finite_differences(kind, at):
    """Central differences in every place of one token's embedding, all in one batch, and the norm of what they give."""
    pipeline = tiny_pipeline(kind)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(pipeline, part, None) is not None:
            getattr(pipeline, part).double()
    model, t, place, step = Double(pipeline), 981, 2, 1e-5
    found = noise_difference.significance(model, "red", [3], t, at=at)
    ids, plain = model.family.tokenize(["red"]), model.conditioning(["red"])
    start = [one.detach() for one in model.family.embed(ids)] if at == "embeddings" else [plain.states]
    total = 0.0
    for number, leaf in enumerate(start):
        width = leaf.shape[2]
        leaves = [one.repeat(2 * width, 1, 1) for one in start]
        leaves[number][:, place] += step * torch.cat([torch.eye(width), -torch.eye(width)]).double()
        with torch.no_grad():
            rows = [one.repeat(2 * width, 1) for one in ids]
            wide = plain.expand(2 * width)
            told = model.family.encode(rows, leaves) if at == "embeddings" else type(plain)(leaves[0], wide.extra)
            x, times = normal(model.latent_shape, [3]).double().repeat(2 * width, 1, 1, 1), torch.full((2 * width,), t)
            pull = model.predict(x, times, told) - model.predict(x, times, model.conditioning([""]).expand(2 * width))
        above, below = pull.flatten(1).norm(dim=1).chunk(2)
        total += float(((above - below) / (2 * step)).square().sum())
    assert float(found[place]) == pytest.approx(total**0.5, rel=1e-5)
    assert found.shape == (24,)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_leave_no_trace_on_the_model(kind):
    model = tiny(kind)
    assert noise_difference.significance(model, "red", [1, 2], 981, at="embeddings").isfinite().all()
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.weights().values())


def test_marks_are_on_the_heaviest_tokens(sd):
    """The tiny tokenizer has one token a letter: of r, e, d, c, a, t the a is heaviest; begin and end do not count."""
    weights = torch.ones(24)
    weights[0], weights[7], weights[5] = 100, 100, 15
    text, heaviest = noise_difference.marked(sd, "red cat", weights)
    assert text == "red c[a]t"
    assert heaviest.startswith("a 75%")
    assert noise_difference.marked(sd, "", weights) == ("", "")
