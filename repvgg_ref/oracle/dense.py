"""What stands between the blocks of a network: how each output is bounded, what it may be instead.

Sums, means, matrices, resizing and pooling are ``y = A x`` with known weights, or the larger of
such numbers. Sums of k terms err by ``theta_k`` of ``|A| |x|``; a runtime computes places of pixels
in float32, so that a weight is wrong by some units of the last place of a side: `_PLACES` u (H + W)
of the sum of the pixels around.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.dense import AdaptiveAvgPool, Concat, ResizeAs, Zoom
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import AddRelu, GlobalAvgPool, Linear, Pass
from repvgg_ref.models.network import DEFAULT_EPS, Model
from repvgg_ref.oracle.bounds.comparison import compare
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.squeeze_excitation import theta
from repvgg_ref.oracle.programs.layers import block_program
from repvgg_ref.oracle.report import Finding

_PLACES = 8  # roundings of a place between two pixels, and of the weights made of it
_WEIGHTS = 6  # roundings of a product of two weights and a pixel
_FLOAT32 = 2.0**-24
_DILATIONS = (1, 2, 4)
_OTHER_EPS = 1e-3  # YOLO's and Keras's


def dense_inputs(model: Model) -> Array:
    """Images for a candidate that was given none: no square, and no bin divides them."""
    rng = np.random.default_rng(0)
    shape = 2, model.arch.in_channels, 97, 81
    return rng.standard_normal(shape).astype(np.float32)


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
    """By how much an output between blocks may move with its inputs, all of them at once."""
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


def block_bugs(
    model: Model, spec: BlockSpec, x: Array, own: Array, precision: Precision
) -> Iterator[Finding]:
    """What else the block may have been computed with, to rounding."""
    for step in _DILATIONS if spec.kernel > 1 else ():
        program = block_program(model, replace(spec, dilation=step))
        if step != spec.dilation and compare(program, x, own, precision).report.ok:
            bug = "dilation-ignored" if step == 1 else "dilation-added"
            says = f"its dilation is {step}, where {spec.dilation} belongs"
            advice = "only the last layers of stage 3 are dilated in the fast form"
            yield Finding(bug, spec.name, float(step), 1.0, 1.0, says, advice)
    if model.form == "train":
        eps = _OTHER_EPS if model.eps != _OTHER_EPS else DEFAULT_EPS
        program = block_program(replace(model, eps=eps), spec)
        if compare(program, x, own, precision).report.ok:
            says = f"its batch norm has eps {eps:g}, where {model.eps:g} belongs"
            yield Finding(
                "eps-value", spec.name, eps, 1.0, 1.0, says, "no checkpoint holds it: see --eps"
            )


def between_bugs(node: Node, xs: list[Array], own: Array, bound: Array) -> Iterator[Finding]:
    """Other ways to resize, pool, add and join that are in use."""
    for bug, y, says in alternatives(node, xs):
        if y.shape == own.shape and bool((np.abs(own - y) <= 4 * bound).all()):
            yield Finding(bug, node.name, None, 1.0, 1.0, says, ADVICE[bug])


ADVICE = {
    "shortcut-missing": "add the block's input, or its projection, before the last ReLU",
    "shortcut-alone": "add what the convolutions give to the shortcut",
    "relu-missing": "the sum of a residual block is followed by a ReLU",
    "relu-before-sum": "of a residual block's last convolution no ReLU is taken before the sum",
    "corners-not-aligned": "align_corners=True, or coordinate_transformation_mode=align_corners",
    "nearest-pixel": "bilinear interpolation belongs there",
    "concat-order": "the feature map comes first, then bins 1, 2, 3, 6",
}


def alternatives(node: Node, xs: list[Array]) -> Iterator[tuple[str, Array, str]]:
    """What a node between blocks may be taken for: the bug, its output, and in words."""
    if isinstance(node.op, ResizeAs | Zoom):
        size = node.op.extent([(x.shape[1], x.shape[2], x.shape[3]) for x in xs])[1:]
        unaligned = [_unaligned(n, k) for n, k in zip(size, xs[0].shape[2:], strict=True)]
        y = unaligned[0] @ xs[0] @ unaligned[1].T
        yield "corners-not-aligned", y, "it resizes without aligning the corners"
        near = [np.arange(n) * k // n for n, k in zip(size, xs[0].shape[2:], strict=True)]
        yield "nearest-pixel", xs[0][:, :, near[0]][:, :, :, near[1]], "it takes the nearest pixel"
    elif isinstance(node.op, AddRelu):
        main, shortcut = xs
        yield "shortcut-missing", np.maximum(main, 0), "it adds no shortcut"
        yield "shortcut-alone", np.maximum(shortcut, 0), "it is the shortcut alone"
        yield "relu-missing", main + shortcut, "no ReLU follows the sum"
        yield "relu-before-sum", np.maximum(main, 0) + shortcut, "a ReLU is taken before the sum"
    elif isinstance(node.op, Concat):
        for order in ([*xs[1:], xs[0]], [xs[0], *xs[:0:-1]]):
            yield "concat-order", np.concatenate(order, axis=1), "its parts are in another order"


def _unaligned(outputs: int, pixels: int) -> Array:
    """Interpolation between the middles of pixels: torch's ``align_corners=False``."""
    place = np.maximum((np.arange(outputs) + 0.5) * pixels / outputs - 0.5, 0)
    first = np.floor(place).astype(int)
    matrix = np.zeros((outputs, pixels))
    np.add.at(matrix, (np.arange(outputs), first), 1 - (place - first))
    np.add.at(matrix, (np.arange(outputs), (first + 1).clip(0, pixels - 1)), place - first)
    return matrix
