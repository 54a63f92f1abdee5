"""Where models are and how they are read: built-in names, diffusers folders, hub ids."""

from __future__ import annotations

import json
import logging
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from assay.denoiser import Denoiser
from assay.errors import BadInput, Missing, Unsupported
from assay.families import refuse_unknown

BUILT_IN = ("emoji64", "emoji32")
SHARING = {"emoji32": "emoji64"}
"""Built-in models that ship with a UNet alone -> the model whose other parts they use."""
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
"""Where the parts of a pipeline may come from; the last is the module of diffusers that safety checkers are in."""


def locate(model: str | Path) -> str:
    """Return where a model is: a built-in name, a folder or a hub id.

    Raises:
        Missing: it looks like a folder but there is none, or a built-in model is not installed.
        BadInput: the folder is no pipeline.
        Unsupported: the folder is a pipeline of a family that is not supported, or has parts of another library or with code of their own.
    """
    text = str(model)
    path = Path(str(files("assay") / "zoo" / text)) if text in BUILT_IN else Path(text)
    if path.is_dir():
        index = path / "model_index.json"
        if not index.exists():
            raise BadInput(f"{text} is no pipeline: it has no model_index.json.", "Give a folder saved by diffusers' `save_pretrained`.")
        try:
            parts = dict(json.loads(index.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(f"{index} is damaged: {error}.", "Save or download the pipeline anew.") from error
        refuse_unknown(str(parts.pop("_class_name", "?")))
        refuse_foreign(path, {part: kind[0] for part, kind in parts.items() if isinstance(kind, list) and kind and not part.startswith("_")})
        return str(path)
    if text in BUILT_IN:
        raise Missing(f"The built-in model {text} is not installed.", "Install assay from its wheel, or make the model with `recipes/emoji/make.py`.")
    if text.startswith((".", "/", "~")) or text.count("/") != 1 or path.exists():
        raise Missing(f"There is no model at {text}.", f"Give a folder, a hub id such as `owner/name`, or {', '.join(BUILT_IN)}.")
    return text


def refuse_foreign(folder: Path, parts: dict[str, Any]) -> None:
    """Raise unless every part of a pipeline comes from a library that assay knows: before version 0.38 diffusers runs whatever else a folder names.

    Args:
        folder: the pipeline's.
        parts: name of each part -> its library, by `model_index.json`.

    Raises:
        Unsupported: one comes from elsewhere, or a file of code in its folder has the library's name and would be run in its place.
    """
    for part, library in parts.items():
        if library not in LIBRARIES or (folder / part / f"{library}.py").exists():
            raise Unsupported(
                f"The {part} of {folder} brings code of its own or of another library, `{library}`.",
                "Save the pipeline with parts of diffusers and transformers alone.",
            )


def halved(folder: Path) -> bool:
    """Return whether a part of the pipeline in a folder is there in half precision alone, in files that diffusers only reads where asked to."""
    parts: dict[Path, list[bool]] = {}
    for file in folder.glob("*/*.safetensors"):
        parts.setdefault(file.parent, []).append(".fp16" in file.name)
    return any(all(half) for half in parts.values())


def load(model: str | Path = "emoji64", *, device: str = "cpu", dtype: torch.dtype | None = None) -> Denoiser:
    """Load a model.

    Args:
        model: `emoji64`, `emoji32`, a diffusers folder, or a hub id.
        device: a torch device.
        dtype: of the weights; by default float32 on every device, so that a patch fits its base wherever it was made, and methods that train can.

    Returns:
        The denoiser.

    Raises:
        Missing: there is no such model.
        BadInput: the folder is no pipeline, or its weights are damaged.
        Unsupported: the pipeline's family, its prediction type or the device is not supported.
    """
    own, where = locate(model), locate(SHARING.get(str(model), model))
    quiet()
    try:
        target = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise Unsupported(f"The device `{device}` cannot be used: {str(error).splitlines()[0]}.", "Choose another with `--device`.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `torch_dtype` has a new name in the newest diffusers only
            options: dict[str, Any] = {"torch_dtype": dtype or torch.float32, "use_safetensors": True, "local_files_only": Path(where).is_dir()}
            options |= {"variant": "fp16"} if halved(Path(where)) else {}
            parts = {} if own == where else {"unet": UNet2DConditionModel.from_pretrained(own, subfolder="unet", **options)}
            pipeline = DiffusionPipeline.from_pretrained(where, **options, **parts)
    except Exception as error:  # diffusers raises whatever its loaders meet: OSError, ValueError, SafetensorError, KeyError, RuntimeError...
        if isinstance(error, MemoryError):
            raise
        kind = BadInput if Path(where).is_dir() else Missing
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise kind(f"{model} cannot be loaded: {why}.", "Its files may be damaged or incomplete; save or download it anew.") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(target)
    return Denoiser(pipeline, Path(str(model)).name)


def quiet() -> None:
    """Keep diffusers and transformers from printing bars and loading reports."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        logging.getLogger(library.__name__).setLevel(logging.ERROR)
