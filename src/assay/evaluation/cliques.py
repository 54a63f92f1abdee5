"""Cliques among images of one prompt: the sign by which a copy shows without the works (Carlini et al. 2023, Sec. 4.2).

There, images nearer than d are joined and a clique of at least so many is the sign. Here d is found, not given: the tightness of a set of images is
the least d at which it has such a clique, so that one number says for every d whether there is one. No member of the clique can have fewer than
`size` - 1 images within d, and some image with its nearest is a clique at a d that is easily found; between the two networkx lists the cliques.

The least d is hard to find where hundreds of images are all about as far apart, which no copy is behind: there the search stops after `LISTED`
cliques of a graph, and what is returned is a clique still, but maybe not the tightest.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.stats import beta

from assay.errors import Misconfigured


class Clique(NamedTuple):
    """The tightest clique of a set of images."""

    tightness: float
    """Its largest distance: the least d at which the set has a clique of the size; infinite where there are too few images."""
    members: tuple[int, ...]
    """The images, in order."""
    mean: float
    """Mean distance within it, by which predictions are ranked."""
    medoid: int
    """The image whose distances to the others are least in sum: the one to show."""


LISTED = 200
"""Maximal cliques of a graph that are looked at."""
NONE = Clique(float("inf"), (), float("inf"), 0)


def tightest(distances: np.ndarray, size: int, limit: float = float("inf")) -> Clique:
    """Find the clique of `size` images whose largest distance is least.

    Args:
        distances: symmetric, 0 on the diagonal: (n, n).
        size: images of the clique.
        limit: a clique that is surely looser than this is not made tighter.

    Raises:
        Misconfigured: a clique has fewer than two images.
    """
    if size < 2:
        raise Misconfigured("A clique has at least two images.", "Use 10, as the paper, or fewer where fewer images are drawn.")
    count = len(distances)
    if count < size:
        return NONE
    table = (distances + distances.T) / 2  # the two halves may differ in the last bit
    np.fill_diagonal(table, 0.0)
    order = np.argsort(table, axis=1, kind="stable")[:, :size]
    reach = np.sort(table, axis=1)[:, size - 1]  # from an image to its (size - 1)-th nearest
    around = table[order[:, :, None], order[:, None, :]].max((1, 2))  # the largest distance among an image and its nearest
    low, high = float(reach.min()), float(around.min())
    high = high if low <= limit else low  # then there is nothing to search
    best = order[int(around.argmin())].tolist()
    possible = np.flatnonzero(reach <= high)
    steps = np.unique(table[np.ix_(possible, possible)])
    steps = steps[(steps >= low) & (steps < high)]
    first, last = 0, len(steps)  # the answer is steps[first:last], or `high`
    while first < last:
        middle = (first + last) // 2
        found = _clique(table, float(steps[middle]), size, reach)
        if found is None:
            first = middle + 1
        else:
            last, best = middle, found
    members = sorted(best)
    inside = table[np.ix_(members, members)]
    return Clique(float(inside.max()), tuple(members), float(inside.sum() / (size * (size - 1))), members[int(inside.sum(1).argmin())])


def at_most(distances: np.ndarray, limit: float) -> int:
    """Return how many images a clique can have whose distances are all at most `limit`: one more than the largest core of their graph."""
    close = distances <= limit
    np.fill_diagonal(close, False)
    return 1 + max(nx.core_number(nx.from_numpy_array(close)).values(), default=-1)


def hopeless(agreeing: int, drawn: int, images: int, size: int, level: float = 0.95) -> bool:
    """Say whether drawing on is unlikely to make a clique.

    If images come out as one copy with probability p, the copies among `drawn` images are Binomial(drawn, p). It is hopeless where even the upper
    end of the interval for p (Clopper and Pearson 1934) would make fewer than `size` among all `images`.

    Args:
        agreeing: images of the largest clique so far, or more.
        drawn: images so far.
        images: images in all.
        size: images of a clique.
        level: of the one-sided interval.
    """
    if drawn >= images:
        return agreeing < size
    upper = 1.0 if agreeing >= drawn else float(beta.ppf(level, agreeing + 1, drawn - agreeing))
    return upper * images < size


def _clique(table: np.ndarray, limit: float, size: int, reach: np.ndarray) -> list[int] | None:
    """Return a clique of `size` images no two of which are farther apart than `limit`, if there is one."""
    nodes = np.flatnonzero(reach <= limit)
    close = table[np.ix_(nodes, nodes)] <= limit
    np.fill_diagonal(close, False)
    while len(nodes) and (few := close.sum(1) < size - 1).any():  # whoever has too few neighbours left cannot be in it
        nodes, close = nodes[~few], close[np.ix_(~few, ~few)]
    for clique in islice(nx.find_cliques(nx.from_numpy_array(close)), LISTED) if len(nodes) >= size else ():
        if len(clique) >= size:
            return nodes[sorted(clique)[:size]].tolist()
    return None
