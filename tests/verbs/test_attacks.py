"""The bench of attacks end to end on a tiny model: patches are made once, a killed bench goes on, changed plans are refused, failures have words."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch

import assay
from assay.attacks import seed_search
from assay.attacks.target import Attack
from assay.benches.attacks import SUBJECTS, Results, Settings
from assay.benches.erasure import Subject
from assay.concept import Concept
from assay.erasure import negative_prompt, uce
from assay.errors import Misconfigured, Mismatch, Missing, Unsupported
from assay.evaluation.centroid import CentroidJudge
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Dossier, Record, kept_tensors
from assay.testing import tiny, tiny_works
from assay.verbs.attack import judged_seed, judged_seeds, numbered
from assay.verbs.attacks import Bench
from assay.verbs.bench_pages import tiles_of
from assay.verbs.bench_rows import Rows
from assay.verbs.session import Session

SMALL = {"each": 3, "image_steps": 2, "budget": 30.0}
QUICK = {"methods": "uce,negative_prompt,uce+negative_prompt", "attacks": "random_prompts"}


class Stops:
    """A display that is interrupted when a text is shown."""

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
    given = {"model": tiny(), "works": works, "concept": ["circle"], "settings": SMALL, "results": out} | QUICK
    return assay.bench("attacks", measure=True, out=out, **(given | more))


def of(outcome) -> Results:
    return Results.model_validate_json(pathlib.Path(outcome.files["results"]).read_bytes())


@pytest.fixture(scope="module")
def whole(works, tmp_path_factory):
    """Two erasers, both together, base and reference under one attack; the reference is the model with other words rewritten."""
    folder = tmp_path_factory.mktemp("bench")
    uce.erase(tiny(), Concept("circle", anchor="ring")).save(folder / "reference.safetensors")
    patches = [f"reference={folder}/reference.safetensors"]
    return folder, ask(works, folder / "out", patches=patches), patches


def test_every_cell_is_measured_judged_and_reported(whole):
    """Five rows under one attack: 5 of the cells of fifteen erasers, two combinations and two models under nine attacks."""
    folder, outcome, _ = whole
    results = of(outcome)
    assert results.planned == (15 + 2 + 2) * 9
    cells = {cell.row: cell for cell in results.cells}
    assert cells.keys() == {"base", "reference", "uce", "negative_prompt", "uce+negative_prompt"}
    assert not any(cell.failed or cell.early for cell in results.cells)
    assert cells["base"].patches == []
    assert cells["reference"].patches == [Patch.load(folder / "reference.safetensors").digest]
    assert cells["uce+negative_prompt"].patches == [*cells["uce"].patches, *cells["negative_prompt"].patches]
    for cell in results.cells:
        pre, post, attacked, total = (cell.shares[key] for key in ("pre", "post", "attacked", "total"))
        assert total.hits == pre.hits + post.hits  # by the prompt alone, or broken of the rest
        assert (total.n, post.n) == (pre.n, pre.n - pre.hits)
        assert max(pre.hits, attacked.hits) <= total.hits <= pre.hits + attacked.hits
        assert cell.shares["base"] == cells["base"].shares["pre"]
        assert "an image of" in cell.prompt
    dossier = Dossier.load(outcome.out)
    assert [entry.stage for entry in dossier.entries] == ["All concepts", "circle"]
    record = Record.load(outcome.out / dossier.entries[1].record)
    assert record.metric("uce.random_prompts.total").n == cells["uce"].shares["total"].n
    assert (outcome.out / "concept-1" / record.pictures[0].file).exists()
    assert [picture.file for picture in outcome.record.pictures] == ["attacks.png"]
    assert results.shown == "circle"  # of all concepts the one with pictures
    assert len(tiles_of(outcome.out / "attacks.png", "circle")) == 5
    assert "5 of 171 cells" in (outcome.out / "report.html").read_text()


def test_patches_are_made_once_and_compose(whole, works, tmp_path):
    """The combination read the patches of its parts, and what it drew is what both on the model draw."""
    folder, _, _ = whole
    kept = folder / "out-kept/circle"
    assert {file.parent.name for file in kept.rglob("patch.safetensors")} == {"uce", "negative_prompt"}
    bench = bench_of(works, tmp_path, Subject("circle", "object", "circle", ""))
    concept, ground, _ = bench.asked("circle")
    model = tiny()
    pair = [(uce.erase(model, concept), 1.0), (negative_prompt.erase(model, concept), 1.0)]
    seeds = [judged_seed(0, row, 0) for row in ground.rows]
    with Patched(model, pair):
        drawn = model.generate([row.prompt for row in ground.rows], seeds, steps=2, guidance=4.0)
    found = kept_tensors(kept / "uce+negative_prompt/before.safetensors")
    assert found is not None
    assert np.abs(found["images"].numpy().astype(int) - (drawn * 255).round().numpy().astype(int)).max() <= 1


def test_a_killed_bench_goes_on_with_the_same_figures(whole, works, tmp_path):
    """Interrupted while the attacked images of UCE are drawn, then stopped by its limit, then let run: the shares of one sitting."""
    _, outcome, patches = whole
    out, given = tmp_path / "out", {"patches": patches, "methods": "uce"}
    with pytest.raises(KeyboardInterrupt):
        ask(works, out, **given, display=Stops("circle, uce: plain images"))
    row = tmp_path / "out-kept/circle/uce"
    assert (row / "patch.safetensors").exists()
    made = {file: file.stat().st_mtime_ns for file in [row / "patch.safetensors", *(tmp_path / "out-kept").rglob("cell.json")]}
    assert len(made) == 3
    display = Stops()
    stopped = ask(works, out, **given, limit=0, display=display)
    assert "2 of 162" in stopped.record.findings[0]
    assert stopped.status == "unfinished"
    assert any("1 cells are left" in text for text in display.said)
    ended = ask(works, out, **given)
    assert ended.status == "done"
    again = of(ended)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert not (row / "random_prompts/shards").exists()
    shares = {cell.row: (cell.shares, cell.prompt) for cell in of(outcome).cells}
    assert {cell.row: (cell.shares, cell.prompt) for cell in again.cells} == {row: shares[row] for row in ("base", "reference", "uce")}


def test_a_changed_plan_is_refused_before_anything_is_made(whole, works):
    folder, _, patches = whole
    before = sorted((folder / "out-kept").rglob("*"))
    for changed in ({"settings": SMALL | {"image_steps": 3}}, {"settings": SMALL | {"budget": 9.0}}, {"seed": 1}):
        with pytest.raises(Mismatch, match="belongs to another plan"):
            ask(works, folder / "out", patches=patches, **changed)
    assert sorted((folder / "out-kept").rglob("*")) == before


def test_a_reference_that_was_measured_need_not_be_given_again(whole, works):
    folder, _, _ = whole
    assert len(of(ask(works, folder / "out")).cells) == 5


def test_a_misfit_reference_is_refused_before_anything_is_drawn(works, tmp_path):
    uce.erase(tiny(seed=1), Concept("circle", anchor="ring")).save(tmp_path / "other.safetensors")
    with pytest.raises(Mismatch, match="another base"):
        ask(works, tmp_path / "out", patches=[f"reference={tmp_path}/other.safetensors"])
    assert not list(tmp_path.rglob("before.safetensors"))


def test_a_training_given_under_the_name_of_another_is_refused(works, tmp_path):
    """What a model was trained as is in its patch; a user's own says nothing of it and is taken."""
    session, file = Session("bench", tiny(), tmp_path / "out"), tmp_path / "given.safetensors"
    made = uce.erase(session.denoiser, Concept("circle", anchor="ring"))

    def given(words, name):
        dataclasses.replace(made, manifest=made.manifest.model_copy(update={"made_for": words})).save(file)
        return Rows(session, SUBJECTS, {name: file}, ("base", "reference")).patches[name].manifest.made_for

    with pytest.raises(Mismatch, match="was trained as `no-twemoji`, not as `no-noto`"):
        given("emoji64 retrained without style=twemoji (no-twemoji)", "no-noto")
    for words, name in (("emoji64 retrained without style=twemoji (no-twemoji)", "no-twemoji"), ("by hand", "no-noto")):
        assert given(words, name) == words


