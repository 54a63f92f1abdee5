"""What a table of works holds, as records: who made them under which licences, and which are nearly the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from assay.errors import Misconfigured
from assay.record import Metric, Record, Table, versions
from assay.works.clusters import SIDE, THRESHOLD, join
from assay.works.index import Index, spread
from assay.works.table import Works, pictures

NOTICES = {"mit", "apache", "bsd", "isc", "ofl", "zlib", "mpl", "gpl", "agpl", "lgpl"}
COPYLEFT = {"gpl", "agpl", "lgpl", "mpl", "odbl"}
FREE = {"cc0", "unlicense", "0bsd", "publicdomain", "pdm"}
UNSTATED = "not stated"
TOP, ROWS, CLUSTERS, MEMBERS = 20, 50, 20, 8


def obligations(licence: str | None) -> list[str]:
    """Return what a licence obliges to, from its name or address: attribution, notice, share alike, no commerce, no derivatives.

    An empty list is a licence that asks for nothing; ["unknown"] one that is not stated or not known here. Of several joined, all that any asks for.
    """
    words = set(re.split(r"[^a-z0-9]+", (licence or "").lower()))
    commons = bool(words & {"cc", "creativecommons"})
    held = {
        "attribution": commons and "by" in words,
        "notice": bool(words & NOTICES),
        "share alike": bool(words & COPYLEFT) or (commons and "sa" in words),
        "no commerce": commons and "nc" in words,
        "no derivatives": commons and "nd" in words,
    }
    free = bool(words & FREE) or {"public", "domain"} <= words
    return [duty for duty, binding in held.items() if binding] or ([] if free else ["unknown"])


def info(works: Works) -> Record:
    """Count works by split, style, group, licence and creator.

    Args:
        works: any works; nothing is decoded.

    Returns:
        A record with metrics `works.count`, `works.creators`, `works.licences` and `works.credited` (share of works whose creator is named).
    """
    start = perf_counter()
    creators, licences = Counter(works.column("creator")), Counter(works.column("license"))
    total, named = len(works), len(works) - creators[None]
    return Record(
        command="works",
        question="Who made these works, under which licences, and what are they for?",
        method="info",
        digests={"works": works.digest},
        metrics=[
            Metric(name="works.count", value=total, n=total),
            Metric(name="works.creators", value=len(set(creators) - {None}), n=total),
            Metric(name="works.licences", value=len(set(licences) - {None}), n=total),
            Metric(name="works.credited", value=named / total if total else None, n=total, better="higher"),
        ],
        findings=[credit(creators), *duties(licences), shown(works)],
        shows_not=[
            "Creators and licences are as the source declares them; nobody was asked, and no licence text was read.",
            "Splits are as declared, and works imported without one count as members: whether a model was trained on them nobody checked.",
            "Creators are told apart by their names as written: one person under two spellings counts twice, two namesakes count once.",
            "Whether a licence permits training is a question of law that no count answers.",
        ],
        tables=[
            splits_table(works),
            *(counted(f"Works by {name}", name, works.column(name), ROWS) for name in ("style", "group")),
            licence_table(licences),
            counted("Works by creator", "creator", works.column("creator"), TOP),
        ],
        seconds=perf_counter() - start,
        versions=versions(),
    )


def credit(creators: Counter[str | None]) -> str:
    """Say how many creators there are, and how unevenly the works are theirs."""
    total, named = creators.total(), {name: number for name, number in creators.items() if name is not None}
    if not named:
        return f"None of the {total:,} works names its creator."
    first, most = max(named.items(), key=lambda pair: pair[1])
    known = total - creators[None]
    whole = f"All {total:,} works name their creator" if known == total else f"{known:,} of {total:,} works name their creator"
    return f"{whole}: {counted_of(len(named), 'creator')}, {first} with the most ({counted_of(most, 'work')})."


def counted_of(number: int, noun: str) -> str:
    """Return a number of things, one in the singular."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duties(licences: Counter[str | None]) -> list[str]:
    """Say which licences oblige to what, a sentence for each duty that occurs."""
    sentences = {
        "attribution": "To be credited to their creators",
        "share alike": "To be shared alike by whoever adapts them",
        "notice": "To keep their licence notice",
        "no commerce": "Not to be used commercially",
        "no derivatives": "Not to be adapted",
        "unknown": "Under terms that assay does not know, to be read by a person",
    }
    found = []
    for duty, sentence in sentences.items():
        bound = {licence or UNSTATED: number for licence, number in licences.items() if duty in obligations(licence)}
        if bound:
            found.append(f"{sentence}: {counted_of(sum(bound.values()), 'work')} ({', '.join(sorted(bound))}).")
    return found


