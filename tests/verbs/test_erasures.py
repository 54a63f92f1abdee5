"""The bench of erasers end to end on a tiny model: it goes on where it was, refuses a changed plan, and keeps failures in words."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import assay
from assay.benches.erasure import ATTACKED, COMBINATIONS, LONG, PAPERS, Results, Settings, Subject, subjects
from assay.benches.erasure_chapters import chapter
from assay.concept import Concept
from assay.erasure import uce
from assay.errors import Misconfigured, Mismatch, Missing
from assay.evaluation.centroid import CentroidJudge
from assay.judge import CrossJudge, Verdict
from assay.memorization.copies import copied
from assay.noise import numpy_generator
from assay.patch import Patch
from assay.record import Dossier, Record
from assay.testing import tiny, tiny_works
from assay.verbs.bench_pages import keep_page, tiles_of
from assay.verbs.bench_rows import Rows
from assay.verbs.erasure_scenes import pictures
from assay.verbs.erasures import Bench, counted
from assay.verbs.evaluate import Scene
from assay.verbs.generate import Prompt
from assay.verbs.session import Session, builtin_works, zoo

SMALL = {"each": {"target": 8, "neighbours": 4, "rest": 8}, "steps": 2}


class Stops:
    """A display that is interrupted when a text is said."""

    def __init__(self, at: str = "") -> None:
        self.at, self.said = at, []

    def __call__(self, stage: str, *_: object) -> None:
        if self.at and self.at in stage:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def works():
    return tiny_works()


def ask(works, out, **more):
    given = {"model": tiny(), "works": works, "concept": ["solid", "circle"], "methods": "uce,negative_prompt", "settings": SMALL}
    return assay.bench("erasure", **({"measure": True, "out": out} | given | more))


def numbers(kid):
    return {key: distance.model_dump() for key, distance in kid.items()}


def assert_near(found, expected):
    """Prompts encoded in other company differ in the last bit, and so do distances."""
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-3, abs=1e-9), key


def of(outcome) -> Results:
    return Results.model_validate_json(pathlib.Path(outcome.files["results"]).open().read())


@pytest.fixture(scope="module")
def whole(works, tmp_path_factory):
    """Two erasers and the base on a style and a family; as A' and as reference the model with other words rewritten."""
    folder = tmp_path_factory.mktemp("bench")
    model = tiny()
    for name, word in (("again", "cross"), ("reference", "circle")):
        uce.erase(model, Concept(word, anchor="ring")).save(folder / f"{name}.safetensors")
    patches = [f"{name}={folder / name}.safetensors" for name in ("again", "reference")]
    return folder, ask(works, folder / "out", patches=patches), patches


def test_every_cell_is_measured_and_reported(whole):
    """Five rows on two concepts: 10 of the 36 cells of the whole bench, fifteen erasers and three models on each."""
    folder, outcome, _ = whole
    results = of(outcome)
    assert len(results.cells) == 10
    assert len(results.planned) == 36
    assert [about.kind for about in results.concepts] == ["style", "object"]
    assert {cell.row for cell in results.cells} == {"base", "again", "reference", "uce", "negative_prompt"}
    assert not any(cell.failed for cell in results.cells)
    by = {(cell.concept, cell.row): cell for cell in results.cells}
    assert by["circle", "base"].shares["target.family"].n == by["circle", "uce"].shares["target.family"].n == 7  # 4 circles x 2 less a canary
    assert by["circle", "uce"].patch_bytes > 1000
    assert by["circle", "base"].patch == ""
    assert by["circle", "reference"].patch == by["solid", "reference"].patch == Patch.load(folder / "reference.safetensors").digest
    assert by["circle", "negative_prompt"].sampling == 3  # one prompt more than guidance
    assert by["circle", "uce"].sampling == 2
    assert by["circle", "uce"].kid.keys() >= {"base.judge", "base.fixed"}
    dossier = Dossier.load(outcome.out)
    assert [entry.stage for entry in dossier.entries] == ["All concepts", "solid", "circle"]
    assert not dossier.complete
    record = Record.load(outcome.out / dossier.entries[1].record)
    assert record.metric("uce.target").n == 8
    assert (outcome.out / "concept-1" / record.pictures[0].file).exists()
    assert "10 of 36 cells" in (outcome.out / "report.html").read_text()


