"""Expected values: the exact, linear predictions of Gaussian data (conftest), in float64; DDIM by hand; passes counted by the denoiser."""

import pytest
import torch

from assay.attention import cross_layers, exposed
from assay.errors import Misconfigured
from assay.memorization.trace import Course, check, end_map, ends_of, follow
from assay.noise import derive, normal

COURSE = Course(2, 4, 3.0, 2)
PROMPTS, IDS = ["red", "blue"], ["a", "b"]


@pytest.fixture(scope="module")
def trace(gaussian):
    # The exact denoiser asks no UNet, so that there is no attention; here one pass of the tiny UNet per prediction gives some.
    plain = gaussian.predict

    def predict(x_t, t, conditioning, view="epsilon"):
        with torch.no_grad():
            gaussian.unet(x_t, t, encoder_hidden_states=conditioning.states)
        return plain(x_t, t, conditioning, view)

    gaussian.predict = predict
    yield follow(gaussian, PROMPTS, IDS, COURSE, seed=5, batch=3)
    del gaussian.predict


def test_the_guidance_is_that_of_guided_sampling(gaussian, exact, trace):
    """Twice DDIM by hand: x_0 = (x - s e) / a, x = a' x_0 + s' e, with e = e_empty + 3 (e_prompt - e_empty)."""
    times = gaussian.timesteps(COURSE.steps).tolist()
    noise = normal(gaussian.latent_shape, [derive(5, "trace", id_, draw) for id_ in IDS for draw in range(2)]).double()
    centres = gaussian.centre(gaussian.conditioning(["red", "red", "blue", "blue", ""])).double()[:, None, None, None]
    x = noise
    for step, t in enumerate(times):
        (a, s), slope = exact.scales(t), exact.slope(t)
        asked, empty = slope * (x - a * centres[:4]), slope * (x - a * centres[4:])
        torch.testing.assert_close(trace.guidance[:, :, step].flatten(0, 1).double(), asked - empty, atol=1e-4, rtol=1e-4)
        e = empty + COURSE.guidance * (asked - empty)
        after = times[step + 1] if step + 1 < len(times) else 0  # `set_alpha_to_one` is off: the last step ends at timestep 0's level
        b, r = exact.scales(after)
        x = b * (x - s * e) / a + r * e
    torch.testing.assert_close(trace.latents.flatten(0, 1).double(), x, atol=1e-3, rtol=1e-3)
    late = times[-COURSE.late]
    torch.testing.assert_close(
        trace.late.flatten(0, 1).double(), exact.slope(late) * (noise - exact.scales(late)[0] * centres[:4]), atol=1e-3, rtol=1e-4
    )


def test_the_magnitude_is_linear_in_the_guidance_of_a_linear_denoiser(gaussian, exact, trace):
    """e_prompt - e_empty = - slope a (centre_prompt - centre_empty), the same everywhere: its norm is that times the root of the latents' size."""
    centres = gaussian.centre(gaussian.conditioning([*PROMPTS, ""])).double()
    size = torch.tensor(gaussian.latent_shape).prod().item()
    for step, t in enumerate(gaussian.timesteps(COURSE.steps).tolist()):
        expected = (centres[:2] - centres[2]).abs() * exact.slope(t) * exact.scales(t)[0] * size**0.5
        torch.testing.assert_close(trace.magnitudes[:, 0, step], expected, atol=1e-6, rtol=1e-3)


def test_one_step_from_the_noise_is_that_of_the_paper(denoiser):
    """Its convention has no a_t: x / a is noise of deviation s / a, and one step from there to no noise is the guided x_0."""
    found = follow(denoiser, PROMPTS, IDS, COURSE, seed=5, batch=3).leap
    times = denoiser.timesteps(COURSE.steps)[:1].expand(4)
    x = normal(denoiser.latent_shape, [derive(5, "trace", id_, draw) for id_ in IDS for draw in range(2)])
    with torch.no_grad():
        asked, empty = (denoiser.predict(x, times, denoiser.conditioning(texts), "x0") for texts in (["red", "red", "blue", "blue"], [""] * 4))
    a, s = denoiser.scales(times)
    expected = (x / a - (empty + COURSE.guidance * (asked - empty))).square().mean((1, 2, 3)) / (s / a)[:, 0, 0, 0] ** 2
    torch.testing.assert_close(found.flatten(), expected, atol=1e-4, rtol=1e-3)


