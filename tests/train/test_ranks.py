"""N ranks with B / N images each against one rank with B; ranks are threads here, and MPI."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.backends import backend_ops
from repvgg_ref.models.graph import Network
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.ops import Ops
from repvgg_ref.train.comm import Comm, Solo, connect
from repvgg_ref.train.folder import Folder
from repvgg_ref.train.job import identity
from repvgg_ref.train.log import read_log
from repvgg_ref.train.plan import UnfitError
from repvgg_ref.train.state import read_newest
from repvgg_ref.train.synchronised import synchronised
from tests.cli.runner import environment
from tests.models.small import SMALL, batch, distinct_model
from tests.train.small_training import changed, losses, run, small_data, small_job
from tests.train.threaded_ranks import on_ranks

MPIEXEC = Path(sys.executable).with_name("mpiexec")
needs_mpi = pytest.mark.skipif(
    find_spec("mpi4py") is None or not MPIEXEC.exists(),
    reason="needs mpi4py, and mpiexec beside Python: pip install 'repvgg-ref[mpi]'",
)
every_network = pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())


def step(arch: Network, x: Array, labels: Array, ops: Ops) -> StepResult:
    params = distinct_model(arch).params
    settings: dict[str, Any] = {"eps": 1e-5, "momentum": 0.1, "label_smoothing": 0.1}
    return training_step(arch, params, x, labels, ops=ops, **settings)


def assert_close(got: Any, want: Array, what: str) -> None:
    error = float(np.max(np.abs(got - want)))
    assert error <= 1e-11 * float(np.max(np.abs(want))) + 1e-14, (what, error)


@pytest.mark.few
@every_network
@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_synchronised_ranks_have_the_gradient_and_statistics_of_one(
    arch: Network, backend: str, ranks: int
) -> None:
    ops = backend_ops(backend, np.dtype(np.float64))
    x, labels = batch(arch, count=6)
    whole = step(arch, x, labels, ops)
    share = len(x) // ranks

    def own(comm: Comm) -> StepResult:
        part = slice(comm.rank * share, (comm.rank + 1) * share)
        return step(arch, x[part], labels[part], synchronised(ops, comm))

    parts = on_ranks(ranks, own)
    assert_close(sum(float(p.loss) for p in parts) / ranks, np.asarray(whole.loss), "loss")
    for name, grad in whole.grads.items():
        assert_close(sum(p.grads[name] for p in parts) / ranks, grad, name)
    for name, stat in whole.stats.items():
        for part in parts:
            assert_close(part.stats[name], stat, name)


@every_network
def test_without_synchronisation_the_gradients_differ(arch: Network) -> None:
    """The test above can fail: batch statistics of parts are not those of the whole."""
    ops = backend_ops("reference")
    x, labels = batch(arch, count=6)
    whole = step(arch, x, labels, ops).grads["linear.weight"]
    parts = slice(3), slice(3, 6)
    halves = [step(arch, x[p], labels[p], ops).grads["linear.weight"] for p in parts]
    assert np.max(np.abs(sum(halves) / 2 - whole)) > 1e-4 * np.max(np.abs(whole))


@pytest.mark.few
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("custom_l2", [False, True])
def test_a_whole_training_on_ranks_is_that_of_one(
    ranks: int, custom_l2: bool, tmp_path: Path
) -> None:
    recipe = changed(batch=12, epochs=3, custom_l2=custom_l2, ema=0.9)
    alone = losses(run(small_job(tmp_path / "alone", recipe=recipe)))

    def own(comm: Comm) -> list[float]:
        job = small_job(tmp_path / "ranks", recipe=recipe, comm=comm, sync_bn=True)
        return losses(run(job))

    curves = on_ranks(ranks, own)
    assert all(curve == curves[0] for curve in curves)
    assert np.max(np.abs(np.subtract(curves[0], alone))) <= 1e-10
    arrays = []
    for folder in ("alone", "ranks"):
        stored, _ = read_newest(tmp_path / folder)
        assert stored is not None
        arrays.append(stored.arrays)
    for name, array in arrays[0].items():
        assert np.max(np.abs(arrays[1][name] - array)) <= 1e-9 * np.max(np.abs(array)) + 1e-12, name


def test_statistics_of_a_rank_are_its_own_and_the_first_ranks_are_kept(tmp_path: Path) -> None:
    """As in the paper and in torch: without --sync-bn each rank normalises by its own images."""

    def own(comm: Comm) -> tuple[Array, Array]:
        job = small_job(tmp_path / "out", comm=comm)
        state = job.updater.start(job.start.params)
        parts = [next(iter(job.data.training.epoch(0)))]
        alone = replace_comm(job.updater, Solo()).step(state, parts, lr=0.1, epoch=0)
        return job.updater.step(state, parts, lr=0.1, epoch=0).state.running, alone.state.running

    (together, first), (also, second) = on_ranks(2, own)
    assert np.array_equal(together, also)
    assert np.array_equal(together, first)
    assert not np.array_equal(first, second)


def replace_comm(updater: Any, comm: Comm) -> Any:
    from copy import copy

    alone = copy(updater)
    alone._comm = comm
    return alone


def test_one_rank_that_is_asked_to_stop_stops_all(tmp_path: Path) -> None:
    def own(comm: Comm) -> list[str]:
        job = small_job(tmp_path / "out", comm=comm)
        events = run(job, stop=lambda: comm.rank == 1)
        return [type(event).__name__ for event in events]

    first, second = on_ranks(2, own)
    assert first[-3:] == ["StepDone", "Saved", "Stopped"]
    assert second[-2:] == ["StepDone", "Stopped"]


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="divisible by 3"):
        small_job(tmp_path, comm=_Rank(3), data=small_data())


class _Rank(Solo):
    def __init__(self, size: int) -> None:
        self.size = size


def test_resuming_with_other_ranks_is_a_change_that_must_be_said(tmp_path: Path) -> None:
    job = small_job(tmp_path / "out")
    assert identity(job)["ranks"] == 1
    with Folder(tmp_path / "out", job.updater, identity(job), writes=True) as folder:
        folder.save(job.updater.start(job.start.params))
    with (
        Folder(tmp_path / "out", job.updater, identity(job) | {"ranks": 2}, writes=True) as folder,
        pytest.raises(Exception, match="ranks 1 -> 2"),
    ):
        folder.restore(accept_changes=False)


def test_a_process_of_its_own_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (connect().rank, connect().size) == (0, 1)


# ------------------------------------------------------------------ MPI


def mpi(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(MPIEXEC), "-n", str(ranks), sys.executable, *map(str, arguments)],
        env=environment() | {"REPVGG_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def logged(folder: Path) -> list[float]:
    records = [r for r in read_log(folder) if r["event"] == "step"]
    return [record["loss"] for record in records]


@needs_mpi
@pytest.mark.few(1)
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_train_as_one_does(ranks: int, tmp_path: Path) -> None:
    recipe = changed(batch=12, epochs=3)
    alone = losses(run(small_job(tmp_path / "alone", recipe=recipe)))
    done = mpi(ranks, Path(__file__).with_name("mpi_training.py"), tmp_path / "ranks")
    assert done.returncode == 0, done.stderr
    error = np.max(np.abs(np.subtract(logged(tmp_path / "ranks"), alone)))
    assert error <= 1e-10


WORDS = {"raise": "rank 1 of 2", "kill": "signal 9", "freeze": "another rank does not answer"}
SHORT = ("--epochs", 1, "--batch", 240, "--sync-bn")


@needs_mpi
@pytest.mark.few(1)
@pytest.mark.parametrize("way", ["freeze", "raise", "kill"])
def test_a_rank_that_dies_ends_the_job_and_the_state_can_be_resumed(
    way: str, tmp_path: Path
) -> None:
    worker = Path(__file__).with_name("dying_rank.py")
    out = tmp_path / "out"
    options = ("--out", out, "--save-every", 1, *SHORT)
    died = mpi(2, worker, way, *options, "--rank-timeout", 2)
    assert died.returncode != 0
    assert WORDS[way] in died.stdout + died.stderr
    assert len(logged(out)) >= 2
    resumed = mpi(2, "-m", "repvgg_ref.train", "--resume", *options)
    assert resumed.returncode == 0, resumed.stderr
    assert len(logged(out)) == 5
