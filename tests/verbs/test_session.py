"""What verbs share: the largest memory of one piece of work, what a result depends on, numbers that are numbers, and what is left after a kill."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import assay
from assay.concept import Concept
from assay.erasure import negative_prompt, uce
from assay.errors import Misconfigured, Mismatch
from assay.jobs.folder import OutFolder
from assay.patched import Patched
from assay.record import Record
from assay.testing import save_tiny, tiny
from assay.verbs.patches import patch_fuse
from assay.verbs.session import Session, parse_patch

COUNTED = """
import numpy as np
from assay.verbs.session import peak_since, reset_peak
before = np.ones(200 * 2**20, np.uint8)
counts = [peak_since()] if reset_peak() else []
del before
if counts and reset_peak():
    counts.append(peak_since())
    moment = np.ones(64 * 2**20, np.uint8)
    del moment
    counts.append(peak_since())
print(*counts)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can begin counting anew")
def test_memory_is_counted_from_the_reset_on():
    """200 MB held before do not count; 64 MB held for a moment after do. In a process of its own: what other tests left is freed any time."""
    said = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True).stdout
    if not said.strip():
        pytest.skip("this system does not let a process begin counting anew")
    held, low, after = map(int, said.split())
    assert low < held - 150 * 2**20
    assert after > low + 50 * 2**20


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "half"])
def test_a_scale_is_a_finite_number(scale):
    with pytest.raises(Misconfigured, match="no scale"):
        parse_patch(f"patch:{scale}")
    assert parse_patch("patch:-0.5") == (Path("patch"), -0.5)


def test_numbers_that_are_none_are_refused_before_anything_is_drawn():
    model = tiny()
    for guidance in (float("nan"), 0.0, 0.99, -1.0):
        with pytest.raises(Misconfigured, match="1 samples without guidance"):
            model.sample(["a"], [0], steps=2, guidance=guidance)
    with pytest.raises(Misconfigured, match="multiplied"):
        uce.erase(model, Concept("cat", anchor="dog")).scaled(float("inf"))
    assert model.passes == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_folder_takes_no_plan_that_could_not_be_asked_for_again(tmp_path, number):
    """NaN is not equal to itself, and JSON has neither: refused before the folder is made, however deep in the settings it is."""
    with pytest.raises(Misconfigured, match="not finite"):
        OutFolder(tmp_path / "out", {"settings": {"uce": {"lam": number}}})
    assert not (tmp_path / "out").exists()


def test_what_is_on_a_loaded_model_is_part_of_the_plan(tmp_path):
    """Patches and rules that the caller put on: another plan, and so another result; off again, the first."""
    model = tiny()
    session = Session("audit", model, tmp_path)
    plain = session.plan()
    with Patched(model, [(uce.erase(model, Concept("cat", anchor="dog")), 1.0)]):
        assert session.plan() != plain
    with Patched(model, [(negative_prompt.erase(model, Concept("cat")), 1.0)]):
        assert session.plan() != plain
    assert session.plan() == plain


def test_how_prompts_become_tokens_and_latents_images_is_part_of_the_plan(tmp_path):
    """Two words of the vocabulary exchanged, or latents scaled otherwise: other pictures of the same weights, so another plan."""
    save_tiny(tmp_path / "a", "sd-epsilon")
    for name in ("b", "c"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
    words = json.loads((tmp_path / "b/tokenizer/tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a</w>"], vocabulary["b</w>"] = vocabulary["b</w>"], vocabulary["a</w>"]
    (tmp_path / "b/tokenizer/tokenizer.json").write_text(json.dumps(words))
    config = tmp_path / "c/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.25}))
    first, *others = (assay.load(tmp_path / name) for name in "abc")
    outcome = assay.generate(first, prompt="a", steps=1, out=tmp_path / "out")
    assert outcome.record.digests["setup"] == first.setup
    for other in others:
        assert other.digest == first.digest
        with pytest.raises(Mismatch, match="differs in setup"):
            assay.generate(other, prompt="a", steps=1, out=tmp_path / "out")


def test_a_fused_model_says_nothing_of_this_machine_and_is_taken_up_after_a_kill(tmp_path, monkeypatch):
    """No file of it names the folder that the base came from; killed before its record was written, the same command ends with it."""
    save_tiny(tmp_path / "base", "sd-epsilon")
    model = assay.load(tmp_path / "base")
    uce.erase(model, Concept("cat", anchor="dog")).save(tmp_path / "patch.safetensors")
    save = Record.save

    def killed(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        patch_fuse([tmp_path / "patch.safetensors"], model=str(tmp_path / "base"), out=tmp_path / "out")
    monkeypatch.setattr(Record, "save", save)
    made = patch_fuse([tmp_path / "patch.safetensors"], model=str(tmp_path / "base"), out=tmp_path / "out")
    assert made.files["model"] == str(tmp_path / "out" / "model")
    configs = list((tmp_path / "out" / "model").rglob("*.json"))
    assert configs
    assert not any(str(tmp_path) in file.read_text() for file in configs)
    assert assay.load(tmp_path / "out" / "model").digest != model.digest
