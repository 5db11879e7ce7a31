"""The symmetry of a weight file: rows of one layer and columns of the next, tap by tap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Equivalence, Finding, Kind
from repvgg_ref.oracle.symmetry.factors import columns_of, compensated, factor_of
from repvgg_ref.oracle.symmetry.match import Change, matched
from repvgg_ref.oracle.symmetry.words import equivalences, not_taken_back
from repvgg_ref.oracle.weights.conversion import ROUNDINGS, Conversion, Unsettled

_GONE = 0.5  # of what was unexplained may be left where a change is taken as compensated
SCALINGS = 12  # roundings more: the factor on both sides, and its estimate
_SCALED_TAPS = 4  # of these, a row's taps do not share


@dataclass
class Realigned:
    """A port's arrays in the reference's order and scale.

    `rescaled` names the layers in which numbers were divided by fitted factors.
    """

    params: dict[str, Array]
    equivalences: tuple[Equivalence, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    rescaled: set[str] = field(default_factory=set)
    unit: float = 2.0**-24

    def is_chance(self, wrong: int, before: int) -> bool:
        """Whether factors, and nothing else, were undone and as many layers are wrong as before.

        Of numbers that are all wrong some go together.
        """
        return wrong >= before and all(each.kind == "scaling" for each in self.equivalences)

    def held(self, layer: str, conversion: Conversion) -> Conversion:
        """What a layer's kernel is held to: no single bit where a factor was divided out."""
        if layer not in self.rescaled:
            return conversion
        return Unsettled(conversion.stored, conversion.roundings + SCALINGS, _SCALED_TAPS)

    def seen_in_scaled(self, conversion: Conversion) -> tuple[str, ...]:
        """What is held to less where factors were divided out, in words."""
        if not self.rescaled:
            return ()
        layers = listed(sorted(self.rescaled))
        held = self.held(next(iter(self.rescaled)), conversion)
        return (
            f"in {layers}, whose numbers hold other channels' factors: {held.smallest}. A factor"
            " nearer to 1 than that, or a column's error beside a row's, may be in either of two"
            " layers",
        )

    def room(self, name: str) -> float:
        """How far an array that fusion leaves alone may be from the reference's, relatively."""
        layer = name.partition(".se.")[0].removesuffix(".weight").removesuffix(".bias")
        return self.unit * (ROUNDINGS + SCALINGS) if layer in self.rescaled else 0.0


def realign(
    programs: Programs, theirs: Mapping[str, Array], unit: float, bad: Set[str]
) -> Realigned:
    """Undo what reorders and scales channels without changing the network.

    Parameters
    ----------
    programs : Programs
        The reference's layers.
    theirs : mapping
        The port's arrays, deploy form.
    unit : float
        Unit roundoff of the port's numbers.
    bad : set of str
        Layers that hold other numbers than the reference's: only they and those that they feed can
        be changed so.
    """
    return _Walk(programs, dict(theirs), unit, bad).along()


def realign_inside(
    programs: Programs,
    theirs: Mapping[str, Array],
    unit: float,
    bad: Set[str],
    rows: Iterable[Sequence[str]],
    called: Mapping[str, str],
) -> Realigned:
    """`realign` between the blocks of each row alone: of a network that is no chain.

    Parameters
    ----------
    rows : iterable of sequences of str
        Blocks of which each feeds the next one and nothing else. The last one's outputs stay.
    called : mapping
        Block -> what it is called in words.
    """
    walk = _Walk(programs, dict(theirs), unit, bad, called)
    for row in rows:
        walk.within(row)
    return walk.done


