"""What one model keeps between calls, for one table of operators: arrays there, and a fast form.

A change of an array that has been copied or packed is seen, or refused by the array (`guarded`). An
array on a device is only seen to be replaced: to look into it would be to wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.models.graph import Network
from repvgg_ref.models.guarded import Guarded, guarded
from repvgg_ref.models.names import require_params
from repvgg_ref.models.step import StepResult
from repvgg_ref.ops import FastNetwork, Ops

_COUNTER = ".num_batches_tracked"


class _Fast(NamedTuple):
    """A table's way through a fused network, and what it was made of."""

    network: Network
    how: tuple[Any, ...]
    weights: dict[str, Guarded]
    made: FastNetwork

    def fits(self, network: Network, how: tuple[Any, ...], params: Mapping[str, Array]) -> bool:
        return (
            self.network is network
            and self.how == how
            and self.weights.keys() == params.keys()
            and all(weight.holds(params[name]) for name, weight in self.weights.items())
        )


class Resident:
    """One model's arrays where a table computes, and its way through the fused network."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self._copies: dict[tuple[str, str], tuple[Guarded, Array]] = {}
        self._fast: _Fast | None = None

    def params(self, params: dict[str, Array], dtype: Any) -> dict[str, Array]:
        """The arrays where they are needed: float64 if `dtype` is, else float32, on a device."""
        if not self.ops.on_device:
            return {name: array.astype(dtype, copy=False) for name, array in params.items()}
        wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        return {
            name: params[name] if name.endswith(_COUNTER) else self._copy(params, name, wide)
            for name in params
        }

    def fast(
        self, network: Network, params: dict[str, Array], dtype: Any, **how: Any
    ) -> FastNetwork | None:
        """The table's way through the fused network, made anew when an array has changed.

        None if the table has none for a network like this: then it is walked.
        """
        asked = np.dtype(dtype), *sorted(how.items())
        sources = self.params(params, dtype) if self.ops.on_device else params
        if self._fast is None or not self._fast.fits(network, asked, sources):
            self._fast = None  # which held the arrays
            require_params(network, "deploy", sources)
            weights = {name: guarded(sources, name) for name in sources}
            there = self.params(sources, dtype) if sources is params else sources
            made = self.ops.recognise_network(network, there, dtype, **how)
            if made is None:
                return None
            self._fast = _Fast(network, asked, weights, made)
        return self._fast.made

    def enter(self, x: Array) -> Array:
        """`x` where the table computes."""
        return self.ops.from_host(x) if self.ops.on_device and isinstance(x, np.ndarray) else x

    def _copy(self, params: dict[str, Array], name: str, dtype: Any) -> Array:
        key = name, str(dtype)
        if key not in self._copies or not self._copies[key][0].holds(params[name]):
            self._copies.pop(key, None)  # which held the array
            source = guarded(params, name)
            copy = params[name].astype(dtype, copy=False)
            self._copies[key] = source, self._there(copy)
        return self._copies[key][1]

    def _there(self, array: Array) -> Array:
        return self.ops.from_host(array) if isinstance(array, np.ndarray) else array


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