def bench_of(works, folder, subject):
    session = Session("bench", tiny(), folder / "out")
    return Bench(session, works, CentroidJudge(works), [subject], folder / "kept", Settings(**SMALL), {})


def test_an_eraser_that_fails_is_said_in_each_of_its_cells(works, tmp_path, monkeypatch):
    """UCE refuses a ridge that is not positive: tried once, and its combination fails with the same reason; the rest goes on."""
    bench = bench_of(works, tmp_path, Subject("solid", "style", "solid", ""))
    bench.rows.chosen["uce"] = uce.Settings(lam=-1.0)
    bench.special.append("uce+rece")
    bench.chosen["seed_search"] = seed_search.Settings(attempts=2)
    tried, erase = [], uce.erase
    monkeypatch.setattr(uce, "erase", lambda *args, **more: tried.append(1) or erase(*args, **more))
    cells = [("solid", "uce", "random_prompts"), ("solid", "uce+rece", "random_prompts"), ("solid", "negative_prompt", "seed_search")]
    assert bench.measure(cells) == 3
    results = bench.results()
    failed = {cell.row: cell.failed for cell in results.cells}
    assert "uce: `lam` must be positive" in failed["uce"]
    assert failed["uce+rece"] == failed["uce"]
    assert failed["negative_prompt"] == ""
    assert len(tried) == 1
    assert set(bench.tiles(results, "solid")) == {("negative_prompt", "seed_search")}


