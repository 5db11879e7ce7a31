"""From compared layers to a verdict with reasons."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.blas import single_threaded_blas
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.block import Algorithm, block_bound, product_energy
from repvgg_ref.oracle.bounds.precision import Precision, estimate_unit_roundoff
from repvgg_ref.oracle.bugs import LIBRARY, Site
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.diagnose import (
    Evidence,
    diagnose,
    diagnose_shape,
    errs_like_a_bug,
    hidden_bugs,
)
from repvgg_ref.oracle.diagnosis.head_diagnosis import diagnose_head, hidden_head_bugs
from repvgg_ref.oracle.programs.head import HEAD_BUGS
from repvgg_ref.oracle.programs.layers import Comparison, Programs, diagnosis_bound, head_program
from repvgg_ref.oracle.report import Finding, Report

# A bad layer after the first is diagnosed as well, but not without end.
_MOST_DIAGNOSED = 6
_NO_ARITHMETIC = 2.0**-5  # errors this large are a bug's, not a number format's
_FEWEST = 32  # outputs that an estimate of the roundoff needs
_WINOGRAD: tuple[Algorithm, ...] = (
    "winograd2",
    "winograd4",
    "winograd5",
    "winograd6",
    "winograd7",
)


class Case:
    """One verification: the compared layers and all that is needed to explain them."""

    def __init__(
        self,
        model: Model,
        programs: Programs,
        comparisons: dict[str, Comparison],
        x: Array,
        outputs: Outputs,
        precision: Precision,
    ) -> None:
        self.model, self.programs, self.comparisons = model, programs, comparisons
        self.x, self.outputs, self.precision = np.asarray(x, np.float64), outputs, precision
        self.names = model.arch.layer_names
        self.tests = len(comparisons) * (len(LIBRARY) + len(HEAD_BUGS))
        self.notes: list[str] = list(outputs.notes)

    def input_of(self, name: str) -> Array:
        """The candidate's own input of a layer."""
        at = self.names.index(name)
        return self.x if at == 0 else np.asarray(self.outputs.layers[self.names[at - 1]], float)

    def evidence(self, name: str) -> Evidence:
        """A block's comparison as the diagnosis wants it."""
        compared = self.comparisons[name]
        program, x = self.programs[name], self.input_of(name)
        site = Site(
            program,
            x,
            compared.y_hat,
            is_stem=name == self.names[0],
            others=self.programs,
            alike=tuple(self.programs.alike(name)),
        )
        bound = diagnosis_bound(program, x, compared.y, self.precision)
        return Evidence(
            site,
            compared.y,
            compared.y_hat,
            bound.certified,
            bound.likely,
            self.tests,
            self.precision.number_format,
        )

    def findings(self, name: str) -> list[Finding]:
        """Why this layer is bad."""
        compared = self.comparisons[name]
        lost = ~np.isfinite(compared.y_hat)
        if lost.all():
            return [_not_finite(name, 1.0, overflow=False)]
        if compared.bound is None:
            if name == "linear":
                return [_wrong_shape(name, compared)]
            site = Site(self.programs[name], self.input_of(name), compared.y_hat)
            return diagnose_shape(site, compared.y_hat) or [_wrong_shape(name, compared)]
        if lost.any():
            largest = np.abs(compared.y[lost]).min()
            return [_not_finite(name, float(lost.mean()), overflow=bool(largest > 60000))]
        if name == "linear":
            return diagnose_head(
                head_program(self.model),
                self.input_of(name),
                compared,
                self.precision.number_format,
            )
        return diagnose(self.evidence(name))

    def hidden(self, name: str) -> list[Finding]:
        """Bugs in a layer that is within its bound."""
        if name == "linear":
            return hidden_head_bugs(
                head_program(self.model),
                self.input_of(name),
                self.comparisons[name],
                self.precision.number_format,
                self.tests,
            )
        return hidden_bugs(self.evidence(name))

    def within_winograd(self, name: str) -> str | None:
        """The Winograd algorithm whose bound holds where the direct one does not."""
        compared = self.comparisons[name]
        if name == "linear":
            return None
        program = self.programs[name]
        if compared.bound is None:
            return None
        beyond = ~(np.abs(compared.y_hat - compared.y) <= compared.bound.certified)
        if errs_like_a_bug(self.evidence(name), np.flatnonzero(beyond.any(axis=(0, 2, 3)))):
            return None
        for algorithm in _WINOGRAD:
            bound = block_bound(
                program, self.input_of(name), compared.y, self.precision, algorithm=algorithm
            )
            if (np.abs(compared.y_hat - compared.y) <= bound.certified).all():
                return algorithm
        return None

    def roundoff(self, name: str) -> str:
        """What the size of a block's errors says of its arithmetic, in words; empty if nothing.

        Where ReLU is off on both sides nothing is seen; SE hides the convolution behind its gate.
        """
        compared = self.comparisons.get(name)
        if name == "linear" or compared is None or compared.bound is None:
            return ""
        program = self.programs[name]
        active = (compared.y > 0) & (compared.y_hat > 0) & np.isfinite(compared.y_hat)
        if program.se is not None or active.sum() < _FEWEST:
            return ""
        energy = product_energy(program, self.input_of(name)).reshape(compared.y.shape)
        found = estimate_unit_roundoff((compared.y_hat - compared.y)[active], energy[active])
        if not 0 < found.unit_roundoff < _NO_ARITHMETIC:
            return ""
        power = f"unit roundoff about 2^{np.log2(found.unit_roundoff):.0f}"
        return f"the errors in {name} look like {found.looks_like}: {power}"

    def mark(self, name: str, *, ok: bool, note: str) -> None:
        """Overrule a layer's judgement, saying why."""
        compared = self.comparisons[name]
        self.comparisons[name] = replace(
            compared, report=replace(compared.report, ok=ok, note=note)
        )


