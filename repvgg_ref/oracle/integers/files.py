"""Quantised ONNX files on either side of a comparison: what they state besides their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.onnx_load import load_onnx
from repvgg_ref.oracle.integers.onnx_operators import TWICE
from repvgg_ref.oracle.integers.onnx_reading import UNROUNDED, ReadNetwork, read_integer_onnx
from repvgg_ref.oracle.integers.onnx_run import run_numbers
from repvgg_ref.oracle.integers.onnx_walk import IGNORED
from repvgg_ref.oracle.integers.ports import IMAGES, INPUT, SIDE, images_for
from repvgg_ref.oracle.integers.question import is_quantised
from repvgg_ref.oracle.integers.report import IntegerReport
from repvgg_ref.oracle.integers.weights import judge_integers
from weights_io import sanitize


@dataclass(frozen=True)
class QuantisedFile:
    """A file and what was read in it."""

    name: str
    read: ReadNetwork

    @property
    def network(self) -> IntegerNetwork:
        """Its layers."""
        return self.read.network


def quantised_file(what: Any) -> QuantisedFile | None:
    """The quantised ONNX file that `what` is, read; None of anything else.

    Raises
    ------
    CandidateFailure
        If it is one, and no chain that is understood.
    """
    if not isinstance(what, str | Path) or Path(what).suffix.lower() != ".onnx":
        return None
    path = Path(what)
    try:
        if not path.is_file() or not is_quantised(load_onnx(path)):
            return None
    except ReportedError:
        return None
    return QuantisedFile(sanitize(path.name), read_integer_onnx(path))


def judged_file(file: QuantisedFile, model: Model, *, candidate: str) -> IntegerReport:
    """What the file holds, against the trained network."""
    read = file.read
    report = judge_integers(model, read.network, candidate=candidate, stated=read.stated)
    return _ended(_undecided(report, read), read, None)


def _undecided(report: IntegerReport, read: ReadNetwork) -> IntegerReport:
    """No verdict where a linear layer's integers are right, and only their own scale is not."""
    bad = [row.name for row in report.layers if not row.ok]
    last = read.network.layers[-1]
    if bad != [report.layers[-1].name] or read.doubts.get(last.name) != IGNORED:
        return report
    if {finding.bug for finding in report.diagnosis} != {"bias-scale"}:
        return report
    return replace(
        report, verdict="cannot-judge", reason=f"{bad[0]}: {IGNORED}", first_bad_layer=None
    )


def file_numbers(
    file: QuantisedFile,
    network: IntegerNetwork,
    reference: QuantisedFile | None,
    inputs: Array | None,
    timeout: float,
) -> tuple[dict[str, Array], list[str]]:
    """Every layer's numbers of a file that is run, under the names of `network`, and notes."""
    for each in (file, reference):
        if each is not None and UNROUNDED in each.read.doubts.values():
            raise CandidateFailure(
                f"{each.name}: {each.network.layers[-1].name} gives no numbers: {UNROUNDED}",
                advice="hold it against the checkpoint, or quantise its output, too",
            )
    x, notes = _images(file, network, reference, inputs)
    found = run_numbers(file.read, file.name, x, timeout=timeout)
    return _in_order(found, file.network, network, notes)


def excused(
    report: IntegerReport,
    network: IntegerNetwork,
    file: QuantisedFile | None,
    reference: QuantisedFile | None,
) -> IntegerReport:
    """What follows the numbers of `file`, and what of its numbers proves nothing."""
    doubts = dict(reference.read.doubts) if reference is not None else {}
    if file is not None and len(file.network.layers) == len(network.layers):
        names = (layer.name for layer in network.layers)
        theirs = (layer.name for layer in file.network.layers)
        doubts |= {
            ours: file.read.doubts[name]
            for ours, name in zip(names, theirs, strict=True)
            if name in file.read.doubts
        }
    report = _without_doubted(report, doubts)
    if file is None:
        return report
    return _ended(report, file.read, None if reference is None else reference.read)


def _without_doubted(report: IntegerReport, doubts: Mapping[str, str]) -> IntegerReport:
    """No disagreement where a right runtime may differ: by one if a bias was rounded."""
    bad = [row for row in report.layers if not row.ok]
    free = ("behind its last rounding", TWICE, IGNORED)
    if not bad or not all(
        row.name in doubts and (row.max_error <= 1 or doubts[row.name].endswith(free))
        for row in bad
    ):
        return report
    reason = "; ".join(f"{row.name}: {doubts[row.name]}" for row in bad)
    return replace(
        report,
        verdict="cannot-judge",
        reason=f"{reason}: a right port's numbers may be others there",
        diagnosis=(),
        first_bad_layer=None,
    )


def _ended(report: IntegerReport, read: ReadNetwork, other: ReadNetwork | None) -> IntegerReport:
    """With what follows the last numbers: nothing but what follows the reference's may."""
    ending = read.ending
    notes = (*report.notes, *ending.notes)
    meant = () if other is None else other.ending.meaning
    if ending.meaning == meant or report.verdict == "cannot-judge":
        return replace(report, notes=notes)
    if not ending.altered:
        says = "behind the reference's logits comes what does not follow the candidate's"
        return replace(report, verdict="cannot-judge", reason=says, notes=notes)
    reason = ending.findings[0].says if report.verdict == "agree" else report.reason
    return replace(
        report,
        verdict="disagree",
        reason=reason,
        first_bad_layer=report.first_bad_layer or ending.findings[0].layer,
        diagnosis=(*report.diagnosis, *ending.findings),
        notes=notes,
    )


def _images(
    file: QuantisedFile,
    network: IntegerNetwork,
    reference: QuantisedFile | None,
    inputs: Array | None,
) -> tuple[Array, list[str]]:
    """The images to run on: those given, else ours, of the size that a file states."""
    if inputs is not None:
        return inputs, []
    batch, _, *extent = file.read.shape
    size, named = tuple(extent), file.name
    if None in size and reference is not None and None not in reference.read.shape[2:]:
        size, named = reference.read.shape[2:], reference.name
    fixed = None not in size
    height, width = (n or SIDE for n in size)
    notes = [f"run on images of {height} x {width}, the size that {named} states"] * fixed
    count = batch if batch and batch > 1 else IMAGES
    return images_for(network, None, count=count, extent=(height, width)), notes


def _in_order(
    found: Mapping[str, Array], theirs: IntegerNetwork, ours: IntegerNetwork, notes: list[str]
) -> tuple[dict[str, Array], list[str]]:
    """By name; by order where the layers are of the same kinds."""
    names = [layer.name for layer in ours.layers]
    given = [layer.name for layer in theirs.layers]
    if set(names) == set(given):
        return dict(found), notes
    kinds = [[layer.kind for layer in each.layers] for each in (ours, theirs)]
    if kinds[0] == kinds[1]:
        pairs = zip(names, given, strict=True)
        renamed = {mine: found[name] for mine, name in pairs}
        return {INPUT: found[INPUT]} | renamed, [*notes, "layers are matched by their order"]
    unknown = sorted(set(given) - set(names))
    said = f"not of the network: {', '.join(map(sanitize, unknown[:8]))}"
    return dict(found), [*notes, said]
