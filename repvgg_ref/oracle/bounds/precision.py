"""What a number format does to a layer, and which format an array's values give away.

A format is described by unit roundoffs (largest relative error of one rounding) and by the largest
absolute error of one underflow. Sources: IEEE 754-2019; NVIDIA's and Intel's format descriptions;
Fasi, Higham, Mikaitis & Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330
(2021), for what matrix units do to the last bits of a sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
    names = {np.dtype(array.dtype).name for array in outputs.values()}
    if "float16" in names:
        return "fp16"
    if "bfloat16" in names:
        return "bf16"
    if not _has_evidence(outputs.values()):
        return "fp32"
    for name, fits in (("bf16", _is_bfloat16), ("fp16", _is_float16)):
        if all(fits(array) for array in outputs.values()):
            return name
    return "fp32"


def stored_format(arrays: Mapping[str, Array]) -> str:
    """The narrowest format that holds every value: "bf16", "fp16", "fp32", else "fp64"."""
    found = precision_of(arrays)
    if found == "fp32" and not all(_is_float32(array) for array in arrays.values()):
        return "fp64"
    return found


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


def _is_bfloat16(array: Array) -> bool:
    """Whether every value is NaN or the upper half of a float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = array.astype(np.float32)
    upper = single.view(np.uint32) & np.uint32(0xFFFF) == 0
    return bool((np.isnan(array) | upper & (single == array)).all())


def _is_float16(array: Array) -> bool:
    """Whether every value is NaN or a float16."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return bool((np.isnan(array) | (array.astype(np.float16) == array)).all())


def _is_float32(array: Array) -> bool:
    """Whether every value is NaN or a float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return bool((np.isnan(array) | (array.astype(np.float32) == array)).all())


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