def explain(
    model: Model,
    programs: Programs,
    comparisons: dict[str, Comparison],
    unjudged: Mapping[str, str],
    x: Array,
    outputs: Outputs,
    precision: Precision,
    candidate: str,
) -> Report:
    """Judge, diagnose, and say it."""
    case = Case(model, programs, comparisons, x, outputs, precision)
    diagnosis = _bad_layers(case) or _hidden(case)
    bad = [name for name, compared in case.comparisons.items() if not compared.report.ok]
    first = bad[0] if bad else None
    # A right port's arithmetic shows best where most products are summed: in the last block.
    case.notes += filter(None, [case.roundoff(first or case.names[-2])])
    problem = outputs.problem  # the structure alone is wrong: a layer too few
    return Report(
        verdict="disagree" if bad or problem else "cannot-judge" if unjudged else "agree",
        reason=problem if problem and not bad else _reason(case, bad, diagnosis, unjudged),
        model=model.name,
        candidate=candidate,
        precision=precision.name,
        layers=tuple(compared.report for compared in case.comparisons.values()),
        diagnosis=tuple(diagnosis),
        first_bad_layer=first,
        notes=tuple(case.notes),
        residual=_residual(case, first),
    )


def _bad_layers(case: Case) -> list[Finding]:
    """Findings for layers beyond their bound; Winograd arithmetic is recognised and excused."""
    diagnosis: list[Finding] = []
    explained: dict[str, list[str]] = {}
    bad = [name for name, compared in case.comparisons.items() if not compared.report.ok]
    with single_threaded_blas(), ThreadPoolExecutor(os.cpu_count()) as pool:
        found_in = dict(zip(bad, pool.map(case.findings, bad[:_MOST_DIAGNOSED]), strict=False))
    for name, found in found_in.items():
        if found[0].bug == "unknown" and (algorithm := case.within_winograd(name)):
            case.mark(name, ok=True, note=f"{algorithm} arithmetic: within that bound")
            continue
        for finding in found:
            explained.setdefault(finding.bug, []).append(name)
            if len(explained[finding.bug]) == 1:
                diagnosis.append(finding)
    for name in bad[_MOST_DIAGNOSED:]:
        if all(case.comparisons[n].report.ok for n in bad[:_MOST_DIAGNOSED]) and (
            algorithm := case.within_winograd(name)
        ):
            case.mark(name, ok=True, note=f"{algorithm} arithmetic: within that bound")
    still_bad = sum(not compared.report.ok for compared in case.comparisons.values())
    return [_in_every_layer(f, explained[f.bug], still_bad) for f in diagnosis]


def _in_every_layer(finding: Finding, layers: list[str], bad: int) -> Finding:
    """Say that a bug is everywhere if every diagnosed layer has it and there are several."""
    if len(layers) > 1 and len(layers) >= min(bad, _MOST_DIAGNOSED):
        return replace(finding, says=finding.says + f" (in all {bad} bad layers)")
    if len(layers) > 1:
        also = ", ".join(layers[1:4]) + (", ..." if len(layers) > 4 else "")
        return replace(finding, says=finding.says + f" (also in {also})")
    return finding


def _hidden(case: Case) -> list[Finding]:
    """Findings within the bounds. Their layers are marked bad, with the reason."""
    names = list(case.comparisons)
    with single_threaded_blas(), ThreadPoolExecutor(os.cpu_count()) as pool:
        found_in = dict(zip(names, pool.map(case.hidden, names), strict=True))
    diagnosis: list[Finding] = []
    layers: dict[str, list[str]] = {}
    for name, found in found_in.items():
        if not found:
            continue
        case.mark(name, ok=False, note=f"within its bound, but {found[0].bug} shows in it")
        for finding in found:
            layers.setdefault(finding.bug, []).append(name)
            if len(layers[finding.bug]) == 1:
                diagnosis.append(finding)
    bad = sum(bool(found) for found in found_in.values())
    return [_in_every_layer(finding, layers[finding.bug], bad) for finding in diagnosis]


def _reason(
    case: Case, bad: list[str], diagnosis: Iterable[Finding], unjudged: Mapping[str, str]
) -> str:
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
        f" (at most {used:.1%} of one is used) and no known bug shows in the residuals"
    )


def _residual(case: Case, name: str | None) -> Array | None:
    """Candidate minus reference in the first bad layer, for the picture."""
    if name is None or case.comparisons[name].y.shape != case.comparisons[name].y_hat.shape:
        return None
    return np.asarray(case.comparisons[name].y_hat - case.comparisons[name].y)


def _not_finite(name: str, share: float, *, overflow: bool) -> Finding:
    bug = "fp16-overflow" if overflow else "not-finite"
    says = f"{share:.1%} of the outputs are NaN or infinite" + (
        ", where the right value exceeds float16's range" if overflow else ""
    )
    advice = (
        "scale the activations, or run this layer in float32"
        if overflow
        else "look for a division by zero, a root of a negative variance, or memory never written"
    )
    return Finding(bug, name, share, 1.0 if overflow else 0.5, share, says, advice)


def _wrong_shape(name: str, compared: Comparison) -> Finding:
    return Finding(
        "wrong-shape",
        name,
        None,
        1.0,
        0.0,
        compared.report.note,
        "check stride, padding, dilation and the number of channels or classes",
    )