def test_an_attack_that_cannot_be_made_is_a_cell_with_its_reason(works, tmp_path, monkeypatch):
    bench = bench_of(works, tmp_path, Subject("circle", "object", "circle", ""))

    def refuses(*_args, **_more):
        raise Unsupported("Nothing to search.", "")

    monkeypatch.setattr(bench.modules["random_prompts"], "attack", refuses)
    assert bench.measure([("circle", "base", "random_prompts")]) == 1
    assert bench.results().cells[0].failed == "Nothing to search."


def test_what_ran_out_of_memory_is_tried_again(works, tmp_path, monkeypatch):
    """No cell is kept of it, the others are made, and the same bench makes it once there is room; an eraser is tried once a sitting."""
    bench = bench_of(works, tmp_path, Subject("solid", "style", "solid", ""))
    cells = [("solid", row, "random_prompts") for row in ("uce", "negative_prompt")]
    with monkeypatch.context() as full:

        def raises(*_args, **_more):
            raise torch.OutOfMemoryError("no room")

        full.setattr(uce, "erase", raises)
        assert bench.measure(cells) == 1
        assert [cell.row for cell in bench.results().cells] == ["negative_prompt"]
    assert bench.left(cells) == cells[:1]
    assert bench_of(works, tmp_path, Subject("solid", "style", "solid", "")).measure(cells) == 1


def test_the_seeds_of_a_seed_search_are_new(works, tmp_path):
    """Of 3 attempts none repeats the plain image; an attack in other words, or in embeddings, is judged on its seed first."""
    ground = bench_of(works, tmp_path, Subject("circle", "object", "circle", "")).asked("circle")[1]
    same = Attack(tuple(row.prompt for row in ground.rows for _ in range(3)), attempts=3)
    assert numbered(ground.rows, same) == range(1, 4)
    assert not {judged_seed(0, row, 0) for row in ground.rows} & set(judged_seeds(0, ground.rows, same))
    assert numbered(ground.rows, dataclasses.replace(same, prompts=("a",) * len(same.prompts))) == range(3)
    assert numbered(ground.rows, dataclasses.replace(same, conditioning=tiny().conditioning(same.prompts))) == range(3)


def test_what_is_stored_is_shown_without_a_model(whole, tmp_path):
    _, outcome, _ = whole
    with pytest.raises(Missing, match="no results of the bench of attacks"):
        assay.bench("attacks", results=tmp_path, out=tmp_path / "none")
    for name in ("attacks.json", "attacks.png"):
        shutil.copy(outcome.out / name, tmp_path)
    shown = assay.bench("attacks", results=tmp_path, out=tmp_path / "out")
    assert shown.record.findings == outcome.record.findings
    assert (tmp_path / "attacks.png").stat().st_size < 250_000
    lines = (tmp_path / "attacks.json").read_text().splitlines()
    assert sum('"attack"' in line for line in lines) == 5  # a line a cell
    assert json.loads("\n".join(lines))["format"] == "assay/bench-attacks/1"


