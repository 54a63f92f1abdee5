"""What the bench of erasers says: a chapter on every concept, and one on them all, from whichever cells were measured.

Distances are KID between images of the same prompts and seeds (`evaluation/kid.py`), as (d - floor) / (ceiling - floor):

    to the base, on prompts that were to stay         floor: A' to the base   ceiling: from the base's pictures of the target to its others
    to the reference, on prompts of the target        floor: A' to the base   ceiling: the base to the reference

0 is what another seed changes. To the base, 1 is as far as pictures of the target are from the others; to the reference, 1 is nothing erased.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from assay.benches.erasure import AGAIN, BASE, HEADS, MODELS, PARTS, REFERENCE, About, Beside, Cell, Results, Share
from assay.benches.verdicts import COST, NEAR, ROUNDING, Shares, comparable, like_retraining, mean_ranks, normalised
from assay.evaluation.admission import LEAST
from assay.evaluation.intervals import wilson
from assay.record import Metric, Record, Table, versions

SHOWS_NOT = [
    "The one composition is a pair that exists as a work of its own; pairs that no work shows are not asked for.",
    "A concept that no longer appears may be hidden: no attack has been tried here.",
    "Neighbours are also what erasers are told to put in its place or to preserve, and so is part of everything else, of a style every other style: "
    "how far an erasure reaches where nothing told it to stop, only the rest of everything else shows.",
    "Seconds with a `*` are those of the last sitting of several, and so are passes and memory beside them.",
    "The composition has fewer prompts than images, and so may its things: each is drawn with several seeds, and intervals are over images.",
    "Intervals are over images of one seed: two erasures that differ in it alone may differ by more. What has several seeds has a table of its own.",
    "With 24 images of the target one image is 4 points; with 48 of everything else the bar of 5 points is two images.",
    "Titles are named by a small judge, so that shares are low for the base too: a title counts where it is among the first five named.",
    "A canary's copies are told by a threshold that flags 2 % of works never trained on; a faint copy may be missed.",
    "The reference for families, weapons and canaries is one model that saw none of them.",
]


def shares(about: About, cell: Cell) -> Shares | None:
    """Return what is left of the target and of everything else; None where the cell failed."""
    if cell.failed:
        return None
    style = cell.shares.get("rest.style")
    target, rest = (_share(about, cell, part).value for part in ("target", "rest"))
    return Shares(target, rest, None if style is None else style.value)


def judged(about: About, cell: Cell) -> bool:
    """Whether the judge can name anything that was asked for, of the target and of everything else; where it cannot, shares are of nothing."""
    return not cell.failed and all(_share(about, cell, part).n for part in ("target", "rest"))


def unjudged(about: About, cells: dict[str, Cell]) -> bool:
    """Whether something was measured of a concept and none of it could be judged."""
    return any(not cell.failed for cell in cells.values()) and not any(judged(about, cell) for cell in cells.values())


def parts_of(about: About) -> dict[str, str]:
    """Return what is counted of a concept, and how people call it: the parts, and the things of a composition where they appear apart."""
    return PARTS | {thing: f"{thing}, apart" for thing in about.things}


def _share(about: About, cell: Cell, part: str) -> Share:
    return cell.shares.get(f"{part}.{about.heads[part]}", Share(hits=0, n=0))


def _said(share: Share) -> str:
    if not share.n:
        return "none"
    low, high = wilson(share.hits, share.n)
    return f"{share.value:.0%} ({low:.0%} to {high:.0%})"


def _relative(about: About, cell: Cell, key: str) -> tuple[float | None, float | None, float | None]:
    """Return a normalised distance with its interval."""
    scale, distance = about.scale.get(key, {}), cell.kid.get(key)
    if distance is None:
        return None, None, None
    value, low, high = (normalised(end, scale.get("floor"), scale.get("ceiling")) for end in (distance.value, distance.low, distance.high))
    return value, low, high


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
    if not absent and any("floor" not in scale or "ceiling" not in scale for scale in about.scale.values()):
        said.append("Some distances are empty: their floor or ceiling was measured to another model.")
    elif not absent and any(normalised(0.0, scale.get("floor"), scale.get("ceiling")) is None for scale in about.scale.values()):
        said.append("Some distances are empty: their ceiling is no farther than another seed.")
    return said


def chapter(results: Results, about: About, repeats: Sequence[Results] = ()) -> Record:
    """Write up one concept; of those measured with other seeds too (`repeats`), how far seeds agree."""
    cells = results.of(about.name)
    judge = results.digests["judge"][:12]
    rows, metrics = [], []
    for row, cell in cells.items():
        distances = {key: _relative(about, cell, key) for key in cell.kid}
        for part in parts_of(about):
            share = _share(about, cell, part)
            low, high = wilson(share.hits, share.n)
            better = "lower" if part == "target" else "higher"
            chance = share.chance if part == "target" or about.heads[part] == "five" else None
            shown = {"value": share.value if share.n else None, "low": low, "high": high, "n": share.n, "chance": chance}
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
        said = [cell.failed, *[""] * (len(parts) - 1)] if cell.failed else [_said(_share(about, cell, part)) for part in parts]
        rows.append([row, *said, *("" if value is None else f"{value:.2f}" for value in near), *cost])
    heads = [f"{words}: {HEADS[about.heads[part]]}" for part, words in parts_of(about).items()]
    costs = ["seconds", "passes", "overhead", "peak MiB", "patch KiB", "passes an image and step"]
    chance = next((share.chance for cell in cells.values() if (share := _share(about, cell, "target")).chance is not None), None)
    title = f"{about.name}: shares of images with 95 % intervals{'' if chance is None else f', chance of the target {chance:.1%}'}; distances; cost"
    return Record(
        command="bench",
        question=f"Can `{about.name}` be taken out of the model, by which eraser, and how near does it come to never having learned it?",
        method="erasure",
        resolved={"anchor": about.anchor, "members": about.members, "reference": about.reference, "scale": about.scale},
        seeds={"seed": results.seed},
        digests=results.digests,
        metrics=[metric for metric in metrics if metric.n],
        findings=[*_found(about, cells), *agreed(over_seeds(results, repeats, about)), *why_empty(about, cells)],
        shows_not=SHOWS_NOT,
        tables=[
            Table(title=title, columns=["", *heads, "KID to the base", "KID to the reference", *costs], rows=rows),
            *seeds_table(results, repeats, about),
        ],
        versions=versions(),
    )


def over_seeds(results: Results, repeats: Sequence[Results], about: About) -> dict[str, list[tuple[bool, bool]]]:
    """Return the bars that each eraser meets, seed by seed, of those held against a retraining that speaks with more than one seed."""
    met: dict[str, list[tuple[bool, bool]]] = {}
    for cells in [results.of(about.name), *(results.repeated(other, about.name) for other in repeats)]:
        verdict = _verdict(about, cells)
        if verdict and _share(about, cells[BASE], "target").value - _share(about, cells[REFERENCE], "target").value >= LEAST - ROUNDING:
            for row, bars in verdict.items():
                met.setdefault(row, []).append(bars)
    return {row: bars for row, bars in met.items() if len(bars) > 1}


def agreed(met: Mapping[str, Sequence[tuple[bool, bool]]]) -> list[str]:
    """Say which erasers meet both bars with every seed that they were held against retraining with, and which with some."""
    if not met:
        return []
    held = {row: [all(bar) for bar in bars] for row, bars in met.items()}
    always = ", ".join(row for row, seeds in held.items() if all(seeds)) or "none"
    mixed = ", ".join(row for row, seeds in held.items() if any(seeds) and not all(seeds)) or "none"
    return [f"Of {len(met)} erasers held against retraining with several seeds these meet both bars with each: {always}; with some: {mixed}."]


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
            counted = [_share(about, cell, part) for cell in there.values() if not cell.failed]
            hits = ["failed" if cell.failed else f"{(share := _share(about, cell, part)).hits}/{share.n}" for cell in there.values()]
            line += [", ".join(hits), _mean([share for share in counted if share.n])]
        rows.append([name, ", ".join(map(str, there)), *line])
    columns = ["", "seeds", "target", "mean, 95 %", "everything else", "mean, 95 %"]
    return [Table(title=f"{about.name}: erased, drawn and judged again with other seeds", columns=columns, rows=rows)] if rows else []


def _mean(shares: Sequence[Share]) -> str:
    """Return the mean of some shares and the wider of its two intervals; nothing of none."""
    if not shares:
        return ""
    values = [share.value for share in shares]
    low, high = wilson(sum(share.hits for share in shares), sum(share.n for share in shares))
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
        low, high = max(0.0, min(low, np.mean(values) - half)), min(1.0, max(high, np.mean(values) + half))
    return f"{np.mean(values):.0%} ({low:.0%} to {high:.0%})"


def _found(about: About, cells: dict[str, Cell]) -> list[str]:
    failed = [f"{row} failed: {cell.failed}" for row, cell in cells.items() if cell.failed]
    if unjudged(about, cells):
        return [f"The judge cannot name what is asked for of `{about.name}` or of everything else, so nothing can be said of erasing it.", *failed]
    erasers = {row: shares(about, cell) for row, cell in cells.items() if row not in MODELS}
    known = {row: found for row in MODELS if row in cells and (found := shares(about, cells[row]))}
    said = []
    if verdict := _verdict(about, cells):
        met = [method for method, bars in verdict.items() if all(bars)]
        bar = f"leave at most {100 * NEAR:.0f} points more of the target than retraining and take at most {100 * COST:.0f} off everything else"
        said.append(f"{len(met)} of {len(verdict)} erasers {bar}: {', '.join(met) or 'none'}.")
        fall = known[BASE].target - known[REFERENCE].target
        if fall < LEAST - ROUNDING:
            said.append(f"Retraining itself takes only {fall:.0%} off the target: it hardly speaks for `{about.name}`.")
    if BASE in known:
        share = _share(about, cells[BASE], "target")
        if share.n and share.chance is not None and wilson(share.hits, share.n)[0] <= share.chance:
            said.insert(0, f"That the base itself shows `{about.name}` more often than chance is not certain, so this says little of erasing it.")
    measured = {method: found for method, found in erasers.items() if found is not None}
    if BASE in known and measured:
        least = min(measured, key=lambda method: (measured[method].target, -measured[method].rest))
        now, before = measured[least], known[BASE]
        went = f"from {before.target:.0%} to {now.target:.0%}; everything else goes from {before.rest:.0%} to {now.rest:.0%}"
        said.append(f"Least of the target is left by {least}: {went}.")
    said += _apart(about, cells)
    return [*said, *failed] or ["Nothing of this concept has been measured yet."]


def _apart(about: About, cells: dict[str, Cell]) -> list[str]:
    """Say which erasers of a composition take the pair and leave each of its things where it appears apart."""
    rows = [row for row, cell in cells.items() if row not in MODELS and not cell.failed]
    if not about.things or BASE not in cells or not rows:
        return []
    falls = {row: [_share(about, cells[BASE], thing).value - _share(about, cells[row], thing).value for thing in about.things] for row in rows}
    kept = [row for row in rows if max(falls[row]) <= COST + ROUNDING]
    before = _share(about, cells[BASE], "target").value
    gone = [row for row in kept if before and _share(about, cells[row], "target").value <= before / 2]
    said = (
        f"{len(kept)} of {len(rows)} erasers leave each of {' and '.join(f'`{thing}`' for thing in about.things)} within {COST:.0%} where it is alone"
    )
    if not before:
        return [f"{said}; the base never shows the pair, so nothing is to be taken out."]
    return [f"{said}; {len(gone)} of them also halve the pair: {', '.join(gone) or 'none'}."]


def _verdict(about: About, cells: dict[str, Cell]) -> dict[str, tuple[bool, bool]]:
    """Hold the erasers of a concept against its reference; empty where there is none."""
    known = [shares(about, cells[row]) if row in cells and judged(about, cells[row]) else None for row in (BASE, REFERENCE)]
    if known[0] is None or known[1] is None:
        return {}
    return like_retraining({row: shares(about, cell) for row, cell in cells.items() if row not in MODELS}, known[0], known[1])


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
        ranked[about.name] = {row: shares(about, cell) for row, cell in cells.items() if row not in MODELS}
        if found := _verdict(about, cells):
            base, reference = (_share(about, cells[row], "target").value for row in (BASE, REFERENCE))
            both, near, spared = ([method for method, bars in found.items() if wanted(bars)] for wanted in (all, _first, _second))
            shown = [f"{base:.0%}", f"{reference:.0%}", "yes" if base - reference >= LEAST - ROUNDING else "no", len(near), len(spared), len(both)]
            counted.append([about.name, *shown, len(found), ", ".join(both)])
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
    else:
        said.append("No concept has a measured reference, so no eraser is held against retraining yet.")
    seeds = {about.name: over_seeds(results, repeats, about) for about in results.concepts}
    lines, more = moves([one for one in beside if one.digests == results.digests])
    said, tables = [*said, *lines], [*tables, *more]
    if several := [bars for met in seeds.values() for bars in met.values()]:
        steady = sum(len(set(bars)) == 1 for bars in several)
        said.append(f"Of {len(several)} erasures held against retraining with several seeds {steady} have the same verdict with each.")
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
        shows_not=SHOWS_NOT,
        tables=tables,
        versions=versions(),
    )


def _first(bars: tuple[bool, bool]) -> bool:
    return bars[0]


def _second(bars: tuple[bool, bool]) -> bool:
    return bars[1]
