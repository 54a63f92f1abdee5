"""What differs between text-to-image pipelines, and nothing else: one file a family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from assay.errors import Unsupported

if TYPE_CHECKING:
    from assay.families.sd import StableDiffusion

SUPPORTED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def family_of(pipeline: Any) -> StableDiffusion:
    """Return the family of a loaded pipeline.

    Args:
        pipeline: any diffusers pipeline.

    Returns:
        The adapter: `sd.StableDiffusion` or one that follows its methods.

    Raises:
        Unsupported: no family fits; the message names what would.
    """
    from assay.families.sd import StableDiffusion
    from assay.families.sdxl import StableDiffusionXL

    refuse_unknown(name := type(pipeline).__name__)
    return {"StableDiffusionPipeline": StableDiffusion, "StableDiffusionXLPipeline": StableDiffusionXL}[name](pipeline)


def refuse_unknown(name: str) -> None:
    """Raise unless pipelines of this class are supported.

    Raises:
        Unsupported: they are not.
    """
    if name not in SUPPORTED:
        raise Unsupported(f"Pipelines of the class {name} are not supported.", f"Supported: {', '.join(SUPPORTED)} (epsilon and v prediction).")
