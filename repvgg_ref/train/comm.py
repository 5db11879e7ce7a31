"""Ranks that add up their gradients: one process, MPI between NumPy processes, NCCL between GPUs.

MPI is used when the process was started by ``mpiexec``; mpi4py is imported then only.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import MissingExtraError, ReportedError

# What the launchers of MPICH and Intel MPI, Open MPI, and Slurm with PMI set.
_LAUNCHED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")

RANK_TIMEOUT = 600.0  # seconds that a rank waits for the others at one place
_SPIN = 1e-3  # seconds of a wait before it leaves the processor to others
_GLANCE = 0.1  # seconds between looks that count: in longer ones the whole job was held up

_LOCAL_SIZE = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


class RankTimeoutError(ReportedError):
    """Another rank is frozen: it has not ended, and does not come to a sum."""


class Comm(Protocol):
    """The ranks of a training."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def sum(self, values: Array) -> Array:
        """The sum over all ranks of a vector, the same bits on each; `values` may be reused."""

    def meet(self) -> None:
        """Wait until all ranks are here."""

    def abort(self, code: int) -> None:
        """End all ranks at once, with this exit code; returns if there is nobody else."""


class Solo:
    """One process: nothing to add up."""

    rank, size = 0, 1

    def sum(self, values: Array) -> Array:
        """`values` itself."""
        return values

    def meet(self) -> None:
        """There is nobody to wait for."""

    def abort(self, code: int) -> None:
        """Nothing: the caller ends itself."""


class Mpi:
    """NumPy ranks under ``mpiexec``."""

    def __init__(self, world: Any, timeout: float = RANK_TIMEOUT) -> None:
        self._world, self._timeout = world, timeout
        self.rank: int = world.Get_rank()
        self.size: int = world.Get_size()
        local = next((os.environ[name] for name in _LOCAL_RANK if name in os.environ), self.rank)
        self.rank_on_machine = int(local)

    def sum(self, values: Array) -> Array:
        """One allreduce; `RankTimeoutError` if a rank does not come to it in time."""
        values = np.ascontiguousarray(values)
        total = np.empty_like(values)
        self._finish(self._world.Iallreduce(values, total))
        return total

    def meet(self) -> None:
        """A barrier; `RankTimeoutError` as for `sum`."""
        self._finish(self._world.Ibarrier())

    def abort(self, code: int) -> None:
        """``MPI_Abort``: the launcher ends every rank."""
        self._world.Abort(code)

    def _finish(self, request: Any) -> None:
        waited, looked = 0.0, time.monotonic()
        while not request.Test():
            now = time.monotonic()
            waited, looked = waited + min(now - looked, _GLANCE), now
            if waited > self._timeout:
                raise RankTimeoutError(
                    "another rank does not answer, and has not ended either",
                    got=f"{waited:.0f} s of waiting on rank {self.rank}",
                    wanted="all ranks at the same place",
                    advice="see what its machine does; --rank-timeout gives it longer",
                )
            if waited > _SPIN:
                time.sleep(min(waited / 50, _SPIN))

    def broadcast(self, value: Any) -> Any:
        """Rank 0's Python object."""
        return self._world.bcast(value, root=0)


class Nccl:
    """GPU ranks: NCCL adds device arrays, MPI only hands round the group's name.

    Has not been run on several GPUs yet. Each rank of a machine takes a device of its own.
    """

    def __init__(self, mpi: Mpi, like: Array) -> None:
        self._mpi, self.rank, self.size = mpi, mpi.rank, mpi.size
        self._cupy = array_module(like)
        nccl = import_module(f"{self._cupy.__name__}.cuda.nccl")
        devices = self._cupy.cuda.runtime.getDeviceCount()
        self._cupy.cuda.Device(mpi.rank_on_machine % devices).use()
        name = mpi.broadcast(nccl.get_unique_id() if mpi.rank == 0 else None)
        self._nccl, self._group = nccl, nccl.NcclCommunicator(mpi.size, name, mpi.rank)

    def sum(self, values: Array) -> Array:
        """One ncclAllReduce on the current stream."""
        packed: Any = self._cupy.ascontiguousarray(values)
        total: Any = self._cupy.empty_like(packed)
        kind = self._nccl.NCCL_FLOAT64 if values.dtype == np.float64 else self._nccl.NCCL_FLOAT32
        self._group.allReduce(
            packed.data.ptr,
            total.data.ptr,
            packed.size,
            kind,
            self._nccl.NCCL_SUM,
            self._cupy.cuda.get_current_stream().ptr,
        )
        summed: Array = total
        return summed

    def meet(self) -> None:
        """As for `Mpi`."""
        self._mpi.meet()

    def abort(self, code: int) -> None:
        """As for `Mpi`."""
        self._mpi.abort(code)


def ranks_on_machine(comm: Comm) -> int:
    """How many ranks share this machine's memory and processors: all, if the launcher is silent."""
    told = next((os.environ[name] for name in _LOCAL_SIZE if name in os.environ), comm.size)
    return max(1, min(int(told), comm.size))


def connect(timeout: float = RANK_TIMEOUT) -> Comm:
    """The ranks that this process was started among: itself, or those of ``mpiexec``.

    Parameters
    ----------
    timeout : float
        Seconds that a rank waits for the others at one place (NumPy ranks).

    Raises
    ------
    MissingExtraError
        If it was started by an MPI launcher and mpi4py is not installed.
    """
    if not any(name in os.environ for name in _LAUNCHED):
        return Solo()
    try:
        mpi = import_module("mpi4py.MPI")
    except ImportError:
        raise MissingExtraError(
            "several ranks need mpi4py",
            got="a process started by mpiexec, and no mpi4py",
            advice="pip install 'repvgg-ref[mpi]'",
        ) from None
    world = mpi.COMM_WORLD
    return Mpi(world, timeout) if world.Get_size() > 1 else Solo()


def on_device(comm: Comm, like: Array) -> Comm:
    """`comm` fit for arrays of `like`'s kind: NCCL for several ranks on GPUs."""
    return Nccl(comm, like) if isinstance(comm, Mpi) and array_module(like) is not np else comm
