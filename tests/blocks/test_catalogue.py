"""What the catalogue asks of an entry, and what an entry with every constructor gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.blocks.catalogue import KINDS, Kind, conv, conv_bn
from repvgg_ref.blocks.constructors import Bias, Scale
from repvgg_ref.blocks.linear import Chain, Conv, Norm, Sum
from repvgg_ref.blocks.run import Linear
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.architectures import Architecture, plain_architecture
from repvgg_ref.models.names import OFFICIAL
from tests.random_networks import random_model

KEYS = {"a.conv": "conv_a", "a.bn": "bn_a", "a.alpha": "alpha", "b.conv": "conv_b", "b.shift": "v"}


def scaled(spec: BlockSpec) -> Linear:
    """``alpha BN(W3 x) + W1 x + v``."""
    main = Chain(*conv_bn(spec, "a", 3).parts, Scale("a.alpha", (1,)))
    return Sum(main, Chain(conv(spec, "b.conv", 1), Bias("b.shift", (spec.out_channels,))))


@pytest.fixture
def arch(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    entry = Kind("scaled", "alpha BN(W3 x) + W1 x + v", scaled, KEYS, "fused", auto=False)
    monkeypatch.setitem(KINDS, "scaled", entry)
    return plain_architecture(depths=(2,), channels=(4, 6), kind="scaled", num_classes=3)


def test_scales_start_at_one_and_shifts_at_zero(arch: Architecture) -> None:
    params = rr.build(arch).params
    for spec in arch.blocks:
        np.testing.assert_array_equal(params[f"{spec.name}.a.alpha"], np.ones(1, np.float32))
        assert not params[f"{spec.name}.b.shift"].any()
        assert params[f"{spec.name}.a.conv.weight"].std() > 0


def test_a_block_of_every_constructor_evaluates_and_fuses(arch: Architecture) -> None:
    model = random_model(arch, 1, np.float64)
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 8))
    got = rr.fuse(model).forward(x, backend="reference")
    np.testing.assert_allclose(got, model.forward(x, backend="reference"), rtol=1e-11, atol=1e-12)


def test_arrays_that_are_their_own_leaf_are_written_and_read(arch: Architecture) -> None:
    names = replace(OFFICIAL, parts=KEYS).names(rr.build(arch).params)
    assert names["stage1.0.a.alpha"] == "stage1.0.alpha"
    assert names["stage1.0.a.bn.gamma"] == "stage1.0.bn_a.weight"
    read = replace(OFFICIAL, parts=KEYS).parse(names.values())
    assert read == {theirs: ours for ours, theirs in names.items()}


@pytest.mark.parametrize(
    "build",
    [
        lambda spec: Conv("c", spec.in_channels, spec.out_channels),
        lambda spec: Chain(conv(spec, "a.conv", 3), Norm("a.bn1", spec.out_channels)),
    ],
)
def test_an_entry_that_no_file_could_hold_is_refused(
    arch: Architecture, monkeypatch: pytest.MonkeyPatch, build: Callable[[BlockSpec], Linear]
) -> None:
    monkeypatch.setitem(KINDS, "scaled", replace(KINDS["scaled"], name="other", build=build))
    monkeypatch.setitem(KINDS, "other", KINDS["scaled"])
    with pytest.raises(CheckpointError, match="cannot be written to a file"):
        rr.build(replace(arch, blocks=tuple(replace(b, kind="other") for b in arch.blocks)))
