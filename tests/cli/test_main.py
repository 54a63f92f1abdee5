"""The command line as scripts meet it: exit codes, one JSON object, help without torch. Expected values come from the issue's contract."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files

import jsonschema
import pytest
from PIL import Image

from assay.cli.main import cli, main
from assay.testing import save_tiny, tiny_works

SCHEMA = json.loads((files("assay.cli") / "schema.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model", "sd-epsilon")
    tiny_works().write(folder / "works.parquet")
    return folder


def call(capsys, *arguments, code=0):
    """Run the command line in this process and return what it printed on stdout and stderr."""
    try:
        main([str(argument) for argument in arguments])
        left = 0
    except SystemExit as exit_:
        left = exit_.code
    printed = capsys.readouterr()
    assert left == code, printed.err
    return printed


def the_object(printed):
    """Parse stdout as exactly one JSON object and check it against the committed schema."""
    lines = printed.out.strip().splitlines()
    assert len(lines) == 1
    data = json.loads(lines[0])
    jsonschema.validate(data, SCHEMA)
    return data


def test_help_needs_no_torch_and_little_time():
    """The issue asks for less than 150 ms on an idle machine; here the margin is processor time, since machines are shared."""
    code = (
        "import sys, time; start = time.process_time()\n"
        "from assay.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), time.process_time() - start)"
    )
    for arguments in (["--help"], ["erase", "--method", "esd", "--help"], ["run", "--help"]):
        out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
        last = out.strip().splitlines()[-1]
        assert "HEAVY [] " in last
        assert float(last.split()[-1]) < 0.3


def test_help_of_a_method_shows_its_settings(capsys):
    """`learning_rate` is a field of ESD and not of UCE."""
    assert "--learning-rate" in call(capsys, "erase", "--method", "esd", "--help").out
    assert "--learning-rate" not in call(capsys, "erase", "--method", "uce", "--help").out


def test_every_command_has_help_with_a_sentence():
    """Walks the tree of commands, so that none can be added without help."""

    def walk(command, path):
        for name, child in getattr(command, "commands", {}).items():
            assert child.help, f"{path} {name}"
            walk(child, f"{path} {name}")

    walk(cli, "assay")


def test_generate_leaves_what_the_contract_says(world, tmp_path, capsys):
    """Files and keys are those of the issue: images/ID-N.png and images.jsonl with id, prompt, seed, file, sha256."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "red circle"}\n{"id": "b", "prompt": "blue ring", "negative": "red", "seed": 7}\n')
    out = tmp_path / "out"
    data = the_object(call(capsys, "generate", world / "model", "--prompts", prompts, "--images", 2, "--steps", 2, "--out", out, "--json"))
    assert data["status"] == "done"
    assert data["command"] == "generate"
    rows = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == ["images/a-0.png", "images/a-1.png", "images/b-0.png", "images/b-1.png"]
    assert set(rows[0]) == {"id", "prompt", "seed", "file", "sha256"}
    assert (out / "record.json").exists()


def test_an_image_depends_on_seed_id_and_number_alone(world, tmp_path, capsys):
    """The same (seed, id, number) in another file, order and batch gives the same image to 1/255."""
    many, one = tmp_path / "many.jsonl", tmp_path / "one.jsonl"
    many.write_text('{"id": "x", "prompt": "blue ring"}\n{"id": "a", "prompt": "red circle"}\n')
    one.write_text('{"id": "a", "prompt": "red circle"}\n')
    for source, out in ((many, "m"), (one, "o")):
        call(capsys, "generate", world / "model", "--prompts", source, "--images", 2, "--steps", 2, "--out", tmp_path / out)
    for number in range(2):
        pair = [Image.open(tmp_path / out / f"images/a-{number}.png").tobytes() for out in ("m", "o")]
        assert max(abs(a - b) for a, b in zip(*pair, strict=True)) <= 1