def test_a_bench_goes_on_from_what_is_stored_without_its_folder(whole, works, tmp_path):
    """As on another machine: nothing that was stored is made again; of another seed all five rows of the attack are."""
    _, outcome, _ = whole
    stored = tmp_path / "stored"
    stored.mkdir()
    for name in ("attacks.json", "attacks.png"):
        shutil.copy(outcome.out / name, stored)
    found = ask(works, tmp_path / "out", results=stored)
    assert not list((tmp_path / "out-kept").rglob("cell.json"))
    assert of(found).cells == of(outcome).cells
    old, new = (tiles_of(place / "attacks.png", of(outcome).shown) for place in (stored, found.out))
    assert set(old) == set(new) == {(cell.row, cell.attack) for cell in of(outcome).cells if cell.concept == of(found).shown}
    assert not tiles_of(stored / "attacks.png", "another")
    more = {"results": stored, "dry_run": True}
    assert ask(works, tmp_path / "a", **more).extra["lines"][0].startswith("0 of 4 cells are left")
    assert ask(works, tmp_path / "b", **more, seed=1).extra["lines"][0].startswith("4 of 4 cells are left")


def test_erasers_asked_for_together_on_one_concept_are_not_made_on_every_other(whole, works, tmp_path):
    """Of two concepts base, fifteen erasers and the bench's pair, 34 cells, and the pair that is stored of circles; asked for, it is made on both."""
    _, outcome, _ = whole
    given = {"results": outcome.out, "concept": ["circle", "square"], "methods": None, "dry_run": True}
    assert ask(works, tmp_path / "a", **given).extra["lines"][0].startswith("31 of 35 cells are left")
    given |= {"methods": "uce+negative_prompt"}
    assert ask(works, tmp_path / "b", **given).extra["lines"][0].startswith("2 of 4 cells are left")


def test_a_plan_is_priced_without_making_anything(works, tmp_path):
    """Base and UCE under one attack of 40 attempts, as the authors' code has it: 2 sets of plain images and 2 x 40 of attacked ones, 3 prompts,
    2 steps, 2 passes each; searches end after 30 s."""
    outcome = ask(works, tmp_path / "out", methods=["uce"], dry_run=True)
    assert outcome.extra["plan"]["passes"] == (2 + 2 * 40) * 3 * 2 * 2
    assert outcome.extra["lines"][0].startswith("2 of 2 cells are left")
    assert "after 30 s" in outcome.extra["lines"][1]
    assert not list(tmp_path.iterdir())


def test_a_search_is_priced_at_its_budget_at_most(works, tmp_path):
    """Relearning has 8 passes a prompt and its steps' batches with gradients, priced at three; at a second a pass they would outlast 30 s."""
    bench = bench_of(works, tmp_path, Subject("circle", "object", "circle", ""))
    settings = bench.chosen["relearning"]
    trained, cells = settings.steps * settings.batch, [("circle", "uce", "relearning"), ("circle", "uce", "random_prompts")]
    assert bench.searching(cells, 1e-6) == (24 + trained, pytest.approx((24 + 3 * trained) * 1e-6))
    assert bench.searching(cells, 1.0) == (24 + trained, 30.0)


@pytest.mark.parametrize(
    "given",
    [
        {"concept": ()},
        {"methods": "uce+no_such_method"},
        {"methods": "uce+uce"},
        {"attacks": "uce"},
        {"patches": ["again=x.safetensors"]},
        {"settings": {"budget": 0.0}},
        {"settings": {"moon": 1}},
        {"settings": {"image_steps": 2000}},
        {"kind": "work"},
    ],
)
def test_what_cannot_be_measured_is_refused(works, tmp_path, given):
    with pytest.raises(Misconfigured):
        ask(works, tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())
