"""Two judges of different make on the same pictures: how often each is right, whether it knows, what unsettles it, and whether the two agree.

The cross-fitted judge is two convolutional networks trained with strong augmentation, each asked only about works it never saw. The centroid judge
was not trained at all: the nearest class mean in a fixed feature space, the real work of what is judged left out. A finding that both share rests on
neither's habits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from assay.evaluation.intervals import bootstrap, wilson
from assay.evaluation.judging import calibration_error, kappa, reliability
from assay.evaluation.perturbations import PERTURBATIONS
from assay.judge import HEADS, JudgeLike, Verdict
from assay.record import Curve, Metric, Table
from assay.works import Works
from assay.works.filters import condition

FEW = 20
"""A group of fewer works is not listed."""

Said = Mapping[str, Mapping[str, Verdict]]


def measure(
    judges: Mapping[str, JudgeLike],
    works: Works,
    drawn: tuple[torch.Tensor, Sequence[str], Sequence[str]] | None = None,
    families: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask every judge about real works it never saw, plain and perturbed, and about pictures a model drew.

    Args:
        judges: by name.
        works: real works with titles, groups and styles.
        drawn: pictures (n, 3, h, w) in [0, 1] that a model drew, with the titles and styles they were to show.
        families: name -> condition on works (`works/filters.py`): how often a work is named as any title of its family.
        progress: called with passes over the works done and in all.

    Returns:
        `metrics`, `tables`, `curves`, `digests` and `findings` of a record.
    """
    truth = {"title": works.column("title"), "group": works.column("group"), "style": works.column("style")}
    plain = torch.from_numpy(works.pixels(64)).permute(0, 3, 1, 2).float() / 255
    said: dict[str, Said] = {}
    for place, name in enumerate(("as they are", *PERTURBATIONS)):
        images = PERTURBATIONS[name](plain) if name in PERTURBATIONS else plain
        said[name] = {who: judge.score(images, truth["title"], truth["style"]) for who, judge in judges.items()}
        if progress:
            progress(place + 1, 1 + len(PERTURBATIONS))
    real = said["as they are"]
    on_drawn = {} if drawn is None else {who: judge.score(*drawn) for who, judge in judges.items()}
    metrics = [_accuracy(f"{who}.{head}", real[who][head], judge.chance(head), who) for who, judge in judges.items() for head in HEADS]
    metrics += [_accuracy(f"{who}.{head}.drawn", found[head], judges[who].chance(head), who) for who, found in on_drawn.items() for head in HEADS]
    errors, curves = _calibration(real)
    pairs = {"real works": real, **({"drawn": on_drawn} if on_drawn else {})}
    agreements = [metric for where, found in pairs.items() for metric in _agreement(where, found)] if len(judges) == 2 else []
    tables = [_by(truth["style"], "style", real), _by([(group or "").split("/")[0] for group in truth["group"]], "group", real), _sturdy(said)]
    if families:
        tables.append(_by_family(works, families, real))
    return {
        "metrics": metrics + errors + agreements,
        "tables": tables,
        "curves": curves,
        "digests": {f"judge:{who}": judge.digest for who, judge in judges.items()} | {"works": works.digest},
        "findings": _findings(metrics, agreements),
    }


def _accuracy(name: str, verdict: Verdict, chance: float, judge: str) -> Metric:
    right, known = int(verdict.right[verdict.known].sum()), int(verdict.known.sum())
    low, high = wilson(right, known)
    return Metric(name=name, value=right / known if known else None, low=low, high=high, n=known, chance=chance, better="higher", judge=judge)


def _calibration(real: Said) -> tuple[list[Metric], list[Curve]]:
    metrics, curves = [], []
    for head in HEADS:
        lines: dict[str, list[Any]] = {"as sure as right": [(0.0, 0.0, None, None), (1.0, 1.0, None, None)]}
        for who, found in real.items():
            verdict = found[head]
            points = reliability(verdict.confidence[verdict.known], verdict.right[verdict.known])
            n = int(verdict.known.sum())
            metrics.append(Metric(name=f"{who}.{head}.calibration_error", value=calibration_error(points), n=n, better="lower", judge=who))
            lines[who] = [(point.confidence, point.accuracy, point.low, point.high) for point in points]
        curves.append(
            Curve(title=f"Is the judge as often right about {head}s as it is sure?", x_label="confidence", y_label="share right", lines=lines)
        )
    return metrics, curves


