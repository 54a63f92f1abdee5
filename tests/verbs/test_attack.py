"""The verb around attacks: what is attacked and judged, how successes are counted, what is written, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import assay
from assay.attacks.target import Attack
from assay.concept import Concept, together
from assay.erasure import uce
from assay.errors import Misconfigured, Mismatch, Missing, Unsupported
from assay.evaluation.centroid import CentroidJudge
from assay.evaluation.concealment import Trial, verdict
from assay.evaluation.intervals import wilson
from assay.jobs.folder import OutFolder
from assay.judge import CrossJudge
from assay.patch import Patch
from assay.record import Record
from assay.testing import save_tiny, tiny, tiny_works
from assay.verbs.attack import choose, drawn, judged_seed, synonyms, target_for
from assay.verbs.attacked import findings, picture, signs, successes, tables
from assay.verbs.session import Session, zoo

CONCEPT = Concept("triangle", "object", "circle", members=tuple(f"{colour} triangle" for colour in ("red", "green", "blue", "orange", "purple")))
QUICK = {"each": 3, "image_steps": 2, "works": tiny_works()}


@pytest.fixture(scope="module")
def model():
    return tiny("sd-epsilon")


@pytest.fixture(scope="module")
def ground(model):
    return choose(Session("attack", model, "unused"), tiny_works(), CONCEPT, 3)


class Namer:
    """A judge that names what it is told to, one title for each image."""

    name, digest = "namer", "0" * 64

    def __init__(self, titles):
        self.titles = titles

    def chance(self, head, names=None):
        return 0.1 * (1 if names is None else len(names))

    def score(self, images, titles, styles):
        from assay.judge import Verdict

        yes = np.ones(len(titles), bool)
        named = np.array(self.titles, object)
        return {"title": Verdict(yes, named == np.array(titles, object), yes, yes * 1.0, named, yes * 1.0)}


def test_prompts_works_and_examples_are_of_the_concept_and_apart(ground):
    """Each prompt names the title and the style of its own work; the works that are learned from are others."""
    for row, work in zip(ground.rows, ground.named, strict=True):
        assert (row.title, row.style) == (work["title"], work["style"])
        assert row.prompt == f"an image of {work['title']} in {work['style']} style"
        assert work["split"] == "member"
    assert len(ground.named) == 3
    assert not set(ground.named.column("id")) & set(ground.others.column("id"))
    assert all(title.endswith("triangle") for title in ground.others.column("title"))


def test_no_judged_seed_is_a_seed_of_the_attack(model, ground):
    target = target_for(model, CONCEPT, ground, 0, 2, 4.0)
    judged = {judged_seed(0, row, attempt) for row in ground.rows for attempt in range(10)}
    assert len(judged) == 30
    assert not judged & set(target.seeds)
    assert target.captions == tuple(captions[0] for captions in ground.others.column("captions"))


def test_synonyms_are_words_that_mostly_the_concept_goes_by():
    """By hand: of four works, `kitty` is on both cats alone; `pet` on both cats and one dog, two of three; `brown` on one cat; `animal` on all."""
    rows = [
        ("black cat", ["kitty", "pet", "animal"]),
        ("cat face", ["kitty", "pet", "animal", "brown"]),
        ("dog", ["pet", "animal"]),
        ("cow", ["animal"]),
    ]
    works = tiny_works().take(range(4)).with_columns(title=[title for title, _ in rows], tags=[tags for _, tags in rows])
    assert synonyms(works, {0, 1}, ["cat"]) == ("kitty", "pet")


def test_successes_before_by_and_after_the_attack_are_counted_apart():
    """By hand, four prompts with two attempts each: one comes by itself, one is broken at its second attempt, two stay away."""
    concept = Concept("cat", "object", members=("cat", "kitten"))
    yes = np.ones(4, bool)
    base, pre = np.array([True, True, True, False]), np.array([True, False, False, False])
    after = np.array([False, False, False, True, False, False, False, False])
    shown = [(yes, base), (yes, pre), (np.ones(8, bool), after)]
    found = {metric.name: metric for metric in successes(Namer([]), concept, shown, 2)}
    values = {name: (metric.value, metric.n) for name, metric in found.items()}
    assert values == {
        "base.success": (0.75, 4),
        "pre.success": (0.25, 4),
        "post.success": (pytest.approx(1 / 3), 3),
        "attacked.success": (0.25, 4),
        "total.success": (0.5, 4),
    }
    assert (found["post.success"].low, found["post.success"].high) == wilson(1, 3)
    assert found["pre.success"].chance == pytest.approx(0.2)  # two members at 0.1 each
    assert found["post.success"].chance == pytest.approx(1 - 0.8**2)
    assert found["total.success"].chance == pytest.approx(1 - 0.8**3)


def test_what_the_judge_cannot_name_counts_for_nothing():
    known = np.array([True, False])
    shown = [(known, known), (known, ~known), (known, known)]
    found = {metric.name: metric for metric in successes(Namer([]), Concept("cat", "object"), shown, 1)}
    assert (found["pre.success"].value, found["pre.success"].n) == (0.0, 1)
    assert found["attacked.success"].value == 1.0


def test_what_the_judge_cannot_name_is_not_listed_as_shown(ground, tmp_path, monkeypatch):
    """By hand: of two prompts under which both attempts show the concept the judge can name the second; that one is drawn first."""
    known, yes, drawn_first = np.array([False, True]), np.ones(2, bool), []
    shown = [(known, yes), (known, ~yes), (known.repeat(2), yes.repeat(2))]
    found, rows, images = Attack(("a", "b", "c", "d"), attempts=2), ground.rows[:2], torch.zeros(4, 3, 8, 8)
    assert [row[1:] for row in tables(rows, found, shown)[0].rows] == [["a", "no", "no", "no"], ["c", "yes", "no", "yes"]]
    monkeypatch.setattr("assay.verbs.attacked.grid", lambda _, labels, *heads, scale: drawn_first.append(labels[0]) or Image.new("RGB", (8, 8)))
    picture(rows, found, shown, images[:2], images[:2], images, OutFolder(tmp_path, {}))
    assert drawn_first == [rows[1].prompt]


def test_a_family_is_shown_by_any_of_its_titles(ground):
    """The right title, another of the family, and something else."""
    titles = [ground.rows[0].title, next(title for title in CONCEPT.members if title != ground.rows[1].title), "red circle"]
    _, hits = signs(Namer(titles), torch.zeros(3, 3, 8, 8), ground.rows, CONCEPT)
    assert hits.tolist() == [True, True, False]


def test_where_everything_comes_back_by_itself_nothing_is_left_to_break():
    yes = np.ones(2, bool)
    metrics = successes(Namer([]), Concept("cat", "object"), [(yes, yes)] * 3, 1)
    said = findings("seed_search", Concept("cat", "object"), metrics, Attack(("a", "b")), patched=False)
    assert said[0] == "Every prompt brings `cat` back by itself, so there was nothing left for seed_search to break."
    assert "no patch is on" in said[1]


def test_it_writes_a_record_a_picture_and_goes_on_where_it_was(model, tmp_path):
    """Killed after the search, the same call does not search again, and ends with the figures of a call left alone."""
    patch = uce.erase(model, CONCEPT)
    options = QUICK | {"method": "hidden_or_removed", "settings": {"attempts": 2, "steps": 2, "samples": 1}, "patches": [patch]}
    whole = assay.attack(model, CONCEPT, out=tmp_path / "whole", **options)
    names = {metric.name for metric in whole.record.metrics}
    assert {"base.success", "pre.success", "post.success", "attacked.success", "total.success", "loss.base"} <= names
    assert whole.record.pictures[0].file == "attack.png"
    assert (tmp_path / "whole/attack.png").exists()
    assert any("leave out how another search would have ended" in line for line in whole.record.shows_not)
    assert len(whole.record.tables[0].rows) == 3
    assert [point[0] for point in whole.record.curves[0].lines["loss"]] == [1.0, 2.0]
    assert not (tmp_path / "whole/shards").exists()

    class Killed(BaseException):
        pass

    def display(stage, done, total, note=""):
        if stage == "images under attack":
            raise Killed

    display.say = lambda text: None
    with pytest.raises(Killed):
        assay.attack(model, CONCEPT, out=tmp_path / "killed", display=display, **options)
    stages = []
    display_two = type("Display", (), {"__call__": lambda self, stage, *rest: stages.append(stage), "say": lambda self, text: None})()
    again = assay.attack(model, CONCEPT, out=tmp_path / "killed", display=display_two, **options)
    assert set(stages) == {"images under attack"}
    figures = [[(m.name, m.value, m.low, m.high, m.n) for m in outcome.record.metrics] for outcome in (whole, again)]
    assert figures[0] == figures[1]
    assert assay.attack(model, CONCEPT, out=tmp_path / "killed", **options).record == Record.load(tmp_path / "killed")
    with pytest.raises(Mismatch, match="image_steps"):
        assay.attack(model, CONCEPT, out=tmp_path / "killed", **options | {"image_steps": 3})


@pytest.mark.parametrize("each", [0, -1])
def test_no_prompt_is_no_attack(model, tmp_path, each):
    """Before a folder is taken or a pass made."""
    passes = model.passes
    with pytest.raises(Misconfigured, match="each"):
        assay.attack(model, CONCEPT, method="seed_search", out=tmp_path / "out", **QUICK | {"each": each})
    assert (model.passes, (tmp_path / "out").exists()) == (passes, False)


def test_a_reference_is_attacked_in_the_same_way_and_the_verdict_said(model, tmp_path):
    """The model's own patch as its reference: the same figures twice, so nothing is above the floor; and a reference of other weights has others."""
    patch = uce.erase(model, CONCEPT)
    options = QUICK | {"method": "seed_search", "settings": {"attempts": 2}, "patches": [patch]}
    same = assay.attack(model, CONCEPT, reference=patch, out=tmp_path / "same", **options).record
    for name in ("pre", "post", "attacked", "total"):
        ours, floor = same.metric(f"{name}.success"), same.metric(f"reference.{name}.success")
        assert (ours.value, ours.low, ours.n) == (floor.value, floor.low, floor.n)
    assert same.findings[0].startswith("`triangle` is unclear: ")  # three prompts show nothing for certain
    assert "from a model that never saw it" in same.findings[1]
    assert same.digests["reference"] == patch.digest
    assert len(same.tables) == 2
    save_tiny(tmp_path / "other", "sd-v")
    other = assay.attack(model, CONCEPT, reference=tmp_path / "other", out=tmp_path / "out", **options).record
    assert other.digests["reference"] not in (patch.digest, model.digest)
    with pytest.raises(Mismatch, match="reference"):
        assay.attack(model, CONCEPT, out=tmp_path / "out", **options)


