"""A whole network's training step: finite differences, batch statistics, and laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import train_block_backward, train_block_forward
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import NotFusibleError, ReportedError, ShapeError
from repvgg_ref.models.architectures import AUX_WEIGHT, Architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.models.step import StepResult
from repvgg_ref.ops import REFERENCE
from tests.gradcheck import assert_gradients
from tests.models.small import GRAPHS, SMALL, batch, distinct_model

NETWORKS: dict[str, Network] = {**SMALL, **GRAPHS}
every_network = pytest.mark.parametrize("arch", NETWORKS.values(), ids=NETWORKS.keys())


def step(model: Model, x: Array, labels: Array, **settings: Any) -> StepResult:
    return model.loss_and_grads(x, labels, backend="reference", **settings)


def assert_near(got: Array, want: Array, tolerance: float = 1e-11) -> None:
    error = float(np.max(np.abs(got - want)))
    assert error <= tolerance * float(np.max(np.abs(want))), error


def cross_entropy(logits: Array, labels: Array) -> float:
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


@pytest.mark.few(3)
@every_network
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_every_gradient_by_finite_differences(arch: Network, label_smoothing: float) -> None:
    model = distinct_model(arch)
    x, labels = batch(arch, count=2)
    names = list(step(model, x, labels).grads)

    def forward(*arrays: Array) -> tuple[Array, StepResult]:
        changed = replace(model, params=dict(model.params))
        changed.load_state_dict(dict(zip(names, arrays, strict=True)))
        result = step(changed, x, labels, label_smoothing=label_smoothing)
        return np.asarray(result.loss), result

    def backward(grad_y: Array, result: StepResult) -> tuple[Array, ...]:
        return tuple(grad_y * result.grads[name] for name in names)

    state = model.state_dict()
    assert_gradients(forward, backward, *(state[name] for name in names), seed=1)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    "spec",
    [
        BlockSpec("block", 3, 5, 2),
        BlockSpec("block", 4, 4, 1, groups=2),
        BlockSpec("block", 4, 4, 1, dilation=2),
        BlockSpec("block", 4, 4, 1, se="before_relu", se_channels=2),
        BlockSpec("block", 4, 8, 2, groups=4, se="after_relu", se_channels=2),
        BlockSpec("block", 4, 4, 1, kind="identity-only"),
        BlockSpec("block", 4, 4, 1, kind="plain"),
    ],
    ids=["stride", "grouped", "dilated", "se before", "se after", "no 1x1", "3x3 only"],
)
def test_block_gradients_by_finite_differences(spec: BlockSpec, training: bool) -> None:
    model = distinct_model(Architecture("block", (spec,), 2))
    names = [n for n in model.params if n.startswith("block.") and is_trainable(n)]
    x = np.random.default_rng(2).standard_normal((2, spec.in_channels, 7, 6))

    def forward(x: Array, *arrays: Array) -> tuple[Array, Any]:
        params = model.params | dict(zip(names, arrays, strict=True))
        return train_block_forward(spec, params, x, ops=REFERENCE, eps=model.eps, training=training)

    def backward(grad_y: Array, cache: Any) -> tuple[Array, ...]:
        grads = train_block_backward(spec, grad_y, cache)
        return grads.x, *(grads.params[name.removeprefix("block.")] for name in names)

    assert_gradients(forward, backward, x, *(model.params[name] for name in names), seed=3)


@every_network
def test_gradients_and_statistics_carry_the_official_names(arch: Network) -> None:
    model = distinct_model(arch)
    result = step(model, *batch(arch))
    state = model.state_dict()
    assert set(result.grads) | set(result.stats) == set(state)
    assert not set(result.grads) & set(result.stats)
    if isinstance(arch, Architecture):
        assert {n.rpartition(".")[2] for n in result.grads} == {"weight", "bias"}
    assert all(result.grads[name].shape == state[name].shape for name in result.grads)
    assert all(result.stats[name].shape == state[name].shape for name in result.stats)


@every_network
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_are_not_modified_and_their_dtype_stays(arch: Network, dtype: Any) -> None:
    model = distinct_model(arch, dtype=dtype)
    x, labels = batch(arch, dtype=dtype)
    for array in (x, labels, *model.params.values()):
        array.flags.writeable = False  # writing would raise
    before = dict(model.params)
    result = step(model, x, labels, label_smoothing=0.1)
    assert all(model.params[name] is before[name] for name in before)
    floats = [a for n, a in result.stats.items() if not n.endswith("num_batches_tracked")]
    for array in (np.asarray(result.loss), result.logits, *result.grads.values(), *floats):
        assert array.dtype == dtype


def test_running_statistics_follow_from_what_each_batch_norm_saw() -> None:
    model = distinct_model(SMALL["grouped"])
    x, labels = batch(model.arch)
    result = step(model, x, labels)
    state, stage0 = model.state_dict(), model.arch.blocks[0]
    dense, _ = REFERENCE.conv2d_forward(
        x, state["stage0.rbr_dense.conv.weight"], None, stride=2, padding=1, dilation=1, groups=1
    )
    y, _ = train_block_forward(stage0, model.params, x, ops=REFERENCE, eps=model.eps, training=True)
    y, _ = train_block_forward(
        model.arch.blocks[1], model.params, y, ops=REFERENCE, eps=model.eps, training=True
    )
    for prefix, seen in {"stage0.rbr_dense.bn": dense, "stage1.1.rbr_identity": y}.items():
        mean, var = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3), ddof=1)
        want = 0.9 * state[f"{prefix}.running_mean"] + 0.1 * mean
        assert_near(result.stats[f"{prefix}.running_mean"], want)
        want = 0.9 * state[f"{prefix}.running_var"] + 0.1 * var
        assert_near(result.stats[f"{prefix}.running_var"], want)
        assert result.stats[f"{prefix}.num_batches_tracked"] == 1


@every_network
def test_with_the_batch_statistics_as_running_ones_evaluation_gives_the_same_logits(
    arch: Network,
) -> None:
    model = distinct_model(arch)
    model.momentum = 1.0
    x, labels = batch(arch)
    result = step(model, x, labels)
    model.load_state_dict(result.stats)
    pixels = {n: y.size // y.shape[1] for n, y in model.forward(x, layers=True).items()}
    for block in arch.blocks:
        seen = pixels[block.name]
        for name, array in model.params.items():
            if name.startswith(f"{block.name}.") and name.endswith(".running_var"):
                model.params[name] = array * (seen - 1) / seen
    assert_near(model.forward(x, backend="reference"), result.logits)


@every_network
def test_a_batch_given_twice_over_or_in_another_order_has_the_same_gradients(
    arch: Network,
) -> None:
    model = distinct_model(arch)
    x, labels = batch(arch)
    once = step(model, x, labels)
    twice = step(model, np.concatenate([x, x]), np.concatenate([labels, labels]))
    order = [2, 0, 3, 1]
    other = step(model, x[order], labels[order])
    assert_near(other.logits, once.logits[order])
    for result in (twice, other):
        assert_near(np.asarray(result.loss), np.asarray(once.loss))
        for name, grad in once.grads.items():
            assert_near(result.grads[name], grad, 1e-10)


def test_the_loss_is_the_mean_cross_entropy_of_the_logits() -> None:
    model = distinct_model(SMALL["plain"])
    x, labels = batch(model.arch)
    result = step(model, x, labels)
    assert abs(result.loss - cross_entropy(result.logits, labels)) <= 1e-12
    soft = step(model, x, np.eye(3)[labels])
    assert soft.loss == result.loss


def test_auxiliary_heads_that_know_nothing_add_a_tenth_of_their_entropy_each() -> None:
    model = distinct_model(SMALL["plus"])
    for name, array in model.params.items():
        if "_aux.linear." in name:
            model.params[name] = np.zeros_like(array)
    x, labels = batch(model.arch)
    result = step(model, x, labels)
    want = cross_entropy(result.logits, labels) + 3 * AUX_WEIGHT * np.log(5)
    assert AUX_WEIGHT == 0.1
    assert abs(result.loss - want) <= 1e-12


def test_a_fused_model_cannot_be_trained() -> None:
    model = distinct_model(SMALL["plain"])
    with pytest.raises(NotFusibleError, match="loss_and_grads needs the three branches"):
        step(fuse(model), *batch(model.arch))


def test_wrong_inputs_are_named() -> None:
    model = distinct_model(SMALL["plain"])
    x, labels = batch(model.arch)
    with pytest.raises(ShapeError, match="batch of images"):
        step(model, x[:, :2], labels)
    with pytest.raises(ReportedError, match=r"labels\[1\] \(=3\) is not in 0 ... 2"):
        step(model, x, np.array([0, 3, 1, 2]))
