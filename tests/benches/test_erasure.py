"""The plan of the bench: whose settings were chosen on what, which canaries, and distances against plain loops."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from assay.benches.erasure import (
    ATTACKED,
    LONG,
    NO_OPS,
    OBJECTS,
    PAPERS,
    STYLES,
    VALIDATION,
    About,
    Cell,
    Results,
    Settings,
    Share,
    distances,
    subjects,
)
from assay.benches.erasure_bars import idle
from assay.benches.verdicts import COST, NEAR
from assay.noise import numpy_generator
from assay.training.world import REFERENCES
from assay.verbs.bench_rows import AGAINST_COPIES
from assay.verbs.methods import table
from assay.verbs.session import builtin_works
from assay.works.filters import condition

STORED = Path(__file__).parents[2] / "benchmarks"
TRIALS = STORED / "erasure-tuning.json"


@pytest.fixture(scope="module")
def works():
    return builtin_works()


@pytest.mark.zoo
def test_no_concept_of_the_bench_chose_a_setting(works):
    """No work fits both a concept of the bench and one that settings were chosen on, styles apart; and no canary is in such a style."""
    validation = condition(list(VALIDATION.values())[1:], works)
    assert "fluent" not in {subject.name for subject in STYLES}
    for subject in subjects(works):
        shown = works.where(condition((subject.where,), works)).rows()
        if subject.kind != "style":
            assert not any(validation(row) for row in shown), subject.name
        if subject.kind == "work":
            assert [row["style"] for row in shown] != ["fluent"]


@pytest.mark.zoo
def test_canaries_are_two_works_shown_64_times_outside_every_other_concept(works):
    chosen = [subject for subject in subjects(works) if subject.kind == "work"]
    rows = [works.where(condition((subject.where,), works)).rows() for subject in chosen]
    assert [len(found) for found in rows] == [1, 1]
    assert [found[0]["copies"] for found in rows] == [64, 64]
    assert len({found[0]["style"] for found in rows}) == 2
    objects = condition([subject.where for subject in OBJECTS], works)
    assert not any(objects(found[0]) for found in rows)
    assert [subject.name for subject in chosen] == [found[0]["captions"][0] for found in rows]


@pytest.mark.zoo
def test_every_reference_never_saw_its_concept(works):
    """The training that a concept is held against drops every work of it."""
    for subject in subjects(works):
        if not subject.reference:
            assert subject.apart
            continue
        dropped = condition(REFERENCES[subject.reference].selection.drop, works)
        shown = works.where(condition((subject.where,), works))
        assert len(shown)
        assert all(dropped(row) for row in shown.rows()), subject.name


def test_the_whole_bench_fits_into_its_time():
    """A scene is 96 pictures of 20 steps with guidance, the 27 s at 7 ms a pass that the six hours are planned on."""
    settings = Settings()
    assert sum(settings.each.values()) * settings.steps * 2 == 3840


def test_distances_are_those_of_plain_loops():
    """KID to the base is over what was to stay, KID to the reference over the target; both without the terms that share a prompt."""
    rng = numpy_generator("test", "distances")
    groups = {"target": list(range(8)), "neighbours": list(range(8, 11)), "rest": list(range(11, 18))}
    rows = ("base", "again", "reference", "esd")
    features = {row: {"judge": rng.normal(size=(18, 5))} for row in rows}

    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    def apart(one, other, places):
        x, y = features[one]["judge"], features[other]["judge"]
        pairs = list(itertools.permutations(places, 2))
        return np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(y[i], x[j]) for i, j in pairs])

    kid, scale = distances(features, groups, 0)
    stay, target = list(range(8, 18)), list(range(8))
    assert kid["esd"]["base.judge"].value == pytest.approx(apart("esd", "base", stay))
    assert kid["esd"]["reference.judge"].value == pytest.approx(apart("esd", "reference", target))
    assert scale["base.judge"]["floor"] == pytest.approx(apart("again", "base", stay))
    assert scale["reference.judge"] == pytest.approx({"floor": apart("again", "base", target), "ceiling": apart("base", "reference", target)})
    without, ends = distances({row: features[row] for row in ("base", "again", "esd")}, groups, 0)  # the reference's pictures are elsewhere
    assert ends["reference.judge"] == {"floor": scale["reference.judge"]["floor"]}
    assert (ends["base.judge"], without["esd"].keys()) == (scale["base.judge"], {"base.judge"})
    x = features["base"]["judge"]
    within = [np.mean([kernel(x[i], x[j]) for i, j in itertools.permutations(places, 2)]) for places in (stay, target)]
    assert scale["base.judge"]["ceiling"] == pytest.approx(sum(within) - 2 * np.mean([kernel(x[i], x[j]) for i in stay for j in target]))


def test_pictures_of_one_prompt_are_no_independent_pairs():
    """What is to stay has 8 prompts twice each, whose own terms are left out; of the target, all of one prompt, seeds are the pairs."""
    rng = numpy_generator("test", "prompts")
    groups = {"target": list(range(8)), "rest": list(range(8, 24))}
    features = {row: {"judge": rng.normal(size=(24, 5))} for row in ("base", "reference", "esd")}
    prompts = ["one"] * 8 + [f"rest {place % 8}" for place in range(16)]
    kid, _ = distances(features, groups, 0, prompts)
    x, y = features["esd"]["judge"], features["base"]["judge"]

    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    pairs = [(i, j) for i, j in itertools.permutations(groups["rest"], 2) if prompts[i] != prompts[j]]
    expected = np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(y[i], x[j]) for i, j in pairs])
    assert kid["esd"]["base.judge"].value == pytest.approx(expected)
    assert kid["esd"]["reference.judge"] == distances(features, groups, 0)[0]["esd"]["reference.judge"]


def test_the_papers_settings_are_rows_unless_they_do_nothing():
    """By the stored trials: a method is a row if its paper's settings move anything of fluent or fruit by 10 points, and no row if of neither."""
    trials = json.loads(TRIALS.read_text())["trials"]
    base = {trial["concept"]: trial["shares"] for trial in trials if trial["method"] == "base"}
    tried: dict[str, list[bool]] = {}
    for trial in trials:
        if trial.get("preset") == "paper":
            tried.setdefault(trial["method"], []).append(idle(base[trial["concept"]], trial["shares"]))
    assert {f"{name}@paper" for name, still in tried.items() if not all(still)} == {*PAPERS}
    assert {name for name, still in tried.items() if all(still)} == set(NO_OPS)
    assert {row["name"] for row in table("erasure")} - set(AGAINST_COPIES) == set(tried)


