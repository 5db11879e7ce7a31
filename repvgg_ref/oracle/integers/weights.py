"""Are these the right integers: an integer network against the trained one it was made from.

Every weight must be the integer nearest to the exactly fused one over its channel's scale, every
bias the nearest in units of both scales, half a step either way; a bias that is one off is a note
where no number would show it. What an equalisation moved between
two layers is solved for first: positive factors of channels that the next layer takes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import LINEAR, POOL, as_chain
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.integers.equalised import is_shown, solved
from repvgg_ref.oracle.integers.factors import HALF, Factors, Pair, undone
from repvgg_ref.oracle.integers.onnx_arrays import StatedBias
from repvgg_ref.oracle.integers.orders import (
    Following,
    Settled,
    entered,
    in_order,
    is_held,
    is_right,
    misplaced,
    settle,
)
from repvgg_ref.oracle.integers.report import PRECISION, IntegerLayerReport, IntegerReport
from repvgg_ref.oracle.integers.settings import says_multipliers, slips, unlike_chain
from repvgg_ref.oracle.integers.weight_bugs import explained, finding
from repvgg_ref.oracle.report import Equivalence, Finding

_BESIDE = "1 beside the nearest integer"
_EXPLAIN_CLIPS = frozenset({"weight-zero-point", "weight-scale", "neighbours-scale"})
_CLIPPED = 0.01  # of a layer's weights: more are no choice of a quantiser, but a wrong scale


def judge_integers(
    model: Model,
    network: IntegerNetwork,
    *,
    candidate: str,
    name: str | None = None,
    stated: Mapping[str, StatedBias] | None = None,
) -> IntegerReport:
    """Judge what `network` holds and how it computes against `model`, fused exactly.

    `stated` are biases, by the names of `network`, that a file holds in units of their own.
    """
    deploy = as_chain(model)
    wanted = [*(spec.name for spec in deploy.arch.blocks), LINEAR]
    reference = name or model.name
    if unlike := unlike_chain(network.layers, len(deploy.arch.blocks)):
        reason = f"{candidate} is no {reference}: {unlike}"
        return IntegerReport("disagree", reason, reference, candidate, PRECISION)
    walk = _walked(deploy, wanted, network, stated or {})
    return _report(walk.rows, walk.findings, walk.same, network, reference, candidate)


def _walked(
    deploy: Model, wanted: list[str], network: IntegerNetwork, stated: Mapping[str, StatedBias]
) -> _Walk:
    """The layers judged in the order and the factors that leave the fewest of them wrong.

    Channels as they are come first, then with the factors that all layers together allow, which
    tell one wrong scale from factors; the dear search for other orders is last.
    """
    layers = [layer for layer in network.layers if layer.kind != "pool"]
    pairs = _pairs(deploy, wanted, layers, stated)
    start = _Walk(deploy, wanted, layers)
    if len(pairs) == len(layers):
        if all(map(is_held, pairs)):
            return start.plain_as(pairs)
        scaled = start.with_all_factors(pairs)
        if scaled is not None and scaled.is_clear:
            return scaled
    walk = start.along(stated)
    if not walk.is_right and len(walk.plain) == len(layers):
        scaled = start.with_all_factors(walk.plain, walk.settled)
        return scaled if scaled is not None and scaled.wrong < walk.wrong else walk
    return walk


def _pairs(
    deploy: Model,
    wanted: list[str],
    layers: list[IntegerLayer],
    stated: Mapping[str, StatedBias],
) -> list[Pair]:
    """Layers beside what they should hold, up to the first that cannot be compared."""
    found = []
    for name, layer in zip(wanted, layers, strict=True):
        weight, bias = (real_array(deploy.params, name, part) for part in ("weight", "bias"))
        if layer.weight is None or layer.weight.shape != weight.shape:
            break
        found.append(Pair(name, weight, bias, np.zeros_like(weight), layer, stated.get(layer.name)))
    return found


class _Walk:
    """From layer to layer, each in the order and scale in which its input is known to be."""

    def __init__(self, deploy: Model, wanted: list[str], layers: list[IntegerLayer]) -> None:
        self.params, self.wanted, self.layers = deploy.params, wanted, layers
        self.specs = {spec.name: spec for spec in deploy.arch.blocks}
        self.rows: list[IntegerLayerReport] = []
        self.findings: list[Finding] = []
        self.same: list[Equivalence] = []
        self.deploy = deploy
        self.order: Array = np.arange(deploy.arch.in_channels)
        self.factors: Factors | None = None  # of the input's channels
        self.settled: list[Settled] = []
        self.plain: list[Pair] = []  # in their order, not scaled
        self.is_clear = False  # of the integers nothing but scales is wrong, or one layer's

    def plain_as(self, pairs: list[Pair]) -> _Walk:
        """Layers that are right as they are."""
        for pair in pairs:
            self._judge(Settled(pair, np.arange(len(pair.weight)), None))
        return self

    def along(self, stated: Mapping[str, StatedBias]) -> _Walk:
        """All layers, until one cannot be compared, orders and factors found one by one."""
        pairs = _pairs(self.deploy, self.wanted, self.layers, stated)
        for place, pair in enumerate(pairs):
            entering = entered(pair.weight, self.order, pair.layer.groups)
            rows = np.arange(len(pair.weight)) if entering is None else entering[1]
            weight = pair.weight if entering is None else entering[0]
            pair = pair._replace(weight=weight, bias=pair.bias[rows])
            settled = settle(undone(pair, self.factors), rows, self._following(place))
            self.order, self.factors = settled.order, settled.factors
            self.settled.append(settled)
            self.plain.append(in_order(pair, rows, settled.order))
            self._judge(settled)
        if len(pairs) < len(self.layers):
            name, layer = self.wanted[len(pairs)], self.layers[len(pairs)]
            wanted = real_array(self.params, name, "weight").shape
            shape = None if layer.weight is None else layer.weight.shape
            note = f"weights of shape {shape}, not {wanted}"
            self.rows.append(IntegerLayerReport.incomparable(name, note))
        return self

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong[0]

    @property
    def wrong(self) -> tuple[int, int]:
        """How many layers, and how many integers."""
        return sum(not row.ok for row in self.rows), sum(row.mismatches or 0 for row in self.rows)

    def with_all_factors(self, pairs: list[Pair], settled: Sequence[Settled] = ()) -> _Walk | None:
        """The walk with the factors that all layers together allow, if these are shown.

        `settled` are the orders of `pairs`, where these are not the network's own.
        """
        if not is_shown(pairs, {}) or (found := solved(pairs)) is None:
            return None
        bad = {place for place, pair in enumerate(pairs) if not is_right(pair)}
        if bad <= found.without or not is_shown(pairs, found.faults):
            return None
        other = _Walk(self.deploy, self.wanted, self.layers)
        before: Factors | None = None
        for place, (pair, factors) in enumerate(zip(pairs, found.factors, strict=True)):
            old = settled[place] if settled else Settled(pair, np.arange(len(pair.weight)), None)
            same = [each for each in old.same if each.kind != "scaling"]
            after = [*self.wanted[1:], ""][place]
            if factors:
                same.append(Equivalence(pair.name, "scaling", factors.says(after)))
            exact = Factors.exactly(factors.value)
            scaled = undone(pair, before).times(exact)
            says = misplaced(scaled, after) if place in found.left_out else ()
            other._judge(old._replace(pair=scaled, same=tuple(same), findings=says))
            before = exact
        wrong = {place for place, row in enumerate(other.rows) if row.mismatches}
        other.is_clear = len(found.left_out) <= 1 and wrong <= found.without
        return other

    def _following(self, place: int) -> Following | None:
        if place + 1 == len(self.wanted):
            return None
        name = self.wanted[place + 1]
        return Following(name, real_array(self.params, name, "weight"), self.layers[place + 1])

    def _judge(self, settled: Settled) -> None:
        name, layer = settled.pair.name, settled.pair.layer
        row, found = _judged(settled.pair, settled.findings)
        said = list(slips(layer, self.specs.get(name)))
        if said:
            notes = "; ".join(filter(None, [*(slip.says for slip in said), row.note]))
            row = replace(row, ok=False, ratio=max(row.ratio, float("inf")), note=notes)
        self.rows.append(row)
        self.same += settled.same
        self.findings += [*(finding(slip.bug, name, *slip[1:]) for slip in said), *found]


def real_array(params: Mapping[str, Array], layer: str, part: str) -> Array:
    """A fused array of the trained network, float64."""
    key = f"{layer}.{part}" if layer == LINEAR else f"{layer}.fused.{part}"
    return params[key].astype(np.float64)


def _judged(pair: Pair, known: tuple[Finding, ...]) -> tuple[IntegerLayerReport, list[Finding]]:
    """`known` are findings that explain what is wrong."""
    layer = pair.layer
    assert layer.weight is not None
    numbers = layer.weight.astype(np.float64)
    low, high = layer.weight_ends
    steps = pair.held(pair.steps)
    apart = np.maximum(np.abs(numbers - steps) - pair.slack, 0.0)
    bias_apart = pair.bias_apart
    beside = pair.bias_beside
    bias_apart = np.where(beside, np.minimum(bias_apart, HALF), bias_apart)
    wrong, wrong_bias = apart > HALF, bias_apart > HALF
    # More than the farthest number there is can round to; +128 is not held either.
    beyond = (pair.steps < low - HALF) | (pair.steps > high + 1 + HALF)
    clipped = beyond & (apart <= HALF)
    is_clipped = clipped.mean() > _CLIPPED and 2 * clipped.sum() > beyond.sum() and not known
    ok = not (wrong.any() or wrong_bias.any() or is_clipped)
    worst = max(float(apart.max(initial=0)), float(bias_apart.max(initial=0)))
    row = IntegerLayerReport(
        pair.name,
        worst,
        HALF,
        worst / HALF,
        ok,
        note="; ".join(filter(None, [_note(wrong, wrong_bias, clipped), _says_beside(pair)])),
        mismatches=int(wrong.sum() + wrong_bias.sum()),
        numbers=wrong.size + wrong_bias.size,
        max_lsb=0 if ok else int(np.ceil(worst)),
    )
    found = list(known) or list(explained(pair, wrong, wrong_bias))
    if is_clipped and not _EXPLAIN_CLIPS & {each.bug for each in found}:
        says = f"{clipped.mean():.1%} of the weights are beyond what their scale can hold"
        found.append(finding("weights-clipped", pair.name, says, "largest magnitude / 127"))
    return row, found


def _note(wrong: Array, wrong_bias: Array, clipped: Array) -> str:
    said = []
    if wrong.any():
        said.append(f"{wrong.sum()} of {wrong.size} weights")
    if wrong_bias.any():
        said.append(f"{wrong_bias.sum()} of {wrong_bias.size} biases")
    notes = [f"{' and '.join(said)} are not the nearest integers"] if said else []
    if clipped.any():
        notes.append(f"{clipped.sum()} of {clipped.size} weights are clipped")
    return "; ".join(notes)


def _says_right(rows: list[IntegerLayerReport], same: list[Equivalence]) -> str:
    """What agrees, and no more than that."""
    layers = f"{len(rows)} layers"
    beside = any(_BESIDE in row.note for row in rows)
    biases = ", every bias that or the one beside it" if beside else ""
    if any(each.kind == "scaling" for each in same):
        return (
            f"every weight of {layers} is the nearest integer to the fused one times its channel's "
            "factor, every bias in accord with these factors, which are solved for from the "
            "integers and known no better than those tell"
        )
    both = "weight" if beside else "weight and bias"
    return f"every {both} of {layers} is the nearest integer to the fused one{biases}"


def _says_beside(pair: Pair) -> str:
    """How many biases are one off, and what that is worth; "" if none is."""
    beside = pair.bias_beside
    if not beside.any():
        return ""
    count = f"{beside.sum()} of {beside.size} biases {'is' if beside.sum() == 1 else 'are'}"
    worth = float(pair.output_steps[beside].max())
    return f"{count} {_BESIDE}, {worth:.2g} of a step of the output at most"


def _report(
    rows: list[IntegerLayerReport],
    findings: list[Finding],
    same: list[Equivalence],
    network: IntegerNetwork,
    reference: str,
    candidate: str,
) -> IntegerReport:
    bad = [row for row in rows if not row.ok]
    multipliers, inexact = says_multipliers(network.layers)
    reason = (
        f"{bad[0].name}: {bad[0].note}"
        if bad
        else f"{_says_right(rows, same)}; strides, padding, groups and clipping are the network's, "
        f"{multipliers}"
    )
    notes = ["ranges of activations were not judged: they depend on the images of calibration"]
    if any(layer.kind == "pool" for layer in network.layers):
        notes.append(f"{POOL} has no weights")
    notes += inexact
    return IntegerReport(
        "disagree" if bad else "agree",
        reason,
        reference,
        candidate,
        PRECISION,
        tuple(rows),
        tuple(findings),
        bad[0].name if bad else None,
        tuple(notes),
        equivalences=tuple(same),
    )