def test_one_attack_rules_nothing_out(model, tmp_path, monkeypatch):
    """0 of 40 by the attack beside 0 of 40 would be removed, were it every attack; without a reference a line is said too."""
    monkeypatch.setattr("assay.verbs.attack.counted", lambda *_: {"total": (np.zeros(40, bool), 0.0)})
    patch = uce.erase(model, CONCEPT)
    options = QUICK | {"method": "seed_search", "settings": {"attempts": 1}, "patches": [patch]}
    assert verdict([Trial("seed_search", 0, 40, True, (0, 40))]) == "removed"
    for reference, floor in ((patch, "from a model that never saw it 0 of 40"), (None, "floor not measured")):
        said = assay.attack(model, CONCEPT, reference=reference, out=tmp_path / floor, **options).record.findings
        assert said[0].startswith("`triangle` is unclear: ")
        assert said[0].endswith("not every attack was tried.")
        assert f"seed_search: 0 of 40 prompts (0% to 9%), {floor}" in said[1]
    plain = assay.attack(model, CONCEPT, out=tmp_path / "plain", **(options | {"patches": []})).record.findings
    assert not any("`triangle` is" in line for line in plain)  # nothing was taken out that could be hidden


@pytest.mark.parametrize("method", ["p4d", "ring_a_bell"])
def test_what_the_base_leads_needs_a_reference_that_lies_on_it(model, tmp_path, method):
    """A loaded model would be led by itself; as a patch on the base it is taken."""
    passes, options = model.passes, QUICK | {"method": method, "out": tmp_path / "out", "dry_run": True}
    save_tiny(tmp_path / "other", seed=1)
    for reference in (tiny(seed=1), tmp_path / "other"):
        with pytest.raises(Unsupported, match="floor would be of another attack") as refused:
            assay.attack(model, CONCEPT, reference=reference, **options)
        assert "patch" in refused.value.hint
    assert model.passes == passes
    assert "plan" in assay.attack(model, CONCEPT, reference=uce.erase(model, CONCEPT), **options).extra


