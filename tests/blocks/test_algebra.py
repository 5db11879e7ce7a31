"""Every constructor: its normal form is what it computes, by ``==``; gradients; refusals."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.average import avg_pool
from repvgg_ref.blocks.constructors import Bias, Pad, Scale, Slice
from repvgg_ref.blocks.fusion import fuse_exactly
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.run import Reader, Run, evaluate, magnitudes
from repvgg_ref.blocks.selfcheck import Windows, respond
from repvgg_ref.cpu import NUMPY
from repvgg_ref.errors import NotFusibleError, ShapeError
from repvgg_ref.ops import REFERENCE
from tests.blocks.expressions import (
    EPS,
    EXPRESSIONS,
    C,
    conv_bn,
    exact_params,
    float_params,
    fused_by_hand,
    of_magnitudes,
)
from tests.blocks.test_kinds import freeze_borders
from tests.gradcheck import assert_gradients
from tests.ops.exact import assert_exact, rationals

every = pytest.mark.parametrize("name", EXPRESSIONS)


@pytest.mark.few(12)
@every
@pytest.mark.parametrize("seed", [0, 1])
def test_the_normal_form_is_what_the_expression_computes(name: str, seed: int) -> None:
    """In rationals, borders included."""
    linear = EXPRESSIONS[name]()
    params = exact_params(linear, seed)
    x = rationals(np.random.default_rng(seed), 2, C, 5, 6)
    got = fused_by_hand(linear, params, x, EPS)
    assert_exact(got, evaluate(linear, params, x, ops=REFERENCE, eps=EPS))


@every
def test_parts_of_a_form_are_the_whole_forms(name: str) -> None:
    """Some outputs and some inputs at a time, as conversion reads it."""
    linear = EXPRESSIONS[name]()
    read = Reader(exact_params(linear), EPS, exact=True)
    whole = linear.form(read, slice(None))
    kernel, outputs = whole.dense(), len(whole.bias)
    per_group = outputs // whole.groups
    for start in range(outputs):
        rows = slice(start, start + 1)
        part = linear.form(read, rows, slice(0, 1))
        for offset in whole.lattice.offsets():
            assert_exact(part.at(offset), whole.at(offset)[rows, :1])
        assert_exact(part.bias, whole.bias[rows])
    for group in range(whole.groups):
        rows = slice(group * per_group, (group + 1) * per_group)
        assert_exact(linear.form(read, rows).dense(), kernel[rows])


@every
def test_float_forms_err_by_no_more_than_they_say(name: str) -> None:
    linear = EXPRESSIONS[name]()
    params = float_params(linear, seed=3)
    form = linear.form(Reader(params, 1e-5), slice(None))
    exact = linear.form(Reader(params, 1e-5, exact=True), slice(None))
    for got, want, size in (
        (form.dense(), exact.dense(), form.dense(sizes=True)),
        (form.bias, exact.bias, form.bias_size),
    ):
        error = np.array([abs(Fraction(float(g)) - w) for g, w in zip(got.flat, want.flat)])  # noqa: B905 - flat iterators have no length to compare
        bound = form.error * size.ravel() + 1e-300
        assert all(e <= b for e, b in zip(error, bound, strict=True))
    assert (form.dense(sizes=True) >= abs(form.dense()) * (1 - 1e-12)).all()


@every
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_gradients_by_finite_differences(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_borders(monkeypatch)
    linear = EXPRESSIONS[name]()
    params = float_params(linear, seed=5)
    names = [n for n in params if not n.endswith(("running_mean", "running_var"))]
    x = np.random.default_rng(2).standard_normal((2, C, 5, 4))

    def forward(x: Array, *arrays: Array) -> tuple[Array, Any]:
        run = Run(params | dict(zip(names, arrays, strict=True)), REFERENCE, 1e-3, training)
        y, cache = linear.forward(x, run)
        return y, (cache, run)

    def backward(grad_y: Array, kept: Any) -> tuple[Array, ...]:
        cache, run = kept
        grad_x = linear.backward(grad_y, cache, run)
        return grad_x, *(run.grads[name] for name in names)

    assert_gradients(forward, backward, x, *(params[n] for n in names), seed=3)


@every
def test_both_layouts_compute_the_same(name: str) -> None:
    linear = EXPRESSIONS[name]()
    params = float_params(linear, seed=7)
    x = np.random.default_rng(1).standard_normal((3, C, 6, 5))
    for training in (False, True):
        results = []
        for ops in (REFERENCE, NUMPY):
            run = Run(params, ops, 1e-3, training)
            y, cache = linear.forward(ops.enter(x), run)
            grad_x = linear.backward(np.ones_like(y), cache, run)
            results.append([ops.leave(y), ops.leave(grad_x), *run.grads.values()])
        for want, got in zip(*results, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9, equal_nan=False)


@every
def test_magnitudes_are_the_sum_of_the_terms_magnitudes(name: str) -> None:
    linear = EXPRESSIONS[name]()
    params = float_params(linear, seed=9)
    x = np.random.default_rng(1).standard_normal((1, C, 5, 5))
    y = evaluate(linear, params, x, ops=REFERENCE, eps=1e-3)
    size = evaluate(of_magnitudes(linear), magnitudes(params), abs(x), ops=REFERENCE, eps=1e-3)
    assert (size >= abs(y) * (1 - 1e-12)).all()


@every
def test_windows_see_what_an_image_gives_in_its_middle(name: str) -> None:
    """The self check's evaluation is the forward pass, away from the border."""
    linear = EXPRESSIONS[name]()
    params = float_params(linear, seed=11)
    x = np.random.default_rng(4).standard_normal((2, C, 13, 13))
    y = evaluate(linear, params, x, ops=REFERENCE, eps=1e-3)
    form = linear.form(Reader(params, 1e-3), slice(None))
    at = 3  # an output whose window lies inside the image
    centre = at * form.stride[0]
    windows = Windows(x.transpose(1, 2, 3, 0), abs(x).transpose(1, 2, 3, 0), (-centre, -centre))
    seen = respond(linear, Reader(params, 1e-3), slice(0, len(form.bias)), windows, (0, 0))
    np.testing.assert_allclose(seen.value, y[:, :, at, at].T, rtol=1e-9, atol=1e-9)
    assert (seen.size >= abs(seen.value) * (1 - 1e-12)).all()