def _agreement(where: str, found: Said) -> list[Metric]:
    first, second = found.values()
    metrics = []
    for head in HEADS:
        both = np.stack([first[head].named, second[head].named], 1)[first[head].known & second[head].known]
        if not len(both):
            continue
        low, high = bootstrap(both, lambda rows: kappa(rows[:, 0], rows[:, 1]), seed=0, draws=200)
        metrics.append(
            Metric(
                name=f"agreement.{head}.{where.replace(' ', '_')}", value=kappa(*both.T), low=low, high=high, n=len(both), chance=0.0, better="higher"
            )
        )
    return metrics


def _share(hits: np.ndarray) -> str:
    if not len(hits):
        return "none"
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{hits.mean():.0%} ({low:.0%} to {high:.0%})"


def _by(labels: Sequence[str | None], of: str, real: Said) -> Table:
    names = np.array([label or "" for label in labels])
    rows = []
    for name in sorted(set(names)):
        where = names == name
        if where.sum() < FEW:
            continue
        shares = [_share(found[head].right[where & found[head].known]) for found in real.values() for head in HEADS]
        rows.append([name, int(where.sum()), *shares])
    return Table(title=f"Real works named rightly, by {of}", columns=[of, "works", *(f"{who}: {head}" for who in real for head in HEADS)], rows=rows)


def _sturdy(said: Mapping[str, Said]) -> Table:
    rows = []
    plain = said["as they are"]
    for name, found in said.items():
        row: list[Any] = [name]
        for who in found:
            for head in HEADS:
                known = found[who][head].known
                same = found[who][head].named[known] == plain[who][head].named[known]
                row.append(f"{found[who][head].right[known].mean():.0%}, {same.mean():.0%} unchanged" if known.any() else "none")
        rows.append(row)
    columns = ["pictures", *(f"{who}: {head}" for who in plain for head in HEADS)]
    return Table(title="Real works named rightly, and namings unchanged, after what happens to pictures", columns=columns, rows=rows)


def _by_family(works: Works, families: Mapping[str, str], real: Said) -> Table:
    """List how often a family's works are named as some title of the family: what erasing the family can be measured by."""
    rows, titles = [], works.column("title")
    for name, wanted in families.items():
        fits = condition((wanted,), works)
        inside = np.array([fits(row) for row in works.rows()])
        members = {title for title, fit in zip(titles, inside, strict=True) if fit}
        row: list[Any] = [name, int(inside.sum()), len(members)]
        for found in real.values():
            verdict = found["title"]
            hits = np.array([named in members for named in verdict.named[verdict.known & inside]])
            false = np.array([named in members for named in verdict.named[verdict.known & ~inside]])
            row += [_share(hits), f"{false.mean():.1%}"]
        rows.append(row)
    columns = ["family", "works", "titles", *(text for who in real for text in (f"{who}: named as the family", f"{who}: others so named"))]
    return Table(title="Families of objects: works named as some title of their family", columns=columns, rows=rows)


def _findings(metrics: Sequence[Metric], agreements: Sequence[Metric]) -> list[str]:
    said = [
        f"{metric.judge} names the {metric.name.split('.')[1]} of {metric.value:.0%} of {metric.n} works it never saw (chance {metric.chance:.1%})."
        for metric in metrics
        if not metric.name.endswith("drawn") and metric.value is not None
    ]
    return said + [
        f"The two judges agree on the {metric.name.split('.')[1]} of {metric.name.split('.')[2].replace('_', ' ')} with kappa {metric.value:.2f} "
        f"({metric.low:.2f} to {metric.high:.2f})."
        for metric in agreements
    ]
