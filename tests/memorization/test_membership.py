"""Expected values: passes by the formula, captions by hand, and the exact minimiser of the loss over a few works."""

import dataclasses

import numpy as np
import pytest

from assay.errors import Misconfigured, Unsupported
from assay.evaluation.blind import kernel
from assay.memorization import membership
from assay.memorization.groups import Group, choose
from assay.memorization.membership import PRESETS, PROBE, Settings, audit, blind, check, cost, wordings
from assay.memorization.verdicts import CONTROLS, NAMES
from assay.noise import numpy_generator
from assay.record import Record
from assay.settings import read
from assay.testing import tiny, tiny_works

QUICK = Settings(**PROBE)
WITHOUT = dataclasses.replace(QUICK, gradient=False)  # a closed form has no weights


@pytest.fixture(scope="module")
def works():
    return tiny_works()


def test_settings_are_read_without_importing():
    source = read("assay.memorization.membership")
    assert {field.name for field in source.fields} == {field.name for field in dataclasses.fields(Settings)}
    assert all(field.help for field in source.fields)
    assert source.presets == PRESETS
    for given in [*PRESETS.values(), PROBE]:
        check(Settings(**given))


def test_wordings_are_the_caption_none_pieces_and_another_s():
    captions = ["a red cat", "a blue cat", "one", "two", "three", "alone"]
    groups = [Group("calibration", None, 0, [0, 1]), Group("members", None, 1, [2, 3, 4]), Group("canary", "one", 4, [5])]
    found = wordings(captions, groups, list("abcdef"), 3, seed=0)
    assert list(found) == ["caption", "empty", "reduced 1", "reduced 2", "another"]
    assert found["caption"] == captions
    assert found["empty"] == [""] * 6
    assert found["reduced 2"] == ["a red", "a blue", "", "", "", ""]  # two thirds of three words; of one, none
    assert found["another"][:2] == ["a blue cat", "a red cat"]
    assert sorted(found["another"][2:5]) == sorted(captions[2:5])  # lent inside the group,
    assert all(own != lent for own, lent in zip(captions[2:5], found["another"][2:5]))  # never to oneself,
    assert found["another"][5] != "alone"  # and by another group where there is no other


def test_no_work_is_lent_its_own_caption_by_a_namesake():
    """Of three a, two b and one c, no a borrows another's a, as by turns alone some would. Where all have one caption there is nothing to lend."""
    captions = ["a", "a", "b", "c", "b", "a"]
    for seed in range(20):
        found = wordings(captions, [Group("members", None, 1, list(range(6)))], list("uvwxyz"), 2, seed)["another"]
        assert all(own != lent for own, lent in zip(captions, found, strict=True))
        assert set(found) <= set(captions)
    assert wordings(["a", "a"], [Group("members", None, 1, [0, 1])], ["u", "v"], 2, 0)["another"] == ["a", "a"]


def test_the_control_of_clid_is_the_same_statistic_under_another_caption(works, monkeypatch):
    """Lent its own caption, a work's control is what stands beside it, and not CLiD, which averages over captions cut short as well."""
    lending = membership.wordings
    monkeypatch.setattr(membership, "wordings", lambda captions, *others: lending(captions, *others) | {"another": list(captions)})
    scores = membership.measure(tiny(), works, choose(works, WITHOUT, 0), WITHOUT, seed=0).scores
    np.testing.assert_allclose(scores["another.clid"], scores["empty.clid"], atol=1e-3)
    assert np.abs(scores["another.clid"] - scores["clid"]).max() > 0.1


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
def test_audit_of_a_tiny_pipeline(kind, works):
    made = audit(tiny(kind), works, QUICK, judge=None, seed=0)
    assert Record.model_validate_json(made.record.dump()) == made.record
    spent = cost(works, QUICK)
    assert made.record.passes == spent["passes"] + spent["training_passes"]
    names = {metric.name for metric in made.record.metrics}
    scores = [name for name in NAMES if name != "quantile"]  # six calibration works are too few for that
    wanted = {f"{name}.{what}" for name in (*scores, *CONTROLS) for what in ("auc", "tpr", "false_positives")}
    assert wanted | {f"{name}.auc.k16" for name in scores} == names
    assert all(0 <= metric.low <= metric.value <= metric.high <= 1 for metric in made.record.metrics)
    assert len(made.record.dump()) < 100_000


