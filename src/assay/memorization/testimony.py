"""From similarities to a record: thresholds from calibration works, who exceeds them, and what that does and does not say."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from assay.evaluation.intervals import wilson
from assay.evaluation.thresholds import Joint, Threshold, joint_threshold, threshold_at
from assay.judge import JudgeLike
from assay.memorization.groups import Group
from assay.record import Curve, Metric, Record, Table
from assay.works import Works

MEASURES = ("tiled l2", "perceptual hash", "judge's features")

SHOWS_NOT = [
    "Agreement is over a work's images: the measures that exceed their thresholds may do so on different ones. The table of matches shows the image "
    "that is nearest by tiled l2, with its own figures.",
    "Similarity is not cause: a title and a style all but fix the image, so a faithful model looks like a memorising one. The controls are the "
    "guard: canaries with k = 0, calibration and holdout works, none of them trained.",
    "What the same model would draw had it not seen the work is not part of this audit: there is no counterfactual.",
    "A work that is not flagged may still be memorised: other prompts, more images or white-box attacks were not tried.",
    "Thresholds hold for this model, these works, this judge and 64x64 pixels; they are not comparable with published ones.",
]


class Decision(NamedTuple):
    """What was decided of every work asked for, in the order of the groups."""

    flagged: np.ndarray
    """Whether it counts as memorised: bool, (n,)."""
    alone: np.ndarray
    """Whether each measure alone would flag it: bool, (n, 3)."""
    joint: Joint
    """The rule that decided."""
    single: list[Threshold]
    """Each measure's own threshold."""
    rate: float
    """The false-positive rate aimed at; more than was asked where calibration works are too few."""


class Testimony(NamedTuple):
    """A record, and which outputs its table of matches shows."""

    record: Record
    """Without digests, seeds and times."""
    matches: list[tuple[int, int]]
    """(place among the works asked for, number of the image), the clearest first."""


def decide(scores: np.ndarray, calibration: int, rate: float, agreement: int) -> Decision:
    """Set thresholds on the first `calibration` rows of scores (n, measures), higher is more alike, and apply them to all rows.

    One false alarm among n + 1 exchangeable works is the least that n calibration works can promise, so the rate is at least 1 / (n + 1).
    """
    negatives = scores[:calibration]
    rate = max(rate, 1 / (calibration + 1))
    single = [threshold_at(negatives[:, measure], rate) for measure in range(scores.shape[1])]
    joint = joint_threshold(negatives, rate, agreement)
    alone = scores > np.array([threshold.value for threshold in single])
    return Decision(joint.flags(scores), alone, joint, single, rate)


def witness(works: Works, groups: list[Group], similarity: np.ndarray, rank: np.ndarray, settings: dict[str, Any], judge: JudgeLike) -> Testimony:
    """Write the record.

    Args:
        works: the table.
        groups: what was asked for, calibration first.
        similarity: of every image to its own work: (works asked for, images, 3).
        rank: how many works are at least as near as its own: (works asked for, images, 3).
        settings: as used.
        judge: who gave the third measure.
    """
    scores = similarity.max(1)
    best = similarity[:, :, 0].argmax(1)
    decision = decide(scores, len(groups[0].works), settings["false_positive_rate"], settings["agreement"])
    first = rank[np.arange(len(best)), best, 0] == 1
    ends = np.cumsum([len(group.works) for group in groups])
    rows_of = [range(int(end) - len(group.works), int(end)) for group, end in zip(groups, ends)]
    signature = f"{judge.name} {judge.digest[:12]}"
    metrics, rates, lines = [], [], {}
    for group, rows in zip(groups, rows_of):
        count = int(decision.flagged[rows].sum())
        low, high = wilson(count, len(rows))
        never = group.arm is None and group.kind != "members"
        name = f"false_positives.{group.label}" if never else f"memorised.{group.label}"
        shared = {"n": len(rows), "better": "lower", "judge": signature, "chance": decision.rate}
        metrics.append(Metric(name=name, value=count / len(rows), low=low, high=high, **shared))
        alone = [f"{int(decision.alone[rows, measure].sum())}" for measure in range(3)]
        rates.append([group.words, len(rows), count, f"{low:.0%} to {high:.0%}", *alone, int(first[rows].sum())])
        line = {"one": "one caption", None: "never trained (holdout)" if group.kind == "holdout" else group.words}.get(
            group.arm, f"{group.arm} captions"
        )
        if group.kind != "calibration":
            lines.setdefault(line, []).append((float(group.dose), count / len(rows), low, high))
    columns = ["works", "asked for", "memorised", "95 % interval", *(f"by {name} alone" for name in MEASURES), "own work is the nearest of all"]
    places = [(group, row) for group, rows in zip(groups, rows_of) for row in rows if group.dose > 0 and group.kind in ("members", "canary")]
    order = sorted(places, key=lambda place: (-int(decision.flagged[place[1]]), place[0].kind != "canary", -scores[place[1], 0]))[
        : settings["matches"]
    ]
    asked = [index for group in groups for index in group.works]
    shown = [(group, works[asked[row]], similarity[row, best[row]], bool(decision.flagged[row])) for group, row in order]
    matches = [_match(place, *about) for place, about in enumerate(shown, start=1)]
    heads = ["output", "work", "title", "style", "creator", "licence", "copies", "memorised", *MEASURES]
    tables = [
        Table(title="Works called memorised", columns=columns, rows=rates),
        Table(title="Closest matches", columns=heads, rows=matches),
        _thresholds(decision),
    ]
    curve = Curve(title="Memorised against copies in training", x_label="copies k", y_label="share called memorised", lines=lines, x_scale="symlog")
    record = Record(
        command="audit",
        method="nearest",
        question="Which works come out of the model when it is asked for them by their captions?",
        given=settings,
        resolved=settings | {"size": 64, "measures": list(MEASURES), "rate": round(decision.rate, 6), "judge": judge.name},
        metrics=metrics,
        findings=findings(groups, metrics, decision, settings),
        shows_not=SHOWS_NOT,
        tables=tables,
        curves=[curve],
    )
    return Testimony(record, [(row, int(best[row])) for _, row in order])