def form_of(linear: Any) -> Any:
    return linear.form(Reader(float_params(linear), 1e-5), slice(None))


def test_zeros_around_a_bias_are_refused_with_the_size_of_the_error() -> None:
    """Rule 8: the border law."""
    point = Chain(Conv("a", C, C, (1, 1)), Norm("n", C))
    linear = Chain(*point.parts, Conv("b", C, C, (3, 3), padding=(1, 1)))
    with pytest.raises(NotFusibleError, match=r"an error of [0-9.]+ at a corner"):
        form_of(linear)


def test_a_padded_convolution_behind_a_wide_one_is_refused() -> None:
    wide = Conv("a", C, C, (3, 3), padding=(1, 1))
    with pytest.raises(NotFusibleError, match="not pointwise"):
        form_of(Chain(wide, Conv("b", C, C, (3, 3), padding=(1, 1))))


def test_what_the_border_law_allows_is_composed() -> None:
    without_bias = Chain(Conv("a", C, C, (1, 1)), Conv("b", C, C, (3, 3), padding=(1, 1)))
    assert form_of(without_bias).lattice.size == (3, 3)
    inside = Chain(Conv("a", C, C, (3, 3), padding=(1, 1)), Conv("b", C, C, (3, 3)))
    assert form_of(inside).lattice.size == (5, 5)


def test_an_average_that_does_not_count_its_padding_is_refused() -> None:
    with pytest.raises(NotFusibleError, match="does not count its padding"):
        avg_pool(C, (3, 3), (1, 1), (1, 1), padding_counted=False)
    avg_pool(C, (3, 3), (1, 1), (0, 0), padding_counted=False)


def test_a_norm_after_a_pad_is_part_of_no_convolution() -> None:
    """A border of another value than the pointwise bias would be wrong; only its own norm fits."""
    norm, wide = Norm("n", C), Conv("b", C, C, (3, 3))
    point = Conv("a", C, C, (1, 1))
    assert form_of(Chain(point, norm, Pad((1, 1), norm), wide)).lattice.size == (3, 3)
    for before in (
        (point, norm, Bias("v", (C,))),
        (point, Norm("m", C), norm),
        (replace(point, bias=True), norm),
    ):
        with pytest.raises(NotFusibleError, match=r"an error of [0-9.]+ at a corner"):
            form_of(Chain(*before, Pad((1, 1), norm), wide))


