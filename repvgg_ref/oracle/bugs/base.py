"""What a hypothesis is: a named way to compute a layer wrongly, with what to tell its author."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.programs.program import BlockProgram


class Variant(NamedTuple):
    """One setting of a hypothesis: the wrong program, and the parameter that tells it apart."""

    program: BlockProgram
    parameter: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Site:
    """Where a hypothesis is tried.

    Attributes
    ----------
    program : BlockProgram
        The layer as it should be.
    x : array, shape (N, C, H, W)
        The candidate's own input of the layer.
    y_hat : array or None
        The candidate's output, for hypotheses that read a permutation off it.
    is_stem : bool
        Whether the input is the image.
    others : mapping
        Every layer's correct program, for swapped layers.
    alike : sequence of str
        The names of other layers of the same shape.
    """

    program: BlockProgram
    x: Array
    y_hat: Array | None = None
    is_stem: bool = False
    others: Mapping[str, BlockProgram] = field(default_factory=dict)
    alike: tuple[str, ...] = ()


Mutation = Callable[[Site], Iterator[Variant]]


@dataclass(frozen=True)
class Hypothesis:
    """A bug class: its name, what it says of a candidate, and how it is computed.

    Attributes
    ----------
    says : str
        A sentence about the candidate; ``{parameter}`` and ``{detail}`` are filled in.
    continuous : bool
        The parameter is a number to be fitted, not a choice.
    global_bug : bool
        A port that has it usually has it in every layer.
    precision : frozenset of str
        Precisions in which this is no bug but what was asked for.
    """

    name: str
    family: str
    says: str
    advice: str
    mutate: Mutation
    continuous: bool = False
    global_bug: bool = True
    precision: frozenset[str] = frozenset()

    def variants(self, site: Site) -> Iterator[Variant]:
        """The ways of having this bug at `site`; none where it changes nothing."""
        yield from self.mutate(site)


def hypothesis(
    registry: list[Hypothesis],
    name: str,
    *,
    says: str,
    advice: str,
    continuous: bool = False,
    global_bug: bool = True,
    precision: tuple[str, ...] = (),
) -> Callable[[Mutation], Mutation]:
    """Register the decorated mutation under `name`; the family is its module's name."""

    def register(mutate: Mutation) -> Mutation:
        family = mutate.__module__.rsplit(".", 1)[1]
        registry.append(
            Hypothesis(
                name, family, says, advice, mutate, continuous, global_bug, frozenset(precision)
            )
        )
        return mutate

    return register


def round_to_bits(x: Array, bits: int, *, truncate: bool = False) -> Array:
    """Round float64 to `bits` of significand (bf16 8, TF32 and fp16 11), ties to even.

    The exponent range is not limited; `truncate` chops toward zero as cheap hardware does.
    """
    mantissa, exponent = np.frexp(x)
    scaled = mantissa * 2.0**bits
    return np.asarray(np.ldexp(np.trunc(scaled) if truncate else np.rint(scaled), exponent - bits))
