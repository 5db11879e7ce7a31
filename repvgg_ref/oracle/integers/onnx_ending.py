"""What follows the last quantised numbers of a graph, up to its outputs.

The rules are the float oracle's: what changes the logits makes another network of it; softmax over
the classes and arg max are customary, and the logits in front of them are judged. Since the numbers
have 8 bits, a clamp that none of them reaches is known to change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_evidence import output_altered
from repvgg_ref.oracle.candidates.onnx_reading import (
    NCHW,
    Clamp,
    Reader,
    Reading,
    channel_map,
    unread,
)
from repvgg_ref.oracle.candidates.onnx_rules import reader as reader_of
from repvgg_ref.oracle.integers.onnx_arrays import StatedBias
from repvgg_ref.oracle.integers.onnx_settings import ONNX, called, not_understood
from repvgg_ref.oracle.integers.onnx_shapes import SHAPING, Shape, reshaped
from repvgg_ref.oracle.integers.onnx_walk import Open, Walk
from repvgg_ref.oracle.report import Finding
from weights_io import sanitize

_CUSTOMARY = frozenset({"Softmax", "LogSoftmax", "ArgMax", "TopK"})
_READ = SHAPING | frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Sum", "Relu", "Clip", "Max", "Min", "Gather", "Slice"}
)
_FLAT = (0, 1)


@dataclass(frozen=True)
class Ending:
    """Behind the last numbers.

    `altered` names the operators that make other numbers of the logits, `meaning` tells two such
    endings apart; `bias` is what is added to logits whose layer has no bias of its own.
    """

    altered: tuple[str, ...] = ()
    meaning: tuple[bytes, ...] = ()
    bias: StatedBias | None = None
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with it."""
        return (output_altered(self.altered),) if self.altered else ()


@dataclass
class _Tail:
    """The walk over the last nodes."""

    walk: Walk
    read: Reader
    shapes: dict[str, Shape]
    customary: dict[str, str] = field(default_factory=dict)  # tensor -> operators
    unread: dict[str, str] = field(default_factory=dict)


def last_tensors(walk: Walk) -> dict[str, Shape]:
    """The tensors that hold the last layer's output, and nothing else."""
    count = len(walk.layers)
    found = {name: each.shape for name, each in walk.numbers.items() if each.layers == count}
    for name, real in walk.real.items():
        if isinstance(real, Open) or real.relu or real.added or real.odd:
            continue
        if real.numbers in found:
            found[name] = real.shape
    return found


def find_ending(
    walk: Walk, last: Mapping[str, Shape], nodes: Iterable[Any], outputs: Sequence[str]
) -> Ending:
    """Follow `nodes` from the tensors `last` to `outputs`.

    Raises
    ------
    CandidateFailure
        If an operator is met of which nobody knows whether it changes the logits.
    """
    count = walk.channels
    start = {
        name: unread(count, _FLAT if shape.kind == "flat" else NCHW, pooled=shape.kind != "image")
        for name, shape in last.items()
    }
    tail = _Tail(walk, reader_of(walk.constants, start), dict(last))
    for node in nodes:
        if not all(each in last for each in node.output):
            _follow(tail, node)
    endings = {each: _ended(tail, each) for each in dict.fromkeys(outputs) if _is_known(tail, each)}
    if not endings:
        raise walk.failure("no output of the graph comes from the last quantised layer")
    right = [each for each in endings.values() if not each.altered]
    if not right:
        return next(iter(endings.values()))
    best = min(right, key=lambda each: len(each.notes))
    others = tuple(
        f"the output {sanitize(name)} is not the logits: behind them comes {listed(each.altered)}"
        for name, each in endings.items()
        if each.altered
    )
    return replace(best, notes=(*best.notes, *others))


def _is_known(tail: _Tail, output: str) -> bool:
    return any(output in each for each in (tail.read.found, tail.customary, tail.unread))


def _follow(tail: _Tail, node: Any) -> None:
    x = next((each for each in node.input if _is_known(tail, each)), None)
    if x is None:
        return
    before = next((tail.unread[each] for each in node.input if each in tail.unread), "")
    if before:
        tail.unread |= dict.fromkeys(node.output, before)
    elif node.domain not in ONNX:
        tail.unread |= dict.fromkeys(node.output, f"{called(node)} of the domain {node.domain}")
    elif x in tail.customary:
        says = tail.customary[x] if node.op_type in SHAPING | {"Cast"} else ""
        known = tail.customary if says else tail.unread
        known |= dict.fromkeys(node.output, says or called(node))
    elif node.op_type in _CUSTOMARY:
        _choose(tail, node, x)
    elif node.op_type in _READ:
        _read(tail, node, x)
    else:
        tail.unread |= dict.fromkeys(node.output, not_understood(node) or called(node))


