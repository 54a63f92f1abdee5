"""Expected values: scores planted by hand, so that areas, counts above thresholds and verdicts can be read off."""

import numpy as np
import pytest

from assay.evaluation.blind import Blind
from assay.evaluation.intervals import wilson
from assay.memorization.dataset_inference import Inference
from assay.memorization.groups import Group
from assay.memorization.verdicts import CONTROLS, NAMES, Evidence, area, collections, trained, witness
from assay.noise import numpy_generator
from assay.record import Record
from assay.testing import tiny_works

SETTINGS = {"false_positive_rate": 0.05, "divisions": 20, "timesteps": (100, 300)}


def evidence(apart: float = 3.0, holdout: int = 24, zero: bool = True) -> Evidence:
    """40 calibration works, holdout works, 30 members and canaries, all normal; what was trained lies `apart` deviations higher in every score."""
    groups = [Group("calibration", None, 0, list(range(40))), Group("holdout", None, 0, [0] * holdout), Group("members", None, 1, [1] * 30)]
    groups += [Group("canary", "one", dose, [2] * 16) for dose in ((0, 1, 64) if zero else (1, 64))] + [Group("canary", "varied", 64, [2] * 8)]
    groups = [group for group in groups if group.works]
    height = np.concatenate([np.full(len(g.works), apart * (g.kind == "members") + (g.kind == "canary") * g.dose / 10) for g in groups])
    rng = numpy_generator(0, "verdicts")
    scores = {name: rng.normal(size=len(height)) + height for name in NAMES} | {name: rng.normal(size=len(height)) for name in CONTROLS}
    scores["empty.clid"] += height  # under the own caption
    asked = [work for group in groups for work in group.works]
    return Evidence(groups, asked, scores | {"timesteps": rng.normal(size=(len(height), 2)) + height[:, None]}, Blind(0.51, (0.4, 0.6), 0.4))


@pytest.fixture(scope="module")
def works():
    return tiny_works()


@pytest.fixture(scope="module")
def record(works):
    return witness(works, evidence(), SETTINGS, ruled=False, seed=0)


def test_places_follow_the_groups():
    found = evidence()
    assert found.rows("calibration", "holdout").tolist() == list(range(64))
    assert found.rows("canary", arm="one", dose=64).tolist() == list(range(126, 142))
    assert found.rows("canary", arm="varied").tolist() == list(range(142, 150))
    assert found.rows("nothing").tolist() == []


def test_area_counts_pairs():
    value, low, high = area(np.array([3.0, 1, 2, 0]), np.array([0, 1]), np.array([2, 3]))  # 3 beats both, 1 beats one of two
    assert value == 0.75
    assert low < 0.75 < high


def test_figures_are_those_of_the_planted_scores(record):
    found = evidence()
    members, calibration, holdout = (found.rows(kind) for kind in ("members", "calibration", "holdout"))
    for name in (*NAMES, *CONTROLS):
        scores = found.scores[name]
        never = np.concatenate([scores[calibration], scores[holdout]])
        metric = record.metric(f"{name}.auc")
        assert metric.value == pytest.approx((scores[members][:, None] > never).mean())
        assert (metric.n, metric.chance) == (30 + 64, 0.5)
        threshold = np.sort(scores[calibration])[-2]  # floor(0.05 x 41) - 1 = 1 of the 40 may lie above
        for kind, places in (("tpr", members), ("false_positives", holdout)):
            count = int((scores[places] > threshold).sum())
            metric = record.metric(f"{name}.{kind}")
            assert (metric.value, metric.n, metric.chance) == (count / len(places), len(places), 0.05)
            assert (metric.low, metric.high) == wilson(count, len(places))


def test_canaries_are_compared_with_those_withheld(record, works):
    found = evidence()
    for dose in (1, 64):
        ours, theirs = (found.scores["secmi"][found.rows("canary", arm="one", dose=of)] for of in (dose, 0))
        assert record.metric(f"secmi.auc.k{dose}").value == pytest.approx((ours[:, None] > theirs).mean())
        assert record.metric(f"secmi.auc.k{dose}").n == 32
    curve = next(curve for curve in record.curves if curve.x_scale == "symlog")
    assert [point[0] for point in curve.lines["SecMI"]] == [0, 1, 64]
    most = record.metric("secmi.auc.k64")
    assert curve.lines["SecMI"][-1][1:] == (most.value, most.low, most.high)
    without = witness(works, evidence(zero=False), SETTINGS, ruled=False, seed=0)
    assert without.metric("secmi.auc.k64").n == 16 + 64  # no control: all works never trained


