"""Scores works as trained or not by how a model denoises them: ten scores from one tape of passes, a threshold, and a test of whole collections.

The scores are those of `loss.py` (Carlini et al. 2023; calibrated after Watson et al. 2022), `secmi.py` (Duan et al. 2023), `pia.py` (Kong et al.
2024), `sima.py` (Rao et al. 2025), `clid.py` (Zhai et al. 2024), `gsa.py` (Pang et al. 2025) and, from 20 calibration works, `quantile.py` (Tang
et al. 2024).
`tape.py` makes the passes that all of them are computed from; `dataset_inference.py` (Dubinski et al. 2025) tests collections on all scores at once.

Members, canaries by copies and arm apart, are compared with calibration and holdout works, which the model never saw; splits follow near-duplicates.
Thresholds are set on calibration works and the rates they keep are measured on holdout works. Two controls tell what is no memory of the pair of
picture and caption: a blind baseline, which asks no model, and scores under another work's caption. CLiD is held against the empty caption alone
there, with the same of the own caption beside: captions cut short of another's would take more passes.

Different from the papers: timesteps are fixed beforehand, never chosen on the works that are judged; calibration works, not shadow models, set scales
and thresholds. Cost: see `tape.Passes`; 24 passes a work in the small preset, and 3 with gradients. Known failure: members and non-members that
differ in kind score apart without any memory, which the blind baseline shows but cannot mend.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.evaluation.blind import Blind, baseline, kernel, words
from assay.evaluation.features import fixed_features
from assay.judge import JudgeLike
from assay.memorization import clid, gsa, loss, pia, quantile, secmi, sima
from assay.memorization.groups import Audit, Group, choose, completed
from assay.memorization.looks import SIZE
from assay.memorization.tape import CAPTION, Passes, Tape, play
from assay.memorization.tape import check as check_passes
from assay.memorization.verdicts import Evidence, witness
from assay.noise import derive
from assay.works import Works
from assay.works.clusters import clusters, firsts, thumbnails

OTHER = "another"
"""Name of the wording that is another work's caption."""
TINY = 1e-12


@dataclass(frozen=True)
class Settings:
    """Settings of the membership audit."""

    timesteps: tuple[int, ...] = (100, 200, 300, 400, 500)
    """Timesteps of the loss, of CLiD and of SimA-MC."""
    draws: int = 3
    """Noises at each of those."""
    reductions: int = 4
    """Captions cut short for CLiD, the empty one among them."""
    gradient: bool = True
    """Whether GSA's gradients are taken: a backward pass for each noised prediction under the caption."""
    alpha: float = 0.9
    """Weight of the discrepancy in CLiD; the rest is the loss's."""
    proximal: int = 500
    """Timestep of PIA and PIAN."""
    unnoised: int = 100
    """Timestep of SimA."""
    power: float = 4.0
    """Norm of PIA, PIAN and SimA."""
    inverted: int = 100
    """Timestep up to which SecMI inverts."""
    interval: int = 10
    """Timesteps a step of SecMI; divides `inverted`."""
    false_positive_rate: float = 0.01
    """Probability that a work the model never saw is called a member."""
    quantile: float = 0.9
    """Level of quantile regression."""
    bags: int = 32
    """Regressors of quantile regression."""
    members: int = 400
    """Ordinary members to score, at most."""
    calibration: int = 400
    """Calibration works to score, at most."""
    holdout: int = 400
    """Holdout works to score, at most."""
    divisions: int = 100
    """Random halves of a collection in dataset inference."""
    batch: int = 32
    """Samples a pass."""
    shard: int = 16
    """Works a file of the tape."""


