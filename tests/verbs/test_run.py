"""The main job on pipelines that are not built in: every stage, kill -9 anywhere, and the signature. 50 works made in code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import assay
from assay.errors import BadInput, Misconfigured, Mismatch, Missing
from assay.record import Dossier, Record
from assay.testing import save_tiny, tiny_works
from assay.verbs.plan import Plan
from assay.verbs.run import STAGES

QUICK = """
each = 6
quality = 6
steps = 2
preset = "small"
[settings.esd]
steps = 3
ddim_steps = 3
[settings.nearest]
images = 1
members = 6
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_works().write(folder / "works.parquet")
    (folder / "plan.toml").write_text(QUICK)
    for kind in ("sd-v", "sdxl"):
        save_tiny(folder / kind, kind)
    return folder


@pytest.fixture(autouse=True)
def own_key(tmp_path, monkeypatch):
    """Sign with a key of the test's own."""
    monkeypatch.setenv("ASSAY_KEY", str(tmp_path / "key.pem"))


def run(world, kind, out):
    return assay.run(world / kind, works=world / "works.parquet", plan=world / "plan.toml", out=out)


@pytest.mark.parametrize("kind", ["sd-v", "sdxl"])
def test_every_stage_is_answered_on_other_families(world, tmp_path, kind):
    """The stages are those of the issue; each leaves a record that its place in the dossier names by hash."""
    outcome = run(world, kind, tmp_path / "out")
    dossier = Dossier.load(tmp_path / "out")
    assert dossier.complete
    assert [entry.stage for entry in dossier.entries] == list(STAGES)
    for entry in dossier.entries:
        record = Record.load(tmp_path / "out" / entry.record)
        assert record.findings
        assert record.shows_not
        assert not record.findings[0].startswith("This could not be answered"), record.findings
    page = Path(outcome.files["report"]).read_text()
    assert all(f"Studio {n}" in page for n in (1, 2, 3))  # the creators that tiny_works declares
    assert not list((tmp_path / "out").rglob("*.part"))
    assert not list((tmp_path / "out").rglob("shards"))


def test_signature_covers_every_file(world, tmp_path):
    """Verifies as left; fails with one byte changed in a record, and with a file added."""
    out = tmp_path / "out"
    run(world, "sd-v", out)
    key = out / "public.pem"
    assert assay.report(out, verify=True, key=key).extra["verified"] > 10
    record = out / "works/record.json"
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(bytes(data))
    with pytest.raises(Mismatch, match=r"works/record\.json"):
        assay.report(out, verify=True, key=key)


