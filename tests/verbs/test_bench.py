import json
import shutil
from pathlib import Path

import pytest

import assay
from assay.benches import world
from assay.errors import BadInput, Misconfigured, Mismatch, Missing, Unsupported
from assay.record import Dossier, Record

RESULTS = Path(__file__).parents[2] / "benchmarks"


def test_the_report_is_made_of_what_is_stored(tmp_path):
    """Every chapter whose result is in benchmarks/ is rebuilt with the figures of its file; the others say that they are still to be measured."""
    outcome = assay.bench("world", results=RESULTS, out=tmp_path / "out")
    dossier = Dossier.load(tmp_path / "out")
    assert [entry.stage for entry in dossier.entries] == list(world.QUESTIONS)
    for entry in dossier.entries:
        record = Record.load(tmp_path / "out" / entry.record)
        assert record.shows_not
        if (RESULTS / f"{entry.stage}.json").exists():
            assert record.metrics
        else:
            assert "has not been measured" in record.findings[0]
    stored = json.loads((RESULTS / "judges.json").read_text())
    assert Record.load(tmp_path / "out/judges").metric("cross-judge.style").value == next(
        metric["value"] for metric in stored["metrics"] if metric["name"] == "cross-judge.style"
    )
    page = Path(outcome.files["report"]).read_text()
    assert world.QUESTIONS["judges"] in page


def test_chapters_of_figures_name_them(tmp_path):
    """A file with one attack and one attribution becomes a chapter with those figures and no other."""
    rate = {"value": 0.25, "low": 0.2, "high": 0.3, "chance": 0.001}
    rates = {"auc": rate, "tpr_at_1%": rate, "tpr_at_0.1%": rate}
    half = {"models": 4, "seed_to_seed": rate, "ceiling": rate, "datamodel": rate, "pixel similarity": rate}
    figures = {
        "drawing": {"judged_as_asked": {"real": rate | {"n": 10}}},
        "membership": {"models": 8, "attacks": {"loss": rates, world.STRONGEST: rates, "likelihood ratio": rates}},
        "attribution": {"all models": half, "models that did not see the query": half},
    }
    (tmp_path / "digits.json").write_text(json.dumps(figures))
    assay.bench("world", results=tmp_path, chapter=["digits"], out=tmp_path / "out")
    record = Record.load(tmp_path / "out/digits")
    assert record.metric("membership.likelihood_ratio.auc").value == 0.25
    assert record.metric("attribution.unseen.datamodel").n == 4
    (tmp_path / "digits.json").write_text(json.dumps({"drawing": {}}))
    with pytest.raises(BadInput, match="cannot be read"):
        assay.bench("world", results=tmp_path, chapter=["digits"], out=tmp_path / "other")


def test_the_chapter_of_emoji32_tables_attacks_by_how_often_works_were_shown(tmp_path):
    """A table for works shown once and one for those repeated, with the rates that the file has: 0.1 % is not asked of so few models."""
    rates = {name: {"value": 0.25, "low": 0.2, "high": 0.3, "chance": 0.01} for name in ("auc", "tpr_at_1%")}
    found = {"models": 8, "attacks": {"loss": rates, "likelihood ratio": rates, world.STRONGEST: rates}}
    copies = {"1": {"works": 5, **{name: {"value": 0.75, "low": 0.7, "high": 0.8, "chance": 0.5} for name in ("gap", "of_loss", "right")}}}
    figures = {"models": 10, "with_near_duplicates": 3, "by_copies": copies, "membership": {"works shown once": found, "works repeated": found}}
    (tmp_path / "emoji32.json").write_text(json.dumps(figures))
    assay.bench("world", results=tmp_path, chapter=["emoji32"], out=tmp_path / "out")
    record = Record.load(tmp_path / "out/emoji32")
    assert (record.metric("right.k1").value, record.metric("membership.works_repeated.likelihood_ratio.auc").n) == (0.75, 8)
    assert [table.columns for table in record.tables[1:]] == [["attack", "AUC", "TPR at 1 %"]] * 2
    assert record.tables[1].rows[0] == ["loss", "0.250 (0.200 to 0.300)", "0.2500 (0.2000 to 0.3000)"]
    assert "75.0% of the time (70.0% to 80.0%, chance 50 %)" in record.findings[0]


