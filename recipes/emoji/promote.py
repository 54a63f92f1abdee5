"""Turn BUILD into the package's zoo: model, works, judges, licences and the model card.

python recipes/emoji/promote.py BUILD [--zoo src/assay/zoo] [--emoji32]

With `--emoji32`, only the small model is put there: its UNet, since it shares everything else with emoji64.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import jinja2
import torch
from diffusers import UNet2DConditionModel

from assay.training.recipe import Recipe
from assay.works import Works
from collect import CREATORS, PACKAGES
from make import blank, works

TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, keep_trailing_newline=True, autoescape=False)
STYLES = {"openmoji": "OpenMoji", "twemoji": "Twemoji", "noto": "Noto Emoji", "fluent": "Fluent Emoji"}
TEXTS = {
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://opensource.org/license/mit",
}


def promote(build: Path, zoo: Path) -> None:
    """Write the zoo anew from BUILD, and put it in the place of the old one once it is whole."""
    zoo, place = zoo.with_name(zoo.name + ".part"), zoo
    model = zoo / "emoji64"
    shutil.rmtree(zoo, ignore_errors=True)
    zoo.mkdir(parents=True)
    denoiser = blank(build)
    denoiser.pipeline.unet = UNet2DConditionModel.from_pretrained(build / "unet")
    denoiser.pipeline.to(torch.float16).save_pretrained(model)
    anonymous(model)
    recipe = Recipe.load(build / "unet")
    recipe.save(model)
    table = works(build)
    (zoo / "works").mkdir()
    half = len(table) // 2  # two files, because one would be too large for the tree; in order, because the digest depends on it
    table.take(range(half)).write(zoo / "works" / "works-0.parquet")
    table.take(range(half, len(table))).write(zoo / "works" / "works-1.parquet")
    if (build / "judge").exists():
        shutil.copytree(build / "judge", zoo / "judge", ignore=shutil.ignore_patterns("*training*", "*.part"))
    (zoo / "LICENSES.md").write_text(licences(table))
    (model / "README.md").write_text(card(recipe, table, build))
    shutil.rmtree(place, ignore_errors=True)
    zoo.rename(place)


def promote_emoji32(build: Path, zoo: Path) -> None:
    """Put the small model beside the others: UNet and recipe."""
    part = zoo / "emoji32.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(build / "emoji32" / "unet", part / "unet")
    for name in ("model_index.json", "recipe.json"):
        shutil.copy(build / "emoji32" / name, part / name)
    anonymous(part)
    shutil.rmtree(zoo / "emoji32", ignore_errors=True)
    part.rename(zoo / "emoji32")


def anonymous(model: Path) -> None:
    """Take the folders of this machine out of the model's settings."""
    for path in model.glob("*/config.json"):
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def licences(table: Works) -> str:
    """Name every set, its licence and its creators."""
    sets = [
        {
            "name": STYLES[style],
            "package": package,
            "version": version,
            "licence": licence,
            "text": TEXTS[licence],
            "by": CREATORS.get(style, "those below"),
        }
        for style, (package, version, licence) in PACKAGES.items()
    ]
    creators = sorted({name for name, style in zip(table.column("creator"), table.column("style")) if style == "openmoji" and name})
    return TEMPLATES.get_template("licences.md").render(sets=sets, creators=creators)


def card(recipe: Recipe, table: Works, build: Path) -> str:
    """Write the model card: what it is, what it was trained on, how long, and where its figures are."""
    last = {line["stage"]: line for line in map(json.loads, (build / "log.jsonl").read_text().splitlines())}
    copies = table.column("copies")
    return TEMPLATES.get_template("card.md").render(
        recipe=recipe,
        attention=" and ".join(f"{16 // 2**level}x{16 // 2**level}" for level, on in enumerate(recipe.unet.attention) if on),
        works=len(table),
        split={name: table.column("split").count(name) for name in ("member", "calibration", "holdout")},
        core=sum(count > 0 for count in copies),
        exposures=sum(copies),
        stages=list(last.values()),
    )


def main() -> None:
    """Read the arguments and promote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / "src/assay/zoo")
    parser.add_argument("--emoji32", action="store_true", help="put only the small model there")
    arguments = parser.parse_args()
    (promote_emoji32 if arguments.emoji32 else promote)(arguments.build, arguments.zoo)


if __name__ == "__main__":
    main()
