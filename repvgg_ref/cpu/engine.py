"""A fused model's fast forward: plans by batch shape over one set of packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.autotune import Tuner
from repvgg_ref.cpu.cost import ALGORITHMS, Algorithm, applies, cheapest
from repvgg_ref.cpu.plan import Plan, conv_shapes
from repvgg_ref.cpu.pool import pool
from repvgg_ref.cpu.schedule import ConvShape, Packed
from repvgg_ref.errors import BackendError

CHUNK = 16  # images that go through the chain together; more would only need more memory
KEPT_PLANS = 4


class Engine:
    """Evaluates the fused chain of `blocks`; keeps packed weights and the last few plans.

    Parameters
    ----------
    algorithm : "auto", "measure" or one of `cost.ALGORITHMS`
        "measure" takes the fastest of the same choices by `autotune`.
        "auto" takes the cheapest by `cost` among those whose rounding error, measured on whole
        networks in float32, is at most 2e-5 of the largest output; in float64, where precision was
        asked for, it is "direct". An algorithm that does not fit a layer yields to direct there.
    threads : int, optional
        Default: the variable ``REPVGG_NUM_THREADS``, else all processors.
    """

    def __init__(
        self,
        blocks: tuple[BlockSpec, ...],
        params: Mapping[str, Array],
        *,
        dtype: Any,
        algorithm: str = "auto",
        threads: int | None = None,
    ) -> None:
        if algorithm not in ("auto", "measure", *ALGORITHMS):
            raise BackendError(
                "there is no such algorithm of convolution",
                got=repr(algorithm),
                wanted=", ".join(("auto", "measure", *ALGORITHMS)),
            )
        self._blocks, self._dtype = blocks, np.dtype(dtype)
        self._asked = next((each for each in ALGORITHMS if each == algorithm), None)
        for array in params.values():
            array.flags.writeable = False  # a change in place would not reach the packed weights
        self._params = {name: array.astype(dtype, copy=False) for name, array in params.items()}
        self._pool = pool(threads)
        self._tuner = Tuner(self._pool, dtype) if algorithm == "measure" else None
        self._packed: Packed = {}
        self._plans: dict[tuple[int, ...], Plan] = {}

    def forward(self, x: Array) -> Array:
        """Logits of any number of images."""
        return np.concatenate([self.plan(part.shape).run(part) for part in chunks(x)])

    def layers(self, x: Array) -> dict[str, Array]:
        """Every layer's output, NCHW, and the logits as "linear"."""
        found: dict[str, list[Array]] = {}

        def keep(name: str, y: Array) -> None:
            found.setdefault(name, []).append(np.ascontiguousarray(y.transpose(0, 3, 1, 2)))

        for part in chunks(x):
            found.setdefault("linear", []).append(self.plan(part.shape).run(part, keep))
        found["linear"] = found.pop("linear")  # last, as in the network
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """The plan for a batch of `shape`, made on first use."""
        if shape not in self._plans:
            while len(self._plans) >= KEPT_PLANS:
                del self._plans[next(iter(self._plans))]
            shapes = conv_shapes(self._blocks, shape[0], *shape[2:])
            self._plans[shape] = Plan(
                self._blocks,
                self._params,
                shape,
                dtype=self._dtype,
                team=self._pool,
                algorithms=[self._choose(each) for each in shapes],
                packed=self._packed,
            )
        return self._plans[shape]

    @property
    def packed_bytes(self) -> int:
        """Weights as the algorithms of all plans want them."""
        return sum(array.nbytes for array in self._packed.values())

    def _choose(self, shape: ConvShape) -> Algorithm:
        if self._tuner is not None:
            return self._tuner.choose(shape)
        if self._asked is not None:
            return self._asked if applies(self._asked, shape) else "direct"
        return "direct" if self._dtype == np.float64 else cheapest(shape, self._dtype.itemsize)


def chunks(x: Array) -> list[Array]:
    """The parts of a batch that go through the chain together."""
    if len(x) < 2 * CHUNK:
        return [x]
    return [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]