def test_a_killed_bench_goes_on_with_the_same_figures(whole, works, tmp_path):
    """Interrupted while the pictures of UCE are drawn, then stopped by its limit, then let run: shares and distances are those of one sitting."""
    _, outcome, patches = whole
    out, given = tmp_path / "out", {"patches": patches, "concept": ["circle"], "methods": "uce"}
    with pytest.raises(KeyboardInterrupt):
        ask(works, out, **given, display=Stops("circle, uce: pictures"))
    cell = tmp_path / "out-kept/circle/uce"
    assert (cell / "patch.safetensors").exists()
    assert not (cell / "cell.json").exists()
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "out-kept").rglob("cell.json")}
    assert len(made) == 3
    display = Stops()
    stopped = ask(works, out, **given, limit=0, display=display)
    assert "3 of 18" in stopped.record.findings[0]
    assert stopped.status == "unfinished"
    assert any("1 cells are left" in text for text in display.said)
    ended = ask(works, out, **given)
    assert ended.status == "done"
    again = of(ended).of("circle")
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert not (cell / "patch.safetensors").exists()
    assert not (cell / "shards").exists()
    assert again.keys() == {"base", "again", "reference", "uce"}
    whole_row = of(outcome).of("circle")
    for row, found in again.items():
        assert (found.shares, found.patch_bytes) == (whole_row[row].shares, whole_row[row].patch_bytes)
        assert_near(numbers(found.kid), numbers(whole_row[row].kid))


def test_a_changed_plan_is_refused_before_anything_is_made(whole, works):
    folder, _, _ = whole
    kept = folder / "out-kept"
    before = sorted(kept.rglob("*"))
    other = tiny()
    other.pipeline.vae.register_to_config(scaling_factor=0.25)  # the same weights, drawn otherwise
    for changed in ({"settings": SMALL | {"steps": 3}}, {"seed": 1}, {"model": other}):
        with pytest.raises(Mismatch, match="belongs to another plan"):
            ask(works, folder / "out", **changed)
    assert sorted(kept.rglob("*")) == before


def test_what_no_cell_could_be_made_with_is_refused_before_anything_is_made(works, tmp_path):
    """A model of another base, and more steps than the model has timesteps: no folder belongs to the wrong plan."""
    uce.erase(tiny("sd-v"), Concept("cross", anchor="ring")).save(tmp_path / "foreign.safetensors")
    for wrong in ({"patches": [f"again={tmp_path / 'foreign'}.safetensors"]}, {"settings": SMALL | {"steps": 2000}}):
        with pytest.raises((Mismatch, Misconfigured)):
            ask(works, tmp_path / "out", concept=["solid"], methods="uce", **wrong)
        assert not list(tmp_path.rglob("plan.json"))


@pytest.mark.parametrize(("kinds", "rounds"), [(["style"], 1), (["object", "object"], 1), (["style", "object"], 3)])
def test_a_model_of_one_s_own_is_erased_from_by_the_paper_s_settings_for_this_kind(kinds, rounds):
    """RECE has three rounds for nudity, and one for styles and for objects (its authors' README); of both kinds the bench has one setting."""
    subjects = [Subject(str(number), kind, "red", "title=red") for number, kind in enumerate(kinds)]
    assert Rows(Session("bench", tiny(), "out", 0), subjects, {}, ()).chosen["rece"].rounds == rounds


