"""What a port's file holds, beside what the port computes: one report of both.

A kernel that is wrong by less than its layer's bound shows in the file all the same, and a clip or
a border that no image here has met is found there, too. Where values and file disagree about the
first wrong layer the earlier one is first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import compress

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.blas import in_threads
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.candidates.base import FileEvidence
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.diagnosis.everywhere import Layers, merged
from repvgg_ref.oracle.diagnosis.small import ESTIMATED
from repvgg_ref.oracle.diagnosis.static_check import check_kernel
from repvgg_ref.oracle.diagnosis.tap_evidence import TapEvidence, tap_evidence
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs, head_program
from repvgg_ref.oracle.report import EVERYWHERE, Finding, LayerReport, Report
from repvgg_ref.oracle.symmetry.kernels import realign
from repvgg_ref.oracle.weights.arithmetic import FORMAT_NAMES, UNITS, least_error
from repvgg_ref.oracle.weights.conversion import OWN_ERROR, Conversion, Simulated, Unsettled
from repvgg_ref.oracle.weights.held import conversion_of, formats_of
from repvgg_ref.oracle.weights.terms import terms_of

_UNSEEN = (8, 8)  # extent of the blank image on which bugs are tried: only taps are looked at
_HALF = 0.5 + 2.0**-20  # of a unit in the last place, and what float64 gets wrong
_RESCALED = 32.0  # roundings: of fusion, of the factors, and of their estimates
_ROUNDED = {"weights-fp16", "weights-bf16"}
_ROUNDINGS = 2.0  # of a classifier's weight: stored once, perhaps scaled on the way


def with_file_evidence(report: Report, programs: Programs, evidence: FileEvidence | None) -> Report:
    """The report on a port's values, and what its file adds to it."""
    if evidence is None:
        return report
    model = programs.model
    evidence = _realigned(model, report, evidence)
    precision = PRECISIONS[report.precision].number_format
    check = _Check(programs, evidence, precision)
    found, marks = _in_the_file(check, evidence, precision)
    wrong = {layer.name for layer in report.layers if not layer.ok} | found.keys()
    for suspect in evidence.suspects:
        if suspect.layer in wrong:  # it accounts for a wrong kernel, too
            found[str(suspect.layer)] = [suspect]
    notes = (*report.notes, *evidence.notes, *_compared(model, evidence, wrong - found.keys()))
    if not found and evidence.doubts and report.verdict == "agree":
        nodes = listed(evidence.doubts)
        reason = f"the values agree, but what a node chooses is not understood: {nodes}"
        return replace(report, verdict="cannot-judge", reason=reason, notes=notes)
    if not found:
        return replace(report, notes=notes)
    known = {finding.bug for finding in report.diagnosis}
    # how the weights were rounded is said once for all layers
    found = {name: each for name, each in found.items() if not _is_said(each, known)}
    order = model.arch.layer_names
    layers = _marked(report.layers, marks, order)
    first = next(name for name in order if name in wrong)
    blocks = [name for name in order[:-1] if name in evidence.kernels]
    joined = merged(found, Layers(blocks, list(found), check.evidence_of)) if len(found) > 1 else []
    everywhere = [finding for finding in joined if finding.layer == EVERYWHERE]
    # what the numbers in the file say is exact, and what outputs made of it was estimated
    seen = (f for f in report.diagnosis if f.bug not in ESTIMATED or f.layer not in found)
    diagnosis = _merged((*seen, *everywhere), found, order)
    says = next((f.says for f in diagnosis if f.is_in(first)), "")
    alike = first == report.first_bad_layer and diagnosis[:1] == report.diagnosis[:1]
    unchanged = report.verdict == "disagree" and alike
    note = next((layer.note for layer in layers if layer.name == first), "")
    return replace(
        report,
        verdict="disagree",
        reason=report.reason if unchanged else f"{first}: " + ": ".join(filter(None, [note, says])),
        layers=layers,
        diagnosis=diagnosis,
        first_bad_layer=first,
        notes=notes,
    )


def _realigned(model: Model, report: Report, evidence: FileEvidence) -> FileEvidence:
    """The file's kernels in the reference's order and scale, if the values showed another."""
    if not report.equivalences:
        return evidence
    order = model.arch.layer_names
    complete = evidence.kernels.keys() == set(order) and all(
        block.se == "none" for block in model.arch.blocks
    )
    if not complete:  # a part of the network, or gates: their arrays are not read
        changed = order.index(report.equivalences[0].layer)
        kept = {n: kernel for n, kernel in evidence.kernels.items() if n in order[:changed]}
        note = f"from {order[changed]} on the file's weights are in another order: not compared"
        return replace(evidence, kernels=kept, notes=(*evidence.notes, note))
    theirs: dict[str, Array] = {}
    for name, kernel in evidence.kernels.items():
        stem = name if name == "linear" else f"{name}.fused"
        weight = kernel.weight[:, :, 0, 0] if name == "linear" else kernel.weight
        theirs |= {f"{stem}.weight": weight, f"{stem}.bias": kernel.bias}
    unit = max(UNITS[_stored(evidence.kernels)[0]], OWN_ERROR)
    same = realign(Programs(model), theirs, unit, set(order)).params
    kernels = {}
    for name, kernel in evidence.kernels.items():
        stem = name if name == "linear" else f"{name}.fused"
        weight, bias = same[f"{stem}.weight"], same[f"{stem}.bias"]
        weight = weight.reshape(kernel.weight.shape).astype(kernel.weight.dtype)
        kernels[name] = FusedConv(weight, bias.astype(kernel.bias.dtype))
    return replace(evidence, kernels=kernels, scaled=_stored(evidence.kernels))