def test_curves_start_at_one_false_alarm_and_rise(record):
    curve = record.curves[0]
    assert curve.x_scale == "log"
    for name, points in curve.lines.items():
        false, true = (np.array([point[axis] for point in points]) for axis in (0, 1))
        assert false[0] == pytest.approx(1 / 64, abs=1e-5), name
        assert (np.diff(false) > 0).all()
        assert (np.diff(true) >= 0).all()
        assert (false[-1], true[-1]) == (1, 1)


def test_collections_are_judged_beside_a_control(record):
    table = next(table for table in record.tables if table.title.startswith("Was the collection used"))
    rows = {row[0]: row for row in table.rows}
    assert rows["all ordinary members"][1:3] == [30, 64]
    assert record.metric("collection.all_ordinary_members.p_value").value < 1e-6
    assert record.metric("collection.holdout_against_calibration_works.p_value").value > 0.05
    said = " ".join(record.findings)
    assert "all ordinary members: p < 0.0001, evidence" in said
    assert "holdout against calibration works: p = " in said
    assert said.count("no evidence that it was trained") == 1


def test_evidence_has_a_direction():
    # p = 0.001 in two tests holds 1 %, in twenty it does not; scores lower than those of works never trained are evidence of something else.
    found = Inference(0.001, 0.0005, 2.0, 0.4, 30, 30)
    assert trained(found)
    assert trained(found, 2)
    assert not trained(found, 20)
    assert not trained(found._replace(direction=-0.4))


def test_what_cannot_be_said_is_said(works, record):
    said = " ".join(record.findings)
    assert "0.1 % is not reported: its threshold takes 999 calibration works, and there are 40" in said
    assert "cannot hold" not in said
    assert "rule of guidance" not in said
    strict = witness(works, evidence(), SETTINGS | {"false_positive_rate": 0.01}, ruled=True, seed=0)
    said = " ".join(strict.findings)
    assert "40 calibration works cannot hold a rate of 1.0%: 99 are needed" in said
    assert strict.metric("loss.tpr").chance == pytest.approx(1 / 41)
    assert "rule of guidance" in said


def test_controls_are_put_into_words(works):
    said = " ".join(witness(works, evidence(), SETTINGS, ruled=False, seed=0).findings)
    assert "It does not tell them apart." in said
    assert "under another's: CLiD against the empty caption alone" in said  # like for like
    assert "Those above chance need the pair" in said
    same = evidence(apart=0.0)
    under = {"clid": "empty.clid", "calibrated_loss": "calibrated_loss", "loss": "loss"}
    same = same._replace(scores=same.scores | {f"another.{name}": same.scores[own] for name, own in under.items()})
    assert "None is above chance for certain" in " ".join(witness(works, same, SETTINGS, ruled=False, seed=0).findings)
    odd = evidence()._replace(blind=Blind(0.8, (0.4, 0.6), 0.002))
    odd = odd._replace(scores=odd.scores | {"another.clid": odd.scores["empty.clid"]})
    said = " ".join(witness(works, odd, SETTINGS, ruled=False, seed=0).findings)
    assert "areas may overstate memory" in said
    assert "recognises the picture or the caption alone" in said


def test_near_duplicates_count_once_in_a_collection(works):
    """30 members of which the last six are one picture: their scores are averaged, and the test has 25, against 64 works never trained."""
    found = evidence()
    labels = np.arange(len(found.asked))
    members = found.rows("members")
    labels[members] = members[0] + np.minimum(np.arange(30), 24)
    alike = found._replace(clusters=labels)
    np.testing.assert_allclose(alike.units(members)[:24], found.table[members[:24]])
    np.testing.assert_allclose(alike.units(members)[24], found.table[members[24:]].mean(0))
    assert (found.units(members) == found.table[members]).all()
    result = collections(works, alike, 20, 0)[0].result
    assert (result.suspects, result.others) == (25, 64)


def test_a_record_without_holdout_works_or_members_still_reads(works):
    alone = witness(works, evidence(holdout=0), SETTINGS, ruled=False, seed=0)
    assert "no holdout works to check it on" in " ".join(alone.findings)
    assert Record.model_validate_json(alone.dump()) == alone
    found = evidence()
    keep = np.concatenate([found.rows("calibration"), *(found.rows("canary", arm=arm) for arm in ("one", "varied"))])
    groups = [group for group in found.groups if group.kind in ("calibration", "canary")]
    bare = Evidence(groups, [found.asked[row] for row in keep], {name: values[keep] for name, values in found.scores.items()}, None)
    canaries = witness(works, bare, SETTINGS, ruled=False, seed=0)
    assert canaries.metric("loss.auc.k64").value > 0.9
    assert all("ordinary" not in table.title.lower() for table in canaries.tables)
