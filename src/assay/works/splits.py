"""Splits by near-duplicate cluster, and canaries: works repeated a known number of times, chosen at random."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count as counting

import numpy as np

from assay.errors import Misconfigured
from assay.noise import numpy_generator
from assay.works.table import Works

FRACTIONS = {"member": 0.8, "calibration": 0.1, "holdout": 0.1}
DOSES = (0, 1, 4, 16, 64)
VARIED = (16, 64)


def split(clusters: np.ndarray, seed: int, fractions: dict[str, float] = FRACTIONS) -> np.ndarray:
    """Assign whole clusters to splits at random: object array of names, (n,).

    Clusters are shuffled, laid end to end and cut where the cumulated fraction of works is reached, so no cluster is divided and
    a split's size is right to within one cluster.
    """
    labels, sizes = np.unique(clusters, return_counts=True)
    order = numpy_generator(seed, "split").permutation(len(labels))
    middles = (np.cumsum(sizes[order]) - sizes[order] / 2) / sizes.sum()
    names = np.array(list(fractions), dtype=object)
    chosen = names[np.searchsorted(np.cumsum(list(fractions.values()))[:-1], middles)]
    of_cluster = dict(zip(labels[order], chosen, strict=True))
    return np.array([of_cluster[label] for label in clusters], dtype=object)


def plant_canaries(works: Works, eligible: Sequence[int], seed: int, *, each: int = 16, each_varied: int = 8) -> Works:
    """Turn randomly chosen member works into canaries.

    `each` works for every k in `DOSES` keep one caption; `each_varied` works for every k in `VARIED` get a different caption for every copy.
    Canaries with k = 0 are the control: drawn by the same lottery, then withheld (split holdout, copies 0).

    Args:
        works: the table; `captions`, `copies`, `split` and `attributes` of the chosen rows change.
        eligible: indices of member works without near-duplicates, from which canaries are drawn.
        seed: of the lottery.
        each: works per dose with one caption.
        each_varied: works per dose with varied captions.

    Returns:
        The works, canaries marked by the attributes `canary` ("one" or "varied") and `dose` (k).

    Raises:
        Misconfigured: there are fewer eligible works than canaries.
    """
    arms = [("one", dose) for dose in DOSES for _ in range(each)] + [("varied", dose) for dose in VARIED for _ in range(each_varied)]
    if len(eligible) < len(arms):
        raise Misconfigured(f"{len(arms)} canaries cannot be drawn from {len(eligible)} eligible works.", "Plant fewer, or import more works.")
    drawn = numpy_generator(seed, "canaries").permutation(np.asarray(eligible))[: len(arms)]
    captions, copies, splits = works.column("captions"), works.column("copies"), works.column("split")
    attributes = [dict(pairs or []) for pairs in works.column("attributes")]
    for index, (arm, dose) in zip(drawn.tolist(), arms, strict=True):
        captions[index] = captions[index][:1] if arm == "one" else varied_captions(works[index], dose, seed)
        copies[index] = dose
        attributes[index] |= {"canary": arm, "dose": str(dose)}
        if dose == 0:
            splits[index] = "holdout"
    return works.with_columns(captions=captions, copies=copies, split=splits, attributes=[list(pairs.items()) for pairs in attributes])


def varied_captions(work: dict, count: int, seed: int) -> list[str]:
    """Write `count` captions of one work, all different: the first its own, the others its captions with different tags in different order."""
    generator = numpy_generator(seed, "captions", work["id"])
    tags = [tag for tag in work["tags"] or [] if tag != work["title"]] or [(work["group"] or work["style"] or "picture").split("/")[-1]]
    written = {work["captions"][0]: None}
    for attempt in range(100 * count):
        if len(written) == count:
            break
        chosen = generator.permutation(np.array(tags, dtype=object))[: generator.integers(1, 4)]
        lead = work["captions"][int(generator.integers(len(work["captions"])))]
        ending = "!" * (attempt // (20 * count))  # a work with few tags runs out of combinations
        written[f"{lead}, {', '.join(chosen)}{ending}"] = None
    for number in counting(1):
        if len(written) >= count:
            break
        written[f"{work['captions'][0]}, {number}"] = None
    return list(written)