def test_kill_9_in_any_stage_resumes_to_the_same_figures(world, tmp_path):
    """Killed once in every stage, the run ends with the same metrics as one left alone: same machine, threads and plan."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "assay", "run", str(world / "sd-v"), "--works", str(world / "works.parquet"), "--plan", str(world / "plan.toml")]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    subprocess.run([*command, "--out", str(whole), "--quiet"], check=True, env=environment, capture_output=True)
    hit = 0
    for stage in STAGES:
        process = subprocess.Popen([*command, "--out", str(killed)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("stage ") and line.strip().endswith(stage):
                hit += 1
                break
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in killed.rglob("record.json"):
            Record.load(path)  # never half-written
    assert hit == len(STAGES)
    assert not (killed / "record.json").exists()  # the last kill came before the end
    subprocess.run([*command, "--out", str(killed)], check=True, env=environment, capture_output=True)
    figures = [[(m.name, m.value, m.low, m.high, m.n) for m in Record.load(folder).metrics] for folder in (killed, whole)]
    assert figures[0] == figures[1]
    subprocess.run(
        [sys.executable, "-m", "assay", "report", str(killed), "--verify", "--key", str(killed / "public.pem")], check=True, env=environment
    )


def test_works_without_calibration_are_answered_honestly(world, tmp_path):
    """Without works the model never saw no threshold can be set: the stage says so and the rest goes on."""
    works = tiny_works().where(lambda row: row["split"] == "member")
    outcome = assay.run(world / "sd-v", works=works, plan=Plan.read(world / "plan.toml"), out=tmp_path / "out")
    assert outcome.record is not None
    record = Record.load(tmp_path / "out/memorisation")
    assert "could not be answered" in record.findings[0]
    assert "calibration" in record.findings[0]


def test_a_plan_is_checked_before_any_work(world, tmp_path):
    """Unknown fields, methods and settings, wrong types, values out of range and unknown concepts are refused, and nothing is written."""
    plans = ["speed = 3", 'each = "many"', "each = true", "each = 0", "quality = 0", "guidance = nan", "[settings.esd]\nmagic = 1"]
    plans += ["[settings.edd]\nsteps = 1", "[settings]\nesd = 3", "[settings.esd]\nsteps = 0", "[settings.nearest]\nimages = 0"]
    plans += ['object = "unicorn"', 'style = "cubist"', "each = "]
    for text in plans:
        plan = tmp_path / "plan.toml"
        plan.write_text(text)
        with pytest.raises((Misconfigured, Missing, BadInput)):
            assay.run(world / "sd-v", works=world / "works.parquet", plan=plan, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_done_again(world, tmp_path):
    """The second call finds every record and signs the same files: the manifest does not change."""
    run(world, "sd-v", tmp_path / "out")
    before = json.loads((tmp_path / "out/manifest.json").read_text())
    run(world, "sd-v", tmp_path / "out")
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == before


def test_a_finished_run_that_was_changed_is_not_signed_again(world, tmp_path):
    """One figure changed, or a file added: the same call refuses, and what was signed stays as it was."""
    out = tmp_path / "out"
    run(world, "sd-v", out)
    manifest = (out / "manifest.json").read_bytes()
    record = out / "memorisation/record.json"
    honest = record.read_text()
    record.write_text(honest.replace('"value"', '"value" '))
    with pytest.raises(Mismatch, match=r"memorisation/record\.json"):
        run(world, "sd-v", out)
    record.write_text(honest)
    (out / "planted.txt").write_text("x")
    with pytest.raises(Mismatch, match=r"planted\.txt"):
        run(world, "sd-v", out)
    (out / "planted.txt").unlink()
    run(world, "sd-v", out)
    assert (out / "manifest.json").read_bytes() == manifest


def test_an_unfinished_run_whose_record_was_changed_does_not_go_on(world, tmp_path):
    """The dossier lists the record's digest as it was written."""
    out = tmp_path / "out"
    run(world, "sd-v", out)
    for name in ("manifest.json", "manifest.sig"):
        (out / name).unlink()
    record = out / "works/record.json"
    record.write_text(record.read_text() + " ")
    with pytest.raises(Mismatch, match=r"works/record\.json was changed"):
        run(world, "sd-v", out)


def test_other_creators_are_another_plan(world, tmp_path):
    """What the report says of works is part of what it depends on."""
    run(world, "sd-v", tmp_path / "out")
    works = tiny_works()
    other = works.with_columns(creator=["Somebody Else"] * len(works))
    with pytest.raises(Mismatch, match="works"):
        assay.run(world / "sd-v", works=other, plan=world / "plan.toml", out=tmp_path / "out")


def test_works_without_titles_and_styles_are_answered_honestly(world, tmp_path):
    """Plain captioned works, as most people have: what needs names says so, memorisation is still measured."""
    works = tiny_works()
    bare = works.with_columns(title=[None] * len(works), style=[None] * len(works))
    assay.run(world / "sd-v", works=bare, plan=Plan.read(world / "plan.toml"), out=tmp_path / "out")
    found = {stage: Record.load(tmp_path / "out" / stage.replace(" ", "-")).findings[0] for stage in STAGES}
    for stage in ("first look", "style erased", "object erased"):
        assert "could not be answered" in found[stage]
    assert "could not be answered" not in found["memorisation"]
    assert Dossier.load(tmp_path / "out").complete
