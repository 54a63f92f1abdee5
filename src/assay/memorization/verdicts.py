"""From scores to a record: areas, rates at thresholds from calibration works, canaries by copies, controls, collections, and what all that means."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from assay.evaluation.blind import Blind
from assay.evaluation.intervals import wilson
from assay.evaluation.membership import Roc, auc_interval
from assay.evaluation.thresholds import threshold_at
from assay.memorization.dataset_inference import Inference, infer
from assay.memorization.groups import Group
from assay.record import Curve, Metric, Record, Table
from assay.works import Works
from assay.works.clusters import averaged

NAMES = {
    "loss": "loss",
    "calibrated_loss": "loss, calibrated by the empty prompt",
    "secmi": "SecMI",
    "pia": "PIA",
    "pian": "PIAN",
    "sima": "SimA",
    "sima_mc": "SimA-MC",
    "clid": "CLiD",
    "gsa": "GSA, gradient norm",
    "quantile": "SecMI over its predicted quantile",
}
"""Scores: as metrics name them -> as people do; the last two only where gradients were taken and calibration works suffice."""
CONTROLS = {
    "another.loss": "control: loss under another work's caption",
    "another.calibrated_loss": "control: calibrated loss under another work's caption",
    "empty.clid": "CLiD against the empty caption alone, beside its control",
    "another.clid": "control: CLiD against the empty caption alone, under another work's caption",
}
SMALLEST = 20
"""Fewest works of either kind for a collection of its own."""
LEVEL = 0.01
"""Of the test of collections (the paper's)."""

SHOWS_NOT = [
    "A score is no proof for one work: at these rates most members look like works never trained. Collections are tested together for that.",
    "An area compares works trained with works of the same kind that were not. Where the two differ in anything else, that difference counts too: "
    "the blind baseline asks no model, and what it reaches is no memory.",
    "A score that stays high under another work's caption recognises the picture or the caption alone; one that falls to chance needs the pair.",
    "A true-positive rate's interval counts members only; the threshold rests on calibration works, and its rate on holdout works stands beside it.",
    "Collections are tested against works of the same split by cluster; an owner outside must bring works that surely were never published.",
    "Intervals take works for independent of one another; near-duplicates on one side make them somewhat too narrow. Tests of collections and the "
    "blind baseline count near-duplicates once.",
    "Areas hold for this model and these works; a model trained for fewer passes over more works gives its members away less.",
    "A score may fall again with more copies: what comes out of the model without its caption gains nothing by it, which lowers CLiD.",
]


class Evidence(NamedTuple):
    """What was measured."""

    groups: list[Group]
    """Works that are judged together, calibration first."""
    asked: list[int]
    """Their rows in the table, in order."""
    scores: dict[str, np.ndarray]
    """Name -> (works,), higher for members; `timesteps` is the loss at each: (works, timesteps)."""
    blind: Blind | None = None
    """The baseline without a model."""
    clusters: np.ndarray | None = None
    """Labels of near-duplicates among the works, (works,); None where each work is its own."""
    known: dict[str, str] = NAMES
    """Names of scores: as metrics have them -> as people do."""

    @property
    def names(self) -> dict[str, str]:
        """The scores that were computed, as in `known`."""
        return {name: words for name, words in self.known.items() if name in self.scores}

    @property
    def table(self) -> np.ndarray:
        """All scores side by side, as collections are tested: (works, scores)."""
        return np.column_stack([*(self.scores[name] for name in self.names), self.scores["timesteps"]])

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Return the table of some works, near-duplicates averaged into one: independent of one another, (units, scores)."""
        return self.table[rows] if self.clusters is None else averaged(self.table[rows], self.clusters[rows])

    def rows(self, *kinds: str, arm: str | None = None, dose: int | None = None) -> np.ndarray:
        """Return the places of the works of some kinds, and of one arm and dose of canaries."""
        ends = np.cumsum([len(group.works) for group in self.groups])
        found = [
            np.arange(end - len(group.works), end)
            for group, end in zip(self.groups, ends)
            if group.kind in kinds and arm == group.arm and dose in (None, group.dose)
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)


class Collection(NamedTuple):
    """A collection that was tested."""

    name: str
    """What it is."""
    result: Inference
    """What came out."""


def area(scores: np.ndarray, members: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """Return the area under the curve of some places of scores against others, and its interval."""
    both = np.concatenate([members, others])
    value = Roc(scores[both], np.arange(len(both)) < len(members)).auc()
    return value, *auc_interval(value, len(members), len(others))


def witness(works: Works, evidence: Evidence, settings: dict[str, Any], ruled: bool, seed: int) -> Record:
    """Write the record.

    Args:
        works: the table.
        evidence: what was measured.
        settings: as used.
        ruled: whether the model carries a rule of guidance.
        seed: of the tests of collections.
    """
    members, calibration, holdout = (evidence.rows(kind) for kind in ("members", "calibration", "holdout"))
    never = np.concatenate([calibration, holdout])
    rate = max(settings["false_positive_rate"], 1 / (len(calibration) + 1))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    metrics, rows = [], []
    for name, words in (evidence.names | CONTROLS).items():
        scores = evidence.scores[name]
        line: list[Any] = [words]
        if len(members):
            value, low, high = area(scores, members, never)
            metrics.append(_metric(f"{name}.auc", (value, low, high), len(members) + len(never), 0.5))
            line += [round(value, 3), f"{low:.3f} to {high:.3f}"]
        threshold = threshold_at(scores[calibration], rate).value
        for kind, places in (("tpr", members), ("false_positives", holdout)):
            if len(places):
                count = int((scores[places] > threshold).sum())
                low, high = wilson(count, len(places))
                metrics.append(_metric(f"{name}.{kind}", (count / len(places), low, high), len(places), rate))
                line += [f"{count} of {len(places)}", f"{low:.1%} to {high:.1%}"]
        rows.append(line)
    interval, heads = "95 % interval", ["score"]
    heads += ["AUC", interval] if len(members) else []
    heads += [f"members called members at {rate:.1%}", interval] if len(members) else []
    heads += ["holdout works called members", interval] if len(holdout) else []
    tables = [Table(title="Ordinary members against works never trained", columns=heads, rows=rows)] if len(members) else []
    doses, table, curve = canaries(evidence, never)
    metrics += doses
    tables += [table] if table else []
    found = collections(works, evidence, settings["divisions"], seed)
    if found:
        metrics += [
            Metric(name=f"collection.{_slug(name)}.p_value", value=result.p_value, n=result.suspects + result.others) for name, result in found
        ]
        heads = ["collection", "works", "never trained", "p-value", "average of p-values", "shift in deviations", "direction"]
        lines = [[c.name, c.result.suspects, c.result.others, _p(c.result.p_value), _p(c.result.average), *_places(c.result)] for c in found]
        tables.append(Table(title=f"Was the collection used? {settings['divisions']} random halves", columns=heads, rows=lines))
    if len(members):
        steps = [[t, *_shown(area(evidence.scores["timesteps"][:, k], members, never))] for k, t in enumerate(settings["timesteps"])]
        tables.append(Table(title="The loss at each timestep", columns=["timestep", "AUC", interval], rows=steps))
    return Record(
        command="audit",
        method="membership",
        question="Which works was the model trained on, by how it denoises them?",
        given=plain,
        resolved=plain | {"rate": round(rate, 6)},
        metrics=metrics,
        findings=findings(evidence, metrics, found, settings, rate, ruled),
        shows_not=SHOWS_NOT,
        tables=tables,
        curves=([roc(evidence, members, never)] if len(members) else []) + ([curve] if curve else []),
    )


def canaries(evidence: Evidence, never: np.ndarray) -> tuple[list[Metric], Table | None, Curve | None]:
    """Compare canaries of every arm and dose with their control, the canaries withheld; with all works never trained where none were."""
    control = evidence.rows("canary", arm="one", dose=0)
    against = control if len(control) else never
    shown = [group for group in evidence.groups if group.kind == "canary" and group.dose]
    metrics, rows, lines = [], [], {}
    for name, words in evidence.names.items():
        line: list[Any] = [words]
        for group in shown:
            value, low, high = area(evidence.scores[name], evidence.rows("canary", arm=group.arm, dose=group.dose), against)
            line.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
            if group.arm == "one":
                metrics.append(_metric(f"{name}.auc.{group.label}", (value, low, high), len(group.works) + len(against), 0.5))
                lines.setdefault(words, [(0.0, 0.5, None, None)] if len(control) else []).append((float(group.dose), value, low, high))
        rows.append(line)
    if not shown:
        return [], None, None
    words = "withheld canaries (k = 0)" if len(control) else "works never trained"
    heads = ["score", *(group.words.removeprefix("canaries, ") for group in shown)]
    table = Table(title=f"AUC of canaries against {len(against)} {words}", columns=heads, rows=rows)
    curve = Curve(title=f"Canaries against {words}", x_label="copies k", y_label="AUC; 0.5 is chance", lines=lines, x_scale="symlog")
    return metrics, table, curve if lines else None


def roc(evidence: Evidence, members: np.ndarray, never: np.ndarray) -> Curve:
    """Draw true- against false-positive rates of ordinary members, both on logarithmic scales (Carlini et al. 2022, Section IV)."""
    both = np.concatenate([members, never])
    lines = {}
    for name, words in evidence.names.items():
        false, true = Roc(evidence.scores[name][both], np.arange(len(both)) < len(members)).curve()
        last = np.append(np.diff(false) > 0, True) & (false > 0)  # the best true-positive rate at every false-positive rate
        lines[words] = [(round(float(x), 5), round(float(y), 5), None, None) for x, y in zip(false[last], true[last])]
    lines["chance"] = [(x, x, None, None) for x in np.geomspace(1 / len(never), 1, 9).round(5).tolist()]
    labels = {"x_label": "false-positive rate", "y_label": "true-positive rate"}
    return Curve(title="Ordinary members", **labels, lines=lines, x_scale="log", y_scale="log")


def collections(works: Works, evidence: Evidence, divisions: int, seed: int) -> list[Collection]:
    """Test all ordinary members, those of every style and creator with enough works, and, as a control, holdout against calibration works."""
    members, calibration, holdout = (evidence.rows(kind) for kind in ("members", "calibration", "holdout"))
    never = np.concatenate([calibration, holdout])
    sides = [("all ordinary members", members, never), ("control: holdout against calibration works", holdout, calibration)]
    seen: set[bytes] = set()
    for column in ("style", "creator"):
        values = works.column(column)
        of = np.array([values[row] or "" for row in evidence.asked])
        for value in sorted(set(of[members]) - {""}):
            mine, theirs = members[of[members] == value], never[of[never] == value]
            if min(len(mine), len(theirs)) >= SMALLEST and mine.tobytes() not in seen:
                seen.add(mine.tobytes())
                sides.append((f"{column}: {value}", mine, theirs))
    options = {"seed": seed, "divisions": divisions}
    tables = [(name, evidence.units(ours), evidence.units(theirs)) for name, ours, theirs in sides]
    return [Collection(name, infer(ours, theirs, **options)) for name, ours, theirs in tables if min(len(ours), len(theirs)) >= SMALLEST]


def findings(evidence: Evidence, metrics: list[Metric], found: list[Collection], settings: dict[str, Any], rate: float, ruled: bool) -> list[str]:
    """Say in words what was found: ordinary members, canaries, controls, collections, and what was not reported."""
    by = {metric.name: metric for metric in metrics}
    said = []
    areas = {name: by[f"{name}.auc"].value or 0.0 for name in evidence.names if f"{name}.auc" in by}
    if areas:
        best, worst = max(areas, key=areas.__getitem__), min(areas, key=areas.__getitem__)
        metric = by[f"{best}.auc"]
        said.append(
            f"Ordinary members against works never trained: of {len(areas)} scores {NAMES[best]} tells most, AUC {areas[best]:.3f} (95 % interval "
            f"{metric.low:.3f} to {metric.high:.3f}, not widened for the choice), and {NAMES[worst]} least, {areas[worst]:.3f}; chance is 0.5."
        )
        called = by[f"{best}.tpr"]
        checked = by.get(f"{best}.false_positives")
        held = f"; of holdout works, which set no threshold, {_of(checked)}" if checked else "; there are no holdout works to check it on"
        said.append(
            f"By the threshold for a false-positive rate of {rate:.1%}, from calibration works, it calls {_of(called)} members trained{held}."
        )
    doses = sorted({group.dose for group in evidence.groups if group.arm == "one" and group.dose})
    if doses:
        top = max(evidence.names, key=lambda name: by[f"{name}.auc.k{doses[0]}"].value or 0.0)
        control = "canaries withheld" if len(evidence.rows("canary", arm="one", dose=0)) else "works never trained"
        for name in dict.fromkeys(("loss", top)):
            steps = ", ".join(f"{by[f'{name}.auc.k{dose}'].value:.2f} at k = {dose}" for dose in doses)
            least = by[f"{name}.auc.k{doses[0]}"]
            sure = f"; at k = {doses[0]} the 95 % interval is {least.low or 0:.2f} to {least.high or 0:.2f}, n = {least.n}"
            best = "" if name == "loss" else ", the best of all scores there"
            said.append(f"Canaries by copies, {NAMES[name]}: AUC {steps}, against {control}{sure}{best}.")
    if evidence.blind:
        low, high = evidence.blind.chance
        said.append(
            f"Blind baseline, pixels and captions without the model: AUC {evidence.blind.auc:.3f}; by chance, {low:.3f} to {high:.3f} in 95 % "
            f"of trials (p {in_p(evidence.blind.p_value)}). "
            + ("Members and others differ, so areas may overstate memory." if evidence.blind.p_value < 0.05 else "It does not tell them apart.")
        )
    beside = (("empty.clid", "another.clid"), ("calibrated_loss", "another.calibrated_loss"), ("loss", "another.loss"))
    pairs = [(name, other) for name, other in beside if f"{other}.auc" in by]
    if pairs:
        words = NAMES | {"empty.clid": "CLiD against the empty caption alone"}
        steps = "; ".join(f"{words[name]} {by[f'{name}.auc'].value:.3f}, then {by[f'{other}.auc'].value:.3f}" for name, other in pairs)
        controls = [by[f"{other}.auc"] for name, other in pairs if (by[f"{name}.auc"].low or 0.0) > 0.5]
        if not controls:
            means = "None is above chance for certain, so there is nothing to explain."
        elif any((control.low or 0.0) > 0.5 for control in controls):
            means = "What stays high recognises the picture or the caption alone."
        elif all((by[f"{name}.auc"].low or 0.0) > (by[f"{other}.auc"].high or 1.0) for name, other in pairs if (by[f"{name}.auc"].low or 0.0) > 0.5):
            means = "Those above chance need the pair of picture and caption."
        else:
            means = "Whether those above chance need the pair of picture and caption, so few works do not tell."
        said.append(f"AUC under a work's own caption, then under another's: {steps}. {means}")
    for name, result in found:
        if name.startswith(("all", "control")):
            verdict = "evidence that it was trained" if trained(result) else "no evidence that it was trained"
            kind = "Collection" if name.startswith("all") else "Collection as a control"
            said.append(f"{kind}, {name.removeprefix('control: ')}: p {in_p(result.p_value)}, {verdict} at {LEVEL:.0%}.")
    apart = [c for c in found if not c.name.startswith(("all", "control"))]
    if apart:
        sure = [c.name for c in apart if trained(c.result, len(apart))]
        said.append(
            f"Styles and creators with {SMALLEST} works of either kind: {len(sure)} of {len(apart)} give evidence at {LEVEL:.0%}, p-values times "
            f"{len(apart)}" + (f": {', '.join(sure)}." if sure else ".")
        )
    calibration = len(evidence.rows("calibration"))
    if rate > settings["false_positive_rate"]:
        least = int(np.ceil(1 / settings["false_positive_rate"])) - 1
        said.append(f"{calibration} calibration works cannot hold a rate of {settings['false_positive_rate']:.1%}: {least} are needed.")
    if calibration < 999:
        said.append(f"A rate of 0.1 % is not reported: its threshold takes 999 calibration works, and there are {calibration}.")
    if ruled:
        said.append("The model carries a rule of guidance, which acts on sampling; single predictions, and so these scores, do not see it.")
    return said


def trained(result: Inference, tests: int = 1) -> bool:
    """Say whether a collection's scores are evidence that it was trained: they differ, and in the direction of members."""
    return result.p_value * tests < LEVEL and result.direction > 0


def _places(result: Inference) -> list[float]:
    return [round(result.shift, 2), round(result.direction, 2)]


def _metric(name: str, value: tuple[float, float, float], n: int, chance: float) -> Metric:
    return Metric(name=name, value=value[0], low=value[1], high=value[2], n=n, chance=chance, better="lower")


def _shown(value: tuple[float, float, float]) -> list[Any]:
    return [round(value[0], 3), f"{value[1]:.3f} to {value[2]:.3f}"]


def _of(metric: Metric) -> str:
    return f"{round((metric.value or 0) * metric.n)} of {metric.n} (95 % interval {metric.low or 0:.0%} to {metric.high or 0:.0%})"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"


def in_p(value: float) -> str:
    """Return a p-value with its sign; below what means anything, that it is below."""
    return _p(value) if value < 1e-4 else f"= {_p(value)}"


def _slug(name: str) -> str:
    return name.removeprefix("control: ").split(",")[0].replace(": ", ".").replace(" ", "_")