@pytest.mark.parametrize(("kind", "rounds", "ridge"), [("style", 1, 0.001), ("object", 1, 0.1), ("work", 3, 0.1)])
def test_a_row_with_a_preset_has_what_the_paper_has_for_the_kind(kind, rounds, ridge):
    """RECE's authors attack styles with a ridge of 1e-3; for works its paper has no setting, and the row without a preset keeps the bench's."""
    subject = Subject("red", kind, "red", "title=red")
    rows = Rows(Session("bench", tiny(), "out", 0), [subject], {}, ())
    settings = rows.plan_of(subject, "rece@paper")
    assert (settings["rounds"], settings["attack_lam"]) == (rounds, ridge)
    assert rows.plan_of(subject, "rece@small") != settings
    assert rows.plan_of(subject, "uce+rece@paper") == [rows.plan_of(subject, "uce"), settings]


def test_an_eraser_is_measured_with_a_preset_of_its_own(works, tmp_path):
    """UCE as the bench has it and with its small preset, which scales the ridge: two rows of a patch each; the second stays when not asked for."""
    outcome = ask(works, tmp_path / "out", concept=["circle"], methods="uce,uce@small")
    rows = of(outcome).of("circle")
    assert rows.keys() == {"base", "uce", "uce@small"}
    assert not any(cell.failed for cell in rows.values())
    assert rows["uce"].patch != rows["uce@small"].patch
    assert of(outcome).made["uce"] != of(outcome).made["uce@small"]
    assert "uce@small" in of(ask(works, tmp_path / "out", concept=["circle"], methods="uce")).of("circle")


def test_models_that_were_measured_need_not_be_given_again(whole, works):
    folder, _, _ = whole
    assert len(of(ask(works, folder / "out")).cells) == 10


def test_a_bench_goes_on_from_what_is_stored_without_its_folder(whole, works, tmp_path):
    """As on another machine: one more eraser is made, with the base beside it, and nothing that was stored; then nothing is left to make."""
    _, outcome, _ = whole
    stored = tmp_path / "stored"
    stored.mkdir()
    for name in ("erasure.json", "erasure.png"):
        shutil.copy(outcome.out / name, stored)
    display = Stops()
    given = {"results": stored, "concept": ["solid", "circle"], "methods": "uce,negative_prompt,rece"}
    found = ask(works, tmp_path / "out", **given, display=display)
    made = {file.parent.name for file in (tmp_path / "out-kept").rglob("cell.json")}
    assert made == {"base", "rece"}
    assert any(text.startswith("10 cells are those of") for text in display.said)
    before, after = of(outcome), of(found)
    assert len(after.cells) == 12
    for name in ("solid", "circle"):
        rows = after.of(name)
        assert {row: rows[row].shares for row in before.of(name)} == {row: cell.shares for row, cell in before.of(name).items()}
        assert {row: rows[row].kid for row in before.of(name)} == {row: cell.kid for row, cell in before.of(name).items()}
    assert after.of("circle")["rece"].kid.keys() == {"base.judge", "base.fixed"}
    assert after.planned == before.planned  # also the models, whose patches were not given now
    assert [about.scale for about in after.concepts] == [about.scale for about in before.concepts]
    old, new = (tiles_of(place / "erasure.png") for place in (stored, found.out))
    assert set(new) == {(cell.concept, cell.row) for cell in after.cells}  # of twelve cells four are in the folder
    for place, tile in old.items():
        assert np.abs(np.asarray(tile, float) - np.asarray(new[place], float)).mean() < 12  # of 255, of noise in few colours
    shutil.copy(found.out / "erasure.json", stored)
    ask(works, tmp_path / "third", **given)
    assert not list((tmp_path / "third-kept").rglob("cell.json"))


def test_pictures_that_were_drawn_again_are_counted_on_the_page(whole, works, tmp_path):
    """Two are listed: the page says so, a bench elsewhere keeps the list, and where the cells themselves lie their own pictures are shown."""
    _, outcome, _ = whole
    places = [("circle", "uce"), ("solid", "negative_prompt")]
    (tmp_path / "erasure.json").write_text(of(outcome).model_copy(update={"redrawn": places}).model_dump_json())
    shutil.copy(outcome.out / "erasure.png", tmp_path)
    shown = assay.bench("erasure", results=tmp_path, out=tmp_path / "shown")
    assert " 2 are of an eraser or a model made again" in shown.record.pictures[0].caption
    assert of(ask(works, tmp_path / "out", results=tmp_path, limit=0)).redrawn == places
    there = ask(works, outcome.out, results=tmp_path, limit=0)
    assert of(there).redrawn == []
    assert "made again" not in there.record.pictures[0].caption


