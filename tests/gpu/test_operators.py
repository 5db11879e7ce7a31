"""Every operator of the table against the reference, forward and backward.

Convolutions are held to a derived bound. With `u` the unit roundoff of what arrays are stored in,
`S` the same convolution of magnitudes and `n` the terms of one sum: sums in float32 lose at most
``(n + 2) u32 S`` (Higham, Accuracy and Stability, section 3.1), and each of at most four roundings
of stored numbers (operands of a partial product, the product, the sum, the result) ``u S`` more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gpu.conftest import UnderTest
from tests.ops.cases import CONV_EXAMPLES, ConvCase, ImageCase, conv_cases, image_cases
from tests.ops.exact import assert_within, floats

UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}

drawn = settings(max_examples=25, deadline=None)


def table(math: Any) -> Ops:
    from repvgg_ref.gpu import cupy_ops

    return cupy_ops(math)


def nhwc(ops: Ops, x: Array) -> Array:
    return ops.from_host(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))


def nchw(y: Array) -> Array:
    return to_numpy(y).astype(np.float64).transpose(0, 3, 1, 2)


def stored(x: Array, math: str) -> Array:
    """`x` rounded to what `math` stores, in float64: so that both sides start alike."""
    from repvgg_ref.gpu.math_mode import activation_dtype

    rounded: Array = x.astype(activation_dtype(math)).astype(np.float64)  # type: ignore[arg-type]
    return rounded


def assert_bounded(got: Array, wanted: Array, magnitudes: Array, terms: int, unit: float) -> None:
    bound = ((terms + 2) * 2.0**-24 * (unit > 2.0**-53) + (terms + 4) * 2.0**-53) * magnitudes
    bound += 4 * unit * magnitudes
    excess = np.abs(got - wanted) - bound
    assert got.shape == wanted.shape
    assert np.all(excess <= 0), f"beyond the bound by {excess.max()}"


def hold_convolution(case: ConvCase, math: str, dtype: str) -> None:
    """Forward with and without ReLU, and all gradients."""
    ops, unit = table(math), UNITS[dtype]
    x, weight, bias = case.arrays(floats)
    if dtype != "float64":
        x, weight, bias = (stored(each, math) for each in (x, weight, bias))
    given_dtype = np.float64 if dtype == "float64" else np.float32
    x_in, weight_in, bias_in = (each.astype(given_dtype) for each in (x, weight, bias))
    y, cache = ops.conv2d_forward(
        nhwc(ops, x_in), ops.from_host(weight_in), ops.from_host(bias_in), **case.settings
    )
    assert y.dtype.name == dtype
    exact, exact_cache = REFERENCE.conv2d_forward(x, weight, bias, **case.settings)
    size, size_cache = REFERENCE.conv2d_forward(
        *(abs(each) for each in (x, weight, bias)), **case.settings
    )
    window = weight[0].size
    assert_bounded(nchw(y), exact, size, window + 1, unit)
    fused = ops.conv_bias_relu_forward(
        nhwc(ops, x_in), ops.from_host(weight_in), ops.from_host(bias_in), **case.settings
    )
    assert_bounded(nchw(fused), np.maximum(exact, 0), size, window + 1, unit)
    grad_y = floats(np.random.default_rng(case.seed), *exact.shape)
    grad_y = grad_y if dtype == "float64" else stored(grad_y, math)
    grads = ops.conv2d_backward(nhwc(ops, grad_y.astype(given_dtype)), cache)
    wanted = REFERENCE.conv2d_backward(grad_y, exact_cache)
    sizes = REFERENCE.conv2d_backward(abs(grad_y), size_cache)
    taps = weight.shape[0] // case.groups * weight.shape[2] * weight.shape[3]
    assert_bounded(nchw(grads.grad_x), wanted.grad_x, sizes.grad_x, taps, unit)
    pixels = grad_y[:, 0].size
    got = to_numpy(grads.grad_weight).astype(np.float64)
    assert grads.grad_weight.dtype == given_dtype
    assert_bounded(got, wanted.grad_weight, sizes.grad_weight, pixels, unit)
    assert grads.grad_bias is not None
    assert wanted.grad_bias is not None
    assert sizes.grad_bias is not None
    got = to_numpy(grads.grad_bias).astype(np.float64)
    assert_bounded(got, wanted.grad_bias, sizes.grad_bias, pixels, 2.0**-24)


@drawn
@given(case=conv_cases)
def test_convolution_in_float64(case: ConvCase, device: UnderTest) -> None:
    hold_convolution(case, "fp32", "float64")


@drawn
@given(case=conv_cases)
def test_convolution_in_float32(case: ConvCase, device: UnderTest) -> None:
    hold_convolution(case, "fp32", "float32")


@pytest.mark.parametrize("math", ["fp16", "bf16"])
@pytest.mark.parametrize("case", CONV_EXAMPLES)
def test_convolution_in_sixteen_bits(case: ConvCase, math: str, device: UnderTest) -> None:
    hold_convolution(case, math, DTYPES[math])


def test_large_batches_go_through_in_chunks(
    device: UnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repvgg_ref.gpu import gemm_conv

    monkeypatch.setattr(gemm_conv, "COLUMN_BYTES", 1)  # one image at a time
    hold_convolution(ConvCase(images=3, groups=2, seed=5), "fp32", "float64")


IMAGE_OPERATORS: dict[str, Callable[[ImageCase], tuple[tuple[int, ...], ...]]] = {
    "batch_norm_train": lambda case: ((case.channels,),) * 2,
    "batch_norm_eval": lambda case: ((case.channels,),) * 4,
    "relu": lambda case: (),
    "global_avg_pool": lambda case: (),
    "squeeze_excitation": lambda case: (
        (case.classes, case.channels, 1, 1),
        (case.classes,),
        (case.channels, case.classes, 1, 1),
        (case.channels,),
    ),
}


@drawn
@given(case=image_cases)
@pytest.mark.parametrize("operator", IMAGE_OPERATORS)
def test_operators_of_images(operator: str, case: ImageCase, device: UnderTest) -> None:
    ops = table("fp32")
    x, *rest = case.floats(case.shape, *IMAGE_OPERATORS[operator](case))
    if operator == "batch_norm_eval":
        rest[-1] = np.abs(rest[-1])
    options = {"eps": 1e-3} if "norm" in operator else {}
    forward, backward = f"{operator}_forward", f"{operator}_backward"
    wanted, their_cache = getattr(REFERENCE, forward)(x, *rest, **options)
    got, cache = getattr(ops, forward)(nhwc(ops, x), *map(ops.from_host, rest), **options)
    assert_within(nchw(got) if got.ndim == 4 else to_numpy(got), wanted, 1e-9)
    if operator == "batch_norm_train":
        assert_within(to_numpy(cache.mean), their_cache.mean, 1e-9)
        assert_within(to_numpy(cache.var), their_cache.var, 1e-9)
    grad_y = floats(np.random.default_rng(case.seed), *wanted.shape)
    grad_in = nhwc(ops, grad_y) if grad_y.ndim == 4 else ops.from_host(grad_y)
    theirs = getattr(REFERENCE, backward)(grad_y, their_cache)
    mine = getattr(ops, backward)(grad_in, cache)
    theirs, mine = (found if isinstance(found, tuple) else (found,) for found in (theirs, mine))
    assert len(mine) == len(theirs)
    for number, (ours, exact) in enumerate(zip(mine, theirs, strict=True)):
        assert_within(nchw(ours) if number == 0 else to_numpy(ours), exact, 1e-7)


POOLS = [(1, 1, 0), (2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 1, 1), (2, 3, 0)]


@pytest.mark.few
@pytest.mark.parametrize(("kernel", "stride", "padding"), POOLS)
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_max_pooling(kernel: int, stride: int, padding: int, dtype: str, device: UnderTest) -> None:
    """Nothing is rounded on the way forward; gradients are added in what they are stored in."""
    from repvgg_ref.gpu.math_mode import activation_dtype, math_of

    ops, rng = table("fp32"), np.random.default_rng(kernel)
    dtype_in = activation_dtype(math_of(dtype))
    settings = {"kernel": kernel, "stride": stride, "padding": padding}
    # all negative, so that padding must not win, and with equals, of which the first wins
    x = (np.round(rng.normal(size=(2, 3, 7, 8)), 1) - 9).astype(dtype_in)
    x[0, 0, 3, 3] = np.nan
    wanted, their_cache = REFERENCE.max_pool_forward(x.astype(np.float64), **settings)
    got, cache = ops.max_pool_forward(nhwc(ops, x), **settings)
    assert got.dtype == dtype_in
    np.testing.assert_array_equal(nchw(got), wanted)
    grad_y = rng.integers(-4, 5, wanted.shape).astype(np.float64)  # sums of these are exact
    exact = REFERENCE.max_pool_backward(grad_y, their_cache)
    grad_x = ops.max_pool_backward(nhwc(ops, grad_y.astype(dtype_in)), cache)
    assert grad_x.dtype == dtype_in
    np.testing.assert_array_equal(nchw(grad_x), exact)


@pytest.mark.parametrize("math", DTYPES)
def test_gradients_are_stored_as_activations_are(math: str, device: UnderTest) -> None:
    from repvgg_ref.gpu.math_mode import activation_dtype

    ops = table("fp32")
    x = nhwc(ops, np.ones((1, 2, 3, 4), activation_dtype(math)))  # type: ignore[arg-type]
    assert ops.relu_backward(x, ops.relu_forward(x)[1]).dtype == x.dtype


def test_nan_is_never_rectified_away(device: UnderTest) -> None:
    ops = table("fp32")
    y, cache = ops.relu_forward(ops.from_host(np.array([-1.0, np.nan, 2.0], np.float32)))
    grad = ops.relu_backward(ops.from_host(np.ones(3, np.float32)), cache)
    np.testing.assert_array_equal(to_numpy(y), [0, np.nan, 2])
    np.testing.assert_array_equal(to_numpy(grad), [0, 1, 1])


@drawn
@given(case=image_cases)
def test_the_head_of_the_network(case: ImageCase, device: UnderTest) -> None:
    ops = table("fp32")
    x, weight, bias = case.floats(
        (case.images, case.channels), (case.classes, case.channels), (case.classes,)
    )
    wanted, their_cache = REFERENCE.linear_forward(x, weight, bias)
    got, cache = ops.linear_forward(*map(ops.from_host, (x, weight, bias)))
    assert_within(to_numpy(got), wanted, 1e-12)
    grad_y = floats(np.random.default_rng(case.seed), *wanted.shape)
    theirs = REFERENCE.linear_backward(grad_y, their_cache)
    mine = ops.linear_backward(ops.from_host(grad_y), cache)
    for ours, exact in zip(mine, theirs, strict=True):
        assert_within(to_numpy(ours), exact, 1e-12)
    labels = np.random.default_rng(case.seed).integers(0, case.classes, case.images)
    soft = np.abs(x @ np.ones((case.channels, case.classes)))
    for targets in (labels, labels.astype(np.int32), soft):
        loss, their_loss = REFERENCE.softmax_cross_entropy_forward(
            wanted, targets, label_smoothing=0.1
        )
        value, cache = ops.softmax_cross_entropy_forward(
            got, ops.from_host(targets), label_smoothing=0.1
        )
        assert_within(to_numpy(value), np.asarray(loss), 1e-10)
        exact = REFERENCE.softmax_cross_entropy_backward(their_loss)
        assert_within(to_numpy(ops.softmax_cross_entropy_backward(cache)), exact, 1e-10)


def test_running_statistics(device: UnderTest) -> None:
    ops, rng = table("fp32"), np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 2, 5) for _ in range(4)]
    options: dict[str, Any] = {"momentum": 0.3, "count": 12}
    wanted = REFERENCE.update_running_stats(*arrays, **options)
    got = ops.update_running_stats(*map(ops.from_host, arrays), **options)
    for ours, exact in zip(got, wanted, strict=True):
        assert_within(to_numpy(ours), exact, 1e-14)
    with pytest.raises(ShapeError, match="count"):
        ops.update_running_stats(*map(ops.from_host, arrays), momentum=0.3, count=1)


def test_wrong_labels_are_named_on_the_host_and_nan_on_the_device(device: UnderTest) -> None:
    ops = table("fp32")
    logits = ops.from_host(np.zeros((3, 4), np.float32))
    labels = np.array([0, 4, 1])
    with pytest.raises(ReportedError, match=r"labels\[1\] \(=4\) is not in 0 ... 3"):
        ops.softmax_cross_entropy_forward(logits, labels, label_smoothing=0.0)
    loss, cache = ops.softmax_cross_entropy_forward(
        logits, ops.from_host(labels), label_smoothing=0.0
    )
    assert np.isnan(to_numpy(loss))
    assert to_numpy(cache.bad_label) == 1


def test_wrong_shapes_are_refused_as_by_the_reference(device: UnderTest) -> None:
    ops = table("fp32")

    def zeros(*shape: int) -> Array:
        return ops.from_host(np.zeros(shape, np.float32))

    plain: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    with pytest.raises(ShapeError, match=r"weight\.shape"):
        ops.conv2d_forward(zeros(1, 4, 4, 3), zeros(2, 2, 3, 3), None, **plain)
    with pytest.raises(ShapeError, match="no output pixel"):
        ops.conv2d_forward(zeros(1, 1, 1, 3), zeros(2, 3, 3, 3), None, **plain | {"padding": 0})
    with pytest.raises(ShapeError, match="stride"):
        ops.conv2d_forward(zeros(1, 4, 4, 3), zeros(2, 3, 3, 3), None, **plain | {"stride": 0})
    with pytest.raises(ShapeError, match=r"gamma\.shape"):
        ops.batch_norm_train_forward(zeros(1, 4, 4, 3), zeros(2), zeros(3), eps=1e-5)
    with pytest.raises(ShapeError, match="max_pool"):
        ops.max_pool_forward(zeros(1, 2, 2, 3), kernel=3, stride=1, padding=0)
    with pytest.raises(ShapeError, match=r"max_pool.*x\.ndim"):
        ops.max_pool_forward(zeros(2, 2), kernel=1, stride=1, padding=0)
    with pytest.raises(ShapeError, match="features"):
        ops.linear_forward(zeros(2, 3), zeros(4, 2), zeros(4))


def test_strict_float32_refuses_what_rounds_operands(device: UnderTest) -> None:
    if not device.has_cudnn:
        pytest.skip("no cuDNN")
    from repvgg_ref.gpu.cudnn_conv import refused_notes

    notes: Any = sys.modules["cudnn"].numerical_note
    strict = refused_notes("fp32", deterministic=False)
    assert {notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS, notes.WINOGRAD} <= set(strict)
    assert notes.TENSOR_CORE not in refused_notes("tf32", deterministic=False)
    assert notes.NONDETERMINISTIC in refused_notes("bf16", deterministic=True)
    assert notes.NONDETERMINISTIC not in refused_notes("bf16", deterministic=False)


def test_a_product_leaves_the_choice_of_tf32_as_it_was(device: UnderTest) -> None:
    from repvgg_ref.gpu.products import matmul

    choice = device.cupy._core._routines_linalg
    before, ones = choice.get_compute_type(np.float32), device.cupy.ones((4, 4), np.float32)
    matmul(ones, ones, math="tf32")
    assert choice.get_compute_type(np.float32) == before
