"""How fast images of one prompt are sifted for copies, beside a plain loop over pairs: `benchmarks/extraction-filter.json`.

    python benchmarks/extraction_filter.py [--prompts 1000] [--images 500] [--looped 3]

Synthetic images of 64 pixels: of every tenth prompt 10 to 50 images are one picture with noise, all others are smooth random pictures. "ours" is what
the audit by extraction does (`tiled_l2_pairs`, then `tightest`); the loop measures every pair by `tiled_l2` alone and joins those within the same
distance in a graph, whose cliques networkx lists. The loop is timed on a few prompts; both must find the same.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch.nn import functional as F

from assay.evaluation.cliques import tightest
from assay.evaluation.similarity import tiled_l2, tiled_l2_pairs
from assay.noise import numpy_generator

HERE = Path(__file__).parent
SEED, SIZE, CLIQUE, LIMIT = 20261125, 64, 10, 0.06


def drawn(prompt: int, count: int) -> tuple[np.ndarray, int]:
    """Draw the images of a prompt, uint8, (count, 3, 64, 64), and how many of them are copies."""
    rng = numpy_generator(SEED, prompt)
    coarse = torch.from_numpy(rng.random((count, 3, 8, 8), np.float32))
    copies = int(rng.integers(CLIQUE, 51)) if prompt % 10 == 0 else 0
    if copies:
        coarse[:copies] = coarse[0].clone()
    images = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=False).numpy() * 255
    images += rng.normal(0, 4, images.shape).astype(np.float32)
    return rng.permutation(images.round().clip(0, 255).astype(np.uint8)), copies


def ours(images: np.ndarray) -> bool:
    """Say whether there is a clique, as the audit does."""
    return tightest(tiled_l2_pairs(images, images), CLIQUE, LIMIT).tightness <= LIMIT


def loop(images: np.ndarray) -> bool:
    """Say whether there is a clique, pair by pair."""
    graph = nx.Graph()
    for one, other in combinations(range(len(images)), 2):
        if tiled_l2(images[[one]], images[[other]])[0] <= LIMIT:
            graph.add_edge(one, other)
    return any(len(clique) >= CLIQUE for clique in nx.find_cliques(graph))


def main() -> None:
    """Measure and write.

    Raises:
        SystemExit: a prompt with copies was missed, one without was called, or the loop says otherwise.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--looped", type=int, default=3)
    options = parser.parse_args()
    spent, slow = [], []
    for prompt in range(options.prompts):
        images, copies = drawn(prompt, options.images)
        start = time.perf_counter()
        found = ours(images)
        spent.append(time.perf_counter() - start)
        if found != bool(copies):
            raise SystemExit(f"Prompt {prompt} has {copies} copies, and was {'called' if found else 'missed'}.")
        if prompt < options.looped:
            start = time.perf_counter()
            agreed = loop(images) == found
            slow.append(time.perf_counter() - start)
            if not agreed:
                raise SystemExit(f"The loop says otherwise of prompt {prompt}.")
    mine, other = np.array(spent), np.array(slow)
    result: dict[str, Any] = {
        "prompts": options.prompts,
        "images": options.images,
        "clique": CLIQUE,
        "distance": LIMIT,
        "threads": torch.get_num_threads(),
        "seconds": round(float(mine.sum()), 1),
        "seconds_a_prompt": {"median": round(float(np.median(mine)), 4), "low": round(float(mine.min()), 4), "high": round(float(mine.max()), 4)},
        "loop_seconds_a_prompt": {
            "median": round(float(np.median(other)), 3),
            "low": round(float(other.min()), 3),
            "high": round(float(other.max()), 3),
        },
        "looped": len(slow),
        "times_faster": round(float(np.median(other) / np.median(mine)), 1),
    }
    (HERE / "extraction-filter.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
