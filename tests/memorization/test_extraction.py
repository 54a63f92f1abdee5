"""Extraction on works made in code. What a model that copies would draw is planted by hand; the tiny pipelines copy nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest

from assay.errors import Misconfigured, Unsupported
from assay.evaluation.centroid import CentroidJudge
from assay.evaluation.cliques import tightest
from assay.evaluation.similarity import tiled_l2, tiled_l2_pairs
from assay.evaluation.thresholds import Threshold
from assay.memorization import extraction, mine, nearest
from assay.memorization.extraction import Drawing, Found, Prompt, Settings, audit, check, cost
from assay.memorization.groups import Group, choose
from assay.noise import numpy_generator
from assay.testing import tiny_works
from assay.works import Works

QUICK = Settings(images=4, clique=3, round=2, steps=2, members=4, batch=8, matches=3, false_positive_rate=0.4)


@pytest.fixture(scope="module")
def works():
    return tiny_works()


@pytest.fixture(scope="module")
def judge(works):
    return CentroidJudge(works)


def noisy(image, count, spread, seed):
    rng = numpy_generator(seed)
    return (image + rng.normal(0, spread, (count, *image.shape))).round().clip(0, 255).astype(np.uint8)


def test_a_prompt_keeps_the_distances_of_all_its_images():
    """Added in two rounds, the table is that of all pairs, and the clique is the planted one."""
    rng = numpy_generator(1)
    work = rng.integers(0, 256, (3, 64, 64))
    images = np.concatenate([rng.integers(0, 256, (4, 3, 64, 64)).astype(np.uint8), noisy(work, 3, 4, 2)])
    prompt = Prompt(0, Group("canary", "one", 16, [0]))
    prompt.add(images[:5], 3, math.inf)
    prompt.add(images[5:], 3, math.inf)
    for one in range(7):
        expected = tiled_l2(np.repeat(images[[one]], 7, 0), images)
        np.testing.assert_allclose(prompt.distances[one], expected, atol=1e-6)
    assert prompt.clique.members == (4, 5, 6)


def test_a_planted_copy_is_extracted_and_what_agrees_without_copying_is_not(works):
    """Three prompts: one draws its work with noise, one draws the same new picture each time, one draws at random."""
    training = works.where(lambda row: row["split"] == "member" and row["copies"] > 0)
    pixels = training.pixels(64).transpose(0, 3, 1, 2).astype(np.int64)
    canary = training.column("copies").index(16)
    rng = numpy_generator(4)
    made = [noisy(pixels[canary], 4, 3, 5), noisy(rng.integers(0, 256, (3, 64, 64)), 4, 3, 6), rng.integers(0, 256, (4, 3, 64, 64)).astype(np.uint8)]
    row = works.column("id").index(training.column("id")[canary])
    groups = [Group("canary", "one", 16, [row]), Group("members", None, 1, [0]), Group("holdout", None, 0, [1])]
    prompts = [Prompt(group.works[0], group) for group in groups]
    for prompt, images in zip(prompts, made, strict=True):
        prompt.add(images, 3, math.inf)
    found = Found(works, training, prompts)
    threshold = Threshold(-0.1, 0.0, 0.0, 20)
    record, shown = extraction._testify(works, found, threshold, threshold, 0.05, QUICK)
    assert record.metric("extracted.k16").value == 1
    assert record.metric("extracted.members").value == 0
    assert record.metric("false_extractions.holdout").value == 0
    assert record.metric("precision").value == 0.5  # of two that agree, one is a copy
    assert (shown[0][0].group.dose, training.column("id")[shown[0][1]]) == (16, training.column("id")[canary])
    prompts[0] = Prompt(row, Group("canary", "one", 0, [row]))  # the same picture from a caption that was withheld is no success
    prompts[0].add(made[0], 3, math.inf)
    withheld, _ = extraction._testify(works, Found(works, training, prompts), threshold, threshold, 0.05, QUICK)
    assert (withheld.metric("extracted.k0").value, withheld.metric("precision").value) == (1, 0)
    table = record.tables[1].rows
    assert [line[-1] for line in table] == ["yes", "no"]
    assert table[0][-2] >= 16  # its own copies, and those of works as near as delta
    assert table[0][8] < 1 <= table[1][8]  # the adaptive distance tells them apart as well


@pytest.mark.parametrize(("cluster", "extracted", "verdict"), [(None, 0, "another work"), (-1, 0, "another work"), (3, 1, "yes")])
def test_another_member_s_work_is_no_extraction_of_the_one_asked_for(works, cluster, extracted, verdict):
    """A canary's caption draws an ordinary member with noise: nothing of the canary's dose, unless both are declared near-duplicates."""
    rows = [row | {"attributes": sorted(row["attributes"].items())} for row in works]
    canary, member = 5, 17
    assert (rows[canary]["copies"], rows[member]["copies"]) == (16, 1)
    rows[canary]["cluster"] = rows[member]["cluster"] = cluster
    table = Works.from_rows(rows)
    training = table.where(lambda row: row["split"] == "member" and row["copies"] > 0)
    prompt = Prompt(canary, Group("canary", "one", 16, [canary]))
    prompt.add(noisy(table.take([member]).pixels(64)[0].transpose(2, 0, 1).astype(np.int64), 4, 3, 7), 3, math.inf)
    threshold = Threshold(-0.1, 0.0, 0.0, 20)
    found = Found(table, training, [prompt])
    record, shown = extraction._testify(table, found, threshold, threshold, 0.05, QUICK)
    assert record.metric("extracted.k16").value == record.metric("precision").value == extracted
    assert (record.metric("another_work").value, record.metric("another_work").n) == (1 - extracted, 1)
    assert record.tables[0].rows[0][-1] == 1 - extracted
    assert record.tables[1].rows[0][-1] == verdict
    assert f"for {1 - extracted} another work trained on is, and their own is not" in record.findings[0]
    assert training.column("id")[shown[0][1]] == rows[member]["id"]  # what is shown is what came out


def test_near_is_what_captions_never_trained_hardly_come_to_their_own_works(works, judge, memoriser):
    """A model that draws every work by its caption, calibration works too: delta is what resizing leaves, below the distance between two works."""
    settings = replace(QUICK, guidance=1.0, false_positive_rate=0.2)
    made = audit(memoriser(works, list(range(len(works)))), works, settings, judge=judge).record
    assert made.resolved["delta"] < 0.05
    pixels = works.pixels(64).transpose(0, 3, 1, 2)
    members = np.array(works.column("split")) == "member"
    assert np.median(tiled_l2_pairs(pixels[~members], pixels[members]).min(1)) > 0.1


def test_a_tighter_clique_is_kept(monkeypatch):
    """Where a graph has more cliques than are looked at, here than one, a later look may return a looser one: the earlier stands."""
    monkeypatch.setattr("assay.evaluation.cliques.LISTED", 1)
    looser = 0
    for seed in range(60):
        images = numpy_generator(seed, "cliques").integers(0, 256, (24, 1, 4, 4)).astype(np.uint8)
        images = images.repeat(3, 1).repeat(16, 2).repeat(16, 3)  # a grey a tile
        prompt = Prompt(0, Group("calibration", None, 0, [0]))
        prompt.add(images[:12], 6, math.inf)
        first = prompt.clique
        prompt.add(images[12:], 6, math.inf)
        again = tightest(prompt.distances, 6)
        looser += again.tightness > first.tightness
        assert prompt.clique.tightness == min(first.tightness, again.tightness)
    assert looser


def test_adaptive_distance_by_hand():
    from assay.evaluation.similarity import adaptive

    table = np.array([[0.1, 0.5, 0.3, 0.7], [0.4, 0.4, 0.4, 0.4]])
    assert adaptive(table, 2, 0.5).tolist() == pytest.approx([0.1 / (0.5 * 0.2), 2.0])
    assert adaptive(table, 50, 1.0).tolist() == pytest.approx([0.1 / 0.4, 1.0])


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
def test_an_audit_of_a_tiny_pipeline(pipelines, works, judge, kind):
    made = audit(pipelines[kind], works, QUICK, judge=judge, seed=1)
    groups = choose(works, QUICK, 1)
    names = {metric.name for metric in made.record.metrics}
    assert {f"extracted.{group.label}" for group in groups if group.kind in ("members", "canary")} <= names
    assert {"false_extractions.calibration", "false_extractions.holdout", "precision", "images"} <= names
    counted = {row[0]: row[2] for row in made.record.tables[0].rows}
    calibration = next(group for group in groups if group.kind == "calibration")
    assert counted[calibration.words] == QUICK.images * len(calibration.works)  # drawn whole
    assert made.record.passes <= cost(works, QUICK)["passes"]
    asked = [row for row in made.record.tables[0].rows if row[0] != calibration.words]
    assert made.record.metric("images").value == sum(row[2] for row in asked)
    claimed = sum(row[3] for row in asked)  # every prediction is in the table of captions, and sorted into one of three verdicts
    assert made.record.metric("precision").n == made.record.metric("another_work").n == claimed
    for row in made.record.tables[0].rows:
        assert row[4] + row[6] <= row[3] <= row[1]
    assert set(made.pictures) == {
        f"match-{place}-{what}.png" for place in range(1, len(made.record.tables[1].rows) + 1) for what in ("output", "work")
    }


def test_every_row_speaks_of_the_pictures_that_it_shows(sd, works, judge):
    """The distance in a row is that between its two pictures, measured anew; the work shown is the one that the row names."""
    made = audit(
        sd, works, Settings(images=2, clique=2, round=2, steps=2, members=12, batch=8, matches=20, false_positive_rate=0.9), judge=judge, seed=3
    )
    rows = made.record.tables[1].rows
    assert len({row[3] for row in rows}) > 1  # of several doses: groups are drawn in another order than they are listed
    for row in rows:
        output, work = (np.asarray(made.pictures[row[place]["picture"]].convert("RGB").resize((64, 64), 2)) for place in (0, 1))
        shown = tiled_l2(*(picture.transpose(2, 0, 1)[None].astype(np.uint8) for picture in (output, work)))[0]
        assert row[7] == pytest.approx(shown, abs=0.02)  # resizing rounds


def test_a_killed_audit_goes_on_with_the_same_result(sd, works, judge, tmp_path):
    whole = audit(sd, works, QUICK, judge=judge, seed=2, folder=tmp_path / "whole")
    files = sorted((tmp_path / "whole").iterdir())

    def stop(done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(sd, works, QUICK, judge=judge, seed=2, folder=tmp_path / "part", progress=stop)
    left = sorted((tmp_path / "part").iterdir())
    assert 0 < len(left) < len(files)
    before = sd.passes
    again = audit(sd, works, QUICK, judge=judge, seed=2, folder=tmp_path / "part")
    assert sd.passes - before < whole.record.passes
    assert again.record.metrics == whole.record.metrics
    assert again.record.tables == whole.record.tables


def test_what_is_settled_is_not_drawn_on(sd, works, tmp_path):
    """With an endless limit everything is drawn; where any two images agree, a prompt stops after its first round."""
    group = Group("members", None, 1, [3, 4])
    prompts = [Prompt(work, group) for work in group.works]
    Drawing(sd, works, QUICK, 0, None, lambda done: None).draw(prompts, 10.0)
    assert [len(prompt.images) for prompt in prompts] == [4, 4]  # a clique of three needs more than the two of a round
    prompts = [Prompt(work, group) for work in group.works]
    Drawing(sd, works, Settings(images=6, clique=2, round=2, steps=2), 0, None, lambda done: None).draw(prompts, 10.0)
    assert [len(prompt.images) for prompt in prompts] == [2, 2]


@pytest.mark.parametrize(
    "bad",
    [
        {"clique": 1},
        {"clique": 501},
        {"round": 0},
        {"steps": 0},
        {"members": -1},
        {"guidance": math.nan},
        {"guidance": 0.9},
        {"false_positive_rate": 1.0},
    ],
)
def test_refuses_settings_out_of_range(bad):
    with pytest.raises(Misconfigured):
        check(Settings(**bad))


def test_needs_calibration_works(sd, works, judge):
    with pytest.raises(Unsupported, match="calibration"):
        audit(sd, works.where(lambda row: row["split"] == "member"), QUICK, judge=judge)


def test_images_depend_on_seed_work_and_number_alone(sd, works):
    group = Group("members", None, 1, [3, 4])
    alone, both = [Prompt(4, group)], [Prompt(3, group), Prompt(4, group)]
    for prompts in (alone, both):
        Drawing(sd, works, QUICK, 0, None, lambda done: None).draw(prompts, math.inf)
    difference = np.abs(alone[0].images.astype(int) - both[1].images.astype(int)).max()
    assert difference <= 1


@pytest.mark.parametrize("module", [extraction, nearest, mine])
@pytest.mark.parametrize("wrong", [{"calibration": 0}, {"members": -1}, {"holdout": -1}])
def test_thresholds_are_not_set_on_works_that_are_judged(module, wrong):
    """Without calibration works the first group would be holdout works, or members."""
    with pytest.raises(Misconfigured, match="calibration"):
        module.check(replace(module.Settings(), **wrong))
