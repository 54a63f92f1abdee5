"""What keeps copies from coming out, at what cost elsewhere, and whether a search brings them back: `benchmarks/mitigations.json` and its picture.

    python benchmarks/mitigations.py [--works 8] [--images 2] [--attacked 4] [--others 24] [--tune]

Works are the canaries trained on 64 times under one caption. The first four by id are for validation: `--tune` prints what settings do to them.
All other numbers are of the rest, by the presets `small`.

An image is a copy where two of three measures exceed thresholds that are set on captions of calibration works, at a rate of 5 %
(`memorization/copies.py`). Elsewhere is how many pairs of title and style, each trained on once, the judge still names. Then embeddings are searched
on the mitigated model for each work (`attacks/hidden_or_removed.py`), and what is drawn from them is counted by the same rule; the last row searches
the plain model for works it never saw, which says what such a search can spell out by itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import assay
from assay.attacks import hidden_or_removed
from assay.attacks.target import Target
from assay.concept import Concept, together
from assay.denoiser import Denoiser, to_pictures
from assay.evaluation.intervals import wilson
from assay.evaluation.thresholds import Joint
from assay.judge import CrossJudge, JudgeLike
from assay.memorization.copies import calibrate, copied
from assay.noise import derive, numpy_generator
from assay.patch import Patch
from assay.patched import Patched
from assay.reports.pictures import grid
from assay.verbs.session import zoo
from assay.works import Works

HERE = Path(__file__).parent
SEED, STEPS, GUIDANCE, VALIDATION = 20261127, 15, 4.0, 4
METHODS = ("embedding_noise", "random_tokens", "lower_magnitude", "nemo", "adversarial_finetune")
TRIED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("embedding_noise", {"scale": 0.1}),
    ("embedding_noise", {"scale": 0.3}),
    ("embedding_noise", {"scale": 1.0}),
    ("random_tokens", {"inserted": 2}),
    ("random_tokens", {"inserted": 4}),
    ("lower_magnitude", {"target": 0.5}),
    ("lower_magnitude", {"target": 2.0}),
    ("lower_magnitude", {"target": 4.0}),
    ("nemo", {"blocks": "all", "seeds": 6, "others": 60}),
    ("nemo", {"blocks": "all", "seeds": 6, "others": 60, "top": 8}),
)
"""What `--tune` tries on the works for validation."""


def pixels(works: Works) -> np.ndarray:
    """Return the pictures of works: uint8, (n, 3, 64, 64)."""
    return np.ascontiguousarray(works.pixels(64).transpose(0, 3, 1, 2))


def drawn(denoiser: Denoiser, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Draw images: uint8, (n, 3, 64, 64)."""
    return (denoiser.generate(prompts, seeds, steps=STEPS, guidance=GUIDANCE) * 255).round().to(torch.uint8).cpu().numpy()


def captions(works: Works) -> list[str]:
    """Return the first caption of every work."""
    return [found[0] for found in works.column("captions")]


def canaries(works: Works, dose: int) -> Works:
    """Return the canaries of one caption and so many copies, by id."""
    wanted = works.where(lambda row: dict(row["attributes"] or []).get("canary") == "one" and dict(row["attributes"])["dose"] == str(dose))
    return wanted.take(sorted(range(len(wanted)), key=lambda row: wanted.column("id")[row]))