def showings(split: str | None, copies: int | None) -> int:
    """Return how often an epoch shows a work: as often as it has copies, if it is a member."""
    return copies or 0 if split == "member" else 0


def shown(works: Works) -> str:
    """Say what training sees."""
    copies = np.array([showings(*pair) for pair in zip(works.column("split"), works.column("copies"), strict=True)], dtype=np.int64)
    total = counted_of(len(works), "work")
    return f"By the splits declared, training shows {np.count_nonzero(copies):,} of {total}, {copies.sum():,} showings an epoch."


def counted(title: str, column: str, values: Iterable[Any], most: int) -> Table:
    """Count values, the most frequent first, ties in the order of their names, and list the first `most`."""
    counts = Counter(UNSTATED if value is None else value for value in values)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    title = title if len(ranked) <= most else f"{title}, the first {most} of {len(ranked):,}"
    return Table(title=title, columns=[column, "works", "share"], rows=[[name, number, number / counts.total()] for name, number in ranked[:most]])


def splits_table(works: Works) -> Table:
    """Count works and showings by split."""
    numbers, shown = Counter(), Counter()
    for split, copies in zip(works.column("split"), works.column("copies"), strict=True):
        numbers[split or UNSTATED] += 1
        shown[split or UNSTATED] += showings(split, copies)
    rows = [[split, number, number / len(works), shown[split]] for split, number in sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0]))]
    return Table(title="Works by split", columns=["split", "works", "share", "showings an epoch"], rows=rows)


def licence_table(licences: Counter[str | None]) -> Table:
    """Count works by licence, with what each obliges to."""
    ranked = sorted(licences.items(), key=lambda pair: (-pair[1], pair[0] or ""))
    rows = [[licence or UNSTATED, number, ", ".join(obligations(licence)) or "nothing"] for licence, number in ranked]
    return Table(title="Works by licence", columns=["licence", "works", "obliges to"], rows=rows)


