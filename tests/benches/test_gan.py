"""The chapter of the GAN, from figures written by hand."""

from __future__ import annotations

import copy

import pytest

from assay.benches.gan import read


def share(hits, n):
    return {"value": hits / n, "low": 0.0, "high": 1.0, "n": n, "chance": 0.02}


def model(hits):
    area = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 90, "chance": 0.5}
    heads = {head: {"generated": [0.5, 0.4, 0.6], "real": [0.9, 0.8, 1.0], "prompts": 20} for head in ("style", "title", "group")}
    return {
        "digest": "0",
        "parameters": [1_600_000, 1_300_000],
        "works_shown": 256_000,
        "epochs": 69.5,
        "drawn_by": {"steps": 1, "guidance": 1.0},
        "quality": {"trained_pairs": heads, "untrained_pairs": heads},
        "nearest": {
            "memorised.k4": share(0, 16),
            "memorised.k64": share(hits, 16),
            "memorised.members": share(1, 60),
            "false_positives.holdout": share(2, 100),
        },
        "untargeted": {
            "copies": share(3, 100),
            "copies of the work asked for": share(2, 100),
            "rule": {"thresholds": [-0.25, 0.7, 0.8]},
            "works": {"never trained": share(0, 50), "k64": share(hits, 24)},
            "kid": {"drawn to works never trained": 0.2, "members to works never trained": 0.001, "drawn": 40},
        },
        "membership": {"rate": 0.01, "never": 90, "score.members.auc": area, "score.members.flagged": share(4, 80), "score.auc": area},
    }


def test_every_figure_is_in_the_chapter_and_each_model_has_its_sentence():
    record = read({"models": {"gan": model(5), "emoji64": model(12)}})
    assert record.metric("gan.nearest.memorised.k64").value == pytest.approx(5 / 16)
    assert record.metric("emoji64.untargeted.never_trained").n == 50
    assert record.metric("emoji64.membership.score.auc").chance == 0.5
    assert len(record.metrics) == 2 * (4 + 2 + 3)
    assert "gan: of the canaries with 64 copies 5 of 16" in record.findings[0]
    assert "12 of 16" in record.findings[1]
    assert "Tiled l2 counts below gan 0.250, emoji64 0.250" in record.findings[3]
    assert "0 of 50" in record.findings[3]
    row = next(row for row in record.tables[1].rows if row[0] == "canaries, k64")
    assert row[1:] == ["5 of 16 (0% to 100%)", "12 of 16 (0% to 100%)"]
    assert record.tables[0].rows[0][1] == "1.6 + 1.3"


def test_a_figure_without_its_interval_is_refused():
    figures = {"models": {"gan": copy.deepcopy(model(5))}}
    del figures["models"]["gan"]["nearest"]["memorised.k64"]["low"]
    with pytest.raises(KeyError):
        read(figures)
