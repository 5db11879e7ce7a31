"""Kernels that are computed, against their published formula written out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.formulas import Dirac
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.run import EVERYTHING, Reader, Run
from repvgg_ref.ops import REFERENCE

CONV = Conv("c", 4, 6, (3, 3), padding=(1, 1), groups=2)
DIRAC = Dirac(CONV)


def arrays(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in DIRAC.shapes().items()}


def test_the_kernel_is_the_input_and_a_filter_of_length_one() -> None:
    params = arrays()
    kernel = DIRAC.kernel(Reader(params, 1e-5), EVERYTHING)[0]
    for row, weight in enumerate(params["c.weight"]):
        wanted = params["c.beta"][row] * weight / np.sqrt((weight**2).sum())
        wanted[row % 2, 1, 1] += params["c.alpha"][row]
        np.testing.assert_allclose(kernel[row], wanted, rtol=1e-14)


def test_some_rows_are_those_of_the_whole_and_a_long_filter_costs_few_roundings() -> None:
    params, wide = arrays(1), Conv("c", 256, 2, (3, 3))
    whole, size, roundings = DIRAC.kernel(Reader(params, 1e-5), EVERYTHING)
    part = DIRAC.kernel(Reader(params, 1e-5), slice(3, 5))
    np.testing.assert_array_equal(part[0], whole[3:5])
    np.testing.assert_array_equal(part[1], size[3:5])
    assert roundings < 12
    rng = np.random.default_rng(2)
    long = {name: rng.standard_normal(shape) for name, shape in Dirac(wide).shapes().items()}
    kernel, size, roundings = Dirac(wide).kernel(Reader(long, 0), EVERYTHING)
    assert roundings < 16
    exact = Dirac(wide).kernel(Reader(long, 0, exact=True), slice(0, 1))[0]
    error = [abs(Fraction(float(k)) - e) for k, e in zip(kernel[0].flat, exact.flat, strict=True)]
    assert all(e <= roundings * 2.0**-53 * s for e, s in zip(error, size[0].ravel(), strict=True))


@pytest.mark.parametrize("zero", [False, True], ids=["filters", "a filter of zeros"])
def test_gradients_of_the_formula(zero: bool) -> None:
    """Of ``sum(kernel * g)``, by differences; zeros are divided by a constant 1e-12."""
    params, g = arrays(3), np.random.default_rng(4).standard_normal((6, 2, 3, 3))
    if zero:
        params["c.weight"][2] = 0
    found = DIRAC.gradients(g, Run(params, REFERENCE, 1e-5, training=True))
    assert found.keys() == params.keys()
    for name, array in params.items():
        step = 1e-6
        for at in [(1, 0, 2, 1), (2, 1, 1, 1), (5, 0, 1, 1)]:
            index = at[: array.ndim]
            if zero and at[0] == 2 and array.ndim > 1:
                assert found[name][index] == pytest.approx(params["c.beta"][2] / 1e-12 * g[index])
                continue
            values = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * step
                read = Reader(params | {name: moved}, 1e-5)
                values.append((DIRAC.kernel(read, EVERYTHING)[0] * g).sum())
            slope = (values[0] - values[1]) / (2 * step)
            assert found[name][index] == pytest.approx(slope, rel=1e-6, abs=1e-8)
