"""The composed kinds of the family: every fused tap is the exact value, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from repvgg_ref.blocks.catalogue import one_conv
from repvgg_ref.blocks.fusion import fuse_exactly, fuse_linear
from repvgg_ref.blocks.run import Linear
from repvgg_ref.blocks.selfcheck import check_linear
from repvgg_ref.exact.rounding import nearest
from tests.blocks.expressions import bordered, exactly, float_params, mixed, online, paper

COMPOSED: dict[str, Callable[[], Linear]] = {
    "mixed": mixed,
    "mixed, wide kernel": lambda: mixed(3, 7),
    "online": lambda: online(1, 2, 3),
    "online, grouped": lambda: online(2, 4, 6),
    "online, depthwise": lambda: online(3, 3, 3, 5),
    "bordered": lambda: bordered(2, 3),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", COMPOSED)
def test_taps_are_the_exact_values_correctly_rounded(name: str, dtype: Any) -> None:
    """In rationals, by ``==``; roots have 256 bits."""
    linear = COMPOSED[name]()
    params = float_params(linear, seed=4, dtype=np.float32)
    conv, eps = one_conv(linear, name), 1e-5
    fused = fuse_linear(name, linear, conv, params, eps=eps, dtype=dtype)
    exact = fuse_exactly(linear, {key: exactly(array) for key, array in params.items()}, eps)
    for got, want in zip(fused, exact, strict=True):
        assert got.dtype == dtype
        assert got.ravel().tolist() == [nearest(value, dtype) for value in want.ravel()]


@pytest.mark.parametrize("name", COMPOSED)
def test_the_self_check_passes_and_sees_a_changed_tap(name: str) -> None:
    linear = COMPOSED[name]()
    params = float_params(linear, seed=8, dtype=np.float32)
    conv = one_conv(linear, name)
    fused = fuse_linear(name, linear, conv, params, eps=1e-5, dtype=np.float32)
    assert check_linear(name, linear, conv, params, fused, eps=1e-5).ok
    fused.weight[-1, -1, 0, -1] += np.abs(fused.weight).max() * np.float32(1e-4)
    assert not check_linear(name, linear, conv, params, fused, eps=1e-5).ok


@pytest.mark.parametrize("factor", [0, 1e-44, 1e-30, 1e30])
def test_kernels_that_float32_cannot_sum_pass_the_self_check(factor: float) -> None:
    """Their magnitudes are summed in float64; the batch norms bring the products back."""
    linear = paper()
    params = float_params(linear, seed=8, dtype=np.float32)
    for name in ("k.conv.weight", "p.conv.weight"):
        params[name][1:] = (params[name][1:].astype(np.float64) * factor).astype(np.float32)
    for name in ("k.bn", "p.bn"):
        params[f"{name}.gamma"][1:] *= np.float32(min(1 / factor, 1e37) if factor else 1)
        params[f"{name}.running_mean"][1:] = 0
    conv = one_conv(linear, "paper")
    fused = fuse_linear("paper", linear, conv, params, eps=1e-5, dtype=np.float32)
    assert check_linear("paper", linear, conv, params, fused, eps=1e-5).ok
    fused.weight[-1, -1, 0, -1] += max(np.abs(fused.weight).max(), np.float32(1)) / 1000
    assert not check_linear("paper", linear, conv, params, fused, eps=1e-5).ok
