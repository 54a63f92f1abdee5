"""What pools of trainings on random halves show by themselves: can a model's members be told, and what do copies change.

Models and works are both samples of what might have been trained: intervals are over pairs of complementary models and over works, drawn anew
independently of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.evaluation.intervals import Interval, crossed
from assay.evaluation.membership import Roc, likelihood_ratio
from assay.training.pool import Pool
from assay.works import Works

SEED = 20261124
DRAWS = 300
RATES = {"tpr_at_1%": 0.01, "tpr_at_0.1%": 0.001}
STRONGEST = "likelihood ratio of the loss, a work's own variance"
CONTROL = f"control: {STRONGEST}, against another pair's subset"
ONCE, REPEATED = "works shown once", "works repeated"

Figure = dict[str, Any]


def figure(value: float, interval: Interval, chance: float | None = None, **more: object) -> Figure:
    """Round a value and its interval."""
    return {"value": round(value, 5), "low": round(interval[0], 5), "high": round(interval[1], 5), "chance": chance, **more}


def membership(
    pool: Pool, weights: Sequence[float] | None = None, rates: Mapping[str, float] = RATES, works: np.ndarray | slice = slice(None)
) -> Figure:
    """Attack every model, the other pairs being its shadow models.

    Args:
        pool: of which the first training of every subset counts.
        weights: of the losses in their mean.
        rates: name -> false-positive rate.
        works: those attacked; all by default.

    Returns:
        For every attack, and for the strongest one's control, which scores models against the subset of another pair: the AUC and the true-positive
        rates, with intervals and what chance gives. And by how much members' losses are lower.

    Raises:
        Misconfigured: there are too few models to fit a Gaussian to.
    """
    once = pool.once
    included, losses, groups = pool.plan.included[once][:, works], pool.losses[once][:, works].astype(np.float64), pool.pairs[once]
    mean = pool.loss(weights)[once][:, works]
    logs = np.log(losses)
    attacks = {f"loss {name}": -losses[:, :, place] for place, name in enumerate(pool.names)}
    attacks |= {
        "loss": -mean,
        "likelihood ratio of the loss": likelihood_ratio(np.log(mean), included, groups),
        "likelihood ratio": likelihood_ratio(logs, included, groups),
        STRONGEST: likelihood_ratio(np.log(mean), included, groups, variance="work"),
        "likelihood ratio, a work's own variance": likelihood_ratio(logs, included, groups, variance="work"),
    }

    def measured(scores: np.ndarray, truth: np.ndarray) -> dict[str, Figure]:
        roc, columns = Roc(scores, truth), np.arange(truth.shape[1])

        def one(statistic: str, *rate: float) -> Figure:
            interval = crossed(lambda drawn: getattr(roc, statistic)(*rate, drawn), groups, columns, seed=SEED, draws=DRAWS)
            return figure(getattr(roc, statistic)(*rate), interval, *(rate or (0.5,)))

        return {"auc": one("auc"), **{name: one("tpr", rate) for name, rate in rates.items()}}

    found = {name: measured(scores, included) for name, scores in attacks.items()}
    return {
        "models": len(once),
        "works": included.shape[1],
        "mean_loss": {
            name: {
                "members": round(float(losses[:, :, place][included].mean()), 5),
                "others": round(float(losses[:, :, place][~included].mean()), 5),
                "gap_over_others": gap(losses[:, :, place], included, groups)["of_loss"],
            }
            for place, name in enumerate(pool.names)
        },
        "attacks": found | {CONTROL: measured(attacks[STRONGEST], np.roll(included, 2, axis=0))},
    }


def gap(losses: np.ndarray, included: np.ndarray, groups: np.ndarray) -> dict[str, Figure]:
    """Say by how much the losses (models, works) of works in a model lie below those out of it.

    Returns:
        `gap`, the difference of the means; `of_loss`, its share of the mean out of it; and `right`, how often the half of the models with the lower
        losses of a work is where the work was (chance one half).
    """
    lower = losses < np.median(losses, 0, keepdims=True)
    columns = np.arange(losses.shape[1])

    def mean(values: np.ndarray, drawn: np.ndarray | float, of: np.ndarray | bool = True) -> float:
        weights = np.broadcast_to(drawn, losses.shape) * of
        return float((weights * values).sum() / weights.sum())

    def apart(drawn: np.ndarray | float) -> tuple[float, float]:
        return mean(losses, drawn, included), mean(losses, drawn, ~included)

    def share(drawn: np.ndarray | float) -> float:
        ours, out = apart(drawn)
        return 1 - ours / out

    def difference(drawn: np.ndarray | float) -> float:
        ours, out = apart(drawn)
        return out - ours

    asked = {"gap": (difference, 0.0), "of_loss": (share, 0.0), "right": (lambda drawn: mean(lower == included, drawn), 0.5)}
    return {
        name: figure(statistic(1.0), crossed(statistic, groups, columns, seed=SEED, draws=DRAWS), chance)
        for name, (statistic, chance) in asked.items()
    }


def emoji32(pool: Pool, works: Works) -> Figure:
    """Measure the pool of emoji32: by how often an epoch shows a work, and attacks on works shown once apart from attacks on those repeated.

    Works with near-duplicates among the others are left out: their twins are in the other half every second time, so that no model is without them.
    Repeated works with varied captions are told apart: losses are of the first caption, which they were shown a fraction of the time.
    """
    once = pool.once
    loss, included, groups = pool.loss()[once], pool.plan.included[once], pool.pairs[once]
    _, labels, sizes = np.unique(np.array(works.column("cluster")), return_inverse=True, return_counts=True)
    alone = sizes[labels] == 1
    copies = np.maximum(1, np.array(works.column("copies")))
    varied = np.array([name == "varied" for name in works.attribute("canary")])
    rows = {}
    for count, more in sorted({(count, more) for count, more in zip(copies.tolist(), varied.tolist(), strict=True)}):
        of = (copies == count) & (varied == more) & alone
        rows[f"{count}{', varied captions' if more else ''}"] = {"works": int(of.sum()), **gap(loss[:, of], included[:, of], groups)}
    attacked = {ONCE: (copies == 1) & alone, REPEATED: (copies > 1) & ~varied & alone}
    return {
        "plan": pool.plan.digest,
        "about": pool.plan.about,
        "models": len(once),
        "works": len(works),
        "with_near_duplicates": int((~alone).sum()),
        "by_copies": rows,
        "membership": {name: membership(pool, rates={"tpr_at_1%": 0.01}, works=np.flatnonzero(of)) for name, of in attacked.items()},
    }
