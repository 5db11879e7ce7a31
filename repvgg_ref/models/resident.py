"""What one model keeps between calls, for one table of operators: arrays there, and a fast form.

An array counts as replaced when the object is another. What has been copied or packed is made
read-only, since a change in place would not be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.models.graph import Network
from repvgg_ref.models.step import StepResult
from repvgg_ref.ops import FastNetwork, Ops

_COUNTER = ".num_batches_tracked"


class Resident:
    """One model's arrays where a table computes, and its way through the fused network."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self._sources: dict[tuple[str, str], Array] = {}
        self._copies: dict[tuple[str, str], Array] = {}
        self._fast: tuple[tuple[Any, ...], Mapping[str, Array], FastNetwork | None] | None = None

    def params(self, params: Mapping[str, Array], dtype: Any) -> dict[str, Array]:
        """The arrays where they are needed: float64 if `dtype` is, else float32, on a device."""
        if not self.ops.on_device:
            return {name: array.astype(dtype, copy=False) for name, array in params.items()}
        wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        return {
            name: array if name.endswith(_COUNTER) else self._copy(name, array, wide)
            for name, array in params.items()
        }

    def fast(
        self, network: Network, params: Mapping[str, Array], dtype: Any, **how: Any
    ) -> FastNetwork | None:
        """The table's way through the fused network, made anew when an array was replaced.

        None if the table has none for a network like this: then it is walked.
        """
        key = np.dtype(dtype), *sorted(how.items())
        made = self._fast
        if made is None or made[0] != key or not _same(made[1], params):
            found = self.ops.recognise_network(network, self.params(params, dtype), dtype, **how)
            if found is not None:
                for array in params.values():
                    if isinstance(array, np.ndarray):
                        array.flags.writeable = False
            made = self._fast = key, dict(params), found
        return made[2]

    def enter(self, x: Array) -> Array:
        """`x` where the table computes."""
        return self.ops.from_host(x) if self.ops.on_device and isinstance(x, np.ndarray) else x

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


def _same(before: Mapping[str, Array], now: Mapping[str, Array]) -> bool:
    """Whether these are the very same arrays; `before` holds them, so no address is used twice."""
    return before.keys() == now.keys() and all(before[name] is a for name, a in now.items())


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


def in_dtype(params: Mapping[str, Array], x: Array) -> Mapping[str, Array]:
    """Parameters in the arithmetic the input asks for; converted one at a time, when used."""
    return _Converted(params, x.dtype)


class _Converted(Mapping[str, Array]):
    """A read-only view of `params` in another dtype."""

    def __init__(self, params: Mapping[str, Array], dtype: Any) -> None:
        self._params, self._dtype = params, dtype

    def __getitem__(self, name: str) -> Array:
        return self._params[name].astype(self._dtype, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)
