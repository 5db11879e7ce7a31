"""Networks that say a class for every pixel, judged layer by layer, each by itself.

As for chains, each layer is computed in float64 from the candidate's *own* inputs, and its output
held against a certified bound of that layer's rounding: of blocks `bounds.block`, of the linear
maps between them the bound below. What a candidate leaves out between blocks (pools, resizing,
concatenation) is computed for it, and how far its own may be from that is added to the next
block's bound.

Resizing and pooling are ``y = A x B'`` with weights that are not negative. Sums of k terms err by
``theta_k`` of ``A |x| B'``; a runtime computes places in float32, so that a weight is wrong by some
units of the last place of a side: `_PLACES` u (H + W) of the sum of the pixels around.

Only the certified bounds judge here: none of the statistical tests for chains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.dense import AdaptiveAvgPool, Concat, ResizeAs, Zoom
from repvgg_ref.models.graph import INPUT, Node
from repvgg_ref.models.layers import Block, Extent, Pass
from repvgg_ref.models.network import DEFAULT_EPS, Model, fuse
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bounds.comparison import compare
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.squeeze_excitation import theta
from repvgg_ref.oracle.programs.layers import block_program
from repvgg_ref.oracle.report import EVERYWHERE, Finding, LayerReport, Report

_PLACES = 8  # roundings of a place between two pixels, and of the weights made of it
_WEIGHTS = 6  # roundings of a product of two weights and a pixel
_FLOAT32 = 2.0**-24
_DILATIONS = (1, 2, 4)
_OTHER_EPS = 1e-3  # YOLO's and Keras's
_NOTE = (
    "each layer of a network that is no chain is held to its certified bound alone: errors far"
    " below it are not looked for"
)


class Known(NamedTuple):
    """A layer's output and how far the candidate's own may be from it: 0 where it is its own."""

    y: Array
    slack: Array | None


def dense_inputs(model: Model) -> Array:
    """Images for a candidate that was given none: no square, and no bin divides them."""
    rng = np.random.default_rng(0)
    shape = 2, model.arch.in_channels, 97, 81
    return rng.standard_normal(shape).astype(np.float32)


def judge_dense(
    model: Model, outputs: Mapping[str, Array], x: Array, precision: Precision, candidate: str
) -> Report:
    """The verdict on layer outputs of a candidate, NCHW by layer name, for the images `x`."""
    known: dict[str, Known] = {INPUT: Known(np.asarray(x, np.float64), None)}
    run = Pass(
        _wide(fuse(model) if model.form == "train" else model), REFERENCE, model.eps, "deploy"
    )
    layers: list[LayerReport] = []
    findings: list[Finding] = []
    extents: dict[str, Extent] = {INPUT: (x.shape[1], x.shape[2], x.shape[3])}
    for node in model.arch.evaluated:
        inputs = [known.get(name) for name in node.inputs]
        own = outputs.get(node.name)
        own = None if own is None else np.asarray(own, np.float64)
        extents[node.name] = node.op.extent([extents[name] for name in node.inputs])
        if own is not None and own.shape != (wanted := (len(x), *extents[node.name])):
            layers.append(_incomparable(node.name, own.shape, wanted))
            continue  # what is behind it has no input that can be computed with
        if all(each is not None for each in inputs) and (own is not None or _is_between(node)):
            judged = _judged(model, node, [i for i in inputs if i is not None], own, run, precision)
            if own is None:
                known[node.name] = judged.known
            else:
                layers.append(judged.report)
                if not judged.report.ok:
                    findings += judged.findings
        if own is not None and np.isfinite(own).all():
            known[node.name] = Known(own, None)
    return _report(model, layers, findings, outputs, precision, candidate)


class _Judged(NamedTuple):
    known: Known
    report: LayerReport
    findings: list[Finding]


def _judged(
    model: Model,
    node: Node,
    inputs: list[Known],
    own: Array | None,
    run: Pass,
    precision: Precision,
) -> _Judged:
    xs, slacks = [each.y for each in inputs], [each.slack for each in inputs]
    if isinstance(node.op, Block):
        assert own is not None
        report = _block(model, node.op.spec, xs[0], slacks[0], own, run, precision)
        found = [] if report.ok else list(_block_bugs(model, node.op.spec, xs[0], own, precision))
        return _Judged(Known(own, None), report, found)
    y = node.op.forward(node.name, xs, run)[0]
    bound = _linear_bound(node, xs, run, precision)
    for position, slack in enumerate(slacks):
        if slack is not None:
            moved = [slack if i == position else 0 * x for i, x in enumerate(xs)]
            bound = bound + node.op.forward(node.name, moved, run)[0]
    if own is None:
        return _Judged(Known(y, bound), LayerReport(node.name, 0.0, 0.0, 0.0, ok=True), [])
    report = _held(node.name, y, own, bound)
    found = [] if report.ok else list(_linear_bugs(node, xs, own, bound))
    return _Judged(Known(own, None), report, found)


def _block(
    model: Model,
    spec: BlockSpec,
    x: Array,
    slack: Array | None,
    own: Array,
    run: Pass,
    precision: Precision,
) -> LayerReport:
    """A block's report."""
    found = compare(block_program(model, spec), x, own, precision)
    if found.bound is None or slack is None:
        return found.report
    weight = np.abs(run.params[f"{spec.name}.fused.weight"])
    half = spec.kernel // 2 * spec.dilation
    how = {"stride": spec.stride, "padding": half, "dilation": spec.dilation, "groups": spec.groups}
    bound = found.bound.certified + REFERENCE.conv2d_forward(slack, weight, None, **how)[0]
    return _held(spec.name, found.y, own, bound)


