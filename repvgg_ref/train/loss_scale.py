"""Dynamic loss scaling, which float16 needs: gradients below 6e-8 would vanish in it.

The loss's gradient is multiplied by a power of two and the weights' gradients divided by it, which
changes no bit that does not underflow. A step whose gradient overflows is skipped and the scale
halved; after `PATIENCE` good steps it doubles (Micikevicius et al., arXiv 1710.03740, section 3.2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.ops import Ops

START, LARGEST, PATIENCE = 2.0**12, 2.0**24, 2000


class LossScale(NamedTuple):
    """The scale, and the good steps since it last changed; 1 for ever where nothing is scaled."""

    value: float = 1.0
    good_steps: int = 0

    def after(self, *, overflow: bool) -> LossScale:
        """The scale for the next step."""
        if overflow:
            return LossScale(max(1.0, self.value / 2), 0)
        if self.good_steps + 1 < PATIENCE:
            return LossScale(self.value, self.good_steps + 1)
        return LossScale(min(LARGEST, 2 * self.value), 0)


def scaled(ops: Ops, scale: float) -> Ops:
    """`ops` with the loss's gradient multiplied by `scale`: all gradients come out so."""
    if scale == 1:
        return ops

    def backward(cache: Any) -> Array:
        grad: Array = ops.softmax_cross_entropy_backward(cache) * scale
        return grad

    def of_pixels(cache: Any) -> Array:
        grad: Array = ops.pixel_cross_entropy_backward(cache) * scale
        return grad

    return replace(
        ops, softmax_cross_entropy_backward=backward, pixel_cross_entropy_backward=of_pixels
    )
