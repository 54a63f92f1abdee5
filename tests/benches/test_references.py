"""The chapter of references: what it says of works that one of two models was shown."""

from __future__ import annotations

from typing import Any

import pytest

from assay.benches.references import read


def figures(**more: Any) -> dict[str, Any]:
    """Return what `benchmarks/references.py` writes of one reference, with numbers of this test's own."""
    return {"references": {"other": {"training": {"steps": 7}, "shown to both": [], "canaries": [], **more}}, "not trained": []}


def row(name: str, value: float, n: int, **more: float) -> dict[str, Any]:
    """Return a metric as it is stored."""
    return {"name": f"exchanged.{name}", "value": value, "low": value - 0.05, "high": value + 0.05, "n": n, **more}


def test_a_reference_with_exchanged_works_says_how_well_losses_tell_them() -> None:
    stored = [row("auc", 0.75, 5, chance=0.5), row("rise.base_alone", 0.1, 3), row("rise.reference_alone", -0.2, 2)]
    record = read(figures(exchanged=stored))
    assert [table.rows for table in record.tables if "one of both saw" in table.title] == [
        [["other", "+0.100 (+0.050 to +0.150), n = 3", "-0.200 (-0.250 to -0.150), n = 2", "0.750 (0.700 to 0.800)"]]
    ]
    assert any("AUC 0.750 (0.700 to 0.800); chance is 0.5" in finding for finding in record.findings)
    assert [(metric.name, metric.chance) for metric in record.metrics if metric.name.endswith("auc")] == [("other.exchanged.auc", 0.5)]


@pytest.mark.parametrize("more", [{}, {"exchanged": []}])
def test_a_reference_without_exchanged_works_has_no_such_table(more: dict[str, Any]) -> None:
    assert not [table for table in read(figures(**more)).tables if "one of both saw" in table.title]


def test_the_base_stands_beside_its_references_under_the_same_rule() -> None:
    """Its canaries, counted by the same thresholds and seed, come first in the table of what comes out."""
    found = {"name": "memorised.k64", "value": 0.75, "low": 0.5, "high": 0.9, "n": 16}
    stored = figures(canaries=[found | {"value": 0.25, "low": 0.1, "high": 0.5}]) | {"base": {"canaries": [found]}}
    tables = [table.rows for table in read(stored).tables if "come out" in table.title]
    assert tables == [[["base", "k64", "75% (50% to 90%)", 16], ["other", "k64", "25% (10% to 50%)", 16]]]
    assert {metric.name: metric.value for metric in read(stored).metrics} == {"base.memorised.k64": 0.75, "other.memorised.k64": 0.25}