# paper: SecMI t = 100, k = 10; PIA t = 500 on Stable Diffusion, p = 4; CLiD four reductions, three draws, alpha = 0.9; CDI 1000 divisions.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"members": 1000, "calibration": 1000, "holdout": 1000, "divisions": 1000},
    "small": {
        "timesteps": (100, 300, 500),
        "draws": 1,
        "reductions": 3,
        "inverted": 100,
        "interval": 25,
        "members": 100,
        "calibration": 100,
        "holdout": 100,
    },
}

PROBE: dict[str, Any] = {
    "timesteps": (300,),
    "draws": 1,
    "reductions": 2,
    "interval": 50,
    "members": 4,
    "divisions": 4,
}


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    if min(settings.reductions, settings.divisions, settings.bags, settings.batch, settings.shard) < 1:
        raise Misconfigured("`reductions`, `divisions`, `bags`, `batch` and `shard` must be at least 1.", "Use a preset.")
    if min(settings.members, settings.calibration, settings.holdout) < 1:
        raise Misconfigured("`members`, `calibration` and `holdout` must be at least 1.", "Use a preset.")
    if not (0 < settings.false_positive_rate < 1 and 0 <= settings.alpha <= 1 and 0 < settings.quantile < 1 and settings.power >= 1):
        raise Misconfigured("`false_positive_rate`, `alpha` and `quantile` lie between 0 and 1, and `power` is at least 1.", "Use a preset.")
    check_passes(passes(settings))


def passes(settings: Settings) -> Passes:
    """Return what the tape holds."""
    return Passes(settings.timesteps, settings.draws, settings.proximal, settings.unnoised, settings.inverted, settings.interval, settings.gradient)


def cost(works: Works, settings: Settings) -> dict[str, int]:
    """Return the passes that an audit takes, and the images it encodes."""
    asked, each = sum(len(group.works) for group in choose(works, settings, 0)), passes(settings)
    return {"passes": asked * each.each(settings.reductions + 2), "training_passes": asked * each.backward, "images": asked}


def wordings(captions: list[str], groups: list[Group], ids: list[str], reductions: int, seed: int) -> dict[str, list[str]]:
    """Return the prompts under which works are denoised.

    Args:
        captions: of the works asked for, in the order of the groups.
        groups: the groups.
        ids: of the works asked for.
        reductions: captions cut short, the empty one among them.
        seed: of who lends a caption to whom.

    Returns:
        Name of a wording -> a prompt a work: the caption, none, cut short, and a caption that is not its own: of another work of the same group, of
        any work where the whole group has one caption; its own only where all works have.
    """
    cut = [clid.reduced(caption, reductions) for caption in captions]
    found = {CAPTION: list(captions)} | {name: [texts[place] for texts in cut] for place, name in enumerate(clid.names(reductions))}
    lent, start = list(captions), 0
    for group in groups:
        order = sorted(range(start, start + len(group.works)), key=lambda place: derive(seed, "lent caption", ids[place]))
        for turn, place in enumerate(order, start=1):
            lenders = (*order[turn:], *order[:turn], *range(len(captions)))
            lent[place] = next((captions[lender] for lender in lenders if captions[lender] != captions[place]), captions[place])
        start += len(group.works)
    return found | {OTHER: lent}


def scored(tape: Tape, settings: Settings) -> dict[str, np.ndarray]:
    """Return every score that one work's predictions give: name -> (n,) or (n, timesteps), higher for members."""
    pieces = clid.names(settings.reductions)
    found = {} if tape.gradient is None else {"gsa": gsa.norm(tape)}
    return found | {
        "loss": loss.plain(tape),
        "calibrated_loss": loss.calibrated(tape),
        "secmi": secmi.stat(tape),
        "pia": pia.pia(tape, settings.power),
        "pian": pia.pian(tape, settings.power),
        "sima": sima.sima(tape, settings.power),
        "sima_mc": sima.monte_carlo(tape, settings.power),
        "clid": clid.discrepancy(tape, pieces=pieces),
        "another.loss": loss.plain(tape, OTHER),
        "another.calibrated_loss": loss.calibrated(tape, OTHER),
        "empty.clid": clid.discrepancy(tape),
        "another.clid": clid.discrepancy(tape, OTHER),
        "timesteps": loss.by_timestep(tape),
    }