@pytest.mark.parametrize("names", [("one",), ("one", "a name of two lines or of three that is long", "three")])
def test_tiles_come_out_of_the_page_that_they_were_laid_out_in(tmp_path, names):
    """Expected: those that went in, of one colour each, by concept and row; none of a page of something else or made smaller, of another picture,
    or of no file; no page of none."""
    draw = numpy_generator(0, "tiles")
    tiles = {(name, row): Image.new("RGB", (8, 16), tuple(draw.integers(0, 250, 3).tolist())) for name in names for row in ("base", "uce")}
    tiles.pop((names[-1], "uce"))
    path = tmp_path / "page.png"
    keep_page({}, names, ["base"], path, 10**6)
    assert not path.exists()
    keep_page(tiles, [*names, "absent"], ["again", "uce", "base"], path, 10**6, "cats")
    found = tiles_of(path, "cats")
    assert {place: tile.getcolors() for place, tile in found.items()} == {place: tile.getcolors() for place, tile in tiles.items()}
    assert not tiles_of(path, "clocks")
    assert not tiles_of(tmp_path / "none.png")
    keep_page({place: Image.effect_noise((64, 64), 90).convert("RGB") for place in tiles}, names, ["uce", "base"], path, 2000)
    assert not tiles_of(path)
    tiles[names[0], "base"].save(path)
    assert not tiles_of(path)


def test_a_floor_measured_later_serves_distances_to_a_reference_that_is_gone(whole, works, tmp_path):
    """First with a reference and without A', then elsewhere with A' alone: floor and ceiling are those of one sitting with both."""
    _, outcome, (again, reference) = whole
    first = ask(works, tmp_path / "first", concept=["solid"], methods="uce", patches=[reference])
    assert of(first).concepts[0].scale == {}
    later = ask(works, tmp_path / "later", results=first.out, concept=["solid"], methods="uce", patches=[again])
    scale = of(later).concepts[0].scale
    assert scale.keys() == {"reference.fixed", "reference.judge"}
    assert_near(scale, of(outcome).concepts[0].scale)


def test_another_seed_is_measured_beside_and_shown_with_the_whole(whole, works, tmp_path):
    """Expected: a bench of its own, with other pictures; of stored ones only what has the same model, works, judge and settings is shown."""
    _, outcome, _ = whole
    other = ask(works, tmp_path / "seed", concept=["circle"], methods="uce", seed=1)
    assert {cell.row for cell in of(other).cells} == {"base", "uce"}
    assert of(other).of("circle")["base"].plan != of(outcome).of("circle")["base"].plan
    later = ask(works, tmp_path / "later", results=other.out, concept=["circle"], methods="uce", seed=1, dry_run=True)
    assert later.extra["lines"][0].startswith("0 of 2 cells are left")
    stored = tmp_path / "stored"
    stored.mkdir()
    shutil.copy(outcome.out / "erasure.json", stored)
    plain = assay.bench("erasure", results=stored, out=tmp_path / "plain")
    assert "with other seeds" not in (plain.out / "report.html").read_text()
    for seed, results in ((1, of(other)), (2, of(other).model_copy(update={"seed": 2, "settings": {}}))):
        (stored / f"erasure-seed-{seed}.json").write_text(results.model_dump_json())
    shown = assay.bench("erasure", results=stored, out=tmp_path / "out")
    table = Record.load(shown.out / "concept-2").tables[1]
    assert "with other seeds" in table.title
    assert [row[:2] for row in table.rows] == [["base", "0, 1"], ["uce", "0, 1"]]
    with pytest.raises(Mismatch, match="another plan"):
        assay.bench("erasure", results=stored, out=tmp_path / "plain")
    assert Record.load(assay.bench("erasure", results=stored, seed=1, out=tmp_path / "one").out).seeds == {"seed": 1}