def test_the_same_plan_resumes_and_another_is_refused(world, tmp_path, capsys):
    """An existing folder resumes if the plan matches, else exit 2."""
    arguments = ["generate", world / "model", "--prompt", "red circle", "--images", 3, "--steps", 2, "--out", tmp_path / "out"]
    call(capsys, *arguments)
    (tmp_path / "out/record.json").unlink()
    first = tmp_path / "out/images/prompt-0.png"
    before = first.stat().st_mtime_ns
    call(capsys, *arguments)
    assert first.stat().st_mtime_ns == before
    assert "another plan" in call(capsys, *arguments[:-2], "--seed", 1, *arguments[-2:], code=2).err


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["generate", "no-such-model", "--prompt", "x"], "Missing"),
        (["generate", "--prompt", "x", "--images", "0"], "Misconfigured"),
        (["generate", "MODEL"], "Misconfigured"),
        (["generate", "MODEL", "--prompts", "nowhere.jsonl"], "Missing"),
        (["generate", "MODEL", "--prompt", "x", "--device", "abacus"], "Unsupported"),
        (["generate", "MODEL", "--prompt", "x", "--patch", "nowhere"], "Missing"),
        (["erase", "MODEL", "--method", "magic", "--concept", "red"], "Misconfigured"),
        (["erase", "MODEL", "--method", "uce", "--concept", "unicorn", "--works", "WORKS"], "Missing"),
        (["erase", "MODEL", "--method", "uce", "--concept", "solid", "--kind", "style", "--works", "WORKS", "--lam", "many"], "Misconfigured"),
        (["audit", "MODEL", "--method", "nearest"], "Missing"),
        (["evaluate", "MODEL"], "Missing"),
        (["run", "MODEL"], "Missing"),
        (["run", "MODEL", "--works", "nowhere.parquet"], "Missing"),
        (["methods", "cooking"], "Misconfigured"),
        (["report", "nowhere"], "Missing"),
        (["works", "info", "nowhere"], "Missing"),
        (["patch", "info", "nowhere"], "Missing"),
        (["no-such-command"], "Misconfigured"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_2(world, tmp_path, capsys, arguments, kind):
    """Each error names its kind, says what to do, and leaves nothing written."""
    places = {"MODEL": str(world / "model"), "WORKS": str(world / "works.parquet")}
    out = tmp_path / "out"
    own = [] if arguments == ["no-such-command"] else ["--out", str(out)]
    printed = call(capsys, *[places.get(argument, argument) for argument in arguments], *own, "--json", code=2)
    data = the_object(printed)
    assert data["error"]["type"] == kind
    assert data["error"]["hint"]
    assert not out.exists()
    assert "Traceback" not in printed.err


def test_damaged_models_are_refused(world, tmp_path, capsys):
    """A folder that is no pipeline, an unknown family, and truncated weights: each exit 2, by name."""
    assert "model_index.json" in call(capsys, "generate", tmp_path, "--prompt", "x", code=2).err
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    printed = call(capsys, "generate", odd, "--prompt", "x", code=2)
    assert "KandinskyPipeline" in printed.err
    assert "StableDiffusionPipeline" in printed.err
    broken = save_tiny(tmp_path / "broken")
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in call(capsys, "generate", broken, "--prompt", "x", "--out", tmp_path / "out", code=2).err
    assert not (tmp_path / "out").exists()


def test_fail_on_exits_with_3(world, tmp_path, capsys):
    """One image is more than none."""
    arguments = ["generate", world / "model", "--prompt", "x", "--steps", 1, "--out", tmp_path / "out"]
    call(capsys, *arguments, "--fail-on", "images>0", code=3)
    call(capsys, *arguments, "--fail-on", "images>1")
    call(capsys, *arguments, "--fail-on", "cats>1", code=2)


def test_dry_run_writes_nothing_and_counts_passes(world, tmp_path, capsys):
    """3 images x 4 steps x 2 for guidance = 24 passes."""
    out = tmp_path / "out"
    data = the_object(call(capsys, "generate", world / "model", "--prompt", "x", "--images", 3, "--steps", 4, "--out", out, "--dry-run", "--json"))
    assert data["plan"]["passes"] == 24
    assert not out.exists()


def test_interrupt_exits_with_130_and_resumes(world, tmp_path):
    """SIGINT while images are being made: 130, no half-written file, and the same command finishes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "assay", "generate", str(world / "model"), "--prompt", "x", "--images", "64", "--steps", "60", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list(out.glob("images/*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not list(out.rglob("*.part"))
    assert not (out / "record.json").exists()
    for path in out.glob("images/*.png"):
        Image.open(path).load()


def test_erase_then_generate_then_fuse(world, tmp_path, capsys):
    """The patch a command writes goes on by `--patch`, is described, added, scaled, and fused into a folder that generates the same image."""
    model, works = world / "model", world / "works.parquet"
    erased = the_object(
        call(capsys, "erase", model, "--method", "uce", "--concept", "solid", "--kind", "style", "--works", works, "--out", tmp_path / "e", "--json")
    )
    patch = erased["files"]["patch"]
    call(capsys, "generate", model, "--prompt", "red circle", "--steps", 2, "--patch", patch, "--out", tmp_path / "patched")
    call(capsys, "patch", "fuse", patch, "--model", model, "--out", tmp_path / "fused")
    call(capsys, "generate", tmp_path / "fused/model", "--prompt", "red circle", "--steps", 2, "--out", tmp_path / "plain")
    pair = [Image.open(tmp_path / name / "images/prompt-0.png").tobytes() for name in ("patched", "plain")]
    assert max(abs(a - b) for a, b in zip(*pair, strict=True)) <= 1
    assert "erase solid" in call(capsys, "patch", "info", patch).out
    call(capsys, "patch", "scale", patch, "--by", -1, "--out", tmp_path / "negative")
    call(capsys, "patch", "add", patch, tmp_path / "negative", "--out", tmp_path / "sum")
    call(capsys, "patch", "export-lora", patch, "--out", tmp_path / "lora", code=2)