def audit(
    denoiser: Denoiser,
    works: Works,
    settings: Settings = Settings(),
    *,
    judge: JudgeLike,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Audit:
    """Score works by how a model denoises them and say which it was trained on.

    Args:
        denoiser: the model.
        works: with calibration works; canaries and holdout works where there are any.
        settings: see `Settings`.
        judge: not asked; every audit is given one.
        seed: of the choice of works, of noise and of divisions.
        progress: called with works done and works in all.
        folder: where shards of the tape are kept, so that a killed audit goes on.

    Returns:
        The record; there are no pictures.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the works have no calibration works, or no members.
    """
    check(settings)
    start, before = time.monotonic(), denoiser.passes
    evidence = measure(denoiser, works, choose(works, settings, seed), settings, seed=seed, progress=progress, folder=folder)
    record = witness(works, evidence, asdict(settings), bool(denoiser.rules), seed)
    return Audit(completed(record, denoiser, works, seed=seed, started=start, passes=before), {})


def measure(
    denoiser: Denoiser,
    works: Works,
    groups: list[Group],
    settings: Settings,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Evidence:
    """Score works of some groups, calibration works first, in every way; arguments as in `audit`."""
    asked = [index for group in groups for index in group.works]
    texts, names = works.column("captions"), works.column("id")
    captions, ids = [texts[index][0] for index in asked], [names[index] for index in asked]
    prompts = wordings(captions, groups, ids, settings.reductions, seed)
    ways: dict[str, Any] = {"seed": seed, "batch": settings.batch, "shard": settings.shard, "folder": folder, "progress": progress}
    parts = [scored(tape, settings) for tape in play(denoiser, works, asked, prompts, passes(settings), **ways)]
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    first = np.arange(len(asked)) < len(groups[0].works)  # calibration works
    for name, of in (("clid", "loss"), ("empty.clid", "loss"), ("another.clid", "another.loss")):
        scores[name] = clid.combined(scores[name], scores[of], first, settings.alpha)
    pixels = works.take(asked).pixels(SIZE)
    alike, same = likeness(pixels, captions), clusters(thumbnails(pixels))
    if first.sum() >= quantile.LEAST:
        options = {"seed": seed, "level": settings.quantile, "bags": settings.bags}
        scores["quantile"] = quantile.margins(-np.log(TINY - scores["secmi"]), quantile.components(alike), first, **options)
    return Evidence(groups, asked, scores, blind(alike, groups, same, seed), same)


def likeness(pixels: np.ndarray, captions: list[str]) -> np.ndarray:
    """Return how alike works are in pixels, uint8 (n, s, s, 3), and words, with no model asked: a kernel, float64, (n, n)."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return (kernel(fixed_features(images)) + kernel(words(captions))) / 2


def blind(alike: np.ndarray, groups: list[Group], same: np.ndarray, seed: int) -> Blind | None:
    """Tell ordinary members from works never trained by likeness alone, one of each set of near-duplicates; None where there are too few.

    Where somebody asks after works, these are told from works never trained, and members, which may be of another kind, are left out.

    Near-duplicates are on one side together, so that one would tell of another, and labels that are permuted work by work would be no null.
    """
    suspects = "mine" if any(group.kind == "mine" for group in groups) else "members"
    sides = np.repeat([{suspects: 1, "calibration": 0, "holdout": 0}.get(group.kind, -1) for group in groups], [len(g.works) for g in groups])
    rows = np.flatnonzero(sides >= 0)
    rows = rows[firsts(same[rows])]
    if min((sides[rows] == side).sum() for side in (0, 1)) < 2:
        return None
    return baseline(alike[np.ix_(rows, rows)], sides[rows] == 1, seed=seed)
