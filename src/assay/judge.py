"""Judges that name what a picture shows: title, group and style, learned from works and never asked to name one they have seen.

`Judge` is one network; `CrossJudge` holds two, split by work, and asks of every (title, style) the one that never saw its real work. `JudgeLike` is
what `evaluate` and `audit` need of any judge; `assay.evaluation.centroid.CentroidJudge` offers the same for works without a trained judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.nn import functional as F

from assay.errors import BadInput, Misconfigured, Missing
from assay.judge_network import PREPROCESSING, JudgeNetwork, Shape, prepare
from assay.noise import numpy_generator
from assay.record import write_atomically

HEADS = ("title", "group", "style")


class Verdict(NamedTuple):
    """What a judge says of every image under one head."""

    known: np.ndarray
    """Whether the judge that was asked can name the true class at all: bool, (n,). Where not, the image counts for nothing under this head."""
    right: np.ndarray
    """Whether the true class came first: bool, (n,)."""
    among_five: np.ndarray
    """Whether the true class was among the first five: bool, (n,)."""
    probability: np.ndarray
    """Of the true class: float64, (n,); 0 where unknown."""
    named: np.ndarray
    """The class that came first: object, (n,); None where nothing could be named."""
    confidence: np.ndarray
    """Its probability: float64, (n,)."""

    @classmethod
    def nothing(cls, count: int) -> Verdict:
        """Return the verdict of a judge that names nothing."""
        none, no = np.zeros(count, bool), np.zeros(count)
        return cls(none, none.copy(), none.copy(), no, np.full(count, None, object), no.copy())

    def accuracy(self) -> float | None:
        """Return the share of right answers among images whose class is known; None if there are none."""
        return float(self.right[self.known].mean()) if self.known.any() else None


class JudgeLike(Protocol):
    """What can judge images made for a title and a style."""

    name: str

    @property
    def digest(self) -> str:
        """SHA-256 over everything that a verdict depends on."""
        ...

    def features(self, images: torch.Tensor) -> np.ndarray:
        """Return features of images (n, 3, h, w) in [0, 1]: float32, (n, d), rows of norm 1."""
        ...

    def score(self, images: torch.Tensor, titles: Sequence[str | None], styles: Sequence[str | None]) -> dict[str, Verdict]:
        """Judge images by what each was meant to show, blind to the real work of that title and style: head -> verdict."""
        ...

    def chance(self, head: str, names: Collection[str] | None = None) -> float:
        """Return the accuracy of a guess among the classes it knows, 1 where it knows none; with `names`, how often a guess is one of those."""
        ...


class Judge:
    """A trained network with the names of its classes.

    Weights are rounded to fp16, as they are stored, so that a judge in memory and the same judge loaded agree to the bit.

    Args:
        network: trained; moved to evaluation and frozen.
        classes: names of the classes by head.
    """

    def __init__(self, network: JudgeNetwork, classes: Mapping[str, Sequence[str]]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.classes = {head: tuple(classes[head]) for head in HEADS}
        for tensor in self._tensors().values():
            tensor.copy_(tensor.half().float())

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.network.state_dict().items() if not name.endswith("num_batches_tracked")}

    def _stored(self) -> bytes:
        return save({name: tensor.half().contiguous() for name, tensor in self._tensors().items()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 over weights as stored, shape, classes and preprocessing."""
        about = json.dumps([asdict(self.network.shape), self.classes, PREPROCESSING])
        return hashlib.sha256(about.encode() + self._stored()).hexdigest()

    @torch.no_grad()
    def _forward(self, images: torch.Tensor, batch: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.network.title.device
        parts = [prepare(images[start : start + batch].to(device)) for start in range(0, len(images), batch)]
        embedded = [(self.network.embed(part), self.network.embed_style(part)) for part in parts]
        return torch.cat([pair[0] for pair in embedded]), torch.cat([pair[1] for pair in embedded])

    def features(self, images: torch.Tensor) -> np.ndarray:
        """Return trunk and style features, each normalised, of images (n, 3, h, w) in [0, 1]: float32, (n, d), rows of norm 1."""
        halves = [F.normalize(part, dim=1) for part in self._forward(images)]
        return (torch.cat(halves, 1) / 2**0.5).cpu().numpy()

    def probabilities(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the probability of every class by head, of images (n, 3, h, w) in [0, 1]: float64, (n, classes)."""
        logits = self.network.name(*self._forward(images))
        return {head: logits[head].double().softmax(1).cpu().numpy() for head in HEADS}

    def save(self, folder: str | Path) -> None:
        """Write `judge.safetensors` (fp16) and `judge.json` into `folder`."""
        about = {"schema": "assay/judge/1", "shape": asdict(self.network.shape), "classes": self.classes, "preprocessing": PREPROCESSING}
        write_atomically(Path(folder) / "judge.safetensors", self._stored())
        write_atomically(Path(folder) / "judge.json", json.dumps(about | {"digest": self.digest}, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Judge:
        """Read a judge from a folder.

        Raises:
            Missing: there is none.
            BadInput: a file is damaged, or weights and description do not belong together.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "judge.json").read_text())
            shape = Shape(tuple(about["shape"]["widths"]), tuple(about["shape"]["style_widths"]), float(about["shape"]["scale"]))
            network = JudgeNetwork(shape, *(len(about["classes"][head]) for head in HEADS))
            network.load_state_dict({**network.state_dict(), **load_file(folder / "judge.safetensors")})
            judge = cls(network, about["classes"])
        except FileNotFoundError as error:
            raise Missing(f"No judge in {folder}.", "Make one with `recipes/emoji/make.py --stage judge`.") from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise BadInput(f"The judge in {folder} cannot be read: {error}.", "Its files may be damaged; make it anew.") from error
        if judge.digest != about["digest"]:
            raise BadInput(f"The judge in {folder} is not the one its judge.json describes.", "Its files may be damaged; make it anew.")
        return judge


