"""What the bench of erasers asks of every row of a concept: the concept in the works' terms, and the prompts that all rows are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from assay.benches.erasure import Subject
from assay.concept import Concept
from assay.errors import Unsupported
from assay.noise import numpy_generator
from assay.verbs.erase import concept_for, text_vectors
from assay.verbs.evaluate import Scene, pair_prompt, scene
from assay.verbs.generate import Prompt
from assay.verbs.session import Session
from assay.works import Works
from assay.works import concepts as known
from assay.works.filters import condition

NEAREST, OTHERS = 20, 80
"""Captions preserved around a canary: of the nearest titles, and of works drawn by lot."""
APART = 40
"""Pictures of each thing of a composition: of fewer, two would be more than 5 points."""
SHOWN = {"target": 3, "neighbours": 1, "rest": 2}
"""Pictures that are kept of a cell."""


class Asked(NamedTuple):
    """What is asked of every row of one concept."""

    concept: Concept
    """What erasers are told."""
    what: Scene
    """The prompts."""
    work: int | None
    """Row of the canary among the works, if the concept is one."""
    things: dict[str, list[int]]
    """Of a composition: each of its things -> prompts that show it apart; together they are the neighbours."""

    @property
    def shown(self) -> list[tuple[str, int]]:
        """(part, prompt) of every picture that is kept of a cell: the first of each part."""
        return [(part, index) for part, count in SHOWN.items() for index in self.what.groups.get(part, [])[:count]]


def pictures(subject: Subject, each: Mapping[str, int]) -> int:
    """Return how many prompts a concept has at most."""
    return sum(each.values()) + (APART * len(subject.apart) - each["neighbours"] if subject.apart else 0)


def ask(session: Session, works: Works, subject: Subject, each: Mapping[str, int]) -> Asked:
    """Put a concept of the bench in the terms of the works, and draw its prompts; where all else is a neighbour, neighbours are everything else.

    Args:
        session: the model, which says what is near, and the seed.
        works: which titles and styles there are.
        subject: the concept.
        each: prompts of every part, at most.

    Raises:
        Unsupported: no ordinary member shows the concept, or every one does.
    """
    made = (_composed if subject.apart else _canary if subject.kind == "work" else _shared)(session, works, subject, each)
    groups = dict(made.what.groups)
    if "rest" not in groups and "neighbours" in groups:
        groups["rest"] = groups.pop("neighbours")
    if "target" not in groups or "rest" not in groups:
        raise Unsupported(f"No ordinary member shows `{subject.name}`, or every one does, so its erasure cannot be measured.", "Choose another.")
    return made._replace(what=made.what._replace(groups=groups))


def concept_of(session: Session, works: Works, subject: Subject) -> Concept:
    """Return a style, or the family of objects that fits the subject's condition, in the terms of the works: what erasers are told."""
    if subject.kind == "style" or not subject.where:
        return concept_for(session, works, subject.words, subject.kind)
    fits = condition((subject.where,), works)
    members = known.titles(works.where(lambda row: fits(row) and row["split"] == "member" and row["copies"] > 0))
    embed = partial(text_vectors, session.denoiser)
    return known.find(works, subject.words, kind="object", members=members, embed=embed, seed=session.seed)


def _shared(session: Session, works: Works, subject: Subject, each: Mapping[str, int]) -> Asked:
    """Ask for a style or a family."""
    concept = concept_of(session, works, subject)
    return Asked(concept, scene(session, works, concept, each=each), None, {})


def _composed(session: Session, works: Works, subject: Subject, each: Mapping[str, int]) -> Asked:
    """Ask for a composition, for each of its things apart, and for everything else; erasers are told to preserve the things."""
    concept, fits = concept_of(session, works, subject), condition((subject.where,), works)
    members = works.where(lambda row: row["split"] == "member" and row["copies"] == 1 and row["title"] and row["style"])

    def drawn(where: str, count: int) -> list[Prompt]:
        """Ask for the pairs that fit, in an order drawn by lot, as often as makes `count` prompts."""
        wanted = condition((where,), members)
        found = members.where(lambda row: wanted(row) and (where == subject.where or not fits(row)))
        pairs = sorted(set(zip(found.column("title"), found.column("style"), strict=True)))
        order = numpy_generator(session.seed, "scene", where).permutation(len(pairs)).tolist()
        return [replace(pair_prompt(session, *pairs[order[n % len(order)]]), number=n // len(order)) for n in range(count if order else 0)]

    groups: dict[str, list[int]] = {}
    asked = drawn(subject.where, each["target"])
    groups["target"] = list(range(len(asked)))
    for name, where in subject.apart:
        more = drawn(where, APART)
        groups[name] = list(range(len(asked), len(asked) + len(more)))
        asked += more
    things = {name: groups.pop(name) for name, _ in subject.apart if groups[name]}
    shown = {prompt.title for prompt in asked}
    others = scene(session, works, concept, each={"target": 0, "neighbours": 0, "rest": each["rest"] + len(shown)})
    rest = [prompt for prompt in others.rows if prompt.title not in shown][: each["rest"]]
    groups |= {"neighbours": [index for rows in things.values() for index in rows], "rest": list(range(len(asked), len(asked) + len(rest)))}
    kept = dict.fromkeys([*(asked[index].title or "" for index in groups["neighbours"]), *concept.preserve])
    concept = replace(concept, preserve=tuple(title for title in kept if title != concept.anchor))
    return Asked(concept, Scene([*asked, *rest], {name: found for name, found in groups.items() if found}), None, things)


def _canary(session: Session, works: Works, subject: Subject, each: Mapping[str, int]) -> Asked:
    """Ask for one work by its caption; the same title in other styles counts as a neighbour."""
    rows, fits = works.rows(), condition((subject.where,), works)
    place = next(index for index, row in enumerate(rows) if fits(row))
    title, style = rows[place]["title"], rows[place]["style"]
    kin = scene(session, works, Concept(title, "object"), each=each)
    near = [*kin.groups.get("target", []), *kin.groups.get("neighbours", [])][: each["neighbours"]]
    target = [Prompt(subject.name, subject.words, title=title, style=style, number=n) for n in range(each["target"])]
    asked = target + [kin.rows[index] for index in [*near, *kin.groups.get("rest", [])]]
    ends = np.cumsum([0, len(target), len(near), len(kin.groups.get("rest", []))]).tolist()
    groups = {name: list(range(*ends[number : number + 2])) for number, name in enumerate(("target", "neighbours", "rest"))}
    others = [row for row in rows if row["split"] == "member" and row["copies"] > 0 and row["title"] and row["id"] != rows[place]["id"]]
    titles = list(dict.fromkeys(row["title"] for row in others))
    embed = partial(text_vectors, session.denoiser)
    close = {title, *known.nearest(title, [other for other in titles if other != title], embed)[:NEAREST]}
    lot = numpy_generator(session.seed, "preserved").permutation(len(others))[:OTHERS]
    kept = [row["captions"][0] for row in others if row["title"] == title or (row["title"] in close and row["style"] == style)]
    kept = list(dict.fromkeys([*kept, *(others[index]["captions"][0] for index in lot)]))
    concept = Concept(subject.words, "work", anchor=title, preserve=tuple(kept))
    return Asked(concept, Scene(asked, {name: found for name, found in groups.items() if found}), place, {})
