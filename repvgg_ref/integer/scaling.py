"""What an accumulator is multiplied by, in each of the forms that hardware holds it in.

The real multiplier is ``M = input_scale * weight_scale / output_scale`` (Jacob et al., arXiv
1712.05877, equation 5). In fixed point ``M = multiplier * 2**-(31 + shift)`` with
``2**30 <= multiplier < 2**31`` (their section 2.2); `shift` is the distance to the *right*, the
negative of what TensorFlow Lite calls shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.errors import ReportedError, ShapeError

MULTIPLIER_BITS = 31
FARTHEST = 31  # right shift: 31 + 31 bits are what a product of two 31-bit numbers has


@dataclass(frozen=True, eq=False, slots=True)
class Scaling:
    """A layer's multipliers, one for each output channel or one for all.

    Attributes
    ----------
    numerator, denominator : float32 arrays, shapes (O,) or (), and ()
        ``input_scale * weight_scale`` and ``output_scale``, each rounded to float32 as ONNX
        Runtime does before it divides.
    multiplier, shift : int64 arrays, shape (O,) or ()
        The same in fixed point.
    """

    numerator: Array
    denominator: Array
    multiplier: Array
    shift: Array

    __repr__ = one_line

    @property
    def single(self) -> Array:
        """M in float32."""
        found: Array = self.numerator / self.denominator
        return found

    @property
    def right_shift(self) -> Array:
        """How far ``accumulator * multiplier`` is shifted in all: 31 + shift."""
        found: Array = MULTIPLIER_BITS + self.shift
        return found

    def across(self, ndim: int) -> Scaling:
        """The same, shaped to meet accumulators (N, O, ...) of `ndim` axes."""
        shape = (-1,) + (1,) * (ndim - 2)

        def beside(x: Array) -> Array:
            return x.reshape(shape) if x.ndim else x

        return Scaling(
            beside(self.numerator), self.denominator, beside(self.multiplier), beside(self.shift)
        )


def scaling(
    input_scale: Array,
    weight_scale: Array,
    output_scale: Array,
    *,
    multiplier: Array | None = None,
    shift: Array | None = None,
) -> Scaling:
    """The multipliers of three scales; `multiplier` and `shift` where the network states its own.

    Parameters
    ----------
    input_scale, output_scale : float32 array, shape ()
    weight_scale : float32 array, shape (O,) or ()
    multiplier, shift : integer arrays, shape (O,) or (), optional
        Else derived by `fixed_point`.

    Raises
    ------
    ReportedError
        If a scale is not positive and finite, or the multiplier is no 31-bit number.
    """
    for name, scale in (
        ("input_scale", input_scale),
        ("weight_scale", weight_scale),
        ("output_scale", output_scale),
    ):
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ReportedError(
                f"{name} holds what is no scale", got=str(np.min(scale)), wanted="positive numbers"
            )
    if (multiplier is None) != (shift is None):
        raise ReportedError(
            "a multiplier without its shift, or a shift without its multiplier",
            wanted="both, or neither: then they are derived from the scales",
        )
    if multiplier is None or shift is None:
        multiplier, shift = fixed_point(_product(input_scale, weight_scale, output_scale))
    multiplier, shift = multiplier.astype(np.int64), shift.astype(np.int64)
    _require_fixed_point(multiplier, shift)
    return Scaling(input_scale * weight_scale, output_scale, multiplier, shift)


def fixed_point(real: Array) -> tuple[Array, Array]:
    """Split real multipliers into ``(multiplier, shift)``, as TensorFlow Lite's quantiser does.

    The mantissa is rounded to 31 bits, halves away from zero; one that reaches 2**31 becomes 2**30
    with a shift of one less. A number below 2**-32, with which all products round to 0, becomes 0.
    (``QuantizeMultiplier``, tensorflow/lite/kernels/internal/quantization_util.cc.)

    Parameters
    ----------
    real : float64 array of positive numbers

    Returns
    -------
    multiplier, shift : int64 arrays of the same shape
    """
    mantissa, exponent = np.frexp(real)  # 0.5 <= mantissa < 1
    multiplier = np.floor(np.ldexp(mantissa, MULTIPLIER_BITS) + 0.5).astype(np.int64)
    carried = multiplier == 1 << MULTIPLIER_BITS
    multiplier = np.where(carried, 1 << (MULTIPLIER_BITS - 1), multiplier)
    shift = -(exponent.astype(np.int64) + carried)
    vanishes = shift > FARTHEST
    return np.where(vanishes, 0, multiplier), np.where(vanishes, 0, shift)


def _product(input_scale: Array, weight_scale: Array, output_scale: Array) -> Array:
    """``s_x * s_w / s_y`` in double precision, from left to right."""
    found: Array = (
        input_scale.astype(np.float64) * weight_scale.astype(np.float64)
    ) / output_scale.astype(np.float64)
    return found


def _require_fixed_point(multiplier: Array, shift: Array) -> None:
    if multiplier.shape != shift.shape:
        raise ShapeError(
            "multiplier and shift differ in shape",
            got=str(shift.shape),
            wanted=str(multiplier.shape),
        )
    if not ((multiplier >= 0) & (multiplier < 1 << MULTIPLIER_BITS)).all():
        raise ReportedError(
            "a multiplier is no 31-bit number",
            got=str(multiplier.max() if multiplier.size else 0),
            wanted="0 to 2147483647",
        )
    # One bit to the right at least: every scheme rounds with the bit that falls out first.
    if not ((shift > -MULTIPLIER_BITS) & (shift <= FARTHEST)).all():
        raise ReportedError(
            "a multiplier's shift is out of reach",
            got=str(shift.flat[np.argmax(np.abs(shift))]),
            wanted=f"{1 - MULTIPLIER_BITS} to {FARTHEST}; are the scales right?",
        )
