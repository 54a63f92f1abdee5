"""Concepts as a table of works knows them: which styles and titles there are, and which lie nearest to one another."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from assay.concept import Concept, Kind
from assay.errors import Misconfigured, Missing
from assay.noise import numpy_generator
from assay.works.table import Works

Embed = Callable[[Sequence[str]], np.ndarray]


def styles(works: Works) -> list[str]:
    """Return the styles of the works, most frequent first."""
    often = Counter(name for name in works.column("style") if name)
    return sorted(often, key=lambda name: (-often[name], name))


def titles(works: Works) -> list[str]:
    """Return the distinct titles in order of appearance."""
    return list(dict.fromkeys(title for title in works.column("title") if title))


def family(works: Works, name: str) -> list[str]:
    """Return the titles that contain `name` as a whole word: the object family of that name."""
    word = re.compile(rf"\b{re.escape(name.lower())}\b")
    return [title for title in titles(works) if word.search(title.lower())]


def find(
    works: Works,
    name: str,
    *,
    kind: Kind | None = None,
    anchor: str | None = None,
    preserve: Sequence[str] = (),
    members: Sequence[str] = (),
    embed: Embed,
    seed: int = 0,
    contexts: int = 100,
    kept: int = 300,
) -> Concept:
    """Put a concept in the terms of the works.

    Args:
        works: says which styles and titles exist; only members lend subjects and styles.
        name: a style, or an object whose family is every title with that word.
        kind: style or object; guessed from the works if None.
        anchor: what takes its place; the nearest other style or title by `embed` if None, or the empty prompt where there is no other.
        preserve: what must stay; every other style, or the titles nearest to the family and others drawn at random, if empty.
        members: titles of the object family; every title with the word `name` if empty.
        embed: turns texts into vectors (n, d), for nearness.
        seed: of the subjects drawn.
        contexts: subjects that a style is put on.
        kept: titles preserved around an object family.

    Returns:
        The concept.

    Raises:
        Missing: the works know no such style or title; the message names the closest.
        Misconfigured: the name is empty.
    """
    if not name.strip():
        raise Misconfigured("A concept needs a name.", "Give it with `--concept`.")
    trained = works.where(lambda row: row["split"] == "member" and row["copies"] > 0)
    known, names = styles(trained), titles(trained)
    style = name.removesuffix(" style")
    if kind == "style" or (kind is None and style in known):
        if style not in known:
            raise Missing(f"The works have no style `{style}`.", f"They have {', '.join(known)}.")
        others = [other for other in known if other != style]
        near = nearest(f"{style} style", [f"{other} style" for other in others], embed) if anchor is None else [anchor]
        anchor = near[0].removesuffix(" style") if near else ""
        subjects = numpy_generator(seed, "subjects").permutation(np.array(names, dtype=object))[:contexts].tolist()
        return Concept(style, "style", anchor, preserve=tuple(preserve) or tuple(others), subjects=tuple(subjects))
    group = list(members) or family(trained, name)
    if not group:
        close = difflib.get_close_matches(name, [*names, *known], n=5, cutoff=0.4)
        raise Missing(f"The works know no `{name}`.", f"Closest: {', '.join(close) or 'nothing'}. `assay works info` lists them.")
    rest = [title for title in names if title not in group]
    near = nearest(name, rest, embed)
    anchor = (near[0] if near else "") if anchor is None else anchor
    if not preserve:
        far = numpy_generator(seed, "preserved").permutation(np.array(near[20:], dtype=object))[: kept - 20].tolist()
        preserve = [title for title in [*near[:20], *far] if title != anchor]
    return Concept(name, "object", anchor, members=tuple(group), preserve=tuple(preserve), styles=tuple(known))


def nearest(text: str, others: list[str], embed: Embed) -> list[str]:
    """Sort texts by cosine similarity of their vectors to that of `text`, nearest first."""
    if not others:
        return []
    vectors = embed([text, *others]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [others[index] for index in np.argsort(-(vectors[1:] @ vectors[0]), kind="stable")]


def recognise(works: Works, prompt: str) -> tuple[str | None, str | None]:
    """Find the title and the style that a prompt names: the longest title and the longest style that occur in it as whole words."""

    def longest(names: Sequence[str], ending: str = "") -> str | None:
        found = [name for name in names if re.search(rf"\b{re.escape(name.lower())}{ending}(?!\w)", prompt.lower())]
        return max(found, key=len, default=None)

    return longest(titles(works)), longest(styles(works), " style")
