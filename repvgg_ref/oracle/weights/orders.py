"""The orders in which right converters multiply, divide and add, simulated bit for bit.

With ``s = sqrt(var + eps)`` and ``r = 1 / s`` a tap is ``W (gamma / s)``, ``(W gamma) / s``,
``W (gamma r)``, ...: the same number, rounded differently. Each order has one number a channel that
all of its taps share, t, s or r; a root or a reciprocal that is an ulp off moves that number alone.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch
from repvgg_ref.oracle.weights.arithmetic import Arithmetic
from repvgg_ref.oracle.weights.terms import Tap, Terms

# The number that a channel's taps share, and how it is got; the first is the commonest.
_SCALES = ("gamma / s", "gamma * (1 / s)", "gamma * rsqrt", "gamma / s in float64")
_RECIPROCALS = ("1 / s", "rsqrt")


class Order(NamedTuple):
    """How one product is formed: ``W t``, ``(W gamma) / s``, ``(W / s) gamma``, ..."""

    product: str
    scale: str

    def parameter(self, branch: Branch, eps: float, a: Arithmetic) -> Array | None:
        """The number that a channel's taps share, (O,); None without a batch norm."""
        if not branch.has_norm:
            return None
        gamma, var = a.held(branch.gamma), a.held(branch.running_var)
        wide = np.sqrt(np.asarray(branch.running_var, np.float64) + eps)
        if self.scale == "gamma / s in float64":
            return a.rounded(np.asarray(branch.gamma, np.float64) / wide)
        s = a.root(a.add(var, a.held(np.full(var.shape, eps))))
        if self.scale == "s":
            return s
        if self.scale == "gamma / s":
            return a.divide(gamma, s)
        rsqrt = "rsqrt" in self.scale
        r = a.rounded(1 / np.sqrt(_sum(branch, eps, a))) if rsqrt else a.divide(np.ones_like(s), s)
        return r if self.scale in _RECIPROCALS else a.multiply(gamma, r)

    def formed(self, raw: Array, gamma: Array, shared: Array | None, a: Arithmetic) -> Array:
        """The products of raw weights with the channel's slope; shapes broadcast."""
        if shared is None:
            return raw
        if self.product == "W t":
            return a.multiply(raw, shared)
        if self.product == "(W gamma) / s":
            return a.divide(a.multiply(raw, gamma), shared)
        if self.product == "(W / s) gamma":
            return a.multiply(a.divide(raw, shared), gamma)
        if self.product == "(W gamma) r":
            return a.multiply(a.multiply(raw, gamma), shared)
        return a.multiply(a.multiply(raw, shared), gamma)

    @property
    def in_words(self) -> str:
        """The order as a formula."""
        inner = self.scale if self.product == "W t" else ""
        return self.product.replace("t", f"({inner})") if inner else self.product


ORDERS = (
    *(Order("W t", scale) for scale in _SCALES),
    Order("(W gamma) / s", "s"),
    Order("(W / s) gamma", "s"),
    *(Order(p, r) for p in ("(W gamma) r", "(W r) gamma") for r in _RECIPROCALS),
)


class Sum(NamedTuple):
    """How the terms of a tap are added: in which order, whether fused with the products."""

    order: tuple[int, ...]
    fused: bool = False
    before_norm: bool = False

    @property
    def in_words(self) -> str:
        """The order, where it is an unusual one."""
        said = [f"terms added in the order {'-'.join(str(n + 1) for n in self.order)}"]
        said += ["with fused multiply-add"] if self.fused else []
        said += ["kernels added before their batch norm"] if self.before_norm else []
        return ", ".join(said)


def sums(terms: Terms) -> list[Sum]:
    """All ways to add the terms of a layer, the written order first."""
    numbers = range(len(terms.terms))
    orders = list(permutations(numbers)) if len(numbers) <= 3 else _few(tuple(numbers))
    found = [Sum(order, fused) for fused in (False, True) for order in orders]
    if terms.has_one_norm and len(numbers) > 1:
        found += [Sum(order, before_norm=True) for order in orders]
    return found


