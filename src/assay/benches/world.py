"""What is true in the built-in world, chapter by chapter, from the results that the scripts in `benchmarks/` wrote.

A chapter is a record like any other: made from one JSON file, with its pictures beside it, and with what its figures do not show. A chapter whose
script has not been run says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from assay.benches import gan, references
from assay.benches.pools import ONCE, REPEATED, STRONGEST
from assay.errors import BadInput, Missing
from assay.record import Metric, Picture, Record, Table, sha256_file, versions

Figures = dict[str, Any]

QUESTIONS = {
    "references": references.QUESTION,
    "judges": "How far can the judges be trusted?",
    "digits": "In a world of hundreds of trainings: can members be told, and how well can anything predict what a training work does?",
    "duplicates": "Are near-duplicates found among a million works, how fast, and what do other packages find?",
    "emoji32": "In a pool of trainings on random halves of the emoji: do works that a model saw have lower losses under it?",
    "gan": gan.QUESTION,
}
"""Chapter -> what it asks."""


def scripts(folder: Path) -> dict[str, list[str]]:
    """Return the words, after `python`, that measure each chapter anew; `folder` takes what they keep to go on from."""
    return {
        "references": ["references.py", str(folder / "references"), "--train"],
        "judges": ["judges.py"],
        "digits": ["digits.py", "--folder", str(folder / "digits")],
        "duplicates": ["duplicates.py", "--folder", str(folder / "duplicates")],
        "emoji32": ["emoji32.py", str(folder / "emoji32")],
        "gan": ["gan.py", "--folder", str(folder / "gan")],
    }


def chapter(name: str, results: Path, out: Path) -> Record:
    """Make one chapter and put its pictures into `out`.

    Args:
        name: of the chapter.
        results: folder of the JSON files.
        out: folder that the record will be saved in.

    Raises:
        Missing: there is no such folder.
        BadInput: a file is damaged.
    """
    if not results.is_dir():
        raise Missing(f"There are no results at {results}.", "Give the folder `benchmarks` of a checkout with `--results`.")
    file = results / f"{name}.json"
    if not file.exists():
        script = " ".join(scripts(Path("FOLDER"))[name])
        return Record(
            command="bench",
            question=QUESTIONS[name],
            method=name,
            findings=[f"This has not been measured: `python {results.name}/{script}` does."],
            shows_not=["Anything."],
            versions=versions(),
        )
    try:
        if name == "judges":
            return Record.load(file)
        figures = json.loads(file.read_text())
        record = READERS[name](figures)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"{file} cannot be read: {error!r}.", "It may be damaged, or of another version; measure anew.") from error
    picture = results / f"{name}.png"
    pictures = []
    if picture.exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, out / picture.name)
        pictures.append(Picture(file=picture.name, sha256=sha256_file(out / picture.name), caption=CAPTIONS[name]))
    digests = {"results": sha256_file(file)}
    return record.model_copy(update={"command": "bench", "method": name, "digests": digests, "pictures": pictures, "versions": versions()})


CAPTIONS = {
    "references": "Each row a family: left the base, right a model that never saw any of it, asked for the same.",
    "digits": "What a model of the digits pool draws, at two scales of guidance, above real digits.",
    "duplicates": "Works a second and recall, beside other packages.",
    "emoji32": "What one model of the emoji32 pool draws.",
    "gan": gan.CAPTION,
}


def _metrics(figures: Mapping[str, Any], better: Any, prefix: str = "", n: int | None = None) -> Iterator[Metric]:
    """Yield a metric for every figure with an interval, however deep it lies; its name is the way to it."""
    for name, value in figures.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            ends = {key: value[key] for key in ("low", "high", "chance")}
            yield Metric(name=f"{prefix}{name}".replace(" ", "_"), value=value["value"], n=value.get("n", n), better=better, **ends)
        elif isinstance(value, Mapping):
            yield from _metrics(value, better, f"{prefix}{name}.", n)


def _digits(figures: Figures) -> Record:
    membership, attribution = figures["membership"], figures["attribution"]
    scored = []
    for where in ("all models", "models that did not see the query"):
        for name, row in attribution[where].items():
            if isinstance(row, Mapping):
                scored.append([where, name, _between(row)])
    best, plain = membership["attacks"][STRONGEST], membership["attacks"]["loss"]
    unseen = attribution["models that did not see the query"]
    return Record(
        command="bench",
        question=QUESTIONS["digits"],
        metrics=[
            *_metrics(figures["drawing"]["judged_as_asked"], "higher", "drawing.judged_as_asked."),
            *_metrics(membership["attacks"], "higher", "membership.", membership["models"]),
            *_metrics(attribution["all models"], "higher", "attribution.all.", attribution["all models"]["models"]),
            *_metrics(unseen, "higher", "attribution.unseen.", unseen["models"]),
        ],
        findings=[
            f"Of members, the likelihood ratio with a work's own variance, the best of nine attacks, finds {best['tpr_at_0.1%']['value']:.1%} at one "
            f"false accusation in 1,000, the plain loss {plain['tpr_at_0.1%']['value']:.1%} (chance 0.1 %).",
            f"Two seeds agree on how subsets rank with {unseen['seed_to_seed']['value']:.2f}, so that no prediction of an unseen digit's loss can "
            f"be expected to score above {_between(unseen['ceiling'], 2)}; a datamodel fitted to half of the trainings scores "
            f"{unseen['datamodel']['value']:.2f}, pixel similarity {unseen['pixel similarity']['value']:.2f}.",
        ],
        tables=[
            _attacks("Membership: attacks on every model of the pool, the others as shadows", membership["attacks"]),
            Table(title="Attribution: linear datamodeling score", columns=["models", "attribution", "score"], rows=scored),
        ],
        shows_not=[
            "That a large model leaks as much: these models are trained about a hundred times through 900 digits, so that members show.",
            "Anything about works that come in many copies or versions: every digit is in the table once.",
            "How attributions would do on other queries: intervals of scores of ranks are over models alone.",
        ],
    )


def _attacks(title: str, attacks: Figures) -> Table:
    """Table attacks on membership: a row an attack, a column a rate."""
    names = {"auc": "AUC", "tpr_at_1%": "TPR at 1 %", "tpr_at_0.1%": "TPR at 0.1 %"}
    shown = [name for name in names if all(name in row for row in attacks.values())]
    rows = [[attack, *(_between(row[name], 3 if name == "auc" else 4) for name in shown)] for attack, row in attacks.items()]
    return Table(title=title, columns=["attack", *(names[name] for name in shown)], rows=rows)


def _duplicates(figures: Figures) -> Record:
    large = figures["million"]
    more, idle = large["one_percent_more"], large["nothing_more"]
    planted, exact = large["judged_against_what_was_planted"], large["judged_against_brute_force"]
    rows = []
    for size in figures["beside"]:
        for name, row in size.items():
            if isinstance(row, Mapping):
                shares = [f"{row['recall']:.0%}", f"{row['planted_share']:.0%}"] if "recall" in row else [row["failed"], ""]
                rows.append([size["works"], name, row.get("works_per_second", ""), row.get("peak_mib", ""), *shares])
    return Record(
        command="bench",
        question=QUESTIONS["duplicates"],
        metrics=[
            Metric(name="works_per_second", value=large["works_per_second"], n=large["works"], better="higher"),
            Metric(name="recall.brute_force", value=exact["recall"], n=exact["pairs"], better="higher"),
            Metric(name="precision.brute_force", value=exact["precision"], n=exact["pairs"], better="higher"),
            Metric(name="recall.planted", value=planted["recall"], n=large["planted"], better="higher"),
            Metric(name="one_percent_more.over_whole", value=more["over_whole"], n=large["works"] // 100, better="lower"),
            Metric(name="peak_mib", value=large["whole"]["peak_mib"], n=large["works"], better="lower"),
        ],
        findings=[
            f"{large['works']:,} works: {large['works_per_second']:,.0f} a second, {large['whole']['peak_mib']:,} MiB at most; "
            f"of the pairs that the definition calls near-duplicates, {exact['recall']:.2%} were found (n = {exact['pairs']}).",
            f"With an index, one in a hundred more costs {more['over_whole']:.1%} of the {large['whole']['seconds']:,.0f} s of all: "
            f"{more['beyond_nothing_over_whole']:.1%} the adding, {idle['over_whole']:.1%} what describing the same works again costs.",
            *(
                f"At {size['works']:,} works, {size['times_the_fastest_other']} times the works a second of the fastest other."
                for size in figures["beside"]
                if "times_the_fastest_other" in size
            ),
        ],
        tables=[
            Table(
                title="Found, of copies that were planted, by kind",
                columns=["kind", "recall"],
                rows=[[kind, f"{value:.1%}"] for kind, value in planted["recall_by_kind"].items()],
            ),
            Table(
                title="Beside other packages, on the same files",
                columns=["works", "package", "works a second", "MiB", "recall of planted", "planted, of what was found"],
                rows=rows,
            ),
        ],
        shows_not=[
            "Copies that are mirrored or whose colours are exchanged are no near-duplicates by this definition.",
            "The works are made of emoji: photographs cluster otherwise, and the speed of the first stage depends on how they do.",
        ],
    )


def _between(row: Mapping[str, Any], digits: int = 3) -> str:
    """Write a figure with its interval."""
    return f"{row['value']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def _emoji32(figures: Figures) -> Record:
    rows = [
        [copies, row["works"], _between(row["gap"], 4), *(f"{row[name]['value']:.1%}" for name in ("of_loss", "right"))]
        for copies, row in figures["by_copies"].items()
    ]
    found, once = figures["membership"], figures["by_copies"]["1"]["right"]
    plain, best = ({which: each["attacks"][attack]["auc"] for which, each in found.items()} for attack in ("loss", STRONGEST))
    return Record(
        command="bench",
        question=QUESTIONS["emoji32"],
        metrics=[
            metric
            for copies, row in figures["by_copies"].items()
            for metric in _metrics({f"right.k{copies}": row["right"]}, "higher", n=row["works"])
        ]
        + [
            metric
            for which, each in found.items()
            for metric in _metrics(each["attacks"], "higher", f"membership.{which.replace(' ', '_')}.", each["models"])
        ],
        tables=[
            Table(
                title="Losses of works in a model and out of it, by copies an epoch",
                columns=["copies", "works", "loss out - in", "of the loss", "in the lower half when in"],
                rows=rows,
            ),
            *(_attacks(f"Membership of {which}: attacks on every model, the others as shadows", each["attacks"]) for which, each in found.items()),
        ],
        findings=[
            f"Of {figures['models']} trainings, works shown once an epoch have their loss in the lower half where they were seen "
            f"{once['value']:.1%} of the time ({once['low']:.1%} to {once['high']:.1%}, chance 50 %).",
            *(
                f"Members among {which} are told with AUC {_between(plain[which], 2)} by the plain loss, and {_between(best[which], 2)} by the"
                " likelihood ratio with a work's own variance (chance 0.5)."
                for which in (ONCE, REPEATED)
            ),
        ],
        shows_not=[
            "How well an attack would do that has no other models of the same works to compare with: the plain loss alone is such a one.",
            "What the whole model remembers: autoencoder and text encoder are the same in all trainings and have seen four fifths of the works.",
            f"Anything of {figures['with_near_duplicates']} works with near-duplicates: their twins are in the other half every second time.",
        ],
    )


READERS: dict[str, Callable[[Figures], Record]] = {
    "references": references.read,
    "digits": _digits,
    "duplicates": _duplicates,
    "emoji32": _emoji32,
    "gan": gan.read,
}
