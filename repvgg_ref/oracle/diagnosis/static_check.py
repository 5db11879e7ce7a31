"""A weight file needs no inference: every fused tap is held against the exact fusion.

Two checks a block, both certified. *Size*: a converter in arithmetic with unit roundoff u computes
a slope ``t = gamma / sqrt(var + eps)``, a tap ``W t`` and sums of them in some order, each of at
most 8 operations rounded by u to nearest and by 2 u in a direction, so

    |tap_hat - tap| <= 16 u * (sum of the magnitudes of its terms).

*Consistency*, sharper: the arithmetic is inferred once for the whole file, from its taps
(`oracle.weights`). Where it is known every tap must be what it gives, bit for bit; where no order
of operations reproduces the file, the taps of a channel must have one slope in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import reach
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.checkpoint import load
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Block
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.diagnosis.copied import (
    Copied,
    copied,
    copies_finding,
    copies_report,
    head_finding,
)
from repvgg_ref.oracle.diagnosis.everywhere import Layers, merged
from repvgg_ref.oracle.diagnosis.file_geometry import other_steps, with_unsaid_steps
from repvgg_ref.oracle.diagnosis.kernel_factors import rounded, scaled
from repvgg_ref.oracle.diagnosis.odd_taps import FEW, altered, unknown
from repvgg_ref.oracle.diagnosis.ranking import Observation
from repvgg_ref.oracle.diagnosis.tap_evidence import (
    FittedTaps,
    distance,
    evidence_of,
    observed,
    tap_evidence,
)
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Finding, LayerReport, Report
from repvgg_ref.oracle.symmetry.kernels import Realigned, realign
from repvgg_ref.oracle.weights.conversion import OWN_ERROR, Conversion, Exact, Odd
from repvgg_ref.oracle.weights.held import conversion_of, formats_of, named
from repvgg_ref.oracle.weights.infer import Layer
from repvgg_ref.oracle.weights.terms import terms_of

_UNSEEN = (8, 8)  # extent of the blank image on which bugs are tried: only taps are looked at
_NOT_TESTED = (
    "not tested: what computes with these numbers (preprocessing, padding, strides, activations,"
    " arithmetic, the order in which layers are called), which its arrays do not say: give the port"
    " itself, or its layer outputs"
)
_NO_EPS = "; nor eps, which is in no file before fusion"


def check_weights(model: Model, path: str | Path, precision: str = "auto") -> Report:
    """Judge the arrays of a weight file against `model`, without running it.

    Parameters
    ----------
    model : Model
        Train form: its exact fusion is the reference. Deploy form: its arrays are.
    path : str or Path
        ``.pth``, ``.npz`` or ``.safetensors`` in any dialect, fused or not.
    precision : {"auto", "fp32", "tf32", "bf16", "fp16"}
        What the file is held to; "auto" is the format that its numbers have.
    """
    name = Path(path).name
    try:
        port = load(path, eps=model.eps)
    except ReportedError as error:
        return Report("cannot-judge", str(error), model.name, name, "weights")
    if _geometry(port) != _geometry(model):
        reason = f"the file holds {port.name}, another network than {model.name}"
        return Report("disagree", reason, model.name, name, "weights")
    if (other := other_steps(model, port, name)) is not None:
        return other
    # A file may hold NaN, infinity and what overflows: no comparison is true of these.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return with_unsaid_steps(_arrays(model, port, name, precision), model, port, name)


def _arrays(model: Model, port: Model, name: str, precision: str) -> Report:
    """The verdict on the arrays of a file."""
    if port.form == "train" and model.form == "train":
        return _same_arrays(model, port, name, precision)
    if port.form == "train":
        reason = "the reference is fused and the candidate is not: give the train form as reference"
        return Report("cannot-judge", reason, model.name, name, "weights")
    return _fused_file(model, port, name, precision)


def _geometry(model: Model) -> list[tuple[object, ...]]:
    blocks = [
        (b.name, b.in_channels, b.out_channels, b.groups, b.se, reach(b).kernel)
        for b in model.arch.blocks
    ]
    return [*blocks, (model.arch.features, model.arch.num_classes)]


def _fused_file(model: Model, port: Model, name: str, precision: str) -> Report:
    programs, stored = Programs(model), formats_of(*_kernels_and_biases(port))
    conversion = conversion_of(lambda: _layers(programs, port), stored, precision)
    other_eps = replace(model, eps=float(np.float32(model.eps)))
    may_be_narrow = model.form == "train" and other_eps.eps != model.eps
    if may_be_narrow and isinstance(conversion, Exact) and conversion.narrow_eps:
        return _of_narrow_eps(_fused_file(other_eps, port, name, precision), other_eps.eps)
    report = _judged(programs, port, name, conversion, {stored[0], stored[1], precision})
    if report.verdict != "disagree":
        return _said(report, conversion, stored)
    # a float32 eps can move a few taps of a large file, and no sample of it shows that
    if may_be_narrow and ("fp64" in stored or isinstance(conversion, Exact)):
        other = _fused_file(other_eps, port, name, precision)
        if other.verdict == "agree":
            return _of_narrow_eps(other, other_eps.eps)
    if model.arch.is_dense:
        return report  # only chains' orders and scales are looked for
    bad = {layer.name for layer in report.layers if not layer.ok}
    same = realign(programs, port.params, max(conversion.units[0], OWN_ERROR), bad)
    if not same.equivalences:
        return replace(
            report,
            diagnosis=(*same.findings, *report.diagnosis)[:6],
            notes=(*same.notes, *report.notes),
        )
    aligned = replace(port, params=same.params)
    if not same.rescaled:
        conversion = conversion_of(lambda: _layers(programs, aligned), stored, precision)
    found = _judged(programs, aligned, name, conversion, {stored[0], stored[1], precision}, same)
    if same.is_chance(sum(not layer.ok for layer in found.layers), len(bad)):
        return report
    found = replace(
        found,
        equivalences=same.equivalences,
        diagnosis=(*same.findings, *found.diagnosis),
        notes=(*found.notes, *same.notes, *same.seen_in_scaled(conversion)),
    )
    return _said(found, conversion, stored) if found.verdict == "agree" else found


def _of_narrow_eps(report: Report, eps: float) -> Report:
    note = f"eps is held as the float32 number {eps!r}, as ONNX files hold it"
    return replace(report, notes=(*report.notes, note))


def _said(report: Report, conversion: Conversion, stored: tuple[str, str]) -> Report:
    """With what was inferred of the file, and what would have been seen."""
    smallest = f"the smallest error that would have been seen: {conversion.smallest}"
    notes = tuple(filter(None, (named(stored), smallest, *report.notes)))
    return replace(report, notes=notes)


def _kernels_and_biases(port: Model) -> tuple[dict[str, Array], dict[str, Array]]:
    kernels, biases = (
        {n: a for n, a in port.params.items() if n.endswith(f".fused.{part}")}
        for part in ("weight", "bias")
    )
    return kernels, biases


def _kernel(port: Model, layer: str) -> FusedConv:
    return FusedConv(port.params[f"{layer}.fused.weight"], port.params[f"{layer}.fused.bias"])


def _layers(programs: Programs, port: Model) -> Iterator[Layer]:
    for spec in port.arch.blocks:
        yield terms_of(programs[spec.name]), _kernel(port, spec.name)


def _judged(
    programs: Programs,
    port: Model,
    name: str,
    conversion: Conversion,
    formats: Iterable[str],
    same: Realigned | None = None,
) -> Report:
    layers: list[LayerReport] = []
    findings: dict[str, list[Finding]] = {}
    beside: list[Finding] = []  # of arrays that fusion leaves alone
    model = programs.model

    def held(layer: str) -> Conversion:
        return conversion if same is None else same.held(layer, conversion)

    blocks = [name for name in programs if name != "linear"]
    for layer in blocks:
        report, found = check_kernel(_site(programs, layer), _kernel(port, layer), held(layer))
        gate = _copies(model, port, f"{layer}.se.", formats, same)
        if not all(array.right for array in gate):
            report = copies_report(layer, gate) if report.ok else report
            beside.append(copies_finding(layer, gate))
        layers.append(report)
        findings |= {layer: found} if found else {}
    joined = merged(
        findings,
        Layers(
            blocks,
            list(findings),
            lambda layer: tap_evidence(_site(programs, layer), _kernel(port, layer), held(layer)),
        ),
    )
    if "linear" in programs:
        head = _copies(model, port, "linear.", formats, same)
        layers.append(copies_report("linear", head))
        if not layers[-1].ok:
            beside.append(head_finding(_site(programs, "linear"), head))
    return _report(model, name, layers, [*joined, *beside], conversion.in_words)


def _site(programs: Programs, layer: str) -> Site[Any]:
    arch = programs.model.arch
    channels = arch.features if layer == "linear" else arch.block(layer).in_channels
    blank = np.zeros((1, channels, *_UNSEEN))
    return site_of(programs, layer, blank)


def _report(
    model: Model, name: str, layers: list[LayerReport], found: list[Finding], right: str
) -> Report:
    bad = [layer for layer in layers if not layer.ok]
    notes = (_NOT_TESTED,)
    if not bad:
        return Report("agree", right, model.name, name, "weights", tuple(layers), notes=notes)
    first = bad[0]
    says = next((f.says for f in found if f.is_in(first.name)), "")
    reason = f"{first.name}: {first.note or f'error {first.ratio:.3g} times its bound'}"
    return Report(
        "disagree",
        reason + (f": {says}" if says else ""),
        model.name,
        name,
        "weights",
        tuple(layers),
        tuple(found),
        first.name,
        notes,
    )


def check_kernel(
    site: Site[BlockProgram], got: FusedConv, conversion: Conversion | None = None
) -> tuple[LayerReport, list[Finding]]:
    """Compare one fused kernel; `site.program` is how the reference computes the block.

    `conversion` is that of the file which the kernel is from; default, what this kernel shows.
    """
    program = site.program
    if conversion is None:
        stored = formats_of({"weight": got.weight}, {"bias": got.bias})
        conversion = conversion_of(lambda: [(terms_of(program), got)], stored)
    far = distance(program, got, conversion)
    odd = conversion.check(terms_of(program), got)
    count = int(odd.by_channel.sum())
    report = LayerReport(
        program.name,
        far.error,
        far.certified,
        far.ratio,
        ok=far.ok and not count,
        likely_ratio=far.likely,
        note=_lost(far.lost) or _contradict(count),
    )
    if report.ok:
        return report, []
    return report, _findings(site, observed(program, got, conversion), odd, conversion)


def _lost(count: int) -> str:
    if not count:
        return ""
    return f"{count} numbers are NaN or infinite" if count > 1 else "one number is NaN or infinite"


def _contradict(count: int) -> str:
    if not count:
        return ""
    return f"{count} taps contradict the file" if count > 1 else "one tap contradicts the file"


def _findings(
    site: Site[BlockProgram], seen: Observation, odd: Odd, conversion: Conversion
) -> list[Finding]:
    """What is wrong with a kernel: a bug of the library, else its taps described."""
    layer, excused = site.program.name, conversion.stored[0]
    taps = evidence_of(site, seen, conversion)
    if found := [trial for trial in taps.trials() if trial.named]:
        return taps.seen.ranked(found)
    if simple := rounded(layer, seen) or scaled(layer, seen, odd):
        return [simple]
    count = odd.by_channel.sum()
    if count and count < FEW * odd.taps.size:
        return [altered(layer, seen, odd, conversion.units[1])]
    fine = FittedTaps(site, seen, excused)
    if found := [trial for trial in fine.trials() if trial.named]:
        return fine.seen.ranked(found)
    return [unknown(layer, seen)]


def _copies(
    model: Model, port: Model, prefix: str, formats: Iterable[str], same: Realigned | None
) -> list[Copied]:
    """The arrays below a name beside the reference's; `same` may have scaled them."""
    wants = {name: want for name, want in model.params.items() if name.startswith(prefix)}
    room = 0.0 if same is None else max(map(same.room, wants), default=0.0)
    return copied(port.params, wants, formats, room)


