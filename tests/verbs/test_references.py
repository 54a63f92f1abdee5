"""What ships of references is shown beside figures of the same protocol and concept, and beside no others."""

import json
from dataclasses import asdict

import pytest

import assay
from assay.attacks import seed_search
from assay.concept import concept
from assay.errors import BadInput, Mismatch, Missing, Unsupported
from assay.record import Metric
from assay.testing import tiny_works
from assay.verbs.plan import ATTACKS, Plan
from assay.verbs.references import FILE, PREFIX, Protocol, findings, floors, key, stored, write, write_floor
from assay.verbs.session import zoo

PROTOCOL = Protocol("m" * 64, "j" * 64, "w" * 64, 20, 4.0)
CATS = concept("cat", kind="object", members=("cat", "cat face"))
MARK = Metric(name=f"{PREFIX}target.family", value=0.05, low=0.01, high=0.12, n=64, chance=0.02, better="lower", judge="judge")


def kept(folder, metrics):
    write(folder / "references.json", PROTOCOL, {key(CATS): {"reference": "no-families", "metrics": [metric.model_dump() for metric in metrics]}})
    return folder / "references.json"


def test_figures_come_back_for_their_concept_alone(tmp_path):
    file = kept(tmp_path, [MARK])
    assert stored(PROTOCOL, CATS, file) == [MARK]
    assert stored(PROTOCOL, concept("cat", kind="object", members=("cat",)), file) == []  # another family of the same name
    assert stored(PROTOCOL, concept("cat", kind="style"), file) == []
    assert stored(PROTOCOL, None, file) == []
    assert stored(PROTOCOL, CATS, tmp_path / "none.json") == []


@pytest.mark.parametrize("other", [{"model": "x"}, {"judge": "x"}, {"works": "x"}, {"steps": 21}, {"guidance": 4.5}])
def test_figures_of_another_protocol_are_not_shown(tmp_path, other):
    assert stored(PROTOCOL._replace(**other), CATS, kept(tmp_path, [MARK])) == []


@pytest.mark.parametrize("damage", ["", "[]", '{"protocol": {}}', '{"protocol": {"model": 1}, "concepts": {}}'])
def test_a_damaged_file_is_named(tmp_path, damage):
    (tmp_path / "references.json").write_text(damage)
    with pytest.raises(BadInput, match=r"references\.json cannot be read"):
        stored(PROTOCOL, CATS, tmp_path / "references.json")


def test_a_metric_with_an_unknown_key_is_damage(tmp_path):
    file = kept(tmp_path, [MARK])
    about = json.loads(file.read_text())
    about["concepts"][key(CATS)]["metrics"][0]["typo"] = 1
    file.write_text(json.dumps(about))
    with pytest.raises(BadInput):
        stored(PROTOCOL, CATS, file)


def test_the_floor_of_an_attack_comes_back_for_its_settings_and_protocol_alone(tmp_path):
    """And stays where the figures beside it are written anew, even without the reference that it was measured on."""
    file, settings = kept(tmp_path, [MARK]), seed_search.Settings(2)
    write_floor(file, PROTOCOL, CATS, "seed_search", settings, (1, 24))
    assert floors(PROTOCOL, CATS, {"seed_search": settings}, file) == {"seed_search": (1, 24)}
    assert stored(PROTOCOL, CATS, file) == [MARK]
    for other in ({"seed_search": seed_search.Settings(3)}, {"random_prompts": settings}, {}):
        assert floors(PROTOCOL, CATS, other, file) == {}
    assert floors(PROTOCOL._replace(steps=21), CATS, {"seed_search": settings}, file) == {}
    assert floors(PROTOCOL, concept("cat", kind="object"), {"seed_search": settings}, file) == {}
    assert floors(PROTOCOL, CATS, {"seed_search": settings}, tmp_path / "none.json") == {}
    kept(tmp_path, [])
    assert floors(PROTOCOL, CATS, {"seed_search": settings}, file) == {"seed_search": (1, 24)}
    write(file, PROTOCOL, {})
    assert floors(PROTOCOL, CATS, {"seed_search": settings}, file) == {"seed_search": (1, 24)}
    assert stored(PROTOCOL, CATS, file) == []


