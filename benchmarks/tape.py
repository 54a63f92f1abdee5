"""How fast the tape of membership scores is beside the bare passes that it is made of: `benchmarks/tape.json`.

    python benchmarks/tape.py [--works 64] [--rounds 5]

Bare: the denoiser alone, on prepared latents and encoded captions, in full batches, as many passes as the tape takes of each kind. The tape: the same
works from their pictures to all scores, with autoencoder, captions, noise, every wording, and scores; without gradients and with them. Rounds
alternate, so that both meet the same machine; the figure is the median over rounds of the ratio of passes a second, with the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

import assay
from assay.denoiser import Denoiser
from assay.memorization import membership
from assay.memorization.groups import Group
from assay.memorization.tape import WEIGHTS, play
from assay.noise import normal

HERE = Path(__file__).parent
SEED = 20261125


def bare(denoiser: Denoiser, plain: int, backward: int, each: int, batch: int) -> float:
    """Return the seconds of so many passes without gradients, and so many with, `each` of the latter sharing one backward pass."""
    x = normal(denoiser.latent_shape, list(range(batch)))
    t, told = torch.full((batch,), 300), denoiser.conditioning(["red heart"] * batch)
    weights = list(denoiser.group(WEIGHTS).values())
    start = time.monotonic()
    with torch.no_grad():
        for first in range(0, plain, batch):
            rows = slice(0, min(batch, plain - first))
            denoiser.predict(x[rows], t[rows], told[rows])
    for weight in weights:
        weight.requires_grad_(True)
    for _ in range(0, backward, each):
        torch.autograd.grad(denoiser.predict(x[:each], t[:each], told[:each]).square().mean(), weights)
    for weight in weights:
        weight.requires_grad_(False)
    return time.monotonic() - start


def median(values: list[float]) -> dict[str, float]:
    """Return the median and the range."""
    return {"value": round(statistics.median(values), 4), "low": round(min(values), 4), "high": round(max(values), 4), "n": len(values)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    denoiser, works = assay.load("emoji64"), assay.builtin_works()
    rows = [row for row, split in enumerate(works.column("split")) if split == "calibration"][: options.works]
    groups = [Group("calibration", None, 0, rows)]
    result: dict[str, object] = {"model": denoiser.digest, "works": len(rows), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name, gradient in (("without gradients", False), ("with gradients", True)):
        settings = replace(membership.Settings(**membership.PRESETS["small"]), gradient=gradient)
        passes = membership.passes(settings)
        plain, backward = len(rows) * passes.each(settings.reductions + 2), len(rows) * passes.backward
        bare(denoiser, settings.batch, passes.backward, max(1, passes.backward), settings.batch)  # warm
        alone, whole = [], []
        for _ in range(options.rounds):
            alone.append(bare(denoiser, plain, backward, max(1, passes.backward), settings.batch))
            start = time.monotonic()
            membership.measure(denoiser, works, groups, settings, seed=SEED)
            whole.append(time.monotonic() - start)
        both = plain + backward
        ratios = [one / all_ for one, all_ in zip(alone, whole, strict=True)]
        about = {"bare_passes_per_second": median([both / one for one in alone]), "tape_passes_per_second": median([both / all_ for all_ in whole])}
        result[name] = about | {"passes": plain, "passes_with_gradients": backward, "ratio": median(ratios)}
    captions = [texts[0] for texts in works.take(rows).column("captions")]
    wordings = membership.wordings(captions, groups, works.take(rows).column("id"), settings.reductions, SEED)
    tapes = list(play(denoiser, works, rows, wordings, membership.passes(replace(settings, gradient=False)), seed=SEED))
    start = time.monotonic()
    for tape in tapes:
        membership.scored(tape, settings)
    result["seconds_of_all_scores_from_the_tape"] = round(time.monotonic() - start, 4)
    result["passes_a_work_of_the_calibrated_loss_alone"] = 2 * len(settings.timesteps) * settings.draws
    result["passes_a_work_of_all_scores"] = membership.passes(settings).each(settings.reductions + 2)
    (HERE / "tape.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