@pytest.mark.parametrize("width", [(0, 0), (1, 0), (1, 1)])
def test_zeros_beyond_a_border_are_refused_where_the_border_is_not_zero(width: Any) -> None:
    """A padded convolution behind the border reads both: the fill, then zeros."""
    point, norm = Conv("a", C, C, (1, 1)), Norm("n", C)
    for last in (
        Conv("b", C, C, (3, 3), padding=(0, 1)),
        Conv("b", C, C, (3, 3), padding=(1, 1)),
        avg_pool(C, (3, 3), (1, 1), (1, 1)),
    ):
        with pytest.raises(NotFusibleError, match=r"an error of [0-9.]+ at a corner"):
            form_of(Chain(point, norm, Pad(width, norm), last))


def test_a_strided_pointwise_convolution_before_a_padded_one_says_its_stride() -> None:
    with pytest.raises(NotFusibleError, match=r"stride \(2, 2\): an error of [0-9.]+ a unit"):
        form_of(Chain(Conv("a", C, C, (1, 1), (2, 2)), Conv("b", C, C, (3, 3), padding=(1, 1))))


def test_what_cannot_be_put_together_is_refused_when_it_is_put_together() -> None:
    point, norm = Conv("a", C, C, (1, 1)), Norm("n", C)
    for wrong in (
        lambda: Chain(),
        lambda: Sum(),
        lambda: Chain(norm, point),
        lambda: Chain(point, norm, Pad((1, 1), norm)),
        lambda: Chain(point, norm, Pad((1, 1), norm), Scale("s", (C,)), point),
        lambda: Chain(point, Conv("b", C + 1, C, (1, 1))),
        lambda: Sum(point, norm),
        lambda: Identity("i", 4, groups=3),
        lambda: Conv("a", 4, 6, groups=4),
        lambda: Slice(4, 3, 6),
        lambda: Slice(4, -2, 2),
    ):
        with pytest.raises(ShapeError):
            wrong()
    with pytest.raises(NotFusibleError, match="out_channels differs"):
        Sum(point, Conv("b", C, 1, (1, 1)))


def test_what_has_no_arrays_is_exact_if_eps_is() -> None:
    for linear, tap in ((avg_pool(C, (3, 3), (1, 1), (1, 1)), Fraction(1, 9)), (Slice(C, 1, 3), 1)):
        weight, bias = fuse_exactly(linear, {}, Fraction(1, 1000))
        assert weight.dtype == bias.dtype == object
        assert weight.max() == tap


def test_terms_of_different_sizes_are_refused() -> None:
    """Their sum would be right in the interior of no image at all."""
    valid, same = Conv("a", C, C, (3, 3)), Conv("b", C, C, (1, 1))
    with pytest.raises(NotFusibleError, match="growth differs"):
        form_of(Sum(valid, same))
    with pytest.raises(NotFusibleError, match="stride differs"):
        form_of(Sum(same, Conv("c", C, C, (1, 1), (2, 2))))
    behind_a_stride = Chain(Conv("d", C, C, (1, 1), (2, 2)), Conv("e", C, C, (3, 3)))
    five = Conv("f", C, C, (5, 5), (2, 2))
    assert behind_a_stride.growth == five.growth == (-4, -4)
    form_of(Sum(behind_a_stride, five))


def test_an_array_that_is_used_twice_gets_both_gradients() -> None:
    shared = Conv("w", C, C, (1, 1))
    linear = Sum(shared, shared)
    params = float_params(linear)
    x = np.random.default_rng(0).standard_normal((1, C, 3, 3))

    def forward(x: Array, w: Array) -> tuple[Array, Any]:
        run = Run({"w.weight": w}, REFERENCE, 0, False)
        y, cache = linear.forward(x, run)
        return y, (cache, run)

    def backward(grad_y: Array, kept: Any) -> tuple[Array, ...]:
        cache, run = kept
        return linear.backward(grad_y, cache, run), run.grads["w.weight"]

    assert_gradients(forward, backward, x, params["w.weight"], seed=1)


def test_one_number_may_have_no_axis() -> None:
    linear = Chain(Conv("k", C, C, (1, 1)), Scale("alpha", ()))
    params = exact_params(linear) | {"alpha": np.array(Fraction(2, 3), dtype=object)}
    x = rationals(np.random.default_rng(0), 1, C, 2, 3)
    got = fused_by_hand(linear, params, x, EPS)
    assert_exact(got, evaluate(linear, params, x, ops=REFERENCE, eps=EPS))


def test_an_identity_is_a_sum_of_one() -> None:
    x = rationals(np.random.default_rng(0), 1, C, 2, 3)
    assert_exact(evaluate(Sum(Identity("i", C)), {}, x, ops=REFERENCE, eps=0), x)
    assert conv_bn("k", (3, 3)).out_channels == C
