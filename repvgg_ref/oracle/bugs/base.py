"""What a bug is: a named way to compute something wrongly, with what to tell its author.

`Bug`, `Site`, `Variant` and `Mutant` know nothing of what is computed: P is a block's program, the
head's, a training setup, or whatever else a function can make a wrong one of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.programs.block import BlockProgram

P = TypeVar("P")
Mutation = Callable[["Site[P]"], Iterator["Variant[P]"]]
# What people add to a variance: 1e-2 at most, and a hundredth of it for the fit.
EPS_ADMISSIBLE = (0.0, 1.01e-2)
Scope = Literal["any", "layer", "network"]


class Variant(NamedTuple, Generic[P]):
    """One setting of a bug: the wrong program, and the parameter that tells it apart.

    `at` gives the program for other values of a continuous parameter.
    """

    program: P
    parameter: float | None = None
    detail: str = ""
    at: Callable[[float], P] | None = None

    @property
    def label(self) -> str:
        """What tells it from the bug's other variants, in a word or two."""
        if self.detail or self.parameter is None:
            return self.detail
        return f"{self.parameter:g}"


@dataclass(frozen=True)
class Site(Generic[P]):
    """Where a bug is tried.

    Attributes
    ----------
    program : P
        The layer, or whatever is tried, as it should be.
    x : array, shape (N, C, H, W)
        The candidate's own input of it.
    y_hat : array or None
        The candidate's output, for bugs that read a permutation off it.
    is_stem : bool
        Whether the input is the image.
    others : mapping
        Every layer's correct program, for swapped layers.
    alike : sequence of str
        The names of other layers of the same shape.
    """

    program: P
    x: Array
    y_hat: Array | None = None
    is_stem: bool = False
    others: Mapping[str, P] = field(default_factory=dict)
    alike: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bug(Generic[P]):
    """A bug class: its name, what it says of a candidate, and how it is computed.

    Attributes
    ----------
    family : str
        The module it is written in.
    says : str
        A sentence about the candidate; ``{parameter}`` and ``{detail}`` are filled in.
    mutate : callable
        From a site to the ways of having this bug there; none where it changes nothing.
    continuous : bool
        The parameter is a number to be fitted, not a choice.
    scope : str
        Where it sits: "layer", in one alone; "network", in the port as a whole; "any", in one or
        in all layers.
    precision : frozenset of str
        Precisions in which this is no bug but what was asked for.
    admissible : (float, float)
        The least and the largest parameter that the name can mean. What has no parameter of its own
        is fitted with a coefficient, and is there once: the only admissible one is 1.
    right : float
        The parameter of what is right: an estimate is what there is beside it.
    """

    name: str
    family: str
    says: str
    advice: str
    mutate: Mutation[P]
    continuous: bool = False
    scope: Scope = "any"
    precision: frozenset[str] = frozenset()
    admissible: tuple[float, float] = (-np.inf, np.inf)
    right: float = 0.0


@dataclass(frozen=True)
class Mutant(Generic[P]):
    """One bug planted; `layer` None: in every layer. `where` is added to what is said of it.

    `also`: the other layers that it is planted in, which are all that can have it.
    """

    bug: Bug[P]
    variant: Variant[P]
    layer: str | None = None
    where: str = ""
    also: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """The bug's sentence, filled in."""
        variant = self.variant
        said = self.bug.says.format(parameter=variant.parameter or 0.0, detail=variant.detail)
        return said + self.where

    def is_admissible(self, error: float = 0.0) -> bool:
        """Whether the bug can mean this parameter, off by `error` at most."""
        low, high = self.bug.admissible
        parameter = self.variant.parameter
        return parameter is None or low - error <= parameter <= high + error


_LIBRARY: dict[str, list[Bug[Any]]] = {}


def bug(
    name: str,
    *,
    says: str,
    advice: str,
    continuous: bool = False,
    scope: Scope = "any",
    precision: tuple[str, ...] = (),
    admissible: tuple[float, float] = (-np.inf, np.inf),
) -> Callable[[Mutation[P]], Mutation[P]]:
    """Register the decorated mutation under `name`; the family is its module's name."""

    def register(mutate: Mutation[P]) -> Mutation[P]:
        module = mutate.__module__
        family = module.rsplit(".", 1)[1]
        excused = frozenset(precision)
        made = Bug(name, family, says, advice, mutate, continuous, scope, excused, admissible)
        _LIBRARY.setdefault(module, []).append(made)
        return mutate

    return register


def library(*modules: ModuleType) -> tuple[Bug[Any], ...]:
    """The bugs of some modules, in the order in which they stand there."""
    return tuple(found for module in modules for found in _LIBRARY[module.__name__])


def planted(
    bugs: Iterable[Bug[P]], site: Site[P], layer: str | None = None, *, precision: str = ""
) -> Iterator[Mutant[P]]:
    """Every variant of every bug at one site, but for what `precision` excuses."""
    for each in bugs:
        if precision not in each.precision:
            for variant in each.mutate(site):
                yield Mutant(each, variant, layer)


def behind(program: P, change: Callable[[Array], Array]) -> P:
    """A program with a function of its output behind it, and behind what is there already."""
    wide: Any = program
    first = wide.output_map
    both = change if first is None else lambda y: change(first(y))
    return cast(P, replace(wide, output_map=both))


def order_of_channels(site: Site[Any]) -> Array | None:
    """Which of our output channels each of the candidate's is nearest to; None if all its own."""
    if site.y_hat is None:
        return None
    y = site.program.evaluate(site.x)
    if y.size != site.y_hat.size:
        return None
    ours = np.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
    theirs = np.moveaxis(site.y_hat, 1, 0).reshape(y.shape[1], -1)
    distance = (theirs**2).sum(1)[:, None] + (ours**2).sum(1) - 2 * theirs @ ours.T
    order = np.argmin(distance, axis=1)
    if len(np.unique(order)) < len(order):  # channels that are always off look alike
        order = scipy.optimize.linear_sum_assignment(distance)[1]
    return order if (order != np.arange(len(order))).any() else None


def round_to_bits(x: Array, bits: int, *, truncate: bool = False) -> Array:
    """Round float64 to `bits` of significand (bf16 8, TF32 and fp16 11), ties to even.

    The exponent range is not limited; `truncate` chops toward zero as cheap hardware does.
    """
    mantissa, exponent = np.frexp(x)
    scaled = mantissa * 2.0**bits
    return np.asarray(np.ldexp(np.trunc(scaled) if truncate else np.rint(scaled), exponent - bits))


BlockSite = Site[BlockProgram]
BlockVariants = Iterator[Variant[BlockProgram]]
