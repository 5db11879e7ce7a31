"""What a number format does to a layer, and which format an array's values give away.

A format is described by unit roundoffs (largest relative error of one rounding) and by the largest
absolute error of one underflow. Sources: IEEE 754-2019; NVIDIA's and Intel's format descriptions;
Fasi, Higham, Mikaitis & Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330
(2021), for what matrix units do to the last bits of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array

# A matrix unit adds k >= 4 products to the accumulator at once: it aligns k + 1 addends to the
# largest and *cuts* what falls off (up to 2**-23 of the largest, each), then cuts the sum to
# float32. So k terms cost k + 2 errors of 2**-23, at most 1.5 per term (Fasi et al., section 3).
_MATRIX_UNIT = 1.5 * 2.0**-23

# Float32 registers may be flushed to zero below the smallest normal number (GPUs with -ftz, CPUs
# with DAZ/FTZ, bf16 dot-product instructions always). Float16 is not: matrix units, F16C and
# AVX512-FP16 keep its subnormals, of spacing 2**-24, so rounding errs by 2**-25 at most.
_FLUSH = 2.0**-126
_GRADUAL_HALF = 2.0**-25

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_BFLOAT16 = float(2.0**127 * (2 - 2.0**-7))


@dataclass(frozen=True, slots=True)
class Precision:
    """The arithmetic a candidate claims.

    Attributes
    ----------
    u_input, u_weight : float
        Unit roundoff of what a layer multiplies.
    u_accumulate : float
        Unit roundoff of additions in a dot product, and of all that stays in registers.
    u_store : float
        Unit roundoff of a result written to memory.
    tiny, tiny_accumulate : float
        Largest absolute error by underflow, of a number in memory and in an accumulator.
    largest : float
        Largest finite number in memory.
    """

    name: str
    u_input: float
    u_weight: float
    u_accumulate: float
    u_store: float
    tiny: float
    tiny_accumulate: float
    largest: float

    @property
    def unit(self) -> float:
        """Unit roundoff of the coarsest rounding: TF32 keeps its results in float32."""
        return max(self.u_store, self.u_input / 2)

    @property
    def number_format(self) -> str:
        """The format of numbers in memory, whatever sums are kept in: "fp16" for "fp16-acc16"."""
        return self.name.partition("-")[0]


# TF32 has 11 significant bits. Library code rounds to nearest before the matrix unit (2**-11), or
# hands float32 over and the unit ignores the 13 lower bits (2**-10): the wider one is assumed.
# Plain float32 counts 2**-24 for its input and weights because a candidate is given float32
# roundings of what the reference knows in float64.
PRECISIONS: Mapping[str, Precision] = {
    p.name: p
    for p in (
        Precision("fp32", 2**-24, 2**-24, 2**-24, 2**-24, _FLUSH, _FLUSH, _LARGEST_FLOAT32),
        Precision("tf32", 2**-10, 2**-10, _MATRIX_UNIT, 2**-24, _FLUSH, _FLUSH, _LARGEST_FLOAT32),
        Precision("bf16", 2**-8, 2**-8, _MATRIX_UNIT, 2**-8, _FLUSH, _FLUSH, _LARGEST_BFLOAT16),
        Precision("fp16", 2**-11, 2**-11, _MATRIX_UNIT, 2**-11, _GRADUAL_HALF, _FLUSH, 65504.0),
        Precision("fp16-acc16", *(2**-11,) * 4, _GRADUAL_HALF, _GRADUAL_HALF, 65504.0),
    )
}

# A random float32 is a float16 or bfloat16 with probability 2**-13 or 2**-16: 16 different ones
# that all are happen by chance once in 2**208. Zeros and repetitions are evidence of nothing.
_EVIDENCE = 16
_SAMPLE = 4096
_NEARLY_ALL = 0.9


def precision_of(outputs: Mapping[str, Array]) -> str:
    """The precision that a candidate's outputs give away: "fp16", "bf16", else "fp32".

    A dtype of 16 bits says it; so do float32 arrays in which *every* value is a 16-bit number (NaN
    apart: a later layer's NaN does not change what the others are held to). TF32 is never
    concluded: its results are float32, and TF32 that poses as float32 is a bug to be named.

    Parameters
    ----------
    outputs : mapping
        Layer name -> floating array.
    """
    if (by_type := _sixteen_bits(outputs)) is not None:
        return by_type
    if not _has_evidence(outputs.values()):
        return "fp32"
    for name in ("bf16", "fp16"):
        if all(_HOLDS[name](array).all() for array in outputs.values()):
            return name
    return "fp32"


def _sixteen_bits(arrays: Mapping[str, Array]) -> str | None:
    """The format that an array's type says, if it has 16 bits."""
    names = {np.dtype(array.dtype).name for array in arrays.values()}
    return next((f for n, f in (("float16", "fp16"), ("bfloat16", "bf16")) if n in names), None)


def stored_format(arrays: Mapping[str, Array]) -> str:
    """The narrowest format that holds nearly every value: "bf16", "fp16", "fp32", else "fp64".

    A few that it does not hold are wrong: by chance next to none of a wider format's are in it.
    """
    if (by_type := _sixteen_bits(arrays)) is not None:
        return by_type
    narrow = _HOLDS if _has_evidence(arrays.values()) else {"fp32": _HOLDS["fp32"]}
    return next((name for name in narrow if are_stored_as(name, arrays.values())), "fp64")


def are_stored_as(name: str, arrays: Iterable[Array]) -> bool:
    """Whether a format, "bf16", "fp16" or "fp32", holds nearly every value that is not 0."""
    held = total = 0
    for array in arrays:
        flat = array.reshape(-1)
        some = flat[:: max(1, flat.size // _SAMPLE)]
        some = some[some != 0]
        held, total = held + int(_HOLDS[name](some).sum()), total + some.size
    return held >= _NEARLY_ALL * total


def _has_evidence(arrays: Iterable[Array]) -> bool:
    """Whether there are enough different finite values that are not 0; looks no further then."""
    found: set[float] = set()
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _SAMPLE):
            some = flat[start : start + _SAMPLE]
            found.update(some[np.isfinite(some) & (some != 0)].tolist())
            if len(found) >= _EVIDENCE:
                return True
    return False


def _bfloat16s(array: Array) -> Array:
    """Which values are NaN or the upper half of a float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = array.astype(np.float32)
    upper = single.view(np.uint32) & np.uint32(0xFFFF) == 0
    return np.asarray(np.isnan(array) | upper & (single == array))


def _rounded_to(dtype: Any, array: Array) -> Array:
    """Which values are NaN or of the type."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(np.isnan(array) | (array.astype(dtype) == array))


_HOLDS: Mapping[str, Callable[[Array], Array]] = {
    "bf16": _bfloat16s,
    "fp16": partial(_rounded_to, np.float16),
    "fp32": partial(_rounded_to, np.float32),
}


class RoundoffEstimate(NamedTuple):
    """The unit roundoff a residual suggests, the nearest class in words, and how many elements."""

    unit_roundoff: float
    looks_like: str
    elements: int


# Rounding to nearest with unit roundoff u errs by u/sqrt(3) root-mean-square in units of the power
# of two below the number, m of which the number is; m has density 1/(m ln 2) on [1, 2) (Benford),
# so E[m^2] = 1.5/ln 2 and a product errs by u/sqrt(3 * 1.5/ln 2) = 0.392 u of itself. Both factors
# are rounded (x sqrt 2); the sum of many such errors is normal, and a normal variable's median
# absolute value is 0.6745 standard deviations.
_MEDIAN = 0.6745 * float(np.sqrt(2 / (3 * 1.5 / np.log(2))))

# Upper ends, from the coarsest effects of the finer format and the finest of the coarser one:
# float32 sums of 2**14 terms one after the other reach 2**-24 * 2**7 = 2**-17; float16 weights
# alone give 2**-11.5, TF32 by cutting off 2**-10; bfloat16 weights alone 2**-8.5. The boundaries
# lie half-way in the exponent. Eight-bit integers with one scale a tensor start near 2**-6.
_CLASSES = (
    (2.0**-40, "float64"),
    (2.0**-14.25, "fp32"),
    (2.0**-9.25, "tf32 or fp16"),
    (2.0**-6.5, "bf16"),
    (float("inf"), "coarser than bf16"),
)


def estimate_unit_roundoff(residual: Array, energy: Array) -> RoundoffEstimate:
    """Estimate a candidate's unit roundoff from what it got wrong in one layer.

    Independent relative errors of size u in the factors of ``sum w x`` add up to a residual of
    about ``0.55 u sqrt(sum (w x)^2)``. The median over elements is not moved by a bug in fewer
    than half of them.

    Parameters
    ----------
    residual : array
        Candidate minus reference.
    energy : array, shape of `residual`
        ``sqrt(sum (w x)^2)`` per output, `bounds.product_energy`.

    Returns
    -------
    RoundoffEstimate
        Over the elements where both are finite and not zero (ReLU hides errors); 0 elements give
        "exact", NaN-only residuals "nothing".
    """
    finite = np.isfinite(residual) & (energy > 0)
    use = finite & (residual != 0)
    if not use.any():
        return RoundoffEstimate(0.0, "exact" if finite.any() else "nothing", 0)
    u = float(np.median(np.abs(residual[use]) / energy[use])) / _MEDIAN
    name = next(name for end, name in _CLASSES if u <= end)
    return RoundoffEstimate(u, name, int(use.sum()))
