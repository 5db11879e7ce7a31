"""The table NUMPY against REFERENCE: every operator, forward and backward, and training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from repvgg_ref.arrays import Array
from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu import NUMPY
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.architectures import Architecture, AuxHeadSpec, architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import fuse
from repvgg_ref.ops import REFERENCE
from tests.examples import examples
from tests.gradcheck import assert_gradients
from tests.ops.cases import ConvCase, ImageCase, conv_cases, image_cases
from tests.ops.exact import assert_within, floats
from tests.random_networks import random_model


def same(got: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    """Arrays, or tuples of arrays: images NHWC against NCHW, all else as it is."""
    if isinstance(wanted, tuple):
        assert len(got) == len(wanted)
        for mine, theirs in zip(got, wanted, strict=True):
            same(mine, theirs, tolerance)
    elif wanted is None:
        assert got is None
    else:
        assert got.dtype == wanted.dtype
        assert_within(np.asarray(got), np.asarray(wanted), tolerance)


def nhwc(x: Array) -> Array:
    y = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    y.flags.writeable = False
    return y


def nchw(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2)


@examples(100)
@given(case=conv_cases)
def test_convolution(case: ConvCase) -> None:
    x, weight, bias = case.arrays(floats)
    wanted, their_cache = REFERENCE.conv2d_forward(x, weight, bias, **case.settings)
    got, cache = NUMPY.conv2d_forward(nhwc(x), weight, bias, **case.settings)
    same(nchw(got), wanted)
    fused = NUMPY.conv_bias_relu_forward(nhwc(x), weight, bias, **case.settings)
    same(nchw(fused), np.maximum(wanted, 0))
    grad_y = floats(np.random.default_rng(case.seed), *wanted.shape)
    theirs = REFERENCE.conv2d_backward(grad_y, their_cache)
    mine = NUMPY.conv2d_backward(nhwc(grad_y), cache)
    same(nchw(mine.grad_x), theirs.grad_x)
    same(tuple(mine[1:]), tuple(theirs[1:]))


@examples(30)
@given(case=conv_cases)
def test_convolution_gradients_by_finite_differences(case: ConvCase) -> None:
    x, weight, bias = case.arrays(floats)
    assert_gradients(
        lambda x, weight, bias: NUMPY.conv2d_forward(x, weight, bias, **case.settings),
        NUMPY.conv2d_backward,
        nhwc(x),
        weight,
        bias,
        seed=case.seed,
    )


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


@examples(50)
@given(case=image_cases)
@pytest.mark.parametrize("operator", IMAGE_OPERATORS)
def test_operators_of_images(operator: str, case: ImageCase) -> None:
    x, *rest = case.floats(case.shape, *IMAGE_OPERATORS[operator](case))
    if operator == "batch_norm_eval":
        rest[-1] = np.abs(rest[-1])
    settings = {"eps": 1e-3} if "norm" in operator else {}
    forward, backward = f"{operator}_forward", f"{operator}_backward"
    wanted, their_cache = getattr(REFERENCE, forward)(x, *rest, **settings)
    got, cache = getattr(NUMPY, forward)(nhwc(x), *rest, **settings)
    same(nchw(got) if got.ndim == 4 else got, wanted, 1e-9)
    if operator == "batch_norm_train":
        same((cache.mean, cache.var), (their_cache.mean, their_cache.var), 1e-9)
    grad_y = floats(np.random.default_rng(case.seed), *wanted.shape)
    theirs = getattr(REFERENCE, backward)(grad_y, their_cache)
    mine = getattr(NUMPY, backward)(nhwc(grad_y) if grad_y.ndim == 4 else grad_y, cache)
    theirs, mine = (found if isinstance(found, tuple) else (found,) for found in (theirs, mine))
    same((nchw(mine[0]), *mine[1:]), tuple(theirs), 1e-7)


def test_a_wrong_shape_is_refused_as_by_the_reference() -> None:
    x = np.zeros((1, 4, 4, 3), np.float32)
    with pytest.raises(ShapeError, match=r"weight\.shape"):
        NUMPY.conv2d_forward(
            x, np.zeros((2, 2, 3, 3), np.float32), None, stride=1, padding=1, dilation=1, groups=1
        )
    with pytest.raises(ShapeError, match=r"gamma\.shape"):
        NUMPY.batch_norm_train_forward(x, np.zeros(2), np.zeros(3), eps=1e-5)


def tiny(**changes: Any) -> Architecture:
    blocks = (
        BlockSpec("stage0", 3, 8, 2),
        BlockSpec("stage1.0", 8, 8, 1, groups=2),
        BlockSpec("stage1.1", 8, 12, 2, se="before_relu", se_channels=3),
        BlockSpec("stage2.0", 12, 12, 1, dilation=2, se="after_relu", se_channels=3),
    )
    return Architecture("custom", blocks, num_classes=5, **changes)


def arrays(arch: Network, size: int, dtype: Any) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, arch.in_channels, size, size + 5)).astype(dtype)
    return x, rng.integers(0, arch.num_classes, 3)


NETWORKS = {
    "tiny": (tiny(), 19),
    "aux": (tiny(aux_heads=(AuxHeadSpec("stage1_aux", "stage1.1", 12),)), 33),
    "A0": (architecture("RepVGG-A0", num_classes=7), 64),
}


# A float32 step of A0 is compared by norms only: among its million activations some lie so near 0
# that rounding decides whether their gradient passes, and each one is a whole pixel of 18.
STEPS = [
    *((name, np.float64, 1e-10) for name in NETWORKS),
    ("tiny", np.float32, 1e-3),
    ("aux", np.float32, 1e-3),
    ("A0", np.float32, 0.1),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("name", "dtype", "tolerance"), STEPS)
def test_a_training_step_is_the_references(name: str, dtype: Any, tolerance: float) -> None:
    arch, size = NETWORKS[name]
    model, (x, labels) = random_model(arch, 1, dtype), arrays(arch, size, dtype)
    got = model.loss_and_grads(x, labels, label_smoothing=0.1, backend="numpy")
    wanted = model.loss_and_grads(x, labels, label_smoothing=0.1, backend="reference")
    assert abs(got.loss - wanted.loss) <= min(tolerance, 1e-3) * abs(wanted.loss)
    assert got.grads.keys() == wanted.grads.keys()
    for key, grad in wanted.grads.items():
        error = np.linalg.norm(got.grads[key] - grad) / np.linalg.norm(grad)
        assert error <= tolerance, f"{key}: {error}"
    for key, stat in wanted.stats.items():
        assert_within(got.stats[key], stat, min(tolerance, 1e-3))


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["tiny", "A0"])
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-5)])
def test_every_layer_is_the_references(name: str, form: str, dtype: Any, tolerance: float) -> None:
    arch, size = NETWORKS[name]
    model, (x, _) = random_model(arch, 2, dtype), arrays(arch, size, dtype)
    model = fuse(model) if form == "deploy" else model
    got = model.forward(x, layers=True, backend="numpy")
    wanted = model.forward(x, layers=True, backend="reference")
    assert list(got) == list(wanted)
    for key, y in wanted.items():
        assert got[key].shape == y.shape
        assert got[key].dtype == y.dtype
        error = np.abs(got[key] - y).max() / np.abs(y).max()
        assert error <= tolerance, f"{key}: {error}"


def test_other_dtypes_go_to_the_reference() -> None:
    assert backend_ops("numpy", np.float16) is REFERENCE
    assert backend_ops("numpy", np.longdouble) is REFERENCE
    assert backend_ops("numpy", object) is REFERENCE
    assert backend_ops("numpy", np.float32) is NUMPY
