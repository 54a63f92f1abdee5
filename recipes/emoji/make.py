"""From four npm packages to `zoo/`: one resumable command, counted in steps.

    python recipes/emoji/make.py BUILD [--stage NAME] [--until STEP] [--device DEVICE]

Stages, each skipped when its result is in BUILD: works, vae, clip, unet, judge. `promote.py` turns BUILD into the package's zoo. Two more
come after that: `--stage emoji32` trains the small model on the works, the text encoder and the autoencoder that are in the zoo, `--stage decoder`
that autoencoder's decoder further on what the UNet makes. That decoder is not in the zoo: `benchmarks/decoder.json` says what it would change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from assay.denoiser import Denoiser
from assay.judge import CrossJudge, Judge, make_folds
from assay.loading import load, locate, quiet
from assay.noise import derive
from assay.training import clip as clips
from assay.training import judge as judges
from assay.training import unet as unets
from assay.training import vae as vaes
from assay.training.loop import Schedule
from assay.training.precision import Precision, native
from assay.training.recipe import Recipe, untrained
from assay.training.selection import shown
from assay.training.world import EMOJI32, SIDE32
from assay.verbs.session import builtin_works
from assay.works import Works
from collect import PACKAGES, SIZE
from collect import build as collect

SEED = 0
VAE = vaes.VAESettings()
CLIP = clips.CLIPSettings()
UNET = unets.UNetSettings()
JUDGE = judges.JudgeSettings()
DECODER = Schedule(steps=1200, batch=16, learning_rate=1e-3, warmup=50, decay=0.6)
"""How long and how fast the decoder is trained on denoised latents."""
LATER = ("emoji32", "decoder")
"""Stages that begin with the model in the zoo."""
CORE = 3
"""Times that CLIP sees a core work for once that it sees another."""
NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def progress(stage: str, log: Path):
    """Return a callback that prints and logs a line every 20 steps."""
    start = time.monotonic()
    first: list[int] = []

    def show(step: int, total: int, numbers: dict[str, float]) -> None:
        first.append(step) if not first else None
        if step % 20 == 0 or step == total:
            pace = (time.monotonic() - start) / (step - first[0] + 1)
            line = {"stage": stage, "step": step, "total": total, **{k: round(v, 5) for k, v in numbers.items()}, "seconds_per_step": round(pace, 3)}
            print(json.dumps(line), file=sys.stderr, flush=True)
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")

    return show


def works(folder: Path) -> Works:
    """Collect the works, or read them."""
    path = folder / "works.parquet"
    if not path.exists():
        collect(folder / "packages", SEED).write(path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return Works.read(path)


def save(model: AutoencoderKL | CLIPModel, target: Path) -> None:
    """Save a model in one step: a stage is done once its folder is there."""
    part = target.with_name(target.name + ".part")
    model.save_pretrained(part)
    part.rename(target)


def members(all_works: Works) -> Works:
    """Return what the tokenizer, the autoencoder and the text encoder see: members of every subset but skin-tone variants."""
    return all_works.where(lambda row: row["split"] == "member" and row["attributes"]["subset"] != "fairness")


def make_vae(folder: Path, device: str = "cpu") -> AutoencoderKL:
    """Train the autoencoder, or load it."""
    target = folder / "vae"
    if not target.exists():
        vae = _initialised(lambda: vaes.build(VAE, SIZE), "vae").to(device)
        seen = members(works(folder))
        pixels, shared = seen.pixels(SIZE), {"seed": SEED, "plan": f"{VAE!r} on {seen.digest}"}
        vaes.train(vae, pixels, VAE, folder=folder / "vae-training", progress=progress("vae", folder / "log.jsonl"), **shared)
        vaes.refine(vae, pixels, VAE, folder=folder / "decoder-training", progress=progress("decoder", folder / "log.jsonl"), **shared)
        save(vae, target)
    return AutoencoderKL.from_pretrained(target).eval().requires_grad_(False)


def make_clip(folder: Path, device: str = "cpu") -> tuple[CLIPModel, CLIPTokenizer]:
    """Train tokenizer and CLIP, or load them."""
    target = folder / "clip"
    seen = members(works(folder))
    if not (folder / "tokenizer").exists():
        part = folder / "tokenizer.part"
        clips.train_tokenizer([caption for group in seen.column("captions") for caption in group], CLIP, part)
        part.replace(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if not target.exists():
        model = _initialised(lambda: clips.build(CLIP, len(tokenizer), SIZE), "clip").to(device)
        settings = replace(CLIP, precision=native(device))
        clips.train(
            model,
            tokenizer,
            seen.pixels(SIZE),
            seen.column("captions"),
            settings,
            seed=SEED,
            rows=[row for row, subset in enumerate(seen.attribute("subset")) for _ in range(CORE if subset == "core" else 1)],
            folder=folder / "clip-training",
            plan=f"{settings!r} on {seen.digest}, core {CORE}",
            progress=progress("clip", folder / "log.jsonl"),
        )
        save(model, target)
    return CLIPModel.from_pretrained(target).eval().requires_grad_(False), tokenizer


def blank(folder: Path) -> Denoiser:
    """Put the trained autoencoder and text encoder, rounded to fp16 as they ship, together with an untrained UNet, to train it in."""
    vae, (clip, tokenizer) = make_vae(folder), make_clip(folder)
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    levels = len(VAE.widths)
    unet = unets.build(UNET, latent_channels=VAE.latent_channels, latent_size=SIZE // 2 ** (levels - 1), text_width=CLIP.width)
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": DDIMScheduler(**NOISE)}
    vae.half().float()
    text_encoder.half().float()
    pipeline = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return Denoiser(pipeline, "emoji64")


def recipe(folder: Path, steps: int, precision: Precision, steps_done: int = 0) -> Recipe:
    """Return the recipe as it is saved in the model folder."""
    unet = replace(UNET, precision=precision, schedule=replace(UNET.schedule, steps=steps))
    clip = asdict(replace(CLIP, precision=precision)) | {"core": CORE}
    about = {"vae": asdict(VAE), "clip": clip, "noise": NOISE, "packages": PACKAGES, "size": SIZE, "text_encoder": "frozen"}
    return Recipe(SEED, unet, works(folder).digest, steps_done, about)


def make_unet(folder: Path, steps: int, until: int | None, device: str = "cpu") -> None:
    """Train the UNet up to `until`, in bf16 where the device computes in it, and save its average; a later call goes on."""
    show, base = progress("unet", folder / "log.jsonl"), blank(folder)
    base.pipeline.to(device)
    precision = native(device)
    unet, run = recipe(folder, steps, precision).retrain(base, works(folder), until=until, folder=folder / "unet-training", progress=show)
    unet.save_pretrained(folder / "unet.part")
    recipe(folder, steps, precision, run.step).save(folder / "unet.part")
    shutil.rmtree(folder / "unet", ignore_errors=True)
    (folder / "unet.part").rename(folder / "unet")


def make_emoji32(folder: Path, steps: int | None, until: int | None, device: str = "cpu") -> None:
    """Train the small model up to `until` and save it as a whole model folder; a later call goes on."""
    base, table = load("emoji64", device=device), builtin_works(None)
    settings = replace(EMOJI32, precision=native(device), schedule=replace(EMOJI32.schedule, steps=steps or EMOJI32.schedule.steps))
    about = Recipe.load(locate("emoji64")).about | {"size": SIDE32 * 2 ** (len(VAE.widths) - 1), "shared with": "emoji64"}
    made = untrained(base, settings, side=SIDE32, name="emoji32")
    unet, run = Recipe(SEED, settings, table.digest, 0, about).retrain(
        made, table, until=until, folder=folder / "emoji32-training", progress=progress("emoji32", folder / "log.jsonl")
    )
    made.pipeline.unet = unet
    part = folder / "emoji32.part"
    made.pipeline.to(torch.float16).save_pretrained(part)
    Recipe(SEED, settings, table.digest, run.step, about).save(part)
    shutil.rmtree(folder / "emoji32", ignore_errors=True)
    part.rename(folder / "emoji32")


def make_decoder(folder: Path, device: str = "cpu") -> None:
    """Train the decoder further on latents that the model itself denoised, half of every batch, and save the autoencoder; a later call goes on."""
    base, table = load("emoji64", device=device), builtin_works(None)
    vae, seen, told = base.pipeline.vae, members(table), shown(table)
    pixels = told.pixels(SIZE)
    seeds = [derive(SEED, "denoised", work) for work in told.column("id")]
    made = vaes.denoised(base, vaes.encode(vae, pixels), [texts[0] for texts in told.column("captions")], seeds)
    options = {"plan": f"{DECODER!r} of {base.digest}", "progress": progress("decoder", folder / "log.jsonl")}
    settings = replace(VAE, refinement=DECODER)
    vaes.refine(vae, seen.pixels(SIZE), settings, seed=SEED, denoised=(made, pixels), folder=folder / "denoised-training", **options)
    shutil.rmtree(folder / "decoder", ignore_errors=True)
    save(vae, folder / "decoder")


def make_judge(folder: Path, until: int | None = None, device: str = "cpu") -> None:
    """Train two judges on the core works of every split, by fold, up to step `until`; a later call goes on."""
    core = works(folder).where(lambda row: row["attributes"]["subset"] == "core")
    titles, groups, styles = core.column("title"), core.column("group"), core.column("style")
    folds = make_folds(titles, styles, SEED)
    trained: list[Judge] = []
    for fold in (0, 1):
        target = folder / "judge" / str(fold)
        if not (target / "judge.json").exists():
            rows = [row for row, pair in enumerate(zip(titles, styles, strict=True)) if folds[pair] == fold]
            named = [[column[row] for row in rows] for column in (titles, groups, styles)]
            judge = judges.train(
                core.take(rows).pixels(SIZE),
                *named,
                JUDGE,
                seed=derive(SEED, "judge", fold),
                folder=folder / f"judge-training-{fold}",
                plan=f"{JUDGE!r} fold {fold} of {core.digest}",
                until=until,
                device=device,
                progress=progress(f"judge-{fold}", folder / "log.jsonl"),
            )
            if judge is None:
                continue
            judge.save(target)
        trained.append(Judge.load(target))
    if len(trained) == 2:
        both = CrossJudge(trained, folds, dict(zip(titles, groups, strict=True)))
        both.save(folder / "judge")
        report_judge(both, core, folder / "judge" / "accuracy.json")


def report_judge(judge: CrossJudge, core: Works, path: Path) -> None:
    """Write what the judges say of real works that they have not seen: the reference that ratios are taken to."""
    images = torch.from_numpy(core.pixels(SIZE)).permute(0, 3, 1, 2) / 255
    found = {}
    for head, verdict in judge.score(images, core.column("title"), core.column("style")).items():
        among_five = float(verdict.among_five[verdict.known].mean())
        found[head] = {"accuracy": verdict.accuracy(), "among_five": among_five, "known": int(verdict.known.sum()), "of": len(core)}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), file=sys.stderr)


def _initialised(make, name: str):
    """Build a module with initial weights that depend on the recipe's seed and `name` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(SEED, name))
        return make()


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--stage", choices=["works", "vae", "clip", "unet", "judge", *LATER], action="append")
    parser.add_argument("--steps", type=int, help="steps of the UNet, or of emoji32; a longer training shares its beginning with a shorter one")
    parser.add_argument("--until", type=int, help="stop the UNet, the judges and emoji32 after this step; a later call goes on")
    parser.add_argument("--device", default="cpu", help="a torch device")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    quiet()
    stages = {
        "works": works,
        "vae": lambda folder: make_vae(folder, arguments.device),
        "clip": lambda folder: make_clip(folder, arguments.device),
        "unet": lambda folder: make_unet(folder, arguments.steps or UNET.schedule.steps, arguments.until, arguments.device),
        "judge": lambda folder: make_judge(folder, arguments.until, arguments.device),
        "emoji32": lambda folder: make_emoji32(folder, arguments.steps, arguments.until, arguments.device),
        "decoder": lambda folder: make_decoder(folder, arguments.device),
    }
    arguments.build.mkdir(parents=True, exist_ok=True)
    for name in arguments.stage or [name for name in stages if name not in LATER]:
        stages[name](arguments.build)


if __name__ == "__main__":
    main()
