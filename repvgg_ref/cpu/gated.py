"""SiLU, GELU and gates of channels in the fused graph: on buffers that are there, in cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.workers.pool import Stage, Step, portion, prepared
from repvgg_ref.ops.gelu import normal_cdf

NUMBERS = 60_000  # of a block of rows: 240 KB of float32
SMALLEST = -80.0  # below, exp(-x) would leave float32; what comes out is x times 2e-35 there


def row_stage(
    steps: Callable[[Array, Array], list[Step]], x: Array, y: Array, threads: int
) -> Stage:
    """`silu_steps` or `gelu_steps` of images (N, H, W, C), a block of rows at a time."""
    images, height, width, channels = y.shape
    rows = max(1, NUMBERS // max(1, width * channels))
    parts = min(height, max(-(-height // rows), threads))

    def block(worker: int, item: int) -> list[Step]:
        image, part = divmod(item, parts)
        some = portion(height, part, parts)
        mine = slice(some.start, some.stop)
        return steps(x[image, mine], y[image, mine])

    return prepared(images * parts, block)


def silu_steps(x: Array, y: Array) -> list[Step]:
    """``y = x / (1 + exp(-x))`` of two arrays that do not overlap."""
    return [
        partial(np.maximum, x, x.dtype.type(SMALLEST), out=y),
        partial(np.negative, y, out=y),
        partial(np.exp, y, out=y),
        partial(np.add, y, 1, out=y),
        partial(np.divide, x, y, out=y),
    ]


def gelu_steps(x: Array, y: Array) -> list[Step]:
    """``y = x Phi(x)``: erfc in float64."""
    return [lambda: np.multiply(x, normal_cdf(x), out=y)]


def gate(name: str, x: Array, params: Mapping[str, Array], y: Array, *, relu: bool = False) -> None:
    """One image (H, W, C) times ``sigmoid(up(silu(down(its mean))))``; `y` may be `x`."""
    down, up = (params[f"{name}.{layer}.weight"][:, :, 0, 0] for layer in ("down", "up"))
    middle = down @ x.mean(axis=(0, 1)) + params[f"{name}.down.bias"]
    active = np.maximum(middle, 0)
    for step in [] if relu else silu_steps(middle, active):
        step()
    logits = up @ active + params[f"{name}.up.bias"]
    np.multiply(x, 1 / (1 + np.exp(-np.maximum(logits, SMALLEST))), out=y)