def test_a_model_that_memorised_its_works_gives_them_away(works, memoriser):
    # Works that were learnt come out exactly from any noise, and no others do: every score ranks all of them first, area 1. Calibration alone may
    # tie: where noise is little, the right work comes out without its caption too, and nothing is left to gain.
    settings = dataclasses.replace(WITHOUT, members=8)
    groups = choose(works, settings, 0)
    rows = [row for group in groups if group.dose for row in group.works]
    record = audit(memoriser(works, rows), works, settings, judge=None, seed=0).record
    area = {name: record.metric(f"{name}.auc").value for name in (*NAMES, *CONTROLS) if name not in ("gsa", "quantile")}
    assert {name: value for name, value in area.items() if name in NAMES and value != 1} == {"calibrated_loss": area["calibrated_loss"]}
    assert area["calibrated_loss"] > 0.9
    # Under another member's caption another work comes out, worse than the nearest of all that works never trained get; under its own, its own.
    assert max(area[name] for name in CONTROLS if name.startswith("another")) < 0.5
    assert area["empty.clid"] > 0.9
    assert record.metric("loss.tpr").value == 1


def test_a_killed_audit_goes_on_with_the_same_result(works, tmp_path):
    def kill(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(tiny(), works, WITHOUT, judge=None, seed=0, folder=tmp_path, progress=kill)
    resumed = audit(tiny(), works, WITHOUT, judge=None, seed=0, folder=tmp_path)
    whole = audit(tiny(), works, WITHOUT, judge=None, seed=0)
    spent = {"seconds": 0.0, "passes": 0}
    assert resumed.record.passes < whole.record.passes
    assert resumed.record.model_copy(update=spent) == whole.record.model_copy(update=spent)


def test_settings_out_of_range_are_refused_before_any_pass(works):
    denoiser = tiny()
    for given in ({"reductions": 0}, {"members": 0}, {"alpha": 1.5}, {"false_positive_rate": 0.0}, {"power": 0.5}, {"interval": 30}):
        with pytest.raises(Misconfigured):
            audit(denoiser, works, dataclasses.replace(QUICK, **given), judge=None)
    with pytest.raises(Misconfigured, match="1000 timesteps"):
        audit(denoiser, works, dataclasses.replace(QUICK, timesteps=(1000,)), judge=None)
    with pytest.raises(Unsupported, match="calibration"):
        audit(denoiser, works.where(lambda row: row["split"] != "calibration"), QUICK, judge=None)
    assert denoiser.passes == 0


def test_near_duplicates_do_not_tell_of_one_another():
    """60 worlds of 12 pictures, each there four times nearly alike, half of the pictures members by lot: p < 0.05 as seldom as it should be.

    Taken for works of their own, the other three tell of a fourth in most worlds.
    """
    rng, least = numpy_generator(3, "alike"), [[], []]
    for world in range(60):
        member = np.repeat(rng.permutation(12) < 6, 4)
        features = np.repeat(rng.normal(size=(12, 5)), 4, axis=0) + 0.05 * rng.normal(size=(48, 5))
        order = np.argsort(~member, kind="stable")  # members first, as groups lie
        alike, picture = kernel(features[order]), np.repeat(np.arange(12), 4)[order]
        groups = [Group("members", None, 1, [0] * 24), Group("calibration", None, 0, [0] * 24)]
        for found, same in zip(least, (picture, np.arange(48)), strict=True):
            found.append(blind(alike, groups, same, world).p_value)
    assert np.mean(np.array(least[0]) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    assert np.mean(np.array(least[1]) < 0.05) > 0.7
