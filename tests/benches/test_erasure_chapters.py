"""What the bench says of cells written by hand: figures, verdicts and what is missing, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.benches.erasure import ATTACKED, LONG, PAPERS, About, Beside, Cell, Distance, Moved, Results, Share
from assay.benches.erasure_bars import bars, erased, over_seeds, relative
from assay.benches.erasure_chapters import chapter, shows_not, trained_again, verdict
from assay.evaluation.intervals import wilson

HEADS = {"target": "family", "neighbours": "five", "rest": "five"}
SCALE = {"base.judge": {"floor": 0.01, "ceiling": 0.05}, "reference.judge": {"floor": 0.02, "ceiling": 0.12}}


def cell(row: str, target: int, rest: int, **more) -> Cell:
    """Of 20 pictures of the target and 40 of everything else."""
    shares = {"target.family": Share(hits=target, n=20, chance=0.02), "neighbours.five": Share(hits=5, n=10), "rest.five": Share(hits=rest, n=40)}
    return Cell(concept="cats", row=row, shares=shares, **more)


def results(cells: list[Cell], scale: dict | None = None) -> Results:
    about = About(name="cats", kind="object", heads=HEADS, reference="no-families", anchor="dog", members=["cat"], scale=scale or {})
    planned = [("cats", row) for row in ("base", "again", "reference", "uce", "esd", "salun")]
    return Results(model="m", digests={"judge": "j" * 64}, seed=3, settings={"steps": 20}, concepts=[about], planned=planned, cells=cells)


def test_figures_stand_beside_their_intervals():
    kid = {"base.judge": Distance(value=0.03, low=0.01, high=0.05, n=48), "reference.judge": Distance(value=0.07, low=0.02, high=0.12, n=24)}
    cost = {"seconds": 3.0, "passes": 200, "second_per_pass": 0.01, "peak_bytes": 3 * 2**20, "patch_bytes": 2048, "sampling": 2.0}
    found = results([cell("base", 16, 10), cell("again", 15, 11), cell("reference", 2, 10), cell("uce", 3, 9, kid=kid, **cost)], SCALE)
    record = chapter(found, found.concepts[0])
    row = record.tables[0].rows[3]
    assert row == ["uce", "15% (5% to 36%)", "50% (24% to 76%)", "22% (12% to 38%)", "0.50", "0.50", "3", 200, "1.50", "3", "2", "2"]
    target = record.metric("uce.target")
    assert (target.value, target.n, target.chance, target.better) == (0.15, 20, 0.02, "lower")
    assert (target.low, target.high) == wilson(3, 20)
    assert record.metric("uce.kid.reference.judge").value == pytest.approx(0.5)
    assert record.metric("uce.kid.base.judge").low == pytest.approx(0.0)
    assert [record.metric(f"uce.kid.{to}.judge").n for to in ("base", "reference")] == [48, 24]  # pairs of pictures, not those of everything else


def test_how_coarse_shares_are_is_said_of_the_images_that_were_drawn():
    """One of 24 is 4 %, 5 % of 48 are 2.4; 40 and 40 of 48 differ by 0 +- 15 % (Newcombe: hypot(40/48 - 0.704, 0.913 - 40/48), Wilson's ends).
    A bench of its own settings says its own numbers."""
    found = results([cell("base", 16, 10)])
    low, high = wilson(40, 48)
    width = (((40 / 48 - low) ** 2 + (high - 40 / 48) ** 2) ** 0.5) * 100
    said = shows_not(found)[-1]
    assert "With 24 images of the target one image is 4%; with 48 of everything else the bar of 5% is 2.4 images." in said
    assert f"is {width:.0f}% to either side" in said
    assert round(width) == 15
    few = found.model_copy(update={"settings": {"each": {"target": 8, "neighbours": 4, "rest": 12}}})
    assert "With 8 images of the target one image is 12%; with 12 of everything else the bar of 5% is 0.6 images." in verdict(few).shows_not[-1]
    assert chapter(few, few.concepts[0]).shows_not == verdict(few).shows_not


def test_seconds_of_a_last_sitting_are_starred():
    cost = {"seconds": 3.0, "passes": 200, "second_per_pass": 0.01, "peak_bytes": 3 * 2**20, "patch_bytes": 2048, "sampling": 2.0, "resumed": True}
    found = results([cell("base", 16, 10), cell("uce", 3, 9, **cost)])
    assert chapter(found, found.concepts[0]).tables[0].rows[1][-6:] == ["3*", 200, "", "3", "2", "2"]


def test_erasers_are_held_against_retraining():
    """The reference keeps 10 %: UCE (15 %, rest 9 of 40 for 10) meets both bars, ESD (50 %) does not, SalUn failed."""
    salun = Cell(concept="cats", row="salun", failed="The training diverged.")
    found = results([cell("base", 16, 10), cell("reference", 2, 10), cell("uce", 3, 9), cell("esd", 10, 10), salun])
    record = chapter(found, found.concepts[0])
    bar = "leave at most 10 points more of `cats` than retraining and take at most 5 off everything else"
    assert record.findings[0] == f"1 of 3 erasers {bar}, in title and in style: uce."
    assert any("without an eraser too" in line and line.endswith(": retraining +0.") for line in record.findings)
    assert "salun failed: The training diverged." in record.findings
    assert any("another seed" in finding and "--patch again=" in finding for finding in record.findings)
    whole = verdict(found)
    assert whole.tables[0].rows == [["cats", "80%", "10%", "yes", 1, 2, 1, 3, "uce", ""]]
    assert whole.metric("cats.like_retraining").value == 1
    assert whole.metric("salun.rank.target").value == 3
    assert whole.findings[0] == "5 of 6 cells are measured, 1 of them failed."


def test_two_models_of_one_training_are_said():
    """Each concept is held against its own; where one stands for both, or a user's own models do, there is nothing to say."""
    one = results([cell("base", 16, 10), cell("reference", 2, 10, patch="a" * 64), cell("uce", 3, 9)])

    def beside(patch: str, name: str = "no-families") -> list[str]:
        about = [about.model_copy(update={"reference": name}) for about in (*one.concepts, one.concepts[0].model_copy(update={"name": "clocks"}))]
        more = [found.model_copy(update={"concept": "clocks", "patch": patch * bool(found.patch)}) for found in one.cells]
        return trained_again(one.model_copy(update={"concepts": about, "cells": [*one.cells, *more]}))

    assert beside("a" * 64) == beside("b" * 64, "reference") == trained_again(one) == []
    said = "2 models stand for the training `no-families`, which differ at least in their bits: one for `cats`; one for `clocks`."
    assert beside("b" * 64) == [said]


def test_a_bar_met_by_a_few_pictures_is_not_certain():
    """UCE leaves nothing of 20 and 10 of 40 as the base does, but 20 pictures cannot tell 0 from 17 %; of 2,000 they tell it from 1 %."""
    cells = [cell("base", 16, 10), cell("reference", 2, 10), cell("uce", 0, 10)]
    found = results(cells)
    assert (
        chapter(found, found.concepts[0])
        .findings[1]
        .startswith("Of these, for certain (95 % intervals of the differences, which so few images hardly allow): none;")
    )
    many = [
        one.model_copy(update={"shares": {name: Share(hits=100 * each.hits, n=100 * each.n) for name, each in one.shares.items()}}) for one in cells
    ]
    assert ": uce; with as little off neighbours: uce." in chapter(results(many), found.concepts[0]).findings[1]


def test_everything_else_is_held_by_title_and_by_style():
    """Of a style concept: its style is named of 39 of 48 after as before, its titles of 22 for 28: 12.5 points, which is no sparing."""
    about = About(name="cats", kind="style", heads={"target": "style", "neighbours": "style", "rest": "style"}, reference="no-cats", anchor="noto")
    rows = []
    for row, target, five in (("base", 20, 28), ("reference", 1, 28), ("esd", 1, 27), ("adv_unlearn", 1, 22)):
        shares = {"target.style": Share(hits=target, n=24), "rest.style": Share(hits=39, n=48), "rest.five": Share(hits=five, n=48)}
        rows.append(Cell(concept="cats", row=row, shares=shares))
    found = results(rows).model_copy(update={"concepts": [about]})
    assert chapter(found, about).findings[0].startswith("1 of 2 erasers")
    assert chapter(found, about).findings[0].endswith(": esd.")


def test_combinations_and_balancing_are_no_erasers_of_their_own():
    rows = [cell("base", 16, 10), cell("reference", 2, 10), cell("uce", 3, 9), cell("esd+uce", 3, 9), cell("uce_debias", 3, 9)]
    found = results(rows)
    said = chapter(found, found.concepts[0]).findings
    assert said[0].startswith("1 of 1 erasers")
    assert "Of 1 combination of erasers these meet both bars: esd+uce." in said
    assert verdict(found).tables[0].rows[0][-3:] == [1, "uce", "esd+uce"]


def test_other_presets_are_held_apart():
    """UCE meets both bars as the bench has it and leaves half with the paper's settings; ESD meets them with its paper's."""
    rows = [cell("base", 16, 10), cell("reference", 2, 10), cell("uce", 3, 9), cell("uce@paper", 10, 10), cell("esd@paper", 3, 9)]
    found = results([*rows, cell("esd@paper+sld@max", 16, 10), cell("fair_diffusion@paper", 3, 9)])
    said = chapter(found, found.concepts[0]).findings
    assert said[0].startswith("1 of 1 erasers")
    assert "Of 2 with other presets, `paper` the paper's own, these meet both bars: esd@paper." in said
    assert "Of 1 combination of erasers these meet both bars: none." in said


def test_a_work_has_no_distance_to_the_reference():
    """Its pictures are of one prompt: the floor, between two models that draw it, says nothing of two that do not."""
    kid = {"reference.judge": Distance(value=0.07, low=0.02, high=0.12, n=24)}
    found = results([cell("base", 16, 10), cell("uce", 3, 9, kid=kid)], SCALE)
    work = found.concepts[0].model_copy(update={"kind": "work"})
    assert [chapter(found, about).tables[0].rows[1][5] for about in (found.concepts[0], work)] == ["0.50", ""]


def test_what_is_drawn_in_the_place_of_the_concept_is_held_against_the_reference():
    """On the scale of 0.02 to 0.12 UCE's interval, 0.03 to 0.11, ends below 1, ESD's, 0.13 to 0.2, begins above, SalUn's holds 1. Where retraining
    takes less than 40 points off the target nothing is said."""
    ends = {"uce": (0.03, 0.11), "esd": (0.13, 0.2), "salun": (0.1, 0.14)}
    kid = {row: {"reference.judge": Distance(value=(low + high) / 2, low=low, high=high, n=24)} for row, (low, high) in ends.items()}
    rows = [cell("base", 16, 10), cell("reference", 2, 10), *(cell(row, 3, 9, kid=kid[row]) for row in ends), cell("uce+esd", 0, 9, kid=kid["uce"])]
    found = results(rows, SCALE)
    (line,) = [line for line in chapter(found, found.concepts[0]).findings if "draw nearer" in line]
    assert line.startswith("Asked for `cats`, 1 of 3 erasers draw nearer to what the model that never saw it draws than the base does")
    assert "interval: uce; 1 draw farther from it: esd. That little" in line
    weak = results([cell("base", 9, 10), *rows[1:]], SCALE)
    assert not any("draw nearer" in line for line in chapter(weak, weak.concepts[0]).findings)


def test_a_reference_that_hardly_differs_is_said_not_to_speak():
    """Retraining takes the target from 80 % to 60 %, less than the 40 points from which a family is admitted."""
    found = results([cell("base", 16, 10), cell("reference", 12, 10), cell("uce", 3, 9)])
    assert any("hardly speaks for `cats`" in finding for finding in chapter(found, found.concepts[0]).findings)
    whole = verdict(found)
    assert whole.tables[0].rows[0][3] == "no"
    assert whole.findings[1] == "No reference takes 40% or more off its target, so no erasure is held against retraining."
    assert "Of `cats` it takes less" in whole.findings[2]
    assert not any(metric.name == "cats.like_retraining" for metric in whole.metrics)
    edge = results([cell("base", 12, 10), cell("reference", 4, 10), cell("uce", 3, 9)])  # 60 % less 20 % is 40 points, which floats miss by a hair
    assert not any("hardly speaks" in finding for finding in chapter(edge, edge.concepts[0]).findings)
    assert verdict(edge).tables[0].rows[0][3] == "yes"


def test_what_the_judge_cannot_name_is_no_evidence():
    """No picture of the target was asked for by a title that the judge knows: 0 of 0 is not 0 %."""
    cells = [cell(row, 0, 10) for row in ("base", "reference", "uce")]
    blind = [one.model_copy(update={"shares": {"rest.five": one.shares["rest.five"]}}) for one in cells]
    found = results(blind)
    said = chapter(found, found.concepts[0]).findings
    assert said[0].startswith("The judge cannot name what is asked for of `cats`")
    assert not any("erasers bring" in line or "Least of" in line for line in said)
    whole = verdict(found)
    assert not any(metric.name.endswith("like_retraining") or ".rank." in metric.name for metric in whole.metrics)


def test_a_composition_that_the_base_never_draws_cannot_be_taken_out():
    heads = {"target": "five", "neighbours": "five", "rest": "five", "cats": "five"}
    about = About(name="cats", kind="object", heads=heads, things=["cats"], reference="", anchor="dog")
    for before, said in (
        (0, "the base never shows the pair"),
        (8, "1 of them also halve the pair (uce: the pair falls from 40% to 20% (8% to 42%), `cats` changes by +0 points)"),
    ):
        rows = []
        for row, target in (("base", before), ("uce", before // 2)):
            shares = {"target.five": Share(hits=target, n=20), "rest.five": Share(hits=9, n=40), "cats.five": Share(hits=5, n=10)}
            rows.append(Cell(concept="cats", row=row, shares=shares))
        found = Results(model="m", digests={"judge": "j" * 64}, seed=3, settings={}, concepts=[about], planned=[], cells=rows)
        assert any(said in line for line in chapter(found, about).findings)


def test_a_base_at_chance_proves_no_erasing():
    """One of 20 pictures of the base shows the target; the interval, 1 % to 24 %, holds the chance of 2 %."""
    found = results([cell("base", 1, 10), cell("uce", 0, 10)])
    assert chapter(found, found.concepts[0]).findings[0].startswith("That the base itself shows `cats` more often than chance is not certain")
    found = results([cell("base", 16, 10), cell("uce", 0, 10)])
    assert not any("no more often" in finding for finding in chapter(found, found.concepts[0]).findings)


def test_what_is_not_measured_is_said():
    found = results([cell("base", 16, 10)])
    said = chapter(found, found.concepts[0]).findings
    assert any("`--patch no-families=`" in finding for finding in said)
    assert "no eraser is held against retraining" in verdict(found).findings[1]
    near = {"base.judge": {"floor": 0.02, "ceiling": 0.01}}
    found = results([cell("base", 16, 10), cell("again", 16, 10), cell("reference", 2, 10)], near)
    assert any("no farther than another seed" in finding for finding in chapter(found, found.concepts[0]).findings)
    assert any("composition" in text for text in verdict(found).shows_not)


def test_where_only_other_rows_were_measured_those_are_held_and_nothing_else_is_denied():
    """A sitting that was stopped after the models, or asked for a combination or a preset alone: of these no single eraser is measured, and that is
    said; the combination, which leaves 3 of 20 for the reference's 2, meets the bars."""
    models = [cell("base", 16, 10), cell("reference", 2, 10)]
    for rows, line in (
        ([], "No single eraser with the bench's settings has been measured on it yet."),
        ([cell("uce+rece", 3, 10)], "Of 1 combination of erasers these meet both bars: uce+rece."),
        ([cell("uce@paper", 3, 10)], "Of 1 with other presets, `paper` the paper's own, these meet both bars: uce@paper."),
    ):
        found = results([*models, *rows])
        said, whole = chapter(found, found.concepts[0]).findings, verdict(found).findings
        assert line in said
        assert not any("Nothing of this concept" in text or "has a measured reference" in text for text in [*said, *whole])
        assert "No single eraser with the bench's settings is held against retraining yet." in whole
    assert chapter(results([]), found.concepts[0]).findings[0] == "Nothing of this concept has been measured yet."


def test_why_a_distance_is_empty_is_said():
    """Two erasers of which one was drawn where the reference's pictures were; a scale that lacks the floor of a distance that is there."""
    ends, near = {"floor": 0.01, "ceiling": 0.2}, {"reference.judge": Distance(value=0.1, low=0.0, high=0.2, n=20)}
    rows = [
        cell("base", 16, 10),
        cell("again", 16, 10),
        cell("reference", 2, 10),
        cell("uce", 3, 9).model_copy(update={"kid": near}),
        cell("esd", 4, 10),
    ]
    found = results(rows, {"base.judge": ends, "reference.judge": ends})
    assert any(line.startswith("Of 1 of 2 rows the distance to the reference is empty") for line in chapter(found, found.concepts[0]).findings)
    found = results(rows[:4], {"base.judge": ends, "reference.judge": ends})
    assert not any("empty" in line for line in chapter(found, found.concepts[0]).findings)
    found = results(rows[:4], {"base.judge": ends})
    assert any("their floor or ceiling was measured to another model" in line for line in chapter(found, found.concepts[0]).findings)


def test_what_the_papers_settings_do_is_said_of_the_built_in_bench_alone():
    """A user's bench with one such row says nothing of trials on another model; the built-in one names no eraser that it has a row of."""
    rows = [cell("base", 16, 10), cell("uce@paper", 3, 10), cell("esd@paper", 3, 10)]
    found = results(rows)
    assert not any("no-ops" in line for line in verdict(found).findings)

    def said(papers: list[str]) -> str:
        planned = [("cats", row) for row in ("base", *papers)]
        (line,) = (line for line in verdict(found.model_copy(update={"planned": planned})).findings if "no-ops" in line)
        return line

    assert "No rows of the bench are those of forget_me_not, inverse_lora, uce_debias, which" in said([*PAPERS])
    few = "concept_ablation@paper, maximise_loss@paper, esd@paper, salun@paper on twemoji, noto, cats, clocks; adv_unlearn@paper on cats."
    assert f"are on few: {few}" in said([*PAPERS])
    of_another_seed = said([row for row in PAPERS if row not in LONG])
    assert "are on few" not in of_another_seed
    alone = "of concept_ablation, maximise_loss, salun, adv_unlearn, which train for minutes a concept and are measured with seed 0."
    assert of_another_seed.endswith(alone)  # of ESD there is one


def test_seeds_stand_beside_each_other():
    """UCE meets both bars with each seed, ESD (60 % of the target left with the second) with one; SalUn has one seed, RECE had other settings."""
    made = {"uce": "1", "esd": "2", "rece": "3"}
    rows = [cell("base", 16, 10), cell("reference", 2, 10), cell("uce", 3, 9), cell("esd", 4, 10), cell("salun", 0, 10), cell("rece", 0, 10)]
    first = results(rows).model_copy(update={"made": made})
    rows = [cell("base", 15, 11), cell("reference", 1, 10), cell("uce", 1, 10), cell("esd", 12, 11), cell("rece", 0, 10)]
    second = results(rows).model_copy(update={"seed": 4, "made": made | {"rece": "4"}})
    assert first.repeats(second)
    assert not first.repeats(first)
    assert not first.repeats(second.model_copy(update={"settings": {"steps": 10}}))
    record = chapter(first, first.concepts[0], [second])
    assert any("several of 2 seeds these meet both bars with all: uce;" in line and line.endswith(": esd (1 of 2).") for line in record.findings)
    # Half of the base's target: 3 of 16 and 1 of 15 left by UCE, 4 of 16 and 12 of 15 by ESD; of everything else UCE takes 1 of 40 with each seed.
    assert any(line.startswith("Of 2 erasers measured with 2 seeds") and "with all: uce; with some: esd (1 of 2)" in line for line in record.findings)
    rows = {row[0]: row[1:] for row in record.tables[1].rows}
    assert rows.keys() == {"base", "reference", "uce", "esd"}
    # Student's intervals: of 15 % and 5 %, 10 % +- 12.706 * 7.071 % / sqrt(2) = 63.5 %; of 22.5 % and 25 %, 23.75 % +- 15.9 %.
    assert rows["uce"] == ["3, 4", "3/20, 1/20", "10% (0% to 74%)", "9/40, 10/40", "24% (8% to 40%)"]
    low, high = wilson(20, 80)
    assert rows["reference"][-1] == f"25% ({low:.0%} to {high:.0%})"  # both seeds have 10 of 40: Wilson's of all images is the wider
    whole = verdict(first, [second])
    assert "Of 2 erasures held against retraining with several seeds 1 have the same verdict with each." in whole.findings
    assert len(chapter(first, first.concepts[0]).tables) == 1
    assert verdict(first).findings == [finding for finding in whole.findings if "several seeds" not in finding]


def test_seeds_that_cannot_be_compared_are_left_out():
    """A retraining that hardly speaks with the second seed, another model of a user's, and a failed cell, which stays in the table in words."""
    first = results([cell("base", 16, 10), cell("reference", 2, 10, patch="r"), cell("uce", 3, 9)])

    def other(*cells: Cell) -> Results:
        return results(list(cells)).model_copy(update={"seed": 4})

    def users(one: Results) -> Results:
        return one.model_copy(update={"concepts": [one.concepts[0].model_copy(update={"reference": "reference"})]})

    weak = other(cell("base", 9, 10), cell("reference", 2, 10, patch="r"), cell("uce", 1, 10))
    foreign = users(other(cell("base", 16, 10), cell("reference", 2, 10, patch="s"), cell("uce", 1, 10)))
    for own, second in ((first, weak), (first, foreign), (users(first), foreign)):
        assert not any("several seeds" in finding for finding in chapter(own, own.concepts[0], [second]).findings)
    assert [row[0] for row in chapter(first, first.concepts[0], [foreign]).tables[1].rows] == ["base", "uce"]
    failed = other(cell("base", 16, 10), cell("reference", 2, 10, patch="r"), Cell(concept="cats", row="uce", failed="It diverged."))
    record = chapter(first, first.concepts[0], [failed])
    assert record.tables[1].rows[-1][:4] == ["uce", "3, 4", "3/20, failed", "15% (5% to 36%)"]
    assert any("several of 2 seeds" in line and "with all: none;" in line and line.endswith(": uce (1 of 2).") for line in record.findings)
    assert any("measured with 2 seeds" in line and "with all: none; with some: uce (1 of 2)" in line for line in record.findings)


def test_another_model_of_the_same_training_stands_for_another_seed():
    """As another seed of an eraser does: A' and the reference, which both benches name the same; the base is one model. That two stand is said."""
    rows = [cell("base", 16, 10), cell("uce", 3, 9)]
    first = results([*rows, cell("reference", 2, 10, patch="r"), cell("again", 15, 10, patch="a")])
    second = results([*rows, cell("reference", 1, 9, patch="s"), cell("again", 14, 11, patch="b")]).model_copy(update={"seed": 4})
    record = chapter(first, first.concepts[0], [second])
    assert {row[0]: row[2] for row in record.tables[1].rows} == {
        "base": "16/20, 16/20",
        "again": "15/20, 14/20",
        "reference": "2/20, 1/20",
        "uce": "3/20, 3/20",
    }
    assert any("several of 2 seeds these meet both bars with all: uce;" in line for line in record.findings)
    said = [line for line in verdict(first, [second]).findings if "models stand for" in line]
    each = "differ at least in their bits: one for `cats`; one for `cats` with seed 4."
    assert said == [f"2 models stand for the training `{name}`, which {each}" for name in ("again", "no-families")]
    assert not first.repeated(second.model_copy(update={"cells": [cell("base", 16, 10, patch="c")]}), "cats")


def test_erasers_stand_beside_another_seed():
    """UCE is nearer to the base than A' in both spaces by an interval below zero; ESD in one only, where the other's interval holds zero."""

    def moved(value: float, high: float | None = None) -> Moved:
        beyond = None if high is None else Distance(value=value - 0.01, low=value - 0.02, high=high, n=500)
        return Moved(value=value, low=value / 2, high=2 * value, alike=0.0001, beyond=beyond)

    kid = {
        "again": {"judge": moved(0.01), "fixed": moved(0.01)},
        "uce": {"judge": moved(0.001, -0.002), "fixed": moved(0.001, -0.003)},
        "esd": {"judge": moved(0.001, -0.002), "fixed": moved(0.009, 0.001)},
    }
    about = {"concept": "cats", "seed": 1, "settings": {"steps": 20.0}, "prompts": 500, "images": 1000, "patches": {}, "features": "f" * 64}
    stored = Beside(**about, digests={"judge": "j" * 64}, kid=kid)
    found = results([cell("base", 16, 10)])
    record = verdict(found, (), [stored])
    what = "On 1,000 pictures of 500 prompts outside `cats` and its neighbours"
    assert f"{what} 1 of 2 erasers are nearer to the base than A', one training with another seed: uce." in record.findings
    assert record.tables[-1].rows[2] == ["uce", "judge", "0.001 (0.0005 to 0.002)", "0.0001", "-0.009 (-0.019 to -0.002)"]
    assert verdict(found, (), [stored.model_copy(update={"digests": {"judge": "k" * 64}})]) == verdict(found)  # of another judge


def test_two_erasers_come_near_retraining_with_every_seed():
    """The changelog says of the stored cells: RECE meets both bars with three seeds on noto, cats and clocks, Concept Ablation on the last two, UCE
    on clocks, and nothing on twemoji."""
    stored = Path(__file__).parents[2] / "benchmarks"
    first, *others = (Results.model_validate_json((stored / f"erasure{which}.json").read_bytes()) for which in ("", "-seed-1", "-seed-2"))
    always = {
        about.name: {row for row, each in over_seeds(first, others, about).items() if [all(both) for both in each] == [True] * 3}
        for about in first.concepts
        if about.name in ATTACKED
    }
    assert always == {
        "twemoji": set(),
        "noto": {"rece"},
        "cats": {"rece", "concept_ablation"},
        "clocks": {"rece", "concept_ablation", "uce"},
    }


def test_what_meets_the_bars_need_not_draw_what_retraining_draws():
    """The changelog says of the stored cells: who is nearer to the reference than the base is, and who farther, with every seed; and of the cells
    that meet both bars how many are which."""
    stored = Path(__file__).parents[2] / "benchmarks"
    nearer, farther, meeting = {}, {}, []
    for which in ("", "-seed-1", "-seed-2"):
        found = Results.model_validate_json((stored / f"erasure{which}.json").read_bytes())
        for about in found.concepts:
            if about.name in ATTACKED:
                cells = found.of(about.name)
                ends = {row: relative(about, cell, "reference.judge")[1:] for row, cell in erased(cells).items()}
                nearer.setdefault(about.name, []).append({row for row, (_, high) in ends.items() if high < 1})
                farther.setdefault(about.name, []).append({row for row, (low, _) in ends.items() if low > 1})
                met = {row for row, both in bars(about, cells, erased(cells)).items() if all(both)}
                meeting.append((len(met), len(met & nearer[about.name][-1]), len(met & farther[about.name][-1])))
    assert {name: set.intersection(*rows) for name, rows in nearer.items()} == {
        "twemoji": {"negative_prompt", "sega"},
        "noto": set(),
        "cats": {"uce"},
        "clocks": set(),
    }
    assert [name for name, rows in farther.items() if "rece" in set.intersection(*rows)] == ["twemoji", "cats", "clocks"]
    assert [name for name, rows in farther.items() if "concept_ablation" in set.intersection(*rows)] == ["cats", "clocks"]
    assert [sum(column) for column in zip(*meeting, strict=True)] == [33, 3, 22]


def test_models_that_never_saw_a_style_still_draw_it_at_times():
    """The changelog says of the stored cells: twemoji in 5 of 24 and noto in 3, the base in 19 and 20."""
    found = Results.model_validate_json((Path(__file__).parents[2] / "benchmarks/erasure.json").read_bytes())
    shown = {name: [found.of(name)[row].shares["target.style"].hits for row in ("reference", "base")] for name in ("twemoji", "noto")}
    assert shown == {"twemoji": [5, 19], "noto": [3, 20]}
    assert all(
        relative(about, cell, "reference.judge")[0] is not None
        for about in found.concepts
        if about.name in shown
        for cell in erased(found.of(about.name)).values()
    )
