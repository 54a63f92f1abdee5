"""The main job on pipelines that are not built in: every stage, kill -9 anywhere, and the signature. 50 works made in code."""

import contextlib
import json
import multiprocessing
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

import assay
from assay.cli.main import main
from assay.errors import BadInput, Misconfigured, Mismatch, Missing
from assay.record import Dossier, Record
from assay.testing import save_tiny, tiny_works
from assay.verbs.plan import ATTACKS, METHODS, Plan
from assay.verbs.run import STAGES

QUICK = """
each = 6
quality = 6
attacked = 2
steps = 2
preset = "small"
[settings.esd]
steps = 3
ddim_steps = 3
[settings.concept_inversion]
steps = 2
batch = 2
[settings.unlearn_diff_atk]
rounds = 1
steps = 1
drawn = 1
[settings.nearest]
images = 1
members = 6
steps = 2
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_works().write(folder / "works.parquet")
    (folder / "plan.toml").write_text(QUICK)
    for kind in ("sd-v", "sdxl"):
        save_tiny(folder / kind, kind)
    return folder


@pytest.fixture(autouse=True, scope="module")
def own_key(tmp_path_factory):
    """Sign with a key of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSAY_KEY", str(tmp_path_factory.mktemp("key") / "key.pem"))
        yield


def run(world, kind, out):
    return assay.run(world / kind, works=world / "works.parquet", plan=world / "plan.toml", out=out)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A run that came to its end."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run(world, "sd-v", out)
    return out


