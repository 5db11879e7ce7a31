"""Every kernel, run on the CPU, gives what the reference gives, within a derived bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.kernels.cases import Check, kernels, stored
from tests.gpu.kernels.everything import CASES, dtype_of, run, small_grids

PARTS = 3  # of all cases, so that a push can run some
DTYPES = ["float64", "float32", "float16", "bfloat16"]


def cases_of(part: int) -> dict[str, Any]:
    return dict(list(CASES.items())[part::PARTS])


@pytest.mark.few
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_the_reference(cupy: Any, name: str, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy knows bfloat16 through ml_dtypes only")
    assert run(cupy, dtype_of(dtype), {name: CASES[name]}).wrong == []


@pytest.mark.few(1)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_its_bits_do_not_depend_on_the_order_of_threads(cupy: Any, dtype: str, part: int) -> None:
    """No two threads touch one place without a barrier between them; sums are in fixed order."""
    runs = [run(cupy, dtype, cases_of(part), order=order).bits for order in (0, 1, 2)]
    names = [str(index) for index in range(len(runs[0]))]
    for other in runs[1:]:
        pairs = zip(names, runs[0], other, strict=True)
        assert [name for name, first, second in pairs if first != second] == []


@pytest.mark.few(1)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_grid_smaller_than_the_work_gives_the_same_bits(cupy: Any, part: int) -> None:
    whole = run(cupy, "float32", cases_of(part)).bits
    with small_grids():
        assert run(cupy, "float32", cases_of(part)).bits == whole


def test_bfloat16_may_come_as_its_bits(cupy: Any) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes", reason="the witness of bfloat16").bfloat16
    gpu = kernels()

    # Every bit pattern: rounding is that of ml_dtypes, NaN stays NaN.
    bits = np.arange(2**16, dtype=np.uint16).reshape(-1, 8)
    got = gpu.bias_relu(cupy.asarray(bits), None, relu=False).get().view(bfloat16)
    wanted = bits.view(bfloat16)
    with np.errstate(invalid="ignore"):  # signalling NaN
        same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    assert same.all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_rounded_to_nearest_even(cupy: Any, dtype: str) -> None:
    """Ties, subnormals, overflow: as NumPy and ml_dtypes round."""
    pytest.importorskip("ml_dtypes", reason="the witness of bfloat16")
    gpu = kernels()

    rng = np.random.default_rng(0)
    tie = (1 + 2.0**-11) * 2.0 ** np.arange(-30.0, 17.0)
    wide = np.concatenate(
        [
            tie,
            -tie,
            (1 + 2.0**-8) * tie,
            rng.standard_normal(999) * 10.0 ** rng.integers(-9, 6, 999),
        ]
    ).astype(np.float32)
    zeros = cupy.zeros((1, wide.size), dtype_of(dtype))
    rounded = gpu.bias_relu(zeros, cupy.asarray(wide), relu=False)
    with np.errstate(over="ignore"):
        wanted = wide.astype(dtype_of(dtype))
    assert rounded.get().tobytes() == wanted.tobytes()


def test_a_large_mean_would_ruin_the_variance_of_plain_sums() -> None:
    """The bound that the kernel keeps is one that mean(x^2) - mean(x)^2 in float32 breaks."""
    from tests.gpu.kernels.branch_cases import _moment_bounds

    x = (1000 + 0.1 * np.random.default_rng(1).standard_normal((2, 9, 11, 16))).astype(np.float32)
    plain = (x * x).mean((0, 1, 2)) - x.mean((0, 1, 2)) ** 2
    wide = x.astype(np.float64)
    bound = _moment_bounds(wide, np.float32)[1]
    assert Check("plain", plain, wide.var((0, 1, 2)), bound).why_wrong() is not None


def test_a_check_fails_for_nan_and_for_a_wrong_shape() -> None:
    ones = np.ones(3)
    assert Check("same", ones, ones, 0).why_wrong() is None
    assert Check("off", ones + 1e-9, ones, 0).why_wrong() is not None
    assert Check("NaN", ones * np.nan, ones, np.inf).why_wrong() is not None
    assert Check("shape", np.ones(2), ones, 1).why_wrong() is not None
    assert stored("float16", 1.0) >= 2.0**-11
