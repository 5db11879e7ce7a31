"""How the bugs of calls are written: other outputs for some of a call's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.oracle.bugs.base import Site, Variant
from repvgg_ref.oracle.operators.block import block_backward
from repvgg_ref.oracle.operators.norms import batch_statistics
from repvgg_ref.oracle.operators.operator import EXACT, Call
from repvgg_ref.oracle.operators.rounding import read

CallSite = Site[Call]
CallVariants = Iterator[Variant[Call]]


def with_outputs_of(call: Call, other: Callable[[], dict[str, Array]], *names: str) -> Call:
    """`call` with some outputs of another; as it is where that has no outputs of these shapes."""
    before = call.finish

    def finish(outputs: dict[str, Array]) -> dict[str, Array]:
        outputs = outputs if before is None else before(outputs)
        try:
            wrong = other()
        except ShapeError:
            return outputs
        return {n: wrong[n] if n in names else y for n, y in outputs.items()}

    return replace(call, finish=finish)


def words_for(name: str) -> str:
    """An output's name in a sentence."""
    return name.replace("grad_", "gradient of ") if name.startswith("grad_") else name


def batch_mean_and_var(call: Call) -> tuple[Array, Array]:
    """The batch's mean and biased variance, (C,) each."""
    seen = batch_statistics(read(call.arrays["x"], EXACT), 0.0, EXACT)
    return seen.mean.value, seen.var.value


def wrong_block(call: Call, **wrong: Any) -> Call:
    """The block's backward pass with some keywords of `block_backward`."""
    return replace(call, operator=replace(call.operator, expect=partial(block_backward, **wrong)))
