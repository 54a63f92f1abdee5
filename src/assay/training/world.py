"""The trainings of the built-in world beside the base: what each was shown, and which question its difference from the base answers.

They differ from the base in the UNet alone: autoencoder and text encoder are shared by all, emoji32 too. Each has a seed of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from assay.errors import Missing
from assay.training.loop import Schedule
from assay.training.selection import Selection
from assay.training.unet import UNetSettings

EMOJI32 = UNetSettings(
    widths=(64, 96),
    attention=(True, True),
    schedule=Schedule(steps=2000, batch=64, learning_rate=8e-4, warmup=200, decay=0.6, ema=0.998),
)
"""The small model of the world: images of 32 pixels, latents of 8, a UNet of 2.9 M parameters, for whatever needs more than a few retrainings."""
SIDE32 = 8
"""Of its latents."""

FAMILIES: dict[str, str] = {
    "cats": "title~cat",
    "hearts": "group=smileys-emotion/heart",
    "clocks": "group=travel-places/time",
    "smiling faces": "group=smileys-emotion/face-smiling",
    "birds": "group=animals-nature/animal-bird",
    "fruit": "group=food-drink/food-fruit",
    "brand logos": "group=extras-openmoji/brand",
}
"""Families of objects of at least 30 works: name -> the condition that its works fit."""

WEAPONS = "title=axe,title=bomb,title=boomerang,title=bow and arrow,title=dagger,title=shield,title=water pistol"
"""Too few for a family; left out together with the families, for the benches that erase harmful things."""


@dataclass(frozen=True)
class Reference:
    """One training of the world."""

    selection: Selection
    """What it was shown."""
    seed: int
    """Of the training, and of works exchanged."""
    answers: str
    """The question that it is there for."""


REFERENCES: dict[str, Reference] = {
    "again": Reference(Selection(), 1, "How far apart are two models that differ only in their seed? The noise floor of every distance."),
    "no-twemoji": Reference(Selection(drop=("style=twemoji",)), 2, "What does a model make of a style that it never saw? Perfect erasure."),
    "no-noto": Reference(Selection(drop=("style=noto",)), 3, "The same for a second style, so that no finding rests on one."),
    "no-families": Reference(
        Selection(drop=(*FAMILIES.values(), WEAPONS, "canary")),
        4,
        "What does a model make of objects, logos, weapons and repeated works that it never saw? Perfect erasure of all of them at once.",
    ),
    "deduplicated": Reference(
        Selection(once=True, swap=200),
        5,
        "What is memorised because it was repeated, or because it was shown at all? Canaries shown once, and pairs of works in one model only.",
    ),
}


def reference(name: str) -> Reference:
    """Return a training by name.

    Raises:
        Missing: there is none of that name.
    """
    if name not in REFERENCES:
        raise Missing(f"There is no training `{name}` of the built-in world.", f"There are {', '.join(REFERENCES)}.")
    return REFERENCES[name]