def verdict(probabilities: np.ndarray, classes: Sequence[str], truth: Sequence[str | None]) -> Verdict:
    """Compare the probabilities of one head (n, classes) with the true names; a tie counts against the judge."""
    place = {name: index for index, name in enumerate(classes)}
    known = np.array([name in place for name in truth], bool)
    index = np.array([place.get(name or "", 0) for name in truth], np.int64)
    own = probabilities[np.arange(len(truth)), index] if len(truth) else np.zeros(0)
    rank = (probabilities >= own[:, None]).sum(1)
    first = probabilities.argmax(1) if len(truth) else np.zeros(0, np.int64)
    named, confidence = np.array(classes, object)[first], probabilities[np.arange(len(truth)), first]
    return Verdict(known, known & (rank <= 1), known & (rank <= 5), np.where(known, own, 0.0), named, confidence)


def make_folds(titles: Sequence[str | None], styles: Sequence[str | None], seed: int) -> dict[tuple[str, str], int]:
    """Assign every (title, style) to fold 0 or 1: the styles of a title are shuffled and dealt in turn, from a fold drawn by title.

    So each fold knows a title of at least two styles from other styles, and a work's fold depends on seed, title and its styles alone.
    """
    styles_of: dict[str, set[str]] = {}
    for title, style in zip(titles, styles, strict=True):
        if title is not None and style is not None:
            styles_of.setdefault(title, set()).add(style)
    folds = {}
    for title, found in styles_of.items():
        rng = numpy_generator(seed, "folds", title)
        first = int(rng.integers(2))
        shuffled = rng.permutation(np.array(sorted(found), dtype=object))
        folds |= {(title, style): (first + place) % 2 for place, style in enumerate(shuffled)}
    return folds


def guess(classes: Collection[str], names: Collection[str] | None) -> float:
    """Return how often a guess among classes is right, 1 where there are none; with `names`, how often it is one of those."""
    hits = 1 if names is None else len({*names} & {*classes})
    return hits / max(1, len(classes))


