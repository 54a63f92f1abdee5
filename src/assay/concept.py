"""`Concept`: what is to be erased, attacked or measured, as prompts.

A concept is a name, a kind that says how the name is put into words, an anchor it is replaced by, and concepts to be preserved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from assay.errors import Misconfigured

Kind = Literal["style", "object", "work", "free"]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "style": ("{context}, {concept} style", "{context} in {concept} style"),
    "object": ("{concept}, {context} style", "{concept} in {context} style"),
}
"""How a concept is put into words in a context: a style on subjects, an object in styles. What is evaluated is worded otherwise."""
BARE: dict[str, tuple[str, ...]] = {
    "style": ("{concept} style",),
    "object": ("{concept}", "a picture of {concept}"),
    "work": ("{concept}",),
    "free": ("{concept}",),
}
"""How it is put into words by itself."""


@dataclass(frozen=True)
class Concept:
    """What a method acts on.

    Args:
        name: the concept in words; for an object family several titles may be given in `members`.
        kind: style, object, work (a whole caption) or free (the name is the prompt).
        anchor: what takes its place; empty means the empty prompt.
        members: titles of an object family, or captions of one work; empty means the name alone.
        preserve: concepts of the same kind that must stay.
        subjects: subjects that a style is put on.
        styles: styles that an object is put in.
        parts: the concepts that this one stands for, if it stands for several; see `together`.
    """

    name: str
    kind: Kind = "free"
    anchor: str = ""
    members: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    subjects: tuple[str, ...] = field(default=(), repr=False)
    styles: tuple[str, ...] = field(default=(), repr=False)
    parts: tuple[Concept, ...] = ()

    def __post_init__(self) -> None:
        """Check the kind and the name.

        Raises:
            Misconfigured: the kind is unknown, or the name is empty.
        """
        if self.kind not in get_args(Kind):
            raise Misconfigured(f"A concept's kind must be one of {', '.join(get_args(Kind))}; got `{self.kind}`.", "Give one of them with `--kind`.")
        if not self.name.strip():
            raise Misconfigured("A concept needs a name.", "Give it with `--concept`.")

    def words(self, concept: str) -> list[str]:
        """Put one concept of this kind into words: on every subject or in every style, and by itself (a style only where there are no subjects)."""
        return list(dict.fromkeys(self._phrases(concept)))

    def _phrases(self, concept: str) -> list[str]:
        bare = concept.removesuffix(" style") if self.kind == "style" else concept
        contexts = {"style": self.subjects, "object": self.styles}.get(self.kind, ())
        alone = BARE[self.kind] if not contexts else BARE["object"][:1] if self.kind == "object" else ()
        within = [template.format(concept=bare, context=context) for template in TEMPLATES.get(self.kind, ()) for context in contexts]
        return within + [template.format(concept=bare) for template in alone]

    def phrase(self, concept: str) -> str:
        """Put one concept of this kind into words by itself: `twemoji style`, `cat`; the empty text stays empty."""
        return BARE[self.kind][0].format(concept=concept.removesuffix(" style") if self.kind == "style" else concept) if concept else ""

    def alone(self) -> list[tuple[str, str]]:
        """Return (concept, anchor) in words by themselves: one pair, or one for each concept that this one stands for."""
        return [(part.phrase(part.name), part.phrase(part.anchor)) for part in self.parts or (self,)]

    def contents(self) -> dict[str, str]:
        """Return what each target prompt says without the concept: a style's subject; for all else the prompt itself."""
        found = {target: target for target, _ in self.pairs()}
        for part in self.parts or (self,):
            if part.kind == "style":
                bare = part.name.removesuffix(" style")
                found |= {template.format(concept=bare, context=context): context for context in part.subjects for template in TEMPLATES["style"]}
        return found

    def pairs(self) -> list[tuple[str, str]]:
        """Return (target prompt, anchor prompt) pairs that differ in the concept alone; without an anchor it is the empty prompt."""
        if self.parts:
            return list(dict.fromkeys(pair for part in self.parts for pair in part.pairs()))
        pairs = []
        for name in self.members or (self.name,):
            targets = self._phrases(name)
            pairs += zip(targets, self._phrases(self.anchor) if self.anchor else [""] * len(targets), strict=True)
        return list(dict.fromkeys(pairs))

    def preserved(self) -> list[str]:
        """Return the prompts of the concepts to be preserved; the empty prompt first, because guidance needs it."""
        if self.parts:
            return list(dict.fromkeys(prompt for part in self.parts for prompt in part.preserved()))
        return ["", *dict.fromkeys(prompt for name in self.preserve for prompt in self.words(name))]


def concept(
    name: str,
    *,
    kind: Kind = "free",
    anchor: str = "",
    members: Sequence[str] = (),
    preserve: Sequence[str] = (),
    subjects: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> Concept:
    """Build a `Concept` from plain sequences."""
    return Concept(name, kind, anchor, members=tuple(members), preserve=tuple(preserve), subjects=tuple(subjects), styles=tuple(styles))


def together(concepts: Sequence[Concept]) -> Concept:
    """Join concepts into one that stands for all: every pair of prompts, and all that is preserved except what is acted on.

    Raises:
        Misconfigured: there is none, or the anchor of one is acted on itself.
    """
    if not concepts:
        raise Misconfigured("There is no concept.", "Give at least one.")
    parts = [part for concept in concepts for part in concept.parts or (concept,)]
    if len(parts) == 1:
        return parts[0]
    gone = {name.removesuffix(" style") for part in parts for name in (part.name, *part.members)}
    for part in parts:
        if part.anchor.removesuffix(" style") in gone:
            raise Misconfigured(
                f"`{part.anchor}` takes the place of `{part.name}` and is to go itself.", "Give an anchor that stays, with `--anchor`."
            )

    def staying(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name.removesuffix(" style") not in gone)

    kept = [
        replace(part, preserve=staying(part.preserve), subjects=staying(part.subjects), styles=staying(part.styles)) for part in parts
    ]  # what is acted on lends no contexts either: there it would be preserved
    anchors = " + ".join(dict.fromkeys(part.anchor for part in parts if part.anchor))
    return Concept(" + ".join(part.name for part in parts), parts[0].kind, anchors, parts=tuple(kept))
