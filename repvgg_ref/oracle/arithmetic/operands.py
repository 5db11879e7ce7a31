"""Numbers kept in fewer bits: what a 16-bit or TF32 port multiplies, known exactly.

Rounding a weight is the same for all pixels, so errors of 16-bit ports are no noise until it is
taken into the reference: with rounded operands they obey the same law as float32's, in units of
their format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs.base import round_to_bits
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.programs.program import layer_output

Rounding = Callable[[Array], Array]

_CUT = partial(round_to_bits, bits=11, truncate=True)
_TF32 = partial(round_to_bits, bits=11)


def _half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float16).astype(np.float64)


# Format -> ways of rounding weights (first) and inputs (second) before they are multiplied.
_WAYS: Mapping[str, tuple[tuple[Rounding | None, Rounding | None], ...]] = {
    "tf32": ((_TF32, _TF32), (_CUT, _CUT)),
    "fp16": ((_half, None),),
    "bf16": ((partial(round_to_bits, bits=8), None),),
}


class Seen(NamedTuple):
    """A layer: its right program, the candidate's input, both outputs for it."""

    program: Any
    x: Array
    y: Array
    y_hat: Array


def with_operands(seen: Mapping[str, Seen], precision: Precision) -> Mapping[str, Seen]:
    """The layers beside a reference whose operands are rounded as the port's are, if they are.

    Of the ways that `precision` allows the one that leaves least in most layers is taken for all.
    """
    best = seen
    for weights, inputs in _WAYS.get(precision.number_format, ()):
        rounded = {name: _rounded(layer, weights, inputs) for name, layer in seen.items()}
        better = [_size(rounded[name]) < _size(best[name]) for name in seen]
        if sum(better) * 2 > len(better):
            best = rounded
    return best


def _rounded(layer: Seen, weights: Rounding | None, inputs: Rounding | None) -> Seen:
    """One layer beside the reference with rounded operands."""
    program, x = layer.program, layer.x
    if isinstance(program, HeadProgram):
        rounded = replace(program, weight=weights(program.weight)) if weights else program
    else:
        kernel = program.fused_kernel()
        weight = weights(kernel.weight) if weights else kernel.weight
        rounded = replace(program, branches={}, fused=FusedConv(weight, kernel.bias))
        x = inputs(x) if inputs else x
    return Seen(rounded, x, layer_output(rounded, x), layer.y_hat)


def _size(layer: Seen) -> float:
    error = np.abs(layer.y_hat - layer.y)[layer.y_hat > 0]
    return float(np.median(error)) if error.size else 0.0
