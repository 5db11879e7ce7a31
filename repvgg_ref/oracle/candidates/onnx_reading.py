"""What a part of an ONNX graph computes: one convolution, and what comes behind it.

Every tensor is *read* as a `Reading`: the normal form (`blocks.form`) of all that is linear between
the part's input and it, and the operators behind that are not. An operator's meaning is a rule
(`onnx_rules`): a function from the readings of its inputs to that of its output. What no rule
understands is kept by its name, never guessed.

The rules know neither blocks nor branches: three branches with their batch norms, a kernel with the
norm folded in, groups convolved one by one and put together again, and a head in front of its
pool all come out as the one kernel that they equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.form import Form, Lattice, Pair, Term, add, compose, ungrouped
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.files.onnx_graph.constants import Constants
from weights_io import sanitize

Axes = tuple[int, ...]
Sides = tuple[int, int, int, int]

NCHW: Axes = (0, 1, 2, 3)
CHANNELS = 1  # this axis of NCHW
_LARGEST_BLOCK = 16  # channels, in any layout
_LARGEST = float(np.finfo(np.float32).max)
OVERFLOW = 65504.0  # float16's largest: a clip there guards, and changes nothing of this size


@dataclass(frozen=True)
class Clamp:
    """``min(max(x, low), high)``: ReLU is from 0 to infinity."""

    low: float
    high: float

    @classmethod
    def between(cls, low: Any, high: Any) -> Clamp:
        """Ends as operators give them: one number; None, or float32's largest, for none."""
        lowest = -np.inf if low is None else float(np.reshape(low, ()))
        highest = np.inf if high is None else float(np.reshape(high, ()))
        return cls(
            -np.inf if lowest <= -_LARGEST else lowest, np.inf if highest >= _LARGEST else highest
        )

    def after(self, first: Clamp) -> Clamp:
        """The one clamp that is `first` and then this."""
        low, high = (min(max(end, self.low), self.high) for end in (first.low, first.high))
        return Clamp(low, high)

    def __str__(self) -> str:
        return "Relu" if self == RELU else f"Clip to {self.low:g} .. {self.high:g}"


RELU = Clamp(0.0, np.inf)


@dataclass(frozen=True)
class Gate:
    """Times something that the tensor itself decides: squeeze-and-excitation."""

    def __str__(self) -> str:
        return "a gate"


@dataclass(frozen=True)
class Opaque:
    """An operator that no rule understands here."""

    operator: str
    node: str

    def __str__(self) -> str:
        return f"{self.operator} (node {self.node})" if self.node else self.operator


