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

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import product_energy
from repvgg_ref.oracle.diagnosis.constructors import (
    AROUND,
    CONSTRUCTORS,
    HIDES_A_BUG,
    MIXED,
    MUCH_IS_FREE,
    NOTHING,
    Around,
)
from repvgg_ref.oracle.diagnosis.evidence import DO_NOT_FIT, LayerEvidence
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.programs.activation import ACTIVATIONS
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import Workspace
from repvgg_ref.oracle.report import Finding

_UNIT, _ROUNDING = 2.0**-24, 100.0  # of float32; direct sums need 25, Winograd's F(4) 70
_LOOSE = 1e-4  # of an output
_LEAST_OUTPUTS = 24
_LEAST_SHARE = 0.2  # of the outputs, right with the known bug
_MOST_FREE_SHARE = 0.5  # the same where much is free
_LEAST_GAIN = 0.12  # of the outputs, right with it and wrong without it
_ALL = 0.97  # of the outputs, right without a known bug: there is none
_ALONE = 0.9  # of the outputs, right without a known bug: what else is done is all there is
_CURVATURE = 0.5  # of f at most, both sides in deviations; ELU, softplus and GELU bend less
_CHANCE = 0.003  # of a wrong value lying between its neighbours
_PIXELS, _OUTPUTS = 20, 2000  # a function needs its neighbours near
_ROUNDS = 3  # of least squares, each without what is far off
_FEWEST = 6  # active outputs of a channel from which a factor and a constant are taken
_ADVICE = "mend the known one and verify again: what is left is then seen alone"
_SAME = 0.02  # of the outputs: two known bugs that explain as many


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
    """A program's outputs y and what is in front of its activation, z; where each fits."""

    y: Array
    z: Array
    right: Mapping[str, Array]


