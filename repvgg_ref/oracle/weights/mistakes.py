"""What fusers get wrong: a block's expression, or its arrays, with one thing changed.

Of an expression, a branch is left out or added twice, a scale, a shift or a sign ignored. Of the
arrays, each kind is ignored, taken for zero, or exchanged with another of its shape; batch norms
have the mistakes that the library of bugs names (`oracle.bugs.batch_norm`), by the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.constructors import Bias, BiasPad, Scale
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Sum
from repvgg_ref.blocks.parts import with_eps
from repvgg_ref.blocks.priors import Factor
from repvgg_ref.blocks.run import NORM_VECTORS, Linear
from repvgg_ref.files.modules import FoundBlock
from repvgg_ref.oracle.weights.affine import without_affine

UNKEYED = "identity-unkeyed"
GENERAL = ("leaf-zeroed", "leaf-ignored")  # what mostly has a name of its own as well
_EPS = (1e-5, 1e-3, 1e-6, 0.0)
_ONE_BY_ONE = "add every branch once"

Leaves = Mapping[str, Array]
Vectors = dict[str, Array]  # of one norm, by the names of `NORM_VECTORS`


class Mistake(NamedTuple):
    """A bug's name, what it says, its advice, and the expression, eps and arrays that have it.

    `estimate` is its parameter, where it has one.
    """

    bug: str
    says: str
    advice: str
    linear: Linear
    eps: float
    parts: Leaves
    estimate: float | None = None


def mistakes(block: FoundBlock, folded: FoundBlock, parts: Leaves) -> Iterator[Mistake]:
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
    if maybe is not None and (other_block := maybe(linear)) is not None:
        says = "it is right if the identity is what no key tells it to be: there, or not there"
        yield otherwise(UNKEYED, says, "look at the training code", other_block)
    for other in _EPS:
        if other != eps:
            says = f"eps is {other:g}, not {eps:g}"
            alike = with_eps(linear, lambda _: None)
            yield Mistake("eps-value", says, f"fuse with eps {eps:g}", alike, other, parts, other)
    for bug, says, advice, changed in _of_expression(linear):
        yield otherwise(bug, says, advice, changed)
    for bug, says, changed_parts in _of_arrays(parts, block.names, eps):
        yield Mistake(
            bug, says, "take each array as the checkpoint has it", linear, eps, changed_parts
        )


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


# --------------------------------------------------------------------- of the arrays


def _var_as_std(norm: Vectors, eps: float) -> Vectors:
    return norm | {"running_var": (norm["running_var"] + eps) ** 2 - eps}


def _eps_outside(norm: Vectors, eps: float) -> Vectors:
    return norm | {"running_var": (np.sqrt(norm["running_var"]) + eps) ** 2 - eps}


def _mean_unscaled(norm: Vectors, eps: float) -> Vectors:
    mean = norm["running_mean"]
    return norm | {"beta": norm["beta"] - mean, "running_mean": np.zeros_like(mean)}


def _taken_for(**values: float) -> Callable[[Vectors, float], Vectors]:
    """The vectors called so hold one value; a variance so much with its eps."""

    def change(norm: Vectors, eps: float) -> Vectors:
        less = {"running_var": eps}
        return norm | {
            name: np.full_like(norm[name], value - less.get(name, 0.0))
            for name, value in values.items()
        }

    return change


_OF_NORMS: tuple[tuple[str, str, Callable[[Vectors, float], Vectors]], ...] = (
    ("mean-ignored", "the running mean is not subtracted", _taken_for(running_mean=0)),
    (
        "mean-sign",
        "the running mean is added",
        lambda norm, _: norm | {"running_mean": -norm["running_mean"]},
    ),
    ("mean-not-scaled", "the running mean is subtracted without its scale", _mean_unscaled),
    ("beta-ignored", "beta is left out", _taken_for(beta=0)),
    ("gamma-ignored", "gamma is left out", _taken_for(gamma=1)),
    ("variance-ignored", "the running variance is left out", _taken_for(running_var=1)),
    (
        "variance-ignored",
        "the running variance is taken for 1",
        lambda norm, _: norm | {"running_var": np.ones_like(norm["running_var"])},
    ),
    ("var-used-as-std", "the variance is used where its root belongs", _var_as_std),
    ("eps-outside-root", "eps is added to the standard deviation", _eps_outside),
    (
        "stale-statistics",
        "mean 0 and variance 1 are taken for its statistics",
        _taken_for(running_mean=0, running_var=1),
    ),
    (
        "default-batch-norm",
        "it does nothing",
        _taken_for(gamma=1, beta=0, running_mean=0, running_var=1),
    ),
    ("leaf-zeroed", "gamma is zero", _taken_for(gamma=0)),
    ("leaf-zeroed", "the running variance is zero", lambda norm, eps: _zero_variance(norm)),
    *(
        (
            "leaves-exchanged",
            f"{one} and {two} are exchanged",
            lambda norm, _, one=one, two=two: norm | {one: norm[two], two: norm[one]},
        )
        for one, two in combinations(NORM_VECTORS, 2)
    ),
)


def _zero_variance(norm: Vectors) -> Vectors:
    return norm | {"running_var": np.zeros_like(norm["running_var"])}


def _of_arrays(
    parts: Leaves, keys: Mapping[str, str], eps: float
) -> Iterator[tuple[str, str, Leaves]]:
    """The arrays with one of them, or all norms, changed."""
    ends = ".running_var"
    norms = [leaf.removesuffix(ends) for leaf in parts if leaf.endswith(ends)]
    wide = {leaf: np.asarray(array, np.float64) for leaf, array in parts.items()}

    def called(leaf: str) -> str:
        return keys.get(leaf, leaf)

    for bug, says, change in _OF_NORMS:
        for chosen in ([norms] if len(norms) > 1 else []) + [[norm] for norm in norms]:
            changed = dict(wide)
            for norm in chosen:
                changed |= _renamed(norm, change(_vectors(wide, norm), eps))
            where = (
                "every batch norm" if len(chosen) > 1 else called(chosen[0] + ends)[: -len(ends)]
            )
            yield bug, f"{where}: {says}", changed
    for one, two in combinations(norms, 2):
        first, second = _vectors(wide, one), _vectors(wide, two)
        if first["gamma"].shape == second["gamma"].shape:
            places = [called(norm + ends)[: -len(ends)] for norm in (one, two)]
            changed = wide | _renamed(one, second) | _renamed(two, first)
            yield "bn-of-branches-swapped", f"{' and '.join(places)} are exchanged", changed
            for name in NORM_VECTORS:
                changed = wide | {f"{one}.{name}": second[name], f"{two}.{name}": first[name]}
                says = f"{name} of {' and '.join(places)} are exchanged"
                yield "leaves-exchanged", says, changed
    inside = {f"{norm}.{vector}" for norm in norms for vector in NORM_VECTORS}
    others = [leaf for leaf, array in wide.items() if leaf not in inside and array.size]
    for leaf in others:
        yield "leaf-zeroed", f"{called(leaf)} is zero", wide | {leaf: np.zeros_like(wide[leaf])}
    for leaf in others:
        yield "leaf-ignored", f"{called(leaf)} is one", wide | {leaf: np.ones_like(wide[leaf])}
    for one, two in combinations(others, 2):
        if wide[one].shape == wide[two].shape:
            bug = "kernels-exchanged" if wide[one].ndim > 2 else "leaves-exchanged"
            says = f"{called(one)} and {called(two)} are exchanged"
            yield bug, says, wide | {one: wide[two], two: wide[one]}


def _vectors(parts: Leaves, norm: str) -> Vectors:
    return {name: parts[f"{norm}.{name}"] for name in NORM_VECTORS}


def _renamed(norm: str, vectors: Vectors) -> Vectors:
    return {f"{norm}.{name}": array for name, array in vectors.items()}
