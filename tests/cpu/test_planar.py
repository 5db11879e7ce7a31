"""Chains with depthwise layers in CHWN, against the reference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import NUMPY, planar
from repvgg_ref.cpu.convolution import gemm
from repvgg_ref.cpu.graph import GraphPlan
from repvgg_ref.cpu.planar import PlanarEngine, PlanarPlan, is_planar
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.mobileone import mobileone
from repvgg_ref.models.network import Model, fuse
from tests.models.small import SMALL, distinct_model

WIDTHS: Any = {"widths": (0.25, 0.25, 0.25, 0.25), "num_classes": 5}
ARCH = mobileone("small", depths=(1, 2, 1, 1), **WIDTHS)
GATED = mobileone("gated", depths=(1, 2, 1, 1), gates=(0, 1, 1, 0), **WIDTHS)


@cache
def fused(arch: Architecture) -> Model:
    return fuse(distinct_model(arch))


@pytest.fixture(autouse=True)
def _any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planar, "FEWEST_IMAGES", 1)


def engine_of(model: Model, threads: int = 2, dtype: Any = np.float64) -> PlanarEngine:
    return PlanarEngine(model.arch, model.params, dtype=dtype, threads=threads)


def images(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape)


def assert_layers_equal(model: Model, x: Array, threads: int) -> None:
    wanted = model.forward(x, backend="reference", layers=True)
    engine = engine_of(model, threads)
    got = engine.layers(x)
    assert got.keys() == wanted.keys()
    for name, y in wanted.items():
        assert not (np.abs(got[name] - y).max() > 1e-12 * np.abs(y).max()), name
    assert (engine.forward(x) == got["linear"]).all()  # scratch that holds an earlier run


@pytest.mark.parametrize("arch", [ARCH, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize(
    ("shape", "threads"),
    [((2, 3, 41, 36), 1), ((1, 3, 64, 32), 3), ((3, 3, 7, 5), 2), ((1, 3, 1, 1), 2)],
)
def test_every_layer_equals_the_references(
    arch: Architecture, shape: tuple[int, ...], threads: int
) -> None:
    assert_layers_equal(fused(arch), images(*shape), threads)


def test_blocks_of_a_few_rows_and_channels_meet_at_their_borders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planar, "BLOCK_NUMBERS", 500)
    assert_layers_equal(fused(ARCH), images(2, 3, 45, 38), 2)


@pytest.mark.parametrize("in_place", [False, True])
def test_products_in_blocks_are_the_product(
    in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "multiplies_in_place", lambda: in_place)
    weight, columns = images(64, 20), images(2, 20, 192)
    out = np.full((2, 64, 192), np.nan)
    planar._product(weight, columns, out)()
    assert not (np.abs(out - weight @ columns).max() > 1e-12)


def test_a_batch_is_its_images_in_float32() -> None:
    model, x = fused(ARCH), images(3, 3, 33, 40)
    together = engine_of(model, dtype=np.float32).forward(x.astype(np.float32))
    alone = np.concatenate([model.forward(one[None], backend="reference") for one in x])
    assert not (np.abs(together - alone).max() > 2e-6 * np.abs(alone).max())


def test_a_number_that_is_none_reaches_no_other_channel_or_row() -> None:
    """One product of nine taps and no zeros among them: what a pixel does not see, it is not."""
    model = fused(ARCH)
    x = images(8, 3, 64, 200)
    x[:, :, 40:] = np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        y = engine_of(model, threads=1).layers(x)[model.arch.blocks[1].name]
        wanted = model.forward(x, backend="reference", layers=True)[model.arch.blocks[1].name]
    assert (np.isfinite(y) == np.isfinite(wanted)).all()


def test_few_images_are_left_to_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planar, "FEWEST_IMAGES", 2)
    engine, x = engine_of(fused(ARCH)), images(2, 3, 33, 20)
    assert isinstance(engine.plan(x[:1].shape), GraphPlan)
    assert isinstance(engine.plan(x.shape), PlanarPlan)
    assert not (np.abs(engine.run(x)[:1] - engine.run(x[:1])).max() > 1e-12)
    gated = engine_of(fused(GATED))  # no graph knows its gates
    assert isinstance(gated.plan(x[:1].shape), PlanarPlan)


def test_only_chains_with_depthwise_layers_are_planar() -> None:
    assert is_planar(ARCH)
    assert is_planar(GATED)
    assert not any(is_planar(arch) for arch in SMALL.values())
    grouped = replace(ARCH.blocks[1], groups=2)
    assert not is_planar(replace(ARCH, blocks=(ARCH.blocks[0], grouped, *ARCH.blocks[2:])))
    assert not is_planar(replace(ARCH, num_classes=0))
    how: Any = {"algorithm": "auto", "threads": 1}
    model = fused(ARCH)
    recognise = NUMPY.recognise_network
    assert recognise is not None
    assert isinstance(recognise(ARCH, model.params, np.float64, **how), PlanarEngine)