class CrossJudge:
    """Two judges, each trained on one fold of the works; a (title, style) is judged by the one that never saw its real work.

    Args:
        judges: judge i was trained on fold i.
        folds: (title, style) -> the fold that holds its real work.
        group_of: title -> group.

    Raises:
        Misconfigured: there are not exactly two judges.
    """

    def __init__(self, judges: Sequence[Judge], folds: Mapping[tuple[str, str], int], group_of: Mapping[str, str]) -> None:
        if len(judges) != 2:
            raise Misconfigured(f"A cross-fitted judge needs two judges; got {len(judges)}.", "Train one per fold.")
        self.name = "cross-judge"
        self.judges = tuple(judges)
        self.folds = dict(folds)
        self.group_of = dict(group_of)

    @property
    def digest(self) -> str:
        """SHA-256 over both judges and the folds."""
        about = [[judge.digest for judge in self.judges], sorted((*pair, fold) for pair, fold in self.folds.items()), sorted(self.group_of.items())]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def asked(self, title: str | None, style: str | None) -> int:
        """Return which judge is asked: the one that never saw the real work; of a pair without one, the first that knows the title."""
        fold = self.folds.get((title or "", style or ""))
        return 1 - fold if fold is not None else next((i for i, judge in enumerate(self.judges) if title in judge.classes["title"]), 0)

    def features(self, images: torch.Tensor) -> np.ndarray:
        """Return the features of both judges side by side: float32, (n, d), rows of norm 1."""
        return np.concatenate([judge.features(images) for judge in self.judges], 1) / np.float32(2**0.5)

    def score(self, images: torch.Tensor, titles: Sequence[str | None], styles: Sequence[str | None]) -> dict[str, Verdict]:
        """Judge images by what each was meant to show: head -> verdict. The scores of real works are the reference that ratios are taken to."""
        truth = {"title": list(titles), "group": [self.group_of.get(title or "") for title in titles], "style": list(styles)}
        asked = np.array([self.asked(*pair) for pair in zip(titles, styles, strict=True)], np.int64)
        found = {head: Verdict.nothing(len(asked)) for head in HEADS}
        for index, judge in enumerate(self.judges):
            rows = np.flatnonzero(asked == index)
            probabilities = judge.probabilities(images[torch.from_numpy(rows)]) if len(rows) else {}
            for head in probabilities:
                part = verdict(probabilities[head], judge.classes[head], [truth[head][row] for row in rows])
                for whole, values in zip(found[head], part):
                    whole[rows] = values
        return found

    def chance(self, head: str, names: Collection[str] | None = None) -> float:
        """Return the accuracy of a guess, or with `names` how often it is one of those, on average over both judges."""
        return sum(guess(judge.classes[head], names) for judge in self.judges) / len(self.judges)

    def save(self, folder: str | Path) -> None:
        """Write both judges into `folder`/0 and `folder`/1, and `folds.json`."""
        for index, judge in enumerate(self.judges):
            judge.save(Path(folder) / str(index))
        about = {"folds": [[*pair, fold] for pair, fold in sorted(self.folds.items())], "group_of": self.group_of}
        write_atomically(Path(folder) / "folds.json", json.dumps(about, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: str | Path) -> CrossJudge:
        """Read both judges and their folds.

        Raises:
            Missing: there is none.
            BadInput: a file is damaged.
        """
        folder = Path(folder)
        judges = [Judge.load(folder / "0"), Judge.load(folder / "1")]
        try:
            about = json.loads((folder / "folds.json").read_text())
            return cls(judges, {(title, style): fold for title, style, fold in about["folds"]}, about["group_of"])
        except FileNotFoundError as error:
            raise Missing(f"No folds.json in {folder}.", "Make the judge anew with `recipes/emoji/make.py --stage judge`.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder / 'folds.json'} cannot be read: {error}.", "It may be damaged; make the judge anew.") from error
