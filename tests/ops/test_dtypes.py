"""Every operator: dtype in = dtype out, inputs untouched, float16 rounded once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.ops import REFERENCE as R
from tests.ops.exact import assert_within, floats, rationals

CONV = {"stride": (2, 1), "padding": 1, "dilation": 1, "groups": 2}
DTYPES = [np.float16, np.float32, np.float64, np.longdouble, object]
Fill = Callable[..., Array]


def conv2d(fill: Fill) -> list[Array]:
    y, cache = R.conv2d_forward(fill(2, 4, 5, 3), fill(6, 2, 3, 3), fill(6), **CONV)  # type: ignore[arg-type]
    return [y, *R.conv2d_backward(y, cache)]  # type: ignore[list-item]


def batch_norm_eval(fill: Fill) -> list[Array]:
    mean = fill(4)
    var = mean * 0 + 3  # 3 + 1 is a square
    y, cache = R.batch_norm_eval_forward(
        fill(2, 4, 5, 3), fill(4), fill(4), mean, var, eps=Fraction(1) if var.dtype == object else 1
    )
    return [y, *R.batch_norm_eval_backward(y, cache)]


def batch_norm_train(fill: Fill) -> list[Array]:
    x = fill(2, 3, 2, 3)
    exact = x.dtype == object
    if exact:  # two values, -3 and 3: the variance is 9, and 9 + 16 a square
        x = np.resize(np.array([Fraction(3), -3], dtype=object), x.shape)
    y, cache = R.batch_norm_train_forward(x, fill(3), fill(3), eps=16)
    running = R.update_running_stats(
        fill(3), fill(3), cache.mean, cache.var, momentum=0.5, count=12
    )
    return [y, *R.batch_norm_train_backward(y, cache), *running]


def relu(fill: Fill) -> list[Array]:
    y, cache = R.relu_forward(fill(3, 4))
    return [y, R.relu_backward(y, cache)]


def linear(fill: Fill) -> list[Array]:
    y, cache = R.linear_forward(fill(3, 4), fill(5, 4), fill(5))
    return [y, *R.linear_backward(y, cache)]


def global_avg_pool(fill: Fill) -> list[Array]:
    y, cache = R.global_avg_pool_forward(fill(2, 3, 4, 5))
    return [y, R.global_avg_pool_backward(y, cache)]


def squeeze_excitation(fill: Fill) -> list[Array]:
    y, cache = R.squeeze_excitation_forward(
        fill(2, 4, 3, 5), fill(2, 4, 1, 1), fill(2), fill(4, 2, 1, 1), fill(4)
    )
    return [y, *R.squeeze_excitation_backward(y, cache)]


def softmax_cross_entropy(fill: Fill) -> list[Array]:
    loss, cache = R.softmax_cross_entropy_forward(
        fill(3, 4), np.array([0, 3, 1]), label_smoothing=0.1
    )
    return [loss, R.softmax_cross_entropy_backward(cache)]


def conv_bias_relu(fill: Fill) -> list[Array]:
    return [R.conv_bias_relu_forward(fill(2, 4, 5, 3), fill(6, 2, 3, 3), fill(6), **CONV)]  # type: ignore[arg-type]


RATIONAL = [
    conv2d,
    batch_norm_eval,
    batch_norm_train,
    relu,
    linear,
    global_avg_pool,
    conv_bias_relu,
]
OPERATORS = [*RATIONAL, squeeze_excitation, softmax_cross_entropy]


def filler(dtype: Any) -> Fill:
    """Fill read-only arrays with the same values in every floating dtype: those of float16."""
    rng = np.random.default_rng(0)
    if dtype is object:
        return lambda *shape: rationals(rng, *shape)

    def fill(*shape: int) -> Array:
        x = floats(rng, *shape, dtype=np.float16).astype(dtype)
        x.flags.writeable = False
        return x

    return fill


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        (operator, dtype)
        for operator in OPERATORS
        for dtype in DTYPES
        if operator in RATIONAL or dtype is not object  # the rest are irrational, hence refused
    ],
)
def test_dtype_in_is_dtype_out(operator: Callable[[Fill], list[Array]], dtype: Any) -> None:
    """The inputs are read-only: an operator that writes to one raises here."""
    results = operator(filler(dtype))
    assert [result.dtype for result in results] == [np.dtype(dtype)] * len(results)


@pytest.mark.parametrize("operator", RATIONAL)
def test_rationals_stay_rational(operator: Callable[[Fill], list[Array]]) -> None:
    elements = [value for result in operator(filler(object)) for value in result.flat]
    assert {type(value) for value in elements} <= {Fraction, int}


@pytest.mark.parametrize("operator", OPERATORS)
def test_float16_is_float32_rounded_once(operator: Callable[[Fill], list[Array]]) -> None:
    half, single = operator(filler(np.float16))[0], operator(filler(np.float32))[0]
    assert (half == single.astype(np.float16)).all()


def test_float16_sums_do_not_stall_at_2048() -> None:
    """In float16, 2048 + 1 = 2048."""
    ones = np.ones((1, 1, 64, 64), np.float16)
    y, cache = R.conv2d_forward(
        ones, np.ones((1, 1, 1, 1), np.float16), None, stride=1, padding=0, dilation=1, groups=1
    )
    assert R.conv2d_backward(y, cache).grad_weight == 4096
    assert R.global_avg_pool_forward(ones)[0] == 1


@pytest.mark.parametrize("operator", OPERATORS)
def test_float64_is_within_rounding_of_longdouble(operator: Callable[[Fill], list[Array]]) -> None:
    for double, long in zip(
        operator(filler(np.float64)), operator(filler(np.longdouble)), strict=True
    ):
        assert_within(double, long, 1e-14)
