"""Randomness by name: every draw comes from a generator seeded by what the draw is for.

A seed is the first 63 bits of SHA-256 over the keys, so that a draw depends on (seed, what for) alone and never on order, shard, batch
or how many draws came before. Nothing here, and nothing elsewhere in assay, touches the global generators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

Key = int | str


def derive(*keys: Key) -> int:
    """Return a seed in [0, 2**63) that depends on `keys` and their order alone."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*keys: Key) -> torch.Generator:
    """Return a CPU generator seeded by `derive(*keys)`: draws are made on the CPU on every device, so that images agree between devices."""
    import torch

    return torch.Generator("cpu").manual_seed(derive(*keys))


def numpy_generator(*keys: Key) -> np.random.Generator:
    """Return a numpy generator seeded by `derive(*keys)`."""
    import numpy as np

    return np.random.default_rng(derive(*keys))


def normal(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    """Draw one standard normal tensor of `shape` per seed and stack them: (len(seeds), *shape), float32.

    Row i depends on `seeds[i]` alone, so the batch an image falls into cannot change it.
    """
    import torch

    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds])


def uniform(seeds: Sequence[int], *keys: Key) -> torch.Tensor:
    """Draw one number in [0, 1) per seed, for what `keys` name: (len(seeds),), float32. Number i depends on `seeds[i]` and `keys` alone."""
    import torch

    return torch.tensor([float(torch.rand((), generator=generator(seed, *keys))) for seed in seeds])
