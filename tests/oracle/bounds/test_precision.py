"""What an array's values give away about the arithmetic behind them, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import product_energy
from repvgg_ref.oracle.bounds.precision import (
    PRECISIONS,
    estimate_unit_roundoff,
    precision_of,
)
from tests.oracle.bounds.arithmetic import (
    ARITHMETICS,
    BFLOAT16,
    FLOAT16,
    Candidate,
    Rounding,
)
from tests.oracle.bounds.cases import random_block
from tests.oracle.bounds.test_block import reference


def _outputs(rounded: Rounding = np.asarray) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    values = {name: np.maximum(rng.normal(size=(1, 4, 5, 5)), 0) for name in ("stage0", "linear")}
    return {name: rounded(x).astype(np.float32) for name, x in values.items()}


def test_sixteen_bits_are_recognised_by_dtype_and_by_value() -> None:
    assert precision_of(_outputs()) == "fp32"
    assert precision_of(_outputs(FLOAT16)) == "fp16"
    assert precision_of(_outputs(BFLOAT16)) == "bf16"
    assert precision_of({n: x.astype(np.float16) for n, x in _outputs().items()}) == "fp16"
    assert precision_of({n: x.astype(np.float64) for n, x in _outputs(BFLOAT16).items()}) == "bf16"


def test_tf32_is_never_excused() -> None:
    program, x = random_block(np.random.default_rng(0), data="normal", channels=8)
    y = Candidate("rounded once", ARITHMETICS["tf32"], "blocked")(program, x)
    assert precision_of({"stage0": y.astype(np.float32)}) == "fp32"


def test_a_nan_somewhere_does_not_hide_sixteen_bits() -> None:
    outputs = _outputs(FLOAT16)
    outputs["linear"][:] = np.nan
    assert precision_of(outputs) == "fp16"


def test_one_wider_value_is_evidence_enough_against_sixteen_bits() -> None:
    outputs = _outputs(FLOAT16)
    outputs["linear"][0, 0, 0, 0] = np.float32(1 / 3)
    assert precision_of(outputs) == "fp32"


@pytest.mark.parametrize("value", [0.0, 2.0, np.nan, np.inf])
def test_arrays_without_information_are_held_to_float32(value: float) -> None:
    assert precision_of({"stage0": np.full((1, 4, 5, 5), value, np.float32)}) == "fp32"


def test_subnormal_float16_values_are_float16_values() -> None:
    x = np.arange(1, 100, dtype=np.float32) * np.float32(2.0**-24)
    x[1::2] = np.float32(1 + 2.0**-10)  # not a bfloat16
    assert precision_of({"stage0": x}) == "fp16"


@pytest.mark.parametrize("name", ["fp32", "tf32", "tf32-cut", "bf16", "fp16"])
@pytest.mark.parametrize("form", ["rounded once", "branches"])
@pytest.mark.parametrize("channels", [4, 48])
def test_the_residual_tells_the_unit_roundoff(name: str, form: str, channels: int) -> None:
    a = ARITHMETICS[name]
    rng = np.random.default_rng(channels)
    program, x = random_block(rng, data="normal", channels=channels, size=6)
    x = a.read(x)
    residual = Candidate(form, a, "pairwise")(program, x) - reference(program, x)
    energy = product_energy(program, x).reshape(residual.shape)
    estimate = estimate_unit_roundoff(residual, energy)
    wanted = {"tf32": "tf32 or fp16", "tf32-cut": "tf32 or fp16", "fp16": "tf32 or fp16"}
    assert estimate.looks_like == wanted.get(name, name)
    assert estimate.elements > residual.size // 4
    if a.precision != "fp32":
        assert 1 / 4 < estimate.unit_roundoff / PRECISIONS[a.precision].u_input < 4


def test_the_estimate_survives_a_bug_in_some_channels_and_bad_values() -> None:
    a = ARITHMETICS["bf16"]
    program, x = random_block(np.random.default_rng(1), data="normal", channels=8, size=6)
    residual = Candidate("rounded once", a, "pairwise")(program, x) - reference(program, x)
    energy = product_energy(program, x).reshape(residual.shape)
    residual[:, 0] += 3
    residual[:, 1] = np.nan
    assert estimate_unit_roundoff(residual, energy).looks_like == "bf16"


def test_no_residual_gives_no_class() -> None:
    assert estimate_unit_roundoff(np.zeros(5), np.ones(5)).looks_like == "exact"
    assert estimate_unit_roundoff(np.full(5, np.nan), np.ones(5)).looks_like == "nothing"