def duplicates(
    works: Works,
    threshold: float = THRESHOLD,
    *,
    index: str | Path | None = None,
    source: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Record:
    """Find works that are nearly the same, and pairs of them that should be apart.

    Args:
        works: any works; pictures of every size are compared as 16x16 thumbnails of their middle square.
        threshold: root mean square difference in [0, 1] below which two thumbnails are near-duplicates.
        index: folder that keeps thumbnails and near-duplicates by the works' ids, so that next time only new works are read and compared.
            Made in a temporary folder and thrown away if None.
        source: file or folder that the works were read from without their images; None if they have them.
        progress: called with the stage, and how much of how much of it is done.

    Returns:
        A record with metrics `duplicates.share` (works with a near-duplicate), `.pairs`, `.clusters`, `.largest`, `.cross_style` and
        `.cross_split` (pairs).

    Raises:
        Misconfigured: the threshold is not between 0 and 1.
    """
    if not 0 < threshold <= 1:
        raise Misconfigured(f"The threshold {threshold} is not between 0 and 1.", f"Leave it at {THRESHOLD}, or choose one near it.")
    start = perf_counter()
    with TemporaryDirectory(prefix="assay-") as scratch:
        kept = Index(index or scratch)
        # An id is taken at its word where it saves reading the picture, and only there.
        ids = works.table.column("id") if index else pa.chunked_array([pa.array(np.arange(len(works))).cast(pa.string())])
        places = kept.add(ids, partial(pictures, source or works), progress and partial(progress, "reading works"))
        pairs, apart = spread(places, *kept.pairs(threshold, progress and partial(progress, "comparing works")))
        del kept
    labels = join(len(works), pairs)
    sizes = np.bincount(labels, minlength=1)
    styles, splits = (np.array(works.column(name), dtype=object)[pairs] for name in ("style", "split"))
    crossing, leaking = styles[:, 0] != styles[:, 1], splits[:, 0] != splits[:, 1]
    seen = leaking & (splits == "member").any(1)
    figures = {
        "clusters": np.count_nonzero(sizes > 1),
        "largest": sizes.max() if len(pairs) else 0,
        "pairs": len(pairs),
        "cross_style": crossing.sum(),
        "cross_split": leaking.sum(),
    }
    affected, total = int(sizes[sizes > 1].sum()), len(works)
    share = Metric(name="duplicates.share", value=affected / total if total else None, n=total, better="lower")
    return Record(
        command="works",
        question="Which of these works are nearly the same, and does that let one split leak into another?",
        method="duplicates",
        given={"threshold": threshold},
        resolved={"threshold": threshold, "side": SIDE},
        digests={"works": works.digest},
        metrics=[share, *(Metric(name=f"duplicates.{name}", value=float(value), n=total, better="lower") for name, value in figures.items())],
        findings=[leak(leaking.sum(), seen.sum()), *repeated(affected, total, figures)],
        shows_not=[
            f"Only thumbnails of {SIDE}x{SIDE} pixels of the middle square were compared: works that differ in fine detail alone count as the same,"
            " and a work that was turned, mirrored, cropped or coloured anew counts as another.",
            "A cluster joins works step by step: its two ends may differ by more than the threshold.",
            "That two works look alike does not say that one was copied from the other.",
        ],
        tables=[
            sizes_table(sizes),
            *([clusters_table(works, labels, sizes)] if affected else []),
            *([pairs_table(works, pairs[leaking], apart[leaking])] if leaking.any() else []),
        ],
        seconds=perf_counter() - start,
        versions=versions(),
    )


def leak(pairs: int, seen: int) -> str:
    """Say whether near-duplicates sit on two sides of a split, `seen` of the pairs with a member on one side."""
    if not pairs:
        return "No near-duplicates are in different splits."
    verb = "is" if pairs == 1 else "are"
    return f"Leak: {counted_of(pairs, 'pair')} of near-duplicates {verb} in different splits, {seen:,} of them with a member on one side."


def repeated(affected: int, total: int, figures: dict[str, Any]) -> list[str]:
    """Say how many works have near-duplicates, and whether styles share them."""
    if not affected:
        return [f"None of the {total:,} works has a near-duplicate."]
    return [
        f"{affected:,} of {total:,} works ({affected / total:.1%}) have a near-duplicate:"
        f" {figures['clusters']:,} clusters, the largest of {figures['largest']:,} works.",
        f"{figures['cross_style']:,} of {figures['pairs']:,} pairs of near-duplicates are in different styles.",
    ]


def sizes_table(sizes: np.ndarray) -> Table:
    """Count clusters by size, works alone included."""
    rows = [[size, number, size * number] for size, number in sorted(Counter(sizes[sizes > 0].tolist()).items())]
    return Table(title="Near-duplicate clusters by size", columns=["works in a cluster", "clusters", "works"], rows=rows)


def clusters_table(works: Works, labels: np.ndarray, sizes: np.ndarray) -> Table:
    """List the largest clusters: size, styles and splits of all their works, titles and ids of the first."""
    rows = []
    order = np.argsort(labels, kind="stable")
    first = np.cumsum(sizes) - sizes
    largest = [label for label in np.argsort(-sizes, kind="stable")[:CLUSTERS] if sizes[label] > 1]
    every = iter(light(works, np.concatenate([order[first[label] : first[label] + sizes[label]] for label in largest])))
    for label in largest:
        members = list(islice(every, int(sizes[label])))
        spread = [", ".join(sorted({row[name] or UNSTATED for row in members})) for name in ("style", "split")]
        shown = members[:MEMBERS]
        rows.append([len(members), *spread, ", ".join(row["title"] or UNSTATED for row in shown), ", ".join(row["id"][:12] for row in shown)])
    title = f"Largest clusters of near-duplicates, with up to {MEMBERS} works of each"
    return Table(title=title, columns=["works", "styles", "splits", "titles", "ids"], rows=rows)


def pairs_table(works: Works, pairs: np.ndarray, apart: np.ndarray) -> Table:
    """List the closest pairs that cross splits."""
    nearest = np.argsort(apart, kind="stable")[:TOP]
    shown = light(works, pairs[nearest].ravel())
    sides = [f"{row['title'] or UNSTATED} ({row['split'] or UNSTATED}, {row['id'][:12]})" for row in shown]
    rows = [[one, other, round(float(apart[index]), 4)] for one, other, index in zip(sides[::2], sides[1::2], nearest, strict=True)]
    return Table(title="Closest pairs of near-duplicates in different splits", columns=["one", "other", "difference"], rows=rows)


def light(works: Works, indices: np.ndarray) -> list[dict[str, Any]]:
    """Return what tables show of some works."""
    return works.table.select(["id", "title", "style", "split"]).take(pa.array(indices)).to_pylist()
