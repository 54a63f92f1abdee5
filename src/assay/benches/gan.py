"""The chapter of the GAN: one that learned the works of the diffusion model, asked the same questions beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.record import Metric, Record, Table

QUESTION = "Does a small GAN, trained on the same works, captions and copies, memorise as the diffusion model does?"
CAPTION = "Works, with their copies an epoch, above what the GAN and the diffusion model draw from their captions."
ENDS = ("value", "low", "high", "n")
WORDS = {
    "members": "ordinary members",
    "k0": "canaries never shown",
    "false_positives.calibration": "calibration works (thresholds come from them)",
    "false_positives.holdout": "holdout works",
}


def read(figures: Mapping[str, Any]) -> Record:
    """Make the chapter from what `benchmarks/gan.py` wrote.

    Args:
        figures: its JSON file.
    """
    models = figures["models"]
    metrics = [
        Metric(name=f"{model}.{part}.{name}".replace(" ", "_"), better="lower", chance=row.get("chance"), **{key: row[key] for key in ENDS})
        for model, found in models.items()
        for part, rows in {**{part: found[part] for part in ("nearest", "membership")}, "untargeted": found["untargeted"]["works"]}.items()
        for name, row in rows.items()
        if isinstance(row, Mapping)
    ]
    return Record(
        command="bench",
        question=QUESTION,
        metrics=metrics,
        findings=_findings(models),
        tables=[_trained(models), _nearest(models), _untargeted(models), _membership(models), _quality(models)],
        shows_not=[
            "More than one training of either model: intervals are over works, and another seed of the GAN may memorise otherwise.",
            "Equal quality. Leaks are to be read beside how well a model draws: one that draws nothing copies nothing.",
            "Equal training: how often each was shown the works, and of what size it is, stands in the first table.",
            "That GANs memorise less or more. Thresholds are set anew on what each model draws for works it never saw, at the same rate: where a "
            "model draws blurs, a work called memorised is one that its blur is nearer to than usual, and nobody would call that a copy.",
            "Equal attacks on membership: the discriminator's score is the GAN's own (whoever has only the generator cannot ask it), losses are the "
            "diffusion model's; areas of different attacks say what each lets out by the attack tried.",
            "What the shared autoencoder and text encoder remember: both models stand on them.",
        ],
    )


def _findings(models: Mapping[str, Any]) -> list[str]:
    found = []
    for name, model in models.items():
        doses = {int(key.removeprefix("memorised.k")): row for key, row in model["nearest"].items() if key.removeprefix("memorised.k").isdigit()}
        most = max(doses)
        held = model["nearest"].get("false_positives.holdout")
        found.append(
            f"{name}: of the canaries with {most} copies {_counted(doses[most])} are called memorised, of ordinary members "
            f"{_counted(model['nearest']['memorised.members'])}" + (f", of holdout works {_counted(held)}." if held else ".")
        )
    samples = {name: model["untargeted"] for name, model in models.items()}
    found.append("Of samples under captions as they come in training, copies of a work: " + _each(samples, lambda row: _percent(row["copies"])) + ".")
    found.append(
        "These counts are no equal copies: a model that draws badly what it never saw is given looser thresholds. Tiled l2 counts below "
        + _each(samples, lambda row: f"{-row['rule']['thresholds'][0]:.3f}")
        + "; by the same rules, of works never trained some sample is called a copy of "
        + _each(samples, lambda row: _counted(row["works"]["never trained"]))
        + "."
    )
    named = {name: model["quality"]["trained_pairs"] for name, model in models.items()}
    found.append(
        "The judge names the style asked for in "
        + _each(named, lambda row: f"{row['style']['generated'][0]:.0%}")
        + " of drawings, the title in "
        + _each(named, lambda row: f"{row['title']['generated'][0]:.0%}")
        + f"; in real works {next(iter(named.values()))['style']['real'][0]:.0%} and {next(iter(named.values()))['title']['real'][0]:.0%}."
    )
    return found


def _trained(models: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            " + ".join(f"{count / 1e6:.1f}" for count in model["parameters"]),
            f"{model['works_shown']:,}",
            model["epochs"],
            f"{model['drawn_by']['steps']} steps, guidance {model['drawn_by']['guidance']:g}",
        ]
        for name, model in models.items()
    ]
    heads = ["model", "million parameters (GAN: generator + discriminator)", "works shown", "epochs", "drawn by"]
    return Table(title="What was trained", columns=heads, rows=rows)


def _nearest(models: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(name for model in models.values() for name in model["nearest"]))
    words = {name: WORDS.get(name, WORDS.get(name.removeprefix("memorised."), "canaries, " + name.removeprefix("memorised."))) for name in names}
    rows = [[words[name], *(_full(model["nearest"].get(name)) for model in models.values())] for name in names]
    return Table(title="Works called memorised when asked for by their captions", columns=["works", *models], rows=rows)


def _untargeted(models: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(name for model in models.values() for name in model["untargeted"]["works"]))
    rows = [["samples that are a copy of any work shown", *(_full(model["untargeted"]["copies"]) for model in models.values())]]
    rows += [["samples that are a copy of the work asked for", *(_full(m["untargeted"]["copies of the work asked for"]) for m in models.values())]]
    rows += [
        [f"works that some sample copies: {name}", *(_full(model["untargeted"]["works"].get(name)) for model in models.values())] for name in names
    ]
    return Table(title="Samples under captions as they come in training, compared with all works", columns=["share", *models], rows=rows)


def _membership(models: Mapping[str, Any]) -> Table:
    rows = []
    for name, model in models.items():
        scores = [key.removesuffix(".members.auc") for key in model["membership"] if key.endswith(".members.auc")]
        for score in scores:
            cells = [model["membership"].get(f"{score}.{key}") for key in ("members.auc", "members.flagged", "auc", "tpr", "false_positives")]
            rows.append([name, score, *(_area(cells[0]), _full(cells[1]), _area(cells[2]), _full(cells[3]), _full(cells[4]))])
    heads = ["model", "score", "AUC, ordinary members", "flagged", "AUC, at least 16 copies", "flagged", "flagged, never trained"]
    return Table(title="Works told to be trained on, flagged at 1 % by calibration works", columns=heads, rows=rows)


def _quality(models: Mapping[str, Any]) -> Table:
    rows = []
    for name, model in models.items():
        for kind, words in (("trained_pairs", "trained once"), ("untrained_pairs", "never trained")):
            for head in ("style", "title", "group"):
                row = model["quality"][kind][head]
                cells = [f"{row[key][0]:.0%} ({row[key][1]:.0%} to {row[key][2]:.0%})" for key in ("generated", "real")]
                rows.append([name, f"{head} named right, pairs {words}", *cells, row["prompts"]])
        kid = model["untargeted"]["kid"]
        rows.append([
            name,
            "KID to works never trained",
            f"{kid['drawn to works never trained']:.3g}",
            f"{kid['members to works never trained']:.3g}",
            kid["drawn"],
        ])
    return Table(title="How well they draw", columns=["model", "figure", "drawn", "real works", "n"], rows=rows)


def _counted(row: Mapping[str, Any]) -> str:
    return f"{round(row['value'] * row['n'])} of {row['n']} (95 % interval {row['low']:.0%} to {row['high']:.0%})"


def _full(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{round(row['value'] * row['n'])} of {row['n']} ({row['low']:.0%} to {row['high']:.0%})"


def _area(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%}, n = {row['n']})"


def _each(rows: Mapping[str, Any], say: Any) -> str:
    return ", ".join(f"{name} {say(row)}" for name, row in rows.items())
