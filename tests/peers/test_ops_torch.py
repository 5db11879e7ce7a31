"""Every operator, forward and backward, against torch: float64 to 1e-12, float32 to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.ops import REFERENCE as R
from tests.ops.cases import ConvCase, ImageCase, conv_cases, image_cases
from tests.ops.exact import floats

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = pytest.mark.peers
drawn = settings(max_examples=40, deadline=None)
# Two values per channel normalise to -1 and 1, whatever they were: all gradients cancel.
batches = image_cases.filter(lambda case: case.images * case.height * case.width > 5)
precisions = st.sampled_from([(np.float64, 1e-12), (np.float32, 2e-5)])
Precision = tuple[Any, float]
EPS = 1e-3


def assert_close(got: Array | None, wanted: Any, tolerance: float, terms: float = 0.0) -> None:
    """Same dtype; off by at most `tolerance` of the largest element, or of `terms` if larger.

    `terms` is the size of what is subtracted where a result can cancel to almost nothing.
    """
    assert got is not None
    wanted = wanted.detach().numpy()
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max(initial=0)
    bound = tolerance * max(terms, np.abs(wanted).max(initial=0))
    if not (error <= bound):  # NaN must fail
        raise AssertionError(f"off by {error}, allowed {bound}")


def compare(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[[Array, Any], Any],
    peer: Callable[..., Any],
    *inputs: Array,
    tolerance: float,
    terms: float = 0.0,
) -> None:
    """`y` and the gradient by each of `inputs`, for a random ``grad_y``."""
    y, cache = forward(*inputs)
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    peer_y = peer(*tensors)
    assert_close(y, peer_y, tolerance, terms)
    grad_y = floats(np.random.default_rng([0, 1]), *y.shape, dtype=y.dtype)
    grads = backward(grad_y, cache)
    peer_y.backward(torch.tensor(grad_y))
    for grad, tensor in zip(grads if isinstance(grads, tuple) else (grads,), tensors, strict=True):
        assert_close(grad, tensor.grad, tolerance, terms)


@drawn
@given(case=conv_cases, precision=precisions)
def test_conv2d(case: ConvCase, precision: Precision) -> None:
    dtype, tolerance = precision
    compare(
        lambda x, weight, bias: R.conv2d_forward(x, weight, bias, **case.settings),
        R.conv2d_backward,
        lambda x, weight, bias: F.conv2d(x, weight, bias, **case.settings),
        *(array.astype(dtype) for array in case.arrays(floats)),
        tolerance=tolerance,
    )


@drawn
@given(case=batches, precision=precisions)
def test_batch_norm_in_training(case: ImageCase, precision: Precision) -> None:
    dtype, tolerance = precision
    C = (case.channels,)
    arrays = [x.astype(dtype) for x in case.floats(case.shape, C, C)]
    compare(
        lambda *arrays: R.batch_norm_train_forward(*arrays, eps=EPS),
        R.batch_norm_train_backward,
        lambda x, gamma, beta: F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS),
        *arrays,
        tolerance=tolerance,
    )


@drawn
@given(case=batches, precision=precisions, momentum=st.sampled_from([0.1, 0.01, 1.0]))
def test_running_statistics(case: ImageCase, precision: Precision, momentum: float) -> None:
    """Three steps of torch's own layer."""
    dtype, tolerance = precision
    layer = torch.nn.BatchNorm2d(case.channels, eps=EPS, momentum=momentum)
    layer = layer.to(torch.tensor(np.zeros(0, dtype)).dtype)
    mean, var = np.zeros(case.channels, dtype), np.ones(case.channels, dtype)
    for centred in case.floats(*[case.shape] * 3):
        x = (centred + case.scale).astype(dtype)
        layer(torch.tensor(x))
        _, cache = R.batch_norm_train_forward(x, var, mean, eps=EPS)
        count = x.size // case.channels
        mean, var = R.update_running_stats(
            mean, var, cache.mean, cache.var, momentum=momentum, count=count
        )
    assert_close(mean, layer.running_mean, tolerance)
    assert_close(var, layer.running_var, tolerance)


