"""Whether a bug of the library is there beside something that is in no library.

Whatever the other is, much of what layers do is one of a few *constructors* whose numbers the
candidate's own outputs give. With z what stands in front of the activation once the known bug is in
the program, and y what it gives, the candidate's output is

    a part       y at some outputs and anything at all at the others
    an affine    act(a_o z + b_o), a factor and a constant for each channel o
    a function   f(z), f any function of one number, the same for all channels

on the same input or kernel or on one that was turned, mirrored, rolled or exchanged. A known bug is
there if with it far more outputs come out right *to rounding* than without it. Rounding is some
1e-7 of an output and what bugs change 1e-3 and more, so that a few dozen outputs settle it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import product_energy
from repvgg_ref.oracle.diagnosis.constructors import (
    AROUND,
    AS_IT_IS,
    CONSTRUCTORS,
    HIDES_A_BUG,
    MIXED,
    MUCH_IS_FREE,
    NOTHING,
    SCALES,
    Around,
)
from repvgg_ref.oracle.diagnosis.evidence import DO_NOT_FIT, LayerEvidence
from repvgg_ref.oracle.diagnosis.fits import LEAST_OUTPUTS, Shown
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.programs.activation import ACTIVATIONS
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import Workspace
from repvgg_ref.oracle.report import Finding

_UNIT, _ROUNDING = 2.0**-24, 100.0  # of float32; direct sums need 25, Winograd's F(4) 70
_LOOSE = 1e-4  # of an output
_LEAST_SHARE = 0.2  # of the outputs, right with the known bug
_MOST_FREE_SHARE = 0.5  # the same where much is free
_LEAST_GAIN = 0.12  # of the outputs, right with it and wrong without it
_ALL = 0.97  # of the outputs, right without a known bug: there is none
_ALONE = 0.9  # of the outputs, right without a known bug: what else is done is all there is
_PIXELS, _OUTPUTS = 20, 2000  # a function needs its neighbours near
_ADVICE = "mend the known one and verify again: what is left is then seen alone"
_MULTIPLE = 1e-9  # of the largest value: float64's own rounding is far less
_SAME = 0.02  # of the outputs: two known bugs that explain as many
_LET_FACTORS_THROUGH = {"relu", "leaky", "none"}  # positive ones


@dataclass(frozen=True)
class Composed:
    """A known bug, how the rest was explained, and at how many of the outputs.

    Attributes
    ----------
    trial : Trial or None
        None: there is no known bug, the constructor alone explains it.
    share, without : float
        Of the candidate's outputs that are not 0, right to rounding with the bug and without it.
    """

    trial: Trial | None
    share: float
    without: float
    constructor: str
    around: Around

    @property
    def gain(self) -> float:
        """What the known bug adds."""
        return self.share - self.without

    @property
    def says(self) -> str:
        """What else is done, in words."""
        what = "" if self.constructor == "part" else CONSTRUCTORS.get(self.constructor, MIXED)
        rest = CONSTRUCTORS["part"] if self.share < _ALONE else ""
        said = "; ".join(filter(None, (self.around.says, what, rest)))
        return f"{self.share:.1%} of the outputs that are not 0 are right to rounding" + (
            f" with this: {said}" if said else ""
        )


class _Held(NamedTuple):
    """A program's outputs y, without any gate, and what is in front of its activation, z.

    `right` says where each constructor fits.
    """

    y: Array
    gateless: Array
    z: Array
    right: Mapping[str, Array]

    def changed(self, right: _Held, constructor: str, tolerance: Array) -> Array:
        """Where a known bug shows: outputs that it leaves as they are say nothing of it."""
        where = "y" if constructor in AS_IT_IS else "gateless"
        where = "z" if constructor == "function" else where
        return np.asarray(np.abs(getattr(self, where) - getattr(right, where)) > tolerance)


class Composer:
    """Known bugs held against one layer's outputs, each with every constructor.

    Parameters
    ----------
    evidence : LayerEvidence
        The layer's outputs at sampled pixels.
    """

    def __init__(self, evidence: LayerEvidence) -> None:
        self.evidence = evidence
        self.shown = Shown(evidence.seen.y_hat, self._rounding())
        self.workspace = Workspace()
        self.right: dict[str, _Held | None] = {}

    def _rounding(self) -> Array:
        """The largest error that is rounding, (N, O, P): of the products' sum, or of the output.

        Of a candidate whose outputs are larger it is larger, too.
        """
        evidence = self.evidence
        at = evidence.pixels[0] * evidence.size[1] + evidence.pixels[1]
        energy = product_energy(evidence.site.program, evidence.site.x)[:, :, at]
        size = max(float(np.abs(evidence.seen.y).max()), 1e-300)
        y_hat = np.where(np.isfinite(evidence.seen.y_hat), evidence.seen.y_hat, 0.0)
        grown = max(1.0, float(np.abs(y_hat).max()) / size)
        whole = _ROUNDING * _UNIT * grown * np.maximum(energy, np.abs(y_hat))
        return np.asarray(np.minimum(whole, grown * evidence.seen.certified))

    @property
    def is_loose(self) -> bool:
        """Whether rounding may be so large that what fits may be chance."""
        shown = self.shown
        sizes = np.abs(shown.y_hat[shown.seen])
        return float(np.median(shown.tolerance[shown.seen] / sizes)) > _LOOSE

    def best(self, trials: Sequence[Trial]) -> list[Composed]:
        """The known bugs that are there beside something else, the surest first."""
        # What was fitted while something else is wrong, too, is less likely than what is usual.
        trials = [t for t in (*trials, *self.evidence.usual()) if t.mutant.is_admissible()]
        most = [max(shares.get(name, 0.0) for shares in self.without) for name in CONSTRUCTORS]
        # What a constructor explains without a known bug, one with more free numbers does as well.
        least = dict(zip(CONSTRUCTORS, np.maximum.accumulate(most), strict=True))
        for some in ((NOTHING,), AROUND):
            told = []
            for around in some:
                self.workspace = Workspace()
                told += [one for trial in trials if (one := self._held(trial, around, least))]
            told = sorted(told, key=lambda each: -each.share)
            alone = max(self.without[0].values(), default=0.0)
            if some is AROUND and told:
                alone = max(alone, self.mixed_alone)
            if alone >= _ALONE and not (told and told[0].share >= alone - _LEAST_GAIN):
                return []  # one cause that explains more than two do, and nothing turned or rolled
            if told:
                return told
        return self._best_mixed(trials)

    def _best_mixed(self, trials: Sequence[Trial]) -> list[Composed]:
        """The same where outputs are blurred, displaced or pooled: nine numbers for a layer."""
        least, found = self.mixed_alone, []
        self.workspace = Workspace()
        for trial in trials:
            share = self._mixed(trial.mutant.variant.program)
            one = Composed(trial, share, least, MIXED, NOTHING)
            if self._is_there(one, _MOST_FREE_SHARE):
                found.append(one)
        return sorted(found, key=lambda each: -each.share)

    @cached_property
    def mixed_alone(self) -> float:
        """What a mix with the neighbours explains without a known bug."""
        self.workspace = Workspace()
        return self._mixed(self.evidence.site.program)

    def _mixed(self, program: BlockProgram) -> float:
        try:
            terms = self.evidence.neighbours(program, self.workspace)
        except DO_NOT_FIT:
            return 0.0
        if terms is None:
            return 0.0
        nothing = np.zeros(self.shown.y_hat.shape)
        return self.shown.share(self.shown.sums(nothing, list(terms), _same))

    def _is_there(self, one: Composed, least_share: float) -> bool:
        enough = one.gain >= _LEAST_GAIN and one.gain * self.shown.count >= LEAST_OUTPUTS
        return enough and one.share >= least_share

    @cached_property
    def without(self) -> list[dict[str, float]]:
        """What each constructor explains without a known bug: for NOTHING, then for AROUND."""
        right = []
        for around in (NOTHING, *AROUND):
            self.workspace = Workspace()
            held = self._hold(self.evidence.site.program, around)
            self.right[around.says] = held
            right.append({} if held is None else self._shares(held))
        return right

    def alone(self, least: float, names: Sequence[str]) -> Composed | None:
        """What explains so many of the outputs without a known bug; None if nothing does."""
        for name in names:
            for around, shares in zip((NOTHING, *AROUND), self.without, strict=True):
                if shares.get(name, 0.0) >= least:
                    return Composed(None, shares[name], 0.0, name, around)
        if MIXED in names and self.mixed_alone >= least:
            return Composed(None, self.mixed_alone, 0.0, MIXED, NOTHING)
        return None

    def _held(self, trial: Trial, around: Around, least: Mapping[str, float]) -> Composed | None:
        """A known bug with the constructor that shows it best; None if it does not show."""
        held, right = self._hold(trial.mutant.variant.program, around), self.right[around.says]
        if held is None:
            return None
        shares, program = self._shares(held), trial.mutant.variant.program
        if program.is_skipped:  # whose factors would be a layer's weights
            shares = {n: share for n, share in shares.items() if n not in SCALES}
        name = max(shares, key=lambda n: round(shares[n] - least[n], 2))
        # A known bug with a fitted number is no simpler than a constructor that has one.
        without = max(least[name], least["shifted"] if trial.mutant.bug.continuous else 0.0)
        if right is not None:
            changed = held.changed(right, name, self.shown.tolerance)
            without = max(without, self.shown.share(held.right[name] & ~changed))
            if _is_multiple(held.z, right.z):  # a factor of all channels, and no simpler than one
                without = max(without, least["affine"])
            if _is_activation(program, self.evidence.site.program):
                without = max(without, self._shares(right).get("function", 0.0))
        one = Composed(trial, shares[name], float(without), name, around)
        least_share = _MOST_FREE_SHARE if name in MUCH_IS_FREE else _LEAST_SHARE
        return one if self._is_there(one, least_share) else None

    def _shares(self, held: _Held) -> dict[str, float]:
        """Constructor -> share of the outputs that are right to rounding."""
        return {name: self.shown.share(at) for name, at in held.right.items()}

    def _hold(self, program: BlockProgram, around: Around) -> _Held | None:
        """The outputs held against a program; None if it has others."""
        try:
            program = around.change(program)
            z = self._predicted(_bare(program))
        except DO_NOT_FIT:
            return None
        if z is None:
            return None
        gates_at = _gates_at(program)
        y = self._predicted(program) if gates_at != "" else _activated(program, z)
        if y is None:
            return None
        # Most maps around the layer show in none of its outputs: those cost no fits.
        hopeless = around is not NOTHING and not self.shown.resembles(z)
        fits = {} if gates_at is None or hopeless else self._fits(program, z, gates_at)
        if gates_at:  # behind its own gates
            fits["scaled"] = self.shown.sums(y, [y], _same)
        right = {"part": self.shown.is_right(y), "moved": self._moved(y)} | fits
        gateless = _activated(program, z) if gates_at else y
        return _Held(y, gateless, z, {name: right[name] for name in CONSTRUCTORS if name in right})

    def _predicted(self, program: BlockProgram) -> Array | None:
        return self.evidence.predict_in(program, self.workspace)

    def _moved(self, y: Array) -> Array:
        return self.shown.is_right(y[:, self.shown.order(y)])

    def _fits(self, program: BlockProgram, z: Array, gates_at: str) -> dict[str, Array]:
        """Where each constructor that has numbers explains the outputs."""
        shown, act = self.shown, partial(_activated, program)
        b, ones = _bias(program, self.workspace), np.ones(())
        if not gates_at:
            whole = {"common": shown.sums(z, [z - b, b, ones], act)}
            if shown.share(whole["common"]) >= _LEAST_SHARE:  # it has all that these have
                whole |= {
                    "scaled": shown.sums(z, [z], act),
                    "weights": shown.sums(z, [z - b], act),
                    "bias": shown.sums(z, [b], act),
                    "shifted": shown.sums(z, [ones], act),
                }
            order = shown.order(act(z))
            return whole | {
                "affine": shown.affine(z, act),
                "moved affine": shown.affine(z[:, order], act),
                "function": shown.function(z),
            }
        gated = {"gated": shown.gated(act(z)), "function": self._gated_function(program, z)}
        if _activation(program) not in _LET_FACTORS_THROUGH:
            return gated
        shifts = shown.shifts(z)
        moved = z[:, shown.order(act(z))]
        return gated | {
            "shifted": shown.gated_sums(z, [ones], act, shifts),
            "common": shown.gated_sums(z, [b, ones], act, shifts),
            "affine": shown.gated_affine(z, act, shifts),
            "moved affine": shown.gated_affine(moved, act, shown.shifts(moved)),
        }

    def _gated_function(self, program: BlockProgram, z: Array) -> Array:
        """Any function in place of the activation: behind the gate, or in front of it."""
        if program.activation.startswith("se"):
            behind = self._predicted(replace(program, activation="se", output_map=None))
            return self.shown.function(z if behind is None else behind)
        return self.shown.function(z, self.shown.gates(np.maximum(z, 0)))


def composed(
    evidence: LayerEvidence, trials: Sequence[Trial]
) -> tuple[list[Finding], Composed | None]:
    """A known bug and that there is something else; or, in words, what alone there is.

    Returns
    -------
    findings : list of Finding
        Two, the known one first; none if no known bug shows.
    alone : Composed or None
        What explains nearly all of the outputs without a known bug.
    """
    if not isinstance(evidence.site.program, BlockProgram):
        return [], None
    images, channels, _ = evidence.seen.y.shape
    composer = Composer(evidence.thinned(max(_PIXELS, _OUTPUTS // (images * channels))))
    # What is planted before the layer, where a port hides it, is no other program of this layer.
    trials = [t for t in trials if isinstance(t.mutant.variant.program, BlockProgram)]
    if composer.shown.count < LEAST_OUTPUTS or composer.is_loose:
        return [], None
    if alone := composer.alone(_ALL, [n for n in CONSTRUCTORS if n not in HIDES_A_BUG]):
        return [], alone
    found = composer.best(trials)
    if not found:
        return [], composer.alone(_ALONE, [*CONSTRUCTORS, MIXED])
    first, alike = found[0], [each for each in found if each.share >= found[0].share - _SAME]
    names = dict.fromkeys(each.trial.mutant.bug.name for each in alike if each.trial is not None)
    assert first.trial is not None
    known = first.trial.one_of_two()
    says = f"two causes at once, one of them in no library: beside {known.bug}, {first.says}"
    others = tuple(name for name in names if name != known.bug)
    return [
        replace(known, explains=first.share, equivalents=others),
        Finding("unknown", evidence.layer, None, 0.0, first.share, says, _ADVICE),
    ], None


def _bias(program: BlockProgram, workspace: Workspace) -> Array:
    """(O, 1): what is added to the products; 0 where that is not one number a channel."""
    outputs = program.spec.out_channels
    if program.relu_inside or program.se_inside or program.is_skipped:
        return np.zeros((outputs, 1))
    return program.fused_kernel(workspace).bias[:, None]


def _bare(program: BlockProgram) -> BlockProgram:
    """What stands in front of gate and activation."""
    gate = program.se if program.se_inside else None
    return replace(program, activation="none", se=gate, output_map=None)


def _activation(program: BlockProgram) -> str:
    return program.activation.replace("se", "").strip("-") or "none"


def _activated(program: BlockProgram, z: Array) -> Array:
    return ACTIVATIONS.get(_activation(program), _same)(z)


def _is_multiple(z: Array, right: Array) -> bool:
    """Whether one is the other times a number."""
    power = float((right**2).sum())
    factor = float((z * right).sum()) / power if power > 0 else 0.0
    return bool(np.abs(z - factor * right).max() <= _MULTIPLE * np.abs(z).max())


def _is_activation(program: BlockProgram, right: BlockProgram) -> bool:
    """Whether nothing but the activation is another: then any function in its place is as good."""
    others = (field.name for field in fields(right) if field.name != "activation")
    same = all(getattr(program, name) is getattr(right, name) for name in others)
    return same and _gates_at(program) == _gates_at(right)


def _gates_at(program: BlockProgram) -> str | None:
    """Where a gate of squeeze-and-excitation stands, empty if nowhere; None: fits do not hold."""
    if program.output_map is not None or program.se_inside:
        return None
    has_gate = program.se is not None and "se" in program.activation.split("-")
    if not has_gate:
        return ""
    first = program.activation.startswith("se")
    return "before" if first else "after"


def _same(z: Array) -> Array:
    return z
