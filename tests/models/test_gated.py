"""Gates, sums and what is dropped at random: laws, gradients, and a training of such a network."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.cpu import NUMPY
from repvgg_ref.models.efficientnet import efficientnet, rounded
from repvgg_ref.models.gated import Add, Dropout, Gate, Gelu, Silu
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Operation, Pass
from repvgg_ref.models.names import role_names
from repvgg_ref.models.network import build
from repvgg_ref.ops import REFERENCE, Ops
from repvgg_ref.train.events import StepDone
from repvgg_ref.train.run import train
from tests.gradcheck import assert_gradients
from tests.models.small import distinct_model
from tests.train.small_training import changed, small_job

SMALL = efficientnet("small", width=0.125, depth=0.4, dropout=0.25, num_classes=3)


def a_pass(op: Operation, ops: Ops = REFERENCE, **how: Any) -> Pass:
    rng = np.random.default_rng(7)
    shapes = op.shapes("train")
    return Pass({f"n.{k}": rng.standard_normal(s) for k, s in shapes.items()}, ops, 1e-5, **how)


@pytest.mark.parametrize("ops", [REFERENCE, NUMPY], ids=["reference", "numpy"])
@pytest.mark.parametrize(
    "op",
    [Gate(4, 2), Gate(4, 2, relu=True), Silu(), Gelu(), Add(0.5), Dropout(0.5), NormLinear(4, 3)],
    ids=["gate", "gate with relu", "silu", "gelu", "add", "dropout", "norm and linear"],
)
def test_gradients_equal_finite_differences(op: Operation, ops: Ops) -> None:
    run = a_pass(op, ops, training=True, draws=(3,))
    count, rng = (2 if isinstance(op, Add) else 1), np.random.default_rng(0)
    shape = (5, 4) if isinstance(op, Dropout | NormLinear) else (3, 4, 5, 4)

    def forward(*x: Array) -> tuple[Array, Any]:
        return op.forward("n", list(x), run)

    def backward(grad_y: Array, cache: Any) -> tuple[Array | None, ...]:
        return tuple(op.backward("n", grad_y, cache, run, wants_x=True))

    assert_gradients(forward, backward, *(rng.standard_normal(shape) for _ in range(count)), seed=1)


@pytest.mark.parametrize("relu", [False, True])
def test_the_gradients_of_a_gates_arrays_equal_finite_differences(relu: bool) -> None:
    op, rng = Gate(4, 2, relu), np.random.default_rng(0)
    x, names = rng.standard_normal((3, 4, 5, 2)), list(op.shapes("train"))
    run = a_pass(op)

    def forward(*arrays: Array) -> tuple[Array, Any]:
        given = {f"n.{name}": array for name, array in zip(names, arrays, strict=True)}
        return op.forward("n", [x], Pass(given, REFERENCE, 1e-5))

    def backward(grad_y: Array, cache: Any) -> tuple[Array | None, ...]:
        op.backward("n", grad_y, cache, run, wants_x=True)
        return tuple(run.grads[f"n.{name}"] for name in names)

    assert_gradients(forward, backward, *run.params.values(), seed=1)


@pytest.mark.parametrize("op", [Add(0.25), Dropout(0.25)], ids=["add", "dropout"])
def test_what_stays_makes_up_for_what_is_dropped(op: Operation) -> None:
    """A quarter goes, the rest counts 4/3; nothing goes in evaluation, or unasked."""
    one = np.ones((4000, 1))
    x = [one, 0 * one] if isinstance(op, Add) else [one]
    y = op.forward("n", x, a_pass(op, training=True, draws=(0,)))[0]
    assert set(np.unique(y)) == {0, 4 / 3}
    assert abs((y == 0).mean() - 0.25) < 0.03
    for how in ({"training": True}, {"draws": (0,)}):
        assert (op.forward("n", x, a_pass(op, **how))[0] == 1).all()


def test_a_seed_repeats_its_draws_and_another_node_has_others() -> None:
    op, x = Dropout(0.5), [np.ones((8, 8))]
    runs = [a_pass(op, training=True, draws=draws) for draws in ((1,), (1,), (2,))]
    first, same, other = (op.forward("n", x, run)[0] for run in runs)
    assert (first == same).all()
    assert (first != other).any()
    assert (first != op.forward("m", x, runs[0])[0]).any()


def test_an_image_is_dropped_as_a_whole() -> None:
    op, x = Add(0.5), np.ones((64, 2, 3, 3))
    y = op.forward("n", [x, 0 * x], a_pass(op, training=True, draws=(0,)))[0]
    assert (y == y[:, :1, :1, :1]).all()
    assert len(np.unique(y)) == 2


def test_a_step_drops_only_what_it_is_asked_to() -> None:
    model = distinct_model(SMALL)
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((3, 3, 40, 33)), np.arange(3)
    calm, first, same, other = (
        model.loss_and_grads(x, labels, drop_seed=seed).loss for seed in (None, 1, 1, 2)
    )
    assert first == same
    assert len({calm, first, other}) == 3


def test_both_forms_agree() -> None:
    model = distinct_model(SMALL)
    x = np.random.default_rng(0).standard_normal((2, 3, 40, 33))
    wanted = model.forward(x, backend="reference")
    fused = rr.fuse(model)
    for each, backend in ((model, "numpy"), (fused, "numpy"), (fused, "reference")):
        error = np.abs(each.forward(x, backend=backend) - wanted).max() / np.abs(wanted).max()
        assert not (error > 1e-12)


def test_rules_of_decay_tell_batch_norms_whatever_their_keys() -> None:
    roles = role_names(SMALL)
    assert roles["stem.bn.gamma"] == "features.0.1.bn.weight"
    assert roles["linear.weight"] == "classifier.1.weight"
    assert roles["block1.0.gate.up.bias"] == "features.1.0.block.1.fc2.bias"


def test_the_trainer_drops_where_the_recipe_says_so(tmp_path: Path) -> None:
    def first_losses(folder: str, *, drop: bool) -> list[float]:
        job = small_job(tmp_path / folder, recipe=changed(drop=drop), arch=SMALL)
        steps = (event for event in train(job) if isinstance(event, StepDone))
        return [event.loss for event in islice(steps, 2)]

    dropped = first_losses("a", drop=True)
    assert dropped == first_losses("b", drop=True)
    assert dropped[0] != first_losses("c", drop=False)[0]


def test_widths_are_those_of_the_publications() -> None:
    assert [rounded(width * 1.2) for width in (32, 16, 24, 80, 192)] == [40, 24, 32, 96, 232]


def test_fresh_weights_of_gates_start_as_layers_do() -> None:
    params = build(SMALL, seed=0).params
    weight = params["block1.0.gate.up.weight"]
    assert 0 < np.abs(weight).max() <= 1 / np.sqrt(weight.shape[1])