def _choose(tail: _Tail, node: Any, x: str) -> None:
    """Softmax, arg max: over the classes of unchanged logits they are customary."""
    shape, ending = tail.shapes.get(x), _ended(tail, x)
    default = {"Softmax": -1, "LogSoftmax": -1, "ArgMax": 0, "TopK": -1}[node.op_type]
    if tail.walk.opset < 13 and node.op_type.endswith("oftmax"):
        default = 1  # and all axes behind it
    rank = 2 if shape is None else shape.axes
    axis = setting(node, "axis", default) % rank
    smallest = node.op_type == "TopK" and not setting(node, "largest", 1)
    if ending.altered or smallest or shape is None or shape.kind == "image" or axis != 1:
        name = called(node) + (f" over axis {axis}" if axis != 1 else "")
        tail.unread |= dict.fromkeys(node.output, listed((*ending.altered, name)))
        return
    tail.customary |= dict.fromkeys(node.output, called(node))


def _read(tail: _Tail, node: Any, x: str) -> None:
    shape = tail.shapes.get(x)
    if node.op_type in SHAPING and shape is not None:
        walk = tail.walk
        axes = walk.axes(node) if node.op_type in ("Squeeze", "Unsqueeze") else None
        target = walk.constants.value(node.input[1]) if node.op_type == "Reshape" else None
        off = node.op_type != "Dropout" or len(node.input) < 3
        shape = reshaped(node, shape, walk.channels, axes, target) if off else None
        if shape is None:
            tail.unread |= dict.fromkeys(node.output, f"{called(node)}, which moves numbers")
            return
    before = len(tail.read.found[x].after)
    tail.read.read([node])
    y = tail.read.found[node.output[0]]
    if any(not isinstance(each, Clamp) for each in y.after[before:]):
        del tail.read.found[node.output[0]]
        tail.unread |= dict.fromkeys(node.output, called(node))
    elif shape is not None:
        tail.shapes[node.output[0]] = shape


def _ended(tail: _Tail, output: str) -> Ending:
    """What became of the logits in the tensor `output`."""
    if output in tail.unread:
        raise tail.walk.failure(
            "what becomes of the logits behind the last quantised layer is not known",
            got=tail.unread[output],
            wanted="logits; or Softmax, LogSoftmax, ArgMax or TopK over the classes, and no more",
        )
    if output in tail.customary:
        says = f"not part of the network, left out at the end: {tail.customary[output]}"
        return Ending(notes=(says,))
    reading = tail.read.found[output]
    mapped = channel_map(reading.form)
    classes = np.arange(len(reading.form.bias))
    plain = mapped is not None and len(mapped[0]) == len(classes)
    plain = plain and np.array_equal(mapped[0], classes) and bool((mapped[1] == 1).all())  # type: ignore[index]
    shift = np.asarray(reading.form.bias, np.float64)
    clamps = [each for each in reading.after if _acts(tail.walk, each, shift)]
    if plain and not clamps and not shift.any():
        return Ending()
    if plain and not clamps and np.isfinite(shift).all() and _lacks_bias(tail.walk):
        return Ending(bias=StatedBias(shift, np.zeros(len(shift))))
    linear = tuple(map(str, reading.steps)) if not plain or shift.any() else ()
    return Ending((*linear, *map(str, clamps)) or ("a sum",), _meaning(reading))


def _lacks_bias(walk: Walk) -> bool:
    last = walk.layers[-1]
    return last.kind == "linear" and not np.any(last.bias) and last.name not in walk.stated


def _acts(walk: Walk, clamp: Any, shift: Array) -> bool:
    """Whether a clamp meets a number that the last layer can give; behind a shift it may."""
    if not isinstance(clamp, Clamp) or shift.any():
        return True
    held = walk.layers[-1].output
    range_ = np.iinfo(held.dtype)
    low, high = held.real(np.array([range_.min, range_.max], held.dtype)).astype(np.float64)
    return bool(clamp.low > low or clamp.high < high)


def _meaning(reading: Reading) -> tuple[bytes, ...]:
    """Equal for two endings that do the same."""
    kernels = [np.asarray(each.kernel, np.float64).tobytes() for each in reading.form.terms]
    scales = [np.asarray(each.scale, np.float64).tobytes() for each in reading.form.terms]
    after = [str(each).encode() for each in reading.after]
    return (*kernels, *scales, np.asarray(reading.form.bias, np.float64).tobytes(), *after)
