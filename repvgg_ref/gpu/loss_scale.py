"""Dynamic loss scaling for float16, kept on the device: a step never waits to learn of an overflow.

Gradients below 6e-8 vanish in float16, so the loss's gradient is multiplied by a scale and the
weights' gradients divided by it (Micikevicius et al., arXiv 1710.03740, section 3.2). If one of
them is not finite the step is skipped and the scale halved; after `patience` good steps it doubles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cupy
import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.gpu import kernels
from repvgg_ref.gpu.sgd import SgdStep, sgd_step
from repvgg_ref.ops import Ops

LARGEST = 2.0**24


class LossScaler:
    """The scale, and the table and optimiser step that use it.

    Parameters
    ----------
    start : float
        The scale before the first step.
    patience : int
        Good steps before it doubles.

    Attributes
    ----------
    scale, good_steps, skipped : (1,) arrays on the device
        The scale now, steps since it last changed, steps skipped so far.
    """

    def __init__(self, *, start: float = 2.0**12, patience: int = 2000) -> None:
        self._patience = patience
        self.scale: Array = cupy.full(1, start, np.float32)
        self.good_steps: Array = cupy.zeros(1, np.int32)
        self.skipped: Array = cupy.zeros(1, np.int32)

    def table(self, ops: Ops) -> Ops:
        """`ops` with the loss's gradient multiplied by the scale: all gradients come out so."""

        def backward(cache: Any) -> Array:
            scaled: Array = ops.softmax_cross_entropy_backward(cache) * self.scale
            return scaled

        return replace(ops, softmax_cross_entropy_backward=backward)

    def sgd_step(
        self,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
        velocities: Mapping[str, Array],
        **settings: Any,
    ) -> SgdStep:
        """`gpu.sgd_step` with gradients of this scale, skipped where one is not finite."""
        overflow = kernels.find_nonfinite([cupy.ascontiguousarray(grad) for grad in grads.values()])
        taken = sgd_step(
            params, grads, velocities, **settings, grad_factor=1 / self.scale, skip=overflow
        )
        self._adapt(overflow)
        return taken

    def _adapt(self, overflow: Array) -> None:
        self.skipped += overflow
        self.good_steps = (self.good_steps + 1) * (1 - overflow)
        grown = self.good_steps >= self._patience
        factor = cupy.where(grown, cupy.full(1, 2, np.float32), cupy.full(1, 1, np.float32))
        factor = cupy.where(overflow > 0, cupy.full(1, 0.5, np.float32), factor)
        self.scale = cupy.clip(self.scale * factor, 1, LARGEST)
        self.good_steps = self.good_steps * (1 - grown.astype(np.int32))