def findings(groups: list[Group], metrics: list[Metric], decision: Decision, settings: dict[str, Any]) -> list[str]:
    """Say in words what was found: the most copied canaries first, then controls, ordinary members and the rate that holds."""

    def shown(times: int) -> str:
        return "once" if times == 1 else f"{times} times"

    def counted(group: Group, metric: Metric) -> str:
        return f"{round((metric.value or 0) * metric.n)} of {metric.n} (95 % interval {metric.low or 0:.0%} to {metric.high or 0:.0%})"

    pairs = list(zip(groups, metrics))
    found = []
    for arm in dict.fromkeys(group.arm for group in groups if group.arm):
        group, metric = max(((group, metric) for group, metric in pairs if group.arm == arm), key=lambda pair: pair[0].dose)
        if group.dose:
            found.append(f"Of {group.words}, {counted(group, metric)} are called memorised.")
    for group, metric in pairs:
        if group.kind == "members":
            found.append(
                f"Of ordinary members, shown {shown(group.dose)} an epoch, {counted(group, metric)} are called memorised; the thresholds aim "
                f"at {decision.rate:.1%} false alarms."
            )
        elif group.kind == "canary" and group.dose == 0:
            found.append(f"Of the canaries withheld from training (k = 0), {counted(group, metric)} are called memorised: false alarms.")
    achieved = f"on calibration works {decision.joint.achieved:.1%} are flagged"
    held = next(
        (f"; on holdout works, which set no threshold, {counted(g, m)}" for g, m in pairs if g.kind == "holdout"),
        "; there are no holdout works to check it on",
    )
    found.append(
        f"A work counts as memorised where at least {decision.joint.least} of {len(MEASURES)} measures exceed their thresholds: {achieved}{held}."
    )
    if decision.rate > settings["false_positive_rate"]:
        found.append(
            f"So few calibration works ({decision.joint.n}) cannot hold a rate of {settings['false_positive_rate']:.1%}: "
            f"thresholds are set at {decision.rate:.1%}. At least {int(np.ceil(1 / settings['false_positive_rate'])) - 1} works are needed."
        )
    return found


def _match(place: int, group: Group, work: dict[str, Any], scores: np.ndarray, flagged: bool) -> list[Any]:
    pictures = [{"picture": f"match-{place}-output.png"}, {"picture": f"match-{place}-work.png"}]
    about = [work[name] or "" for name in ("title", "style", "creator", "license")]
    return [
        *pictures,
        *about,
        group.dose,
        "yes" if flagged else "no",
        round(-float(scores[0]), 4),
        round(float(scores[1]), 4),
        round(float(scores[2]), 4),
    ]


def _thresholds(decision: Decision) -> Table:
    sign = (-1, 1, 1)
    rows = []
    for measure, (name, single) in enumerate(zip(MEASURES, decision.single)):
        values = [round(sign[measure] * value, 4) if np.isfinite(value) else "none" for value in (single.value, decision.joint.values[measure])]
        rows.append([name, ("below", "above", "above")[measure], values[1], values[0], f"{single.achieved:.1%}", f"{single.bound:.1%}"])
    columns = ["measure", "flags", "threshold in the joint rule", "threshold alone", "flagged alone on calibration", "upper 95 % bound"]
    return Table(title=f"Thresholds, from {decision.joint.n} calibration works", columns=columns, rows=rows)
