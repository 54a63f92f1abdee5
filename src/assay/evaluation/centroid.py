"""A judge for any works, without training: the nearest class mean in the fixed feature space, the real work of what is judged left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from assay.errors import Misconfigured
from assay.evaluation.features import DIGEST, SIZE, fixed_features
from assay.judge import HEADS, Verdict, guess, verdict

FAR = 1e30
AT_ONCE = 4096
"""Pictures whose features are taken at once."""
Pair = tuple[str | None, str | None]


class WorksLike(Protocol):
    """What is read of the works."""

    def column(self, name: str) -> list[Any]:
        """Return one column."""
        ...

    def pixels(self, size: int) -> np.ndarray:
        """Decode every image to `size`: uint8, (n, size, size, 3)."""
        ...


class CentroidJudge:
    """Nearest class mean over styles, titles and groups of at least two works; blind to the real works of the title and style it judges.

    Args:
        works: at least two.
    """

    name = "centroid-judge"

    def __init__(self, works: WorksLike) -> None:
        """Take the class means.

        Raises:
            Misconfigured: there are fewer than two works.
        """
        self.labels: dict[str, list[str | None]] = {head: list(works.column(head)) for head in HEADS}
        if len(self.labels["style"]) < 2:
            raise Misconfigured(f"A judge needs at least two works; got {len(self.labels['style'])}.", "Import more works.")
        pixels = torch.from_numpy(works.pixels(SIZE)).permute(0, 3, 1, 2)
        plain = np.concatenate([fixed_features(block / 255) for block in pixels.split(AT_ONCE)]).astype(np.float64)
        self.mean = plain.mean(0)
        self.deviation = plain.std(0) + 0.1 * plain.std()
        self.rows = (plain - self.mean) / self.deviation
        self.pairs: list[Pair] = list(zip(self.labels["title"], self.labels["style"], strict=True))
        self.group_of = {title: group for title, group in zip(self.labels["title"], self.labels["group"], strict=True) if title is not None}
        self.works_of: dict[Pair, list[int]] = {}
        for row, pair in enumerate(self.pairs):
            self.works_of.setdefault(pair, []).append(row)
        self.classes = {head: _classes(self.labels[head]) for head in HEADS}
        self.sums = {head: self._sums(head) for head in HEADS}
        often = {head: Counter(self.labels[head]) for head in HEADS}
        self.counts = {head: np.array([often[head][name] for name in self.classes[head]]) for head in HEADS}

    def _sums(self, head: str) -> np.ndarray:
        place = {name: index for index, name in enumerate(self.classes[head])}
        found = np.zeros((len(place), self.rows.shape[1]))
        rows = [row for row, label in enumerate(self.labels[head]) if label in place]
        np.add.at(found, [place[str(self.labels[head][row])] for row in rows], self.rows[rows])
        return found

    @property
    def digest(self) -> str:
        """SHA-256 over the feature space, the works' features and their names."""
        total = hashlib.sha256(f"centroid 1 {DIGEST} {self.labels}".encode())
        total.update(np.round(self.rows, 3).tobytes())
        return total.hexdigest()

    def features(self, images: torch.Tensor) -> np.ndarray:
        """Return standardised fixed features of images (n, 3, h, w) in [0, 1]: float32, (n, d), rows of norm 1."""
        rows = self._standardised(images)
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def _standardised(self, images: torch.Tensor) -> np.ndarray:
        return (fixed_features(images) - self.mean) / self.deviation

    def score(self, images: torch.Tensor, titles: Sequence[str | None], styles: Sequence[str | None]) -> dict[str, Verdict]:
        """Judge images by what each was meant to show: head -> verdict. The real works of that title and style are left out of every mean.

        Works without a title are not all one and the same: none of them is left out.
        """
        pairs = list(zip(titles, styles, strict=True))
        return self._judge(self._standardised(images), pairs, [self.works_of.get(pair, []) if pair[0] else [] for pair in pairs])

    def chance(self, head: str, names: Collection[str] | None = None) -> float:
        """Return the accuracy of a guess among the classes of at least two works; with `names`, how often a guess is one of those."""
        return guess(self.classes[head], names)

    def own_accuracy(self) -> dict[str, float | None]:
        """Return the leave-one-out accuracy by head on the works it was made of; None where no class can be named."""
        own = [self.works_of[pair] if pair[0] else [row] for row, pair in enumerate(self.pairs)]
        return {head: found.accuracy() for head, found in self._judge(self.rows, self.pairs, own).items()}

    def _judge(self, rows: np.ndarray, pairs: list[Pair], own: list[list[int]]) -> dict[str, Verdict]:
        truth = {
            "title": [pair[0] for pair in pairs],
            "group": [self.group_of.get(pair[0] or "") for pair in pairs],
            "style": [pair[1] for pair in pairs],
        }
        return {head: self._name(head, rows, truth[head], own) for head in HEADS}

    def _name(self, head: str, rows: np.ndarray, truth: list[str | None], left_out: list[list[int]]) -> Verdict:
        classes = self.classes[head]
        if not classes:
            return Verdict.nothing(len(rows))
        place = {name: index for index, name in enumerate(classes)}
        sums, counts = self.sums[head], self.counts[head]
        means = sums / counts[:, None]
        distances = (rows**2).sum(1)[:, None] + (means**2).sum(1) - 2 * rows @ means.T
        known = np.ones(len(rows), bool)
        for index, out in enumerate(left_out):
            own = [row for row in out if self.labels[head][row] in place]
            for name in {str(self.labels[head][row]) for row in own}:
                column, same = place[name], [row for row in own if self.labels[head][row] == name]
                left = counts[column] - len(same)
                mean = (sums[column] - self.rows[same].sum(0)) / max(1, left)
                distances[index, column] = ((rows[index] - mean) ** 2).sum() if left else FAR
                known[index] &= left > 0 or name != truth[index]
        likelihood = np.exp((distances.min(1, keepdims=True) - distances) / rows.shape[1])
        found = verdict(likelihood / likelihood.sum(1, keepdims=True), classes, truth)
        judged = {"known": found.known & known, "right": found.right & known, "among_five": found.among_five & known}
        return found._replace(**judged, probability=np.where(known, found.probability, 0.0))


def _classes(labels: Sequence[str | None]) -> list[str]:
    counts = Counter(label for label in labels if label is not None)
    return sorted(name for name, count in counts.items() if count >= 2)
