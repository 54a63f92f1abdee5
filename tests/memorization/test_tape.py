"""Expected values: the exact predictions of Gaussian data (conftest), in float64; passes counted by the denoiser."""

import dataclasses

import numpy as np
import pytest
import torch

from assay.errors import Misconfigured
from assay.memorization.tape import Passes, Tape, check, normalised, play, record
from assay.noise import derive, normal
from assay.testing import tiny, tiny_works

SHORT = Passes((300,), 1, 200, 100, 40, 40)


@pytest.fixture(scope="module")
def works():
    return tiny_works()


def wordings(works, rows):
    captions = [works.column("captions")[row][0] for row in rows]
    return {"caption": captions, "empty": [""] * len(rows)}


def same(one: Tape, other: Tape) -> bool:
    names = ("clean", "noise", "first", "proximal", "proximal_normalised", "unnoised", "inverted", "returned", "gradient")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names) and all(
        torch.equal(one.noised[name], tensor) for name, tensor in other.noised.items()
    )


def test_every_prediction_is_made_where_it_is_said_to_be(tape, exact, x0):
    for wording in ("caption", "empty", "another"):
        for place, t in enumerate((100, 400)):
            a, s = exact.scales(t)
            for draw in range(2):
                noise = normal(x0.shape[1:], [derive(0, "tape", name, t, draw) for name in "abc"]).double()
                torch.testing.assert_close(tape.noise[:, place, draw].double(), noise)
                expected = exact.predict(a * x0 + s * noise, t, wording)
                torch.testing.assert_close(tape.noised[wording][:, place, draw].double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tape.first.double(), exact.predict(x0, 0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tape.unnoised.double(), exact.predict(x0, 150), atol=1e-4, rtol=1e-4)


def test_errors_are_means_over_places(tape):
    by_hand = np.square(tape.noised["empty"][1, 0, 1].double().numpy() - tape.noise[1, 0, 1].double().numpy()).mean()
    assert float(tape.errors("empty")[1, 0, 1]) == pytest.approx(by_hand, rel=1e-12)


def test_normalised_noise_has_a_normal_s_mean_absolute_value():
    # E|z| = sqrt(2 / pi) for a standard normal z; scale and sign of the row are all that is left alone.
    rows = torch.tensor([1.0, -3.0, 2.0, 0.0]).reshape(1, 1, 2, 2).double()
    np.testing.assert_allclose(normalised(7 * rows), rows / 1.5 * (2 / np.pi) ** 0.5)


def test_passes_are_those_stated(denoiser, works):
    rows = [3, 7, 12]
    before = denoiser.passes
    latents = normal(denoiser.latent_shape, [1, 2, 3])
    record(denoiser, latents, ["a", "b", "c"], wordings(works, rows), SHORT, seed=0, batch=4)
    assert denoiser.passes - before == 3 * SHORT.each(2) == 3 * (2 * 1 * 1 + 4 + 1 + 1)


def test_a_work_s_tape_depends_neither_on_its_shard_nor_on_its_neighbours(sd, works):
    rows = [3, 7, 12]
    (alone,) = play(sd, works, [7], wordings(works, [7]), SHORT, seed=0)
    (among,) = play(sd, works, rows, wordings(works, rows), SHORT, seed=0, batch=2)
    torch.testing.assert_close(among.noise[1:2], alone.noise, atol=0, rtol=0)
    for name in ("clean", "first", "proximal", "proximal_normalised", "returned"):
        torch.testing.assert_close(getattr(among, name)[1:2], getattr(alone, name), atol=1e-5, rtol=1e-4)


def test_a_killed_tape_goes_on_and_another_model_takes_no_shard(works, tmp_path):
    denoiser, rows = tiny(), [1, 2, 3, 4]
    options = {"seed": 0, "shard": 2, "folder": tmp_path}
    short = dataclasses.replace(SHORT, gradient=True)
    first = next(play(denoiser, works, rows, wordings(works, rows), short, **options))
    assert len(list(tmp_path.iterdir())) == 1
    middle = denoiser.passes
    tapes = list(play(denoiser, works, rows, wordings(works, rows), short, **options))
    assert denoiser.passes - middle == middle  # the second shard alone
    assert same(tapes[0], first)
    done = denoiser.passes
    again = list(play(denoiser, works, rows, wordings(works, rows), short, **options))
    assert denoiser.passes == done
    assert all(same(one, other) for one, other in zip(again, tapes, strict=True))
    next(play(tiny(seed=1), works, rows, wordings(works, rows), short, **options))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "given",
    [{"draws": 0}, {"timesteps": ()}, {"interval": 0}, {"interval": 30}, {"inverted": 0}, {"proximal": 1000}, {"inverted": 990, "interval": 90}],
)
def test_passes_that_cannot_be_made_are_refused(given):
    plain = {"timesteps": (300,), "draws": 1, "proximal": 200, "unnoised": 100, "inverted": 40, "interval": 20}
    check(Passes(**plain), 1000)
    with pytest.raises(Misconfigured):
        check(Passes(**(plain | given)), 1000)