class Composer:
    """Known bugs held against one layer's outputs, each with every constructor.

    Parameters
    ----------
    evidence : LayerEvidence
        The layer's outputs at sampled pixels.
    """

    def __init__(self, evidence: LayerEvidence) -> None:
        self.evidence = evidence
        y_hat = evidence.seen.y_hat
        self.seen = np.isfinite(y_hat) & (y_hat != 0)
        self.y_hat = np.where(self.seen, y_hat, 0.0)
        self.count = float(self.seen.sum())
        self.tolerance = self._rounding()
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
        grown = max(1.0, float(np.abs(self.y_hat).max()) / size)
        whole = _ROUNDING * _UNIT * grown * np.maximum(energy, np.abs(self.y_hat))
        return np.asarray(np.minimum(whole, grown * evidence.seen.certified))

    @property
    def is_loose(self) -> bool:
        """Whether rounding may be so large that what fits may be chance."""
        sizes = np.abs(self.y_hat[self.seen])
        return float(np.median(self.tolerance[self.seen] / sizes)) > _LOOSE

    def best(self, trials: Sequence[Trial]) -> list[Composed]:
        """The known bugs that are there beside something else, the surest first."""
        # What was fitted while something else is wrong, too, is less likely than what is usual.
        trials = [*trials, *self.evidence.usual()]
        most = [max(shares.get(name, 0.0) for shares in self.without) for name in CONSTRUCTORS]
        # What a constructor explains without a known bug, one with more free numbers does as well.
        least = dict(zip(CONSTRUCTORS, np.maximum.accumulate(most), strict=True))
        for some in ((NOTHING,), AROUND):
            told = []
            for around in some:
                self.workspace = Workspace()
                told += [one for trial in trials if (one := self._held(trial, around, least))]
            if told:
                return sorted(told, key=lambda each: -each.share)
            if any(share >= _ALONE for share in self.without[0].values()):
                return []  # nothing that was turned or rolled is needed
        return self._best_mixed(trials)

    def _best_mixed(self, trials: Sequence[Trial]) -> list[Composed]:
        """The same where outputs are blurred, displaced or pooled: nine numbers for a layer."""
        self.workspace = Workspace()
        least = self._mixed(self.evidence.site.program)
        found = []
        for trial in trials:
            share = self._mixed(trial.mutant.variant.program)
            one = Composed(trial, share, least, MIXED, NOTHING)
            if self._is_there(one, _MOST_FREE_SHARE):
                found.append(one)
        return sorted(found, key=lambda each: -each.share)

    def _mixed(self, program: BlockProgram) -> float:
        try:
            terms = self.evidence.neighbours(program, self.workspace)
        except DO_NOT_FIT:
            return 0.0
        if terms is None:
            return 0.0
        right = self._with(np.zeros(self.y_hat.shape), list(terms), _same)
        return float((right & self.seen).sum() / self.count)

    def _is_there(self, one: Composed, least_share: float) -> bool:
        enough = one.gain >= _LEAST_GAIN and one.gain * self.count >= _LEAST_OUTPUTS
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

    def alone(self, least: float, names: Iterable[str]) -> Composed | None:
        """What explains so many of the outputs without a known bug; None if nothing does."""
        for name in names:
            for around, shares in zip((NOTHING, *AROUND), self.without, strict=True):
                if shares.get(name, 0.0) >= least:
                    return Composed(None, shares[name], 0.0, name, around)
        return None

    def _held(self, trial: Trial, around: Around, least: Mapping[str, float]) -> Composed | None:
        """A known bug with the constructor that shows it best; None if it does not show."""
        held, right = self._hold(trial.mutant.variant.program, around), self.right[around.says]
        if held is None:
            return None
        shares = self._shares(held)
        name = max(shares, key=lambda n: round(shares[n] - least[n], 2))
        # A known bug with a fitted number is no simpler than a constructor that has one.
        without = max(least[name], least["shifted"] if trial.mutant.bug.continuous else 0.0)
        if right is not None:  # what it leaves as it is says nothing of it
            where = "z" if name == "function" else "y"
            changed = np.abs(getattr(held, where) - getattr(right, where)) > self.tolerance
            kept = held.right[name] & self.seen & ~changed
            without = max(without, float(kept.sum() / self.count))
        one = Composed(trial, shares[name], float(without), name, around)
        least_share = _MOST_FREE_SHARE if name in MUCH_IS_FREE else _LEAST_SHARE
        return one if self._is_there(one, least_share) else None

    def _shares(self, held: _Held) -> dict[str, float]:
        """Constructor -> share of the outputs that are right to rounding."""
        return {n: float((at & self.seen).sum() / self.count) for n, at in held.right.items()}

    def _hold(self, program: BlockProgram, around: Around) -> _Held | None:
        """The outputs held against a program; None if it has others."""
        try:
            program = around.change(program)
            y = self.evidence.predict_in(program, self.workspace)
            if y is None:
                return None
            is_plain = program.se is None
            y = y if is_plain else y * self._gates(y)
            z = self.evidence.predict_in(_bare(program), self.workspace) if is_plain else y
            b = _bias(program, self.workspace) if is_plain else np.zeros((y.shape[1], 1))
        except DO_NOT_FIT:
            return None
        if z is None:
            return None
        act = ACTIVATIONS.get(program.activation, _same) if is_plain else _same
        order = self._order(y)
        right = {
            "part": self._is_right(y),
            "scaled": self._with(z, [z], act),
            "weights": self._with(z, [z - b], act),
            "bias": self._with(z, [b], act),
            "shifted": self._with(z, [np.ones(())], act),
            "common": self._with(z, [z - b, b, np.ones(())], act),
            "moved": self._is_right(y[:, order]),
            "affine": self._affine(z, act),
            "moved affine": self._affine(z[:, order], act),
            "function": self._function(z),
        }
        return _Held(y, z, right)

    def _is_right(self, y: Array) -> Array:
        """Where the candidate has these values, to rounding."""
        return np.asarray(np.abs(self.y_hat - y) <= self.tolerance)

    def _gates(self, y: Array) -> Array:
        """(N, O, 1): the candidate's gates over the program's; what else is wrong moves them."""
        ratios = np.where(self.seen & (y != 0), self.y_hat, np.nan) / np.where(y != 0, y, 1.0)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            found = np.nanmedian(ratios, axis=2, keepdims=True)
        return np.where(np.isfinite(found), found, 1.0)

    def _order(self, y: Array) -> Array:
        """(O,): the channel of `y` that each of the candidate's goes with best."""
        a, b = (v.transpose(1, 0, 2).reshape(v.shape[1], -1) for v in (self.y_hat, y))
        a, b = (v - v.mean(axis=1, keepdims=True) for v in (a, b))
        b = b / np.maximum(np.sqrt((b * b).sum(axis=1, keepdims=True)), 1e-300)
        return np.asarray(np.argmax(a @ b.T, axis=1))

    def _with(self, z: Array, terms: Sequence[Array], act: Callable[[Array], Array]) -> Array:
        """``act(z + a sum of terms)`` with one number for each term and the whole layer."""
        on = lit = (self.seen & (self.y_hat > 0)).ravel()
        wide = np.stack([np.broadcast_to(term, z.shape).ravel() for term in terms])
        wanted = (self.y_hat - z).ravel()
        size = np.maximum(np.sqrt((wide * wide).sum(axis=1)), 1e-300)
        wide = wide / size[:, None]
        fitted = z
        for _ in range(_ROUNDS):
            if on.sum() < _LEAST_OUTPUTS:
                return np.zeros(z.shape, bool)
            chosen = wide * on
            numbers = np.linalg.lstsq(chosen @ wide.T, chosen @ wanted, rcond=1e-13)[0]
            off = np.abs(wanted - numbers @ wide)
            fitted = z + (numbers @ wide).reshape(z.shape)
            on = lit & (off <= 3 * np.median(off[on]))
        return self._is_right(act(fitted))

    def _affine(self, z: Array, act: Callable[[Array], Array]) -> Array:
        """``act(a z + b)``, a and b for each channel by least squares where ReLU is on."""
        on = self.seen & (self.y_hat > 0)
        n = on.sum(axis=(0, 2))
        count = np.maximum(n, 1)
        mean_z = np.where(on, z, 0.0).sum(axis=(0, 2)) / count
        mean_y = np.where(on, self.y_hat, 0.0).sum(axis=(0, 2)) / count
        dz = np.where(on, z - mean_z[:, None], 0.0)
        power = (dz * dz).sum(axis=(0, 2))
        cross = (dz * self.y_hat).sum(axis=(0, 2))
        a = np.where(power > 0, cross / np.maximum(power, 1e-300), 0.0)
        fitted = act(a[:, None] * (z - mean_z[:, None]) + mean_y[:, None])
        return np.asarray(self._is_right(fitted) & (n >= _FEWEST)[:, None])

    def _function(self, z: Array) -> Array:
        """``f(z)``: each output lies between those whose z is next to its own."""
        flat, y = z.ravel(), self.y_hat.ravel()
        order = np.argsort(flat, kind="stable")
        flat, y, noise = flat[order], y[order], self.tolerance.ravel()[order]
        width = flat[2:] - flat[:-2]
        at = np.where(width > 0, (flat[1:-1] - flat[:-2]) / np.maximum(width, 1e-300), 0.5)
        between = y[:-2] + at * (y[2:] - y[:-2])
        noise = noise[1:-1] + np.maximum(noise[2:], noise[:-2])
        deviation = max(float(z[self.seen].std()), 1e-300)
        bent = _CURVATURE * np.minimum(width / deviation, 1.0) ** 2  # more is too much anyway
        good = np.abs(y[1:-1] - between) <= noise + bent * float(y.std())
        right = np.zeros(flat.shape, bool)
        right[order[1:-1]] = good & (bent <= _CHANCE)
        return right.reshape(z.shape)


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
    if composer.count < _LEAST_OUTPUTS or composer.is_loose:
        return [], None
    if alone := composer.alone(_ALL, [n for n in CONSTRUCTORS if n not in HIDES_A_BUG]):
        return [], alone
    found = composer.best(trials)
    if not found:
        return [], composer.alone(_ALONE, CONSTRUCTORS)
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
    return replace(program, activation="none", output_map=None)


def _same(z: Array) -> Array:
    return z
