"""What fusers get wrong: a block's expression, or its arrays, with one thing changed.

Of an expression, a branch is left out or added twice, a scale, a shift or a sign ignored; what is
done to the arrays stands in `array_mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.constructors import Bias, BiasPad, Scale
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Sum
from repvgg_ref.blocks.parts import with_eps
from repvgg_ref.blocks.priors import Factor
from repvgg_ref.blocks.run import Linear
from repvgg_ref.files.modules import FoundBlock
from repvgg_ref.oracle.weights.affine import without_affine
from repvgg_ref.oracle.weights.array_mistakes import WRONG_EPS, Arrays, Wrong

UNKEYED = "identity-unkeyed"
GENERAL = (
    "leaf-zeroed",
    "leaf-ignored",
    "leaf-negated",
)  # what mostly has a name of its own as well
_ONE_BY_ONE = "add every branch once"


class Mistake(NamedTuple):
    """A bug's name, what it says, its advice, and the expression, eps and arrays that have it.

    `estimate` is its parameter, where it has one.
    """

    bug: str
    says: str
    advice: str
    linear: Linear
    eps: float
    parts: Mapping[str, Array]
    estimate: float | None = None


def mistakes(
    block: FoundBlock, folded: FoundBlock, parts: Mapping[str, Array]
) -> Iterator[Mistake]:
    """Everything that is tried, the likeliest first.

    Parameters
    ----------
    block, folded : FoundBlock
        The block as the file has it, and with the affine part that it may have kept.
    parts : mapping
        The leaves of the expression -> their arrays.
    """
    linear, eps = block.linear, block.eps

    def otherwise(bug: str, says: str, advice: str, other: Linear) -> Mistake:
        return Mistake(bug, says, advice, other, eps, parts)

    plain, affine = without_affine(folded.linear)
    called = " and ".join(part.name for part in affine)
    if folded is not block:
        says = f"{called} are folded into the convolution and still stand beside it"
        advice = "drop them, or fuse without them"
        yield otherwise("scale-doubled", says, advice, folded.linear)
    elif len(affine) > 1:
        says, advice = f"{called} are ignored", "fold them in, or keep them beside it"
        yield otherwise("scale-ignored", says, advice, plain)
        says = f"{called} are applied in the other order"
        advice = "the scale multiplies first, then the shift is added"
        yield otherwise("affine-order", says, advice, Chain(plain, *reversed(affine)))
    maybe = block.member.maybe if block.is_unsure else None
    if maybe is not None and (other_block := _read_otherwise(linear, maybe)) is not None:
        says = "it is right if the identity is what no key tells it to be: there, or not there"
        yield otherwise(UNKEYED, says, "look at the training code", other_block)
    for other in WRONG_EPS:
        if other != eps:
            says = f"eps is {other:g}, not {eps:g}"
            alike = with_eps(linear, lambda _: None)
            yield Mistake("eps-value", says, f"fuse with eps {eps:g}", alike, other, parts, other)
    for bug, says, advice, changed in _of_expression(linear):
        yield otherwise(bug, says, advice, changed)
    yield from _with_arrays(block, Arrays(parts, block.names, eps).mistakes())


def _read_otherwise(linear: Any, maybe: Callable[[Any], Linear | None]) -> Linear | None:
    """What its keys may mean, too, with what is folded into it from behind."""
    if not isinstance(linear, Chain):
        return maybe(linear)
    other = maybe(linear.parts[0])
    return None if other is None else Chain(other, *linear.parts[1:])


def rare_mistakes(block: FoundBlock, parts: Mapping[str, Array]) -> Iterator[Mistake]:
    """What is tried where nothing of `mistakes` gives the numbers."""
    return _with_arrays(block, Arrays(parts, block.names, block.eps).rare_mistakes())


def _with_arrays(block: FoundBlock, wrong: Iterable[Wrong]) -> Iterator[Mistake]:
    advice = "take each array as the checkpoint has it"
    for bug, says, changed in wrong:
        yield Mistake(bug, says, advice, block.linear, block.eps, changed)


# ---------------------------------------------------------------- of the expression


def _of_expression(linear: Any) -> Iterator[tuple[str, str, str, Linear]]:
    """The expression with a branch left out or doubled, or a scale or shift ignored."""
    if isinstance(linear, Sum):
        for place, part in enumerate(linear.parts):
            rest = [*linear.parts[:place], *linear.parts[place + 1 :]]
            called = _called(part)
            if rest:
                yield "branch-missing", f"{called} is left out", _ONE_BY_ONE, Sum(*rest)
            twice = Sum(*linear.parts, part)
            yield "branch-doubled", f"{called} is added twice", _ONE_BY_ONE, twice
            for bug, says, advice, inner in _of_expression(part):
                other = Sum(*linear.parts[:place], inner, *linear.parts[place + 1 :])
                yield bug, says, advice, other
    if isinstance(linear, Chain):
        for place, part in enumerate(linear.parts):
            before, after = linear.parts[:place], linear.parts[place + 1 :]
            if isinstance(part, Scale | Bias):
                several = getattr(part, "row", None)
                row = "" if several is None else f", row {several},"
                bug = "scale-ignored" if isinstance(part, Scale) else "bias-missing"
                advice = "multiply by it" if isinstance(part, Scale) else "add it"
                yield bug, f"{part.name}{row} is ignored", advice, Chain(*before, *after)
            if isinstance(part, Factor):
                says = f"{_called(linear)} is not subtracted"
                yield "sign-lost", says, "mind its sign", Chain(*before, *after)
            for bug, says, advice, inner in _of_expression(part):
                others = (_bordered(each, part, inner) for each in after)
                yield bug, says, advice, Chain(*before, inner, *others)
    if isinstance(linear, Conv) and linear.bias:
        says = f"the bias of {linear.name} is left out"
        yield "bias-missing", says, "fold it in, too", replace(linear, bias=False)


def _bordered(part: Any, before: Any, changed: Any) -> Any:
    """A border of the bias of a convolution that has `changed`, with it."""
    is_its = isinstance(part, BiasPad) and part.conv == before
    return replace(part, conv=changed) if is_its else part


def _called(part: Any) -> str:
    if isinstance(part, Identity):
        return "the identity"
    if isinstance(part, Sum):
        return f"the sum that begins with {_called(part.parts[0])}"
    if isinstance(part, Chain):
        first = part.parts[0]
        return "the identity's batch norm" if isinstance(first, Identity) else _called(first)
    return str(getattr(part, "name", "a branch"))