def _few(order: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of many terms: forward, backward, and each of them first."""
    rest = [(n, *(m for m in order if m != n)) for n in order[1:]]
    return [order, order[::-1], *rest, *((*r[1:], r[0]) for r in rest)]


class Shift(NamedTuple):
    """How a branch's bias is formed: ``beta - mean t`` and its kin; `order` has the product.

    `running`: one sum goes over all branches, ``((beta_1 - mean_1 t_1) + beta_2) - mean_2 t_2``;
    `negated`: the products are added before the betas.
    """

    order: Order
    fused: bool = False
    negated: bool = False
    running: bool = False

    def formed(self, branch: Branch, shared: Array | None, a: Arithmetic) -> list[Array]:
        """The branch's bias, or what it gives to the running sum, (O,) each."""
        if shared is None:
            return [np.zeros(len(branch.weight), np.float32)]
        mean, beta = a.held(branch.running_mean), a.held(branch.beta)
        if self.fused:
            return [a.multiply_add(-mean, shared, beta)]
        product = self.order.formed(-mean, a.held(branch.gamma), shared, a)
        if not self.negated:  # the sign matters where rounding is directed
            product = -self.order.formed(mean, a.held(branch.gamma), shared, a)
        parts = [product, beta] if self.negated else [beta, product]
        return parts if self.running else [a.add(*parts)]


def shifts(a: Arithmetic) -> list[Shift]:
    """All ways to form a branch's bias."""
    found = [Shift(order) for order in ORDERS]
    if a.direction != "nearest":
        found += [Shift(order, negated=True) for order in ORDERS]
    found += [Shift(order, fused=True) for order in ORDERS if order.product == "W t"]
    found += [Shift(o, negated=n, running=True) for n in (False, True) for o in ORDERS]
    return found


def tap_predicted(
    terms: Terms, tap: Tap, order: Order, how: Sum, shared: list[Array | None], a: Arithmetic
) -> Array:
    """What a converter gets for the taps (O, C/G) at one place, in float32.

    Parameters
    ----------
    shared : list
        For each term the numbers (O,) of `Order.parameter`.
    """
    on = terms.on(tap)
    total: Array | None = None
    before = how.before_norm and len(on) > 1
    for number in (n for n in how.order if n in on):
        branch, raw = terms.terms[number].branch, a.held(on[number])
        mine = shared[number]
        gamma = a.held(branch.gamma)[:, None] if branch.has_norm else raw
        scale = None if mine is None or before else mine[:, None]
        if total is not None and how.fused and scale is not None and order.product == "W t":
            total = a.multiply_add(raw, scale, total)
            continue
        product = order.formed(raw, gamma, scale, a)
        total = product if total is None else a.add(total, product)
    if total is None:
        return np.zeros(terms.terms[0].branch.weight.shape[:2], np.float32)
    if before:
        first = min(on)
        mine, gamma = shared[first], a.held(terms.terms[first].branch.gamma)[:, None]
        total = order.formed(total, gamma, None if mine is None else mine[:, None], a)
    return total


def shift_parts(
    terms: Terms, shift: Shift, shared: list[Array | None], a: Arithmetic
) -> list[list[Array]]:
    """What each term adds to the bias, (O,) each."""
    if terms.bias is not None:
        return [[a.held(terms.bias)]]
    return [shift.formed(t.branch, s, a) for t, s in zip(terms.terms, shared, strict=True)]


def added_parts(parts: list[list[Array]], order: tuple[int, ...], a: Arithmetic) -> Array:
    """Their sum in `order`, which may name more terms than there are."""
    first, *rest = (part for number in order if number < len(parts) for part in parts[number])
    for part in rest:
        first = a.add(first, part)
    return first


def parameters(terms: Terms, order: Order, a: Arithmetic) -> list[Array | None]:
    """For each term the number that its channel's taps share."""
    return [order.parameter(term.branch, terms.eps, a) for term in terms.terms]


def _sum(branch: Branch, eps: float, a: Arithmetic) -> Array:
    """``var + eps`` as the converter adds it, in float64."""
    var = a.held(branch.running_var)
    return np.asarray(a.add(var, a.held(np.full(var.shape, eps))), np.float64)
