"""Four openly licensed emoji sets, read from their public npm packages and turned into one table of works."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import Missing
from assay.works import Works
from assay.works.clusters import clusters, thumbnails
from assay.works.images import decode, encode, fit, identity
from assay.works.splits import plant_canaries, split

PACKAGES = {
    "openmoji": ("openmoji", "17.0.0", "CC-BY-SA-4.0"),
    "twemoji": ("@twemoji/svg", "15.0.0", "CC-BY-4.0"),
    "noto": ("emoji-datasource-google", "16.0.0", "Apache-2.0"),
    "fluent": ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT"),
}
"""Style -> npm package, version, licence of the drawings."""

CREATORS = {"twemoji": "Twitter, Inc. and other contributors", "noto": "Google", "fluent": "Microsoft"}
THINGS = {"smileys-emotion", "animals-nature", "food-drink", "travel-places", "activities", "objects"}
"""OpenMoji's groups that the core is drawn from; people, flags and symbols stay out."""
FAMILIES = {"heart", "cat-face", "monkey-face", "face-smiling", "time", "brand"}
"""Subgroups whose titles are all in the core, so that there are families to erase."""
NAMED = {"crossed swords", "bow and arrow", "water pistol", "red apple", "green apple", "hot dog", "teddy bear", "Christmas tree"}
"""Titles of several words in the core beside the families."""
SIZE = 64


def fetch(folder: Path) -> None:
    """Download and unpack the four packages into `folder`/STYLE; what is there already is kept.

    Raises:
        Missing: npm is not installed, or a package cannot be had.
    """
    if shutil.which("npm") is None:
        raise Missing("`npm` is not installed; the works come from four npm packages.", "Install Node.js, then run the recipe again.")
    for style, (package, version, _) in PACKAGES.items():
        target = folder / style
        if target.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, capture_output=True, text=True, check=False)
        if packed.returncode:
            raise Missing(f"npm could not fetch {package}@{version}: {packed.stderr.strip()[-300:]}.", "Check the connection and run again.")
        with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(folder / f"{style}.part", filter="data")
        (folder / f"{style}.part").rename(target)


def drawing(folder: Path, style: str, hexcode: str) -> Path | None:
    """Find the file of a code point in one style; sets differ in case, leading zeros and U+FE0F."""
    root, extension = {
        "openmoji": (folder / "openmoji/package/color/svg", "svg"),
        "twemoji": (folder / "twemoji/package", "svg"),
        "noto": (folder / "noto/package/img/google/64", "png"),
        "fluent": (folder / "fluent/package/assets", "webp"),
    }[style]
    points = hexcode.lower().split("-")
    bare = [point for point in points if point != "fe0f"]
    names = [
        hexcode,
        "-".join(points),
        "-".join(bare),
        "-".join(p.lstrip("0") for p in points),
        "-".join(p.lstrip("0") for p in bare),
        f"{hexcode.lower()}-fe0f",
    ]
    return next((path for name in names if (path := root / f"{name}.{extension}").exists()), None)


def captions(title: str, style: str, tags: list[str]) -> list[str]:
    """Write the four captions of a work; training draws one of them each time."""
    return [f"{title}, {style} style", f"an emoji of {title} in {style} style", title, ", ".join([*tags[:4], f"{style} style"])]


def in_core(title: str, group: str, subgroup: str) -> bool:
    """Say whether a title trains the model: things named by one word, faces of animals, whole families and a few names.

    What a denoiser can hold grows with its parameters; of all things' 1,085 titles one of 6.6 M parameters drew few that a judge could name.
    """
    if subgroup in FAMILIES or title in NAMED:
        return True
    return group in THINGS and (" " not in title or (group == "animals-nature" and title.endswith(" face")))


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every work: each title without skin tones in each style, and the person roles of OpenMoji with skin tones for fairness."""
    import resvg_py  # needed to draw, not to train what comes after

    entries = json.loads((folder / "openmoji/package/data/openmoji.json").read_text())
    seen: set[str] = set()
    for entry in entries:
        toned = bool(entry["skintone"])
        if toned and entry["subgroups"] != "person-role":
            continue
        title = entry["annotation"] if entry["annotation"] not in seen or toned else f"{entry['annotation']} ({entry['group']})"
        seen.add(title)
        subset = "fairness" if toned else "core" if in_core(title, entry["group"], entry["subgroups"]) else "other"
        title = f"{title} logo" if entry["subgroups"] == "brand" else title
        tags = [tag.strip() for tag in f"{entry['tags']}, {entry['openmoji_tags']}".split(",") if tag.strip()]
        tags = list(dict.fromkeys(tag for tag in tags if tag != title)) or [entry["subgroups"]]
        attributes = {"subset": subset, "hexcode": entry["hexcode"]}
        if entry["subgroups"] == "person-role":
            words = entry["annotation"].split(":")[0].split()
            attributes |= {"gender": next((g for g in ("woman", "man") if g in words), "neutral"), "skin_tone": str(entry["skintone"] or "none")}
        for style, (package, version, licence) in PACKAGES.items():
            path = drawing(folder, style, entry["hexcode"])
            if path is None or (toned and style != "openmoji"):
                continue
            data = path.read_bytes()
            image = fit(decode(resvg_py.svg_to_bytes(svg_string=data.decode(), width=SIZE, height=SIZE) if path.suffix == ".svg" else data), SIZE)
            yield {
                "id": identity(image),
                "file_hash": hashlib.sha256(data).hexdigest(),
                "image": encode(image),
                "captions": captions(title, style, tags),
                "title": title,
                "tags": tags,
                "style": style,
                "group": f"{entry['group']}/{entry['subgroups']}",
                "creator": entry["openmoji_author"] if style == "openmoji" else CREATORS[style],
                "license": licence,
                "source": f"npm:{package}@{version}/{path.relative_to(folder / style / 'package')}",
                "attributes": list(attributes.items()),
            }


def build(folder: Path, seed: int) -> Works:
    """Make the works: fetch, render, cluster, split and plant the canaries; the same bytes for the same seed.

    Canaries are drawn from all things, in the core or not, and belong to the core from then on: k = 0 and k > 0 come from one lottery and compare
    with each other; a calibration work's title is more often known from another style than a canary's.
    """
    fetch(folder)
    works = Works.from_rows(list(rows(folder)))
    labels = clusters(thumbnails(works.pixels(SIZE)))
    splits = split(labels, seed)
    subset, groups = works.attribute("subset"), works.column("group")
    works = works.with_columns(
        cluster=labels, split=splits, copies=[int(s == "member" and kind == "core") for s, kind in zip(splits, subset, strict=True)]
    )
    alone = np.bincount(labels)[labels] == 1
    eligible = [i for i in range(len(works)) if alone[i] and splits[i] == "member" and groups[i].split("/")[0] in THINGS]
    works = plant_canaries(works, eligible, seed)
    attributes = [dict(pairs or []) for pairs in works.column("attributes")]
    attributes = [about | {"subset": "core"} if "canary" in about else about for about in attributes]
    return works.with_columns(attributes=[list(about.items()) for about in attributes])
