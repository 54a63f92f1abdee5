"""The command line as scripts meet it: exit codes, one JSON object, help without torch. Expected values come from the issue's contract."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from assay.cli.main import cli, main
from assay.noise import derive
from assay.testing import save_tiny, tiny_works
from assay.works import Works

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


def test_an_attack_is_judged_and_printed(capsys, world, tmp_path):
    """One prompt, one step; the base without patches shows under the plain prompt what it shows as the model with none."""
    arguments = ["attack", world / "model", "--works", world / "works.parquet", "--concept", "triangle", "--kind", "object"]
    arguments += ["--method", "seed_search", "--attempts", "2", "--each", "1", "--image-steps", "1", "--out", tmp_path / "out", "--json"]
    data = the_object(call(capsys, *arguments))
    metrics = {metric["name"]: metric["value"] for metric in data["metrics"]}
    assert metrics["pre.success"] == metrics["base.success"]
    assert data["files"]["attack.png"] == str(tmp_path / "out/attack.png")
    assert "--attempts" in call(capsys, "attack", "--method", "seed_search", "--help").out


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
        (["run", "MODEL", "--works", "WORKS", "--plan", "FOLDER"], "BadInput"),
        (["erase", "MODEL", "--method", "uce", "--concept", "", "--works", "WORKS"], "Misconfigured"),
        (["patch", "fuse", "nowhere", "--dry-run"], "Missing"),
        (["works", "info", "nowhere", "--dry-run"], "Missing"),
        (["generate", "MODEL", "--prompt", "x", "--fail-on", "images>"], "Misconfigured"),
        (["generate", "MODEL", "--prompt", "x", "--guidance", "nan"], "Misconfigured"),
        (["generate", "MODEL", "--prompt", "x", "--guidance", "0"], "Misconfigured"),
        (["generate", "MODEL", "--prompt", "x", "--steps", "100000", "--dry-run"], "Misconfigured"),
        (["evaluate", "MODEL", "--works", "WORKS", "--guidance", "0.5", "--dry-run"], "Misconfigured"),
        (["attack", "MODEL", "--works", "WORKS", "--method", "p4d", "--concept", "triangle", "--guidance", "0", "--dry-run"], "Misconfigured"),
        (["generate", "MODEL", "--prompt", "caf\udce9"], "Misconfigured"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_2(world, tmp_path, capsys, arguments, kind):
    """Each error names its kind, says what to do, and leaves nothing written."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/readme.md").write_text("no works")
    places = {"MODEL": str(world / "model"), "WORKS": str(world / "works.parquet"), "FOLDER": str(tmp_path / "folder")}
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
    assert "no record" in call(capsys, "methods", "--fail-on", "images>0", code=2).err


def test_an_interrupted_command_prints_its_object(capsys, monkeypatch):
    """Exactly one, as the schema promises of every command."""
    from assay.verbs.commands import COMMANDS

    def command(**_: object):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "methods", command)
    assert the_object(call(capsys, "methods", "--json", code=130))["status"] == "interrupted"


