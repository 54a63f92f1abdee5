"""The verb around methods that sample by a rule: what it says, what it writes, and that patches below stay parents."""

from __future__ import annotations

import pytest

import assay
from assay.concept import Concept
from assay.denoiser import tensor_digest
from assay.erasure import esd, uce
from assay.errors import Mismatch, Unsupported
from assay.patch import Manifest, Patch
from assay.patched import Patched, fuse
from assay.testing import tiny


def test_a_rule_is_written_on_top_of_a_patch_and_said_in_words(tmp_path):
    model = tiny("sd-epsilon")
    below = uce.erase(model, Concept("dog", anchor="cat"))
    settings = {"warmup": 0, "threshold": 1.0}
    outcome = assay.erase(model, Concept("red hat"), method="sld", settings=settings, patches=[below], out=tmp_path / "out")
    made = Patch.load(outcome.files["patch"])
    assert made.rules[0].prompts == (("red hat", 1.0),)
    assert made.manifest.parents == [below.digest]
    assert outcome.record is not None
    assert "changes no weight" in outcome.record.findings[0]
    assert "`red hat` (+1)" in outcome.record.findings[0]
    with Patched(model, [(below, 1.0), (made, 1.0)]) as on:
        assert on.rules == list(made.rules)
    with pytest.raises(Unsupported, match="fused"):
        fuse(model, [(made, 1.0)], tmp_path / "model")


def test_what_could_not_be_used_beside_its_parents_is_refused_before_it_is_trained(tmp_path, monkeypatch):
    """A patch that replaces the weights that ESD trains: refused with a way out, after its probe alone. A rule changes none, and is made."""
    model = tiny("sd-epsilon")
    weights = model.group("cross_attention.kv")
    base = {name: tensor_digest(tensor) for name, tensor in weights.items()}
    below = Patch(Manifest(method="retrain", base=base), {f"set/{name}": tensor + 0.01 for name, tensor in weights.items()})
    tried, erase = [], esd.erase
    monkeypatch.setattr(esd, "erase", lambda *given, **more: tried.append(given[2]) or erase(*given, **more))
    with pytest.raises(Mismatch, match="assay patch fuse"):
        assay.erase(model, Concept("red hat", anchor="sun"), method="esd", patches=[below], out=tmp_path / "out")
    assert [settings.steps for settings in tried] == [esd.PROBE["steps"]]
    assert assay.erase(model, Concept("red hat"), method="negative_prompt", patches=[below], out=tmp_path / "rule").record is not None