def _same_arrays(model: Model, port: Model, name: str, precision: str) -> Report:
    """Two train forms: the arrays must be equal, or rounded to the file's format."""
    arrays = {n: a for n, a in port.params.items() if _matters(n) and a.ndim}
    stored = formats_of(arrays, {})[0]
    finer = precision != "auto" and precision != stored
    formats = {precision if finer else stored}
    layers: list[LayerReport] = []
    found: list[Finding] = []
    for layer in _owners(model.arch):
        names = (n for n in model.params if n.startswith(layer + ".") and _matters(n))
        own = copied(port.params, {n: model.params[n] for n in names}, formats)
        layers.append(copies_report(layer, own))
        if not layers[-1].ok:
            found.append(copies_finding(layer, own))
    right = "every array is the reference's"
    report = _report(model, name, layers, found, right)
    return replace(report, notes=tuple(note + _NO_EPS for note in report.notes))


def _owners(arch: Network) -> tuple[str, ...]:
    """The layers that have arrays, auxiliary heads of a PSPNet among them."""
    if not arch.is_dense:
        return arch.layer_names
    return tuple(node.name for node in arch.nodes if isinstance(node.op, Block))


def _matters(name: str) -> bool:
    return is_trainable(name) or not name.endswith(".num_batches_tracked")
