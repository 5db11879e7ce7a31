"""An expression of the algebra as sums whose terms are kernels of one input, for `expression`.

What a chain does before its last norm is a *step*; kernels without a norm of their own between them
and their sum add up to one kernel, so ``BN(W3 x + W1 x + x)`` costs what ``BN(W3 x)`` does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from repvgg_ref.blocks.average import AvgPool
from repvgg_ref.blocks.constructors import FormulaConv, Pad, Relu
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.cpu.training.convolutions import Geometry


class Term(NamedTuple):
    """`kernels` that add up, of what `steps` make of x, then a norm by its name.

    Without a convolution among the kernels the term is what the steps make, or x.
    """

    steps: tuple[Any, ...] = ()  # each a `Mix`, a `Pad` or an `AvgPool`
    kernels: tuple[Any, ...] = ()  # each a `Conv`, a `FormulaConv` or an `Identity`
    norm: str | None = None

    @property
    def convs(self) -> list[Conv]:
        """The geometry of its kernels, but for identities."""
        return [conv_of(kernel) for kernel in self.kernels if not isinstance(kernel, Identity)]


class Mix(NamedTuple):
    """A sum of terms, and a ReLU; `geometry` is that of the terms' kernels of x itself."""

    terms: tuple[Term, ...]
    relu: bool
    geometry: Geometry


class UnknownError(Exception):
    """The expression has a part that `expression` cannot run."""


@lru_cache(maxsize=1024)
def mix_of(linear: Any) -> Mix | None:
    """The whole expression as one sum; None if it has parts that are not known here."""
    try:
        steps, pending = _split(linear)
        return _mix([_term(steps, pending)] if steps else pending or [])
    except UnknownError:
        return None


def geometry_of(term: Term) -> Geometry:
    """How a term's kernels meet what they are applied to."""
    return _geometry([term])


def conv_of(kernel: Any) -> Conv:
    """The geometry of a kernel that is stored, or computed."""
    found: Conv = kernel.conv if isinstance(kernel, FormulaConv) else kernel
    return found


def _split(part: Any) -> tuple[list[Any], list[Term] | None]:
    """Steps, and the terms that wait for a norm or an end; None if nothing waits."""
    if type(part) is Sum:
        return [], _summed(part)
    if type(part) is Chain:
        return _chained(part)
    stored = isinstance(part, Conv) and not part.bias
    computed = isinstance(part, FormulaConv) and not isinstance(part, AvgPool)
    if not (stored or computed or isinstance(part, Identity)):
        raise UnknownError
    return [], [Term(kernels=(part,))]


def _chained(chain: Chain) -> tuple[list[Any], list[Term] | None]:
    steps: list[Any] = []
    pending: list[Term] | None = None
    for part in chain.parts:
        if isinstance(part, Norm):
            if pending is None or len(pending) > 1 or pending[0].norm is not None:
                steps += [_mix(pending)] if pending else []
                pending = [Term()]
            pending = [pending[0]._replace(norm=part.name)]
        elif isinstance(part, Relu):
            steps.append(_mix(pending or [Term()], relu=True))
            pending = None
        else:
            steps += [_mix(pending)] if pending else []
            pending = None
            if isinstance(part, Pad | AvgPool):
                steps.append(part)
            else:
                before, pending = _split(part)
                steps += before
    return steps, pending


def _summed(whole: Sum) -> list[Term]:
    terms: list[Term] = []
    for part in whole.parts:
        steps, pending = _split(part)
        terms += [_term(steps, pending)] if steps else pending or []
    bare = [term for term in terms if not term.steps and term.norm is None]
    together = Term(kernels=tuple(kernel for term in bare for kernel in term.kernels))
    if len(bare) > 1 and _fits([together]):
        terms = [together, *(term for term in terms if term not in bare)]
    return terms


def _term(steps: list[Any], pending: list[Term] | None) -> Term:
    """What waits behind some steps, as one term of x."""
    if pending is None:
        return Term(tuple(steps))
    if len(pending) > 1 or pending[0].steps:
        return Term((*steps, _mix(pending)))
    return pending[0]._replace(steps=tuple(steps))


def _mix(terms: list[Term], *, relu: bool = False) -> Mix:
    for term in terms:
        _geometry([term])
    if not _fits([term for term in terms if not term.steps]):  # each by itself then
        terms = [term if term.steps or not term.kernels else _alone(term) for term in terms]
    return Mix(tuple(terms), relu, _geometry([term for term in terms if not term.steps]))


def _alone(term: Term) -> Term:
    """A term whose kernels are a step of their own."""
    kernels = _mix([term._replace(norm=None)])
    return Term((kernels,), norm=term.norm)


def _fits(terms: list[Term]) -> bool:
    """Whether the kernels have one geometry."""
    try:
        _geometry(terms)
    except UnknownError:
        return False
    return True


def _geometry(terms: list[Term]) -> Geometry:
    """What the kernels have in common.

    Raises
    ------
    UnknownError
        If they differ, or lie so that they cannot be put into one square kernel.
    """
    convs = [conv for term in terms for conv in term.convs]
    if not convs:
        return Geometry()
    steps = {d for conv in convs for d, k in zip(conv.dilation, conv.kernel, strict=True) if k > 1}
    strides, groups = {s for conv in convs for s in conv.stride}, {conv.groups for conv in convs}
    if max(len(steps), len(strides), len(groups)) > 1:
        raise UnknownError
    (stride,), (group,), dilation = strides, groups, next(iter(steps), 1)
    if all(_is_centred(conv) for conv in convs):
        return Geometry(stride, dilation, group)
    (first, *others), kernels = convs, sum(len(term.kernels) for term in terms)
    if others or kernels > 1 or len({*first.padding}) > 1 or len({*first.kernel}) > 1:
        raise UnknownError
    return Geometry(stride, dilation, group, first.padding[0])


def _is_centred(conv: Conv) -> bool:
    sides = zip(conv.padding, conv.dilation, conv.kernel, strict=True)
    return all(k % 2 and p == k // 2 * d for p, d, k in sides)
