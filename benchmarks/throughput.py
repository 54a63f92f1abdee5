"""Images a second of the training loop beside plain fp32 diffusers, in one run, and whether their losses agree: `benchmarks/throughput.json`.

    python benchmarks/throughput.py [--steps 120]

The plain loop is that of the public text-to-image example: fp32, diffusers' own attention, autoencoder and text encoder run in every step. It draws
the same works, captions, noise and timesteps as ours, so the losses differ by precision alone. "cached" is ours in fp32: what caching brings.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler

import assay
from assay.noise import derive, generator
from assay.training.loop import trainable
from assay.training.precision import native
from assay.training.unet import UNetSettings, build, train

HERE = Path(__file__).parent
SEED = 20261123
WORKS = 512
WARM = 5


def fresh(settings: UNetSettings):
    """Make the same untrained UNet each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(SEED, "unet"))
        return build(settings, latent_channels=4, latent_size=16, text_width=192)


def plain(denoiser: assay.Denoiser, pixels: torch.Tensor, captions: list[str], settings: UNetSettings, times: list[float]) -> list[float]:
    """Train as the public example does, on the draws of `assay.training.unet.train`."""
    pipeline, unet, scheduler = denoiser.pipeline, fresh(settings).train(), DDPMScheduler.from_config(denoiser.pipeline.scheduler.config)
    schedule, batch, losses = settings.schedule, settings.schedule.batch, []
    optimizer = torch.optim.AdamW(unet.parameters(), schedule.learning_rate, betas=(0.9, schedule.beta2), weight_decay=schedule.weight_decay)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = snr.clamp(settings.floor, settings.gamma) / snr
    for step in range(schedule.steps):
        rng = generator(SEED, "step", step)
        rows = torch.randint(len(pixels), (batch,), generator=rng)
        torch.rand(batch, generator=rng)  # which caption: there is one
        empty = (torch.rand(batch, generator=rng) < settings.empty).tolist()
        t = ((torch.arange(batch) + torch.rand(batch, generator=rng)) / batch * 1000).long().clamp(max=999)
        texts = ["" if dropped else captions[row] for row, dropped in zip(rows.tolist(), empty, strict=True)]
        with torch.no_grad():
            clean = pipeline.vae.encode(pixels[rows] * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
            tokens = pipeline.tokenizer(texts, padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt")
            states = pipeline.text_encoder(tokens.input_ids)[0]
        noise = torch.randn(clean.shape, generator=rng)
        predicted = unet(scheduler.add_noise(clean, noise, t), t, states).sample
        loss = ((predicted - noise).square().mean((1, 2, 3)) * weights[t]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trainable(unet).values()), schedule.clip)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        times.append(time.monotonic())
    return losses


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    steps = parser.parse_args().steps
    torch.set_flush_denormal(True)
    denoiser = assay.load("emoji64")
    works = assay.builtin_works().where(lambda row: row["split"] == "member" and row["copies"] == 1)
    works = works.take(range(0, len(works), len(works) // WORKS)[:WORKS])
    pixels = torch.from_numpy(works.pixels(64)).permute(0, 3, 1, 2).float() / 255
    captions = [group[0] for group in works.column("captions")]
    latents = torch.cat([denoiser.latents(pixels[start : start + 64]) for start in range(0, len(pixels), 64)])
    states = denoiser.conditioning(["", *captions]).states
    settings = UNetSettings()
    settings = replace(settings, schedule=replace(settings.schedule, steps=steps, warmup=20))
    scheduler = DDPMScheduler.from_config(denoiser.pipeline.scheduler.config)
    epoch = [(row, [row + 1]) for row in range(len(pixels))]

    def ours(precision: str, times: list[float]) -> list[float]:
        chosen = replace(settings, precision=precision)
        return train(fresh(chosen), latents, states, epoch, chosen, scheduler, seed=SEED, progress=lambda *_: times.append(time.monotonic())).losses

    loops = {
        "plain": lambda times: plain(denoiser, pixels, captions, settings, times),
        "cached": lambda times: ours("fp32", times),
        "ours": lambda times: ours(native(), times),
    }
    result: dict[str, object] = {"steps": steps, "batch": settings.schedule.batch, "threads": torch.get_num_threads(), "precision": native()}
    rate, last = {}, {}
    for name, loop in loops.items():
        times: list[float] = []
        losses = loop(times)
        seconds = np.diff(times)[WARM:]
        rate[name], last[name] = settings.schedule.batch / float(np.median(seconds)), float(np.mean(losses[-30:]))
        result[name] = {
            "images_per_second": round(rate[name], 1),
            "seconds_per_step": {"median": round(float(np.median(seconds)), 3), "p5_p95": np.quantile(seconds, [0.05, 0.95]).round(3).tolist()},
            "loss_of_last_30_steps": round(last[name], 5),
            "losses": [round(value, 5) for value in losses],
        }
        print(json.dumps({name: result[name]})[:200], flush=True)
    has = torch.cpu.get_capabilities()
    result["times_plain"] = {name: round(rate[name] / rate["plain"], 2) for name in rate}
    result["loss_over_plain"] = {name: round(last[name] / last["plain"], 4) for name in rate}
    result["bar"] = ">= 3 where the processor has bf16 matrix units" + ("" if has.get("amx_bf16") else ": not measurable here, it has none")
    result["processor"] = {"name": has.get("cpu_name"), **{name: has.get(name) for name in ("avx2", "avx512_bf16", "amx_bf16")}}
    (HERE / "throughput.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
