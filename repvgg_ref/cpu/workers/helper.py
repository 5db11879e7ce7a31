"""A process that helps another one to run its plans; started and told what to do by `crew`."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.budget import Choice
from repvgg_ref.cpu.convolution.schedule import Packed
from repvgg_ref.cpu.plan import Plan
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import OneAtATime
from repvgg_ref.cpu.workers.seats import Board, Seat
from repvgg_ref.interpreter import identity

LONGEST = 1 << 16  # bytes of an order
FAILED = "a helper process failed"  # how its last words begin
PATIENCE = 5  # seconds between looks whether the caller is there


def serve() -> None:
    """What a helper does: obey until the caller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides
    seat, seats, file, channel, caller = map(int, sys.argv[1:])
    with FileIO(file, "r+") as shared:
        board = Board(shared, seat, seats)
    with socket.socket(fileno=channel) as orders, OneAtATime().session():
        orders.send(json.dumps(identity()).encode())
        helper = _Helper(seat, seats, board, caller)
        try:
            while (order := _next_order(orders, caller)) is not None:
                helper.obey(*order)
        except Exception as error:
            orders.send(f"{FAILED}: {type(error).__name__}: {error}".encode())
            raise SystemExit(1) from None


class _Helper:
    def __init__(self, seat: int, seats: int, board: Board, caller: int) -> None:
        self._seat, self._seats, self._board, self._caller = seat, seats, board, caller
        self._plans: dict[int, tuple[int, Plan]] = {}
        self._packed: dict[int, Packed] = {}

    def obey(self, order: dict[str, Any], files: list[FileIO]) -> None:
        if order["do"] == "plan":
            self._plans[order["plan"]] = order["model"], self._join(order, *files)
        elif order["do"] == "run":
            self._plans[order["plan"]][1].follow()
        elif order["do"] == "drop":
            self._drop(order["plan"])
        elif order["do"] == "use":
            self._board.tell(time.process_time_ns(), _peak_bytes())
            self._board.meet(self._check)

    def _join(self, order: dict[str, Any], buffers: FileIO, weights: FileIO) -> Plan:
        dtype = np.dtype(order["dtype"])
        with weights:
            return Plan(
                tuple(BlockSpec(**block) for block in order["blocks"]),
                _Arrays(weights, order["params"], dtype),
                tuple(order["shape"]),
                dtype=dtype,
                team=Seat(self._seat, self._seats, self._board, buffers, self._check),
                choices=[Choice(*choice) for choice in order["choices"]],
                packed=self._packed.setdefault(order["model"], {}),
            )

    def _drop(self, plan: int) -> None:
        """With the packed weights of a model that has no other plan."""
        self._plans.pop(plan, None)
        models = {model for model, _ in self._plans.values()}
        self._packed = {model: p for model, p in self._packed.items() if model in models}
        memory.IDLE.clear()

    def _check(self, since: float) -> None:
        if os.getppid() != self._caller:
            raise SystemExit


class _Arrays(Mapping[str, Array]):
    """Arrays that lie in a file one after the other, each mapped while somebody holds it.

    A plan only packs kernels, and keeps the others: those are copied.
    """

    def __init__(self, file: FileIO, shapes: dict[str, list[int]], dtype: Any) -> None:
        self._file, self._shapes, self._dtype = file, shapes, dtype
        sizes = [math.prod(shape) * dtype.itemsize for shape in shapes.values()]
        self._begins = dict(zip(shapes, accumulate(sizes, initial=0), strict=False))

    def __getitem__(self, name: str) -> Array:
        shape, begin = self._shapes[name], self._begins[name]
        count = math.prod(shape)
        beyond = begin % mmap.ALLOCATIONGRANULARITY
        memory = mmap.mmap(
            self._file.fileno(),
            beyond + count * self._dtype.itemsize,
            offset=begin - beyond,
            access=mmap.ACCESS_READ,
        )
        array = np.frombuffer(memory, self._dtype, count, beyond).reshape(shape)
        return array if name.endswith(".fused.weight") else array.copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _peak_bytes() -> int:
    """The most that this process has held; memory that it shares is the caller's."""
    lines = (line.split() for line in Path("/proc/self/status").read_text("ascii").splitlines())
    kilobytes = {line[0]: int(line[1]) for line in lines if line[-1] == "kB"}
    return 1024 * (kilobytes["VmHWM:"] - kilobytes["RssShmem:"])


def _next_order(orders: socket.socket, caller: int) -> tuple[dict[str, Any], list[FileIO]] | None:
    """The next message; None when the caller is gone, though a fork of it may hold the socket."""
    orders.settimeout(PATIENCE)
    while os.getppid() == caller:
        with contextlib.suppress(TimeoutError):
            message, files, _, _ = socket.recv_fds(orders, LONGEST, 2)
            return (json.loads(message), [FileIO(f, "r+") for f in files]) if message else None
    return None
