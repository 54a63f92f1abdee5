"""The audit around the detectors: on works made in code, for every kind of pipeline; killed and resumed; refused before anything is drawn."""

import pytest

from assay.errors import Misconfigured, Unsupported
from assay.memorization.detection import NAMES
from assay.memorization.detectors import PROBE, Settings, audit, check, cost
from assay.memorization.groups import choose
from assay.testing import tiny_works

QUICK = Settings(**(PROBE | {"shard": 4, "calibration": 4, "holdout": 3}))


@pytest.fixture(scope="module")
def works():
    return tiny_works()


def test_an_audit_of_a_tiny_pipeline(denoiser, works):
    made = audit(denoiser, works, QUICK, judge=None, seed=1)
    record, planned = made.record, cost(works, QUICK)
    names = {metric.name for metric in record.metrics}
    kinds = {"auc", "members.auc", "tpr", "members.flagged", "false_positives", "auc.k16"}
    assert names == {f"{name}.{kind}" for name in NAMES for kind in kinds}
    assert record.passes == planned["passes"] + planned["training_passes"]
    chosen = len(choose(works, QUICK, 1)[0].works)
    for name in NAMES:
        assert record.metric(f"{name}.auc").chance == 0.5
        assert record.metric(f"{name}.tpr").chance == max(0.4, 1 / (chosen + 1))
        assert all((metric.low or 0) <= metric.value <= metric.high for metric in record.metrics if metric.value is not None)
    named = {cell["picture"] for row in record.tables[-1].rows for cell in row if isinstance(cell, dict)}
    assert set(made.pictures) == named | {"most-suspicious.png"}
    assert len(record.tables[-1].rows) == QUICK.matches
    assert not any(weight.requires_grad for weight in denoiser.weights().values())


def test_a_killed_audit_goes_on_with_the_same_result(sd, works, tmp_path):
    whole = audit(sd, works, QUICK, judge=None, seed=2, folder=tmp_path / "whole")

    def stop(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(sd, works, QUICK, judge=None, seed=2, folder=tmp_path / "part", progress=stop)
    left = len(list((tmp_path / "part").iterdir()))
    assert left == 2
    again = audit(sd, works, QUICK, judge=None, seed=2, folder=tmp_path / "part")
    assert again.record.passes == whole.record.passes - 8 * QUICK.draws * (2 * QUICK.steps + 2)
    assert again.record.metrics == whole.record.metrics
    assert again.record.tables == whole.record.tables
    assert {name: image.tobytes() for name, image in again.pictures.items()} == {name: image.tobytes() for name, image in whole.pictures.items()}


@pytest.mark.parametrize(
    "bad", [{"draws": 0}, {"last": 0}, {"last": 51}, {"late": 51}, {"layer": -1}, {"calibration": 0}, {"members": -1}, {"false_positive_rate": 0.0}]
)
def test_refuses_settings_out_of_range(bad):
    with pytest.raises(Misconfigured):
        check(Settings(**bad))


def test_refuses_a_layer_that_the_model_has_not(sd, works):
    before = sd.passes
    with pytest.raises(Misconfigured, match="7 cross-attention layers"):
        audit(sd, works, Settings(**(PROBE | {"layer": 7})), judge=None)
    assert sd.passes == before


def test_needs_calibration_works(sd, works):
    with pytest.raises(Unsupported, match="calibration"):
        audit(sd, works.where(lambda row: row["split"] == "member"), QUICK, judge=None)