def test_a_floor_needs_a_reference_and_a_whole_file(tmp_path):
    file, settings = kept(tmp_path, [MARK]), seed_search.Settings(2)
    with pytest.raises(Missing, match="no reference of `dog`"):
        write_floor(file, PROTOCOL, concept("dog", kind="object"), "seed_search", settings, (0, 1))
    about = json.loads(file.read_text())
    about["concepts"][key(CATS)]["attacks"] = {"seed_search": {"n": 3}}
    file.write_text(json.dumps(about))
    with pytest.raises(BadInput, match=r"references\.json cannot be read"):
        floors(PROTOCOL, CATS, {"seed_search": settings}, file)


def test_floors_that_ship_are_of_the_settings_of_a_run():
    """Else a run would show none: a changed default asks for `benchmarks/floors.py`."""
    about, plan = json.loads(zoo(FILE).read_text()), Plan()
    floored = {name: row["attacks"] for name, row in about["concepts"].items() if "attacks" in row}
    assert any(name.startswith("object:cat:") for name in floored)
    for attacks in floored.values():
        for name in ATTACKS:
            assert attacks[name]["settings"] == asdict(plan.attack(name)[1])
            assert attacks[name]["protocol"] == about["protocol"] | {"steps": plan.steps, "guidance": plan.guidance}


def test_the_mark_is_said_with_its_interval_and_the_floor_beside_the_distance():
    distances = [Metric(name=f"{PREFIX}kid.judge", value=0.0123), Metric(name="again.kid.judge", value=0.0045)]
    said = " ".join(findings([MARK, *distances], CATS, "family"))
    assert "5% of images (1% to 12%, n = 64)" in said
    assert "0.0123" in said
    assert "0.0045" in said
    assert findings([], None, "family") == findings([MARK], None, "family") == []
    assert "was measured" in findings([], CATS, "family")[0]
    seeds = Metric(name="again.kid.judge", value=0.002, n=64)
    said = findings([seeds], CATS, "family")  # another seed was measured, and no model trained without cats
    assert said[0] == findings([], CATS, "family")[0]
    assert said[1] == "On prompts that were to stay, KID of two trainings that differ in the seed alone is 0.002."


def test_a_reference_of_ones_own_is_measured_beside(sd, tmp_path):
    """The same patch on the model and as its reference: the same images, so the same figures."""
    works = tiny_works()
    erased = assay.erase(sd, "solid", kind="style", method="uce", works=works, out=tmp_path / "erased", seed=1)
    none = assay.Patch.load(erased.files["patch"])
    same = {"works": works, "patches": [none], "each": 8, "steps": 2}
    outcome = assay.evaluate(sd, concept="solid", kind="style", reference=none, out=tmp_path / "out", **same)
    assert outcome.record is not None
    value = {metric.name: metric.value for metric in outcome.record.metrics}
    beside = [name for name in value if name.startswith(PREFIX)]
    assert {f"{PREFIX}target.style", f"{PREFIX}neighbours.title", f"{PREFIX}kid.judge"} <= set(beside)
    for name in beside:
        assert value[name] == value[name.removeprefix(PREFIX)]
    assert outcome.record.digests["reference"] == none.digest


def test_a_reference_for_another_base_is_refused_before_anything_is_drawn(sd, pipelines, tmp_path):
    works = tiny_works()
    erased = assay.erase(pipelines["sd-v"], "solid", kind="style", method="uce", works=works, out=tmp_path / "erased", seed=1)
    passes = sd.passes
    with pytest.raises((Mismatch, Unsupported)):
        assay.evaluate(sd, concept="solid", kind="style", works=works, reference=erased.files["patch"], each=8, steps=2, out=tmp_path / "out")
    assert sd.passes == passes
