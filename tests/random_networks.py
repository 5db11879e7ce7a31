"""Networks whose batch norms have seen something: statistics far from mean 0 and variance 1.

Untrained statistics hide an ignored mean, a dropped eps, swapped batch norms and more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import param_shapes


def random_model(arch: Network, seed: int, dtype: Any = np.float32) -> Model:
    """The train form of `arch` with activations of order one in every layer."""
    rng = np.random.default_rng(seed)
    shapes = param_shapes(arch, "train")
    return Model(arch, "train", {n: _draw(n, s, rng, dtype) for n, s in shapes.items()})


def random_block(spec_params: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """The float32 arrays of one block, drawn like those of `random_model`."""
    rng = np.random.default_rng(seed)
    return {name: _draw(name, shape, rng, np.float32) for name, shape in spec_params.items()}


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator, dtype: Any) -> Array:
    field = name.rsplit(".", 1)[1]
    if field == "num_batches_tracked":
        return np.array(rng.integers(1, 10_000), np.int64)
    if field == "gamma":  # a few negative ones, as trained networks have
        values = rng.uniform(0.3, 1.2, shape) * rng.choice([-1, 1, 1, 1], shape)
    elif field == "running_var":
        values = np.exp(rng.normal(0, 1, shape))
    elif field in ("beta", "running_mean", "bias"):
        values = rng.normal(0, 0.3, shape)
    else:
        values = rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)
    return np.asarray(values).astype(dtype)