@dataclass(frozen=True)
class Reading:
    """How a tensor depends on the input of the part.

    Attributes
    ----------
    form : Form
        The linear part.
    after : tuple of Clamp, Gate and Opaque
        What follows it, in order.
    axes : tuple of int
        Which axis of NCHW each axis of the tensor is.
    growth : (int, int)
        Of the image, before the stride: border less what the kernel takes.
    border : (top, left, bottom, right)
        Zeros around the tensor that are not in `form` yet: the next convolution's affair.
    pooled : bool
        Averaged over the image. The mean and what is linear in the channels commute.
    stored : frozenset of str
        The element types in which the file holds the kernels.
    steps : tuple of Opaque
        The linear operators behind the last product, by name.
    """

    form: Form
    after: tuple[Clamp | Gate | Opaque, ...] = ()
    axes: Axes = NCHW
    growth: Pair = (0, 0)
    border: Sides = (0, 0, 0, 0)
    pooled: bool = False
    stored: frozenset[str] = frozenset()
    steps: tuple[Opaque, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether `form` is all."""
        return not self.after

    def then(self, operator: Clamp | Gate | Opaque) -> Reading:
        """The same, `operator` behind it; clamps are put together."""
        before, last = self.after[:-1], self.after[-1] if self.after else None
        if operator == Clamp(-np.inf, np.inf):
            return self
        if isinstance(operator, Clamp) and isinstance(last, Clamp):
            return replace(self, after=(*before, operator.after(last)))
        return replace(self, after=(*self.after, operator))

    def named(self, node: Any) -> Reading:
        """The same, remembering that it came through the linear operator `node`."""
        return replace(self, steps=(*self.steps, Opaque(node.op_type, sanitize(node.name))))

    def rows(self, channels: Array) -> Reading:
        """Some channels, in the order given."""
        whole: Any = ungrouped(self.form, 1)
        return replace(self, form=whole.part(channels, slice(None)))

    def filled(self, channels: int) -> Reading:
        """The same with channels of zeros behind, as a blocked layout has them.

        Raises
        ------
        ValueError
            If that is no filling of one block.
        """
        own = len(self.form.bias)
        if own == channels:
            return self
        if own == 1 or channels - own >= _LARGEST_BLOCK:
            raise ValueError("parts of different channels")
        whole = ungrouped(self.form, 1).placed(slice(0, own), channels)
        return replace(self, form=whole)

    def through(self, second: Form, growth: Pair = (0, 0)) -> Reading:
        """The same through a convolution.

        Raises
        ------
        NotFusibleError
            If no single convolution is both, borders included.
        """
        sides = zip(self.growth, self.form.stride, growth, strict=True)
        rows, columns = (own + stride * more for own, stride, more in sides)
        return replace(
            self,
            form=_composed(second, self.form),
            growth=(rows, columns),
            border=(0, 0, 0, 0),
            steps=(),
        )


# A Reading, an array, or None where nothing is known. Which of them stands where is the operator's
# affair: a rule that meets another than it expects fails, and the node is opaque.
Operand = Any
Rule = Callable[[Any, list[Operand], "Reader"], Reading | tuple[Reading, ...] | None]


class Rules(dict[str, Rule]):
    """Operator -> how it is read."""

    def rule(self, *operators: str) -> Callable[[Rule], Rule]:
        """Enter a rule for `operators`."""

        def enter(function: Rule) -> Rule:
            self.update(dict.fromkeys(operators, function))
            return function

        return enter

    def linear(self, *operators: str) -> Callable[[Rule], Rule]:
        """Enter a rule that holds while everything before is linear."""

        def enter(function: Rule) -> Rule:
            def guarded(node: Any, operands: list[Operand], reader: Reader) -> Any:
                readings = [each for each in operands if isinstance(each, Reading)]
                linear = all(each.is_linear for each in readings)
                return function(node, operands, reader) if linear else None

            return self.rule(*operators)(guarded)

        return enter


class Reader:
    """Reads nodes, producers first.

    Attributes
    ----------
    found : dict of tensor -> Reading
    """

    def __init__(self, constants: Constants, rules: dict[str, Rule], start: dict[str, Reading]):
        self.constants, self.rules, self.found = constants, rules, dict(start)

    def read(self, nodes: Iterable[Any]) -> None:
        """Read `nodes`; of those that depend on no tensor that is read, nothing."""
        for node in nodes:
            operands = [self._operand(name) for name in node.input]
            readings = [each for each in operands if isinstance(each, Reading)]
            if not readings:
                continue
            meant = self._meaning(node, operands)
            if meant is None:
                meant = readings[0].then(Opaque(node.op_type, sanitize(node.name)))
            many = meant if isinstance(meant, tuple) else (meant,) * len(node.output)
            self.found |= dict(zip(node.output, many, strict=False))

    def _operand(self, name: str) -> Operand:
        if not name:
            return None
        return self.found[name] if name in self.found else self.constants.value(name)

    def _meaning(self, node: Any, operands: list[Operand]) -> Any:
        rule = self.rules.get(node.op_type)
        if rule is None:
            return None
        try:
            with np.errstate(all="ignore"):
                return rule(node, operands, self)
        except (
            NotFusibleError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ):
            return None  # nothing has checked the graph: the node may lack anything


def unread(channels: int, axes: Axes = NCHW, *, pooled: bool = False) -> Reading:
    """The input of a part: itself."""
    one = np.ones(channels)
    kernel = np.ones((channels, 1, 1, 1))
    term = Term(kernel, one, Lattice((0, 0), (1, 1), (1, 1)))
    return Reading(Form((term,), 0 * one, 0 * one, (1, 1), channels, 0), axes=axes, pooled=pooled)


def total(readings: list[Reading]) -> Reading:
    """The sum of parts of one stride, size and layout; the last block of channels may be full."""
    count = max(len(each.form.bias) for each in readings)
    readings = [each.filled(count) for each in readings]
    first = readings[0]
    for other in readings[1:]:
        alike = (other.axes, other.growth, other.form.stride, other.border, other.pooled)
        if alike != (first.axes, first.growth, first.form.stride, first.border, first.pooled):
            raise ValueError("parts of different sizes")
    if len({_inputs(each.form) for each in readings}) > 1:
        raise ValueError("parts of different inputs")
    groups = int(np.gcd.reduce([each.form.groups for each in readings]))
    form = add([ungrouped(each.form, groups) for each in readings])
    stored = frozenset().union(*(each.stored for each in readings))
    return replace(first, form=form, stored=stored, steps=())


def _inputs(form: Form) -> int:
    return form.groups * int(form.terms[0].kernel.shape[1])


def channel_map(form: Form) -> tuple[Array, Array] | None:
    """``y[o] = scale[o] x[source[o]] + bias``: `source` and `scale`, if the form is that."""
    if not form.is_pointwise:
        return None
    taps = ungrouped(form, 1).at((0, 0))  # (O, C)
    source = np.argmax(taps != 0, axis=1)
    alone = (taps != 0).sum(axis=1) <= 1
    if not alone.all():
        return None
    return source, taps[np.arange(len(taps)), source]


def _composed(second: Form, first: Form) -> Form:
    """`second` of `first`, as it is stored where `first` is the input itself."""
    if _is_input(first):
        return second
    groups = int(np.gcd(second.groups, first.groups))
    return compose(ungrouped(second, groups), ungrouped(first, groups), None, groups=groups)


def _is_input(form: Form) -> bool:
    channels = len(form.bias)
    if form.groups != channels or not form.is_pointwise or len(form.terms) != 1:
        return False
    own = form.terms[0]
    return bool((own.kernel.reshape(channels, -1) == 1).all() and (own.scale == 1).all()) and not (
        form.bias.any()
    )