def test_rows_that_take_long_are_of_few_concepts():
    """By the stored trials: over six minutes a concept, and over half an hour. Planned are they with the first seed alone."""
    for trial in json.loads(TRIALS.read_text())["trials"]:
        if trial.get("preset") == "paper" and (row := f"{trial['method']}@paper") in PAPERS:
            assert (trial["seconds"] > 360) == (row in LONG), row
            assert (trial["seconds"] > 1800) == (row in LONG and len(LONG[row]) == 1), row
    for name in ("erasure", "erasure-seed-1", "erasure-seed-2"):
        planned = Results.model_validate_json((STORED / f"{name}.json").read_bytes()).planned
        assert {name for name, row in planned if row == "uce@paper"} >= {*ATTACKED}
        for row, concepts in LONG.items():
            assert {concept for concept, other in planned if other == row} == ({*concepts} if name == "erasure" else set())


def test_by_their_papers_salun_costs_style_gradient_ascent_leaves_noise_and_two_erasers_leave_the_concept_in():
    """As docs/world.md and the changelog say of twemoji, noto, cats and clocks, by stored cells."""
    bench = Results.model_validate_json((STORED / "erasure.json").read_bytes())
    cells = [(about, bench.of(about.name)) for about in bench.concepts if about.name in ATTACKED]

    def hits(row: str, head: str = "") -> list[int]:
        shares = [of[row].shares[head or f"target.{about.heads['target']}"] for about, of in cells]
        assert {share.n for share in shares} <= ({44, 47, 48} if head else {24})
        return [share.hits for share in shares]

    assert [about.name for about, _ in cells] == ["twemoji", "noto", "cats", "clocks"]
    assert hits("base") == [19, 20, 16, 21]
    assert (hits("salun@paper"), hits("concept_ablation@paper"), hits("esd@paper")) == ([0, 1, 0, 0], [19, 19, 16, 21], [20, 22, 9, 22])
    assert (hits("base", "rest.style"), hits("salun@paper", "rest.style")) == ([39, 45, 43, 41], [8, 25, 37, 35])
    assert hits("salun", "rest.style")[:2] == [30, 42]
    assert all(before - after > COST * 48 for before, after in zip(hits("base", "rest.style"), hits("salun@paper", "rest.style"), strict=True))
    for row in ("concept_ablation@paper", "esd@paper"):
        assert all(left - gone > NEAR * 24 for left, gone in zip(hits(row), hits("reference"), strict=True))
    assert (hits("base", "rest.five"), hits("maximise_loss@paper", "rest.five")) == ([28, 19, 14, 20], [1, 0, 0, 1])
    assert hits("maximise_loss@paper") == [0, 24, 0, 0]  # the judge calls noise noto
    robust = cells[2][1]["adv_unlearn@paper"].shares
    assert [robust[head].hits for head in ("target.family", "rest.five", "rest.style")] == [1, 1, 18]
    for row in ("esd@paper", "maximise_loss@paper", "adv_unlearn@paper"):
        assert not any(key.startswith("reference") for _, of in cells if row in of for key in of[row].kid)