@drawn
@given(case=image_cases, precision=precisions)
def test_batch_norm_in_evaluation(case: ImageCase, precision: Precision) -> None:
    dtype, tolerance = precision
    C = (case.channels,)
    x, gamma, beta, mean, root = (a.astype(dtype) for a in case.floats(case.shape, C, C, C, C))
    var = root * root
    on_channels = (slice(None), None, None)
    x_hat = (x - mean[on_channels]) / np.sqrt(var[on_channels] + EPS)
    compare(
        lambda x, gamma, beta: R.batch_norm_eval_forward(x, gamma, beta, mean, var, eps=EPS),
        R.batch_norm_eval_backward,
        lambda x, gamma, beta: F.batch_norm(
            x, torch.tensor(mean), torch.tensor(var), gamma, beta, training=False, eps=EPS
        ),
        *(x, gamma, beta),
        tolerance=tolerance,
        terms=float(np.abs(x_hat).max()),  # which are summed up to gamma's gradient
    )


@drawn
@given(case=image_cases, precision=precisions)
def test_relu(case: ImageCase, precision: Precision) -> None:
    dtype, _ = precision
    x = np.maximum(case.floats(case.shape)[0].astype(dtype), -1)  # ties at -1; a zero below
    x[0, 0, 0, 0] = 0
    compare(R.relu_forward, R.relu_backward, F.relu, x, tolerance=0)


@drawn
@given(case=image_cases, precision=precisions)
def test_global_avg_pool(case: ImageCase, precision: Precision) -> None:
    dtype, tolerance = precision
    (x,) = (a.astype(dtype) for a in case.floats(case.shape))
    compare(
        R.global_avg_pool_forward,
        R.global_avg_pool_backward,
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        x,
        tolerance=tolerance,
        terms=case.scale,
    )


@drawn
@given(case=image_cases, precision=precisions)
def test_linear(case: ImageCase, precision: Precision) -> None:
    dtype, tolerance = precision
    N, C, K = case.images, case.channels, case.classes
    arrays = (a.astype(dtype) for a in case.floats((N, C), (K, C), (K,)))
    compare(
        R.linear_forward,
        R.linear_backward,
        F.linear,
        *arrays,
        tolerance=tolerance,
        terms=case.scale**2,
    )


@drawn
@given(case=image_cases, precision=precisions)
def test_squeeze_excitation(case: ImageCase, precision: Precision) -> None:
    """At scale 1: a saturated gate's gradient is rounding noise in any implementation."""
    dtype, tolerance = precision
    C, Cm = case.channels, case.classes
    shapes = case.shape, (Cm, C, 1, 1), (Cm,), (C, Cm, 1, 1), (C,)
    arrays = (a.astype(dtype) for a in replace(case, scale=1.0).floats(*shapes))

    def peer(x: Any, down_weight: Any, down_bias: Any, up_weight: Any, up_bias: Any) -> Any:
        squeezed = F.adaptive_avg_pool2d(x, 1)
        middle = F.relu(F.conv2d(squeezed, down_weight, down_bias))
        return x * torch.sigmoid(F.conv2d(middle, up_weight, up_bias))

    compare(
        R.squeeze_excitation_forward,
        R.squeeze_excitation_backward,
        peer,
        *arrays,
        tolerance=tolerance,
        terms=1.0,
    )


@drawn
@given(
    case=image_cases,
    precision=precisions,
    soft=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_softmax_cross_entropy(
    case: ImageCase, precision: Precision, soft: bool, smoothing: float
) -> None:
    dtype, tolerance = precision
    rng = np.random.default_rng(case.seed)
    N, classes = case.images, case.classes
    logits = (case.scale * rng.standard_normal((N, classes))).astype(dtype)
    labels = rng.random((N, classes)).astype(dtype) if soft else rng.integers(0, classes, N)
    tensor = torch.tensor(logits, requires_grad=True)
    peer_loss = F.cross_entropy(tensor, torch.tensor(labels), label_smoothing=smoothing)
    peer_loss.backward()
    loss, cache = R.softmax_cross_entropy_forward(logits, labels, label_smoothing=smoothing)
    assert_close(loss, peer_loss, tolerance, terms=1.0)
    assert_close(R.softmax_cross_entropy_backward(cache), tensor.grad, tolerance, terms=1.0)
