"""What stands between the blocks of a residual network: its bounds, and what it may be instead.

Sums, means and matrices are ``y = A x`` with known weights, or the larger of such numbers. Sums of
k terms err by ``theta_k`` of ``|A| |x|``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import AddRelu, GlobalAvgPool, Linear, Pass
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.squeeze_excitation import theta
from repvgg_ref.oracle.report import Finding


def between_bound(node: Node, xs: list[Array], run: Pass, p: Precision) -> Array:
    """The bound of what stands between blocks; of what only copies, one rounding."""
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
    return np.asarray(once * size + floor)


def moved(node: Node, slacks: list[Array], run: Pass) -> Array:
    """By how much an output between blocks may move with its inputs, all of them at once."""
    return _size(node, slacks, run, bias=False)


def _size(node: Node, sizes: list[Array], run: Pass, *, bias: bool = True) -> Array:
    """The sum of the magnitudes of each output's terms, for inputs of these magnitudes."""
    if isinstance(node.op, Linear):
        weight, own = (np.abs(run.params[f"{node.name}.{part}"]) for part in ("weight", "bias"))
        return np.asarray(sizes[0] @ weight.T + own * bias)  # (N, K) = (N, C) @ (C, K)
    return np.asarray(node.op.forward(node.name, sizes, run)[0])


def between_bugs(node: Node, xs: list[Array], own: Array, bound: Array) -> Iterator[Finding]:
    """Other ways to add that are in use."""
    for bug, y, says in alternatives(node, xs):
        if y.shape == own.shape and bool((np.abs(own - y) <= 4 * bound).all()):
            yield Finding(bug, node.name, None, 1.0, 1.0, says, ADVICE[bug])


ADVICE = {
    "shortcut-missing": "add the block's input, or its projection, before the last ReLU",
    "shortcut-alone": "add what the convolutions give to the shortcut",
    "relu-missing": "the sum of a residual block is followed by a ReLU",
    "relu-before-sum": "of a residual block's last convolution no ReLU is taken before the sum",
}


def alternatives(node: Node, xs: list[Array]) -> Iterator[tuple[str, Array, str]]:
    """What a node between blocks may be taken for: the bug, its output, and in words."""
    if isinstance(node.op, AddRelu):
        main, shortcut = xs
        yield "shortcut-missing", np.maximum(main, 0), "it adds no shortcut"
        yield "shortcut-alone", np.maximum(shortcut, 0), "it is the shortcut alone"
        yield "relu-missing", main + shortcut, "no ReLU follows the sum"
        yield "relu-before-sum", np.maximum(main, 0) + shortcut, "a ReLU is taken before the sum"
