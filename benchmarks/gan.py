"""Does a small GAN trained on the same works memorise as the diffusion model does? `benchmarks/gan.json` and `benchmarks/gan.png`.

    python benchmarks/gan.py [--folder out/gan] [--steps 8000] [--samples 1000] [--augmented]

Trains a GAN on the works, captions and copies of `emoji64`, with its text encoder and its autoencoder, and asks both models the same: the audit of
nearest works with one protocol, judge and false-positive rate; as many samples under captions drawn as in training, compared with all works (Carlini
et al. 2023, Sec. 5); membership, by the discriminator's score (LOGAN, Hayes et al. 2019) and by the diffusion model's losses; and how good the
drawings are, so that a model that copies nothing because it draws nothing is seen as such. What `emoji64.py` has measured of the diffusion model by
the same protocol, its audit and its quality, is read from `emoji64.json`. Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import assay
from assay.denoiser import Denoiser, to_pictures
from assay.errors import Mismatch
from assay.evaluation.intervals import wilson
from assay.evaluation.kid import floor, mmd2
from assay.evaluation.similarity import cosine_pairs, hamming_pairs, tiled_l2_pairs
from assay.judge import CrossJudge
from assay.memorization import membership, nearest
from assay.memorization.copies import calibrate
from assay.memorization.groups import choose
from assay.memorization.looks import looks
from assay.memorization.separation import separate
from assay.memorization.verdicts import NAMES, Evidence
from assay.noise import derive, numpy_generator
from assay.record import Metric, digest_of, write_atomically
from assay.reports.pictures import grid, small_png
from assay.training.gan import GAN, GANSettings, train
from assay.training.recipe import Recipe
from assay.training.selection import shown
from assay.verbs.session import zoo
from assay.works import Works
from emoji64 import SEED, drawn, judged

HERE = Path(__file__).parent
NEAREST = nearest.Settings(**nearest.PRESETS["small"])
"""As in `emoji64.py`."""
MEMBERSHIP = membership.Settings(**membership.PRESETS["small"] | {"gradient": False, "members": 400, "calibration": 400, "holdout": 400})
RATE, COPIES = 0.01, 16
"""False positives of the rule for samples and of membership, and from which number of copies works count as copied."""
PROMPTS, IMAGES = 200, 4
"""Of the judged drawings, as in `emoji64.py`."""


class Sampled:
    """A model with the options it draws by: the GAN in one step without guidance, the diffusion model as it is audited elsewhere.

    Args:
        model: the model.
    """

    def __init__(self, model: GAN | Denoiser) -> None:
        """Choose the options."""
        self.model = model
        self.steps, self.guidance = (1, 1.0) if isinstance(model, GAN) else (NEAREST.steps, NEAREST.guidance)

    def draw(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
        """Draw images: uint8, (n, 3, 64, 64)."""
        images = self.model.generate(prompts, seeds, batch=32, steps=self.steps, guidance=self.guidance)
        return (images * 255).round().to(torch.uint8).cpu().numpy()


def pixels(works: Works) -> np.ndarray:
    """Return the pictures of works: uint8, (n, 3, 64, 64)."""
    return np.ascontiguousarray(works.pixels(64).transpose(0, 3, 1, 2))


def captions(works: Works) -> list[str]:
    """Return the first caption of every work."""
    return [found[0] for found in works.column("captions")]


def figure(metric: Metric) -> dict[str, Any]:
    """Return what is kept of a metric."""
    found = {name: getattr(metric, name) for name in ("value", "low", "high", "chance")}
    return {name: None if value is None else round(value, 4) for name, value in found.items()} | {"n": metric.n}


def share(hits: int, n: int) -> dict[str, Any]:
    """Return a share with Wilson's interval."""
    low, high = wilson(hits, n)
    return {"value": round(hits / max(n, 1), 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def audited(gan: GAN, works: Works, judge: CrossJudge, folder: Path) -> dict[str, Any]:
    """Ask for works by their captions; return the shares called memorised."""
    record = nearest.audit(gan, works, replace(NEAREST, steps=1, guidance=1.0), judge=judge, seed=SEED, folder=folder).record
    return {metric.name: figure(metric) for metric in record.metrics}


def untargeted(sampled: Sampled, works: Works, judge: CrossJudge, samples: int) -> dict[str, Any]:
    """Draw under captions as they come in training, and count the works that any sample is a copy of; and how far samples are from works unseen."""
    copies, splits = np.array(works.column("copies")), np.array(works.column("split"))
    ordinary = np.array([canary is None for canary in works.attribute("canary")])
    seen = (splits == "member") & (copies > 0)
    never = ~seen
    tuning = works.where(lambda row: row["split"] == "calibration")
    rule = calibrate(
        sampled.draw(captions(tuning), [derive(SEED, "rule", name) for name in tuning.column("id")]),
        pixels(tuning),
        judge,
        false_positives=RATE,
        agreement=2,
    )
    chances = np.where(seen, copies, 0)
    asked = numpy_generator(SEED, "untargeted").choice(len(works), samples, p=chances / chances.sum())
    texts = captions(works)
    made = looks(sampled.draw([texts[row] for row in asked], [derive(SEED, "untargeted", number) for number in range(samples)]), judge)
    originals = looks(pixels(works), judge)
    hits = np.zeros((samples, len(works)), bool)
    for start in range(0, samples, 250):
        rows = slice(start, start + 250)
        likeness = (
            -tiled_l2_pairs(made.pixels[rows], originals.pixels),
            1 - hamming_pairs(made.hashes[rows], originals.hashes),
            cosine_pairs(made.features[rows], originals.features),
        )
        hits[rows] = rule.flags(np.stack(likeness, -1))
    found, once = hits.any(0), np.unique(asked)
    groups = {"never trained": never & (splits != "calibration")}
    groups |= {f"k{dose}": seen & (copies == dose) & (~ordinary if dose > 1 else True) for dose in sorted(set(copies[seen].tolist()))}
    groups |= {"asked for": np.isin(np.arange(len(works)), once)}
    fresh, real = originals.features[never & ordinary], originals.features[seen & ordinary]
    of_ordinary = made.features[ordinary[asked]]
    return {
        "samples": samples,
        "copies": share(int(hits[:, seen].any(1).sum()), samples),
        "copies of the work asked for": share(int(hits[np.arange(samples), asked].sum()), samples),
        "works": {name: share(int((found & mask).sum()), int(mask.sum())) for name, mask in groups.items()},
        "rule": {"thresholds": [round(value, 4) for value in rule.values], "flagged of calibration works": round(rule.achieved, 4), "n": rule.n},
        "kid": {
            "drawn to works never trained": round(mmd2(of_ordinary, fresh), 5),
            "members to works never trained": round(mmd2(real, fresh), 5),
            "halves of the members": [round(value, 5) for value in floor(real, seed=SEED)],
            "drawn": len(of_ordinary),
            "works": len(fresh),
        },
    }


def told(model: GAN | Denoiser, works: Works, folder: Path) -> dict[str, Any]:
    """Say how well scores tell works trained from works never trained."""
    groups = choose(works, MEMBERSHIP, SEED)
    if isinstance(model, GAN):
        rows = [row for group in groups for row in group.works]
        chosen = works.take(rows)
        scores = model.scores(torch.from_numpy(pixels(chosen)) / 255, captions(chosen)).double().numpy()
        evidence = Evidence(groups, rows, {"discriminator": scores}, known={"discriminator": "discriminator's score"})
    else:
        evidence = membership.measure(model, works, groups, MEMBERSHIP, seed=SEED, folder=folder)._replace(known=NAMES)
    found = separate(evidence, copies=COPIES, rate=RATE, what="works")
    return {"rate": round(found.rate, 4), "never": len(found.never)} | {metric.name: figure(metric) for metric in found.metrics}


def quality(gan: GAN, works: Works, judge: CrossJudge) -> dict[str, Any]:
    """Let the judge name what is drawn for pairs trained once and for pairs never trained, beside its answers on the real works."""
    model: Any = gan
    splits = {"trained_pairs": "member", "untrained_pairs": "holdout"}
    return {name: judged(model, judge, drawn(works, split, PROMPTS), IMAGES, steps=1) for name, split in splits.items()}


def before(base: Denoiser, works: Works) -> dict[str, Any]:
    """Return what `emoji64.py` measured of the diffusion model.

    Raises:
        Mismatch: that was another model, other works or another audit.
    """
    stored = json.loads((HERE / "emoji64.json").read_text())
    audit = stored["nearest_audit"]
    same = {"images": NEAREST.images, "members": NEAREST.members, "false_positive_rate": NEAREST.false_positive_rate}
    if (stored["model"], stored["works"]) != (base.digest, works.digest) or not same.items() <= audit["settings"].items():
        raise Mismatch("`emoji64.json` was measured on another model, on other works or otherwise.", "Run `benchmarks/emoji64.py` first.")
    keys = ("value", "low", "high", "n")
    shares = {name: dict(zip(keys, row, strict=True)) for name, row in audit.items() if name != "settings"}
    return {"quality": {name: stored[name] for name in ("trained_pairs", "untrained_pairs")}, "nearest": shares}


def picture(models: dict[str, GAN | Denoiser], works: Works) -> Any:
    """Draw works beside what the models make of their captions: four with 64 copies, two with 16, two with 4, four with one, two never shown."""
    doses, arms = works.attribute("dose"), works.attribute("canary")
    copies, splits, texts, ids = works.column("copies"), works.column("split"), captions(works), works.column("id")

    def of(wanted: Callable[[int], bool], count: int) -> list[int]:
        return sorted((row for row in range(len(works)) if wanted(row)), key=lambda row: derive(SEED, "picture", ids[row]))[:count]

    rows = [row for dose, count in (("64", 4), ("16", 2), ("4", 2)) for row in of(lambda r, d=dose: arms[r] == "one" and doses[r] == d, count)]
    rows += of(lambda r: splits[r] == "member" and copies[r] == 1 and arms[r] is None, 4) + of(lambda r: splits[r] == "holdout", 2)
    lines, labels = [[works.image(row) for row in rows]], ["work"]
    for name, model in models.items():
        for number in range(2):
            made = Sampled(model).draw([texts[row] for row in rows], [derive(SEED, "picture", ids[row], number) for row in rows])
            lines.append(to_pictures(torch.from_numpy(made) / 255))
            labels.append(f"{name}, seed {number + 1}")
    heads = [f"{copies[row]} x" if copies[row] else "never" for row in rows]
    return grid(lines, labels, heads, scale=1)


def kept(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """Return what an earlier run left under a name, or make it and leave it."""
    path = folder / f"{name}.json"
    if not path.exists():
        start = time.monotonic()
        found = make()
        write_atomically(path, json.dumps(found).encode())
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return json.loads(path.read_text())


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/gan"))
    parser.add_argument("--steps", type=int, default=GANSettings().schedule.steps)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--augmented", action="store_true", help="the discriminator sees works and drawings shifted and cut")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    base, works, judge = assay.load("emoji64"), assay.builtin_works(), CrossJudge.load(zoo("judge"))
    settings = GANSettings(augmented=options.augmented)
    settings = replace(settings, schedule=replace(settings.schedule, steps=options.steps))
    started, first = time.monotonic(), []

    def show(step: int, total: int, numbers: dict[str, float]) -> None:
        first.append(step - 1) if not first else None
        if step % 50 == 0 or step == total:
            pace = (time.monotonic() - started) / (step - first[0])
            print(json.dumps({"step": step, "total": total, "seconds_per_step": round(pace, 3)} | numbers), file=sys.stderr, flush=True)

    gan, run = train(base, works, settings, seed=SEED, folder=options.folder / "training", progress=show)
    gan.save(options.folder)
    recipe = Recipe.load(zoo("emoji64")).unet.schedule
    exposures = sum(shown(works).column("copies"))
    models: dict[str, GAN | Denoiser] = {"gan": gan, "emoji64": base}
    shared = {"works": works.digest, "judge": judge.digest, "seed": SEED, "nearest": asdict(NEAREST), "copies": COPIES, "samples": options.samples}
    result: dict[str, Any] = shared | {"models": {}}
    for name, model in models.items():
        folder = options.folder / f"{name}-{digest_of([model.digest, shared])[:12]}"
        sampled = Sampled(model)
        seen = options.steps * settings.schedule.batch if model is gan else recipe.steps * recipe.batch
        networks = [gan.generator, gan.discriminator] if model is gan else [base.unet]
        result["models"][name] = {
            "digest": model.digest,
            "parameters": [sum(tensor.numel() for tensor in network.parameters()) for network in networks],
            "works_shown": seen,
            "epochs": round(seen / exposures, 1),
            "drawn_by": {"steps": sampled.steps, "guidance": sampled.guidance},
            "untargeted": kept(folder, "untargeted", lambda s=sampled: untargeted(s, works, judge, options.samples)),
            "membership": kept(folder, "membership", lambda m=model, f=folder: told(m, works, f)),
        }
    result["models"]["emoji64"] |= before(base, works)
    folder = options.folder / f"gan-{digest_of([gan.digest, shared])[:12]}"
    result["models"]["gan"] |= {
        "quality": kept(folder, "quality", lambda: quality(gan, works, judge)),
        "nearest": kept(folder, "nearest", lambda: audited(gan, works, judge, folder)),
    }
    result["models"]["gan"] |= {"settings": asdict(settings), "hinge": round(float(np.mean(run.losses[-200:])), 4)}
    (HERE / "gan.png").write_bytes(small_png(picture(models, works)))
    write_atomically(HERE / "gan.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
