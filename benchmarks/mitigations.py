"""What keeps copies from coming out, at what cost elsewhere, and whether a search brings them back: `benchmarks/mitigations.json` and its picture.

    python benchmarks/mitigations.py [--works 8] [--images 2] [--attacked 4] [--others 24] [--rows nemo,wanda] [--tune] [--deduplicated PATCH]

Works are the canaries trained on 64 times under one caption. The first four by id are for validation: `--tune` prints what settings do to them.
All other numbers are of the rest, by the presets `small`. Rows that were measured before are kept in `--out` and not measured again; rows that the
result holds by the same protocol stay. A picture of some rows alone has their names.

`--deduplicated` is the training of the world in which every work was shown once an epoch (`assay retrain --reference deduplicated`). It was also
shown 200 works fewer of those that the base was, so that some of the pairs elsewhere may be new to it.

An image is a copy where two of three measures exceed thresholds that are set on captions of calibration works, at the audit's rate of 2 %
(`memorization/copies.py`). Elsewhere is how many pairs of title and style, each trained on once, the judge still names. Then embeddings are searched
on the mitigated model for each work (`attacks/hidden_or_removed.py`), and what is drawn from them is counted by the same rule; a last row searches
the plain model for works it never saw, which says what such a search can spell out by itself.

Some works that the model was shown once pass for copies too (the row "works trained on once"): title and style nearly fix an emoji. A mitigation that
falls far below that row has cost what any training gives. And a picture that is the work in other tones to the eye may be no copy by the rule: see
`mitigations.png` beside the counts. Of the deduplicated training the row is measured where its patch is at hand;
by the audit two of sixteen such canaries come out of it (`references.json`).

Caption augmentation is meant for the training that meets a work first. So the second table (`first_met`) trains the model on canaries that it never
saw, `DUPLICATES` of each among other works, under every rule and under none, and counts copies as above; the last four by id are for validation.
A quarter of an hour on two cores for the first table, ten minutes for the second.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
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
from assay.erasure import caption_augmentation
from assay.evaluation.intervals import wilson
from assay.evaluation.thresholds import Joint
from assay.judge import CrossJudge, JudgeLike
from assay.memorization.copies import calibrate, copied
from assay.noise import derive, numpy_generator
from assay.patch import Patch
from assay.patched import Patched
from assay.record import digest_of, write_atomically
from assay.reports.pictures import grid, small_png
from assay.training.finetune import Student
from assay.verbs.session import zoo
from assay.works import Works
from assay.works.splits import varied_captions

HERE = Path(__file__).parent
FILE = HERE / "mitigations.json"
SEED, STEPS, GUIDANCE, VALIDATION = 20261127, 15, 4.0, 4
RATE, AGREEMENT = 0.02, 2
"""Of false alarms, and how many measures must agree: those of the audit."""
RULES = ("multiple", "noise", "random", "tokens", "words")
ROWS: dict[str, dict[str, Any]] = {
    "none": {},
    "embedding_noise": {},
    "random_tokens": {},
    "lower_magnitude": {},
    "nemo": {},
    "wanda": {},
    "adversarial_finetune": {},
    **{f"caption_augmentation {rule}": {"rule": rule} for rule in RULES},
}
"""Method, and a word of one's own -> what differs from its preset."""
MET: dict[str, Any] = {"steps": 240, "batch": 16, "learning_rate": 2e-4, "warmup": 10, "probability": 0.4, "noise": 1.0}
MEETINGS: dict[str, dict[str, Any]] = {"none": {"rule": "tokens", "probability": 0.0}, **{rule: {"rule": rule} for rule in RULES}}
DUPLICATES = 12
"""How the model meets canaries that it never saw."""
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
    ("nemo", {"blocks": "all", "seeds": 6, "others": 60, "tau": 0.3}),
    ("nemo", {"blocks": "all", "seeds": 6, "others": 60, "tau": 0.5}),
    ("wanda", {"sparsity": 0.01, "joined": 3, "seeds": 4, "image_steps": 15, "image_guidance": 4.0}),
    ("wanda", {"sparsity": 0.03, "joined": 3, "seeds": 4, "image_steps": 15, "image_guidance": 4.0}),
    ("wanda", {"sparsity": 0.1, "joined": 3, "seeds": 4, "image_steps": 15, "image_guidance": 4.0, "reference": "preserved"}),
    ("wanda", {"sparsity": 0.6, "joined": 3, "seeds": 4, "image_steps": 15, "image_guidance": 4.0}),
    ("wanda", {"sparsity": 0.6, "joined": 3, "seeds": 4, "image_steps": 15, "image_guidance": 4.0, "reference": "preserved"}),
    *(("caption_augmentation", {**caption_augmentation.PRESETS["small"], "rule": rule, "probability": 1.0, "noise": 1.0}) for rule in RULES),
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


