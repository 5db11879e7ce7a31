"""The table: the fused entry follows the table's own primitives, unless a backend has its own."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.ops import REFERENCE, Ops
from tests.ops.cases import ConvCase, conv_law
from tests.ops.exact import assert_exact


@conv_law
def test_conv_bias_relu_is_its_three_parts(ops: Ops, case: ConvCase) -> None:
    x, weight, bias = case.arrays()
    y = ops.conv_bias_relu_forward(x, weight, bias, **case.settings)
    parts = ops.conv2d_forward(x, weight, None, **case.settings)[0] + bias[:, None, None]
    assert_exact(y, ops.relu_forward(parts)[0])


def test_a_bug_planted_in_a_primitive_shows_in_the_fused_entry() -> None:
    planted = replace(REFERENCE, relu_forward=lambda x: (x, None))
    x = np.full((1, 1, 1, 1), -1.0)
    y = planted.conv_bias_relu_forward(x, -x, None, stride=1, padding=0, dilation=1, groups=1)
    assert y == -1


def test_a_backend_may_bring_its_own_fused_entry() -> None:
    def fused(x: Array, weight: Array, bias: Array | None, /, **settings: object) -> Array:
        assert settings == {"stride": 2, "padding": 0, "dilation": 1, "groups": 1}
        return x + weight

    ops = replace(REFERENCE, fused_conv_bias_relu=fused)
    one = np.ones((1, 1, 1, 1))
    assert (
        ops.conv_bias_relu_forward(one, one, None, stride=2, padding=0, dilation=1, groups=1) == 2
    )


def test_a_table_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        REFERENCE.name = "mine"  # type: ignore[misc]
