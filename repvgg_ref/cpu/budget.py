"""How each convolution is done if packed weights may take so much memory and no more.

Transformed weights are up to nine times the kernels, and most of what a large network holds. What
is packed need not be kept: a convolution can pack its weights in every run (`schedule`), for more
time. So each layer has choices, an algorithm each that keeps its packed weights or does not, with
seconds and bytes; from those that hold the least on, bytes go to where they save most time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.algorithms import Algorithm
from repvgg_ref.cpu.convolution.cost import inference, seconds, streamed
from repvgg_ref.cpu.convolution.depthwise import is_depthwise
from repvgg_ref.cpu.convolution.schedule import PRIVATE_WEIGHTS, ConvShape
from repvgg_ref.errors import BackendError

VARIABLE = "REPVGG_MEMORY"

Memory = str | int
"""``"fast"``, ``"lean"``, or bytes."""


class Choice(NamedTuple):
    """How a layer is convolved, and whether it packs its weights in every run."""

    algorithm: Algorithm
    streamed: bool = False


class _Cost(NamedTuple):
    seconds: float
    bytes: float
    choice: Choice


def required_memory(asked: Any = None) -> Memory:
    """What is asked for, or what ``REPVGG_MEMORY`` says, or "fast".

    Raises
    ------
    BackendError
        If it is neither "fast" nor "lean" nor a number of bytes.
    """
    given = (os.environ.get(VARIABLE) or "fast") if asked is None else asked
    if isinstance(given, str) and given in ("fast", "lean"):
        return given
    if isinstance(given, str) and given.isdecimal():
        return int(given)
    if isinstance(given, int | np.integer) and not isinstance(given, bool) and given >= 0:
        return int(given)
    source = VARIABLE if asked is None else "memory"
    raise BackendError(
        f"{source} says how much packed weights may take",
        got=repr(given),
        wanted="fast, lean, or a number of bytes",
    )


def budget_of(memory: Memory, params: Mapping[str, Array]) -> float:
    """Bytes that packed weights may take: "lean" is half of what the weights take."""
    if isinstance(memory, int):
        return memory
    return math.inf if memory == "fast" else sum(array.nbytes for array in params.values()) / 2


def choices_within(
    budget: float, shapes: Sequence[ConvShape], possible: Sequence[Sequence[Algorithm]], size: int
) -> list[Choice]:
    """The choices for `shapes` that take least time within `budget` bytes.

    Where even what takes least memory takes more, it is those.

    Parameters
    ----------
    possible : for each shape, the algorithms to choose from
    size : bytes of a number
    """
    costs = [list(_costs(shape, some, size)) for shape, some in zip(shapes, possible, strict=True)]
    if budget == math.inf:
        return [min(cost for cost in some if not cost.choice.streamed).choice for some in costs]
    taken = [min(some, key=lambda cost: (cost.bytes, cost.seconds)) for some in costs]
    left = budget - sum(cost.bytes for cost in taken)
    while True:
        gains = [
            ((now.seconds - other.seconds) / (other.bytes - now.bytes), i, other)
            for i, now in enumerate(taken)
            for other in costs[i]
            if other.seconds < now.seconds and 0 < other.bytes - now.bytes <= left
        ]
        if not gains:
            return [cost.choice for cost in taken]
        _, i, best = max(gains)
        left -= best.bytes - taken[i].bytes
        taken[i] = best


def _costs(shape: ConvShape, possible: Sequence[Algorithm], size: int) -> Iterator[_Cost]:
    for algorithm in possible:
        work = inference(algorithm, shape, size)
        yield _Cost(seconds(work), work.weight_bytes, Choice(algorithm))
        # smaller weights are read by every worker on its own, without another stage (`schedule`)
        large = work.weight_bytes > PRIVATE_WEIGHTS * size
        if large and shape.dilation == 1 and not is_depthwise(shape):
            its = streamed(algorithm, shape, size)
            yield _Cost(seconds(its), 0, Choice(algorithm, streamed=True))
