"""A worker that is arithmetic: what is tested is what is trained, kept and read, not what it learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput, Misconfigured, Mismatch, Missing, NoRoom
from assay.noise import numpy_generator
from assay.training.pool import Plan, Pool, fill, gather, halves

PLAN = Plan.draw(4, 10, seed=1, repeated=2, repeats=3, about={"world": "arithmetic"})


def work(index: int, included: np.ndarray) -> np.ndarray:
    """Two losses a work that depend on model and subset."""
    return np.stack([np.sqrt(index + 1.0 + np.arange(len(included))), included / 3.0], 1)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.integers(1, 20), st.integers(2, 40), st.integers(0, 2**40))
def test_every_work_is_in_half_of_the_models(pairs, works, seed):
    included = halves(2 * pairs, works, seed)
    assert (included.sum(0) == pairs).all()
    assert (included[::2] ^ included[1::2]).all()
    assert set(included.sum(1).tolist()) <= {works // 2, works - works // 2}
    assert (halves(2 * pairs + 2, works, seed)[: 2 * pairs] == included).all()  # a larger pool begins with a smaller one


def test_halves_are_random():
    # Two works share a model's half with probability near 1/2: over 500 pairs of models a pair's even row holds both with the hypergeometric
    # probability 9 / (2 x 19), so 118 times with a deviation of 9.5.
    included = halves(1000, 20, 5)[::2]
    together = (included.astype(int).T @ included)[~np.eye(20, dtype=bool)]
    assert abs(together - 500 * 9 / 38).max() < 5 * 9.5
    assert not (halves(10, 20, 5) == halves(10, 20, 6)).all()


def test_halves_that_do_not_pair_up():
    for models, works in ((3, 10), (0, 10), (2, 1)):
        with pytest.raises(Misconfigured, match="pair up"):
            halves(models, works, 1)
    for repeated, repeats in ((3, 2), (6, 2), (2, 0)):
        with pytest.raises(Misconfigured, match="cannot be trained"):
            Plan.draw(4, 10, seed=1, repeated=repeated, repeats=repeats)


def test_a_plan_repeats_whole_pairs_with_other_seeds():
    assert PLAN.subsets.tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert len(set(PLAN.seeds.tolist())) == 8
    assert (PLAN.included == halves(4, 10, 1)[PLAN.subsets]).all()
    longer = Plan.draw(6, 10, seed=1)
    assert longer.seeds[:4].tolist() == PLAN.seeds[:4].tolist()


def test_the_digest_is_of_everything():
    others = [
        Plan.draw(4, 10, seed=2, repeated=2, repeats=3, about={"world": "arithmetic"}),
        Plan.draw(4, 11, seed=1, repeated=2, repeats=3, about={"world": "arithmetic"}),
        Plan.draw(4, 10, seed=1, repeated=2, repeats=2, about={"world": "arithmetic"}),
        Plan.draw(4, 10, seed=1, repeated=2, repeats=3, about={"world": "other"}),
        Plan(PLAN.included, PLAN.subsets, PLAN.seeds + 1, PLAN.about),
        Plan(~PLAN.included, PLAN.subsets, PLAN.seeds, PLAN.about),
    ]
    assert len({PLAN.digest, *(other.digest for other in others)}) == 7
    assert Plan.draw(4, 10, seed=1, repeated=2, repeats=3, about={"world": "arithmetic"}).digest == PLAN.digest


def test_a_pool_holds_what_the_worker_gave(tmp_path):
    seen = []
    assert fill(tmp_path, PLAN, work, progress=lambda *count: seen.append(count)) == 8
    assert seen == [(count, 8) for count in range(1, 9)]
    pool = gather(tmp_path, PLAN, ["a", "b"])
    assert pool.losses == pytest.approx(np.stack([work(index, row) for index, row in enumerate(PLAN.included)]), rel=1e-6)
    assert pool.loss([3, 1]) == pytest.approx(0.75 * pool.losses[:, :, 0] + 0.25 * pool.losses[:, :, 1], rel=1e-6)
    assert pool.once.tolist() == [0, 1, 2, 3]
    assert pool.repeats.tolist() == [[0, 4, 6], [1, 5, 7]]
    assert pool.pairs.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert fill(tmp_path, PLAN, work) == 0


def test_one_loss_a_work_is_enough(tmp_path):
    fill(tmp_path, PLAN, np.add)
    assert gather(tmp_path, PLAN).losses[3, :, 0].tolist() == (3.0 + PLAN.included[3]).tolist()


def test_side_by_side_gives_the_same_bytes(tmp_path):
    fill(tmp_path / "one", PLAN, np.add)
    seen = []
    assert fill(tmp_path / "two", PLAN, np.add, processes=2, progress=lambda *count: seen.append(count)) == 8
    assert seen == [(count, 8) for count in range(1, 9)]
    assert files(tmp_path / "one") == files(tmp_path / "two")


KILLED = """
import os, signal, sys
import numpy as np
from assay.training.pool import Plan, fill

def work(index, included):
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.add(index, included)