def test_a_trial_on_one_concept_is_not_the_bench():
    """As docs/world.md says, by the stored trials of the papers' settings: hits of the target, of everything else and of neighbours."""
    stored = json.loads(TRIALS.read_text())["trials"]
    trials = [trial for trial in stored if trial["method"] == "base" or trial.get("preset") == "paper"]
    of = {(trial["method"], trial["concept"]): {part: hits for part, (hits, _) in trial["shares"].items()} for trial in trials}
    parts = ("target", "rest", "neighbours")
    fluent = {row: [of[row, "fluent"][f"{part}.style"] for part in parts] for row in ("base", "salun", "esd", "adv_unlearn")}
    assert fluent["base"] == [18, 28, 13]
    assert (fluent["salun"][:2], fluent["esd"][0], fluent["adv_unlearn"]) == ([0, 30], 17, [0, 15, 5])
    assert (of["base", "fruit"]["target.family"], of["esd", "fruit"]["target.family"]) == (10, 13)
    fast = [trial for trial in stored if trial["method"].startswith("adv_unlearn,") and trial["concept"] == "fluent"]
    fast = {trial["settings"]["retain_weight"]: trial["shares"] for trial in fast if trial["settings"]["learning_rate"] == 3e-4}
    assert {weight: [shares[f"{part}.style"][0] for part in parts[1:]] for weight, shares in fast.items()} == {3.0: [17, 5], 10.0: [23, 13]}


def test_uce_takes_out_what_it_moves_far_enough():
    """As the head of `uce` says: 42 % of the way and more loses most, 34 % and less keeps most, by stored figures, which are the bench's own."""
    rows = {row["concept"]: row for row in json.loads((STORED / "uce-scale.json").read_text())["reach"]}
    bench = Results.model_validate_json((STORED / "erasure.json").read_bytes())
    for about in bench.concepts:
        share = bench.of(about.name)["uce"].shares[f"target.{about.heads['target']}"]
        assert rows[about.name]["shown"]["uce"] == [share.hits, share.n]
    drawn = {name: row for name, row in rows.items() if row["shown"]["base"][0]}
    assert len(drawn) == 13
    far = {name: row["ways"][0]["moved"] >= 0.42 for name, row in drawn.items()}
    assert all(row["ways"][0]["moved"] <= 0.345 for name, row in drawn.items() if not far[name])
    left = {name: row["shown"]["uce"][0] / row["shown"]["base"][0] for name, row in drawn.items()}
    assert max(left[name] for name in drawn if far[name]) < 0.5 < min(left[name] for name in drawn if not far[name])
    assert 0 < sum(far.values()) < len(far)


def test_a_no_op_moves_nothing_by_ten_points():
    """Of twenty two are ten points, in either direction and in any part; what was never drawn does not count."""
    base = {"target.style": (18, 20), "rest.five": (10, 20), "neighbours.five": (0, 0)}
    assert idle(base, {"target.style": (17, 20), "rest.five": (11, 20), "neighbours.five": (0, 0)})
    for moved in ({"target.style": (16, 20)}, {"target.style": (20, 20)}, {"rest.five": (12, 20)}):
        assert not idle(base, base | moved)


def test_distances_need_models_to_be_held_against():
    """Without A' there is no floor, without a reference nothing to be near to; too few pictures have no distance."""
    one = {"judge": numpy_generator("test", "few").normal(size=(18, 3))}
    groups = {"target": list(range(4)), "rest": list(range(4, 18))}
    kid, scale = distances({"base": one, "uce": one}, groups, 0)
    assert kid["base"] == {}
    assert kid["uce"]["base.judge"].value == pytest.approx(0, abs=1e-12)  # the same pictures, up to how products are rounded
    assert scale == {}
    kid, scale = distances({"base": one, "again": one, "reference": one}, groups, 0)
    assert "reference.judge" not in kid["base"]  # four pictures
    assert scale.keys() == {"base.judge"}


def test_cells_come_in_the_order_of_the_plan():
    about = About(name="cats", kind="object", heads={}, reference="no-families", anchor="dog")
    cells = [Cell(concept="cats", row="uce"), Cell(concept="cats", row="base"), Cell(concept="hearts", row="base", failed="no")]
    planned = [("cats", "base"), ("hearts", "base"), ("cats", "uce"), ("cats", "esd")]
    results = Results(model="m", digests={}, seed=0, settings={}, concepts=[about], planned=planned, cells=cells)
    assert list(results.of("cats")) == ["base", "uce"]
    assert results.coverage == "3 of 4 cells are measured, 1 of them failed."


def test_overhead_is_over_bare_passes():
    """2 s for 100 passes of 10 ms are twice the bare passes; had half of them gradients, at three each, they are the bare passes themselves."""
    assert Cell(concept="c", row="r", seconds=2.0, passes=100, second_per_pass=0.01).overhead == pytest.approx(2.0)
    assert Cell(concept="c", row="r", seconds=2.0, passes=100, trained=50, second_per_pass=0.01).overhead == pytest.approx(1.0)
    assert Cell(concept="c", row="r", seconds=2.0).overhead is None
    assert Share(hits=0, n=0).value == 0
