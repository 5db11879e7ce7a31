"""Certified bounds of nodes that are no blocks: sums, means, matrices, resizing, pools, copies.

All are ``y = A x`` with known weights, or the larger of such numbers. Sums of k terms err by
``theta_k`` of ``|A| |x|``; a runtime computes places of pixels in float32, so that a weight of a
resizing is wrong by some units of the last place of a side: `_PLACES` u (H + W) of the sum of the
pixels around.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import AdaptiveAvgPool, ResizeAs, Zoom
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import AddRelu, GlobalAvgPool, Linear, Pass
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.squeeze_excitation import theta

_PLACES = 8  # roundings of a place between two pixels, and of the weights made of it
_WEIGHTS = 6  # roundings of a product of two weights and a pixel
_FLOAT32 = 2.0**-24


def node_bound(node: Node, xs: list[Array], run: Pass, p: Precision) -> Array:
    """The bound of a map between blocks on its inputs `xs`; of what only copies, one rounding."""
    sizes = [np.abs(x) for x in xs]
    size = _size(node, sizes, run)
    once = theta(p.u_input, 1) + theta(p.u_store, 2)
    floor = p.tiny + p.u_store * float(size.max(initial=0)) * 2.0**-20
    if isinstance(node.op, AddRelu):
        return np.asarray((once + theta(p.u_accumulate, 2)) * size + floor)
    if isinstance(node.op, GlobalAvgPool | Linear):
        terms = node.op.features if isinstance(node.op, Linear) else xs[0][0, 0].size
        steps = once + theta(p.u_weight, 1) + theta(p.u_accumulate, terms + 2)
        return np.asarray(steps * size + floor)
    if isinstance(node.op, AdaptiveAvgPool):
        height, width = xs[0].shape[2:]
        terms = -(-height // node.op.bins + 1) * -(-width // node.op.bins + 1)
        return np.asarray((once + theta(p.u_accumulate, abs(terms) + _WEIGHTS)) * size + floor)
    if isinstance(node.op, ResizeAs | Zoom):
        sides = sum(xs[0].shape[2:])
        around = _around(sizes[0], size.shape[2:])
        steps = once + theta(p.u_accumulate, _WEIGHTS)
        return np.asarray(steps * size + _PLACES * _FLOAT32 * sides * around + floor)
    return np.asarray(once * size + floor)


def moved(node: Node, slacks: list[Array], run: Pass) -> Array:
    """By how much an output may move if its inputs do by `slacks`, all of them at once."""
    return _size(node, slacks, run, bias=False)


def _size(node: Node, sizes: list[Array], run: Pass, *, bias: bool = True) -> Array:
    """The sum of the magnitudes of each output's terms, for inputs of these magnitudes."""
    if isinstance(node.op, Linear):
        weight, own = (np.abs(run.params[f"{node.name}.{part}"]) for part in ("weight", "bias"))
        return np.asarray(sizes[0] @ weight.T + own * bias)  # (N, K) = (N, C) @ (C, K)
    return np.asarray(node.op.forward(node.name, sizes, run)[0])


def _around(x: Array, size: tuple[int, ...]) -> Array:
    """The sum of all pixels that may have a part in each of the resized ones."""
    rows, columns = (_near(n, k) for n, k in zip(size, x.shape[2:], strict=True))
    return np.asarray(rows @ x @ columns.T)


def _near(outputs: int, pixels: int) -> Array:
    matrix = np.zeros((outputs, pixels))
    first = np.arange(outputs) * (pixels - 1) // max(outputs - 1, 1)
    for offset in (-1, 0, 1, 2):
        matrix[np.arange(outputs), (first + offset).clip(0, pixels - 1)] = 1
    return matrix
