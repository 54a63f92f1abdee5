"""`generate`: images from prompts, with or without patches, one file each, resumable."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.denoiser import Denoiser, to_pictures
from assay.errors import BadInput, Misconfigured, Missing
from assay.jobs.outcome import Outcome
from assay.jobs.shards import run
from assay.noise import derive
from assay.patch import Patch
from assay.record import sha256_file, write_atomically
from assay.verbs.session import Session, Silent, count

BATCH = 16


@dataclass(frozen=True)
class Prompt:
    """One row of a prompts file."""

    id: str
    """Name of the prompt, part of its images' file names."""
    prompt: str
    """What to show."""
    negative: str = ""
    """What not to show."""
    seed: int | None = None
    """Replaces the command's seed for this prompt."""
    title: str | None = None
    """The concept shown, for `evaluate`."""
    style: str | None = None
    """The style shown, for `evaluate`."""
    number: int = 0
    """Which of the prompt's images is meant, where one is."""

    def image_seed(self, seed: int) -> int:
        """Return the seed of one image, which depends on (seed, id, image number) alone."""
        return derive(seed if self.seed is None else self.seed, self.id, self.number)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a JSONL file of prompts.

    Raises:
        Missing: there is no such file.
        BadInput: a line is no prompt, an id appears twice or cannot be part of a file name; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise Missing(f"There is no prompts file at {path}.", 'Give a JSONL file with a row {"id", "prompt"} per prompt.')
    rows: list[Prompt] = []
    seen: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}.", "Write it in UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadInput(f"Line {number} of {path} is no prompt: {error!r}.", 'Write {"id": "a", "prompt": "cat face"} on each line.') from error
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,120}", row.id) or row.id in seen:
            raise BadInput(
                f"Line {number} of {path} has the id `{row.id}`, which is taken or not fit for a file name.", "Use letters, digits, . _ -."
            )
        seen.add(row.id)
        rows.append(row)
    if not rows:
        raise BadInput(f"{path} holds no prompts.", 'Write {"id": "a", "prompt": "cat face"} on each line.')
    return rows


def _row(data: Any) -> Prompt:
    """Read one prompt.

    Raises:
        TypeError: it is no object, or a value is of the wrong type.
        UnicodeEncodeError: a text is none in Unicode.
    """
    if not isinstance(data, dict):
        raise TypeError("it is no object")
    for name in ("negative", "title", "style"):
        if not isinstance(data.get(name), str | None):
            raise TypeError(f"`{name}` is no text")
    if not isinstance(data["prompt"], str) or not isinstance(data["id"], str | int):
        raise TypeError("`prompt` or `id` is no text")
    "".join([data["prompt"], str(data["id"]), *(data.get(name) or "" for name in ("negative", "title", "style"))]).encode()
    if not isinstance(data.get("seed"), int | None) or isinstance(data.get("seed"), bool):
        raise TypeError("`seed` is no whole number")
    return Prompt(str(data["id"]), data["prompt"], data.get("negative") or "", data.get("seed"), data.get("title"), data.get("style"))


def unread(denoiser: Denoiser, prompts: Sequence[str]) -> list[str]:
    """Say how many prompts are longer than what the model reads of them."""
    cut = sum(denoiser.family.cut(prompt) for prompt in dict.fromkeys(prompts))
    return [f"Of {cut} of these prompts the model reads the beginning alone: they have more tokens than its text encoder takes."] if cut else []


def generate(
    model: str | Path | Denoiser = "emoji64",
    *,
    prompt: str | None = None,
    prompts: str | Path | Sequence[Prompt] | None = None,
    images: int = 1,
    steps: int = 20,
    guidance: float = 4.0,
    patches: Sequence[str | Patch | tuple[Patch, float]] = (),
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    display: Any = None,
) -> Outcome:
    """Generate images into `out`/images and list them in `out`/images.jsonl.

    Args:
        model: a built-in name, a folder, a hub id or a loaded denoiser.
        prompt: one prompt; its id is "prompt".
        prompts: a JSONL file, or rows.
        images: images per prompt.
        steps: DDIM steps.
        guidance: scale of classifier-free guidance.
        patches: what to put on the model: `PATH[:SCALE]`, patches or (patch, scale) pairs.
        out: folder to write to; the same call goes on where it stopped.
        seed: an image's seed depends on (seed, id, image number) alone.
        device: a torch device.
        dry_run: plan only.
        display: shows progress.

    Returns:
        The outcome, whose `record` names every picture's folder.

    Raises:
        Misconfigured: neither or both of `prompt` and `prompts` are given; or the model cannot be sampled in so many steps, with so little guidance.
        Mismatch: a patch was made for another base.
    """
    if (prompt is None) == (prompts is None):
        raise Misconfigured("Give one of a prompt and a prompts file.", 'Such as --prompt "cat face, noto style".')
    rows = [Prompt("prompt", prompt)] if prompt is not None else list(prompts) if isinstance(prompts, list | tuple) else read_prompts(prompts)  # pyright: ignore
    session = Session("generate", model, out or "out/generate", seed, device, patches, display or Silent())
    session.ask(prompt=prompt, prompts=prompts, images=images, steps=steps, guidance=guidance)
    session.check(steps, guidance=guidance)
    if dry_run:
        return session.dry_run(len(rows) * images * steps * (2 if guidance != 1 else 1), images=len(rows) * images)
    given = {"images": images, "steps": steps, "guidance": guidance, "prompts": [list(vars(row).values())[:-1] for row in rows]}
    folder = session.folder(session.plan(**given))
    if previous := session.finished(folder):
        return previous
    jobs = [replace(row, number=number) for row in rows for number in range(images)]
    shards = [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]

    def file_of(job: Prompt) -> Path:
        return folder / f"images/{job.id}-{job.number}.png"

    def worker(shard: list[Prompt]) -> None:
        seeds = [job.image_seed(seed) for job in shard]
        negative = [job.negative for job in shard] if any(row.negative for row in rows) else None
        made = session.denoiser.generate([job.prompt for job in shard], seeds, steps=steps, guidance=guidance, negative=negative, batch=BATCH)
        for job, picture in zip(shard, to_pictures(made), strict=True):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            write_atomically(file_of(job), buffer.getvalue())

    with session.patched():
        run(shards, worker, done=lambda shard: all(file_of(job).exists() for job in shard), progress=session.bar("generating"))
    lines = [
        {
            "id": job.id,
            "prompt": job.prompt,
            "seed": job.image_seed(seed),
            "file": f"images/{job.id}-{job.number}.png",
            "sha256": sha256_file(file_of(job)),
        }
        for job in jobs
    ]
    write_atomically(folder / "images.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    record = session.record(
        "What does the model make of these prompts?",
        given={"images": images, "steps": steps, "guidance": guidance, "prompts": len(rows)},
        resolved=given | {"prompts": len(rows), "scheduler": "DDIM"},
        metrics=[count("images", len(jobs))],
        findings=[f"{len(jobs)} images of {len(rows)} prompts are in `images`.", *unread(session.denoiser, [row.prompt for row in rows])],
    )
    record.save(folder.path)
    return session.outcome(record)