@pytest.fixture
def out(finished, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sd-v", "sdxl"])
def test_every_stage_is_answered_on_other_families(world, finished, tmp_path, kind):
    """The stages are those of the issue; each leaves a record that its place in the dossier names by hash."""
    out = finished if kind == "sd-v" else tmp_path / "out"
    if kind != "sd-v":
        run(world, kind, out)
    dossier = Dossier.load(out)
    assert dossier.complete
    assert [entry.stage for entry in dossier.entries] == list(STAGES)
    for entry in dossier.entries:
        record = Record.load(out / entry.record)
        assert record.findings
        assert record.shows_not
        assert not record.findings[0].startswith("This could not be answered"), record.findings
    page = (out / "report.html").read_text()
    assert all(f"Studio {n}" in page for n in (1, 2, 3))  # the creators that tiny_works declares
    assert not list(out.rglob("*.part"))
    assert not list(out.rglob("shards"))


def test_signature_covers_every_file(out):
    """Verifies as left; fails with one byte changed in a record, and with a file added."""
    key = out / "public.pem"
    assert assay.report(out, verify=True, key=key).extra["verified"] > 10
    record = out / "works/record.json"
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(bytes(data))
    with pytest.raises(Mismatch, match=r"works/record\.json"):
        assay.report(out, verify=True, key=key)


class Tells:
    """A display that sends what is said to another process."""

    def __init__(self, pipe):
        self.pipe = pipe

    def __call__(self, *progress):
        """Show nothing."""

    def say(self, text):
        self.pipe.send(text)


def alone(world, out, pipe):
    """Run in a process of its own."""
    assay.run(world / "sd-v", works=world / "works.parquet", plan=world / "plan.toml", out=out, display=Tells(pipe))


@pytest.mark.long
def test_kill_9_in_any_stage_resumes_to_the_same_figures(world, finished, tmp_path, monkeypatch):
    """Killed once in every stage, the run ends with the same metrics as one left alone: same machine, threads and plan."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")  # one import for all processes, which have one thread each
    context.set_forkserver_preload(["assay.verbs.run", "assay.training.finetune"])
    killed = tmp_path / "killed"
    hit = 0
    for stage in STAGES:
        told, tells = context.Pipe(duplex=False)
        process = context.Process(target=alone, args=(world, killed, tells))
        process.start()
        tells.close()
        with contextlib.suppress(EOFError):
            while True:
                line = told.recv()
                if line.startswith("stage ") and line.endswith(stage):
                    hit += 1
                    time.sleep(0.05)
                    break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for path in killed.rglob("record.json"):
            Record.load(path)  # never half-written
    assert hit == len(STAGES)
    assert not (killed / "record.json").exists()  # the last kill came before the end
    main(["run", str(world / "sd-v"), "--works", str(world / "works.parquet"), "--plan", str(world / "plan.toml"), "--out", str(killed)])
    figures = [[(m.name, m.value, m.low, m.high, m.n) for m in Record.load(folder).metrics] for folder in (killed, finished)]
    assert figures[0] == figures[1]
    assert assay.report(killed, verify=True, key=killed / "public.pem").extra["verified"] > 10


@pytest.mark.long
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
    plans = ["speed = 3", 'each = "many"', "each = true", "each = 0", "quality = 0", "guidance = nan", "guidance = 0.5", "[settings.esd]\nmagic = 1"]
    plans += ["[settings.edd]\nsteps = 1", "[settings]\nesd = 3", "[settings.esd]\nsteps = 0", "[settings.nearest]\nimages = 0"]
    plans += ["attacked = -1", "budget = 0", "[settings.seed_search]\nattempts = 0", "[settings.p4d]\nsteps = 1"]
    plans += ["steps = 2000", "[settings.nearest]\nsteps = 2000"]  # the model has 1,000 timesteps
    plans += ['object = "unicorn"', 'style = "cubist"', "each = "]
    for text in plans:
        plan = tmp_path / "plan.toml"
        plan.write_text(text)
        with pytest.raises((Misconfigured, Missing, BadInput)):
            assay.run(world / "sd-v", works=world / "works.parquet", plan=plan, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_done_again(world, out):
    """The second call finds every record and signs the same files: the manifest does not change."""
    before = json.loads((out / "manifest.json").read_text())
    run(world, "sd-v", out)
    assert json.loads((out / "manifest.json").read_text()) == before


def test_a_finished_run_that_was_changed_is_not_signed_again(world, out):
    """One figure changed, or a file added: the same call refuses, and what was signed stays as it was."""
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


def test_an_unfinished_run_whose_record_was_changed_does_not_go_on(world, out):
    """The dossier lists the record's digest as it was written."""
    for name in ("manifest.json", "manifest.sig"):
        (out / name).unlink()
    record = out / "works/record.json"
    record.write_text(record.read_text() + " ")
    with pytest.raises(Mismatch, match=r"works/record\.json was changed"):
        run(world, "sd-v", out)


def test_other_creators_are_another_plan(world, out):
    """What the report says of works is part of what it depends on."""
    works = tiny_works()
    other = works.with_columns(creator=["Somebody Else"] * len(works))
    with pytest.raises(Mismatch, match="works"):
        assay.run(world / "sd-v", works=other, plan=world / "plan.toml", out=out)


def test_works_without_titles_and_styles_are_answered_honestly(world, tmp_path):
    """Plain captioned works, as most people have: what needs names says so, memorisation is still measured."""
    works = tiny_works()
    bare = works.with_columns(title=[None] * len(works), style=[None] * len(works))
    assay.run(world / "sd-v", works=bare, plan=Plan.read(world / "plan.toml"), out=tmp_path / "out")
    found = {stage: Record.load(tmp_path / "out" / stage.replace(" ", "-")).findings[0] for stage in STAGES}
    for stage in ("first look", "style erased", "object erased", "style attacked", "object attacked"):
        assert "could not be answered" in found[stage]
    assert "could not be answered" not in found["memorisation"]
    assert Dossier.load(tmp_path / "out").complete


def test_a_concept_is_attacked_through_the_eraser_that_shows_least_of_it(finished):
    """What was erased is counted on the same images as its erasure; each attack is counted, told and drawn; nothing that has no floor is removed."""
    for kind in ("style", "object"):
        erased, record = Record.load(finished / f"{kind}-erased"), Record.load(finished / f"{kind}-attacked")
        head = "style" if kind == "style" else "family"
        least = min(METHODS, key=lambda method: erased.metric(f"{method}.target.{head}").value)
        assert record.resolved["eraser attacked"] == least
        assert record.digests[f"patch:{least}"] == erased.digests[f"patch:{least}"]
        assert record.metric("pre.success").n == 2
        for name in ATTACKS:
            total, pre = record.metric(f"{name}.total.success"), record.metric("pre.success")
            assert total.n == 2
            assert total.value >= pre.value
        assert f"`{record.given['concept']}` is " in record.findings[0] + record.findings[1]
        assert "is removed" not in " ".join(record.findings)
        assert "nothing here can be called removed" in " ".join(record.findings)
        assert record.pictures[0].file == "attacked.png"
        assert [table.title for table in record.tables[1:]] == [f"What {name} told the model" for name in ATTACKS]


def test_attacks_are_priced(world, finished):
    """By hand, of each concept: 2 x 2 passes of concept inversion, 2 x 1 and 2 x 4 x 3 of UnlearnDiffAtk, and 8 images of 2 steps with guidance."""
    plan = Plan.read(world / "plan.toml")
    options = {"works": world / "works.parquet", "dry_run": True}
    both = [assay.run(world / "sd-v", plan=replace(plan, attacked=count), **options).extra["plan"]["passes"] for count in (2, 0)]
    assert both[0] - both[1] == 2 * (4 + 2 + 24 + 8 * 4)
    spent = sum(Record.load(finished / f"{kind}-attacked").passes for kind in ("style", "object"))
    assert spent / 2 <= both[0] - both[1] <= spent * 2


def test_attacks_can_be_left_out(world, finished, tmp_path):
    """No prompts, no chapters: the rest is as it is with them."""
    plan = replace(Plan.read(world / "plan.toml"), attacked=0)
    assay.run(world / "sd-v", works=world / "works.parquet", plan=plan, out=tmp_path / "out")
    assert Dossier.load(tmp_path / "out").stages == [stage for stage in STAGES if "attacked" not in stage]
    for stage in ("object-erased", "quality"):
        figures = [[(m.name, m.value) for m in Record.load(folder / stage).metrics] for folder in (finished, tmp_path / "out")]
        assert figures[0] == figures[1]