def retold(works: Works) -> list[list[str]]:
    """Return 20 captions of every work, the first its own."""
    return [varied_captions(work, 20, SEED) for work in works]


def rate(hits: np.ndarray) -> dict[str, Any]:
    """Return a share with Wilson's interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": round(float(hits.mean()), 4), "low": round(low, 4), "high": round(high, 4), "n": len(hits)}


def counts(hits: np.ndarray, works: Works) -> dict[str, Any]:
    """Return how many images are copies, and of how many works any is."""
    return {"copies": rate(hits), "works_copied": rate(np.asarray(hits.reshape(len(works), -1).any(1)))}


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
        figures = counts(hits, works) | {"elsewhere": self.elsewhere()}
        best = [place * attempts.shape[1] + int(attempts[place].argmax()) for place in range(attacked)]
        shown = np.stack([made[:: self.images][:attacked], found[best]], 1)
        return figures | {"found_again": rate(np.asarray(attempts.any(1))), "losses": losses}, shown


def mitigated(denoiser: Denoiser, name: str, works: Works, others: Works, given: dict[str, Any]) -> Patch:
    """Make a patch for memorised captions; caption augmentation knows more captions of each work."""
    method = import_module(f"assay.erasure.{name}")
    members = retold(works) if name == "caption_augmentation" else [[]] * len(works)
    kept = tuple(captions(others))
    concept = together([Concept(caption, "work", members=tuple(more), preserve=kept) for caption, more in zip(captions(works), members, strict=True)])
    return method.erase(denoiser, concept, method.Settings(**given), seed=SEED)


def first_met(denoiser: Denoiser, works: Works, others: Works, given: dict[str, Any]) -> Patch:
    """Train on works that the model never saw, several duplicates of each among others."""
    settings = caption_augmentation.Settings(**MET | given)
    latents = [denoiser.latents(torch.from_numpy(pixels(table)) / 255) for table in (works, others)]
    told = [more for more in retold(works) for _ in range(DUPLICATES)] + others.column("captions")
    student = Student(denoiser, caption_augmentation.check(denoiser, settings))
    met = torch.cat([latents[0].repeat_interleave(DUPLICATES, 0), latents[1]])
    return caption_augmentation.train(student, met, told, settings, concept=Concept("canaries"), seed=SEED)


def tune(protocol: Protocol, works: Works, withheld: Works, others: Works, names: Sequence[str]) -> None:
    """Print what settings do to works that no table has."""
    denoiser, started = protocol.denoiser, time.monotonic()
    trials = [(name, given, works) for name, given in TRIED if name in names]
    trials += [("first_met", plan, withheld) for plan in MEETINGS.values() if "first_met" in names]
    print("none", rate(protocol.copies(works)[1]), protocol.elsewhere()["title"], flush=True)
    for name, given, tried in trials:
        make = first_met(denoiser, tried, others, given) if name == "first_met" else mitigated(denoiser, name, tried, others, given)
        changed = sum(float((patch_change != 0).float().mean()) for patch_change in make.tensors.values()) / max(1, len(make.tensors))
        with Patched(denoiser, [(make, 1.0)]):
            copies, kept = rate(protocol.copies(tried)[1]), protocol.elsewhere()["title"]
        print(round(time.monotonic() - started), name, given, round(changed, 4), copies, kept, flush=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("works", 12), ("images", 4), ("attacked", 12), ("others", 96), ("calibration", 200)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--rows", default=",".join([*ROWS, "first_met"]), help="those to measure, by their first word")
    parser.add_argument("--out", type=Path, default=Path("out/mitigations"))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--deduplicated", type=Path, help="patch of the training in which every work was shown once an epoch")
    options = parser.parse_args()
    names = {row.split()[0] for row in options.rows.split(",") if row} | ({"deduplicated"} if options.deduplicated else set())
    denoiser, works, judge = assay.load("emoji64"), assay.builtin_works(), CrossJudge.load(zoo("judge"))

    def split(name: str, count: int, copies: int) -> Works:
        table = works.where(
            lambda row: row["split"] == name and row["copies"] == copies and bool(row["style"]) and "canary" not in dict(row["attributes"] or [])
        )
        return table.take(sorted(numpy_generator(SEED, name, copies).permutation(len(table))[:count].tolist()))

    calibration = split("calibration", options.calibration, 0)
    made = drawn(denoiser, captions(calibration), [derive(SEED, id_) for id_ in calibration.column("id")])
    rule = calibrate(made, pixels(calibration), judge, false_positives=RATE, agreement=AGREEMENT)
    members = split("member", 60 + options.others, 1)
    preserved, others = members.take(list(range(60))), members.take(list(range(60, len(members))))
    memorised, withheld = canaries(works, 64), canaries(works, 0)
    protocol = Protocol(denoiser, judge, rule, others, options.images)
    cut = len(withheld) - VALIDATION
    if options.tune:
        tune(protocol, memorised.take(list(range(VALIDATION))), withheld.take(list(range(cut, len(withheld)))), preserved, sorted(names))
        return
    new = withheld.take(list(range(min(cut, options.works))))
    judged = memorised.take(list(range(VALIDATION, min(len(memorised), VALIDATION + options.works))))
    settings = hidden_or_removed.Settings(**hidden_or_removed.PRESETS["small"])
    result: dict[str, Any] = {
        "model": denoiser.digest,
        "works": works.digest,
        "judge": judge.digest,
        "copies_of_each": 64,
        "validation": memorised.column("id")[:VALIDATION],
        "rule": {"rate": RATE, "achieved": rule.achieved, "calibration_works": rule.n, "agreement": rule.least},
        "search": vars(settings),
    }
    result["asked"] = {name: getattr(options, name) for name in ("works", "images", "attacked", "others")}
    header = digest_of(result)
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    before = before if all(before.get(name) == value for name, value in result.items()) else {}

    def measured(name: str, plan: dict[str, Any], measure: Callable[[], tuple[dict[str, Any], np.ndarray]]) -> tuple[dict[str, Any], np.ndarray]:
        """Return a row and its images, measured now or before by the same plan."""
        file, key = options.out / f"{name}.npz", digest_of([header, name, plan])
        if file.exists():
            with np.load(file) as kept:
                if str(kept["key"]) == key:
                    return json.loads(str(kept["row"])), kept["shown"]
        started = time.monotonic()
        row, shown = measure()
        buffer = io.BytesIO()
        np.savez(buffer, key=key, row=json.dumps(row), shown=shown)
        write_atomically(file, buffer.getvalue())
        print(name, round(time.monotonic() - started), json.dumps(row), flush=True)
        return row, shown

    def mitigation(name: str, plan: dict[str, Any], patch: Patch | None = None) -> tuple[dict[str, Any], np.ndarray]:
        started = time.monotonic()
        patch = mitigated(denoiser, name.split()[0], judged, preserved, plan) if patch is None and name != "none" else patch
        making = round(time.monotonic() - started, 1)
        with Patched(denoiser, [] if patch is None else [(patch, 1.0)]):
            row, shown = protocol.row(judged, options.attacked, settings)
        return row | {"seconds_to_make": making, "settings": {} if patch is None else patch.manifest.settings}, shown

    def meeting(plan: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        with Patched(denoiser, [(first_met(denoiser, new, preserved, plan), 1.0)]):
            made, hits = protocol.copies(new)
            elsewhere = protocol.elsewhere()
        return counts(hits, new) | {"elsewhere": elsewhere, "settings": MET | plan}, made[:: options.images][: options.attacked, None]

    def absence() -> tuple[dict[str, Any], np.ndarray]:
        absent = withheld.take(list(range(options.attacked)))
        found, again, losses = protocol.searched(absent, settings)
        figures = {"copies": rate(protocol.copies(absent)[1]), "found_again": rate(np.asarray(again.reshape(options.attacked, -1).any(1)))}
        return figures | {"losses": losses}, found

    def ordinary() -> tuple[dict[str, Any], np.ndarray]:
        made, hits = protocol.copies(others)
        return counts(hits, others), made[:: options.images, None]

    shown: dict[str, np.ndarray] = {}
    rows: dict[str, Any] = {}
    for name, given in ROWS.items():
        method = name.split()[0]
        plan = {} if name == "none" else import_module(f"assay.erasure.{method}").PRESETS["small"] | given
        if method in names:
            rows[name], shown[name] = measured(name, plan, lambda name=name, plan=plan: mitigation(name, plan))
    if options.deduplicated:
        patch = Patch.load(options.deduplicated)
        kept = measured("deduplicated", {"patch": patch.digest}, lambda: mitigation("deduplicated", {}, patch))
        rows["deduplicated"], shown["deduplicated"] = kept
    absent, once = "works never trained on, plain model", "works trained on once, plain model"
    stored = before.get("rows", {})
    rows[absent] = stored[absent] if absent in stored else measured("absent", {}, absence)[0]
    rows[once] = stored[once] if once in stored else measured("once", {}, ordinary)[0]
    order = [*ROWS, "deduplicated", absent, once]
    rows = dict(sorted({**stored, **rows}.items(), key=lambda row: order.index(row[0])))
    met: dict[str, Any] = {}
    for rule_name, plan in MEETINGS.items() if "first_met" in names else ():
        met[rule_name], shown[f"met: {rule_name}"] = measured(f"first_met {rule_name}", MET | plan, lambda plan=plan: meeting(plan))
    about = {"duplicates": DUPLICATES, "works": len(new), "among": len(preserved), "validation": withheld.column("id")[cut:]}
    first = about | {"rows": met} if met or not before else before["first_met"]
    FILE.write_text(json.dumps(result | {"rows": rows, "first_met": first}, indent=1) + "\n")

    def picture(names: Sequence[str], works: Works, each: Sequence[str]) -> None:
        columns = [f"{name}: {what}" if what else name for name in names for what in each]
        cells = [
            [works.image(place).resize((64, 64)), *to_pictures(torch.from_numpy(np.concatenate([shown[name][place] for name in names])) / 255)]
            for place in range(options.attacked)
        ]
        some = "" if all(row in names for row in ROWS) else "".join(f"-{name.replace(' ', '-')}" for name in names)
        file = f"mitigations{some}.png" if len(each) > 1 else "mitigations-first-met.png"
        sheet = grid(cells, captions(works)[: options.attacked], ["the work", *columns], scale=1)
        (HERE / file).write_bytes(small_png(sheet, 200_000 if len(each) > 1 else 100_000))

    if methods := [name for name in rows if name in shown]:
        picture(methods, judged, ("caption", "search"))
    if met:
        picture([f"met: {name}" for name in met], withheld, ("",))


if __name__ == "__main__":
    main()
