"""The verb around methods that sample by a rule: what it says, what it writes, and that patches below stay parents."""

from __future__ import annotations

import pytest

import assay
from assay.concept import Concept, together
from assay.denoiser import tensor_digest
from assay.erasure import esd, uce
from assay.errors import Misconfigured, Mismatch, Unsupported
from assay.patch import Manifest, Patch
from assay.patched import Patched, fuse
from assay.testing import tiny, tiny_works


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


def test_a_second_rule_is_refused_before_anything_is_drawn(tmp_path):
    """A model is sampled by one rule: a method that is a rule goes on no other, and one that trains does."""
    model = tiny("sd-epsilon")
    below = assay.erase(model, Concept("red hat"), method="negative_prompt", out=tmp_path / "first").out / "patch.safetensors"
    passes = model.passes
    with pytest.raises(Unsupported, match="one sampling rule"):
        assay.erase(model, Concept("sun"), method="sega", patches=[below], out=tmp_path / "second")
    assert model.passes == passes


class Cut:
    """A display that is interrupted in a stage."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __call__(self, stage: str, *_: object) -> None:
        if self.stage in stage:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        pass


def test_a_patch_is_kept_before_its_pictures_are_drawn(tmp_path, monkeypatch):
    """Interrupted while it draws, the same command trains nothing, and ends with the patch of a command left alone."""
    model, asked = tiny("sd-epsilon"), {"method": "esd", "settings": esd.PROBE}
    concept, out = Concept("red hat", anchor="sun"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        assay.erase(model, concept, **asked, out=out, display=Cut("pictures after"))
    assert (out / "patch.safetensors").exists()
    assert not (out / "record.json").exists()
    whole = assay.erase(model, concept, **asked, out=tmp_path / "whole")
    monkeypatch.setattr(esd, "erase", None)
    again = assay.erase(model, concept, **asked, out=out)
    assert Patch.load(again.files["patch"]).digest == Patch.load(whole.files["patch"]).digest
    assert again.record is not None
    assert again.record.findings == whole.record.findings


def test_a_refused_command_leaves_its_folder_to_the_next(tmp_path):
    model = tiny("sd-epsilon")
    with pytest.raises(Misconfigured):
        assay.erase(model, Concept("red hat", anchor="sun"), method="uce", settings={"lam": -1.0}, out=tmp_path)
    assert assay.erase(model, Concept("red hat", anchor="sun"), method="uce", out=tmp_path).record is not None
    with pytest.raises(Mismatch, match="another plan"):
        assay.erase(model, Concept("red hat", anchor="sea"), method="uce", out=tmp_path)


@pytest.mark.parametrize(("kind", "expected"), [("style", "paper-style"), ("object", "paper-object"), ("free", "paper")])
def test_of_the_paper_s_presets_the_one_for_this_kind_of_concept_is_used(kind, expected, tmp_path):
    """RECE has three rounds for nudity, and one for styles and for objects (its authors' README)."""
    concept = Concept("red hat", kind, "sun")
    outcome = assay.erase(tiny("sd-epsilon"), concept, method="rece", out=tmp_path / "out")
    assert outcome.record is not None
    assert outcome.record.given["preset"] == expected
    assert outcome.record.resolved["rounds"] == (3 if kind == "free" else 1)


def test_several_concepts_have_the_preset_of_their_one_kind_in_any_order(tmp_path):
    """A style and an object have no preset in common; two styles have one."""
    style, other, thing = Concept("red", "style", "blue"), Concept("green", "style", "blue"), Concept("hat", "object", "sun")
    for number, (parts, expected) in enumerate([([style, thing], "paper"), ([thing, style], "paper"), ([style, other], "paper-style")]):
        outcome = assay.erase(tiny("sd-epsilon"), together(parts), method="rece", out=tmp_path / str(number))
        assert outcome.record is not None
        assert outcome.record.given["preset"] == expected


def test_what_comes_next_can_be_asked(tmp_path):
    """A style is evaluated by the works that it was erased by; a single work is looked for, since no judge knows what one work is."""
    model, works = tiny("sd-epsilon"), tmp_path / "works.parquet"
    tiny_works().write(works)
    for kind, concept, words in (("style", "solid", "evaluate"), ("work", "red circle, solid style", "audit")):
        out = tmp_path / kind
        rest = "--method nearest" if kind == "work" else f"--concept '{concept}'"
        made = assay.erase(model, concept, method="uce", kind=kind, works=works, out=out)
        assert made.next[0] == f"assay {words} --patch {out} --works {works} {rest}"
