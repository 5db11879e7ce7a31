"""Taps of one channel have one slope in common, in every format down to its smallest numbers."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.weights.slopes import inconsistent
from repvgg_ref.oracle.weights.terms import Term, Terms


def layer() -> tuple[Terms, Array]:
    """A 3x3 branch, 4 channels of 8, its taps from 1 down to a millionth, where float16 ends."""
    rng = np.random.default_rng(0)
    size = (4, 8, 3, 3)
    raw = (rng.choice([-1, 1], size) * 10 ** rng.uniform(-6, 0, size)).astype(np.float32)
    raw[2, 3, 1, 0] = 0.5
    one, zero = np.ones(4), np.zeros(4)
    gamma = rng.uniform(0.5, 2, 4)
    terms = Terms("a", (Term(Branch(raw, gamma, zero, zero, one), (0, 0)),), (3, 3), 1e-5)
    return terms, raw * (gamma / np.sqrt(1 + 1e-5))[:, None, None, None]


@pytest.mark.parametrize(("stored", "dtype"), [("fp32", np.float32), ("fp16", np.float16)])
def test_rounding_to_a_format_is_consistent_and_one_more_step_is_not(
    stored: str, dtype: type
) -> None:
    terms, exact = layer()
    weight: Array = exact.astype(dtype)
    assert not inconsistent(terms, FusedConv(weight.astype(float), np.zeros(4)), stored).any()
    weight[2, 3, 1, 0] *= dtype(1 + 16 * np.finfo(dtype).eps)
    odd = inconsistent(terms, FusedConv(weight.astype(float), np.zeros(4)), stored)
    assert list(map(tuple, np.argwhere(odd))) == [(2, 3, 1, 0)]
