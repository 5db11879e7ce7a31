"""Whole expressions in training by the fast passes: what the operators one by one give."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import KINDS, expression
from repvgg_ref.blocks.constructors import Relu
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.run import Linear, Run
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.training import passes
from repvgg_ref.cpu.training.expression import recognise
from repvgg_ref.errors import ReportedError
from repvgg_ref.ops import REFERENCE
from tests.blocks.expressions import EXPRESSIONS, float_params
from tests.examples import examples

# Factors, channels cut apart, a bias; relatives that no network is trained of here.
DECLINED = {"scaled", "side by side", "strided chain"}
DECLINED |= {"mixed", "online", "online, two groups", "bordered", "one-sided", "cut to size"}


def assert_is_the_operators(linear: Linear, x: Array, params: dict[str, Array]) -> None:
    """Output, statistics and every gradient, in float64; `x` is NCHW."""
    run = Run(params, REFERENCE, 1e-5, training=True)
    y, cache = linear.forward(x, run)
    grad = np.random.default_rng(3).standard_normal(y.shape)
    grad_x = linear.backward(grad, cache, run)
    fast = recognise(linear)
    assert fast is not None
    held = fast.forward(nhwc(x), params, eps=1e-5, momentum=0.1, relu=False)
    ours_x, ours = fast.backward(nhwc(grad), held.cache)
    alone = fast.parameter_grads(nhwc(grad), held.cache)
    assert_near(held.y.transpose(0, 3, 1, 2), y)
    assert_near(ours_x.transpose(0, 3, 1, 2), grad_x)
    assert ours.keys() == alone.keys() == run.grads.keys()
    for name, array in run.grads.items():
        size = max(float(np.abs(g).max()) for g in run.grads.values())
        for mine in (ours[name], alone[name]):
            assert mine.shape == array.shape
            assert not np.abs(mine - array).max() > 1e-9 * size, name
    assert held.stats.keys() == run.stats.keys()
    for name, seen in run.stats.items():
        assert_near(held.stats[name].mean, seen.mean)
        assert_near(held.stats[name].var, seen.var)
        assert held.stats[name].pixels == seen.pixels
    rectified = fast.forward(nhwc(x), params, eps=1e-5, momentum=0.1, relu=True)
    assert_near(rectified.y, np.maximum(held.y, 0))
    through, _ = fast.backward(nhwc(grad), rectified.cache)
    masked, _ = fast.backward(nhwc(grad) * (held.y > 0), held.cache)
    assert_near(through, masked)


def nhwc(x: Array) -> Array:
    found = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    found.flags.writeable = False
    return found


def assert_near(got: Any, wanted: Array) -> None:
    assert got.shape == wanted.shape
    assert not np.abs(got - wanted).max() > 1e-9 * max(1e-3, float(np.abs(wanted).max()))


def images(channels: int, size: tuple[int, int] = (7, 6)) -> Array:
    return np.random.default_rng(1).standard_normal((3, channels, *size))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression_is_computed_or_declined(name: str) -> None:
    linear = EXPRESSIONS[name]()
    if name in DECLINED:
        assert NUMPY.recognise_block(linear) is None
    else:
        assert_is_the_operators(linear, images(linear.in_channels), float_params(linear))


@st.composite
def specs(draw: st.DrawFn) -> BlockSpec:
    groups = draw(st.integers(1, 2))
    entry, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 9))
    return BlockSpec(
        "block",
        entry,
        entry if draw(st.booleans()) else out,
        draw(st.integers(1, 2)),
        groups,
        dilation=draw(st.integers(1, 2)),
        kind=draw(st.sampled_from([name for name, kind in KINDS.items() if kind.keys])),
        kernel=draw(st.sampled_from([3, 5])),
        copies=draw(st.integers(1, 2)),
    )


@examples(60)
@given(spec=specs(), pixels=st.sampled_from([1, 20, 1000]))
def test_any_block_is_the_operators_one_by_one(spec: BlockSpec, pixels: int) -> None:
    try:
        linear = expression(spec)
    except ReportedError:  # a diverse block's branches are of one size only where d is 1
        return
    with mock.patch.multiple(passes, PIECE_PIXELS=pixels, PIECE_NUMBERS=1):
        assert_is_the_operators(linear, images(spec.in_channels, (9, 8)), float_params(linear))


def test_steps_within_steps() -> None:
    """A ReLU between two convolutions, a sum of sums, a norm on a norm, and one on a mixture."""
    inner = Chain(Conv("a", 4, 6, (1, 1)), Norm("a.bn", 6), Relu(), Conv("b", 6, 4, (1, 1)))
    mixture = Sum(Chain(Conv("c", 4, 4, (1, 3), padding=(0, 1)), Norm("c.bn", 4)), inner)
    twice = Chain(mixture, Norm("d.bn", 4), Norm("e.bn", 4), Relu())
    linear = Sum(twice, Identity("i", 4), Sum(Identity("j", 4), Conv("f", 4, 4, (1, 1))))
    assert_is_the_operators(linear, images(4), float_params(linear))