def test_stored_cells_of_another_plan_are_not_taken(whole, works, tmp_path):
    """Of another seed: the base and UCE of one concept are priced anew, two cells."""
    _, outcome, _ = whole
    given = {"concept": ["circle"], "methods": "uce", "results": outcome.out, "dry_run": True}
    assert ask(works, tmp_path / "a", **given).extra["lines"][0].startswith("0 of 2 cells are left")
    shutil.copy(outcome.out / "erasure.json", tmp_path / "erasure-seed-1.json")
    given["results"] = tmp_path
    shutil.copy(outcome.out / "erasure.json", tmp_path)
    assert ask(works, tmp_path / "b", **given, seed=1).extra["lines"][0].startswith("2 of 2 cells are left")
    assert ask(works, tmp_path / "c", **given, settings=SMALL | {"steps": 3}).extra["lines"][0].startswith("2 of 2 cells are left")


class Names:
    """Says the titles it was given as the first of five that hold every title asked for."""

    name, digest = "names", "0" * 64

    def __init__(self, named):
        self.named = np.array(named, object)

    def chance(self, head, names=None):
        return 0.1 * (1 if names is None else len(names))

    def score(self, images, titles, styles):
        every = np.ones(len(titles), bool)
        known = np.array([title is not None for title in titles])
        return {"title": Verdict(known, known & (self.named == np.array(titles, object)), known, every * 1.0, self.named, every * 1.0)}


def test_what_is_counted_is_what_the_judge_says_of_those_it_knows():
    """Of three cats one is unknown to the judge, one named rightly, one as another cat; the dog is named as a cat and is among five."""
    rows = [Prompt(f"p{place}", "x", title=title) for place, title in enumerate(["cat", "kitten", None, "dog"])]
    what = Scene(rows, {"target": [0, 1, 2], "rest": [3]}, frozenset({"cat", "kitten", "lion"}))
    found = counted(Names(["cat", "cat", "cat", "cat"]), torch.zeros(4, 3, 8, 8), what)
    hits = {key: (share.hits, share.n) for key, share in found.items()}
    assert hits == {
        "target.title": (1, 2),
        "target.five": (2, 2),
        "target.family": (2, 2),
        "rest.title": (0, 1),
        "rest.five": (1, 1),
        "rest.family": (1, 1),
    }
    assert found["target.five"].chance == 0.5
    assert found["target.family"].chance == pytest.approx(0.3)


def bench_of(works, folder, subject):
    session = Session("bench", tiny(), folder / "out")
    return Bench(session, works, CentroidJudge(works), [subject], folder / "kept", Settings(**SMALL), {})


@pytest.mark.parametrize("seed", [0, 1])
def test_what_takes_long_is_planned_for_what_is_attacked(tmp_path, seed):
    """Of the built-in model: rows of the papers' settings on every concept, but those that take long, which are of one seed, and can be asked for."""
    works = builtin_works()
    session = Session("bench", "emoji64", tmp_path / "out", seed)
    bench = Bench(session, works, CrossJudge.load(zoo("judge")), subjects(works), tmp_path / "kept", Settings(), {})
    of_row = {row: {name for name, other in bench.planned if other == row} for row in (*PAPERS, *COMBINATIONS, "salun")}
    assert {row for row, names in of_row.items() if len(names) == 10} == {*PAPERS, "salun"} - {*LONG}
    few = {row: names for row, names in of_row.items() if names and len(names) < 10}
    assert few == {row: {*ATTACKED} for row in COMBINATIONS} | ({row: {*concepts} for row, concepts in LONG.items()} if seed == 0 else {})
    assert {("hearts", row) for row in LONG} <= {*bench.possible}


