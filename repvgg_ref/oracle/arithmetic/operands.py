"""Numbers kept in fewer bits: what a 16-bit or TF32 port multiplies, known exactly.

Rounding a weight is the same for all pixels, so errors of 16-bit ports are no noise until it is
taken into the reference: with rounded operands they obey the same law as float32's, in units of
their format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs.base import round_to_bits

Rounding = Callable[[Array], Array]

_CUT = partial(round_to_bits, bits=11, truncate=True)
_TF32 = partial(round_to_bits, bits=11)


def _half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float16).astype(np.float64)


# Format -> ways of rounding weights (first) and inputs (second) before they are multiplied.
_WAYS: Mapping[str, tuple[tuple[str, Rounding | None, Rounding | None], ...]] = {
    "tf32": (("to nearest", _TF32, _TF32), ("cut", _CUT, _CUT)),
    "fp16": (("to nearest", _half, None),),
    "bf16": (("to nearest", partial(round_to_bits, bits=8), None),),
}


def with_operands(samples: Mapping[str, Sample], precision: Precision) -> dict[str, Sample]:
    """The samples beside a reference whose operands are rounded as the port's are, if they are.

    Of the ways that `precision` allows the one that leaves least in most layers is taken for all.
    """
    unit = precision.u_store
    best = dict(samples)
    for _, weights, inputs in _WAYS.get(precision.number_format, ()):
        rounded = {n: _rounded(sample, weights, inputs, unit) for n, sample in samples.items()}
        better = [_size(rounded[name]) < _size(best[name]) for name in samples]
        if sum(better) * 2 > len(better):
            best = rounded
    return best


def _rounded(sample: Sample, weights: Rounding | None, inputs: Rounding | None, unit: float) -> Sample:
    """One sample beside the reference with rounded operands."""
    weight = sample.weight if weights is None else weights(sample.weight)
    columns = sample.columns if inputs is None else inputs(sample.columns)
    other = replace(sample, weight=weight, columns=columns)
    z = other.times(weight) + sample.bias[:, None]
    y = np.maximum(z, 0) if sample.relu else z
    return other.beside(y, sample.y + sample.residual, unit)


def _size(sample: Sample) -> float:
    on = sample.active
    return float(np.median(np.abs(sample.residual[on]))) if on.any() else 0.0
