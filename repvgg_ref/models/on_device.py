"""A model's arrays on a device: copied when they are first used, and again when replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.models.step import StepResult
from repvgg_ref.ops import Ops

_COUNTER = ".num_batches_tracked"


class OnDevice:
    """What one model keeps on a device between calls, for one table of operators.

    Copied host arrays become read-only, since a change in place would not reach the copy.
    """

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self._sources: dict[tuple[str, str], Array] = {}
        self._copies: dict[tuple[str, str], Array] = {}
        self._chain: tuple[Any, dict[str, Array]] | None = None

    def params(self, params: Mapping[str, Array], dtype: Any) -> dict[str, Array]:
        """The arrays on the device: float64 if `dtype` is, else float32; counters stay here."""
        wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        return {
            name: array if name.endswith(_COUNTER) else self._copy(name, array, wide)
            for name, array in params.items()
        }

    def chain(self, blocks: Any, params: Mapping[str, Array], dtype: Any) -> Any:
        """The fused network, made anew when an array was replaced."""
        assert self.ops.fused_chain is not None
        now = self.params(params, dtype)
        if self._chain is None or any(self._chain[1].get(n) is not a for n, a in now.items()):
            self._chain = self.ops.fused_chain(blocks, now), now
        return self._chain[0]

    def enter(self, x: Array) -> Array:
        """`x` on the device."""
        return self.ops.from_host(x) if isinstance(x, np.ndarray) else x

    def _copy(self, name: str, array: Array, dtype: Any) -> Array:
        key = name, str(dtype)
        if self._sources.get(key) is not array:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
                self._copies[key] = self.ops.from_host(array.astype(dtype, copy=False))
            else:
                self._copies[key] = array.astype(dtype, copy=False)
            self._sources[key] = array
        return self._copies[key]


def like(x: Array, found: Array) -> Array:
    """`found` where `x` is: on the host if `x` is there."""
    return to_numpy(found) if isinstance(x, np.ndarray) else found


def step_like(x: Array, step: StepResult) -> StepResult:
    """All of `step` where `x` is."""
    return StepResult(
        like(x, step.loss),
        like(x, step.logits),
        {name: like(x, grad) for name, grad in step.grads.items()},
        {name: like(x, stat) for name, stat in step.stats.items()},
    )
