"""The end of a graph: where the last block ends, and what becomes of the logits.

What is linear in the features belongs to the classifier and is judged with it. Softmax over the
classes and arg max are customary behind it: the logits in front of them are judged. They are told
by their values, so it does not matter how they are written. Everything else that follows the logits
makes another network of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.onnx_chain import (
    CONVOLUTIONS,
    POOLS,
    REDUCTIONS,
    Chain,
    Step,
    is_gate,
    is_pool,
    weight_dims,
)
from repvgg_ref.oracle.candidates.onnx_reading import (
    NCHW,
    OVERFLOW,
    Axes,
    Clamp,
    Opaque,
    Reading,
    unread,
)
from repvgg_ref.oracle.candidates.onnx_rules import reader
from repvgg_ref.oracle.candidates.onnx_walk import (
    NHWC_TO_NCHW,
    QUANTISERS,
    STRAIGHT,
    Perm,
    Tap,
    before,
    walked_back,
)

_AVERAGED: dict[tuple[int, ...], Perm] = {(2, 3): STRAIGHT, (1, 2): NHWC_TO_NCHW}
_FLATTENERS = frozenset({"Flatten", "Reshape", "Squeeze"})
_PRODUCTS = frozenset(
    {"Gemm", "MatMul", "FusedGemm", "FusedMatMul", "QLinearMatMul", "MatMulInteger", "QGemm"}
)
_FLAT: Axes = (0, 1)
_FAR = 1024.0  # times the largest logit: what is cut off there is no logit


@dataclass(frozen=True)
class Ending:
    """From the classifier to the graph's output.

    Attributes
    ----------
    logits : Tap
        The last tensor that is linear in the features.
    output : str
        The graph's own.
    linear, others : tuple of str
        The operators behind the classifier, its bias aside, up to the logits and behind them.
    guard : Clamp or None
        What follows the logits first, if it cuts off what is large only.
    """

    logits: Tap
    output: str
    linear: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    guard: Clamp | None = None

    def is_guarded(self, logits: Array, output: Array) -> bool:
        """Whether all that follows guards against overflow, far above what these logits are."""
        guard = self.guard
        if guard is None or len(self.others) > 1:
            return False
        least = max(OVERFLOW, _FAR * float(np.abs(logits).max(initial=0.0)))
        is_far = guard.low <= -least and guard.high >= least
        return (
            is_far and logits.size == output.size and bool((logits.ravel() == output.ravel()).all())
        )


def last_block(chain: Chain, producer: int) -> Tap:
    """The tensor in front of the pool, or of the classifier if that comes first."""
    steps = chain.steps
    end = producer + 1
    while end < len(steps) and not _starts_head(chain, end):
        end += 1
    if end == len(steps):
        return walked_back(
            steps, producer + _activation_length(steps[producer + 1 :]), producer, None
        )
    return walked_back(steps, end - 1, producer, _layout_at(chain, end))


def find_ending(chain: Chain, producer: int, arch: Network) -> Ending | None:
    """The classifier behind the step `producer`, the last block's, and what follows it."""
    steps = chain.steps
    behind = range(producer + 1, len(steps))
    products = [
        i for i in behind if _multiplies(steps[i]) and not is_pool(steps[i], chain.constants)
    ]
    if not products:
        return None
    last = products[-1]
    pooled = any(is_pool(steps[i], chain.constants) for i in range(producer + 1, last))
    start = _classified(chain, steps[last], pooled, arch)
    read = reader(chain.constants, {steps[last].tensor: start})
    at, reading = last, start
    for i in range(last + 1, len(steps)):
        if steps[i].single in QUANTISERS:  # they round; whether too much shows in the values
            read.found[steps[i].tensor] = reading
        else:
            read.read(steps[i].nodes)
        found = read.found.get(steps[i].tensor)
        if found is None:
            reading = reading.then(Opaque(steps[i].nodes[-1].op_type, ""))
            read.found[steps[i].tensor] = reading
            continue
        reading = found
        if reading.is_linear:
            at = i
    bias = bool(reading.steps) and reading.steps[0].operator == "Add" and not _has_bias(steps[last])
    linear = reading.steps[1:] if bias else reading.steps
    return Ending(
        Tap(steps[at].tensor, None, at),
        chain.output,
        tuple(map(str, linear)),
        tuple(map(str, reading.after)),
        next((each for each in reading.after[:1] if isinstance(each, Clamp)), None),
    )


