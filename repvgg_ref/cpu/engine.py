"""A fused model's fast forward: plans by batch shape over one set of packed weights."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.budget import Choice, Memory, budget_of, choices_within, required_memory
from repvgg_ref.cpu.convolution.algorithms import (
    ALGORITHMS,
    DEFAULT_CHOICES,
    Algorithm,
    applies,
    require_algorithm,
)
from repvgg_ref.cpu.convolution.autotune import Tuner
from repvgg_ref.cpu.convolution.schedule import ConvShape, Packed
from repvgg_ref.cpu.plan import Plan, Tap, conv_shapes
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.crew import Caller, available, crew
from repvgg_ref.cpu.workers.pool import Team, default_threads, pool
from repvgg_ref.cpu.workers.process import CrewError

CHUNK = 16  # images that go through the chain together; more would only need more memory
KEPT_PLANS = 4
CREW_MACS = 100_000_000  # a millisecond's work: less is not worth processes
# Networks that are computed, and whose weights are packed, before a process has started.
STAND_IN_MACS, STAND_IN_BYTES = 2_000_000_000, 40_000_000
_NUMBERS = count()  # of engines


class _Plan(Protocol):
    """A network bound to the buffers of one batch shape, such as `Plan`."""

    @property
    def team(self) -> Team:
        """Who does its work."""

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """Logits; `tap` sees every layer before it."""


P = TypeVar("P", bound=_Plan)


class Plans(ABC, Generic[P]):
    """Evaluates a fused network; keeps packed weights and the last few plans.

    Parameters
    ----------
    algorithm : "auto", "measure" or one of `algorithms.ALGORITHMS`
        "measure" takes the fastest of the same choices by `autotune`.
        "auto" takes the cheapest by `cost` among those whose rounding error, measured on whole
        networks in float32, is at most 2e-5 of the largest output; in float64, where precision was
        asked for, it is "direct". An algorithm that does not fit a layer yields to direct there.
    threads : int, optional
        Default: the variable ``REPVGG_NUM_THREADS``, else all processors.
    memory : "fast", "lean" or bytes, optional
        What packed weights may take beside the model's own; default the variable
        ``REPVGG_MEMORY``, else "fast", which is as much as is fastest. "lean" is half of what the
        weights take. What is not kept is packed in every run; only threads work then, since a
        process would hold weights of its own, and the packed weights are those of one plan.
    """

    head = "linear"

    def __init__(
        self,
        params: Mapping[str, Array],
        *,
        dtype: Any,
        algorithm: str = "auto",
        threads: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        require_algorithm(algorithm)
        self._dtype = np.dtype(dtype)
        self._asked = next((each for each in ALGORITHMS if each == algorithm), None)
        self._params = {name: array.astype(dtype, copy=False) for name, array in params.items()}
        self._threads = threads or default_threads()
        self._budget = budget_of(required_memory(memory), self._params)
        self._tuner = Tuner(pool(threads), dtype) if algorithm == "measure" else None
        self._packed: Packed = {}
        self._plans: dict[tuple[int, ...], P] = {}

    def forward(self, x: Array) -> Array:
        """Logits of any number of images."""
        return np.concatenate([self.run(part) for part in chunks(x)])

    def layers(self, x: Array) -> dict[str, Array]:
        """Every layer's output, NCHW, and the logits under the name of the `head`."""
        parts = [self._layers(part) for part in chunks(x)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """Logits of images that go through the network together; `tap` as for `Plan.run`."""
        return self.plan(x.shape).run(x, tap)

    def plan(self, shape: tuple[int, ...]) -> P:
        """The plan for a batch of `shape`, made on first use.

        Threads may ask at once, and let each other's plans go: each returns the one that it found.
        """
        found = self._plans.get(shape)
        if found is not None and not found.team.usable:
            self._forget()
            found = None
        if found is None:
            for other in list(self._plans)[: 1 - KEPT_PLANS]:
                self._plans.pop(other, None)
            if self._budget < math.inf:
                self._forget()
            found = self._plans[shape] = self._make(shape)
        return found

    @property
    def packed_bytes(self) -> int:
        """Weights as the algorithms of all plans want them, at most, in all processes together."""
        processes = max((plan.team.processes for plan in self._plans.values()), default=1)
        return processes * sum(array.nbytes for array in self._packed.values())

    @abstractmethod
    def _make(self, shape: tuple[int, ...]) -> P:
        """A plan for a batch of `shape`."""

    def _layers(self, x: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def keep(name: str, y: Array) -> None:
            # a copy, since the plan will use its memory again
            found[name] = (y.transpose(0, 3, 1, 2) if y.ndim == 4 else y).copy(order="C")

        logits = self.run(x, keep)
        return found | {self.head: logits}

    def _forget(self) -> None:
        self._plans.clear()
        self._packed.clear()
        memory.IDLE.clear()  # packed weights of another team would be of other sizes

    def _choose(self, shapes: list[ConvShape]) -> list[Choice]:
        possible = [self._possible(shape) for shape in shapes]
        return choices_within(self._budget, shapes, possible, self._dtype.itemsize)

    def _possible(self, shape: ConvShape) -> Sequence[Algorithm]:
        if shape.dilation > 1:  # the oracle cannot tell tiles of every d-th pixel from a bug yet
            return ["direct"]
        if self._tuner is not None:
            return [self._tuner.choose(shape)]
        if self._asked is not None:
            return [self._asked if applies(self._asked, shape) else "direct"]
        if self._dtype == np.float64:
            return ["direct"]
        return [algorithm for algorithm in DEFAULT_CHOICES if applies(algorithm, shape)]


class Engine(Plans[Plan]):
    """Evaluates the fused chain of `blocks`; arguments as for `Plans`."""

    def __init__(
        self,
        blocks: tuple[BlockSpec, ...],
        params: Mapping[str, Array],
        *,
        dtype: Any,
        algorithm: str = "auto",
        threads: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(params, dtype=dtype, algorithm=algorithm, threads=threads, memory=memory)
        self._blocks = blocks
        self._crews = available(self._threads) and self._budget == math.inf
        self._number = next(_NUMBERS)  # helpers may outlive an address, and pack by it

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """As `Plans.run`. If a crew fails, threads take over, and a warning says so, once."""
        try:
            return super().run(x, tap)
        except CrewError as error:
            is_first, self._crews = self._crews, False
            self._forget()
            if is_first:  # other threads that were waiting for the same crew say nothing
                warnings.warn(f"{error}; threads take over", RuntimeWarning, stacklevel=2)
            return super().run(x, tap)

    def _make(self, shape: tuple[int, ...]) -> Plan:
        shapes = conv_shapes(self._blocks, shape[0], *shape[2:])
        choices, macs = self._choose(shapes), sum(each.macs for each in shapes)

        def plan(team: Team, packed: Packed) -> Plan:
            return Plan(
                self._blocks,
                self._params,
                shape,
                dtype=self._dtype,
                team=team,
                choices=choices,
                packed=packed,
            )

        team = self._team(shape, macs, choices)
        made = plan(team, self._packed)
        weights = sum(array.nbytes for array in self._params.values())
        if isinstance(team, Caller) and macs <= STAND_IN_MACS and weights <= STAND_IN_BYTES:
            team.stand_in(lambda seat: plan(seat, {}))
        return made

    def _team(self, shape: tuple[int, ...], macs: int, choices: list[Choice]) -> Team:
        if macs < CREW_MACS or not self._crews:
            return pool(self._threads)
        return crew(self._threads).join(
            self._blocks, self._params, shape, self._dtype, choices, self._number
        )


def chunks(x: Array) -> list[Array]:
    """The parts of a batch that go through the chain together."""
    if len(x) < 2 * CHUNK:
        return [x]
    return [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]
