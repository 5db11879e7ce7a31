"""What is timed: a network, a batch, a number of threads; the same arrays for everyone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.cost import cost
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model, build
from repvgg_ref.models.registry import network

Kind = Literal["inference", "training"]

# A training step is a forward pass and two products of its size: gradients by input and weight.
PASSES: dict[Kind, int] = {"inference": 1, "training": 3}


@dataclass(frozen=True)
class Task:
    """One comparison; made of numbers and names, so that any process can make the same arrays.

    Attributes
    ----------
    network : str
        A name in `models.registry`; for peers and training an official model.
    batch, size : int
        The input is (batch, 3, size, size), float32.
    threads : int
    algorithm, backend, memory
        Of our own contenders, as for `Model.forward`.
    """

    kind: Kind
    network: str
    batch: int
    size: int
    threads: int
    algorithm: str = "auto"
    backend: str = "numpy"
    memory: str = "fast"
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """The fields, for another process."""
        return asdict(self)

    @cached_property
    def arch(self) -> Network:
        """The network, for images of this size."""
        return network(self.network, size=self.size)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one run in direct form: all images, all passes, fused network."""
        once = cost(self.arch, height=self.size, width=self.size).macs
        return PASSES[self.kind] * self.batch * once

    def model(self) -> Model:
        """The train form, with batch norms that have seen something.

        Where a layer is one convolution, its kernel has variance 2 / fan-in (arXiv 1502.01852), so
        that activations neither vanish nor overflow.
        """
        model = build(self.arch, seed=self.seed)
        rng = np.random.default_rng(self.seed)
        for name, array in model.params.items():
            if array.ndim > 1 and not self.arch.is_chain:
                deviation = np.float32(math.sqrt(2 / math.prod(array.shape[1:])))
                model.params[name] = deviation * rng.standard_normal(array.shape, np.float32)
            elif name.endswith((".gamma", ".running_var")):
                model.params[name] = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
            elif name.endswith((".beta", ".running_mean")):
                model.params[name] = rng.normal(0, 0.1, array.shape).astype(np.float32)
        return model

    def images(self) -> Array:
        """(batch, 3, size, size), float32, normal."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.standard_normal((self.batch, 3, self.size, self.size), np.float32)

    def labels(self) -> Array:
        """(batch,), int64, of 1000 classes."""
        return np.random.default_rng(self.seed + 2).integers(0, 1000, self.batch)