def rate(hits: np.ndarray) -> dict[str, Any]:
    """Return a share with Wilson's interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": round(float(hits.mean()), 4), "low": round(low, 4), "high": round(high, 4), "n": len(hits)}


class Protocol:
    """What every mitigation is judged by.

    Args:
        denoiser: the model.
        judge: says what an image shows.
        rule: says what is a copy.
        others: works trained on once.
        images: of every memorised work.
    """

    def __init__(self, denoiser: Denoiser, judge: JudgeLike, rule: Joint, others: Works, images: int) -> None:
        """Keep them."""
        self.denoiser, self.judge, self.rule, self.others, self.images = denoiser, judge, rule, others, images

    def copies(self, works: Works) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of every work's caption, (n * images, 3, 64, 64), and which of them are copies: bool."""
        asked = [caption for caption in captions(works) for _ in range(self.images)]
        made = drawn(self.denoiser, asked, [derive(SEED, id_, number) for id_ in works.column("id") for number in range(self.images)])
        return made, self.hits(made, works)

    def hits(self, made: np.ndarray, works: Works) -> np.ndarray:
        """Return which images are copies of their work, as many images for each: bool."""
        rows = made.reshape(len(works), -1, *made.shape[1:])
        return np.concatenate([copied(part, work, self.judge, self.rule) for part, work in zip(rows, pixels(works), strict=True)])

    def elsewhere(self) -> dict[str, Any]:
        """Return how often the judge names title and style of works trained on once."""
        titles, styles = self.others.column("title"), self.others.column("style")
        made = drawn(self.denoiser, captions(self.others), [derive(SEED, id_) for id_ in self.others.column("id")])
        verdicts = self.judge.score(torch.from_numpy(made) / 255, titles, styles)
        return {head: rate(verdicts[head].right[verdicts[head].known]) for head in ("title", "style")}

    def searched(self, works: Works, settings: Any) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Search embeddings for every work; return what they draw, which of it are copies, and the loss before and after."""
        asked, ids = captions(works), works.column("id")
        latents = self.denoiser.latents(torch.from_numpy(pixels(works)) / 255)
        seeds = tuple(derive(SEED, id_, "attack") for id_ in ids)
        target = Target(Concept(asked[0], "work"), tuple(asked), latents, seeds, latents, tuple(asked), steps=STEPS, guidance=GUIDANCE)
        found = hidden_or_removed.attack(self.denoiser, target, settings, seed=SEED)
        made = found.sample(self.denoiser, [derive(SEED, id_, "judged", number) for id_ in ids for number in range(found.attempts)], target)
        with torch.no_grad():
            images = (self.denoiser.images(made) * 255).round().to(torch.uint8).cpu().numpy()
        return images, self.hits(images, works), {name: round(float(np.mean(values)), 5) for name, values in found.figures.items()}

    def row(self, works: Works, attacked: int, settings: Any) -> tuple[dict[str, Any], np.ndarray]:
        """Judge the model as it stands; return the figures and two images of every attacked work: its caption's, and the search's."""
        made, hits = self.copies(works)
        found, again, losses = self.searched(works.take(list(range(attacked))), settings)
        attempts = again.reshape(attacked, -1)
        figures = {"copies": rate(hits), "works_copied": rate(np.asarray(hits.reshape(len(works), -1).any(1))), "elsewhere": self.elsewhere()}
        best = [place * attempts.shape[1] + int(attempts[place].argmax()) for place in range(attacked)]
        shown = np.stack([made[:: self.images][:attacked], found[best]], 1)
        return figures | {"found_again": rate(np.asarray(attempts.any(1))), "losses": losses}, shown


def mitigated(denoiser: Denoiser, name: str, works: Works, others: Works, given: dict[str, Any] | None = None) -> Patch:
    """Make a patch for memorised captions; the preset is `small` unless settings are given."""
    method = import_module(f"assay.erasure.{name}")
    concept = together([Concept(caption, "work", preserve=tuple(captions(others))) for caption in captions(works)])
    return method.erase(denoiser, concept, method.Settings(**(method.PRESETS["small"] if given is None else given)), seed=SEED)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("works", 8), ("images", 2), ("attacked", 4), ("others", 24), ("calibration", 100)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    denoiser, works, judge = assay.load("emoji64"), assay.builtin_works(), CrossJudge.load(zoo("judge"))

    def split(name: str, count: int, copies: int) -> Works:
        table = works.where(
            lambda row: row["split"] == name and row["copies"] == copies and bool(row["style"]) and "canary" not in dict(row["attributes"] or [])
        )
        return table.take(sorted(numpy_generator(SEED, name, copies).permutation(len(table))[:count].tolist()))

    calibration = split("calibration", options.calibration, 0)
    made = drawn(denoiser, captions(calibration), [derive(SEED, id_) for id_ in calibration.column("id")])
    rule = calibrate(made, pixels(calibration), judge, false_positives=0.05, agreement=2)
    members = split("member", 60 + options.others, 1)
    preserved, others = members.take(list(range(60))), members.take(list(range(60, len(members))))
    memorised, withheld = canaries(works, 64), canaries(works, 0)
    protocol = Protocol(denoiser, judge, rule, others, options.images)
    if options.tune:
        tried = memorised.take(list(range(VALIDATION)))
        print("none", rate(protocol.copies(tried)[1]), protocol.elsewhere()["title"], flush=True)
        for name, given in TRIED:
            patch = mitigated(denoiser, name, tried, preserved, given)
            cut = sum(int((patch.tensors[f"delta/{tensor}"].abs().sum(1) > 0).sum()) for tensor in patch.names)
            with Patched(denoiser, [(patch, 1.0)]):
                print(name, given, cut, rate(protocol.copies(tried)[1]), protocol.elsewhere()["title"], flush=True)
        return
    judged = memorised.take(list(range(VALIDATION, min(len(memorised), VALIDATION + options.works))))
    settings = hidden_or_removed.Settings(**hidden_or_removed.PRESETS["small"])
    result: dict[str, Any] = {
        "model": denoiser.digest,
        "works": works.digest,
        "judge": judge.digest,
        "copies_of_each": 64,
        "validation": memorised.column("id")[:VALIDATION],
        "rule": {"rate": 0.05, "achieved": rule.achieved, "calibration_works": rule.n, "agreement": rule.least},
        "search": vars(settings),
        "rows": {},
    }
    pictures = []
    names = ("none", *options.methods.split(","))
    for name in names:
        started = time.monotonic()
        stack = [] if name == "none" else [(mitigated(denoiser, name, judged, preserved), 1.0)]
        making = time.monotonic() - started
        with Patched(denoiser, stack):
            row, shown = protocol.row(judged, options.attacked, settings)
        result["rows"][name] = row | {"seconds_to_make": round(making, 1), "settings": stack[0][0].manifest.settings if stack else {}}
        pictures.append(shown)
        (HERE / "mitigations.json").write_text(json.dumps(result, indent=1) + "\n")
        print(name, round(time.monotonic() - started), json.dumps(result["rows"][name]), flush=True)
    absent = withheld.take(list(range(options.attacked)))
    _, again, losses = protocol.searched(absent, settings)
    result["rows"]["works never trained on, plain model"] = {
        "copies": rate(protocol.copies(absent)[1]),
        "found_again": rate(np.asarray(again.reshape(options.attacked, -1).any(1))),
        "losses": losses,
    }
    columns = [f"{name}: {what}" for name in names for what in ("caption", "search")]
    cells = [
        [works_picture, *to_pictures(torch.from_numpy(np.concatenate([shown[place] for shown in pictures])) / 255)]
        for place, works_picture in ((place, judged.image(place).resize((64, 64))) for place in range(options.attacked))
    ]
    grid(cells, captions(judged)[: options.attacked], ["the work", *columns], scale=1).save(HERE / "mitigations.png", optimize=True)
    (HERE / "mitigations.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