def test_the_chapter_of_references_holds_families_against_the_rule(tmp_path):
    """What the file says of each family is in the table with its verdict; what was not trained is named."""
    outcome = assay.bench("world", results=RESULTS, chapter=["references"], out=tmp_path / "out")
    record = Record.load(tmp_path / "out/references")
    stored = json.loads((RESULTS / "references.json").read_text())
    families = [row for reference in stored["references"].values() for row in reference.get("families", [])]
    table = next(table for table in record.tables if table.title.startswith("Families"))
    assert {(row[1], row[-1] == "yes") for row in table.rows} == {(row["family"], row["admitted"]) for row in families}
    for row in families:
        assert row["admitted"] == (row["base"] - row["reference"] >= 0.4 - 1e-9)  # the rule of the design
        assert row["interval"][0] < row["fall"] < row["interval"][1]
    assert all(name in " ".join(record.findings) for name in stored["not trained"])
    assert "references.png" in outcome.files or (tmp_path / "out/references/references.png").exists()


def test_what_is_asked_is_checked_before_anything_is_written(tmp_path):
    for given, error in (({"subject": "moon"}, Misconfigured), ({"chapter": ["moon"]}, Misconfigured), ({"results": tmp_path / "none"}, Missing)):
        with pytest.raises(error):
            assay.bench(**({"results": RESULTS, "out": tmp_path / "out"} | given))
        assert not (tmp_path / "out").exists()


def test_new_results_take_a_new_folder(tmp_path):
    shutil.copy(RESULTS / "judges.json", tmp_path)
    assay.bench("world", results=tmp_path, chapter=["judges"], out=tmp_path / "out")
    assay.bench("world", results=tmp_path, chapter=["judges"], out=tmp_path / "out")
    (tmp_path / "judges.json").write_text((tmp_path / "judges.json").read_text() + "\n")
    with pytest.raises(Mismatch):
        assay.bench("world", results=tmp_path, chapter=["judges"], out=tmp_path / "out")


@pytest.mark.parametrize(
    ("subject", "given"),
    [
        ("world", {"measure": True, "methods": "uce"}),
        ("world", {"methods": "uce"}),
        ("world", {"works": "works"}),
        ("world", {"seed": 1}),
        ("erasure", {"retrain": True}),
        ("erasure", {"chapter": ["judges"]}),
        ("erasure", {"measure": True, "attacks": "p4d", "dry_run": True}),
        ("erasure", {"model": "my-sd", "works": "works"}),
        ("attacks", {"works": "works"}),
        ("attacks", {"kind": "style"}),
        ("attacks", {"limit": 0}),
    ],
)
def test_options_that_would_do_nothing_are_refused_by_name(tmp_path, subject, given):
    """Those of another bench, and those that say what to measure where nothing is measured."""
    with pytest.raises(Misconfigured, match=f"--{next(iter(given if 'attacks' not in given else ['attacks']))}"):
        assay.bench(subject, results=RESULTS, out=tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_a_seed_that_is_not_stored_is_not_shown_as_another(tmp_path):
    """What is stored of attacks is of seed 0."""
    with pytest.raises(Missing, match="seed 0, not 1"):
        assay.bench("attacks", results=RESULTS, seed=1, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("subject", ["world", "erasure", "attacks"])
def test_a_dry_run_of_a_stored_report_writes_nothing(tmp_path, subject):
    """It plans no passes; what training anew takes it does not know, and says so."""
    assert assay.bench(subject, results=RESULTS, out=tmp_path / "out", dry_run=True).extra["plan"]["passes"] == 0
    if subject == "world":
        with pytest.raises(Unsupported, match="not known beforehand"):
            assay.bench(subject, results=RESULTS, out=tmp_path / "out", retrain=True, dry_run=True)
    assert not list(tmp_path.iterdir())
