"""Evaluation on the device: the oracle's verdict, the fused chain's buffers and CUDA graphs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.backends import backend_ops
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import Model, fuse
from tests.gpu.agreement import inference_report
from tests.gpu.conftest import UnderTest
from tests.gpu.fake_cupy import LEDGER
from tests.models.small import SMALL, batch, distinct_model
from tests.random_networks import random_model

# The oracle's bounds are certified; its verdict is the tolerance.
JUDGED = [(name, "fp32", form) for name in SMALL for form in ("train", "deploy")]
JUDGED += [("plain", "tf32", "deploy"), ("plain", "bf16", "deploy"), ("grouped", "fp16", "train")]
JUDGED += [("plus", "fp16", "deploy"), ("se-before-relu", "bf16", "deploy")]


def small(name: str = "plain") -> tuple[Model, Array]:
    """A fused network and images."""
    model = distinct_model(SMALL[name], dtype=np.float32)
    return fuse(model), batch(SMALL[name], dtype=np.float32)[0]


@pytest.mark.few(5)
@pytest.mark.parametrize(("name", "math", "form"), JUDGED)
def test_the_oracle_agrees(name: str, math: str, form: str, device: UnderTest) -> None:
    model = distinct_model(SMALL[name], dtype=np.float32)
    x, _ = batch(SMALL[name], count=2, dtype=np.float32)
    report = inference_report(model, x, math, form=form)
    assert report.verdict == "agree", report.reason


@pytest.mark.few(1)
def test_a0_in_float64_is_the_reference_layer_by_layer(device: UnderTest) -> None:
    model = fuse(random_model(architecture("RepVGG-A0", num_classes=7), 1), dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(2, 3, 33, 17))
    got = model.forward(x, backend="cupy", layers=True)
    for name, wanted in model.forward(x, backend="reference", layers=True).items():
        error = np.abs(got[name] - wanted).max() / np.abs(wanted).max()
        assert error <= 1e-12, f"{name}: {error}"


def chain_of(model: Model, x: Array) -> Any:
    """The fused chain that `model` keeps for images like `x`."""
    model.forward(x, backend="cupy")
    kept = model._at(backend_ops("cupy", x.dtype))
    return kept.fast(
        model.arch, model.params, x.dtype, algorithm="auto", threads=None, memory="fast"
    )


def test_small_batches_run_as_one_graph_and_give_the_same(device: UnderTest) -> None:
    model, x = small()
    first = model.forward(x, backend="cupy")
    chain = chain_of(model, x)
    (plan,) = chain._plans.values()
    assert plan.is_graph == device.has_cudnn
    LEDGER.clear()
    again, other = model.forward(x, backend="cupy"), model.forward(x[::-1], backend="cupy")
    if device.is_fake and device.has_cudnn:
        assert LEDGER.launches["graph"] == 2
        assert not any(name.startswith("cudnn") for name in LEDGER.launches)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(other[::-1], first, rtol=1e-5, equal_nan=False)
    layers = model.forward(x, backend="cupy", layers=True)
    np.testing.assert_array_equal(layers["linear"], first)


def test_large_batches_and_blocks_with_se_are_not_captured(device: UnderTest) -> None:
    from repvgg_ref.gpu.chain import GRAPH_BATCH

    model, x = small()
    large = np.concatenate([x] * (GRAPH_BATCH // len(x) + 1))
    (plan,) = chain_of(model, large)._plans.values()
    assert not plan.is_graph
    np.testing.assert_allclose(
        model.forward(large, backend="cupy")[-len(x) :],
        model.forward(x, backend="cupy"),
        rtol=1e-5,
        equal_nan=False,
    )
    for name in ("se-before-relu", "plus"):
        model, x = small(name)
        (plan,) = chain_of(model, x)._plans.values()
        assert not plan.is_graph


def test_plans_are_few_and_of_any_size(device: UnderTest) -> None:
    from repvgg_ref.gpu.chain import KEPT_PLANS

    model, x = small()
    for size in range(8, 8 + KEPT_PLANS + 2):
        part = x[:2, :, :size]
        wanted = model.forward(part, backend="reference")
        np.testing.assert_allclose(
            model.forward(part, backend="cupy"), wanted, rtol=1e-4, atol=1e-4, equal_nan=False
        )
    assert len(chain_of(model, x)._plans) == KEPT_PLANS


def test_evaluation_on_device_arrays_never_waits(device: UnderTest) -> None:
    from repvgg_ref.gpu import cupy_ops

    for form in ("train", "deploy"):
        model = distinct_model(SMALL["plain"], dtype=np.float32)
        model = fuse(model) if form == "deploy" else model
        x = cupy_ops("fp32").from_host(batch(model.arch, dtype=np.float32)[0])
        model.forward(x, backend="cupy")
        with device.never_waits():
            logits = model.forward(x, backend="cupy")
        assert isinstance(logits, device.cupy.ndarray)
        wanted = model.forward(to_numpy(x), backend="cupy")
        np.testing.assert_array_equal(to_numpy(logits), wanted)


def test_weights_are_copied_once_and_again_when_replaced(device: UnderTest) -> None:
    model, x = small()
    before = model.forward(x, backend="cupy")
    LEDGER.clear()
    model.forward(x, backend="cupy")
    assert LEDGER.uploads == (1 if device.is_fake else 0)  # the images
    with pytest.raises(ValueError, match="read-only"):
        model.params["linear.bias"][0] = 9
    model.params["linear.bias"] = model.params["linear.bias"] + 1
    np.testing.assert_allclose(
        model.forward(x, backend="cupy"), before + 1, rtol=1e-5, equal_nan=False
    )
    name = "stage1.0.fused.bias"
    model.params[name] = model.params[name] + 1
    wanted = model.forward(x, backend="reference")
    np.testing.assert_allclose(
        model.forward(x, backend="cupy"), wanted, rtol=1e-4, atol=1e-4, equal_nan=False
    )


def test_a_write_through_an_older_view_is_seen(device: UnderTest) -> None:
    for form in ("train", "deploy"):
        model = distinct_model(SMALL["plain"], dtype=np.float32)
        model = fuse(model) if form == "deploy" else model
        x = batch(model.arch, dtype=np.float32)[0]
        row = model.params["linear.weight"][1:]
        before = model.forward(x, backend="cupy")
        row[...] *= 2
        after, wanted = (model.forward(x, backend=name) for name in ("cupy", "reference"))
        np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-4, equal_nan=False)
        assert not np.allclose(before, after)


def test_a_model_that_has_run_on_the_device_can_be_copied(device: UnderTest) -> None:
    model, x = small()
    logits = model.forward(x, backend="cupy")
    np.testing.assert_array_equal(copy.deepcopy(model).forward(x, backend="cupy"), logits)
    assert all(array.flags.writeable for array in model.state_dict().values())


def test_sixteen_bit_images_are_computed_in_mixed_precision(device: UnderTest) -> None:
    from repvgg_ref.gpu.math_mode import bfloat16

    model, x = small()
    exact = model.forward(x.astype(np.float64), backend="reference")
    for dtype, unit in ((np.dtype(np.float16), 2.0**-11), (bfloat16(), 2.0**-8)):
        layers = model.forward(x.astype(dtype), backend="cupy", layers=True)
        assert layers["stage0"].dtype == dtype
        assert layers["linear"].dtype == np.float32
        error = np.abs(layers["linear"] - exact).max() / np.abs(exact).max()
        assert unit / 100 < error < 20 * unit


def test_no_images_have_no_logits(device: UnderTest) -> None:
    model, x = small()
    assert model.forward(x[:0], backend="cupy").shape == (0, model.arch.num_classes)


def test_a_full_memory_is_told_with_advice(device: UnderTest) -> None:
    if not device.is_fake:
        pytest.skip("would need all memory of the device")
    from repvgg_ref.gpu.memory import DeviceMemoryError

    model, x = small()
    train = distinct_model(SMALL["plain"], dtype=np.float32)
    model.forward(x, backend="cupy")
    LEDGER.memory_limit = 2000
    try:
        for work in (
            lambda: model.forward(np.concatenate([x, x]), backend="cupy"),
            lambda: train.loss_and_grads(x, np.zeros(len(x), int), backend="cupy"),
        ):
            with pytest.raises(DeviceMemoryError, match="smaller batch") as caught:
                work()
            assert "Out of memory allocating" in str(caught.value)
            assert "GiB free" in str(caught.value)
    finally:
        LEDGER.memory_limit = None
