import dataclasses

import numpy as np
import pytest
import torch

from assay.errors import BadInput, Misconfigured, Unsupported
from assay.evaluation.centroid import CentroidJudge
from assay.memorization.groups import Group, choose
from assay.memorization.looks import Looks, compare, looks, strip
from assay.memorization.nearest import PRESETS, PROBE, Settings, audit, cost
from assay.memorization.testimony import decide, witness
from assay.record import Record
from assay.settings import read
from assay.testing import tiny, tiny_works

QUICK = Settings(images=2, steps=2, members=6, batch=16, matches=3)


@pytest.fixture(scope="module")
def works():
    return tiny_works()


@pytest.fixture(scope="module")
def judge(works):
    return CentroidJudge(works)


@pytest.fixture(scope="module")
def originals(works, judge):
    return looks(works.pixels(64).transpose(0, 3, 1, 2).copy(), judge)


def test_a_planted_copy_is_found_first_in_every_measure(works, judge, originals):
    # Outputs planted by hand: the work itself, pixel for pixel. Distance 0, no bit differs, cosine 1; only the works that are equal share the rank.
    pixels = works.pixels(64).transpose(0, 3, 1, 2).copy()
    similarity, rank = compare(looks(pixels[[7, 21]], judge), originals, np.array([7, 21]))
    np.testing.assert_allclose(similarity, [[0, 1, 1], [0, 1, 1]], atol=1e-6)
    assert (rank[:, 0] == 1).all()
    assert (rank[:, 2] == 1).all()
    np.testing.assert_array_equal(rank[:, 1], [(originals.hashes == originals.hashes[row]).all(1).sum() for row in (7, 21)])


def test_comparison_is_brute_force(originals):
    # The three definitions by loops: worst of 16 tiles, share of equal bits, cosine; rank by counting.
    rng = np.random.default_rng(0)
    outputs = Looks(
        rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8), rng.random((3, 256)) < 0.5, rng.standard_normal((3, originals.features.shape[1]))
    )
    own = np.array([4, 0, 30])
    similarity, rank = compare(outputs, originals, own)
    for row in range(3):
        table = np.zeros((len(originals.pixels), 3))
        for work in range(len(table)):
            squares = ((outputs.pixels[row] / 255 - originals.pixels[work] / 255) ** 2).reshape(3, 4, 16, 4, 16).mean((0, 2, 4))
            a, b = outputs.features[row], originals.features[work].astype(np.float64)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            table[work] = -np.sqrt(squares.max()), (outputs.hashes[row] == originals.hashes[work]).mean(), cosine
        np.testing.assert_allclose(similarity[row], table[own[row]], atol=1e-9)
        np.testing.assert_array_equal(rank[row], (table >= table[own[row]] - 1e-12).sum(0))


def test_planted_copies_are_flagged_and_the_rate_holds():
    # 100 calibration, 1000 holdout and 20 copied works; scores of the never trained are correlated noise, those of copies lie 6 deviations above.
    # At 5 % the expected rate on holdout is at most 5 %; binomial noise and the threshold's own (Beta(5, 96): deviation 2.1 %) allow 12 %.
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((1120, 1)) + rng.standard_normal((1120, 3))
    scores[1100:] += 6 * 2**0.5
    decision = decide(scores, 100, 0.05, 2)
    assert decision.flagged[:100].sum() <= 4  # floor(0.05 * 101) - 1
    assert decision.flagged[100:1100].mean() < 0.12
    assert decision.flagged[1100:].all()
    assert decision.alone[:100].sum(0).max() <= 4


def test_agreement_of_more_measures_flags_no_more_of_one_kind():
    # A work that is alike in one measure alone (say, a colour) is flagged by no joint rule of two.
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((101, 3))
    scores[100] = 50, -50, -50
    assert not decide(scores, 100, 0.05, 2).flagged[100]
    assert decide(scores, 100, 0.05, 1).flagged[100]
    assert decide(scores, 100, 0.05, 2).alone[100].tolist() == [True, False, False]


