"""The command around a method of auditing: one record, nothing left over, and the same call again costs nothing."""

import json
from importlib import import_module

import pytest

import assay
from assay.memorization.membership import PROBE
from assay.testing import tiny, tiny_works
from assay.verbs.session import Session

QUICK = PROBE | {"gradient": False}


def test_a_membership_audit_leaves_a_record_and_no_tape(tmp_path):
    works, denoiser = tiny_works(), tiny()
    plan = assay.audit(denoiser, works, method="membership", settings=QUICK, dry_run=True).extra["plan"]
    outcome = assay.audit(denoiser, works, method="membership", settings=QUICK, out=tmp_path)
    assert outcome.record is not None
    assert outcome.record.passes == plan["passes"]
    assert outcome.record.method == "membership"
    assert set(outcome.record.digests) == {"model", "setup", "works"}  # the judge is not asked, so it is no part of the evidence
    assert not list(tmp_path.rglob("*.safetensors"))
    body = json.loads(outcome.to_json())
    assert {metric["name"] for metric in body["metrics"]} >= {"loss.auc", "clid.tpr", "another.clid.auc"}
    before = denoiser.passes
    again = assay.audit(denoiser, works, method="membership", settings=QUICK, out=tmp_path)
    assert denoiser.passes == before
    assert again.record is not None
    assert again.record.findings == outcome.record.findings


def test_a_denoiser_that_is_audited_twice_states_each_audit_s_passes(tmp_path):
    """The same plan costs the same, as `cost` has it, though the denoiser's own counter goes on."""
    works, denoiser = tiny_works(), tiny()
    plan = assay.audit(denoiser, works, method="membership", settings=QUICK, dry_run=True).extra["plan"]
    for name in ("first", "second"):
        record = assay.audit(denoiser, works, method="membership", settings=QUICK, out=tmp_path / name).record
        assert record is not None
        assert record.passes == plan["passes"]
    assert denoiser.passes == 2 * plan["passes"]
    assert Session("retrain", denoiser, tmp_path).before == 0  # which sets the counter to what all its sittings took


@pytest.mark.parametrize("method", ["detectors", "inpainting"])
def test_an_audit_with_pictures_leaves_all_that_its_tables_name(tmp_path, method):
    works, denoiser = tiny_works(), tiny()
    quick = import_module(f"assay.memorization.{method}").PROBE
    plan = assay.audit(denoiser, works, method=method, settings=quick, dry_run=True).extra["plan"]
    record = assay.audit(denoiser, works, method=method, settings=quick, out=tmp_path).record
    assert record is not None
    assert record.passes == plan["passes"] + plan.get("training_passes", 0)
    named = {cell["picture"] for table in record.tables for row in table.rows for cell in row if isinstance(cell, dict)}
    assert named
    assert named < {picture.file for picture in record.pictures}
    assert all((tmp_path / picture.file).exists() for picture in record.pictures)
    assert not list(tmp_path.rglob("*.safetensors"))
