"""From compared layers to a verdict with reasons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.oracle.arithmetic.fourier import FFT, LARGEST
from repvgg_ref.oracle.arithmetic.operands import Seen
from repvgg_ref.oracle.arithmetic.tiles import Algorithm
from repvgg_ref.oracle.blas import in_threads
from repvgg_ref.oracle.bounds.block import Bound, block_bound, product_energy
from repvgg_ref.oracle.bounds.comparison import Comparison, diagnosis_bound
from repvgg_ref.oracle.bounds.precision import Precision, estimate_unit_roundoff
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.diagnose import diagnose, diagnose_shape
from repvgg_ref.oracle.diagnosis.everywhere import Layers, merged
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.diagnosis.incomparable import not_finite, wrong_shape
from repvgg_ref.oracle.diagnosis.small import ESTIMATED, explain_alarms, explain_unknown
from repvgg_ref.oracle.diagnosis.strange import strangeness
from repvgg_ref.oracle.diagnosis.tested import what_was_tested
from repvgg_ref.oracle.estimates.estimate import Estimate
from repvgg_ref.oracle.estimates.port import PortEstimates, estimate_port
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Finding, LayerReport, Report

# A bad layer after the first is diagnosed as well, but not without end.
_MOST_DIAGNOSED = 6
# Searched for two bugs at once, which takes seconds a layer; of more, the first alone, and the
# others for the two that are found there.
_MOST_SEARCHED = 3
_HOPELESS = 1e3  # times a bound: F(8), the coarsest algorithm, has 200 times that of direct sums
_NO_ARITHMETIC = 2.0**-5  # errors this large are a bug's, not a number format's
_FEWEST = 32  # outputs that an estimate of the roundoff needs
_LARGEST_HALF = 60000  # about: what is not finite and should be more has overflown


@dataclass(frozen=True)
class Case:
    """One verification: the compared layers and all that is needed to explain them.

    `unjudged` says why a layer could not be compared; `comparisons` may be overruled. Layers of
    `unestimated` are held to their certified bounds alone: their inputs are not known that well.
    """

    programs: Programs
    comparisons: dict[str, Comparison]
    x: Array
    outputs: Outputs
    precision: Precision
    unjudged: Mapping[str, str] = field(default_factory=dict)
    candidate: str = "candidate"
    unestimated: frozenset[str] = frozenset()

    @cached_property
    def estimates(self) -> PortEstimates:
        """What the layers compute, as far as rounding lets it be told."""
        seen = {
            name: self.seen(name)
            for name, compared in self.comparisons.items()
            if compared.bound is not None
            and np.isfinite(compared.y_hat).all()
            and name not in self.unestimated
            and not self.is_hopeless(name)
        }
        return estimate_port(seen, self.precision)

    def is_hopeless(self, name: str) -> bool:
        """Whether no estimate of a layer is of use: beyond any algorithm, and not diagnosed."""
        far = self.comparisons[name].report.ratio > _HOPELESS
        return far and name not in self.asked(self.caused(self.bad))

    def asked(self, caused: list[str]) -> list[str]:
        """The layers to diagnose: the first, and the last, which may have a cause of its own."""
        few = len(caused) <= _MOST_DIAGNOSED
        return caused if few else [*caused[: _MOST_DIAGNOSED - 1], caused[-1]]

    @property
    def bad(self) -> list[str]:
        """Layers that are not right."""
        return [name for name, compared in self.comparisons.items() if not compared.report.ok]

    @property
    def is_right(self) -> bool:
        """Whether every layer is within its bound and nothing but rounding shows."""
        return not self.bad and not self.estimates.alarms

    def input_of(self, name: str) -> Array:
        """The candidate's own input of a layer."""
        found = self.programs.input_of(name, {**self.outputs.layers, INPUT: self.x})
        assert found is not None  # only layers are asked about that were compared
        return found

    def seen(self, name: str) -> Seen:
        """What of a layer is estimated: all of it."""
        compared = self.comparisons[name]
        return Seen(self.programs[name], self.input_of(name), compared.y, compared.y_hat)

    def caused(self, bad: list[str]) -> list[str]:
        """Those of the `bad` layers that something in themselves may have made so."""
        return bad

    def is_near(self, name: str) -> bool:
        """Whether a layer is one of few bad ones, or the first of them."""
        return len(self.bad) <= _MOST_SEARCHED or name == self.bad[0]

    def is_searched(self, name: str) -> bool:
        """Whether a layer is looked at thoroughly; see `diagnose`."""
        return self.is_near(name)

    def small_findings(self, name: str) -> list[Finding]:
        """Why a layer within its bound is bad all the same."""
        return explain_alarms(*self.shown(name))

    def shown(self, name: str) -> tuple[Site[Any], Seen, Bound, PortEstimates, Precision]:
        """A layer as explanations want it."""
        seen, bound = self.seen(name), self.comparisons[name].bound
        assert bound is not None
        site = site_of(self.programs, name, seen.x, seen.y_hat)
        if seen.program is not site.program:  # a part of it
            site = replace(site, program=seen.program)
            bound = Bound(*(each[:, : seen.y.shape[1]] for each in bound))
        return site, seen, bound, self.estimates, self.precision

    def layer_report(self, name: str) -> LayerReport:
        """The layer's report, with the smallest errors that would have been seen in it."""
        report = self.comparisons[name].report
        return replace(report, detects=self.estimates.detects(name))

    def evidence(self, name: str) -> LayerEvidence:
        """A layer's comparison as the diagnosis wants it."""
        compared, x = self.comparisons[name], self.input_of(name)
        site = site_of(self.programs, name, x, compared.y_hat)
        bound = diagnosis_bound(site.program, x, compared.y, self.precision)
        return LayerEvidence(site, compared.y, compared.y_hat, bound, self.precision.number_format)

    def trial_evidence(self, name: str) -> LayerEvidence | None:
        """The same; None where the outputs cannot be compared."""
        return None if self.comparisons[name].bound is None else self.evidence(name)

    def findings(self, name: str, together: Collection[str] = ()) -> list[Finding]:
        """Why this layer is bad.

        `together` are the bugs of which two are sought in a layer that is one of many.
        """
        compared = self.comparisons[name]
        lost = ~np.isfinite(compared.y_hat)
        if lost.all():
            return [not_finite(name, 1.0, overflow=False)]
        if compared.bound is None:
            return self.of_shape(name)
        if lost.any():
            overflow = bool(np.abs(compared.y[lost]).min() > _LARGEST_HALF)
            return [not_finite(name, float(lost.mean()), overflow=overflow)]
        near = self.is_near(name)
        found = diagnose(
            self.evidence(name),
            thoroughly=self.is_searched(name),
            together=None if near else together,
        )
        if found[0].bug != "unknown" or name not in self.estimates.samples:
            return found
        return explain_unknown(found[0], *self.shown(name), closely=near)

    def of_shape(self, name: str) -> list[Finding]:
        """Why its output is of another size."""
        compared = self.comparisons[name]
        site = site_of(self.programs, name, self.input_of(name), compared.y_hat)
        return diagnose_shape(site, compared.y_hat) or [wrong_shape(name, compared.report.note)]

    def excuse(self, name: str) -> bool:
        """Overrule a layer whose errors have an algorithm's covariance, and its size at most."""
        compared, program = self.comparisons[name], self.programs[name]
        algorithm = self.estimates.arithmetic.algorithms.get(name)
        if compared.bound is None or algorithm is None or not isinstance(program, BlockProgram):
            return False
        error = np.abs(compared.y_hat - compared.y)
        if not (error <= self._allowed(name, program, algorithm)).all():
            return False
        self.mark(name, ok=True, note=f"{algorithm.name} arithmetic: within that bound")
        return True

    def _allowed(self, name: str, program: BlockProgram, algorithm: Algorithm) -> Array:
        """The largest error that an algorithm excuses, of the shape of the layer's output."""
        x, y = self.input_of(name), self.comparisons[name].y
        if algorithm != FFT:
            bound = block_bound(program, x, y, self.precision, algorithm=algorithm.name)
            return bound.certified
        of_images = (product_energy(program, x) ** 2).mean(axis=2)  # (N, O)
        size = LARGEST * self.precision.unit * np.sqrt(of_images)
        return np.broadcast_to(size[:, :, None, None], y.shape)

    def roundoff(self, name: str) -> str:
        """What the size of a block's errors says of its arithmetic, in words; empty if nothing.

        Where ReLU is off on both sides nothing is seen; SE hides the convolution behind its gate.
        """
        if name not in self.comparisons:
            return ""
        compared, program = self.comparisons[name], self.programs[name]
        if compared.bound is None or not isinstance(program, BlockProgram):
            return ""
        active = (compared.y > 0) & (compared.y_hat > 0) & np.isfinite(compared.y_hat)
        if program.se is not None or active.sum() < _FEWEST:
            return ""
        energy = product_energy(program, self.input_of(name)).reshape(compared.y.shape)
        found = estimate_unit_roundoff((compared.y_hat - compared.y)[active], energy[active])
        if not 0 < found.unit_roundoff < _NO_ARITHMETIC or (
            not compared.report.ok and found.looks_like == "fp32"
        ):
            return ""
        power = f"unit roundoff about 2^{np.log2(found.unit_roundoff):.0f}"
        return f"the errors in {name} look like {found.looks_like}: {power}"

    def is_of(self, finding: Finding, name: str) -> bool:
        """Whether a finding says something of a layer."""
        return finding.is_in(name)

    def alike(self, place: str) -> Collection[str]:
        """The places of the same operation as one that is hidden before a layer."""
        return ()

    def strangeness(self, beyond: list[str], diagnosis: list[Finding]) -> str:
        """Why nothing can be said of a port whose arithmetic is not known; empty if it can."""
        if beyond:
            return ""
        return strangeness(self.comparisons, self.estimates, diagnosis)

    def mark(self, name: str, *, ok: bool, note: str) -> None:
        """Overrule a layer's judgement, saying why."""
        compared = self.comparisons[name]
        self.comparisons[name] = replace(
            compared, report=replace(compared.report, ok=ok, note=note)
        )


