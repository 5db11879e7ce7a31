"""Whole training steps on the device: the reference's numbers, and no moment of waiting."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import Model
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.ops import Ops
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.noise import Yardstick, measure
from repvgg_ref.oracle.training.run import right_setup
from repvgg_ref.oracle.training.steps import TrainingSteps, training_steps
from repvgg_ref.train.decay import decay_kernels
from repvgg_ref.train.sgd import sgd_step
from tests.gpu.agreement import train_on_device
from tests.gpu.conftest import UnderTest
from tests.gpu.fake_cupy import LEDGER
from tests.models.small import SMALL, batch, distinct_model
from tests.random_networks import random_model

NETWORKS = (*SMALL, "A0")


@cache
def network(name: str) -> tuple[Model, Array, Array]:
    """In float32, so that the device starts from the same numbers as float64."""
    if name != "A0":
        return distinct_model(SMALL[name], dtype=np.float32), *batch(SMALL[name], dtype=np.float32)
    model = random_model(architecture("RepVGG-A0", num_classes=7), 1)
    rng = np.random.default_rng(0)
    return model, rng.normal(size=(4, 3, 32, 40)).astype(np.float32), rng.integers(0, 7, 4)


@cache
def right_steps(name: str) -> TrainingSteps:
    return training_steps(*network(name), steps=1 if name == "A0" else 3)


def table(math: Any = "fp32") -> Ops:
    from repvgg_ref.gpu import cupy_ops

    return cupy_ops(math)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [*SMALL, pytest.param("A0", marks=pytest.mark.slow)])
def test_the_oracle_agrees_with_the_steps(name: str, device: UnderTest) -> None:
    """Loss, logits, every gradient, statistics, and the weights after SGD, in float32."""
    model, right = network(name)[0], right_steps(name)
    report = judge_training(right, train_on_device(model, right, table()), model=model)
    assert report.verdict == "agree", report.reason


@pytest.mark.few(4)
@pytest.mark.parametrize("name", NETWORKS)
def test_in_float64_a_step_is_the_references(name: str, device: UnderTest) -> None:
    model, x, labels = network(name)
    x = x.astype(np.float64)
    model = Model(model.arch, "train", {n: _wide(a) for n, a in model.params.items()})
    got = model.loss_and_grads(x, labels, label_smoothing=0.1, backend="cupy")
    wanted = model.loss_and_grads(x, labels, label_smoothing=0.1, backend="reference")
    assert abs(got.loss - wanted.loss) <= 1e-13 * abs(wanted.loss)
    assert got.grads.keys() == wanted.grads.keys()
    assert got.stats.keys() == wanted.stats.keys()
    for mine, theirs in ((got.grads, wanted.grads), (got.stats, wanted.stats)):
        for key, exact in theirs.items():
            error = np.abs(mine[key] - exact).max() / max(np.abs(exact).max(), 1e-300)
            assert error <= 1e-10, f"{key}: {error}"


@pytest.mark.few(3)
@pytest.mark.parametrize("math", ["bf16", "fp16"])
@pytest.mark.parametrize("name", SMALL)
def test_mixed_precision_stays_within_its_rounding(name: str, math: str, device: UnderTest) -> None:
    """The oracle's yardstick, measured with 16-bit noise; float16 with a scaled loss."""
    model, right = network(name)[0], right_steps(name)
    scale, yardstick = (2.0**10 if math == "fp16" else 1.0), noise_of(name, math)
    dump = train_on_device(model, right, table(math), loss_scale=scale)
    for key, yard in yardstick.of.items():
        error = np.asarray(dump[key], np.float64) - right.exact[key]
        rms = float(np.sqrt(np.mean(error**2)))
        assert rms <= 2 * yard.rms, f"{key}: {rms} of {yard.rms}"


@cache
def noise_of(name: str, math: str) -> Yardstick:
    """What 16-bit rounding does to the first step's loss, logits and gradients."""
    right = right_steps(name)
    setup = right_setup(network(name)[0], right.x, right.labels, right.recipe)
    judged = {
        key: array
        for key, array in right.exact.items()
        if key in ("loss", "logits") or key.startswith("grad/")
    }
    unit = 2.0**-8 if math == "bf16" else 2.0**-11
    return measure(setup, judged, u=unit, first_only=True)


@pytest.mark.few
@pytest.mark.parametrize(
    ("name", "math"), [(name, "fp32") for name in NETWORKS] + [("plain", "bf16"), ("plus", "fp16")]
)
def test_a_step_never_waits_for_the_device(name: str, math: str, device: UnderTest) -> None:
    ops = table(math)
    model, x, labels = network(name)
    params = {n: a if "num_batches" in n else ops.from_host(a) for n, a in model.params.items()}
    x_in, labels_in = ops.from_host(x), ops.from_host(labels)

    def whole_step() -> StepResult:
        found = training_step(
            model.arch,
            params,
            x_in,
            labels_in,
            ops=ops,
            eps=1e-5,
            momentum=0.1,
            label_smoothing=0.1,
        )
        sgd_step(
            params,
            found.grads,
            {},
            lr=1e-3,
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            factors=decay_kernels,
        )
        return found

    if not device.is_fake:
        whole_step()  # kernels are compiled and cuDNN's plans made
    LEDGER.clear()
    with device.never_waits():
        result = whole_step()
    assert (sum(LEDGER.syncs.values()), LEDGER.uploads) == (0, 0)
    assert np.isfinite(to_numpy(result.loss))


@pytest.mark.parametrize("math", ["fp32", "bf16"])
def test_the_deterministic_mode_gives_the_same_bits_twice(math: Any, device: UnderTest) -> None:
    from repvgg_ref.gpu import cupy_ops

    ops = cupy_ops(math, deterministic=True)
    model, x, labels = network("plain")
    first, second = (model.loss_and_grads(x, labels, backend=ops) for _ in range(2))
    for name, grad in first.grads.items():
        np.testing.assert_array_equal(grad, second.grads[name])


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