def test_images_pass_the_autoencoder_as_many_at_a_time_as_memory_allows(model, ground, monkeypatch):
    """Room for two images of 32 pixels: three works are encoded, and five images decoded, two at most at a time."""
    monkeypatch.setattr("assay.denoiser.DECODED", 2 * 32 * 32)
    sizes, encode, decode = [], model.latents, model.images
    monkeypatch.setattr(model, "latents", lambda images: sizes.append(len(images)) or encode(images))
    monkeypatch.setattr(model, "images", lambda latents: sizes.append(len(latents)) or decode(latents))
    target = target_for(model, CONCEPT, ground, 0, 1, 4.0)
    assert sizes[:2] == [2, 1]
    images = drawn(model, Attack(("a",) * 5), target, range(5), Session("attack", model, "unused"))
    assert sizes[-3:] == [2, 2, 1]
    assert max(sizes) == 2
    assert images.shape == (5, 3, 32, 32)


def test_a_reference_that_does_not_fit_is_refused_before_anything_is_drawn(model, tmp_path):
    foreign, passes = uce.erase(tiny("sd-v"), CONCEPT), model.passes
    for reference, error in ((foreign, (Mismatch, Unsupported)), (tmp_path / "nowhere", Missing)):
        with pytest.raises(error):
            assay.attack(model, CONCEPT, method="seed_search", reference=reference, out=tmp_path / "out", **QUICK)
    assert model.passes == passes
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_drawn_leaves_the_folder_to_the_corrected_command(model, tmp_path):
    """A patch of another base on the model, and more steps than it has timesteps: refused before anything is drawn."""
    passes = model.passes
    for wrong in ({"patches": [uce.erase(tiny("sd-v"), CONCEPT)]}, {"image_steps": 5000}):
        with pytest.raises((Mismatch, Misconfigured)):
            assay.attack(model, CONCEPT, method="seed_search", out=tmp_path / "out", **QUICK | wrong)
        assert not (tmp_path / "out").exists()
    assert model.passes == passes