def customary(logits: Array, output: Array, unit: float) -> str:
    """What is usual behind logits (N, K) and gives `output`, by its values; "" if nothing is."""
    y = logits.reshape(len(logits), -1).astype(np.float64)
    if not np.isfinite(y).all() or y.shape[1] < 2:
        return ""
    shifted = y - y.max(axis=1, keepdims=True)
    logarithm = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    ordered = -np.sort(-y, axis=1)
    if output.dtype.kind in "iu":
        chosen = output.reshape(len(y), -1) if output.size % len(y) == 0 else output[None]
        fits = chosen.shape[0] == len(y) and 0 < chosen.shape[1] <= y.shape[1]
        if not fits or chosen.min() < 0 or chosen.max() >= y.shape[1]:
            return ""
        best = np.take_along_axis(y, chosen.astype(np.int64), axis=1)
        named = "arg max" if chosen.shape[1] == 1 else "the indices of the largest"
        return named if np.array_equal(best, ordered[:, : chosen.shape[1]]) else ""
    for name, wanted in (("softmax", np.exp(logarithm)), ("log-softmax", logarithm)):
        allowed = 32 * unit * (1 + np.abs(wanted))
        if output.size == wanted.size and len(output) == len(y):
            error = np.abs(output.reshape(y.shape).astype(np.float64) - wanted)
            if (error <= allowed).all():
                return name
    best = ordered[:, : output.shape[-1]] if output.ndim == 2 else ordered[:, :0]
    return "the largest" if best.shape == output.shape and np.array_equal(best, output) else ""


def _classified(chain: Chain, step: Step, pooled: bool, arch: Network) -> Reading:
    """The classifier's output, not read yet."""
    node = next(n for n in step.nodes[::-1] if _is_product(n))
    convolved = node.op_type in CONVOLUTIONS
    dims = weight_dims(node, chain.constants)
    count = arch.num_classes
    if dims is not None and len(dims) > 1:
        count = dims[0] if convolved or setting(node, "transB", 0) else dims[-1]
    flat = _FLAT if pooled else (0, 2, 3, 1)
    start = unread(count, NCHW if convolved else flat, pooled=pooled)
    activation = setting(node, "activation", "")
    return start.then(Opaque(activation, node.name)) if activation else start


def _has_bias(step: Step) -> bool:
    """Whether the classifier adds its bias itself."""
    return any(_is_product(node) and len(node.input) > 2 for node in step.nodes)


def _is_product(node: Any) -> bool:
    return node.op_type in _PRODUCTS or node.op_type in CONVOLUTIONS


def _multiplies(step: Step) -> bool:
    """Whether the classifier may be in a step."""
    return any(_is_product(node) for node in step.nodes) and not is_gate(step)


def _starts_head(chain: Chain, i: int) -> bool:
    """Pool, classifier, or the power in front of a generalised mean (with a clip to above 0)."""
    step = chain.steps[i]
    following = chain.steps[i + 1].single if i + 1 < len(chain.steps) else ""
    return (
        is_pool(step, chain.constants)
        or step.single in _PRODUCTS | {"Pow"}
        or (step.single in _FLATTENERS and step.tensor not in chain.blocked)
        or (step.single in CONVOLUTIONS and setting(step.nodes[0], "group", 1) == 1)
        or (step.single in ("Clip", "Max") and following == "Pow")
    )


def _layout_at(chain: Chain, end: int) -> Perm | None:
    """What makes the tensor in front of step `end` NCHW: the first operator that needs to know."""
    perm: Perm | None = None
    for i in range(end, len(chain.steps)):
        step = chain.steps[i]
        if step.single in POOLS | CONVOLUTIONS:
            perm = STRAIGHT
        elif step.single in REDUCTIONS:
            perm = _AVERAGED.get(_axes(step.nodes[0], chain))
        elif step.single in ("Clip", "Max", "Pow", "Transpose"):
            continue
        for passed in reversed(chain.steps[end:i]):
            perm = before(passed, perm)
        return perm
    return None


def _activation_length(steps: tuple[Step, ...]) -> int:
    """Steps of a graph without pool and head that are still the block's: up to the last ReLU."""
    last = [i for i, step in enumerate(steps) if step.single in ("Relu", "Clip", "Max", "Mul")]
    return last[-1] + 1 if last else 0


def _axes(node: Any, chain: Chain) -> tuple[int, ...]:
    """The axes a reduction averages over, counted from the front."""
    axes = setting(node, "axes")
    if axes is None:
        given = chain.constants.value(node.input[1]) if len(node.input) > 1 else None
        axes = [] if given is None else given.reshape(-1)[:8]
    return tuple(sorted(int(axis) % 4 for axis in axes))
