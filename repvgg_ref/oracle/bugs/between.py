"""Activations, gates and shortcuts done differently, where they stand between blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import pi, sqrt

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.gated import Add, Gate, Gelu
from repvgg_ref.ops.gelu import normal_cdf
from repvgg_ref.oracle.bugs.base import Site, Variant, bug
from repvgg_ref.oracle.programs.activation import ACTIVATIONS, sigmoid
from repvgg_ref.oracle.programs.between import (
    BetweenProgram,
    factor,
    gated,
    gelu,
    halves,
    sum_of,
)

_SLOPE = 2 * sqrt(2 / pi)  # of the sigmoid that is tanh of sqrt(2 / pi) x

BetweenSite = Site[BetweenProgram]
BetweenVariants = Iterator[Variant[BetweenProgram]]


@bug(
    "gelu-approximated",
    says="GELU is computed by {detail}",
    advice="x / 2 (1 + erf(x / sqrt 2)), torch's default",
)
def gelu_approximated(site: BetweenSite) -> BetweenVariants:
    ways: dict[str, Callable[[Array], Array]] = {
        "its approximation by tanh": ACTIVATIONS["gelu_tanh"],
        "its approximation by a sigmoid, x sigmoid(1.702 x)": ACTIVATIONS["gelu_quick"],
        "x sigmoid(1.7 x)": lambda x: x * sigmoid(1.7 * x),
        "its approximation by tanh without the cubic term": lambda x: x * sigmoid(_SLOPE * x),
    }
    yield from _instead(site, Gelu, ways)


@bug(
    "gelu-formula",
    says="GELU's formula is wrong: {detail}",
    advice="x / 2 (1 + erf(x / sqrt 2)), torch's default",
)
def gelu_formula(site: BetweenSite) -> BetweenVariants:
    ways: dict[str, Callable[[Array], Array]] = {
        "x is not halved": lambda x: 2 * gelu(x),
        "x is halved twice": lambda x: gelu(x) / 2,
        "erf is given x, not x / sqrt 2": lambda x: x * normal_cdf(x * sqrt(2)),
        "there is erf without the 1 added to it": lambda x: x * (normal_cdf(x) - 0.5),
        "erf stands for 1 + erf, and x is not halved": lambda x: x * (2 * normal_cdf(x) - 1),
        "it is applied twice": lambda x: gelu(gelu(x)),
    }
    yield from _instead(site, Gelu, ways)


@bug(
    "activation-between",
    says="where GELU belongs there is {detail}",
    advice="GELU follows the first convolution of each pair, and nothing the second",
)
def activation_between(site: BetweenSite) -> BetweenVariants:
    ways: dict[str, Callable[[Array], Array]] = {
        "nothing": lambda x: x,
        "ReLU": ACTIVATIONS["relu"],
        "ReLU6": ACTIVATIONS["relu6"],
        "SiLU": ACTIVATIONS["silu"],
        "hard swish": ACTIVATIONS["hardswish"],
        "leaky ReLU": ACTIVATIONS["leaky"],
        "ELU": ACTIVATIONS["elu"],
        "Mish": ACTIVATIONS["mish"],
    }
    yield from _instead(site, Gelu, ways)


@bug(
    "gate-missing",
    says="squeeze-and-excitation is left out",
    advice="the gate multiplies each channel by its factor",
)
def gate_missing(site: BetweenSite) -> BetweenVariants:
    yield from _instead(site, Gate, {"": lambda x: x})


@bug(
    "gate-squeezed",
    says="squeeze-and-excitation pools by {detail}",
    advice="the mean over height and width",
)
def gate_squeezed(site: BetweenSite) -> BetweenVariants:
    pools = {"the maximum": "max", "the sum": "sum", "rows alone": (2,), "columns alone": (3,)}
    if (se := site.program.se) is not None:
        yield from _instead(site, Gate, {said: gated(se, pool) for said, pool in pools.items()})


@bug(
    "gate-activation",
    says="squeeze-and-excitation has {detail}",
    advice="ReLU between its two convolutions, sigmoid behind them",
)
def gate_activation(site: BetweenSite) -> BetweenVariants:
    kinds = {
        "a hard sigmoid": "hard-sigmoid",
        "a hard sigmoid of slope 0.2": "hard-sigmoid-0.2",
        "no ReLU between its convolutions": "no-relu",
        "SiLU between its convolutions": "silu-within",
        "GELU between its convolutions": "gelu-within",
        "leaky ReLU between its convolutions": "leaky-within",
        "no sigmoid behind its convolutions": "no-sigmoid",
        "tanh for its sigmoid": "tanh",
        "ReLU for its sigmoid": "relu-behind",
        "a softmax over channels for its sigmoid": "softmax",
    }
    if (se := site.program.se) is not None:
        ways = {said: gated(se, kind=kind) for said, kind in kinds.items()}
        yield from _instead(site, Gate, ways)


@bug(
    "gate-bias",
    says="squeeze-and-excitation lacks the bias of its {detail} convolution",
    advice="both of its convolutions have a bias",
)
def gate_bias(site: BetweenSite) -> BetweenVariants:
    if (se := site.program.se) is not None:
        first = gated(se._replace(down_bias=0 * se.down_bias))
        second = gated(se._replace(up_bias=0 * se.up_bias))
        yield from _instead(site, Gate, {"first": first, "second": second})


@bug(
    "gate-added",
    says="squeeze-and-excitation's factor is {detail}",
    advice="y = x times the factor",
)
def gate_added(site: BetweenSite) -> BetweenVariants:
    if (se := site.program.se) is not None:
        ways: dict[str, Callable[[Array], Array]] = {
            "added": lambda x: x + factor(se, x),
            "applied twice": lambda x: x * factor(se, x) ** 2,
            "doubled": lambda x: x * 2 * factor(se, x),
            "1 too large": lambda x: x * (1 + factor(se, x)),
            "taken from 1": lambda x: x * (1 - factor(se, x)),
            "of the channel before": lambda x: x * np.roll(factor(se, x), 1, axis=1),
            "that of the first image for all": lambda x: x * factor(se, x[:1]),
        }
        yield from _instead(site, Gate, ways)


@bug(
    "shortcut-missing",
    says="the shortcut is left out: its input is not added",
    advice="y = x + f(x)",
)
def shortcut_missing(site: BetweenSite) -> BetweenVariants:
    yield from _instead(site, Add, {"": lambda x: halves(x)[0]})


@bug(
    "shortcut-alone",
    says="the shortcut's input is passed on, without what it is to be added to",
    advice="y = x + f(x)",
)
def shortcut_alone(site: BetweenSite) -> BetweenVariants:
    yield from _instead(site, Add, {"": lambda x: halves(x)[1]})


@bug(
    "shortcut-weighted",
    says="in the sum at a shortcut {detail}",
    advice="both terms count once",
)
def shortcut_weighted(site: BetweenSite) -> BetweenVariants:
    weights = {
        "the shortcut's input counts twice": (1, 2),
        "what is added to it counts twice": (2, 1),
        "one term is subtracted": (-1, 1),
        "the mean is taken": (0.5, 0.5),
    }

    def weighted(first: float, second: float) -> Callable[[Array], Array]:
        return lambda x: first * halves(x)[0] + second * halves(x)[1]

    yield from _instead(site, Add, {said: weighted(*pair) for said, pair in weights.items()})


@bug(
    "activation-after-sum",
    says="{detail} follows the sum at a shortcut",
    advice="nothing follows it",
)
def activation_after_sum(site: BetweenSite) -> BetweenVariants:
    def then(name: str) -> Callable[[Array], Array]:
        return lambda x: ACTIVATIONS[name](sum_of(*halves(x)))

    ways = {"ReLU": then("relu"), "GELU": then("gelu"), "SiLU": then("silu")}
    yield from _instead(site, Add, ways)


def _instead(
    site: BetweenSite, kind: type, ways: dict[str, Callable[[Array], Array]]
) -> BetweenVariants:
    """The operation done in other ways, where it is of that kind."""
    if isinstance(site.program.op, kind):
        for detail, function in ways.items():
            yield Variant(replace(site.program, function=function), detail=detail)
