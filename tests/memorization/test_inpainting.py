"""Filling in hidden parts: what is visible stays, what is hidden is never read; an exact denoiser of one picture fills it in exactly."""

import numpy as np
import pytest
import torch

from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Unsupported
from assay.memorization.inpainting import PROBE, Settings, audit, check, cost, distance, fill, neighbours, reconstruct, visible
from assay.memorization.reconstruction import NAMES
from assay.noise import derive, normal
from assay.testing import tiny, tiny_works
from assay.works import Works

QUICK = Settings(**(PROBE | {"shard": 4, "calibration": 4, "holdout": 3}))
HIDDEN = ("bottom", "top", "left", "right", "centre")


@pytest.fixture(scope="module")
def works():
    return tiny_works()


@pytest.mark.parametrize("hidden", HIDDEN)
def test_masks_of_latents_and_pixels_are_the_same_region(hidden):
    small, large = visible(hidden, 16), visible(hidden, 64)
    assert torch.equal(small.repeat_interleave(4, 0).repeat_interleave(4, 1), large)
    assert (~large).double().mean() == (0.25 if hidden == "centre" else 0.5)


@pytest.mark.parametrize("options", [{}, {"resample": 2}, {"guidance": 3.0}])
def test_what_is_visible_stays_and_what_is_hidden_is_not_read(denoiser, options):
    clean, mask, told = normal(denoiser.latent_shape, [1, 2]), visible("left", 16), denoiser.conditioning(["red", "blue"])
    filled = fill(denoiser, clean, mask, told, [3, 4], steps=3, **options)
    assert torch.equal(filled[:, :, mask], clean[:, :, mask])
    assert filled.isfinite().all()
    other = torch.where(mask, clean, torch.full_like(clean, float("nan")))
    assert torch.equal(fill(denoiser, other, mask, told, [3, 4], steps=3, **options), torch.where(mask, clean, filled))
    (alone,) = fill(denoiser, clean[1:], mask, told[[1]], [4], steps=3, **options)
    torch.testing.assert_close(alone, filled[1], atol=1e-4, rtol=1e-3)


class Known(Denoiser):
    """Knows one latent and predicts it whatever it is shown: the perfect memory of a work."""

    def predict(self, x_t, t, conditioning, view="epsilon"):
        self.passes += len(x_t)
        a, s = self.scales(t)
        return self.kept if view == "x0" else (x_t - a * self.kept) / s


def test_a_perfect_memory_fills_the_work_in():
    """x_0 = the work at every step, so that DDIM ends on it at timestep 0's level: a = 0.9996, and s e of noise is left in the hidden part."""
    model = Known(tiny().pipeline)
    model.kept = normal(model.latent_shape, [8])
    clean = model.kept.repeat(2, 1, 1, 1)
    for resample in (1, 3):
        filled = fill(model, clean, visible("bottom", 16), model.conditioning(["red", ""]), [1, 2], steps=20, resample=resample)
        s = float((1 - model.alphas_cumprod[0]) ** 0.5)
        assert (filled - clean).abs().max() < 6 * s
        assert (filled - clean).square().mean().sqrt() < 1.5 * s


def test_distance_is_over_hidden_pixels():
    one, other = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    other[0, 0, 1, 0], other[0, :, 0, 0] = 0.6, 9.0  # the latter is visible
    mask = torch.tensor([[True, True], [False, False]])
    assert float(distance(one, other, mask)) == pytest.approx((0.36 / 6) ** 0.5)  # three channels of two pixels


def test_neighbours_against_brute_force(works):
    mask = visible("top", 32).numpy()
    asked = [0, 7, 21, 40]
    rows, gaps = neighbours(works, asked, mask)
    pixels = works.pixels(32).astype(float)[:, ~mask] / 255
    split, copies = works.column("split"), works.column("copies")
    for one, row, gap in zip(asked, rows, gaps, strict=True):
        others = [other for other in range(len(works)) if other != one and split[other] == "member" and copies[other]]
        distances = {other: np.sqrt(((pixels[one] - pixels[other]) ** 2).mean()) for other in others}
        assert row != one
        assert distances[int(row)] == pytest.approx(min(distances.values()), abs=1e-5)
        assert gap == pytest.approx(max(min(distances.values()), 1 / 255), abs=1e-4)


def test_near_duplicates_are_no_neighbours(works):
    """Work 7's nearest is declared its near-duplicate: the next takes its place. Of works that declare none, -1 or null, only they are left out."""
    mask = visible("top", 32).numpy()
    (first,), _ = neighbours(works, [7], mask)
    rows = [row | {"attributes": sorted(row["attributes"].items())} for row in works]
    for cluster in (-1, None):
        for row in (rows[7], rows[first]):
            row["cluster"] = cluster
        assert neighbours(Works.from_rows(rows), [7], mask)[0] == [first]
    rows[7]["cluster"] = rows[first]["cluster"] = 3
    (second,), (gap,) = neighbours(Works.from_rows(rows), [7], mask)
    (without,), (expected,) = neighbours(Works.from_rows([row for place, row in enumerate(rows) if place != first]), [7 - (first < 7)], mask)
    assert second == without + (first <= without) != first
    assert gap == pytest.approx(expected)