def test_attention_is_the_mean_of_what_a_pass_exposes(denoiser):
    course = Course(1, 1, 1.0, 1)
    trace = follow(denoiser, ["red cross"], ["a"], course, seed=0)
    x = normal(denoiser.latent_shape, [derive(0, "trace", "a", 0)])
    with torch.no_grad(), exposed(denoiser.unet) as maps:
        denoiser.predict(x, denoiser.timesteps(1), denoiser.conditioning(["red cross"]))
    expected = torch.stack([one[0].mean((0, 1)) for one in maps])
    torch.testing.assert_close(trace.attention[0, 0, 0], expected, atol=1e-5, rtol=1e-4)
    assert trace.attention.shape[3] == len(cross_layers(denoiser.unet))
    torch.testing.assert_close(trace.attention.sum(-1), torch.ones(1, 1, 1, len(expected)))


def test_a_prompt_s_trace_depends_neither_on_its_batch_nor_on_its_neighbours(denoiser):
    alone = follow(denoiser, ["blue"], ["b"], COURSE, seed=1)
    among = follow(denoiser, ["red", "blue", "a ring"], ["a", "b", "c"], COURSE, seed=1, batch=3)
    for name in ("guidance", "attention", "ending", "late", "late_empty", "latents"):
        torch.testing.assert_close(getattr(among, name)[1:2], getattr(alone, name), atol=1e-4, rtol=1e-3)


def test_passes_are_those_stated_and_processors_come_back(denoiser):
    before, kept = denoiser.passes, {name: type(one) for name, one in denoiser.unet.attn_processors.items()}
    follow(denoiser, PROMPTS, IDS, COURSE, seed=0, batch=4)
    assert denoiser.passes - before == 2 * COURSE.each == 2 * 2 * (2 * 4 + 2)
    assert {name: type(one) for name, one in denoiser.unet.attn_processors.items()} == kept


def test_ends_are_the_first_of_the_end_tokens(denoiser):
    # One token a letter: begin, r, e, d, end; the empty prompt ends at once. Pads are end tokens, too.
    assert ends_of(denoiser, ["red", "", "a b"]).tolist() == [4, 1, 3]


def test_the_map_is_that_of_the_finest_layers_on_the_way_down():
    """Built by hand: of two fine layers on the way down the mean counts, of the coarse one and of the way up nothing does."""
    end = torch.zeros(1, 2, 4, 5)  # two heads, 2 x 2 places, 5 tokens, end token at 3
    end[0, :, 1, 3] = torch.tensor([0.2, 0.4])
    other = torch.zeros(1, 2, 4, 5)
    other[0, :, 1, 3] = 0.5
    coarse, up = torch.ones(1, 2, 1, 5), torch.ones(1, 2, 4, 5)
    names = ["down_blocks.0", "down_blocks.0", "down_blocks.1", "up_blocks.0"]
    found = end_map([end, other, coarse, up], names, torch.tensor([3]), 4)
    expected = torch.zeros(1, 4, 4)
    expected[0, :2, 2:] = (0.3 + 0.5) / 2  # place 1 of 2 x 2 is the upper right quarter
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "bad", [Course(0, 4, 1.0, 1), Course(1, 0, 1.0, 1), Course(1, 4, 1.0, 5), Course(1, 4, 1.0, 0), Course(1, 4, float("nan"), 1)]
)
def test_refuses_what_cannot_be_sampled(bad):
    with pytest.raises(Misconfigured):
        check(bad)


def test_refuses_more_steps_than_timesteps(sd):
    with pytest.raises(Misconfigured, match="1000 timesteps"):
        check(Course(1, 1001, 1.0, 1), sd)
