"""A small network with telling weights, its right outputs, and what ports hand over of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import SqueezeExcitation
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.oracle.candidates import CandidateFailure, Outputs, WeightsCandidate, resolve

HEIGHT, WIDTH = 20, 12


@cache
def network(se: SqueezeExcitation = "none", groups: int = 1) -> Model:
    """Six blocks in train form; batch norm statistics and biases far from 0 and 1."""
    arch = plain_architecture(
        depths=(2, 3), channels=(32, 32, 64), groups=groups, se=se, num_classes=7
    )
    model = build(arch, seed=1)
    rng = np.random.default_rng(2)
    for name, array in model.params.items():
        if name.endswith((".gamma", ".running_var")):
            model.params[name] = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        elif name.endswith((".beta", ".running_mean")):
            model.params[name] = rng.normal(0, 0.3, array.shape).astype(np.float32)
    return model


@cache
def deployed(se: SqueezeExcitation = "none", groups: int = 1) -> Model:
    return fuse(network(se, groups))


def architecture() -> Network:
    return network().arch


def images(n: int = 2, seed: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3, HEIGHT, WIDTH)).astype(np.float32)


@cache
def right_outputs() -> dict[str, Array]:
    """Every layer's output for `images()`."""
    outputs: dict[str, Array] = network().forward(images(), layers=True)
    return outputs


def channels_last(outputs: dict[str, Array]) -> dict[str, Array]:
    return {name: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for name, a in outputs.items()}


def assert_same(got: Any, wanted: dict[str, Array], tolerance: float = 0.0) -> None:
    """The same layers in network order, each within `tolerance` of its largest element."""
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert got[name].shape == array.shape, name
        error = np.abs(got[name].astype(np.float64) - array).max()
        if not (error <= tolerance * np.abs(array).max()):  # NaN must fail
            raise AssertionError(f"{name} is off by {error}")


def run(candidate: Any, x: Any = None) -> Outputs:
    """What a candidate for `architecture()` gives."""
    found = resolve(candidate, architecture())
    assert not isinstance(found, WeightsCandidate)
    return found.run(x)


def failure(candidate: Any, x: Any = None) -> CandidateFailure:
    """The one-line reason why it gives nothing."""
    with pytest.raises(CandidateFailure) as raised:
        run(candidate, x)
    assert "\n" not in str(raised.value)
    return raised.value


def save_npz(path: Path, arrays: dict[str, Any], *, compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path