def test_an_eraser_that_fails_is_a_cell_with_its_reason(works, tmp_path):
    """UCE refuses a ridge that is not positive; the bench goes on, and says why in the concept's chapter."""
    bench = bench_of(works, tmp_path, Subject("solid", "style", "solid", ""))
    bench.rows.chosen["uce"] = uce.Settings(lam=-1.0)
    assert bench.measure([("solid", "uce"), ("solid", "negative_prompt")]) == 2
    results = bench.results()
    assert "`lam` must be positive" in results.of("solid")["uce"].failed
    assert not results.of("solid")["negative_prompt"].failed
    findings = chapter(results, results.concepts[0]).findings
    assert any(finding.startswith("uce failed: `lam` must be positive") for finding in findings)


def test_what_ran_out_of_memory_is_tried_again(works, tmp_path, monkeypatch):
    """No cell is kept of it, and the same bench makes it once there is room."""
    bench = bench_of(works, tmp_path, Subject("solid", "style", "solid", ""))
    with monkeypatch.context() as full:

        def raises(*_args, **_more):
            raise torch.OutOfMemoryError("no room")

        full.setattr(uce, "erase", raises)
        assert bench.measure([("solid", "uce")]) == 0
    assert bench.measure([("solid", "uce")]) == 1
    assert not bench.results().of("solid")["uce"].failed


def test_erasers_are_measured_together(works, tmp_path, monkeypatch):
    """A row of two has both patches on: UCE of a style and a negative prompt, each as alone and made once; what it cost is what both cost."""
    begun, erase = [], uce.erase
    monkeypatch.setattr(uce, "erase", lambda *args, **more: begun.append("uce") or erase(*args, **more))
    outcome = ask(works, tmp_path / "out", concept=["circle"], methods="uce,negative_prompt,uce+negative_prompt")
    assert begun == ["uce"]
    assert not list((tmp_path / "out-kept").rglob("patch.safetensors"))
    rows = of(outcome).of("circle")
    alone, both = [rows["uce"], rows["negative_prompt"]], rows["uce+negative_prompt"]
    assert not both.failed
    assert len(of(outcome).planned) == 17  # the base, fifteen erasers, and the one row of two that was asked for
    assert both.patches == tuple(cell.patch for cell in alone)
    assert (both.sampling, both.patch_bytes) == (3, sum(cell.patch_bytes for cell in alone))
    assert [path.name for path in (tmp_path / "out-kept/circle/uce+negative_prompt").iterdir() if path.is_dir()] == []
    assert len(of(ask(works, tmp_path / "out", concept=["circle"], methods="uce")).of("circle")) == 4  # it is still there
    elsewhere = ask(works, tmp_path / "elsewhere", results=outcome.out, concept=["circle"], methods="uce", limit=0)
    assert len(of(elsewhere).of("circle")) == 4  # also of what is stored alone


def test_distances_are_to_the_model_that_is_counted(whole, works, tmp_path):
    """A reference given anew takes the place of the stored one: what was measured to that is dropped, with its scale; so is a floor by another A'."""
    folder, outcome, _ = whole

    def stored(concept: str, *patches: str):
        """Take what is stored, and make nothing."""
        out = tmp_path / f"{concept}-{len(list(tmp_path.iterdir()))}"
        results = of(ask(works, out, results=outcome.out, concept=[concept], methods="uce", patches=patches, limit=0))
        about = next(about for about in results.concepts if about.name == concept)
        return [{key.partition(".")[0] for key in keys} for keys in (results.of(concept)["uce"].kid, about.scale)]

    reference, again = f"reference={folder / 'again'}.safetensors", f"again={folder / 'reference'}.safetensors"
    assert stored("solid") == [{"reference"}, {"reference"}]  # of everything else there are too few pictures for a distance, as of circles
    assert stored("circle") == [{"base"}, {"base"}]
    assert stored("solid", reference) == [set(), set()]
    assert stored("circle", reference) == [{"base"}, {"base"}]
    assert stored("solid", again) == [{"reference"}, set()]
    assert stored("circle", again) == [{"base"}, set()]


