"""Bounds of what stands between blocks hold for every usual formula, in any format's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

from repvgg_ref.arrays import Array
from repvgg_ref.models.gated import Add, Gate
from repvgg_ref.oracle.bounds.between import between_bound
from repvgg_ref.oracle.bounds.block import layer_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import BETWEEN_BUGS
from repvgg_ref.oracle.bugs.base import Site, planted, round_to_bits
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams
from repvgg_ref.oracle.programs.between import (
    BetweenProgram,
    gate_program,
    gelu_program,
    sum_program,
)
from repvgg_ref.oracle.programs.head import HeadNorm, HeadProgram

BITS = {"fp32": 24, "fp16": 11, "bf16": 8}
Rounding = Callable[[Any], Array]


def rounding(precision: str) -> Rounding:
    """To the format, after every operation: more often than any port does it."""
    return lambda x: round_to_bits(np.asarray(x, np.float64), BITS[precision])


def gelus(x: Array, r: Rounding) -> list[Array]:
    """``x/2 (1 + erf(x / sqrt 2))``, its factors in three orders; by the complement erfc too."""
    z = r(erf(r(r(x) / r(np.sqrt(2)))))
    half = r(0.5 * r(1 + z))
    return [r(r(x) * half), r(0.5 * r(r(x) * r(1 + z))), r(r(0.5 * r(x)) * r(1 + z))]


def se(rng: np.random.Generator, channels: int = 6, narrow: int = 3) -> SqueezeExcitationParams:
    shapes = ((narrow, channels), (narrow,), (channels, narrow), (channels,))
    return SqueezeExcitationParams(*(rng.normal(size=shape) for shape in shapes))


def gated(x: Array, p: SqueezeExcitationParams, r: Rounding) -> Array:
    """One operation after the other, sums in order."""
    pooled = r(r(x).sum(axis=(2, 3)) / (x.shape[2] * x.shape[3]))
    hidden = np.maximum(r(r(pooled @ r(p.down_weight).T) + r(p.down_bias)), 0)
    logit = r(r(hidden @ r(p.up_weight).T) + r(p.up_bias))
    factor = r(1 / r(1 + r(np.exp(-logit))))
    return r(r(x) * factor[:, :, None, None])


def cases(precision: str) -> dict[str, tuple[BetweenProgram, Array, list[Array]]]:
    """Name -> the right program, its input as a port has it, and what right ports give."""
    rng, r = np.random.default_rng(0), rounding(precision)
    x = r(rng.normal(size=(2, 6, 5, 7)) * np.geomspace(1e-3, 30, 6)[:, None, None])
    two = np.concatenate([x, -x + r(rng.normal(size=x.shape) * 1e-3)], axis=1)
    p = se(rng)
    return {
        "gelu": (gelu_program("g"), x, gelus(x, r)),
        "gate": (gate_program("s", Gate(6, 3, relu=True), p), x, [gated(x, p, r)]),
        "sum": (sum_program("a", Add()), two, [r(two[:, :6] + two[:, 6:])]),
    }


@pytest.mark.parametrize("name", ["gelu", "gate", "sum"])
@pytest.mark.parametrize("precision", BITS)
def test_right_arithmetic_stays_within(name: str, precision: str) -> None:
    program, x, given = cases(precision)[name]
    y = program.evaluate(x).reshape(2, 6, 5, 7)
    bound = between_bound(program, x, y, PRECISIONS[precision])
    for y_hat in given:
        assert not (np.abs(y_hat - y) / bound).max() > 1


@pytest.mark.parametrize("name", ["gelu", "gate", "sum"])
def test_wrong_functions_do_not(name: str) -> None:
    """Of float32, whose bound is narrow: every bug of the library, by a factor of ten at least."""
    program, x, _ = cases("fp32")[name]
    y = program.evaluate(x).reshape(2, 6, 5, 7)
    bound = between_bound(program, x, y, PRECISIONS["fp32"])
    made = list(planted(BETWEEN_BUGS, Site(program, x)))
    assert made
    for mutant in made:
        wrong = mutant.variant.program.evaluate(x).reshape(y.shape)
        assert (np.abs(wrong - y) / bound).max() > 10, mutant.says


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("is_folded", [False, True], ids=["apart", "folded"])
def test_logits_behind_a_norm_stay_within(precision: str, is_folded: bool) -> None:
    """Normalised and multiplied, or norm and matrix taken together in the port's own arithmetic."""
    rng, r = np.random.default_rng(1), rounding(precision)
    c, classes = 8, 5
    gamma, beta, mean = r(rng.uniform(0.5, 2, c)), r(rng.normal(size=c)), r(rng.normal(size=c))
    var, weight = r(rng.uniform(1e-3, 3, c)), r(rng.normal(size=(classes, c)))
    norm = HeadNorm(gamma, beta, mean, var, 1e-5, weight, r(rng.normal(size=classes)))
    program = HeadProgram(*norm.folded(), norm=norm)
    x = r(rng.normal(size=(3, c, 4, 4)))
    pooled = r(x.mean(axis=(2, 3)))
    t = r(norm.gamma / r(np.sqrt(r(norm.var + r(norm.eps)))))
    if is_folded:
        moved = r(norm.beta - r(norm.mean * t))
        bias = r(norm.bias + r(weight @ moved))
        logits = r(r(pooled @ r(weight * t).T) + bias)
    else:
        features = r(r(r(pooled - norm.mean) * t) + norm.beta)
        logits = r(r(features @ weight.T) + norm.bias)
    y = program.evaluate(x)[:, :, 0]
    bound = layer_bound(program, x, y, PRECISIONS[precision]).certified
    assert not (np.abs(logits - y) / bound).max() > 1
    wrong, bias = norm._replace(mean=1.01 * norm.mean).folded()
    off = pooled @ wrong.T + bias
    assert precision != "fp32" or (np.abs(off - y) / bound).max() > 1
