"""Every command with its options and its help, as people type them. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from assay.cli.options import MethodCommand
from assay.cli.progress import Display, printable


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has."""
    for option in reversed([
        click.option(
            "--out",
            type=click.Path(),
            help="Folder to write to and to resume in, of one plan.  [default: under out/, by command and method; of run, assay-out]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout."),
        click.option("--quiet", is_flag=True, help="No talk on stderr."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random."),
        click.option("--device", default="cpu", show_default=True, help="A torch device: cpu, cuda, mps."),
        click.option("--dry-run", is_flag=True, help="Print the plan with passes, time and memory; do nothing."),
        click.option("--fail-on", multiple=True, metavar="'METRIC>VALUE'", help="Exit with 3 if the record meets this, in quotes; repeatable."),
    ]):
        command = option(command)
    return command


patch_option = click.option("--patch", "patches", multiple=True, metavar="P[:SCALE]", help="Patch file or folder, with a scale; repeatable.")
model_argument = click.argument("model", default="emoji64")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="assay")
def cli() -> None:
    """What did a text-to-image model memorise, can it be taken out, and at what cost?

    MODEL is emoji64 or emoji32 (built in), a diffusers folder, or a hub id. Exit codes: 0 done, 1 a bug of assay, 2 something to mend (one
    paragraph says what), 3 a --fail-on was met, 130 interrupted.
    """