def settle(case: Case) -> tuple[list[str], dict[str, list[Estimate]]]:
    """Overrule certified bounds by what was estimated.

    Returns the layers that are beyond their bounds and not excused, and the alarms of others.
    """
    for name in case.bad:
        case.excuse(name)
    beyond = case.bad
    alarms = {n: found for n, found in case.estimates.alarms.items() if n not in beyond}
    for name, found in alarms.items():
        case.mark(name, ok=False, note="within its bound, but " + found[0].says)
    return beyond, alarms


def explain(case: Case) -> Report:
    """Judge, diagnose, and say it."""
    beyond, alarms = settle(case)
    diagnosis = diagnosed(case, beyond, alarms)
    bad = case.bad
    first = bad[0] if bad else None
    if first and not any(case.is_of(finding, first) for finding in diagnosis):
        diagnosis = [Finding("unknown", first, None, 0.0, 0.0), *diagnosis]
    strange = case.strangeness(beyond, diagnosis)
    # A right port's arithmetic shows best where most products are summed: in the last block.
    arithmetic = case.roundoff(first or case.programs.model.arch.blocks[-1].name)
    problem = case.outputs.problem  # the structure alone is wrong: a layer too few
    wrong = (bad and not strange) or problem
    return Report(
        verdict="disagree" if wrong else "cannot-judge" if case.unjudged or strange else "agree",
        reason=problem if problem and not bad else strange or _reason(case, bad, diagnosis),
        model=case.programs.model.name,
        candidate=case.candidate,
        precision=case.precision.name,
        layers=tuple(case.layer_report(name) for name in case.comparisons),
        diagnosis=tuple(diagnosis),
        first_bad_layer=first,
        notes=(
            *case.outputs.notes,
            *filter(
                None,
                [arithmetic, *what_was_tested(case.estimates, case.comparisons, case.programs)],
            ),
        ),
        residual=_residual(case, first),
    )