@pytest.mark.parametrize(("row", "left"), [("uce", False), ("reference", False), ("negative_prompt", True)])
def test_a_stored_distance_is_that_of_the_very_patch_and_the_very_reference(whole, works, tmp_path, row, left):
    """Of a cell of UCE on solid that is in the folder, a distance that only the stored cell has stays, unless that is of another patch, or the stored
    reference is another than the one that was given in this folder before, and is not given now."""
    _, outcome, _ = whole
    results, cells = of(outcome), []
    for cell in results.cells:
        other = {"patch": "other"} if (cell.concept, cell.row) == ("solid", row) else {}
        alien = {"kid": {**cell.kid, "reference.alien": next(iter(cell.kid.values()))}} if (cell.concept, cell.row) == ("solid", "uce") else {}
        cells.append(cell.model_copy(update=other | alien))
    (tmp_path / "erasure.json").write_text(results.model_copy(update={"cells": cells}).model_dump_json())
    found = of(ask(works, outcome.out, results=tmp_path, limit=0)).of("solid")
    assert ("reference.alien" in found["uce"].kid) is left
    assert found[row].patch == results.of("solid")[row].patch


@pytest.mark.parametrize("each", [5, {"target": 5}, {"target": 0, "neighbours": 4, "rest": 8}, {"target": "8", "neighbours": 4, "rest": 8}])
def test_refuses_numbers_of_prompts_that_no_scene_has(works, tmp_path, each):
    with pytest.raises(Misconfigured, match="each"):
        ask(works, tmp_path / "out", settings={"each": each})
    with pytest.raises(Misconfigured, match="each"):
        assay.bench("attacks", measure=True, model=tiny(), works=works, concept=["solid"], settings={"each": {"target": 5}}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_patch_begun_in_another_sitting_is_marked(works, tmp_path):
    """Its seconds are not those of the erasure: said of the cell, starred in the table, and no overhead is made of them."""
    rows, concept = bench_of(works, tmp_path, Subject("solid", "style", "solid", "")).rows, Concept("solid", "style", "outline")
    assert not rows.made("uce", concept, tmp_path / "whole")[1]["resumed"]
    (tmp_path / "part/training").mkdir(parents=True)
    (tmp_path / "part/training/checkpoint.safetensors").touch()
    assert rows.made("uce", concept, tmp_path / "part")[1]["resumed"]


def test_what_is_stored_is_shown_without_a_model(whole, tmp_path):
    _, outcome, _ = whole
    with pytest.raises(Missing, match="no results of the bench"):
        assay.bench("erasure", results=tmp_path, out=tmp_path / "none")
    for name in ("erasure.json", "erasure.png"):
        shutil.copy(outcome.out / name, tmp_path)
    shown = assay.bench("erasure", results=tmp_path, out=tmp_path / "out")
    assert shown.record.findings == outcome.record.findings
    assert [picture.file for picture in shown.record.pictures] == ["erasure.png"]
    assert (tmp_path / "erasure.png").stat().st_size < 600_000
    lines = (tmp_path / "erasure.json").read_text().splitlines()
    assert sum('"row"' in line for line in lines) == 10  # a line a cell
    assert json.loads("\n".join(lines))["format"] == "assay/bench-erasure/1"


def test_a_plan_is_priced_without_making_anything(works, tmp_path):
    """Two concepts under the base and UCE: 4 scenes of 20 pictures, 2 steps, 2 passes each."""
    outcome = ask(works, tmp_path / "out", methods=["uce"], dry_run=True)
    assert outcome.extra["plan"]["passes"] == 4 * 20 * 2 * 2
    assert outcome.extra["lines"][0].startswith("4 of 4 cells are left")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        {"concept": ()},
        {"methods": ["no_such_method"]},
        {"methods": ["uce+wanda"]},
        {"methods": ["uce@moon"]},
        {"methods": ["uce@"]},
        {"methods": ["uce+uce@paper"]},
        {"patches": ["moon=x.safetensors"]},
        {"patches": ["x.safetensors"]},
        {"settings": {"moon": 1}},
        {"kind": "work"},
        {"measure": False},
    ],
)
def test_what_cannot_be_measured_is_refused(works, tmp_path, given):
    with pytest.raises(Misconfigured):
        ask(works, tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_a_canary_is_asked_for_by_its_caption_and_judged_by_copies(works, tmp_path):
    """The work shown 16 times is asked for with eight seeds; the copies counted are those among pictures drawn anew from its caption."""
    (place,) = [index for index, row in enumerate(works.rows()) if row["copies"] == 16]
    row = works.rows()[place]
    subject = Subject(row["captions"][0], "work", row["captions"][0], f"id={row['id']}")
    bench = bench_of(works, tmp_path, subject)
    asked = bench.asked(subject.name)
    target = [asked.what.rows[index] for index in asked.what.groups["target"]]
    assert {prompt.prompt for prompt in target} == {row["captions"][0]}
    assert len({prompt.image_seed(0) for prompt in target}) == 8
    first = asked.what.rows[asked.what.groups["neighbours"][0]]
    assert first.title == row["title"]
    assert first.style != row["style"]
    assert asked.concept.anchor == row["title"]
    assert row["captions"][0] not in asked.concept.preserve
    assert bench.measure([(subject.name, "base")]) == 1
    cell = bench.cell(subject.name, "base")
    prompts, seeds = [prompt.prompt for prompt in target], [prompt.image_seed(0) for prompt in target]
    drawn = (bench.session.denoiser.generate(prompts, seeds, steps=2, guidance=4.0) * 255).round().byte().numpy()
    work = works.pixels(32)[place].transpose(2, 0, 1).copy()
    hits = int(copied(drawn, work, bench.judge, bench.rule).sum())
    assert (cell.shares["target.copy"].hits, cell.shares["target.copy"].n) == (hits, 8)
    assert cell.shares["target.copy"].chance == bench.rule.achieved
    assert "target.title" not in cell.shares
    assert bench.measure([(subject.name, "base")]) == 0


def test_a_composition_is_asked_for_beside_its_things_apart(works, tmp_path):
    """Green circles are the pair; circles of other colours and green shapes of other kinds are its things, each drawn 40 times and told to stay."""
    subject = Subject("green circle", "object", "green circle", "title=green circle", "", (("circles", "title~circle"), ("green", "title~green")))
    bench = bench_of(works, tmp_path, subject)
    asked = bench.asked(subject.name)
    titles = {name: {asked.what.rows[index].title for index in rows} for name, rows in {**asked.what.groups, **asked.things}.items()}
    assert titles["target"] == {"green circle"}
    assert titles["circles"] <= {f"{colour} circle" for colour in ("red", "blue", "orange", "purple")}
    assert titles["green"] <= {f"green {shape}" for shape in ("square", "triangle", "cross", "ring")}
    assert titles["neighbours"] == titles["circles"] | titles["green"]
    assert not titles["rest"] & (titles["target"] | titles["neighbours"])
    assert [len(rows) for rows in asked.things.values()] == [40, 40]
    assert len({(prompt.prompt, prompt.image_seed(0)) for prompt in asked.what.rows}) == len(asked.what.rows)
    assert titles["neighbours"] - {asked.concept.anchor} <= set(asked.concept.preserve)
    assert len(asked.what.rows) == pictures(subject, SMALL["each"])
    assert bench.measure([(subject.name, row) for row in ("base", "uce")]) == 2
    results = bench.results()
    base, erased = (results.of(subject.name)[row].shares for row in ("base", "uce"))
    record = chapter(results, results.concepts[0])
    falls = [base[f"{thing}.five"].value - erased[f"{thing}.five"].value for thing in ("circles", "green")]
    kept = int(max(falls) <= 0.05 + 1e-9)
    said = f"{kept} of 1 erasers leave each of `circles` and `green` within 5% where it is alone"
    assert any(finding.startswith(said) for finding in record.findings)
    assert "held against its things" in record.findings[-1]
    assert record.metric("uce.green").n == 40