fill(sys.argv[1], Plan.draw(4, 10, seed=1, repeated=2, repeats=3, about={"world": "arithmetic"}), work)
"""


def test_killed_it_goes_on_where_it_was_with_the_same_bytes(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed")], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert sorted(files(tmp_path / "killed")) == ["00000.safetensors", "00001.safetensors", "00002.safetensors", "plan.json"]
    with pytest.raises(Missing, match="5 of 8 models"):
        gather(tmp_path / "killed", PLAN)
    assert fill(tmp_path / "killed", PLAN, np.add) == 5
    fill(tmp_path / "whole", PLAN, np.add)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_damaged_or_foreign_file_is_made_again(tmp_path):
    fill(tmp_path, PLAN, np.add)
    whole = files(tmp_path)
    (tmp_path / "00001.safetensors").write_bytes(whole["00001.safetensors"][:-7])
    (tmp_path / "00002.safetensors").write_bytes(b"")
    (tmp_path / "00003.safetensors").write_bytes(whole["00004.safetensors"])  # another model's
    (tmp_path / "00005.safetensors.part").write_bytes(b"left by a run that was killed")
    assert fill(tmp_path, PLAN, np.add) == 3
    assert {name: data for name, data in files(tmp_path).items() if not name.endswith(".part")} == whole


def test_a_folder_belongs_to_one_plan(tmp_path):
    fill(tmp_path / "pool", PLAN, np.add)
    with pytest.raises(Mismatch, match="another pool"):
        fill(tmp_path / "pool", Plan.draw(4, 10, seed=2), np.add)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("not a pool")
    with pytest.raises(Mismatch, match="holds no pool"):
        fill(tmp_path / "other", PLAN, np.add)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((Mismatch, NoRoom)):
        fill(tmp_path / "file", PLAN, np.add)
    with pytest.raises(Mismatch, match="cannot be called"):
        gather(tmp_path / "pool", PLAN, ["a", "b"])


def test_a_training_that_diverged_is_named_and_leaves_nothing(tmp_path):
    bad = [lambda index, row: np.where(index == 2, np.nan, row * 1.0), lambda index, row: np.zeros(3), lambda index, row: np.zeros((10, 2, 2))]
    for number, worker in enumerate(bad):
        with pytest.raises(Misconfigured, match="no finite loss"):
            fill(tmp_path / str(number), PLAN, worker)
        assert len(files(tmp_path / str(number))) == 1 + (2 if number == 0 else 0)


@given(st.integers(1, 5), st.integers(2, 20), st.integers(1, 3), st.sampled_from(["float16", "float32"]))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, pairs, works, k, precision):
    rng = numpy_generator(pairs, works, k)
    plan = Plan.draw(2 * pairs, works, seed=3, repeated=2, repeats=2, about={"note": "ä", "edges": [0, 5]})
    pool = Pool(plan, np.exp(rng.normal(size=(len(plan), works, k))).astype(np.float32), tuple("abc"[:k]))
    read = Pool.read(pool.write(tmp_path_factory.getbasetemp() / "round.parquet", precision=precision))
    assert read.plan.digest == plan.digest
    assert (read.plan.included == plan.included).all()
    assert (read.plan.about, read.names) == (plan.about, pool.names)
    # float16 keeps 11 bits: half a unit in the last place is 2^-11 of the value, and 2^-25 below 2^-14.
    assert read.losses == pytest.approx(pool.losses, rel=2**-11 if precision == "float16" else 0, abs=2**-25 if precision == "float16" else 0)


def test_a_table_is_small(tmp_path):
    # A work's losses differ by a tenth between models: of two bytes the upper hardly changes, so it goes; inclusion takes one bit.
    plan = Plan.draw(64, 500, seed=1)
    rng = numpy_generator(1, "small")
    losses = np.exp(rng.normal(size=(1, 500, 2)) + 0.1 * rng.normal(size=(64, 500, 2))).astype(np.float32)
    size = Pool(plan, losses, ("a", "b")).write(tmp_path / "pool.parquet").stat().st_size
    assert size < 64 * 500 * (2 * 2 * 0.75 + 1 / 8) + 8000


def test_what_is_no_table(tmp_path):
    pool = Pool(Plan.draw(2, 4, seed=1), np.ones((2, 4, 1), np.float32))
    path = pool.write(tmp_path / "pool.parquet")
    whole = path.read_bytes()
    with pytest.raises(Missing, match="no pool"):
        Pool.read(tmp_path / "absent.parquet")
    for damaged in (whole[:-20], b"", b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="is no pool"):
            Pool.read(path)
    with pytest.raises(Misconfigured, match="does not fit"):
        Pool(pool.plan, np.full((2, 4, 1), 1e6, np.float32)).write(path)
    with pytest.raises(Misconfigured, match="cannot be written as"):
        pool.write(path, precision="int8")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NoRoom):
        pool.write(tmp_path / "file" / "pool.parquet")


def test_a_table_whose_inclusions_were_changed_is_refused(tmp_path):
    path = Pool(Plan.draw(2, 4, seed=1), np.ones((2, 4, 1), np.float32)).write(tmp_path / "pool.parquet")
    table = pq.ParquetFile(path).read()
    assert json.loads(table.schema.metadata[b"assay"])["models"] == 2
    forged = table.set_column(0, "included", pa.array([b"\x01"] * 4, pa.binary(1)))
    pq.write_table(forged, path)
    with pytest.raises(BadInput, match="not what its plan says"):
        Pool.read(path)


ORPHANED = """
import os, sys, time
from pathlib import Path
import numpy as np
from assay.training.pool import Plan, fill

def work(index, included):
    Path(sys.argv[1] + f".{index}.pid").write_text(str(os.getpid()))
    time.sleep(60)
    return np.add(index, included)

if __name__ == "__main__":
    fill(sys.argv[1], Plan.draw(4, 10, seed=1), work, processes=2)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_when_the_command_is_killed_its_processes_end(tmp_path):
    script = tmp_path / "fill.py"
    script.write_text(ORPHANED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script), str(tmp_path / "pool")], env=environment) as command:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60)
        children = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        assert all(map(alive, children))
        command.kill()
    wait_for(lambda: not any(map(alive, children)), 20)


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
