"""One call's answers held against their bounds, and what the errors say together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs import HEAD_BUGS, LAYER_BUGS
from repvgg_ref.oracle.bugs.base import round_to_bits
from repvgg_ref.oracle.diagnosis.diagnose import diagnose, diagnose_shape
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.operators.bugs import CALL_BUGS
from repvgg_ref.oracle.operators.convolution import conv_program
from repvgg_ref.oracle.operators.evidence import (
    CallEvidence,
    channel_axis,
    layer_evidence,
    layer_site,
    shape_findings,
)
from repvgg_ref.oracle.operators.excuses import fast_ways
from repvgg_ref.oracle.operators.operator import Answer, Call, Expected
from repvgg_ref.oracle.operators.rounding import Rounding
from repvgg_ref.oracle.operators.statistics import (
    Regularity,
    Tests,
    regularity,
    rounding_direction,
    taps_wrong,
    two_tests,
)
from repvgg_ref.oracle.programs.program import Program
from repvgg_ref.oracle.report import Finding, LayerReport

_LIKELY = 7.5  # lambda of the likely bounds: 1e4 terms and outputs exceed one with 1e-4
_SHORT = 8
_NOTHING = 2.0**-16  # of a bound: less is what float64 errs by
_LIBRARY = len(LAYER_BUGS) + len(HEAD_BUGS)
_TESTED = ("short", "full", "running", "batch")  # labels of calls that the two tests may judge
_HALF_RANGE = (2.0**-14, 65504.0)
# A channel's own factor or constant in batch norm: its mean, deviation, gamma and beta are rounded.
_COHERENT = 16


@dataclass(frozen=True)
class OutputCheck:
    """One output of one call.

    Attributes
    ----------
    error : array or None
        What the port gave minus what is right; None if the shapes differ.
    exact : bool or None
        For integers: whether every sum came out as it must. None for other numbers.
    """

    call: Call
    name: str
    layer: LayerReport
    error: Array | None
    tests: Tests
    exact: bool | None = None
    direction: str = ""
    regular: Regularity | None = None

    @property
    def is_sound(self) -> bool:
        """Whether nothing speaks against it; directed rounding is an arithmetic, and no bug."""
        like_rounding = self.tests.is_passed or bool(self.direction)
        return self.layer.ok and self.regular is None and like_rounding


class Judged:
    """A call with its answer, compared; `exact` is what the port was on integers."""

    def __init__(
        self, call: Call, answer: Answer, precision: Precision, exact: bool | None = None
    ) -> None:
        self.call, self.precision, self.exact = call, precision, exact
        self.reads_exactly = reads_exactly(call, precision)
        given = {n: np.asarray(a, np.float64) for n, a in answer.outputs.items()}
        rounding = Rounding(precision)
        if self.reads_exactly:
            rounding = rounding.reading_exactly()
        self.certified: Expected = call.expect(rounding)
        self.likely: Expected = call.expect(replace(rounding, lam=_LIKELY))
        self.missing = [n for n in self.certified if n not in given]
        self.given = {n: given[n] for n in self.certified if n in given}
        self.checks = [self._check(name) for name in self.given]

    @property
    def bad(self) -> list[OutputCheck]:
        """Outputs that are not right."""
        return [check for check in self.checks if not check.is_sound]

    def _check(self, name: str) -> OutputCheck:
        right, got = self.certified[name], self.given[name]
        if got.shape != right.value.shape:
            got_shape, wanted = ("x".join(map(str, a.shape)) for a in (got, right.value))
            note = f"shape {got_shape} instead of {wanted}, for {self.call.label}"
            layer = LayerReport.incomparable(name, note)
            return OutputCheck(self.call, name, layer, None, Tests(0, 0, 0))
        with np.errstate(invalid="ignore"):
            error = got - right.value
        layer = self._layer(name, error, got)
        if not np.isfinite(error).all():
            return OutputCheck(self.call, name, layer, error, Tests(0, 0, 0))
        check = OutputCheck(self.call, name, layer, error, self._tests(name, error))
        check = replace(check, direction=rounding_direction(error, right.value))
        if not self.call.integers and not (layer.ok and check.is_sound):
            check = self._excused(check)
        return self._looked_at_together(check)

    def _tests(self, name: str, error: Array) -> Tests:
        """The two tests, where errors are independent: numbers of one size, read as they are."""
        right, kind = self.certified[name], self.call.name.removesuffix("-backward")
        if not (self.call.label.startswith(_TESTED) and self.reads_exactly):
            return Tests(0, 0, 0)
        if kind in ("conv2d", "conv_bias_relu", "linear"):
            return two_tests(error, right.unit)
        if self.call.name == "batch_norm" and name == "y" and self.precision.name == "fp32":
            # A channel's outputs share the errors of its statistics: its mean is one observation.
            share = (error / right.unit).mean(axis=(0, 2, 3))
            return two_tests(share, np.ones_like(share), fewest=len(share))
        return Tests(0, 0, 0)

    def _excused(self, check: OutputCheck) -> OutputCheck:
        """The same by a faster way to convolve, if its bound and its tests hold."""
        error = check.error
        assert error is not None
        ways = fast_ways(self.call, check.name, self.certified, self.precision, exact=self.exact)
        for words, bound, unit in ways:
            tests = two_tests(error, unit) if check.tests.outputs else check.tests
            if (np.abs(error) <= bound).all() and tests.is_passed:
                layer = replace(check.layer, ok=True, note=words)
                return replace(check, layer=layer, tests=tests)
        return check

    def _layer(self, name: str, error: Array, got: Array) -> LayerReport:
        right, likely, p = self.certified[name], self.likely[name], self.precision
        size = np.abs(error)
        floor = p.u_store * float(np.abs(right.value).max(initial=0)) + p.tiny
        shown = np.maximum(right.error, floor)
        at = np.unravel_index(np.argmax(size / shown), size.shape)
        ok = bool((size <= right.error).all())
        lost = int((~np.isfinite(got)).sum())
        note = f"{lost} of {got.size} are NaN or infinite" if lost else ""
        return LayerReport(
            name,
            float(size[at]),
            float(shown[at]),
            float((size / shown)[at]),
            ok=ok,
            likely_ratio=float((size / np.maximum(likely.error, floor)).max()),
            note=note,
        )

    def _looked_at_together(self, check: OutputCheck) -> OutputCheck:
        """Exactness on integers; regular errors where rounding gives none, or small ones."""
        error, right = check.error, self.certified[check.name]
        assert error is not None
        axis = channel_axis(check.name, error)
        if self.call.integers:
            stored = self.precision.u_store * np.abs(right.value) * (1 + 1e-9)
            if self.precision.u_store < 2.0**-20:
                stored = 0 * stored
            exact = bool((np.abs(error) <= stored).all())
            check = replace(check, exact=exact)
            if not exact and not check.layer.ok:
                check = self._excused(check)
            found = None if exact else regularity(error, right.value, axis, stored)
            return replace(check, regular=found or (None if exact else self._taps(check)))
        if self.call.name.startswith("batch_norm") and check.layer.ok:
            coherent = _COHERENT * (self.precision.u_accumulate + self.precision.u_store)
            found = regularity(error, right.value, axis, right.error)
            size = np.abs(error).max() / max(float(np.abs(right.value).max()), 1e-300)
            if found is not None and size > coherent and found.bug != "few-outputs-wrong":
                return replace(check, regular=found)
        return check

    def _taps(self, check: OutputCheck) -> Regularity | None:
        """Wrong weights, of a forward convolution."""
        program = None
        if self.call.name in ("conv2d", "conv_bias_relu"):
            program = conv_program(self.call.arrays, self.call.settings, "none")
        if program is None or check.error is None:
            return None
        x = np.asarray(self.call.arrays["x"], np.float64)
        height, width = program.output_size(*x.shape[2:])
        rows, columns = np.divmod(np.arange(height * width), width)
        patches = program.gather(x, rows, columns)  # (N, P, C, Kh, Kw)
        n, p = patches.shape[:2]
        g = program.groups
        met = patches.reshape(n * p, g, -1).transpose(1, 2, 0)  # (G, K, N*P)
        errors = check.error.transpose(1, 0, 2, 3).reshape(len(program.fused_kernel().bias), -1)
        return taps_wrong(errors, met)

    def findings(self) -> list[Finding]:
        """Why the outputs that are bad are so."""
        name = self.bad[0].name
        found = [replace(each, layer=name) for each in self._explained()]
        return found or [self._described(self.bad[0])]

    def _explained(self) -> list[Finding]:
        first = self.bad[0]
        got = self.given[first.name]
        if not np.isfinite(got).all():
            return [_not_finite(first.name, got, self.certified[first.name].value)]
        program = self.call.operator.program(self.call.arrays, self.call.settings)
        if first.error is None:
            if program is not None:
                return diagnose_shape(layer_site(self.call, program, got), got)
            return shape_findings(self.call, self.given)
        if program is not None and not first.layer.ok:
            named = [
                f for f in diagnose(self._evidence(program), thoroughly=False) if f.bug != "unknown"
            ]
            if named:
                return named
        own = self._own_evidence()
        named_trials = [trial for trial in own.trials() if trial.named]
        return own.seen.ranked(named_trials) if named_trials else []

    def _evidence(self, program: Program) -> LayerEvidence:
        bound = Bound(self.certified["y"].error, self.likely["y"].error)
        return layer_evidence(self.call, program, self.given["y"], bound, self.precision)

    def _own_evidence(self) -> CallEvidence:
        return CallEvidence(self.call, self.given, self.certified, self.likely, self.precision)

    def hidden(self, calls: int) -> list[Finding]:
        """Bugs within the bounds, but too regular for rounding; errors of float64 say nothing."""
        if all(
            check.error is not None
            and (np.abs(check.error) <= _NOTHING * self.certified[check.name].error).all()
            for check in self.checks
        ):
            return []
        program = self.call.operator.program(self.call.arrays, self.call.settings)
        if program is not None:
            seen = self._evidence(program)
            regular = [t for t in seen.trials() if t.is_hidden(calls * _LIBRARY)]
            if regular:
                return [replace(each, layer="y") for each in seen.seen.ranked(regular)]
        own = self._own_evidence()
        tests = calls * len(CALL_BUGS) * 4
        shown = [trial for trial in own.trials() if trial.is_hidden(tests)]
        name = next(iter(self.given))
        return [replace(each, layer=name) for each in own.seen.ranked(shown)] if shown else []

    def _described(self, check: OutputCheck) -> Finding:
        """What can be said of a bug that is in no library."""
        found = check.regular
        if found is None and check.error is not None:
            axis = channel_axis(check.name, check.error)
            right = self.certified[check.name]
            found = regularity(check.error, right.value, axis, right.error)
        if found is not None:
            advice = "compare with the definition where the outputs are wrong"
            return Finding(
                found.bug, check.name, found.estimate, 1.0, found.explains, found.says, advice
            )
        if check.layer.ok:
            return _against_rounding(check)
        beyond = np.zeros(1) if check.error is None else np.abs(check.error)
        share = 0.0 if check.error is None else (beyond > self.certified[check.name].error).mean()
        says = check.layer.note or f"{share:.1%} of {check.name} are beyond their bound"
        advice = "the bug is not in the library: look at the first wrong output"
        return Finding("unknown", check.name, None, 0.0, 0.0, says, advice)


def _against_rounding(check: OutputCheck) -> Finding:
    """The errors are small enough, each, but not like rounding together."""
    tests = check.tests
    if tests.variance > 1:
        says = f"the errors' mean square is {tests.variance:.3g} times what rounding can make it"
        return Finding("error-variance", check.name, tests.variance, 1.0, 0.0, says, _LESS_BITS)
    says = f"the errors' sum is {tests.bias:.3g} times what rounding can make it"
    return Finding("error-bias", check.name, tests.bias, 1.0, 0.0, says, _BIASED)


_LESS_BITS = "look for a number kept in fewer bits than the rest"
_BIASED = "look for a constant, or a sum that starts from something else than 0"


def _not_finite(name: str, got: Array, right: Array) -> Finding:
    lost = ~np.isfinite(got)
    says = f"{lost.mean():.1%} of {name} are NaN or infinite"
    overflow = (
        bool(np.abs(right[lost]).min() > _HALF_RANGE[1]) if got.shape == right.shape else False
    )
    bug = "fp16-overflow" if overflow else "not-finite"
    advice = "look for a division by zero, a root of a negative variance, or unwritten memory"
    return Finding(bug, name, float(lost.mean()), 0.5, float(lost.mean()), says, advice)


def reads_exactly(call: Call, p: Precision) -> bool:
    """Whether the format holds every number of the call as it is."""
    if p.name == "fp32":
        return True
    low, high = _HALF_RANGE
    for array in call.arrays.values():
        values = np.asarray(array, np.float64)
        size = np.abs(values[values != 0])
        if not (round_to_bits(values, _SHORT) == values).all():
            return False
        if size.size and (size.min() < low or size.max() > high):
            return False
    return True