def test_too_few_calibration_works_raise_the_rate_and_it_is_said():
    # Six works can promise 1 in 7 at best.
    decision = decide(np.random.default_rng(0).standard_normal((8, 3)), 6, 0.05, 2)
    assert decision.rate == pytest.approx(1 / 7)
    assert decision.joint.achieved == 0  # floor(7 / 7) - 1 = none of the six


def test_testimony_counts_by_hand(works, judge):
    # 40 calibration works near 0, two canaries far above, two members below: 2 of 2 and 0 of 2, and the canaries are the matches shown first.
    rng = np.random.default_rng(0)
    groups = [Group("calibration", None, 0, list(range(40))), Group("members", None, 1, [40, 41]), Group("canary", "one", 4, [42, 43])]
    similarity = rng.random((44, 2, 3)) * 0.1
    similarity[42:, 1] = 0.9
    rank = np.full((44, 2, 3), 7)
    rank[42:, 1] = 1
    made = witness(works, groups, similarity, rank, dataclasses.asdict(Settings(matches=3)), judge)
    value = {metric.name: metric for metric in made.record.metrics}
    assert (value["memorised.k4"].value, value["memorised.k4"].n) == (1, 2)
    assert value["memorised.k4"].low == pytest.approx(2 / (2 + 1.959963984540054**2))  # Wilson at n of n
    assert value["memorised.members"].value == 0
    assert value["memorised.members"].chance == 0.05  # the rate asked for, which 40 works can hold; not what happened on them
    assert sorted(made.matches[:2]) == [(42, 1), (43, 1)]
    table = made.record.tables[0]
    assert [row[-1] for row in table.rows] == [0, 0, 2]  # own work nearest of all
    assert made.record.curves[0].lines["one caption"][0][:2] == (4.0, 1.0)


def test_choice_of_works_keeps_splits_apart(works):
    groups = {group.label: group for group in choose(works, QUICK, seed=0)}
    split, canary = works.column("split"), works.attribute("canary")
    assert {split[index] for index in groups["calibration"].works} == {"calibration"}
    assert {split[index] for index in groups["holdout"].works} == {"holdout"}
    assert len(groups["members"].works) == 6
    assert all(split[index] == "member" and canary[index] is None for index in groups["members"].works)
    assert groups["k16"].works == [index for index, arm in enumerate(canary) if arm]
    drawn = {works[index]["id"] for index in groups["members"].works}
    backwards = works.take(list(range(len(works)))[::-1])
    again = next(group for group in choose(backwards, QUICK, seed=0) if group.label == "members")
    assert {backwards[index]["id"] for index in again.works} == drawn  # the lottery does not see the order of the table


def test_works_of_subsets_that_were_not_trained_are_left_out(works):
    # Only `core` has trained members here, so calibration works of `other` are no fair comparison.
    subset = ["other" if index % 2 else "core" for index in range(len(works))]
    copies = [count if subset[index] == "core" else 0 for index, count in enumerate(works.column("copies"))]
    marked = works.with_columns(copies=copies, attributes=[[("subset", name)] for name in subset])
    asked = [index for group in choose(marked, QUICK, seed=0) for index in group.works]
    assert asked
    assert all(subset[index] == "core" for index in asked)


def test_without_calibration_or_members_there_is_a_remedy(works):
    with pytest.raises(Unsupported, match="calibration"):
        choose(works.where(lambda row: row["split"] != "calibration"), QUICK, 0)
    with pytest.raises(Unsupported, match="member"):
        choose(works.where(lambda row: row["split"] == "calibration"), QUICK, 0)
    with pytest.raises(BadInput, match="dose"):
        choose(works.with_columns(attributes=[[("canary", "one"), ("dose", "many")]] * len(works)), QUICK, 0)