def _held(name: str, y: Array, own: Array, bound: Array) -> LayerReport:
    """The report of an output against its bound."""
    error = np.abs(own - y)
    ratio = error / bound
    at = np.unravel_index(np.argmax(ratio), ratio.shape)  # argmax stops at a NaN
    ok = bool((error <= bound).all())
    return LayerReport(name, float(error[at]), float(bound[at]), float(ratio[at]), ok=ok)


def _incomparable(name: str, *shapes: tuple[int, ...]) -> LayerReport:
    got, wanted = ("x".join(map(str, each)) for each in shapes)
    return LayerReport.incomparable(name, f"shape {got} instead of {wanted}")


def _linear_bound(node: Node, xs: list[Array], run: Pass, p: Precision) -> Array:
    """The bound of a map between blocks; of what only copies, one rounding."""
    sizes = [np.abs(x) for x in xs]
    size = node.op.forward(node.name, sizes, run)[0]
    once = theta(p.u_input, 1) + theta(p.u_store, 2)
    floor = p.tiny + p.u_store * float(size.max(initial=0)) * 2.0**-20
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


def _is_between(node: Node) -> bool:
    """Whether a candidate may leave this output out."""
    return not isinstance(node.op, Block)


def _block_bugs(
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


def _gathered(findings: list[Finding], bad: list[str]) -> tuple[Finding, ...]:
    """A wrong eps once, where it is in all layers that are bad; dilations are each layer's own."""
    eps = [each for each in findings if each.bug == "eps-value"]
    if len(eps) > 1 and [each.layer for each in eps] == bad:
        return (replace(eps[0], layer=EVERYWHERE),)
    return tuple(findings)


def _linear_bugs(node: Node, xs: list[Array], own: Array, bound: Array) -> Iterator[Finding]:
    """Other ways to resize, pool and join that are in use."""
    for bug, y, says in _alternatives(node, xs):
        if y.shape == own.shape and bool((np.abs(own - y) <= 4 * bound).all()):
            yield Finding(bug, node.name, None, 1.0, 1.0, says, _ADVICE[bug])


_ADVICE = {
    "corners-not-aligned": "align_corners=True, or coordinate_transformation_mode=align_corners",
    "nearest-pixel": "bilinear interpolation belongs there",
    "concat-order": "the feature map comes first, then bins 1, 2, 3, 6",
}


def _alternatives(node: Node, xs: list[Array]) -> Iterator[tuple[str, Array, str]]:
    if isinstance(node.op, ResizeAs | Zoom):
        size = node.op.extent([(x.shape[1], x.shape[2], x.shape[3]) for x in xs])[1:]
        unaligned = [_unaligned(n, k) for n, k in zip(size, xs[0].shape[2:], strict=True)]
        y = unaligned[0] @ xs[0] @ unaligned[1].T
        yield "corners-not-aligned", y, "it resizes without aligning the corners"
        near = [np.arange(n) * k // n for n, k in zip(size, xs[0].shape[2:], strict=True)]
        yield "nearest-pixel", xs[0][:, :, near[0]][:, :, :, near[1]], "it takes the nearest pixel"
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


def _report(
    model: Model,
    layers: list[LayerReport],
    findings: list[Finding],
    outputs: Mapping[str, Array],
    precision: Precision,
    candidate: str,
) -> Report:
    names = model.arch.name, candidate, precision.name
    if not layers:
        why = "no layer's input and output are both known: give its layers, not its logits alone"
        return Report("cannot-judge", why, *names)
    bad = next((layer.name for layer in layers if not layer.ok), None)
    blocks = [spec.name for spec in model.arch.blocks]
    judged = {layer.name for layer in layers}
    missing = [name for name in (*blocks, model.arch.head.name) if name not in judged]
    if bad is not None:
        known = _gathered(findings, [layer.name for layer in layers if not layer.ok])
        known = known or (Finding("unknown", bad, None, 0.0, 0.0),)
        why = f"{bad} is beyond its certified bound"
        return Report(
            "disagree", why, *names, tuple(layers), known, bad, notes=(_NOTE,),
        )  # fmt: skip
    if missing:
        why = f"all that is known agrees, but nothing is known of {', '.join(missing[:5])}"
        return Report("cannot-judge", why, *names, tuple(layers), notes=(_NOTE,))
    most = max(layer.ratio for layer in layers)
    why = f"all {len(layers)} layers are within their certified bounds (at most {most:.1%} of one)"
    return Report("agree", why, *names, tuple(layers), notes=(_NOTE,))


def _wide(model: Model) -> dict[str, Any]:
    return {name: np.asarray(array, np.float64) for name, array in model.params.items()}
