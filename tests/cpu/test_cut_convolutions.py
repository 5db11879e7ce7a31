"""A convolution of many channels is a sum of parts: its transformed weights stay small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.cpu.convolution import conv2d
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.workers import memory
from repvgg_ref.ops import REFERENCE

HOW: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_parts_add_up(monkeypatch: pytest.MonkeyPatch, has_bias: bool, relu: bool) -> None:
    """In small integers, which float32 adds without rounding in any order."""
    monkeypatch.setattr(conv2d, "_MOST_PACKED", 36 * 40 * 8 * 4)
    monkeypatch.setattr(conv2d, "_FEWEST_CHANNELS", 16)
    monkeypatch.setattr(conv2d, "_algorithm", lambda *_: "winograd4")
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 11, 13, 83)).astype(np.float32)
    weight = rng.integers(-3, 4, (8, 83, 3, 3)).astype(np.float32)
    bias = rng.integers(-30, 30, 8).astype(np.float32) if has_bias else None
    shape = ConvShape(2, 11, 13, 83, 8)
    assert conv2d._parts(shape, "winograd4", 4) == 3
    compute = conv2d.conv_bias_relu if relu else lambda *a, **k: conv2d.conv2d_forward(*a, **k)[0]
    y = compute(x, weight, bias, **HOW)
    wide = x.transpose(0, 3, 1, 2).astype(np.float64)
    exact, _ = REFERENCE.conv2d_forward(wide, weight.astype(np.float64), bias, **HOW)
    exact = np.maximum(exact, 0) if relu else exact
    error = np.abs(y.transpose(0, 3, 1, 2) - exact).max()
    assert error <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("channels", "algorithm", "parts"),
    [
        (2560, "winograd4", 4),  # a PSPNet's head on RepVGG-A0: 190 MB
        (4096, "winograd4", 6),
        (512, "winograd4", 1),  # of so few channels no part would be better
        (2560, "direct", 1),
        (2560, "winograd2", 2),
    ],
)
def test_into_how_many(channels: int, algorithm: Any, parts: int) -> None:
    assert conv2d._parts(ConvShape(1, 90, 90, channels, 512), algorithm, 4) == parts


def test_idle_memory_is_given_back_oldest_first() -> None:
    idle = memory._Idle()
    for size in (300, 200, 100):
        idle.put(memory.aligned(size))
    idle.keep(350)
    assert [held.size for _, held in idle._waiting] == [200, 100]
    idle.keep(0)
    assert not idle._waiting


def test_evaluation_keeps_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d, "_KEPT", 1 << 20)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 65, 65, 64), np.float32)
    y = conv2d.conv_bias_relu(x, rng.standard_normal((64, 64, 3, 3), np.float32), None, **HOW)
    assert sum(held.size for _, held in memory.IDLE._waiting) <= 1 << 20 < y.nbytes
