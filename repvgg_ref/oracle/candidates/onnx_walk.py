"""Walking over what only carries a tensor, and keeping track of its layout meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.oracle.candidates.onnx_chain import Step

Perm = tuple[int, ...]

STRAIGHT: Perm = (0, 1, 2, 3)
NHWC_TO_NCHW: Perm = (0, 3, 1, 2)
# They change no value, or only its rounding, and add no more than a border. Quantisation is not
# among them: it clips, and quantisers leave the ReLU out where it does the same.
CARRIERS = frozenset({"Pad", "Cast", "Identity", "Transpose", "Dropout"}) | frozenset(
    {"ReorderInput", "ReorderOutput"}
)
QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Tap:
    """A tensor to read, the transposition that makes it NCHW, and the step that ends in it.

    `step` is -1 for the graph's own input.
    """

    tensor: str
    perm: Perm | None = None
    step: int = -1

    @property
    def axes(self) -> Perm:
        """Which axis of NCHW each axis of the tensor is."""
        return inverse(STRAIGHT if self.perm is None else self.perm)


def tap_before(steps: Sequence[Step], consumer: int, producer: int) -> Tap:
    """What reaches the convolution in step `consumer`, taken before it is merely carried there.

    A convolution reads NCHW; following the transpositions on the way tells the tap's own layout.
    """
    return walked_back(steps, consumer - 1, producer, STRAIGHT)


def walked_back(
    steps: Sequence[Step],
    last: int,
    producer: int,
    perm: Perm | None,
    carriers: frozenset[str] = CARRIERS,
) -> Tap:
    """The end of the step, `producer` at the earliest, from which later ones only carry."""
    while last > producer and steps[last].single in carriers:
        perm = before(steps[last], perm)
        last -= 1
    return Tap(steps[last].tensor if last >= 0 else "", perm, last)


def before(step: Step, perm: Perm | None) -> Perm | None:
    """What makes a tensor NCHW in front of `step`, if `perm` does so behind it."""
    if step.single != "Transpose":
        return perm
    first = _transposition(step.nodes[0])
    if first is None or perm is None or len(first) != len(perm):
        return None
    return tuple(first[axis] for axis in perm)


def inverse(perm: Perm) -> Perm:
    """The transposition that undoes `perm`."""
    return tuple(int(axis) for axis in np.argsort(perm))


def _transposition(node: Any) -> Perm | None:
    axes: Perm = tuple(setting(node, "perm", STRAIGHT[::-1]))
    return axes if sorted(axes) == list(STRAIGHT) else None