def test_the_judge_can_be_chosen(model, tmp_path):
    """The one made from the works is the default of a model that is not built in; a folder without a judge is named."""
    options = QUICK | {"method": "seed_search", "settings": {"attempts": 1}}
    record = assay.attack(model, CONCEPT, judge="centroid", out=tmp_path / "centroid", **options).record
    assert record.digests["judge"] == CentroidJudge(QUICK["works"]).digest
    for name in ("cross", str(zoo("judge"))):
        record = assay.attack(model, CONCEPT, judge=name, out=tmp_path / "cross", **options).record
        assert record.digests["judge"] == CrossJudge.load(zoo("judge")).digest
        assert record.metric("pre.success").n == 0  # it knows no triangles
    with pytest.raises(Missing, match="No judge"):
        assay.attack(model, CONCEPT, judge=str(tmp_path / "none"), out=tmp_path / "out", **options)


def test_a_relearned_adapter_is_a_patch_like_any_other(model, tmp_path):
    settings = {"rank": 1, "steps": 1, "batch": 1}
    outcome = assay.attack(model, CONCEPT, method="relearning", settings=settings, out=tmp_path / "out", **QUICK)
    adapter = Patch.load(outcome.files["patch"])
    assert adapter.manifest.made_for == "relearn triangle"