def _in_the_file(
    check: _Check, evidence: FileEvidence, precision: str
) -> tuple[dict[str, list[Finding]], dict[str, LayerReport]]:
    """Layer -> what is wrong there in any case, and -> the report on it."""
    programs = check.programs
    found: dict[str, list[Finding]] = {}
    marks: dict[str, LayerReport] = {}
    stored = _stored(evidence.kernels)[0]
    own = _Check(programs, evidence, stored) if UNITS[stored] > UNITS[precision] else None

    def doubtful(layer: str) -> bool:
        """Not each number rounded once: nothing could be better, and most files are that."""
        kernel = evidence.kernels[layer]
        return layer == "linear" or not is_rounded_once(programs[layer].fused_kernel(), kernel)

    doubts = in_threads(doubtful, evidence.kernels)
    for layer, kernel in compress(evidence.kernels.items(), doubts):
        report, findings = check(layer, kernel)
        if not report.ok and own is not None and own(layer, kernel)[0].ok:
            findings = [_rounded(layer, stored)]
        if not report.ok:
            found[layer] = list(findings)
            note = report.note or f"a tap is off by {report.ratio:.3g} times its bound"
            marks[layer] = replace(report, note=f"in the file: {note}")
    for finding in evidence.findings:
        layer = str(finding.layer)
        found.setdefault(layer, []).insert(0, finding)
        blank_report = LayerReport(layer, 0.0, 0.0, 0.0, ok=False)
        marks.setdefault(layer, replace(blank_report, note="the graph does something else"))
    return found, marks


def _rounded(layer: str, stored: str) -> Finding:
    """A kernel that is right in its own format, and the port is held to a finer one."""
    says = f"the weights were rounded to {FORMAT_NAMES[stored]}"
    advice = f"keep the weights in float32, or say --precision {stored}"
    return Finding(f"weights-{stored}", layer, None, 1.0, 1.0, says, advice)


def _is_said(findings: list[Finding], known: set[str]) -> bool:
    return all(f.bug in _ROUNDED & known for f in findings)


class _Check:
    """Holds a file's kernels to `precision`, and to how the file's others were made.

    Those that are stored and those that are computed from what is stored were made differently.
    """

    def __init__(self, programs: Programs, evidence: FileEvidence, precision: str) -> None:
        self.programs, self.evidence, self.precision = programs, evidence, precision
        self._known: dict[bool, Conversion] = {}

    def __call__(self, layer: str, kernel: FusedConv) -> tuple[LayerReport, list[Finding]]:
        """Compare one layer's kernel, or the classifier."""
        model = self.programs.model
        if layer == "linear":
            scaled = self.evidence.scaled is not None
            return check_classifier(model, kernel, self.precision, scaled=scaled)
        return check_kernel(self._site(layer), kernel, self._conversion(layer))

    def evidence_of(self, layer: str) -> TapEvidence:
        """A block's kernel as evidence of which bug made it."""
        return tap_evidence(
            self._site(layer), self.evidence.kernels[layer], self._conversion(layer)
        )

    def _site(self, layer: str) -> Site[BlockProgram]:
        blank = np.zeros((1, self.programs.model.arch.block(layer).in_channels, *_UNSEEN))
        return site_of(self.programs, layer, blank)

    def _conversion(self, layer: str) -> Conversion:
        """Inferred from all layers of a kind when it is first asked for."""
        computed = layer in self.evidence.computed
        if computed not in self._known:
            self._known[computed] = self._inferred(computed)
        return self._known[computed]

    def _inferred(self, computed: bool) -> Conversion:
        scaled = self.evidence.scaled
        if scaled is not None:  # then no single bit is known
            return Unsettled((self.precision, _coarser(self.precision, scaled[1])), _RESCALED)
        kernels = {
            name: kernel
            for name, kernel in self.evidence.kernels.items()
            if name != "linear" and (name in self.evidence.computed) is computed
        }
        found = conversion_of(
            lambda: [(terms_of(self.programs[n]), k) for n, k in kernels.items()],
            _stored(kernels),
            self.precision,
        )
        if computed and isinstance(found, Simulated):
            # its parts were rounded each by itself, and their sum is ours
            return found._replace(added=None, biases=None)
        return found


def _coarser(first: str, second: str) -> str:
    return max(first, second, key=lambda name: UNITS[name])


