"""plan -> shards -> worker(shard): each shard writes its own files in one step, and is skipped when they are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Shard = TypeVar("Shard")


def run(
    shards: Sequence[Shard], worker: Callable[[Shard], None], *, done: Callable[[Shard], bool], progress: Callable[[int, int], None] | None = None
) -> int:
    """Work through shards in order, skipping those that are done.

    Args:
        shards: the plan.
        worker: does one shard; it must leave either all of its result or nothing.
        done: whether a shard's result is there.
        progress: called with shards done and shards in all.

    Returns:
        How many shards were worked on now.
    """
    todo = [shard for shard in shards if not done(shard)]
    for count, shard in enumerate(todo, start=len(shards) - len(todo) + 1):
        worker(shard)
        if progress:
            progress(count, len(shards))
    return len(todo)