def test_prompts_of_the_wrong_type_are_refused_by_line(world, tmp_path, capsys):
    """U+2028 inside a prompt is no end of line; a number as negative, a word as seed, a list as title and half a character are no prompt."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "a", "prompt": "red\u2028circle"}\n', encoding="utf-8")
    call(capsys, "generate", world / "model", "--prompts", prompts, "--steps", 1, "--out", tmp_path / "fine")
    for bad in ('"negative": 5', '"seed": "abc"', '"seed": true', '"title": ["cat"]', '"style": "\\ud800"'):
        prompts.write_text(f'{{"id": "a", "prompt": "x"}}\n{{"id": "b", "prompt": "x", {bad}}}\n')
        assert "Line 2" in call(capsys, "generate", world / "model", "--prompts", prompts, "--out", tmp_path / "out", code=2).err
    for bad in ('"cat face"', "5", "null", '[{"id": "a", "prompt": "x"}]', "[" * 100_000):
        prompts.write_text(f"{bad}\n")
        assert "Line 1" in call(capsys, "generate", world / "model", "--prompts", prompts, "--out", tmp_path / "out", code=2).err
    prompts.write_bytes('{"id": "a", "prompt": "café"}\n'.encode("latin-1"))
    assert "UTF-8" in call(capsys, "generate", world / "model", "--prompts", prompts, "--out", tmp_path / "out", code=2).err


def test_more_tokens_than_the_model_reads_are_said(world, tmp_path, capsys):
    """The tiny tokenizer takes 77 at most: of 200 words the end is not read."""
    asked = ("generate", world / "model", "--steps", 1, "--json")
    short = the_object(call(capsys, *asked, "--prompt", "red circle", "--out", tmp_path / "short"))
    long = the_object(call(capsys, *asked, "--prompt", "red circle " * 100, "--out", tmp_path / "long"))
    assert len(short["findings"]) == 1
    assert "the beginning alone" in long["findings"][1]


def test_what_this_machine_cannot_hold_is_no_bug_of_assay(capsys, monkeypatch):
    """Python's own error, torch's on a device, and what its CPU allocator says; any other error of torch is a bug, and stays one."""
    from assay.verbs.commands import COMMANDS

    def fails(error: Exception):
        def command(**_: object):
            raise error

        monkeypatch.setitem(COMMANDS, "methods", command)

    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")):
        fails(error)
        assert "not enough memory" in call(capsys, "methods", code=2).err
    fails(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes"):
        main(["methods"])


def test_works_and_patch_commands_keep_to_their_folder(world, tmp_path, capsys):
    """A folder of another command is refused; the same command again finds its record; `--out` makes any command leave one."""
    works, out = world / "works.parquet", tmp_path / "out"
    call(capsys, "works", "info", works, "--out", out)
    before = (out / "record.json").read_bytes()
    call(capsys, "works", "info", works, "--out", out)
    assert (out / "record.json").read_bytes() == before
    assert "another plan" in call(capsys, "works", "duplicates", works, "--out", out, code=2).err
    (tmp_path / "art").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "art/a.png")
    (tmp_path / "art/a.txt").write_text("a red square")
    take_in = ["works", "import", tmp_path / "art", "--out", tmp_path / "taken"]
    assert "licence" in call(capsys, *take_in, code=2).err
    assert "another plan" in call(capsys, *take_in, "--license", "MIT", code=2).err
    take_in[-1] = tmp_path / "licensed"
    call(capsys, *take_in, "--license", "MIT")
    assert "complete already" in call(capsys, *take_in, "--license", "MIT").err
    (tmp_path / "licensed/record.json").unlink()  # as if killed between the works and the record
    call(capsys, *take_in, "--license", "MIT")
    assert len(Works.read(tmp_path / "licensed")) == 1
    (tmp_path / "art/a.txt").write_text("a red square, again")
    assert "changed" in call(capsys, *take_in, "--license", "MIT", code=2).err
    beside = ["works", "import", tmp_path / "art", "--license", "MIT", "--out", tmp_path / "art/out/works"]  # as by default in `art`
    call(capsys, *beside)
    assert "complete already" in call(capsys, *beside).err
    call(capsys, "methods", "--out", tmp_path / "methods")
    assert json.loads((tmp_path / "methods/record.json").read_text())["again"] == ["methods"]


def test_an_index_lets_duplicates_read_new_works_alone(world, tmp_path, capsys):
    """Expected: the metrics of the command without an index, before and after ten works are added; the second time ten pictures are read."""
    works, folder = tiny_works(), tmp_path / "works"
    for name, part in (("a", range(40)), ("b", range(40, 50))):
        works.take(part).write(folder / f"{name}.parquet")
        asked = ["works", "duplicates", folder, "--json", "--out"]
        plain = the_object(call(capsys, *asked, tmp_path / f"plain-{name}"))
        kept = call(capsys, *asked, tmp_path / f"kept-{name}", "--index", tmp_path / "index")
        assert the_object(kept)["metrics"] == plain["metrics"]
        assert f"{len(part)}/{len(part)}" in kept.err
    assert "holds other things" in call(capsys, *asked, tmp_path / "out", "--index", folder, code=2).err


def test_the_command_in_a_record_asks_the_same_again(world, tmp_path, capsys):
    """Its words are a command that this command line accepts, and lead to the same plan: the folder is complete already."""
    erase = ["erase", world / "model", "--method", "uce", "--concept", "solid", "--kind", "style", "--works", world / "works.parquet", "--lam", 0.5]
    evaluate = [
        "evaluate",
        world / "model",
        "--works",
        world / "works.parquet",
        "--concept",
        "solid",
        "--steps",
        2,
        "--patch",
        f"{tmp_path / 'a'}:0.5",
    ]
    audit = ["audit", world / "model", "--method", "nearest", "--works", world / "works.parquet", "--images", 1, "--steps", 1, "--members", 4]
    generate = ["generate", world / "model", "--prompt", "a 'quoted' thing", "--steps", 2, "--seed", 3]
    for name, command in (("a", erase), ("b", evaluate), ("c", audit), ("d", generate)):
        out = tmp_path / name
        call(capsys, *command, "--out", out)
        again = json.loads((out / "record.json").read_text())["again"]
        assert "complete already" in call(capsys, *again, "--out", out).err


def test_patches_of_one_name_are_told_apart(world, tmp_path, capsys):
    """Two patches that erase the same concept: both digests and both scales are in the record."""
    model, works = world / "model", world / "works.parquet"
    for lam, name in ((0.5, "a"), (5, "b")):
        call(capsys, "erase", model, "--method", "uce", "--concept", "solid", "--works", works, "--lam", lam, "--out", tmp_path / name)
    patches = ["--patch", f"{tmp_path / 'a'}:0.5", "--patch", tmp_path / "b"]
    call(capsys, "generate", model, "--prompt", "x", "--steps", 1, *patches, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert len({record["digests"]["patch:1"], record["digests"]["patch:2"]}) == 2
    assert [text.rsplit(" ", 1)[1] for text in record["resolved"]["patches"]] == ["0.5", "1"]


def test_an_erasure_on_top_of_another_goes_on_with_it(world, tmp_path, capsys):
    """The second patch is made on the patched model and is used with the first."""
    erase = ["erase", world / "model", "--method", "uce", "--works", world / "works.parquet"]
    call(capsys, *erase, "--concept", "solid", "--kind", "style", "--out", tmp_path / "a")
    call(capsys, *erase, "--concept", "circle", "--kind", "object", "--patch", tmp_path / "a", "--out", tmp_path / "b")
    both = ["--patch", tmp_path / "a", "--patch", tmp_path / "b"]
    call(capsys, "generate", world / "model", "--prompt", "x", "--steps", 1, *both, "--out", tmp_path / "out")
    manifest = json.loads(call(capsys, "patch", "info", tmp_path / "b", "--json").out)["patches"][0]
    assert manifest["parents"] == [json.loads(call(capsys, "patch", "info", tmp_path / "a", "--json").out)["patches"][0]["digest"]]


def test_given_prompts_have_neighbours_and_the_images_of_generate(world, tmp_path, capsys):
    """`evaluate` asks for image n of (seed, id) as `generate` does, so the base of both is the same picture."""
    from assay.verbs.evaluate import given_scene
    from assay.verbs.generate import Prompt
    from assay.verbs.session import Session
    from assay.works.concepts import find

    session, works = Session("evaluate", world / "model", tmp_path / "out"), tiny_works()
    concept = find(works, "solid", kind="style", anchor="", embed=lambda texts: np.eye(len(texts), 8))
    styles = sorted({style for style in works.column("style") if style})
    rows = [Prompt(style, f"red circle, {style} style") for style in styles]
    scene = given_scene(session, rows, works, concept, 2)
    assert set(scene.groups) == {"target", "neighbours"} | ({"rest"} if len(styles) > 2 else set())
    assert [row.image_seed(5) for row in scene.rows[:2]] == [derive(5, styles[0], 0), derive(5, styles[0], 1)]


@pytest.mark.parametrize(("subject", "more", "images"), [("erasure", [], 2 * 96), ("attacks", ["--attacks", "random_prompts"], (2 + 2 * 40) * 16)])
def test_benches_are_priced_on_a_users_own_model(world, tmp_path, capsys, subject, more, images):
    """One concept under the base and UCE: two scenes of 96 pictures, or two sets of 16 plain ones and of 40 attempts at each; 20 guided steps."""
    words = ["--measure", "--model", world / "model", "--works", world / "works.parquet", "--concept", "solid", "--methods", "uce", "--dry-run"]
    data = the_object(call(capsys, "bench", subject, *words, *more, "--out", tmp_path / "out", "--json"))
    assert data["plan"]["passes"] == images * 20 * 2
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing_and_counts_passes(world, tmp_path, capsys):
    """3 images x 4 steps x 2 for guidance = 24 passes."""
    out = tmp_path / "out"
    data = the_object(call(capsys, "generate", world / "model", "--prompt", "x", "--images", 3, "--steps", 4, "--out", out, "--dry-run", "--json"))
    assert data["plan"]["passes"] == 24
    assert not out.exists()


@pytest.mark.long
def test_interrupt_exits_with_130_and_resumes(world, tmp_path):
    """SIGINT while images are being made: 130, no half-written file, and the same command finishes."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "assay",
        "generate",
        str(world / "model"),
        "--prompt",
        "x",
        "--images",
        "512",
        "--steps",
        "10",
        "--out",
        str(out),
    ]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs that a shell puts in the background ignore it, and hand that down

    process = subprocess.Popen(command, preexec_fn=heed, **quiet)
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


def test_retrain_plans_and_refuses_from_the_command_line(world, capsys):
    """The built-in references by name; a misspelt condition is an error of one paragraph that names what is close."""
    data = the_object(call(capsys, "retrain", "--reference", "no-noto", "--dry-run", "--json"))
    assert data["plan"]["passes"] > 0
    assert data["out"] is None
    failed = the_object(call(capsys, "retrain", "--drop", "style=notto", "--json", code=2))
    assert failed["error"]["type"] == "Missing"
    assert "noto" in failed["error"]["hint"]
    failed = the_object(call(capsys, "retrain", world / "model", "--works", world / "works.parquet", "--json", code=2))
    assert "recipe" in failed["error"]["message"]