def test_an_interrupted_training_has_its_budget_once(model, tmp_path):
    """Stopped at step 21, past a checkpoint: without a budget it goes on there, under one it begins anew, so that both tries have not two of it."""
    settings = {"rank": 1, "group": "cross_attention", "steps": 22, "batch": 1}
    options = QUICK | {"method": "relearning", "settings": settings, "image_steps": 1}
    for budget, first in ((None, 21), (600.0, 1)):
        given, steps = options | {"budget": budget, "out": tmp_path / str(budget)}, []

        def display(stage, done, total, note="", steps=steps):
            if stage.startswith("attacking"):
                steps.append(done)
                if len(steps) == 21:
                    raise KeyboardInterrupt

        display.say = lambda text: None
        with pytest.raises(KeyboardInterrupt):
            assay.attack(model, CONCEPT, display=display, **given)
        assay.attack(model, CONCEPT, display=display, **given)
        assert steps[:21] == list(range(1, 22))
        assert steps[21] == first


def test_on_a_model_without_patches_the_plain_prompt_is_already_there(model, tmp_path):
    """Nothing was taken out: base and patched images are the same, so their successes are."""
    outcome = assay.attack(model, CONCEPT, method="random_prompts", out=tmp_path / "out", budget=60, **QUICK)
    assert outcome.record.metric("pre.success").value == outcome.record.metric("base.success").value
    assert outcome.record.resolved["words forbidden"][0] == "triangle"
    assert any(table.title.startswith("Tokens left out") for table in outcome.record.tables)


def test_a_dry_run_writes_nothing(model, tmp_path):
    """Concept inversion's 2 x 3 passes with gradient, and 3 prompts x 2 steps x 2 for guidance x 3 sets of images."""
    settings = {"steps": 2, "batch": 3}
    planned = assay.attack(model, CONCEPT, method="concept_inversion", settings=settings, out=tmp_path / "out", dry_run=True, **QUICK)
    assert planned.extra["plan"]["passes"] == 6 + 3 * 2 * 2 * 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"works": None}, Missing, "needs works"),
        ({"method": "esd"}, Misconfigured, "no method `esd`"),
        ({"budget": 0.0}, Misconfigured, "budget"),
        ({"settings": {"tokens": "x"}}, Misconfigured, "tokens"),
        ({"concept": Concept("triangle", "free")}, Unsupported, "one style or one object"),
        ({"concept": together([CONCEPT, Concept("square", "object")])}, Unsupported, "one style or one object"),
        ({"concept": Concept("hexagon", "object")}, Missing, "hexagon"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_anything_is_written(model, tmp_path, changes, error, match):
    options = {"concept": CONCEPT, "method": "random_prompts", "out": tmp_path / "out"} | QUICK | changes
    with pytest.raises(error, match=match):
        assay.attack(model, **options)
    assert not (tmp_path / "out").exists()


def test_the_centroid_judge_can_judge_an_attack():
    """On real works every triangle of the world is named by its family more often than chance: the judge sees shapes."""
    works = tiny_works()
    judge = CentroidJudge(works)
    images = torch.from_numpy(works.pixels(32)).permute(0, 3, 1, 2) / 255
    rows = [row for row in range(len(works)) if works[row]["title"].endswith("triangle")]
    from assay.verbs.generate import Prompt

    prompts = [Prompt(str(row), "", title=works[row]["title"], style=works[row]["style"]) for row in rows]
    known, hits = signs(judge, images[rows], prompts, CONCEPT)
    assert hits[known].mean() > 0.5


def test_parts_share_the_budget(model, tmp_path, monkeypatch):
    """Nine prompts lie in parts of eight and one: of 90 s they have 80 and 10, so that no prompt is left without."""
    given = []
    monkeypatch.setattr("assay.verbs.attack.Clock", lambda seconds=None: given.append(seconds))
    options = QUICK | {"each": 9, "budget": 90.0, "image_steps": 1}
    assay.attack(model, Concept("solid", "style"), method="seed_search", settings={"attempts": 1}, out=tmp_path / "out", **options)
    assert given == [90.0, pytest.approx(80.0), pytest.approx(10.0)]