@cli.command()
@model_argument
@click.option("--prompt", help="One prompt.")
@click.option("--prompts", type=click.Path(), help='JSONL of {"id", "prompt", "negative"?, "seed"?}.')
@click.option("--images", type=click.IntRange(1), default=1, show_default=True, help="Images per prompt.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="DDIM steps.")
@click.option("--guidance", type=float, default=4.0, show_default=True, help="Scale of classifier-free guidance.")
@patch_option
@shared
def generate(**options: Any) -> None:
    """Generate images from prompts, with or without patches.

    Example: assay generate --prompt "cat face, noto style" --images 4
    """
    run_verb("generate", options)


@cli.command(cls=MethodCommand)
@model_argument
@click.option("--method", required=True, help="How: see `assay methods erase`.")
@click.option("--concept", required=True, help="What to take out; several are separated by `;`.")
@click.option("--kind", type=click.Choice(["style", "object", "work", "free"]), help="What the concept is; guessed for works known to assay.")
@click.option("--anchor", help="What takes its place; the nearest concept by default.")
@click.option("--preserve", multiple=True, help="What must stay; repeatable.")
@click.option("--preset", help="A named set of settings.  [default: small for the built-in model, else the paper's for the kind of concept]")
@click.option("--works", type=click.Path(), help="Works that say which styles and titles there are.  [default: those of the built-in model]")
@patch_option
@shared
def erase(**options: Any) -> None:
    """Take a concept, style or work out of a model; the result is a patch.

    Example: assay erase --method uce --concept twemoji --kind style
    """
    run_verb("erase", options)


@cli.command(cls=MethodCommand)
@model_argument
@click.option("--method", required=True, help="How: see `assay methods attack`.")
@click.option("--concept", required=True, help="What was taken out.")
@click.option("--kind", type=click.Choice(["style", "object"]), help="What the concept is; guessed for works known to assay.")
@click.option("--preset", help="A named set of settings: paper or small.  [default: small for the built-in model, else paper]")
@click.option("--works", type=click.Path(), help="Works that show the concept.  [default: those of the built-in model]")
@click.option("--each", type=click.IntRange(1), default=16, show_default=True, help="Prompts attacked.")
@click.option("--image-steps", type=click.IntRange(1), default=20, show_default=True, help="DDIM steps of the images that are judged.")
@click.option("--guidance", type=float, default=4.0, show_default=True, help="Scale of classifier-free guidance of the images that are judged.")
@click.option("--budget", type=float, metavar="SECONDS", help="Stop searching after so long and judge what was found.")
@click.option("--reference", metavar="P|MODEL", help="Attack this too, a model trained without the concept or its patch: the floor of success.")
@click.option("--judge", help="Who judges: cross, centroid or the folder of a judge.  [default: cross for the built-in model, else centroid]")
@patch_option
@shared
def attack(**options: Any) -> None:
    """Try to bring back what was taken out of a model: does it stay out?

    Example: assay attack --method unlearn_diff_atk --concept twemoji --kind style --patch out/erase-uce
    """
    run_verb("attack", options)


@cli.command(cls=MethodCommand)
@model_argument
@click.option("--works", type=click.Path(), help="The works to look for.  [default: those of the built-in model]")
@click.option("--method", help="How: see `assay methods audit`.  [default: nearest; with --mine, mine]")
@click.option("--preset", help="A named set of settings: paper or small.  [default: small]")
@click.option("--mine", type=click.Path(), help="Was my work in it? A folder of your own pictures, or whatever `works import` reads.")
@click.option(
    "--unseen", type=click.Path(), help="Imported works that the model never saw, beside --mine.  [default: those of --works that were never shown]"
)
@patch_option
@shared
def audit(**options: Any) -> None:
    """Find out what a model memorised of a set of works.

    Example: assay audit --method nearest
    """
    run_verb("audit", options)


@cli.command()
@model_argument
@click.option("--prompts", type=click.Path(), help="JSONL of prompts.  [default: a balanced set from the works]")
@click.option("--concept", help="The concept whose presence is the target.")
@click.option("--kind", type=click.Choice(["style", "object"]), help="What the concept is.")
@click.option("--against", help="The model to compare with.  [default: MODEL without patches]")
@click.option("--reference", type=click.Path(), help="Measure this patch of a model trained without the concept beside.  [default: what ships]")
@click.option("--works", type=click.Path(), help="Works that say which styles and titles there are.")
@click.option("--each", type=click.IntRange(1), default=64, show_default=True, help="Prompts drawn of target, neighbours and everything else.")
@click.option("--images", type=click.IntRange(1), default=1, show_default=True, help="Images per prompt.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="DDIM steps.")
@click.option("--guidance", type=float, default=4.0, show_default=True, help="Scale of classifier-free guidance.")
@patch_option
@shared
def evaluate(**options: Any) -> None:
    """Measure what a model with patches can still do: target, neighbours, everything else, and its distance from the base.

    Example: assay evaluate --concept twemoji --patch out/erase-uce
    """
    run_verb("evaluate", options)


@cli.command()
@model_argument
@click.option("--reference", metavar="NAME", help="A training of the built-in world: again, no-twemoji, no-noto, no-families, deduplicated.")
@click.option("--keep", multiple=True, metavar="EXPR", help="Train only on works that fit, such as `style=noto`; repeatable.")
@click.option("--drop", multiple=True, metavar="EXPR", help="Leave out works that fit, such as `title~cat, group=cat-face, canary`; repeatable.")
@click.option("--drop-ids", type=click.Path(), help="Leave out the works of this file: one id a line.")
@click.option("--once", is_flag=True, help="Show every work once an epoch, however many copies it has.")
@click.option("--swap", type=click.IntRange(0), default=0, show_default=True, help="Exchange so many works, drawn at random, for others never shown.")
@click.option("--works", type=click.Path(), help="The works the model was trained on.  [default: those of the built-in model]")
@click.option("--steps", type=click.IntRange(1), help="Steps of the training.  [default: the recipe's, times the share of exposures that is left]")
@click.option("--until", type=click.IntRange(1), help="Stop after this step; the same command goes on.")
@shared
def retrain(**options: Any) -> None:
    """Train a model's UNet again from scratch by its own recipe, on other works or with another seed; the result is a patch.

    EXPR is FIELD=VALUE or FIELD~WORDS (whole words) with commas between, any of which may fit. Fields: title, style, group, creator, license,
    tag, id, and whatever attributes the works declare; `canary` alone means every canary.

    Example: assay retrain --drop style=noto --out out/no-noto
    """
    run_verb("retrain", options)


@cli.command()
@click.argument("subject", type=click.Choice(["world", "erasure", "attacks"]), default="world")
@click.option("--results", type=click.Path(), default="benchmarks", show_default=True, help="Folder of stored results.")
@click.option(
    "--chapter", multiple=True, metavar="NAME", help="Of world: only this chapter: references, judges, digits, duplicates, emoji32, gan; repeatable."
)
@click.option("--retrain", is_flag=True, help="Of world: train and measure anew first: hours on two cores; goes on where it was.")
@click.option("--measure", is_flag=True, help="Of erasure and attacks: make the cells that are not there yet: hours; goes on where it was.")
@click.option("--methods", metavar="A,B", help="Only these erasers; NAME@PRESET has another preset, A+B is several at once.  [default: all]")
@click.option("--attacks", metavar="A,B", help="Of attacks: only these.  [default: all]")
@click.option("--concept", multiple=True, help="Of erasure and attacks: only this concept; repeatable.  [default: those of the built-in world]")
@click.option("--kind", type=click.Choice(["style", "object"]), help="Of erasure and attacks: what a concept of your own works is.")
@click.option("--limit", type=click.FloatRange(min=0), metavar="SECONDS", help="Of erasure and attacks: stop after so long, at the end of a cell.")
@click.option(
    "--patch",
    "patches",
    multiple=True,
    metavar="NAME=PATH",
    help="Of erasure and attacks: a model to compare with: no-noto, no-families...; of erasure also again.",
)
@click.option("--model", default="emoji64", show_default=True, help="Of erasure and attacks: the model.")
@click.option("--works", type=click.Path(), help="Of erasure and attacks: works that say which styles and titles there are.")
@shared
def bench(**options: Any) -> None:
    """Put what was measured side by side, as one report, from stored results or anew.

    Example: assay bench erasure --measure --methods uce,esd --concept cats --limit 600
    """
    run_verb("bench", options)


@cli.group()
def works() -> None:
    """Import works, describe them, find near-duplicates."""


@works.command("import")
@click.argument("source", type=click.Path())
@click.option("--license", "licence", help="Licence of works that declare none.")
@click.option("--creator", help="Creator of works that declare none.")
@click.option("--size", type=click.IntRange(16), help="Scale and cut images to this side in pixels.")
@shared
def works_import(**options: Any) -> None:
    """Import works from a folder with captions, JSONL, CSV, Parquet or a saved Hugging Face dataset.

    Example: assay works import my-art/ --license CC-BY-4.0 --out my-works
    """
    run_verb("works_import", options)


@works.command("info")
@click.argument("path", required=False, type=click.Path())
@shared
def works_info(**options: Any) -> None:
    """Describe works: splits, styles, creators, licences.

    Example: assay works info my-works
    """
    run_verb("works_info", options)


@works.command("duplicates")
@click.argument("path", required=False, type=click.Path())
@click.option("--threshold", type=float, default=0.05, show_default=True, help="Largest root mean square difference of 16x16 thumbnails.")
@click.option("--index", type=click.Path(), help="Folder that keeps thumbnails and duplicates: next time only new works are read and compared.")
@shared
def works_duplicates(**options: Any) -> None:
    """Find near-duplicate works.

    Example: assay works duplicates my-works --index my-works.index
    """
    run_verb("works_duplicates", options)


@cli.group()
def patch() -> None:
    """Describe, combine, fuse and export patches."""


@patch.command("info")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@shared
def patch_info(**options: Any) -> None:
    """Show what patches are.

    Example: assay patch info out/erase-uce
    """
    run_verb("patch_info", options)


@patch.command("add")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@shared
def patch_add(**options: Any) -> None:
    """Make one patch that does what several do.

    Example: assay patch add out/erase-uce out/erase-esd --out out/both
    """
    run_verb("patch_add", options)


@patch.command("scale")
@click.argument("paths", nargs=1, required=True, type=click.Path())
@click.option("--by", type=float, required=True, help="Factor; -1 negates.")
@shared
def patch_scale(**options: Any) -> None:
    """Scale or negate a patch.

    Example: assay patch scale out/erase-uce --by 0.5 --out out/half
    """
    run_verb("patch_scale", options)


@patch.command("compress")
@click.argument("paths", nargs=1, required=True, type=click.Path())
@shared
def patch_compress(**options: Any) -> None:
    """Put the tensors that a patch replaces into 8 bits: a quarter of the size, images hardly moved.

    Example: assay patch compress out/retrain --out no-noto
    """
    run_verb("patch_compress", options)


@patch.command("fuse")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--model", default="emoji64", show_default=True, help="The base model.")
@click.option("--force", is_flag=True, help="Even if a patch was made for another base.")
@shared
def patch_fuse(**options: Any) -> None:
    """Write model and patches as one plain diffusers folder.

    Example: assay patch fuse out/erase-uce --out out/fused
    """
    run_verb("patch_fuse", options)


@patch.command("export-lora")
@click.argument("paths", nargs=1, required=True, type=click.Path())
@shared
def patch_export_lora(**options: Any) -> None:
    """Write a low-rank patch as a LoRA file for diffusers.

    Example: assay patch export-lora out/erase-inverse_lora --out out/lora
    """
    run_verb("patch_export_lora", options)


@cli.command("methods")
@click.argument("subject", required=False)
@shared
def methods_command(**options: Any) -> None:
    """List methods, and on which kinds of pipeline they run.

    Example: assay methods erase
    """
    run_verb("methods", options)


@cli.command()
@click.argument("folder", type=click.Path())
@click.option("--verify", is_flag=True, help="Check every file against the signed manifest.")
@click.option("--key", type=click.Path(), help="The signer's public key, for --verify.")
@shared
def report(**options: Any) -> None:
    """Write report.html from the records in a folder, or verify a signed folder.

    Example: assay report assay-out --verify --key public.pem
    """
    run_verb("report", options)


@cli.command()
@model_argument
@click.option("--works", type=click.Path(), help="The works to look for.  [default: those of the built-in model]")
@click.option("--plan", type=click.Path(), help="TOML file that overrides the plan's numbers.")
@shared
def run(**options: Any) -> None:
    """Assay a model: works, duplicates, memorisation, erasure, attacks on it, quality, and one signed report.

    Example: assay run
    """
    run_verb("run", options)


def run_verb(verb: str, options: dict[str, Any]) -> None:
    """Call the function of a command, show its outcome, and leave with its exit code."""
    as_json, quiet, fail_on = options.pop("as_json"), options.pop("quiet"), options.pop("fail_on")
    display = Display(quiet)
    with contextlib.redirect_stdout(sys.stderr):
        conditions = [import_module("assay.jobs.outcome").Condition.read(text) for text in fail_on]
        outcome = import_module("assay.verbs.commands").COMMANDS[verb](display=display, **options)
        met = [condition.text for condition in conditions if not options["dry_run"] and condition.met(outcome)]
    if as_json:
        click.echo(outcome.to_json())
    else:
        for finding in outcome.record.findings if outcome.record else []:
            display.say(f"- {finding}")
        for text in outcome.extra.get("lines", []):
            click.echo(printable(text))
        if outcome.out is not None and outcome.record is not None:
            click.echo(str(outcome.out / "record.json"))
        for command in outcome.next:
            display.say(f"next: {command}")
    if met:
        display.say(f"failed on {', '.join(met)}")
        sys.exit(3)
