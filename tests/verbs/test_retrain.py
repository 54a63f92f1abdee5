"""On a tiny pipeline whose UNet the recipe makes, and 50 works made in code (40 members, 55 exposures, `tests` count them by hand)."""

import json
import multiprocessing
import signal
import time
from dataclasses import replace
from importlib.resources import files

import jsonschema
import pytest
import torch

import assay
from assay.cli.main import main
from assay.denoiser import tensor_digest
from assay.errors import BadInput, Misconfigured, Mismatch, Missing
from assay.loading import load
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Record
from assay.testing import tiny_works
from assay.testing.pipelines import WIDTH, tiny_pipeline
from assay.training import loop
from assay.training.loop import Schedule
from assay.training.recipe import Recipe
from assay.training.unet import UNetSettings, build
from assay.works.filters import condition

UNET = UNetSettings(
    widths=(8, 8),
    attention=(False, True),
    heads=2,
    groups=4,
    precision="fp32",
    schedule=Schedule(steps=11, batch=4, learning_rate=1e-3, warmup=2, ema=0.9),
)
WORKS = tiny_works()
EXPOSURES = 39 + 16
SCHEMA = json.loads((files("assay.cli") / "schema.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    pipeline = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.unet = build(UNET, latent_channels=4, latent_size=16, text_width=WIDTH)
    pipeline.save_pretrained(folder / "model")
    Recipe(0, UNET, WORKS.digest, 11).save(folder / "model")
    WORKS.write(folder / "works.parquet")
    return folder


def retrain(world, out, **options):
    return assay.retrain(world / "model", works=world / "works.parquet", out=out, **options)


def bytes_of(folder):
    return (folder / "patch.safetensors").read_bytes()


def test_a_retrained_unet_is_a_patch_that_fits_and_comes_off(world, tmp_path):
    outcome = retrain(world, tmp_path, drop="style=outline")
    patch, denoiser = Patch.load(outcome.files["patch"]), load(world / "model")
    assert set(patch.names) == set(denoiser.group("unet"))
    before = {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}
    with Patched(denoiser, [(patch, 1.0)]):
        assert torch.equal(denoiser.weights()["unet.conv_in.weight"], patch.tensors["set/unet.conv_in.weight"].float())
        assert before["unet.conv_in.weight"] != tensor_digest(denoiser.weights()["unet.conv_in.weight"])
    assert before == {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}


def test_the_record_says_what_was_shown(world, tmp_path):
    # Half of the 40 members are outlined; the canary (index 5, 16 copies) is one of them, so 20 exposures of 55 stay: 11 * 20 / 55 = 4 steps.
    outcome = retrain(world, tmp_path, drop=["style=outline"])
    record = outcome.record
    values = {metric.name: metric.value for metric in record.metrics}
    assert (values["works.shown"], values["works.left_out"], values["exposures"], values["steps"]) == (20, 20, 20, 4)
    assert values["exposures.share"] == pytest.approx(20 / EXPOSURES)
    assert record.tables[0].rows == [["outline", 20, 0, 35, 0], ["solid", 20, 20, 20, 20]]
    assert record.passes == 4 * UNET.schedule.batch
    assert len(record.curves[0].lines["loss"]) == 4
    manifest = Patch.load(outcome.files["patch"]).manifest
    assert manifest.method == "retrained"
    assert "without style=outline" in manifest.made_for
    assert manifest.creators == [f"Solid Studio {number}" for number in (1, 2, 3)]
    assert manifest.license == "CC0-1.0"
    changes = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert len(changes) == 20
    assert {(row["style"], row["after"]) for row in changes} == {("outline", 0)}
    assert (tmp_path / record.pictures[0].file).exists()


def test_a_training_in_two_sittings_ends_with_the_same_bytes(world, tmp_path):
    whole = retrain(world, tmp_path / "whole", keep="style=solid", steps=6)
    first = retrain(world, tmp_path / "parts", keep="style=solid", steps=6, until=2)
    assert first.record is None
    assert "2 of 6" in first.extra["lines"][0]
    assert not (tmp_path / "parts" / "record.json").exists()
    second = retrain(world, tmp_path / "parts", keep="style=solid", steps=6)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "parts")
    assert whole.record.metric("loss.last") == second.record.metric("loss.last")
    assert not (tmp_path / "parts" / "training").exists()


def test_a_training_that_is_not_at_its_end_says_so(world, tmp_path, capsys):
    """By the schema; a condition has to wait for the end. Then it is done."""
    words = ["retrain", str(world / "model"), "--works", str(world / "works.parquet"), "--steps", "2", "--out", str(tmp_path / "out"), "--json"]
    main([*words, "--until", "1"])
    printed = json.loads(capsys.readouterr().out)
    jsonschema.validate(printed, SCHEMA)
    assert (printed["status"], printed["record"]) == ("unfinished", None)
    with pytest.raises(SystemExit):
        main([*words, "--until", "1", "--fail-on", "loss.last>9"])
    assert "cannot be judged yet" in json.loads(capsys.readouterr().out)["error"]["message"]
    main([*words, "--fail-on", "loss.last>9"])
    assert json.loads(capsys.readouterr().out)["status"] == "done"


def test_asking_again_trains_nothing(world, tmp_path):
    first = retrain(world, tmp_path, steps=2)
    stamp = (tmp_path / "patch.safetensors").stat().st_mtime_ns
    assert retrain(world, tmp_path, steps=2).record.dump() == first.record.dump()
    assert (tmp_path / "patch.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(Mismatch, match="another plan"):
        retrain(world, tmp_path, steps=3)


def test_the_seed_is_never_the_bases(world, tmp_path):
    # The same works and, by default, seed 0 as in the recipe: still other draws, and others again for another seed.
    first, second = (Patch.load(retrain(world, tmp_path / str(seed), steps=1, seed=seed).files["patch"]) for seed in (0, 1))
    base = load(world / "model")
    unet, run = Recipe.load(world / "model").lasting(1).retrain(base, WORKS)
    kernel = dict(unet.named_parameters())["conv_in.weight"]
    kernels = [kernel.half(), *(patch.tensors["set/unet.conv_in.weight"] for patch in (first, second))]
    assert not any(torch.equal(kernels[i], kernels[j]) for i in range(3) for j in range(i))
    assert run.step == 1


def test_works_can_be_shown_once_and_exchanged(world, tmp_path):
    # 40 members at one exposure each; of those 3 leave and 3 of the 4 of the holdout enter. The canary is never exchanged.
    outcome = retrain(world, tmp_path, once=True, swap=3, steps=1)
    changes = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    splits = dict(zip(WORKS.column("id"), WORKS.column("split"), strict=True))
    assert sorted((row["before"], row["after"], splits[row["id"]]) for row in changes) == [
        *[(0, 1, "holdout")] * 3,
        *[(1, 0, "member")] * 3,
        (16, 1, "member"),
    ]
    assert outcome.record.metric("exposures").value == 40


def test_works_are_left_out_by_id(world, tmp_path):
    members = WORKS.where(lambda row: row["split"] == "member")
    listed = tmp_path / "ids.txt"
    listed.write_text("# two works\n\n" + "\n".join(members.column("id")[:2]) + "\n")
    outcome = retrain(world, tmp_path / "out", drop_ids=listed, steps=1)
    changes = [json.loads(line) for line in (tmp_path / "out" / "changes.jsonl").read_text().splitlines()]
    assert [row["id"] for row in changes] == members.column("id")[:2]
    assert outcome.record.again[outcome.record.again.index("--drop-ids") + 1] == str(listed)
    same = retrain(world, tmp_path / "same", drop_ids=members.column("id")[:2], steps=1)
    assert bytes_of(tmp_path / "same") == bytes_of(tmp_path / "out")
    assert same.record.again == []  # a list of Python has no name on the command line


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drop": "style=cubist"}, Missing, "style=cubist"),
        ({"drop": "colour=red"}, Misconfigured, "no field `colour`"),
        ({"drop": "red circle"}, Misconfigured, "no condition"),
        ({"drop": "style=solid,style=outline"}, Misconfigured, "No works are left"),
        ({"swap": 5}, Misconfigured, "only 4 can enter"),
        ({"reference": "no-such"}, Missing, "no-such"),
        ({"reference": "again", "drop": "style=solid"}, Misconfigured, "by itself"),
        ({"drop_ids": "no-such-file"}, Missing, "no-such-file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(world, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        retrain(world, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_other_works_need_a_number_of_steps(world, tmp_path):
    fewer = WORKS.take(range(30))
    with pytest.raises(Mismatch, match="not the works"):
        assay.retrain(world / "model", works=fewer, out=tmp_path / "out")
    assert assay.retrain(world / "model", works=fewer, out=tmp_path / "out", steps=1).record.metric("steps").value == 1


def test_a_model_without_recipe_or_with_anothers_is_refused(world, tmp_path):
    denoiser = load(world / "model")
    with pytest.raises(Misconfigured, match="how model was trained"):
        assay.retrain(denoiser, works=WORKS, out=tmp_path / "out")
    other = Recipe(0, replace(UNET, widths=(8, 16)), WORKS.digest, 11)
    with pytest.raises(Mismatch, match="another UNet"):
        assay.retrain(denoiser, works=WORKS, recipe=other, out=tmp_path / "out")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(Missing, match="recipe"):
        assay.retrain(tmp_path, works=WORKS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_of_ids_that_names_nothing_is_refused(tmp_path):
    from assay.works.filters import read_ids

    path = tmp_path / "ids.txt"
    path.write_text("# none\n")
    with pytest.raises(BadInput, match="names no work"):
        read_ids(path, WORKS)
    path.write_text("0" * 64)
    with pytest.raises(Missing, match="Line 1"):
        read_ids(path, WORKS)


def test_a_dry_run_says_the_plan_and_writes_nothing(world, tmp_path):
    outcome = retrain(world, tmp_path / "out", drop="style=outline", dry_run=True)
    assert "4 steps of 4 for 11" in outcome.extra["lines"][0]
    assert outcome.extra["plan"]["passes"] == 4 * 4 + 2 * 20 * 2 * 8  # training, and 8 prompts on two models with guidance
    assert not (tmp_path / "out").exists()


def command(words, every):
    """Give a command in a process of its own, with checkpoints at every so many steps."""
    loop.EVERY = every
    main(words)


def test_the_command_goes_on_after_kill_9(world, tmp_path, monkeypatch):
    """Killed after a checkpoint; what follows ends with the bytes of a training that nobody killed."""
    words = ["retrain", str(world / "model"), "--works", str(world / "works.parquet"), "--drop", "style=solid", "--steps", "101", "--quiet", "--out"]
    checkpoint = tmp_path / "killed" / "training" / "checkpoint.safetensors"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = multiprocessing.get_context("forkserver").Process(target=command, args=([*words, str(tmp_path / "killed")], 3))
    process.start()
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (tmp_path / "killed" / "record.json").exists()
    for name in ("killed", "whole"):
        main([*words, str(tmp_path / name)])
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    again = Record.load(tmp_path / "whole").again
    assert again[0] == "retrain"
    assert again[again.index("--drop") + 1] == "style=solid"


def test_conditions_of_the_record_are_the_conditions_given(world, tmp_path):
    outcome = retrain(world, tmp_path, keep=["style=solid", "canary"], once=True, steps=1)
    fits = condition(["style=solid", "canary"], WORKS)
    expected = sum(fits(row) for row in WORKS.rows() if row["split"] == "member")
    assert outcome.record.metric("works.shown").value == expected == 21
    assert "--once" in outcome.record.again
    assert outcome.record.again.count("--keep") == 2
