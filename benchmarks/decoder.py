"""What a decoder trained on denoised latents would change in emoji64: `benchmarks/decoder.json` and its picture.

    python benchmarks/decoder.py BUILD/decoder [--prompts 200] [--images 4]

BUILD/decoder is what `recipes/emoji/make.py BUILD --stage decoder` leaves. The same latents are decoded by the decoder that ships and by that one, so
that nothing else differs: of images made for trained pairs, and of the works of those pairs, encoded, which is the most that a denoiser of these
latents can be asked for. Pairs are drawn by a seed of their own: those of `emoji64.py` were looked at while this was tried out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

import assay
from assay.denoiser import to_pictures
from assay.judge import CrossJudge
from assay.reports.pictures import grid, small_png
from assay.training.vae import encode
from assay.verbs.session import zoo
from emoji64 import asked, drawn, psnr, scored

HERE = Path(__file__).parent
SEED, STEPS = 20261128, 20
SHOWN = 8
"""Prompts in the picture."""


def decoded(denoiser: assay.Denoiser, latents: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Return images in [0, 1]: (n, 3, h, w)."""
    with torch.no_grad():
        return torch.cat([denoiser.images(latents[start : start + batch]) for start in range(0, len(latents), batch)])


def main() -> None:
    """Decode the same latents twice, measure both and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    started = time.time()
    denoiser, works, judge = assay.load("emoji64"), assay.builtin_works(), CrossJudge.load(zoo("judge"))
    rows = drawn(works, "member", options.prompts, SEED)
    prompts, seeds = asked(rows, options.images, SEED)
    latents = denoiser.sample(prompts, seeds, steps=STEPS)
    encoded = encode(denoiser.pipeline.vae, rows.pixels(64))
    result: dict[str, Any] = {
        "model": denoiser.digest,
        "works": works.digest,
        "judge": judge.digest,
        "seed": SEED,
        "settings": {"prompts": options.prompts, "images": options.images, "steps": STEPS},
    }
    pictures = []
    for name in ("as it ships", "trained on denoised latents"):
        images = decoded(denoiser, latents)
        result[name] = {
            "vae_psnr_db_on_holdout": psnr(denoiser, works),
            "trained_pairs": scored(images, judge, rows),
            "works_encoded": scored(decoded(denoiser, encoded), judge, rows),
        }
        pictures.append(to_pictures(images[:: options.images][:SHOWN]))
        denoiser.pipeline.vae = AutoencoderKL.from_pretrained(options.decoder).half().float().eval()  # rounded as it would ship
    real = to_pictures(torch.from_numpy(rows.pixels(64)[:SHOWN]).permute(0, 3, 1, 2) / 255)
    sheet = grid([real, *pictures], ["the work", "as it ships", "denoised latents"], prompts[:: options.images][:SHOWN], scale=2)
    (HERE / "decoder.png").write_bytes(small_png(sheet))
    result["seconds"] = round(time.time() - started, 1)
    (HERE / "decoder.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
