"""`Pool`: trainings on random halves of the works and the loss of every work under each, the ground truth of membership and of attribution.

Halves come in complementary pairs, so that every work is in exactly half of the models, as in the shadow models of Carlini et al. (2022, "Membership
Inference Attacks From First Principles", Sec. V) and the subsets of the linear datamodeling score (Park et al. 2023, "TRAK", Sec. 3, alpha = 0.5).
Some subsets are trained again with other seeds: what seeds alone change is the ceiling of every prediction from the subset.

A plan says what is to be trained; `fill` trains what is not there yet, one file a model; `gather` makes the table. Nothing here knows the model.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from assay.errors import BadInput, Misconfigured, Mismatch, Missing
from assay.noise import derive, numpy_generator
from assay.record import digest_of, write_atomically

Worker = Callable[[int, np.ndarray], np.ndarray]
VERSION = "assay/pool/1"


def halves(models: int, works: int, seed: int) -> np.ndarray:
    """Draw random halves in complementary pairs: bool, (models, works); rows 2j and 2j + 1 are each other's complement.

    A pair depends on the seed and j alone, so that a larger pool begins with a smaller one. Of an odd number of works the even rows leave one more.

    Raises:
        Misconfigured: the number of models is odd or less than two, or there are fewer than two works.
    """
    if models < 2 or models % 2 or works < 2:
        raise Misconfigured(f"{models} random halves of {works} works do not pair up.", "Take an even number of models, and two works or more.")
    included = np.zeros((models, works), bool)
    for pair in range(models // 2):
        included[2 * pair, numpy_generator(seed, "half", pair).permutation(works)[: works // 2]] = True
    included[1::2] = ~included[::2]
    return included


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be trained, one model a row."""

    included: np.ndarray
    """Which works a model sees: bool, (models, works)."""
    subsets: np.ndarray
    """Number of the model's subset: int64, (models,); models with the same number differ in seed alone."""
    seeds: np.ndarray
    """Of the training: int64, (models,)."""
    about: dict[str, Any] = field(default_factory=dict)
    """Whatever else the losses depend on, JSON-able: digest of the works, settings of the training, timesteps and noise of the losses."""

    @classmethod
    def draw(cls, subsets: int, works: int, *, seed: int, repeated: int = 0, repeats: int = 1, about: dict[str, Any] | None = None) -> Plan:
        """Plan one training for each of `subsets` random halves, then `repeats` - 1 further ones, with other seeds, for each of the first `repeated`.

        Args:
            subsets: distinct subsets, an even number.
            works: how many works there are.
            seed: of the halves; a training's seed is derived from it, the subset and the repeat.
            repeated: subsets trained more than once; an even number, so that pairs stay whole.
            repeats: trainings of each of those.
            about: whatever else the losses depend on.

        Raises:
            Misconfigured: the numbers do not fit together.
        """
        if repeated % 2 or not 0 <= repeated <= subsets or repeats < 1:
            raise Misconfigured(f"{repeated} of {subsets} subsets cannot be trained {repeats} times.", "Repeat an even number of them, once or more.")
        which = [*range(subsets), *(subset for _ in range(1, repeats) for subset in range(repeated))]
        times = [0] * subsets + [repeat for repeat in range(1, repeats) for _ in range(repeated)]
        seeds = [derive(seed, "training", subset, repeat) for subset, repeat in zip(which, times, strict=True)]
        return cls(halves(subsets, works, seed)[which], np.array(which, np.int64), np.array(seeds, np.int64), about or {})

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self.included)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan."""
        return digest_of([VERSION, len(self), self.included.shape[1], _packed(self.included).hex(), self._lists(), self.about])

    def _lists(self) -> dict[str, list[int]]:
        return {"subsets": self.subsets.tolist(), "seeds": self.seeds.tolist()}


@dataclass(frozen=True, eq=False)
class Pool:
    """The filled table."""

    plan: Plan
    """What was trained."""
    losses: np.ndarray
    """Loss of every work under every model: float32, (models, works, k), the last axis being `names`."""
    names: tuple[str, ...] = ("loss",)
    """What the k losses are, such as ranges of timesteps."""

    def loss(self, weights: Sequence[float] | None = None) -> np.ndarray:
        """Return one loss per model and work, the mean of the k or their weighted mean: float64, (models, works)."""
        return np.average(self.losses.astype(np.float64), axis=2, weights=weights)

    @property
    def pairs(self) -> np.ndarray:
        """Number of the pair of subsets each model belongs to: int64, (models,). Models of different pairs are independent."""
        return self.plan.subsets // 2

    @property
    def once(self) -> np.ndarray:
        """Rows of the first training of every subset, by subset: int64, (subsets,)."""
        return np.unique(self.plan.subsets, return_index=True)[1]

    @property
    def repeats(self) -> np.ndarray:
        """Rows of the subsets that were trained most often: int64, (subsets, repeats)."""
        numbers, counts = np.unique(self.plan.subsets, return_counts=True)
        return np.array([np.flatnonzero(self.plan.subsets == number) for number in numbers[counts == counts.max()]])

    def write(self, path: str | Path, *, precision: str = "float16") -> Path:
        """Write one Parquet file, whole or not at all, and return its path.

        A row is a work: its inclusion packed to bits, first model in the lowest bit, and a list of losses over the models for each of the k. The
        losses of one work are near each other, so that with their bytes split by place they take little more than half their size.

        Args:
            path: of the file.
            precision: float16 (three digits) or float32.

        Raises:
            Misconfigured: the precision is neither, or a loss is too large for it.
            NoRoom: the file cannot be written.
        """
        if precision not in ("float16", "float32"):
            raise Misconfigured(f"Losses cannot be written as {precision}.", "Use float16 or float32.")
        if (largest := float(np.abs(self.losses).max())) > float(np.finfo(precision).max):
            raise Misconfigured(f"A loss of {largest:g} does not fit {precision}.", "Use float32.")
        models = len(self.plan)
        packed = np.packbits(self.plan.included.T, axis=1, bitorder="little")
        columns: dict[str, pa.Array] = {"included": pa.array([row.tobytes() for row in packed], pa.binary(packed.shape[1]))}
        for place, name in enumerate(self.names):
            flat = np.ascontiguousarray(self.losses[:, :, place].T).astype(precision).ravel()
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), models)
        about = {"version": VERSION, "models": models, "plan": self.plan.digest, "about": self.plan.about, **self.plan._lists()}
        table = pa.table(columns).replace_schema_metadata({"assay": json.dumps(about)})
        buffer = io.BytesIO()
        lists: Any = [f"{name}.list.element" for name in self.names]
        pq.write_table(table, buffer, compression="zstd", compression_level=19, use_dictionary=False, use_byte_stream_split=lists)
        write_atomically(Path(path), buffer.getvalue())
        return Path(path)

    @classmethod
    def read(cls, path: str | Path) -> Pool:
        """Read a table that `write` wrote.

        Raises:
            Missing: there is no such file.
            BadInput: it is no pool, or damaged.
        """
        if not Path(path).exists():
            raise Missing(f"There is no pool at {path}.", "Fill one, or give the path of its Parquet file.")
        try:
            table = pq.ParquetFile(path).read()
            about = json.loads((table.schema.metadata or {})[b"assay"])
            models, names = int(about["models"]), tuple(name for name in table.column_names if name != "included")
            packed = np.frombuffer(b"".join(table.column("included").to_pylist()), np.uint8).reshape(len(table), -1)
            included = np.unpackbits(packed, axis=1, count=models, bitorder="little").T.astype(bool)
            plan = Plan(included, np.array(about["subsets"], np.int64), np.array(about["seeds"], np.int64), about["about"])
            lists = [table.column(name).combine_chunks().flatten().to_numpy().reshape(len(table), models).T for name in names]
            losses = np.stack(lists, axis=2).astype(np.float32)
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise BadInput(f"{path} is no pool: {error}.", "It may be damaged, or of another version; fill it anew.") from error
        if plan.digest != about["plan"]:
            raise BadInput(f"The pool {path} is not what its plan says.", "It may be damaged; fill it anew.")
        return cls(plan, losses, names)


def fill(folder: str | Path, plan: Plan, worker: Worker, *, processes: int = 1, progress: Callable[[int, int], None] | None = None) -> int:
    """Train every model that `folder` does not hold yet, one file each, written whole or not at all; a killed filling goes on where it was.

    Args:
        folder: of this plan's files; made if absent.
        plan: what is to be trained.
        worker: `worker(index, included)` trains model `index` of the plan on the works where the row `included` is true, with `plan.seeds[index]`,
            and returns the loss of every work: (works,) or (works, k). It must depend on the plan and the index alone.
        processes: how many train side by side; more than one are fresh processes, so that `worker` must be importable there.
        progress: called with models done and models in all.

    Returns:
        How many models were trained now.

    Raises:
        Mismatch: the folder belongs to another plan.
        Misconfigured: a training gave no finite loss for every work.
    """
    folder = Path(folder)
    about = {"plan": plan.digest, "models": len(plan), "about": plan.about}
    try:
        taken = folder.exists() and any(path.suffix != ".part" for path in folder.iterdir())
        known = json.loads((folder / "plan.json").read_text())["plan"] if taken else plan.digest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Mismatch(f"{folder} is not empty and holds no pool.", "Choose an empty or new folder.") from error
    if known != plan.digest:
        raise Mismatch(f"{folder} belongs to another pool.", "Choose another folder, or remove this one.")
    write_atomically(folder / "plan.json", (json.dumps(about, indent=1, default=str) + "\n").encode())
    todo = [index for index in range(len(plan)) if _kept(folder, plan, index) is None]
    if processes <= 1:
        for count, index in enumerate(todo, len(plan) - len(todo) + 1):
            _train(folder, plan, worker, index)
            if progress:
                progress(count, len(plan))
        return len(todo)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _stop_with_parent, (os.getpid(),)) as pool:
        try:
            running = [pool.submit(_train, folder, plan, worker, index) for index in todo]
            for count, future in enumerate(as_completed(running), len(plan) - len(todo) + 1):
                future.result()
                if progress:
                    progress(count, len(plan))
        finally:  # an error or an interruption: what runs may end, nothing new begins
            pool.shutdown(cancel_futures=True)
    return len(todo)


def gather(folder: str | Path, plan: Plan, names: Sequence[str] = ("loss",)) -> Pool:
    """Make the table of a filled folder.

    Args:
        folder: that `fill` filled.
        plan: what was trained.
        names: of the k losses.

    Raises:
        Missing: models have not been trained yet.
        Mismatch: there is not one name for each of the k losses.
    """
    found = [_kept(Path(folder), plan, index) for index in range(len(plan))]
    losses = [loss for loss in found if loss is not None]
    if len(losses) < len(plan):
        raise Missing(f"{len(plan) - len(losses)} of {len(plan)} models in {folder} are not trained yet.", "Run the same command again.")
    if any(loss.shape[1] != len(names) for loss in losses):
        raise Mismatch(f"{losses[0].shape[1]} losses a work cannot be called {', '.join(names)}.", "Give one name for each.")
    return Pool(plan, np.stack(losses), tuple(names))


def _train(folder: Path, plan: Plan, worker: Worker, index: int) -> None:
    if _kept(folder, plan, index) is not None:  # done meanwhile by another command on this folder
        return
    losses = np.asarray(worker(index, plan.included[index]), np.float32)
    losses = losses[:, None] if losses.ndim == 1 else losses
    if losses.ndim != 2 or len(losses) != plan.included.shape[1] or not np.isfinite(losses).all():
        raise Misconfigured(
            f"Training {index} gave no finite loss for each of {plan.included.shape[1]} works.", "Lower the learning rate, or mend the worker."
        )
    # One entry only: safetensors writes several in no fixed order.
    write_atomically(_file(folder, index), save({"losses": np.ascontiguousarray(losses)}, {"of": f"{plan.digest}/{index}"}))


def _kept(folder: Path, plan: Plan, index: int) -> np.ndarray | None:
    """Return the losses an earlier run left, or None if there are none, or damaged ones, or another plan's."""
    try:
        with safe_open(_file(folder, index), "numpy") as file:
            return file.get_tensor("losses") if (file.metadata() or {}).get("of") == f"{plan.digest}/{index}" else None
    except (OSError, SafetensorError):
        return None


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.safetensors"


def _packed(included: np.ndarray) -> bytes:
    return np.packbits(included, axis=None, bitorder="little").tobytes()


def _stop_with_parent(parent: int) -> None:
    """Let a training process end soon after its parent was killed, which could not end it itself."""
    import threading
    import time

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
