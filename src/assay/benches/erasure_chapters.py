"""What the bench of erasers says: a chapter on every concept, and one on them all, from whichever cells were measured.

Distances are KID between images of the same prompts and seeds (`evaluation/kid.py`), as (d - floor) / (ceiling - floor):

    to the base, on prompts that were to stay         floor: A' to the base   ceiling: from the base's pictures of the target to its others
    to the reference, on prompts of the target        floor: A' to the base   ceiling: the base to the reference

0 is what another seed changes. To the base, 1 is as far as pictures of the target are from the others; to the reference, 1 is nothing erased.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from assay.benches import erasure
from assay.benches.erasure import AGAIN, BASE, HEADS, MODELS, PARTS, REFERENCE, About, Beside, Cell, Results, Share
from assay.benches.erasure_bars import (
    agreed,
    bars,
    by_the_paper,
    drawn_instead,
    erased,
    held,
    judged,
    over_seeds,
    relative,
    share,
    shares,
    speaks,
    steady,
    together,
)
from assay.benches.verdicts import COST, NEAR, ROUNDING, comparable, fall, mean_ranks, normalised
from assay.evaluation.admission import LEAST, difference_interval
from assay.evaluation.intervals import wilson
from assay.record import Metric, Record, Table, versions

SHOWS_NOT = [
    "The one composition is a pair that exists as a work of its own; pairs that no work shows are not asked for.",
    "A concept that no longer appears may be hidden: no attack has been tried here.",
    "Neighbours are also what erasers are told to put in its place or to preserve, and so is part of everything else, of a style every other style: "
    "how far an erasure reaches where nothing told it to stop, only the rest of everything else shows.",
    "Bare passes are priced, not clocked: a pass with a gradient as three without, of one speed taken after the erasure. "
    "`benchmarks/overhead.json` clocks the passes of the erasers that train while they run.",
    "Seconds with a `*` are those of the last sitting of several, and so are passes and memory beside them.",
    "The composition has fewer prompts than images, and so may its things: each is drawn with several seeds, and intervals are over images.",
    "How far a work's pictures are from those of a model that never saw it is not shown: they are of one prompt, and A' and the base, which both "
    "draw the work, are much nearer to each other than two models that do not know it can be asked to be.",
    "Of families and styles too, the floor is between two models that learned the concept; two that did not may be farther apart. Floor and ceiling "
    "are taken as exact: intervals of distances leave their own error out.",
    "SLD moves nothing where the prompt is the concept's own words: it pushes away from what the prompt already is.",
    "Intervals are over images of one seed: two erasures that differ in it alone may differ by more. What has several seeds has a table of its own.",
    "Titles are named by a small judge, so that shares are low for the base too: a title counts where it is among the first five named.",
    "A canary's copies are told by thresholds that flag 2 % of works never trained on: what is plainly the work, in other tones or less sharp, is "
    "often no copy by them. That a canary counts as gone does not show that it is: look at its pictures.",
    "The reference for families, weapons and canaries is of one training, which saw none of them.",
]


def shows_not(results: Results) -> list[str]:
    """Return what the bench does not show, with how coarse its shares are at so many images."""
    asked = results.settings.get("each")
    each = asked if isinstance(asked, dict) else erasure.Settings().each
    target, rest = int(each["target"]), int(each["rest"])
    right = round(rest * 5 / 6)
    _, width = difference_interval(right, rest, right, rest)
    return [
        *SHOWS_NOT,
        f"With {target} images of the target one image is {1 / target:.0%}; with {rest} of everything else the bar of {COST:.0%} is "
        f"{COST * rest:.1f} images. That a bar is met for certain such numbers can hardly show: of an eraser that draws everything else as the base "
        f"does, and is named right five times of six as the base is, the interval of the difference is {width:.0%} to either side.",
    ]


def unjudged(about: About, cells: dict[str, Cell]) -> bool:
    """Whether something was measured of a concept and none of it could be judged."""
    return any(not cell.failed for cell in cells.values()) and not any(judged(about, cell) for cell in cells.values())


def parts_of(about: About) -> dict[str, str]:
    """Return what is counted of a concept, and how people call it: the parts, and the things of a composition where they appear apart."""
    return PARTS | {thing: f"{thing}, apart" for thing in about.things}


def _said(seen: Share) -> str:
    if not seen.n:
        return "none"
    low, high = wilson(seen.hits, seen.n)
    return f"{seen.value:.0%} ({low:.0%} to {high:.0%})"


def why_empty(about: About, cells: dict[str, Cell]) -> list[str]:
    """Say why distances are empty, where they are."""
    absent = [row for row in (AGAIN, REFERENCE) if row not in cells or cells[row].failed]
    said = []
    if AGAIN in absent:
        said.append(
            "Distances are empty: their floor is the distance between two trainings, and none with another seed was given (`--patch again=`)."
        )
    if REFERENCE in absent and not about.reference:
        said.append(f"No training left out `{about.name}` alone: it is held against its things where they appear apart.")
    elif REFERENCE in absent:
        said.append(f"No model trained without `{about.name}` was given (`--patch {about.reference}=`), so nothing is held against retraining.")
    known = {to: [cell for row, cell in cells.items() if row not in MODELS and f"{to}.judge" in cell.kid] for to in (BASE, REFERENCE)}
    scales = {key: about.scale.get(key, {}) for key in {*about.scale, *(f"{to}.judge" for to, there in known.items() if there)}}
    if not absent and any("floor" not in scale or "ceiling" not in scale for scale in scales.values()):
        said.append("Some distances are empty: their floor or ceiling was measured to another model.")
    elif not absent and any(normalised(0.0, scale.get("floor"), scale.get("ceiling")) is None for scale in scales.values()):
        said.append("Some distances are empty: their ceiling is no farther than another seed.")
    erasers = [row for row, cell in cells.items() if row not in MODELS and not cell.failed]
    if REFERENCE not in absent and "reference.judge" in about.scale and about.kind != "work" and (gone := len(erasers) - len(known[REFERENCE])):
        said.append(
            f"Of {gone} of {len(erasers)} rows the distance to the reference is empty: it is taken between pictures, and theirs were not at hand "
            "with the reference's."
        )
    return said


def chapter(results: Results, about: About, repeats: Sequence[Results] = ()) -> Record:
    """Write up one concept; of those measured with other seeds too (`repeats`), how far seeds agree."""
    cells = results.of(about.name)
    judge = results.digests["judge"][:12]
    rows, metrics = [], []
    for row, cell in cells.items():
        distances = {key: relative(about, cell, key) for key in cell.kid}
        for part in parts_of(about):
            seen = share(about, cell, part)
            low, high = wilson(seen.hits, seen.n)
            better = "lower" if part == "target" else "higher"
            chance = seen.chance if part == "target" or about.heads[part] == "five" else None
            shown = {"value": seen.value if seen.n else None, "low": low, "high": high, "n": seen.n, "chance": chance}
            metrics.append(Metric(name=f"{row}.{part}".replace(" ", "_"), better=better, judge=judge, **shown))
        for key, (value, low, high) in distances.items():
            metrics.append(Metric(name=f"{row}.kid.{key}", value=value, low=low, high=high, n=cell.kid[key].n, better="lower"))
        near = [distances.get(f"{to}.judge", (None,))[0] for to in ("base", "reference")]
        cost = ["", "", "", "", "", ""]
        if row not in MODELS and not cell.failed:
            overhead = "" if cell.overhead is None else f"{cell.overhead:.2f}"
            peak = "" if cell.peak_bytes is None else f"{cell.peak_bytes / 2**20:.0f}"
            cost = [
                f"{cell.seconds:.3g}" + "*" * cell.resumed,
                cell.passes,
                overhead,
                peak,
                f"{cell.patch_bytes / 2**10:.0f}",
                f"{cell.sampling:.2g}",
            ]
        parts = list(parts_of(about))
        said = [cell.failed, *[""] * (len(parts) - 1)] if cell.failed else [_said(share(about, cell, part)) for part in parts]
        rows.append([row, *said, *("" if value is None else f"{value:.2f}" for value in near), *cost])
    heads = [f"{words}: {HEADS[about.heads[part]]}" for part, words in parts_of(about).items()]
    costs = ["seconds", "passes", "about times bare passes", "peak MiB", "patch KiB", "passes an image and step"]
    chance = next((seen.chance for cell in cells.values() if (seen := share(about, cell, "target")).chance is not None), None)
    title = f"{about.name}: shares of images with 95 % intervals{'' if chance is None else f', chance of the target {chance:.1%}'}; distances; cost"
    return Record(
        command="bench",
        question=f"Can `{about.name}` be taken out of the model, by which eraser, and how near does it come to never having learned it?",
        method="erasure",
        resolved={"anchor": about.anchor, "members": about.members, "reference": about.reference, "scale": about.scale},
        seeds={"seed": results.seed},
        digests=results.digests,
        metrics=[metric for metric in metrics if metric.n],
        findings=[
            *_found(about, cells),
            *agreed(over_seeds(results, repeats, about), 1 + len(repeats)),
            *steady(results, repeats, about),
            *drawn_instead(about, cells),
            *why_empty(about, cells),
        ],
        shows_not=shows_not(results),
        tables=[
            Table(title=title, columns=["", *heads, "KID to the base", "KID to the reference", *costs], rows=rows),
            *seeds_table(results, repeats, about),
        ],
        versions=versions(),
    )


def seeds_table(results: Results, repeats: Sequence[Results], about: About) -> list[Table]:
    """List what was measured with several seeds, hits seed by seed, and the mean with the wider of two intervals.

    They are Student's over seeds, which differ in prompts too, and Wilson's over all images, which holds where seeds agree by luck.
    """
    found = {results.seed: results.of(about.name)} | {other.seed: results.repeated(other, about.name) for other in repeats}
    rows = []
    for name in found[results.seed]:
        there = {seed: cells[name] for seed, cells in found.items() if name in cells}
        if len(there) < 2:
            continue
        line: list[str] = []
        for part in ("target", "rest"):
            counted = [share(about, cell, part) for cell in there.values() if not cell.failed]
            hits = ["failed" if cell.failed else f"{(seen := share(about, cell, part)).hits}/{seen.n}" for cell in there.values()]
            line += [", ".join(hits), _mean([seen for seen in counted if seen.n])]
        rows.append([name, ", ".join(map(str, there)), *line])
    columns = ["", "seeds", "target", "mean, 95 %", "everything else", "mean, 95 %"]
    return [Table(title=f"{about.name}: erased, drawn and judged again with other seeds", columns=columns, rows=rows)] if rows else []


def _mean(found: Sequence[Share]) -> str:
    """Return the mean of some shares and the wider of its two intervals; nothing of none."""
    if not found:
        return ""
    values = [seen.value for seen in found]
    low, high = wilson(sum(seen.hits for seen in found), sum(seen.n for seen in found))
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
        low, high = max(0.0, min(low, np.mean(values) - half)), min(1.0, max(high, np.mean(values) + half))
    return f"{np.mean(values):.0%} ({low:.0%} to {high:.0%})"


def _found(about: About, cells: dict[str, Cell]) -> list[str]:
    failed = [f"{row} failed: {cell.failed}" for row, cell in cells.items() if cell.failed]
    if unjudged(about, cells):
        return [f"The judge cannot name what is asked for of `{about.name}` or of everything else, so nothing can be said of erasing it.", *failed]
    erasers = {row: shares(about, cell) for row, cell in erased(cells).items()}
    known = {row: found for row in MODELS if row in cells and (found := shares(about, cells[row]))}
    said = []
    said += held(about, cells)
    if BASE in known:
        seen = share(about, cells[BASE], "target")
        if seen.n and seen.chance is not None and wilson(seen.hits, seen.n)[0] <= seen.chance:
            said.insert(0, f"That the base itself shows `{about.name}` more often than chance is not certain, so this says little of erasing it.")
    measured = {method: found for method, found in erasers.items() if found is not None}
    if BASE in known and measured:
        least = min(measured, key=lambda method: (measured[method].target, -measured[method].rest))
        now, before = measured[least], known[BASE]
        went = f"from {before.target:.0%} to {now.target:.0%}; everything else goes from {before.rest:.0%} to {now.rest:.0%}"
        said.append(f"Least of `{about.name}` is left by {least}: {went}.")
    said += _apart(about, cells)
    return [*said, *failed] or [
        "No single eraser with the bench's settings has been measured on it yet." if cells else "Nothing of this concept has been measured yet."
    ]


def _apart(about: About, cells: dict[str, Cell]) -> list[str]:
    """Say which erasers of a composition take the pair and leave each of its things where it appears apart, and by how much those fall."""
    rows = {row: cell for row, cell in erased(cells).items() if not cell.failed}
    if not about.things or BASE not in cells or not rows:
        return []
    base = shares(about, cells[BASE])
    falls = {row: [share(about, cells[BASE], thing).value - share(about, cell, thing).value for thing in about.things] for row, cell in rows.items()}
    kept = [row for row in rows if max(falls[row]) <= COST + ROUNDING]
    before = share(about, cells[BASE], "target").value
    gone = [row for row in kept if before and share(about, cells[row], "target").value <= before / 2]
    spared = [row for row in gone if base and (left := shares(about, cells[row])) and fall(base, left) <= COST + ROUNDING]
    said = (
        f"{len(kept)} of {len(rows)} erasers leave each of {' and '.join(f'`{thing}`' for thing in about.things)} within {COST:.0%} where it is alone"
    )
    if not before:
        return [f"{said}; the base never shows the pair, so nothing is to be taken out."]
    each = "; ".join(
        f"{row}: the pair falls from {before:.0%} to {_said(share(about, cells[row], 'target'))}, "
        + ", ".join(f"`{thing}` changes by {0 - 100 * lost:+.0f} points" for thing, lost in zip(about.things, falls[row], strict=True))
        for row in gone
    )
    sparing = f" Everything else falls by at most {COST:.0%} too with {', '.join(spared) or 'none'}." if gone else ""
    return [f"{said}; {len(gone)} of them also halve the pair{f' ({each})' if gone else ''}.{sparing}"]


def moves(stored: Sequence[Beside]) -> tuple[list[str], list[Table]]:
    """Say which erasers move what was to stay less than another seed does, for certain in every feature space, and list by how much."""
    said, tables = [], []
    for one in stored:
        erasers = {row: spaces for row, spaces in one.kid.items() if row != AGAIN}
        less = [row for row, spaces in erasers.items() if all(moved.beyond and moved.beyond.high < 0 for moved in spaces.values())]
        what = f"{one.images:,} pictures of {one.prompts:,} prompts outside `{one.concept}` and its neighbours"
        count = f"{len(less)} of {len(erasers)} erasers are nearer to the base than A', one training with another seed"
        said.append(f"On {what} {count}: {', '.join(less) or 'none'}.")
        rows = []
        for row, spaces in one.kid.items():
            for space, moved in spaces.items():
                beyond = f"{moved.beyond.value:.2g} ({moved.beyond.low:.2g} to {moved.beyond.high:.2g})" if moved.beyond else ""
                rows.append([row, space, f"{moved.value:.2g} ({moved.low:.2g} to {moved.high:.2g})", f"{moved.alike:.2g}", beyond])
        columns = ["", "features", "KID to the base, 95 %", "if the models were one, below", "beyond A', 95 %"]
        tables.append(Table(title=f"How far {what} move", columns=columns, rows=rows))
    return said, tables


def trained_again(results: Results, repeats: Sequence[Results] = ()) -> list[str]:
    """Say of which trainings several models stand here, and for which concepts each: what is held against one is not held against the other."""
    stand: dict[str, dict[str, list[str]]] = {}
    for about in results.concepts:
        found = [("", results.of(about.name)), *((f" with seed {other.seed}", results.repeated(other, about.name)) for other in repeats)]
        for seed, row, cell in ((seed, row, cell) for seed, cells in found for row, cell in cells.items()):
            if row in (AGAIN, REFERENCE) and cell.patch:
                stand.setdefault(about.reference if row == REFERENCE else row, {}).setdefault(cell.patch, []).append(f"`{about.name}`{seed}")
    several = {training: by for training, by in stand.items() if len(by) > 1 and training != REFERENCE}
    return [
        f"{len(by)} models stand for the training `{training}`, which differ at least in their bits: "
        + "; ".join(f"one for {', '.join(names)}" for names in by.values())
        + "."
        for training, by in several.items()
    ]


def verdict(results: Results, repeats: Sequence[Results] = (), beside: Sequence[Beside] = ()) -> Record:
    """Write up the whole bench: who comes near retraining, and who ranks first.

    Args:
        results: the bench.
        repeats: the same with other seeds.
        beside: how far erasers move what was to stay, beside another seed.
    """
    tables, counted, ranked = [], [], {}
    for about in results.concepts:
        cells = results.of(about.name)
        if unjudged(about, cells):
            continue
        ranked[about.name] = {row: shares(about, cell) for row, cell in erased(cells).items()}
        if found := bars(about, cells, erased(cells)):
            base, reference = (share(about, cells[row], "target").value for row in (BASE, REFERENCE))
            near, spared = (sum(met[bar] for met in found.values()) for bar in (0, 1))
            both, several = ([row for row, met in each.items() if all(met)] for each in (found, bars(about, cells, together(cells))))
            shown = [f"{base:.0%}", f"{reference:.0%}", "yes" if speaks(about, cells) else "no", near, spared, len(both)]
            counted.append([about.name, *shown, len(found), ", ".join(both), ", ".join(several)])
    if counted:
        columns = [
            "concept",
            "base",
            "reference",
            "reference admitted",
            f"target within {NEAR:.0%}",
            f"rest within {COST:.0%}",
            "both",
            "of",
            "which",
            "combinations",
        ]
        tables.append(Table(title="Erasers held against retraining", columns=columns, rows=counted))
    block = comparable(ranked)
    ranks = mean_ranks(block)
    rows = [[rank.method, f"{rank.target:.1f}", f"{rank.rest:.1f}", rank.concepts] for rank in ranks]
    tables.append(
        Table(
            title=f"Mean ranks over {', '.join(block) or 'no concept yet'}, of erasers measured on all of these; 1 is best, failures rank last",
            columns=["method", "by the target", "by everything else", "concepts"],
            rows=rows,
        )
    )
    said = [results.coverage]
    speak = [row for row in counted if row[3] == "yes"]
    if counted:
        said.append(
            f"Held against retraining where that takes {LEAST:.0%} or more off the target, {sum(row[6] for row in speak)} of "
            f"{sum(row[7] for row in speak)} erasures meet both bars."
            if speak
            else f"No reference takes {LEAST:.0%} or more off its target, so no erasure is held against retraining."
        )
        if silent := [f"`{row[0]}`" for row in counted if row[3] == "no"]:
            said.append(f"Of {', '.join(silent)} it takes less: those references hardly speak, and are not counted.")
    elif any(REFERENCE in results.of(about.name) for about in results.concepts):
        said.append("No single eraser with the bench's settings is held against retraining yet.")
    else:
        said.append("No concept has a measured reference, so no eraser is held against retraining yet.")
    said += trained_again(results, repeats)
    said += by_the_paper(results)
    seeds = {about.name: over_seeds(results, repeats, about) for about in results.concepts}
    lines, more = moves([one for one in beside if one.digests == results.digests])
    said, tables = [*said, *lines], [*tables, *more]
    if several := [bars for met in seeds.values() for bars in met.values()]:
        same = sum(len(set(bars)) == 1 for bars in several)
        said.append(f"Of {len(several)} erasures held against retraining with several seeds {same} have the same verdict with each.")
    if ranks:
        said.append(
            f"Of {len(ranks)} erasers measured on the same concepts ({ranks[0].concepts}), {ranks[0].method} has the best mean ranks together: "
            f"{ranks[0].target:.1f} by the target, {ranks[0].rest:.1f} by the rest."
        )
    return Record(
        command="bench",
        question="Which eraser takes a concept out, spares everything else, and comes nearest to a model that never learned it?",
        method="erasure",
        resolved={"model": results.model, **results.settings},
        seeds={"seed": results.seed},
        digests=results.digests,
        metrics=[
            Metric(name="cells.measured", value=len(results.cells), n=len(results.planned), better="higher"),
            Metric(name="cells.failed", value=sum(bool(cell.failed) for cell in results.cells), n=len(results.cells), better="lower"),
            *(Metric(name=f"{row[0]}.like_retraining".replace(" ", "_"), value=row[6], n=row[7], better="higher") for row in speak),
            *(Metric(name=f"{rank.method}.rank.target", value=rank.target, n=rank.concepts, better="lower") for rank in ranks),
            *(Metric(name=f"{rank.method}.rank.rest", value=rank.rest, n=rank.concepts, better="lower") for rank in ranks),
        ],
        findings=said,
        shows_not=shows_not(results),
        tables=tables,
        versions=versions(),
    )