class _Walk:
    """From layer to layer, each in the order and scale in which its input is known to be."""

    def __init__(
        self,
        programs: Programs,
        theirs: dict[str, Array],
        unit: float,
        bad: Set[str],
        called: Mapping[str, str] | None = None,
    ) -> None:
        self.called = called or {}
        self.programs, self.unit, self.room = programs, unit, ROUNDINGS * unit
        self.bad = bad
        self.specs = {spec.name: spec for spec in programs.model.arch.blocks}
        self.done = Realigned(theirs, unit=unit)

    def along(self) -> Realigned:
        """All layers."""
        change = self._through(list(self.programs))
        if change is None:
            return self.done
        weight = self.done.params["linear.weight"]
        self.done.params["linear.weight"] = change.undone(weight, 1, 1)
        self._mark("linear", change)
        return self.done

    def within(self, row: Sequence[str]) -> None:
        """A row of blocks whose last one is taken as it is, but for its inputs."""
        change = self._through(row)
        if change is None:
            return
        last, nothing = row[-1], Change.nothing(self.specs[row[-1]].out_channels)
        seen = self._seen(last, change)
        if seen is None:
            self._refused(last)
            return
        self._mark(last, change)
        self._put(last, seen.weight, nothing)

    def _through(self, names: Sequence[str]) -> Change | None:
        """How the input of the last of `names` differs; None if one cannot have its input so."""
        change = Change.nothing(self.specs[names[0]].in_channels)
        for name, after in pairwise(names):
            seen = self._seen(name, change)
            if seen is None:
                self._refused(name)
                return None
            self._mark(name, change)
            change = self._settled(name, after, seen)
            self._put(name, seen.weight, change)
            self._mark(name, change)
            self.done.equivalences += tuple(equivalences(*self._said(name, change, after)))
        return change

    def _said(self, name: str, change: Change, after: str) -> tuple[str, Change, str]:
        return self.called.get(name, name), change, self.called.get(after, after)

    def _mark(self, name: str, change: Change) -> None:
        if change.is_scaled:
            self.done.rescaled.add(name)

    def _refused(self, name: str) -> None:
        note = (
            f"{self.called.get(name, name)} keeps groups of channels apart that the order of its"
            " input mixes: no network of this shape takes that back"
        )
        self.done.notes += (note,)

    def _seen(self, name: str, change: Change) -> _Seen | None:
        """The port's kernel for an input in our order; None if that order crosses its groups."""
        spec, weight = self.specs[name], self.done.params[f"{name}.fused.weight"]
        groups = spec.groups
        if change.is_nothing:
            return _Seen(weight, np.arange(groups))
        per_group, outputs = spec.in_channels // groups, spec.out_channels // groups
        parts, homes = [], []
        for group in range(groups):
            inputs = slice(group * per_group, (group + 1) * per_group)
            home = np.unique(change.order[inputs] // per_group)
            if len(home) > 1:
                return None
            own = Change(change.order[inputs] - home[0] * per_group, change.factor[inputs])
            parts.append(own.undone(weight[group * outputs : (group + 1) * outputs], 1, 1))
            homes.append(home[0])
        return _Seen(np.concatenate(parts), np.array(homes))

    def _matched(self, name: str, seen: _Seen) -> tuple[Change, Array]:
        """How the layer's output channels differ from ours, and what that leaves of each row."""
        ours = rows_of(self.programs[name].fused_kernel())
        theirs = rows_of(FusedConv(seen.weight, self.done.params[f"{name}.fused.bias"]))
        per_group = len(ours) // len(seen.homes)
        order, factor, left = [], [], []
        for group, home in enumerate(seen.homes):
            theirs_at, ours_at = (slice(g * per_group, (g + 1) * per_group) for g in (group, home))
            change, rest = matched(ours[ours_at], theirs[theirs_at], self.room)
            order.append(change.order + home * per_group)
            factor.append(change.factor)
            left.append(rest)
        return Change(np.concatenate(order), np.concatenate(factor)), np.concatenate(left)

    def _settled(self, name: str, after: str, seen: _Seen) -> Change:
        """How a layer's output channels differ, if what follows takes that back."""
        change, _ = self._matched(name, seen)
        nothing = Change.nothing(len(change.order))
        if len(change.moved):
            moved = (change, Change(change.order, nothing.factor))
            if not min(map(partial(self._left, after), moved)) < _GONE * self._left(after, nothing):
                self.done.findings += (not_taken_back(*self._said(name, change, after)),)
                return nothing
        return self._scaled(name, after, seen, change)

    def _left(self, after: str, change: Change) -> float:
        """The share of the next layer that stays unexplained once `change` is undone before it."""
        if after not in self.specs:
            want = self.programs[after].weight
            rest = change.undone(self.done.params[f"{after}.weight"], 1, 1) - want
            return float((rest**2).sum() / (want**2).sum())
        seen = self._seen(after, change)
        return np.inf if seen is None else float(self._matched(after, seen)[1].mean())

    def _scaled(self, name: str, after: str, seen: _Seen, change: Change) -> Change:
        """The order of `change`, with the factors that the next layer divides by."""
        nothing = Change(change.order, np.ones(len(change.order)))
        if change.is_nothing and not {name, after} & self.bad:
            return nothing
        ours = rows_of(self.programs[name].fused_kernel())[change.order]
        theirs = rows_of(FusedConv(seen.weight, self.done.params[f"{name}.fused.bias"]))
        rows, _ = factor_of(ours, theirs, self.unit)
        columns, error = self._of_inputs(after, Change(change.order, rows))
        factor = compensated(rows, columns / rows, error, self.unit, ROUNDINGS)
        return Change(change.order, factor)

    def _of_inputs(self, after: str, change: Change) -> tuple[Array, Array]:
        """By what the next layer's inputs are scaled with `change` undone, by the port's order."""
        if after not in self.specs:
            want = self.programs[after].weight
            got = change.undone(self.done.params[f"{after}.weight"], 1, 1)
            factor, error = columns_of(want, got, None, 1, self.unit)
            return factor[change.order], error[change.order]
        seen = self._seen(after, change)
        if seen is None:
            return change.factor, np.full(len(change.order), np.inf)
        onward = Change(self._matched(after, seen)[0].order, np.ones(0))
        kernel = self.programs[after].fused_kernel()
        bias = self.done.params[f"{after}.fused.bias"]
        factor, error = columns_of(
            kernel.weight[onward.order],
            seen.weight,
            (kernel.bias[onward.order], bias),
            len(seen.homes),
            self.unit,
        )
        # the port's groups may come in another order
        per_group = len(factor) // len(seen.homes)
        back = np.argsort(seen.homes)
        factor, error = (f.reshape(-1, per_group)[back].reshape(-1) for f in (factor, error))
        return factor[change.order], error[change.order]

    def _put(self, name: str, weight: Array, change: Change) -> None:
        """The layer's arrays in our order and scale."""
        params = self.done.params
        params[f"{name}.fused.weight"] = change.undone(weight, 0)
        params[f"{name}.fused.bias"] = change.undone(params[f"{name}.fused.bias"], 0)
        if self.specs[name].se == "none":
            return
        down, up = f"{name}.se.down", f"{name}.se.up"
        params[f"{down}.weight"] = change.undone(params[f"{down}.weight"], 1, 1)
        for part in ("weight", "bias"):
            params[f"{up}.{part}"] = change.undone(params[f"{up}.{part}"], 0, 0)
        ours = self.programs.model.params
        here, there = (
            rows_of(FusedConv(of[f"{down}.weight"], of[f"{down}.bias"])) for of in (ours, params)
        )
        hidden = self._hidden(matched(here, there, self.room)[0], here, there, up)
        if not hidden.is_nothing:
            self._mark(name, hidden)
            for part in ("weight", "bias"):
                params[f"{down}.{part}"] = hidden.undone(params[f"{down}.{part}"], 0)
            params[f"{up}.weight"] = hidden.undone(params[f"{up}.weight"], 1, 1)
            says = f"hidden units of {name}'s squeeze-and-excitation are changed in both its layers"
            kind: Kind = "scaling" if hidden.is_scaled else "permutation"
            self.done.equivalences += (Equivalence(name, kind, says),)

    def _hidden(self, change: Change, here: Array, there: Array, up: str) -> Change:
        """How a gate's hidden units differ, if its second layer takes that back."""
        rows, _ = factor_of(here[change.order], there, self.unit)
        mine, theirs = (
            np.asarray(of[f"{up}.weight"], np.float64)
            for of in (self.programs.model.params, self.done.params)
        )
        columns, error = columns_of(mine[:, change.order], theirs, None, 1, self.unit)
        return Change(change.order, compensated(rows, columns, error, self.unit, ROUNDINGS))


class _Seen(NamedTuple):
    """A kernel for inputs in our order; for each of its groups, ours that its inputs are from."""

    weight: Array
    homes: Array


def rows_of(kernel: FusedConv) -> Array:
    """A channel's taps and bias, (O, K + 1)."""
    flat = np.asarray(kernel.weight, np.float64).reshape(len(kernel.weight), -1)
    return np.concatenate([flat, np.asarray(kernel.bias, np.float64)[:, None]], axis=1)