def test_ordinary_members_have_one_number_of_copies_and_controls_none(works):
    # Most members have 2 copies, one has 5; one calibration work was shown after all.
    split = works.column("split")
    copies = [2 if name == "member" else 0 for name in split]
    copies[split.index("member")] = 5
    copies[split.index("calibration")] = 1
    groups = {group.kind: group for group in choose(works.with_columns(copies=copies), QUICK, 0) if group.arm is None}
    assert groups["members"].dose == 2
    assert split.index("member") not in groups["members"].works
    assert split.index("calibration") not in groups["calibration"].works


def test_settings_are_read_without_importing():
    source = read("assay.memorization.nearest")
    assert {field.name for field in source.fields} == {field.name for field in dataclasses.fields(Settings)}
    assert all(field.help for field in source.fields)
    assert source.presets == PRESETS
    assert all(Settings(**given) for given in [*PRESETS.values(), PROBE])


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
def test_audit_of_a_tiny_pipeline(kind, works, judge):
    made = audit(tiny(kind), works, QUICK, judge=judge, seed=0)
    assert Record.model_validate_json(made.record.dump()) == made.record
    value = {metric.name: metric for metric in made.record.metrics}
    assert set(value) == {"false_positives.calibration", "false_positives.holdout", "memorised.members", "memorised.k16"}
    assert value["false_positives.holdout"].n == 4  # tiny_works: 6 calibration, 4 holdout
    assert value["false_positives.calibration"].value == 0
    assert any("cannot hold" in finding for finding in made.record.findings)
    assert next(iter(made.pictures)) == "clearest.png"
    named = {cell["picture"] for table in made.record.tables for row in table.rows for cell in row if isinstance(cell, dict)}
    assert named == set(made.pictures) - {"clearest.png"}
    assert made.record.passes == cost(works, QUICK)["passes"]


def test_a_killed_audit_goes_on_with_the_same_result(works, judge, tmp_path):
    def kill(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(tiny(), works, QUICK, judge=judge, seed=0, folder=tmp_path, progress=kill)
    assert len(list(tmp_path.iterdir())) == 1
    resumed = audit(tiny(), works, QUICK, judge=judge, seed=0, folder=tmp_path)
    whole = audit(tiny(), works, QUICK, judge=judge, seed=0)
    spent = {"seconds": 0.0, "passes": 0}
    assert resumed.record.passes < whole.record.passes
    assert resumed.record.model_copy(update=spent) == whole.record.model_copy(update=spent)
    assert all(np.array_equal(np.asarray(resumed.pictures[name]), np.asarray(image)) for name, image in whole.pictures.items())
    audit(tiny(seed=1), works, QUICK, judge=judge, seed=0, folder=tmp_path)  # another model never takes these shards
    assert len(list(tmp_path.iterdir())) == 2 * len({path.name.split("-")[2] for path in tmp_path.iterdir()})


def test_the_picture_shown_is_the_image_that_scored(works, judge):
    # The first match is made again from its own prompt and seed; its tiled l2 to the work is the one in the table, to rounding of 8 bits.
    made = audit(tiny(), works, QUICK, judge=judge, seed=0)
    row = dict(zip(made.record.tables[1].columns, made.record.tables[1].rows[0]))
    output, work = (torch.from_numpy(np.array(made.pictures[row[name]["picture"]])).permute(2, 0, 1)[None].numpy() for name in ("output", "work"))
    similarity, _ = compare(looks(output, judge), looks(work, judge), np.array([0]))
    assert -similarity[0, 0] == pytest.approx(row["tiled l2"], abs=0.01)


def test_settings_out_of_range_are_refused_before_any_image(works, judge):
    denoiser = tiny()
    for given in ({"images": 0}, {"agreement": 4}, {"false_positive_rate": 0.0}):
        with pytest.raises(Misconfigured):
            audit(denoiser, works, Settings(**given), judge=judge)
    assert denoiser.passes == 0


def test_strip_brings_images_to_one_height(works):
    shown = strip([works.image(0), works.image(1).resize((16, 16))])
    assert shown.size == (128 + 8 + 128, 128)