def test_the_draws_of_least_loss_are_measured_and_the_nearest_of_them_is_shown(sd, works, monkeypatch):
    """Against keeping every picture and choosing at the end; decoded two at a time."""
    settings, few = Settings(**(PROBE | {"draws": 5, "kept": 2, "batch": 4})), works.take([3, 8])
    decode, most = Denoiser.images, []
    monkeypatch.setattr("assay.denoiser.DECODED", 2 * sd.image_size**2)
    monkeypatch.setattr(Denoiser, "images", lambda self, latents: most.append(len(latents)) or decode(self, latents))
    captions = [texts[0] for texts in few.column("captions")]
    made = reconstruct(sd, few, captions, settings, 3)
    assert max(most) == 2
    pixels = torch.from_numpy(few.pixels(sd.image_size)).permute(0, 3, 1, 2).float() / 255
    clean, told = sd.latents(pixels), sd.conditioning(captions)
    for row, id_ in enumerate(few.column("id")):
        five = [row] * 5
        seeds = [derive(3, "inpainting", id_, draw) for draw in range(5)]
        filled = fill(sd, clean[five], visible("bottom", 16), told[five], seeds, steps=settings.steps)
        noise = normal(sd.latent_shape, [derive(3, "loss", id_)])[[0] * 5]
        with torch.no_grad():
            order = sd.loss(filled, torch.full((5,), settings.timestep), noise, told[five]).argsort()
            pictures = torch.cat([decode(sd, one[None]) for one in filled])
        apart = distance(pictures, pixels[five], visible("bottom", 32))
        best = min(order[:2].tolist(), key=lambda draw: float(apart[draw]))
        assert float(made["caption.kept"][row]) == pytest.approx(float(apart[best]), abs=1e-4)
        assert float(made["caption.any"][row]) == pytest.approx(float(apart.min()), abs=1e-4)
        assert (made["caption.picture"][row].float() - 255 * pictures[best].permute(1, 2, 0)).abs().max() < 1.5


def test_an_audit_of_a_tiny_pipeline(denoiser, works):
    made = audit(denoiser, works, QUICK, judge=None, seed=1)
    record = made.record
    kinds = {"auc", "members.auc", "tpr", "members.flagged", "false_positives", "auc.k16"}
    assert {metric.name for metric in record.metrics} == {f"{name}.{kind}" for name in NAMES for kind in kinds}
    assert record.passes == cost(works, QUICK)["passes"]
    rows = record.tables[-1].rows
    named = {cell["picture"] for row in rows for cell in row if isinstance(cell, dict)}
    assert set(made.pictures) == named | {"nearest.png"}
    hidden = ~visible(QUICK.hidden, 32).numpy()
    for row in rows:  # the distance of a row is that between its pictures; they are rounded to 256 levels
        work, _, caption, nothing, neighbour = (
            np.asarray(made.pictures[row[place]["picture"]].convert("RGB")).astype(float) / 255 for place in range(5)
        )
        for value, picture in zip(row[9:12], (caption, nothing, neighbour), strict=True):
            assert value == pytest.approx(np.sqrt(((picture - work)[hidden] ** 2).mean()), abs=3e-3)


def test_guidance_and_resampling_cost_what_is_stated(sd, works):
    settings = Settings(**(PROBE | {"guidance": 2.0, "resample": 2, "members": 1, "calibration": 2, "holdout": 1, "matches": 0}))
    made = audit(sd, works, settings, judge=None)
    assert made.record.passes == cost(works, settings)["passes"]
    assert not made.pictures


def test_a_killed_audit_goes_on_with_the_same_result(sd, works, tmp_path):
    whole = audit(sd, works, QUICK, judge=None, seed=2, folder=tmp_path / "whole")

    def stop(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(sd, works, QUICK, judge=None, seed=2, folder=tmp_path / "part", progress=stop)
    again = audit(sd, works, QUICK, judge=None, seed=2, folder=tmp_path / "part")
    assert again.record.passes < whole.record.passes
    assert again.record.metrics == whole.record.metrics
    assert again.record.tables == whole.record.tables
    assert {name: image.tobytes() for name, image in again.pictures.items()} == {name: image.tobytes() for name, image in whole.pictures.items()}


@pytest.mark.parametrize(
    "bad",
    [{"draws": 0}, {"kept": 0}, {"kept": 65}, {"resample": 0}, {"hidden": "all"}, {"members": -1}, {"guidance": 0.5}, {"timestep": -1}],
)
def test_refuses_settings_out_of_range(bad):
    with pytest.raises(Misconfigured):
        check(Settings(**bad))


def test_refuses_timesteps_that_the_model_has_not(sd, works):
    before = sd.passes
    with pytest.raises(Misconfigured, match="1000 timesteps"):
        audit(sd, works, Settings(**(PROBE | {"timestep": 1000})), judge=None)
    assert sd.passes == before


def test_needs_calibration_works(sd, works):
    with pytest.raises(Unsupported, match="calibration"):
        audit(sd, works.where(lambda row: row["split"] == "member"), QUICK, judge=None)
