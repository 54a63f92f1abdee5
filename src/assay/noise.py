"""Randomness by name: every draw comes from a generator seeded by what the draw is for.

A seed is the first 63 bits of SHA-256 over the keys, so that a draw depends on (seed, what for) alone and never on order, shard, batch
or how many draws came before. Nothing in assay draws from the global generators: what must, as a network's first
weights, does so in a fork of them, so that they stay as they were.

Torch's CPU generator takes 32 bits of a seed, few enough to try them all: what must not be guessed is drawn by `secret_generator`.
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
    return int.from_bytes(_digest(*keys)[:8], "big") >> 1


def _digest(*keys: Key) -> bytes:
    return hashlib.sha256("\x1f".join(f"{type(key).__name__}:{key}" for key in keys).encode()).digest()


def generator(*keys: Key) -> torch.Generator:
    """Return a CPU generator seeded by `derive(*keys)`: draws are made on the CPU on every device, so that images agree between devices."""
    import torch

    return torch.Generator("cpu").manual_seed(derive(*keys))


def numpy_generator(*keys: Key) -> np.random.Generator:
    """Return a numpy generator seeded by `derive(*keys)`."""
    import numpy as np

    return np.random.default_rng(derive(*keys))


def secret_generator(secret: int, *keys: Key) -> np.random.Generator:
    """Return a numpy generator with all 128 bits of its key from SHA-256 over `secret` and `keys`: as hard to guess as a secret of so many bits.

    Philox (Salmon, Moraes, Dror and Shaw 2011) is no cipher that has been proven, but no way from its output to its key is known.
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(secret, *keys)[:16], "big")))


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
