"""Figures of pools against pools whose every loss is made up: what was planted is found, and nothing else."""

import numpy as np
import pytest

from assay.benches import pools
from assay.errors import Misconfigured
from assay.evaluation.intervals import crossed
from assay.evaluation.membership import Roc, gaussian_auc
from assay.noise import numpy_generator
from assay.training.pool import Plan, Pool
from assay.works import Works

NAMES = ("t0", "t250")


def made(gap: np.ndarray, models: int = 24, spread: float = 0.1) -> Pool:
    """Losses around 1 a work, `spread` wide, lower by `gap` (works,) in the models that saw the work."""
    plan = Plan.draw(models, len(gap), seed=3)
    noise = numpy_generator(4, "losses").normal(size=(models, len(gap), len(NAMES)))
    return Pool(plan, np.exp(spread * noise - (gap * plan.included)[:, :, None]).astype(np.float32), NAMES)


def table(count: int, **columns) -> Works:
    rows = [{"id": f"{row:064}", "image": b"", "captions": ["a"], "license": "MIT", "cluster": row, "copies": 1} for row in range(count)]
    return Works.from_rows(rows).with_columns(**columns)


def test_the_best_attack_finds_what_was_planted():
    """Logarithms of losses are Gaussians of deviation 0.1, two a work, so that their mean deviates by 0.1 / sqrt 2, and lies 2 of that apart."""
    found = pools.membership(made(np.full(400, 0.1 * np.sqrt(2))))
    best = found["attacks"]["likelihood ratio of the loss"]["auc"]
    assert best["value"] == pytest.approx(gaussian_auc(2.0), abs=0.01)
    assert best["low"] < best["value"] < best["high"]
    control = found["attacks"][pools.CONTROL]["auc"]
    assert control["low"] < 0.5 < control["high"]


def test_works_are_drawn_too():
    """Members show in ten works of a hundred: a draw with five of them, or with fifteen, is as likely as not, and inside the interval."""
    pool = made(np.repeat([0.4, 0.0], [10, 90]))
    found = pools.membership(pool, rates={})["attacks"]["loss"]["auc"]
    alone = [Roc(-pool.loss()[:, kept], pool.plan.included[:, kept]).auc() for kept in (np.r_[:5, 10:100], np.r_[:10, 10:100, :5])]
    assert found["low"] < alone[0] < found["value"] < alone[1] < found["high"]


@pytest.mark.parametrize("rows", [np.arange(40), np.repeat(np.arange(20), 2)])
def test_an_interval_of_rows_and_columns_holds_the_variance_of_both(rows):
    """For x + y, rows' and columns' values, the mean varies by var(x) / rows' clusters + var(y) / columns (by hand); 4,000 draws are off by 3 %."""
    x, y = numpy_generator(1, "x").normal(size=rows.max() + 1)[rows], 0.5 * numpy_generator(1, "y").normal(size=25)
    values = x[:, None] + y
    low, high = crossed(lambda drawn: float((drawn * values).sum() / drawn.sum()), rows, np.arange(25), seed=2, draws=4000)
    deviation = np.sqrt(np.unique(x).var() / (rows.max() + 1) + y.var() / 25)
    assert (high - low) / (2 * 1.96) == pytest.approx(deviation, rel=0.08)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=deviation)
    with pytest.raises(Misconfigured, match="1 by 25"):
        crossed(lambda drawn: 0.0, np.zeros(40), np.arange(25), seed=2)


def test_copies_are_told_apart_and_twins_left_out():
    """200 works shown once, of which 20 are ten pairs of twins; 30 shown 16 times, with a gap of 0.3 planted, of which 10 with varied captions."""
    copies, varied = np.repeat([1, 16], [200, 30]), np.repeat([False, True], [220, 10])
    clusters = np.r_[np.arange(20) // 2, np.arange(100, 310)]
    works = table(230, copies=copies.tolist(), cluster=clusters.tolist(), attributes=[[("canary", "varied" if each else "one")] for each in varied])
    found = pools.emoji32(made(np.where(copies == 16, 0.3, 0.0)), works)
    assert {name: row["works"] for name, row in found["by_copies"].items()} == {"1": 180, "16": 20, "16, varied captions": 10}
    assert found["with_near_duplicates"] == 20
    assert found["by_copies"]["16"]["of_loss"]["value"] == pytest.approx(1 - np.exp(-0.3), abs=0.02)
    once = found["by_copies"]["1"]
    assert once["gap"]["low"] < 0 < once["gap"]["high"]
    assert once["right"]["value"] == pytest.approx(0.5, abs=0.03)
    assert found["by_copies"]["16"]["right"]["low"] > 0.9
    assert [each["works"] for each in found["membership"].values()] == [180, 20]