def diagnosed(case: Case, beyond: list[str], alarms: Mapping[str, list[Estimate]]) -> list[Finding]:
    """Findings for the bad layers: first those beyond their bounds, else those with alarms."""
    chosen = beyond or list(alarms)
    layers = Layers(list(case.comparisons), chosen, case.trial_evidence, ESTIMATED, case.alike)
    asked = case.asked(case.caused(chosen))
    if not beyond:
        return merged(_each(case.small_findings, asked), layers)
    if len(beyond) <= _MOST_SEARCHED:
        return merged(_each(case.findings, asked), layers)
    first = {asked[0]: case.findings(asked[0])}
    there = {f.bug for f in first[asked[0]]} | {n for f in first[asked[0]] for n in f.equivalents}
    return merged(first | _each(partial(case.findings, together=there), asked[1:]), layers)


def _each(ask: Callable[[str], list[Finding]], names: Iterable[str]) -> dict[str, list[Finding]]:
    """Ask about several layers at once."""
    names = list(names)
    return dict(zip(names, in_threads(ask, names), strict=True))


def _reason(case: Case, bad: list[str], diagnosis: Iterable[Finding]) -> str:
    unjudged = case.unjudged
    if bad:
        report = case.comparisons[bad[0]].report
        what = report.note or f"error {report.max_error:.3g}, {report.ratio:.3g} times its bound"
        more = f" ({len(bad) - 1} more layers are bad)" if len(bad) > 1 else ""
        named = next((finding.says for finding in diagnosis), "")
        return f"{bad[0]}: {what}{more}" + (f": {named}" if named else "")
    if unjudged:
        name, why = next(iter(unjudged.items()))
        more = f", and neither can {len(unjudged) - 1} more" if len(unjudged) > 1 else ""
        return (
            f"{len(case.comparisons.keys() - unjudged.keys())} layers agree, but {name} cannot be"
            f" judged{more}: {why}"
        )
    reports = [compared.report for compared in case.comparisons.values()]
    used = max((report.ratio for report in reports if not report.note), default=0.0)
    excused = sum(bool(report.note) for report in reports)
    winograd = f", {excused} of them by Winograd's" if excused else ""
    return (
        f"all {len(reports)} layers are within their certified bounds{winograd}"
        f" (at most {used:.1%} of one is used), and nothing but rounding shows in the residuals"
    )


def _residual(case: Case, name: str | None) -> Array | None:
    """Candidate minus reference in the first bad layer, for the picture."""
    if name is None or case.comparisons[name].y.shape != case.comparisons[name].y_hat.shape:
        return None
    return np.asarray(case.comparisons[name].y_hat - case.comparisons[name].y)
