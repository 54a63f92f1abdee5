"""Which rows of the bench of erasers are held to its bars, what each leaves of a concept and takes off everything else, and how seeds agree.

Held to the bars are single erasers with the bench's settings. Combinations are listed apart: two that meet the bars make a third. So are erasers with
another preset, their papers' own. What gives a concept shares instead of taking it out is measured and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from assay.benches.erasure import BALANCING, BASE, LONG, MODELS, NO_OPS, PAPERS, REFERENCE, SEED, About, Cell, Results, Share
from assay.benches.verdicts import COST, NEAR, ROUNDING, Shares, fall, like_retraining, normalised
from assay.evaluation.admission import LEAST, difference_interval

Bars = tuple[bool, bool]
"""Whether the target is near the reference's, and whether everything else is spared."""


def erased(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return the cells of single erasers with the bench's settings."""
    return {row: cell for row, cell in cells.items() if row not in (*MODELS, *BALANCING) and not {"+", "@"} & {*row}}


def together(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return the cells of several erasers on one model."""
    return {row: cell for row, cell in cells.items() if "+" in row}


def otherwise(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return the cells of single erasers with a preset of their own."""
    return {row: cell for row, cell in cells.items() if "@" in row and "+" not in row and row.partition("@")[0] not in BALANCING}


def share(about: About, cell: Cell, part: str) -> Share:
    """Return the share that a part of a concept is judged by."""
    return cell.shares.get(f"{part}.{about.heads[part]}", Share(hits=0, n=0))


def both_heads(about: About) -> tuple[str, str]:
    """Return what everything else is judged by, for the bar: by what the concept's chapter shows, and by the other of title and style."""
    shown = about.heads["rest"]
    return f"rest.{shown}", f"rest.{'style' if shown == 'five' else 'five'}"


def shares(about: About, cell: Cell) -> Shares | None:
    """Return what is left of the target and of everything else; None where the cell failed."""
    if cell.failed:
        return None
    other = cell.shares.get(both_heads(about)[1])
    target, rest = (share(about, cell, part).value for part in ("target", "rest"))
    return Shares(target, rest, None if other is None else other.value)


def judged(about: About, cell: Cell) -> bool:
    """Whether the judge can name anything that was asked for, of the target and of everything else; where it cannot, shares are of nothing."""
    return not cell.failed and all(share(about, cell, part).n for part in ("target", "rest"))


def bars(about: About, cells: Mapping[str, Cell], rows: Mapping[str, Cell]) -> dict[str, Bars]:
    """Hold some rows of a concept against its reference; empty where there is none."""
    known = [shares(about, cells[row]) if row in cells and judged(about, cells[row]) else None for row in (BASE, REFERENCE)]
    if known[0] is None or known[1] is None:
        return {}
    return like_retraining({row: shares(about, cell) for row, cell in rows.items()}, known[0], known[1])


def speaks(about: About, cells: Mapping[str, Cell]) -> bool:
    """Whether retraining takes enough off the target for its reference to speak."""
    return share(about, cells[BASE], "target").value - share(about, cells[REFERENCE], "target").value >= LEAST - ROUNDING


def certain(about: About, cells: Mapping[str, Cell], row: str) -> bool:
    """Whether the 95 % intervals of the differences (Newcombe 1998) are within both bars, were other images drawn."""
    cell, base, reference = cells[row], cells[BASE], cells[REFERENCE]

    def most(one: Share, other: Share) -> float:
        return difference_interval(one.hits, one.n, other.hits, other.n)[1] if one.n and other.n else 1.0

    falls = [most(base.shares[head], cell.shares[head]) for head in both_heads(about) if head in base.shares and head in cell.shares]
    return most(share(about, cell, "target"), share(about, reference, "target")) <= NEAR and max(falls) <= COST


def held(about: About, cells: Mapping[str, Cell]) -> list[str]:
    """Say which erasers meet the bars, how sure that is, and what another seed and retraining do to everything else themselves."""
    found, several, presets = (bars(about, cells, rows(cells)) for rows in (erased, together, otherwise))
    if not (found or several or presets):
        return []
    met = [row for row, both in found.items() if all(both)]
    bar = f"leave at most {100 * NEAR:.0f} points more of `{about.name}` than retraining and take at most {100 * COST:.0f} off everything else"
    said = [f"{len(met)} of {len(found)} erasers {bar}, in title and in style: {', '.join(met) or 'none'}."] if found else []
    if met:
        sure = ", ".join(row for row in met if certain(about, cells, row)) or "none"
        before = share(about, cells[BASE], "neighbours")
        near = ", ".join(row for row in met if before.value - share(about, cells[row], "neighbours").value <= COST + ROUNDING) or "none"
        also = f"; with as little off neighbours: {near}" if before.n else ""
        said.append(f"Of these, for certain (95 % intervals of the differences, which so few images hardly allow): {sure}{also}.")
    if several:
        meet = ", ".join(row for row, both in several.items() if all(both)) or "none"
        said.append(f"Of {len(several)} combination{'' if len(several) == 1 else 's'} of erasers these meet both bars: {meet}.")
    if presets:
        meet = ", ".join(row for row, both in presets.items() if all(both)) or "none"
        said.append(f"Of {len(presets)} with other presets, `paper` the paper's own, these meet both bars: {meet}.")
    base = shares(about, cells[BASE])
    moved = {row: shares(about, cells[row]) for row in MODELS if row != BASE and row in cells}
    names = {REFERENCE: "retraining"}
    changes = [f"{names.get(row, 'another seed')} {0 - 100 * fall(base, other):+.0f}" for row, other in moved.items() if base and other]
    said.append(f"Everything else changes without an eraser too, by so many points of title or style, whichever is worse: {', '.join(changes)}.")
    if not speaks(about, cells):
        taken = share(about, cells[BASE], "target").value - share(about, cells[REFERENCE], "target").value
        said.append(f"Retraining itself takes only {taken:.0%} off the target: it hardly speaks for `{about.name}`.")
    return said


def relative(about: About, cell: Cell, key: str) -> tuple[float | None, float | None, float | None]:
    """Return a normalised distance with its interval; none to the reference for one work, where 0 and 1 would mean nothing."""
    scale, distance = about.scale.get(key, {}), cell.kid.get(key)
    if distance is None or (about.kind == "work" and key.startswith("reference.")):
        return None, None, None
    value, low, high = (normalised(end, scale.get("floor"), scale.get("ceiling")) for end in (distance.value, distance.low, distance.high))
    return value, low, high


def drawn_instead(about: About, cells: Mapping[str, Cell]) -> list[str]:
    """Say which erasers draw nearer to what the reference draws than the base does, and which farther from it, each by its own interval."""
    found = {row: relative(about, cell, "reference.judge") for row, cell in erased(cells).items() if not cell.failed}
    ends = {row: (low, high) for row, (_, low, high) in found.items() if low is not None and high is not None}
    if not ends or not {BASE, REFERENCE} <= cells.keys() or not speaks(about, cells):
        return []
    nearer, farther = [row for row, (_, high) in ends.items() if high < 1], [row for row, (low, _) in ends.items() if low > 1]
    return [
        f"Asked for `{about.name}`, {len(nearer)} of {len(ends)} erasers draw nearer to what the model that never saw it draws than the base does, "
        f"in the judge's features and by each one's 95 % interval: {', '.join(nearer) or 'none'}; {len(farther)} draw farther from it: "
        f"{', '.join(farther) or 'none'}. That little of the concept is left does not say that what takes its place is what that model would draw."
    ]


def over_seeds(results: Results, repeats: Sequence[Results], about: About) -> dict[str, list[Bars]]:
    """Return the bars that each eraser meets, seed by seed, where retraining speaks; of those with more than one such seed."""
    met: dict[str, list[Bars]] = {}
    for cells in [results.of(about.name), *(results.repeated(other, about.name) for other in repeats)]:
        found = bars(about, cells, erased(cells))
        for row, both in found.items() if found and speaks(about, cells) else ():
            met.setdefault(row, []).append(both)
    return {row: each for row, each in met.items() if len(each) > 1}


def agreed(met: Mapping[str, Sequence[Bars]], seeds: int) -> list[str]:
    """Say which erasers meet both bars with all `seeds` seeds, and which with some, counted."""
    if not met:
        return []
    always, some = _by_seeds({row: (sum(all(both) for both in each), len(each)) for row, each in met.items()}, seeds)
    return [
        f"Of {len(met)} erasers held against retraining with several of {seeds} seeds these meet both bars with all: {always}; with some of those"
        f" held against it: {some}."
    ]


def _by_seeds(counts: Mapping[str, tuple[int, int]], seeds: int) -> tuple[str, str]:
    """Name those that did something with all seeds, and those that did so with some of the seeds they have, counted."""
    always = ", ".join(row for row, count in counts.items() if count == (seeds, seeds)) or "none"
    some = ", ".join(f"{row} ({k} of {n})" for row, (k, n) in counts.items() if k and (k, n) != (seeds, seeds)) or "none"
    return always, some


def steady(results: Results, repeats: Sequence[Results], about: About) -> list[str]:
    """Say which erasers halve the target and spare everything else with every seed, each beside the base's own pictures of that seed.

    That needs no retraining, whose pictures with the other seeds are not at hand where its weights are not.
    """
    met: dict[str, list[bool]] = {}
    for cells in [results.of(about.name), *(results.repeated(other, about.name) for other in repeats)]:
        base = shares(about, cells[BASE]) if BASE in cells and judged(about, cells[BASE]) else None
        if base is None or not base.target:
            continue
        for row, cell in erased(cells).items():
            left = shares(about, cell)
            met.setdefault(row, []).append(left is not None and left.target <= base.target / 2 and fall(base, left) <= COST + ROUNDING)
    seeds = 1 + len(repeats)
    counts = {row: (sum(each), seeds) for row, each in met.items() if len(each) == seeds > 1}
    if not counts:
        return []
    always, some = _by_seeds(counts, seeds)
    return [
        f"Of {len(counts)} erasers measured with {seeds} seeds these take half of what the base shows, or more, and at most {100 * COST:.0f} points"
        f" off everything else, in title and in style, with all: {always}; with some: {some}."
    ]


def idle(base: Mapping[str, Sequence[int]], trial: Mapping[str, Sequence[int]]) -> bool:
    """Whether a trial of settings is a no-op: no share, (hits, n) by part and head, is so far from the base's as the bar of the target is wide."""
    return all(abs(hits / n - base[part][0] / base[part][1]) < NEAR - ROUNDING for part, (hits, n) in trial.items() if n and base[part][1])


def by_the_paper(results: Results) -> list[str]:
    """Say which rows have the papers' own settings on the built-in model, and of which erasers there are none; nothing of another model's bench."""
    planned, measured = {row for _, row in results.planned}, {cell.row for cell in results.cells}
    if not {*PAPERS} - {*LONG} <= planned or not any("@paper" in row for row in measured):
        return []

    def but(names: Sequence[str]) -> str:
        return ", ".join(name for name in names if f"{name}@paper" not in measured) or "none"

    groups = groupby((row for row in LONG if row in planned), LONG.__getitem__)
    few = "; ".join(f"{', '.join(rows)} on {', '.join(concepts)}" for concepts, rows in groups)
    some = f" Those that train for minutes a concept are on few: {few}." if few else ""
    once = "" if few else f"; of {but([row.partition('@')[0] for row in LONG])}, which train for minutes a concept and are measured with seed {SEED}"
    return [
        f"Rows `@paper` have the papers' own settings.{some} No rows of the bench are those of {but(NO_OPS)}, which are no-ops on this model by "
        f"trials on other concepts{once}."
    ]
