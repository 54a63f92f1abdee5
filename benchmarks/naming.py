"""A blind naming sheet: 40 cells drawn by the model, named by someone who sees the sheet alone, scored by a fixed rule: `benchmarks/naming.json`.

    python benchmarks/naming.py sheet                       # naming.png and naming-real.png, without a word on them
    python benchmarks/naming.py score ANSWERS REAL_ANSWERS  # two JSON objects: {"A1": "a cat", ...}

Ten trained pairs of each style, no title twice, drawn by a seed that no tuning has used; one image each, of the first seed. An answer is right if it
shares a telling word with the title or its tags (OpenMoji's). That is lenient, so chance is measured: the same answers on shuffled cells. The second
sheet holds the real works of the same pairs: what the same rule gives a faultless model.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch

import assay
from assay.denoiser import to_pictures
from assay.evaluation.intervals import wilson
from assay.noise import derive, numpy_generator
from assay.reports.pictures import grid, small_png

HERE = Path(__file__).parent
SEED = 20261124
STYLES = ("openmoji", "twemoji", "noto", "fluent")
ROWS, COLUMNS = "ABCDE", 8
CELLS = [f"{row}{column}" for row in ROWS for column in range(1, COLUMNS + 1)]
VAGUE = frozenset(
    {"a", "an", "the", "of", "and", "with", "in", "on", "or", "face", "sign", "symbol", "emoji", "object", "thing", "small", "big", "person"}
    | {"button", "mark", "icon", "open", "closed", "left", "right", "up", "down"}
)


def drawn(works: assay.Works) -> assay.Works:
    """Draw ten ordinary trained works of each style whose title exists in all four, no title twice, in shuffled order."""
    titles = works.column("title")
    ordinary = works.where(lambda row: row["split"] == "member" and row["copies"] == 1 and "canary" not in row["attributes"])
    rows = ordinary.where(lambda row: titles.count(row["title"]) >= 4)
    title, style = rows.column("title"), rows.column("style")
    chosen: list[int] = []
    for wanted in STYLES:
        used = {title[row] for row in chosen}
        order = numpy_generator(SEED, wanted).permutation(len(rows)).tolist()
        chosen += [row for row in order if style[row] == wanted and title[row] not in used][:10]
    return rows.take([chosen[index] for index in numpy_generator(SEED, "order").permutation(len(chosen))])


def words(text: str) -> set[str]:
    """Return the telling words of a text, plurals folded."""
    found = {word[:-1] if word.endswith("s") and len(word) > 3 else word for word in re.findall(r"[a-z]+", text.lower())}
    return found - VAGUE


def right(answer: str, title: str, tags: list[str]) -> bool:
    """Say whether an answer shares a telling word with title or tags."""
    return bool(words(answer) & words(" ".join([title, *tags])))


def sheet(steps: int) -> None:
    """Draw both sheets."""
    denoiser, rows = assay.load("emoji64"), drawn(assay.builtin_works())
    pairs = list(zip(rows.column("title"), rows.column("style"), strict=True))
    prompts = [f"{title}, {style} style" for title, style in pairs]
    made = denoiser.generate(prompts, [derive(SEED, prompt) for prompt in prompts], steps=steps)
    real = torch.from_numpy(rows.pixels(64)).permute(0, 3, 1, 2).float() / 255
    for name, images in (("naming.png", made), ("naming-real.png", real)):
        pictures = to_pictures(images)
        cells = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
        sheet = grid(cells, list(ROWS), [str(column) for column in range(1, COLUMNS + 1)], scale=2)
        (HERE / name).write_bytes(small_png(sheet))


def score(answers: dict[str, str], real_answers: dict[str, str]) -> dict[str, object]:
    """Score the answers to both sheets."""
    rows = drawn(assay.builtin_works())
    titles, tags, styles = rows.column("title"), rows.column("tags"), rows.column("style")
    result: dict[str, object] = {"model": assay.load("emoji64").digest, "seed": SEED}
    for name, given in (("generated", answers), ("real", real_answers)):
        verdicts = [right(given[cell], titles[index], tags[index]) for index, cell in enumerate(CELLS)]
        rng = numpy_generator(SEED, "chance")
        shuffled = [np.mean([right(given[CELLS[j]], titles[i], tags[i]) for i, j in enumerate(rng.permutation(len(CELLS)))]) for _ in range(200)]
        result[name] = {
            "right": sum(verdicts),
            "of": len(CELLS),
            "interval": wilson(sum(verdicts), len(CELLS)),
            "chance": round(float(np.mean(shuffled)), 3),
            "cells": [
                {"cell": cell, "title": titles[i], "style": styles[i], "answer": given[cell], "right": verdicts[i]} for i, cell in enumerate(CELLS)
            ],
        }
    return result


def main() -> None:
    """Draw the sheets or score the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sheet").add_argument("--steps", type=int, default=20)
    scored = commands.add_parser("score")
    scored.add_argument("answers", type=Path)
    scored.add_argument("real_answers", type=Path)
    options = parser.parse_args()
    if options.command == "sheet":
        sheet(options.steps)
        return
    result = score(json.loads(options.answers.read_text()), json.loads(options.real_answers.read_text()))
    (HERE / "naming.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
