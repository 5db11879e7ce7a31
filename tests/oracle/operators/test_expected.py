"""What operators should give, against code that knows nothing of bounds; and bounds that hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import train_block_backward, train_block_forward
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import REFERENCE
from repvgg_ref.ops.batch_norm import (
    batch_norm_train_backward,
    batch_norm_train_forward,
    update_running_stats,
)
from repvgg_ref.ops.conv2d import conv2d_backward, conv2d_forward
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.operators.block import canonical
from repvgg_ref.oracle.operators.cases import calls
from repvgg_ref.oracle.operators.catalogue import OPERATORS
from repvgg_ref.oracle.operators.operator import Call
from repvgg_ref.oracle.operators.rounding import Rounding

SURE = Rounding(PRECISIONS["fp32"])


def made(name: str, **fixed: Any) -> list[Call]:
    return calls(OPERATORS[name], fixed, {}, extremes=False)


def widened(call: Call) -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in call.arrays.items()}


def by_ops(call: Call, dtype: Any) -> Mapping[str, Array]:
    """The same by the reference operators, in another format."""
    a = {name: array.astype(dtype) for name, array in call.arrays.items()}
    s: Any = call.settings
    kind = call.name.removesuffix("-backward")
    if kind == "conv2d":
        y, conv_cache = conv2d_forward(a["x"], a["weight"], a.get("bias"), **s)
        return conv2d_backward(a["grad_y"], conv_cache)._asdict() if "grad_y" in a else {"y": y}
    beta = a.get("beta", 0 * a["gamma"])
    y, cache = batch_norm_train_forward(a["x"], a["gamma"], beta, eps=s["eps"])
    if "grad_y" in a:
        return batch_norm_train_backward(a["grad_y"], cache)._asdict()
    new = update_running_stats(
        a["running_mean"],
        a["running_var"],
        cache.mean,
        cache.var,
        momentum=s["momentum"],
        count=a["x"][:, 0].size,
    )
    return {"y": y, **new._asdict()}


CASES = [
    *((name, {}) for name in ("conv2d", "conv2d-backward")),
    *((name, {"training": True}) for name in ("batch_norm", "batch_norm-backward")),
]


@pytest.mark.parametrize(("name", "fixed"), CASES)
def test_values_are_those_of_the_reference_operators(name: str, fixed: dict[str, Any]) -> None:
    for call in made(name, **fixed):
        wanted = by_ops(call, np.float64)
        for output, got in call.outputs().items():
            if wanted[output] is not None:
                assert np.allclose(got, wanted[output], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("name", "fixed"), CASES)
def test_float32_is_within_its_bound_and_uses_some_of_it(name: str, fixed: dict[str, Any]) -> None:
    used = 0.0
    for call in made(name, **fixed):
        given = by_ops(call, np.float32)
        for output, right in call.expect(SURE).items():
            if given[output] is None:
                continue
            error = np.abs(given[output].astype(np.float64) - right.value)
            assert (error <= right.error).all(), (call.label, output)
            used = max(used, float((error / right.error).max()))
    assert used > 0.01


def test_gradients_of_the_block_are_those_of_the_trainer() -> None:
    for call in made("repvgg_block-backward"):
        arrays = widened(call)
        names = canonical(arrays)
        channels = len(arrays["rbr_dense.conv.weight"])
        spec = BlockSpec(
            "stage0",
            arrays["x"].shape[1],
            channels,
            call.settings["stride"],
            call.settings["groups"],
        )
        params = {ours: arrays[theirs] for theirs, ours in names.items()}
        _, cache = train_block_forward(
            spec, params, arrays["x"], ops=REFERENCE, eps=1e-5, training=True
        )
        grads = train_block_backward(spec, arrays["grad_y"], cache)
        found = call.outputs()
        assert np.allclose(found.pop("grad_x"), grads.x, rtol=1e-9, atol=1e-11)
        wanted = {ours.removeprefix("stage0."): theirs for theirs, ours in names.items()}
        assert {f"grad_{wanted[part]}" for part in grads.params} == set(found)
        for part, grad in grads.params.items():
            assert np.allclose(found[f"grad_{wanted[part]}"], grad, rtol=1e-9, atol=1e-10)


def test_a_bound_knows_what_its_input_was_wrong_by() -> None:
    """An error of the statistics' input shows in every gradient's bound, in proportion."""
    call = made("batch_norm-backward", training=True)[0]
    narrow, wide = (call.expect(Rounding(PRECISIONS[name])) for name in ("fp32", "bf16"))
    for output in narrow:
        assert (wide[output].error > 1000 * narrow[output].error).mean() > 0.5


def test_integers_are_exact_in_half_precision() -> None:
    for call in made("conv2d"):
        if call.integers:
            a = {name: array.astype(np.float16) for name, array in call.arrays.items()}
            y, _ = conv2d_forward(a["x"], a["weight"], a["bias"], **call.settings)
            assert (y.astype(np.float64) == call.outputs()["y"]).all()
