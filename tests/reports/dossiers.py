"""A small dossier as `assay run` leaves it: three stages done, every part of a record used, pictures of random shapes."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

from assay.record import Curve, Dossier, Entry, Metric, Record, Table, sha256_file
from assay.reports.pictures import grid, save_picture, side_by_side

Point = tuple[float, float, float | None, float | None]
STYLES = ["openmoji", "twemoji", "noto", "fluent"]
THINGS = ["cat face", "red apple", "alarm clock", "sailboat", "four leaf clover", "fire engine"]
DIGEST = "9f2c41d07ab35e8866f1c0d2b7a4e913" * 2


def art(seed: int, size: int = 64) -> Image.Image:
    """A made-up emoji: a round face of some colour with two or three shapes on it."""
    draw = random.Random(seed)
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((6, 6, size - 7, size - 7), fill=tuple(draw.randrange(90, 250) for _ in range(3)), outline=(40, 40, 40), width=2)
    for _ in range(3):
        x, y, r = draw.randrange(14, size - 20), draw.randrange(14, size - 20), draw.randrange(4, 11)
        pen.rounded_rectangle((x, y, x + r, y + r), 3, fill=tuple(draw.randrange(0, 200) for _ in range(3)))
    return image


def works_record(folder: Path) -> Record:
    faces = [save_picture(art(seed), folder, f"work-{seed}", f"{THINGS[seed]} by creator {seed}, in OpenMoji's style.") for seed in range(4)]
    rows = [[{"picture": faces[i % 4].file}, THINGS[i % 6], f"Creator {i}", 310 - 7 * i, 0.9123 / (i + 1)] for i in range(26)]
    return Record(
        command="works",
        question="Whose art was the model trained on, and under which licences?",
        given={"works": "emoji"},
        resolved={"works": "emoji", "threshold": 0.05},
        digests={"works": DIGEST[::-1]},
        metrics=[
            Metric(name="works.count", value=3838, n=3838),
            Metric(name="works.creators", value=121, n=3838),
            Metric(name="works.near_duplicates", value=0.094, low=0.085, high=0.104, n=3838),
        ],
        findings=[
            "The model saw 3,838 works in four styles by 121 named creators, every one of them under an open licence.",
            "9.4 % of the works have a near-duplicate; nearly all of those are of the same style.",
        ],
        shows_not=["A licence is what the source declared; nobody asked the creators again."],
        tables=[Table(title="Creators with the most works", columns=["", "Title", "Creator", "Works", "Share"], rows=rows)],
        pictures=faces,
        quarantined=2,
        seconds=4.21,
        versions={"assay": "0.1.0", "pillow": "11.0.0"},
    )


def audit_record(folder: Path) -> Record:
    pairs = grid(
        [[art(10 + x) for x in range(6)], [art(10 + x + 20 * (x > 3)) for x in range(6)]],
        ["the work", "what the model made"],
        [f"{thing}, k = 64" for thing in THINGS],
    )
    lead = save_picture(pairs, folder, "canaries", "Canaries shown 64 times, above, and the nearest of 32 images made from their captions, below.")
    second = save_picture(side_by_side([art(3, 96), art(4, 96)], ["source", "copy"]), folder, "clearest", "The clearest copy beside its source.")
    points: list[Point] = [(0.0, 0.0, 0.0, 0.19), (1.0, 0.06, 0.01, 0.28), (4.0, 0.19, 0.07, 0.43), (16.0, 0.5, 0.28, 0.72), (64.0, 0.88, 0.64, 0.97)]
    varied: list[Point] = [(16.0, 0.25, 0.07, 0.59), (64.0, 0.5, 0.22, 0.78)]
    return Record(
        command="audit",
        question="Which works does the model give back when asked for them by their captions?",
        method="nearest",
        given={"works": "emoji", "images": 32, "seed": 7, "out": "assay-out"},
        resolved={"works": "emoji", "images": 32, "seed": 7, "false_positive_rate": 0.001, "distances": ["tiled_l2", "phash", "judge"]},
        digests={"model": DIGEST, "works": DIGEST[::-1], "judge": DIGEST[3:] + "abc"},
        seeds={"images": 7, "bootstrap": 11},
        metrics=[
            Metric(name="canaries_k64.memorised", value=0.875, low=0.640, high=0.965, n=16, chance=0.001, better="lower"),
            Metric(name="canaries_k16.memorised", value=0.5, low=0.28, high=0.72, n=16, chance=0.001, better="lower"),
            Metric(name="canaries_k0.memorised", value=0.0, low=0.0, high=0.194, n=16, chance=0.001, better="lower"),
            Metric(
                name="ordinary.memorised", value=0.0123, low=0.0071, high=0.0212, n=1000, chance=0.001, better="lower", judge="judge-a 9f2c41d07ab3"
            ),
            Metric(name="nearest.distance", value=None, better="neither"),
        ],
        findings=[
            "A work shown 64 times with one caption is given back in 14 of 16 cases; works never shown are given back in none.",
            "Varied captions halve the effect at the same number of showings.",
        ],
        shows_not=[
            "A work that is not found was not proved unlearnt: other prompts were not tried.",
            "Sixteen works per group leave intervals of forty points.",
        ],
        curves=[
            Curve(
                title="Works given back against times shown",
                x_label="times shown (k)",
                y_label="share given back",
                lines={"one caption": points, "varied captions": varied},
                x_scale="symlog",
            )
        ],
        pictures=[lead, second],
        seconds=222.4,
        passes=48_000,
        peak_memory=2_254_857_830,
        versions={"assay": "0.1.0", "torch": "2.13.0"},
    )


def erase_record(folder: Path, method: str, seed: int) -> Record:
    rows = [[art(40 + 6 * y + x) for x in range(6)] for y in range(4)]
    after = [rows[0], [art(seed + x) for x in range(6)], rows[2], rows[3]]
    picture = save_picture(
        grid([row for pair in zip(rows, after) for row in pair], [text for s in STYLES for text in (s, f"{s}, erased")], THINGS),
        folder,
        "before-after",
        f"The same prompts in four styles, before and after twemoji was erased by {method}.",
    )
    return Record(
        command="erase",
        question=f"Can the style of twemoji be taken out by {method}, and what else goes with it?",
        method=method,
        given={"model": "emoji64", "concept": "twemoji", "preserve": ["noto", "fluent 3d"]},
        resolved={"model": "emoji64", "concept": "twemoji", "preserve": ["noto", "fluent 3d"], "strength": 0.1, "seed": 3},
        digests={"model": DIGEST, "judge": DIGEST},
        metrics=[
            Metric(name="target.style_accuracy", value=0.02, low=0.005, high=0.07, n=100, chance=0.25, better="lower", judge="judge-b 11d2aa02c7f0"),
            Metric(
                name="neighbours.style_accuracy", value=0.96, low=0.9, high=0.985, n=100, chance=0.25, better="higher", judge="judge-b 11d2aa02c7f0"
            ),
            Metric(name="everything_else.psnr", value=27.31, low=26.8, high=27.9, level=0.9, n=300, better="higher"),
            Metric(name="kid.to_base", value=0.00123, low=0.0009, high=0.0015, n=500, better="lower"),
        ],
        findings=[f"{method} takes twemoji from 63 % to 2 % and leaves the three other styles within three points of where they were."],
        shows_not=["Whether the style comes back under attack was not tried."],
        pictures=[picture],
        seconds=2.04,
        passes=1200,
    )


def add(folder: Path, stage: str, name: str, record: Record) -> Entry:
    path = record.save(folder / name)
    return Entry(stage=stage, record=f"{name}/record.json", sha256=sha256_file(path))


def build(folder: Path) -> Path:
    stages = ["Works, creators and licences", "What was memorised", "Erasing a style"]
    entries = [
        add(folder, stages[0], "works", works_record(folder / "works")),
        add(folder, stages[1], "audit", audit_record(folder / "audit")),
        add(folder, stages[2], "erase-uce", erase_record(folder / "erase-uce", "uce", 90)),
        add(folder, stages[2], "erase-esd", erase_record(folder / "erase-esd", "esd", 96)),
    ]
    Dossier(title="What emoji64 remembers, and what it can be made to forget", complete=True, stages=stages, entries=entries).save(folder)
    return folder