def _stored(kernels: Mapping[str, FusedConv]) -> tuple[str, str]:
    """The formats of a file's weights and biases."""
    blocks = {name: kernel for name, kernel in kernels.items() if name != "linear"}
    return formats_of(
        {n: k.weight for n, k in blocks.items()}, {n: k.bias for n, k in blocks.items()}
    )


def is_rounded_once(exact: FusedConv, got: FusedConv) -> bool:
    """Whether every tap is the exact one, rounded to float32 or finer as `got.weight` is."""
    if got.weight.dtype == np.float16:  # which not every port may be held in
        return False
    for want, have in zip(exact, got, strict=True):
        if want.shape != have.shape:
            return False
        step = np.spacing(np.abs(have).astype(got.weight.dtype))
        if not (np.abs(have - want) <= _HALF * step).all():
            return False
    return True


def check_classifier(
    model: Model, got: FusedConv, precision: str, *, scaled: bool = False
) -> tuple[LayerReport, list[Finding]]:
    """Compare a classifier's weight (classes, C, 1, 1) and bias with the reference's.

    They may be rounded to `precision`, and to float32 in any case.
    """
    right = head_program(model)  # with a batch norm before it taken in
    weight, bias = right.weight, right.bias
    if got.weight.shape[:2] != weight.shape:
        note = f"a classifier of shape {got.weight.shape[:2]}, wanted {weight.shape}"
        return LayerReport.incomparable("linear", note), []
    errors = np.concatenate(
        [np.abs(got.weight[:, :, 0, 0] - weight), np.abs(got.bias - bias)[:, None]], axis=1
    )
    roundings = (_RESCALED if scaled else _ROUNDINGS) * UNITS[precision]
    sizes = np.abs(np.concatenate([weight, bias[:, None]], axis=1))
    bound = roundings * sizes + least_error(precision)
    wrong = ~(errors <= bound)
    at = np.unravel_index(np.argmax(errors - bound), errors.shape)
    report = LayerReport(
        "linear",
        float(errors[at]),
        float(bound[at]),
        float(errors[at] / bound[at]) if bound[at] else float("inf"),
        ok=not wrong.any(),
    )
    if report.ok:
        return report, []
    classes = np.flatnonzero(wrong.any(axis=1))
    shown = ", ".join(map(str, classes[:6])) + (", ..." if len(classes) > 6 else "")
    says = (
        f"{int(wrong.sum())} weights of the classifier, in classes {shown}, are not the reference's"
    )
    beside = np.divide(errors, sizes, out=np.zeros_like(errors), where=wrong & (sizes > 0))
    largest = float(beside.max()) or None  # None where all of them should be 0
    return report, [Finding("taps-altered", "linear", largest, 1.0, 1.0, says, "convert again")]


def _marked(
    layers: tuple[LayerReport, ...], marks: Mapping[str, LayerReport], order: tuple[str, ...]
) -> tuple[LayerReport, ...]:
    """The reports, those of `marks` no longer right."""
    known = {layer.name: layer for layer in layers}
    for name, mark in marks.items():
        own = known.get(name)
        if own is None:
            known[name] = mark
        else:  # what is within its bound was noticed by estimates: the file says it exactly
            note = own.note if own.note and own.ratio > 1 else mark.note
            known[name] = replace(own, ok=False, note=note)
    return tuple(known[name] for name in order if name in known)


def _merged(
    seen: tuple[Finding, ...], found: Mapping[str, list[Finding]], order: tuple[str, ...]
) -> tuple[Finding, ...]:
    """What the values say and what the file says, in the layers' order, each bug once.

    A name comes before "unknown"; a bug says in which other layers it is.
    """
    everywhere = [finding for finding in seen if finding.layer not in order]
    joined = {finding.bug: finding for finding in reversed(everywhere)}
    also: dict[str, list[str]] = {}
    for name in order:
        both = [*(f for f in seen if f.layer == name), *found.get(name, ())]
        for finding in [f for f in both if f.bug != "unknown"] or both[:1]:
            first = joined.setdefault(finding.bug, finding)
            if not first.is_in(name) and name in found:
                also.setdefault(finding.bug, []).append(name)
    return tuple(
        replace(f, says=f"{f.says} (also in {listed(dict.fromkeys(also[bug]))})")
        if bug in also and "(also in " not in f.says
        else f
        for bug, f in joined.items()
    )


def _compared(model: Model, evidence: FileEvidence, elsewhere: set[str]) -> list[str]:
    """What was compared in the file, and which bad layers have the right kernel in it."""
    if not evidence.kernels:
        return []
    with_weights = len(Programs(model)) if model.arch.is_dense else len(model.arch.layer_names)
    of = f"{len(evidence.kernels)} of {with_weights} layers"
    right = [name for name in model.arch.layer_names if name in elsewhere & evidence.kernels.keys()]
    says = [f"the file's weights were compared tap by tap in {of}"]
    if right:
        says.append(f"the file holds the right weights for {right[0]}: it is computed differently")
    return says
