"""A weight file needs no inference: every fused tap is held against the exact fusion.

Two checks a block, both certified. *Size*: a converter in arithmetic with unit roundoff u computes
``t = gamma / sqrt(var + eps)`` and a tap ``W * t`` with a relative error of at most 3.5 u (sum and
root 1.5 u, quotient u, product u), and adds up to two more terms on the centre tap and in the
bias, so

    |tap_hat - tap| <= 6 u * (sum of the magnitudes of its terms).

*Consistency*, sharper: off the centre every tap of an output channel is one product of its raw
weight with the *same* number t, rounded once. Each tap therefore says in which interval t lies;
if the intervals of a channel have no point in common, some taps are wrong, by however little.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.checkpoint import load
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.oracle.bounds.linear_part import layer_kernels
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.diagnosis.evidence import Evidence
from repvgg_ref.oracle.diagnosis.ranking import Observation
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Finding, LayerReport, Report

_ERROR = 6.0
_LIKELY = 1.0
_UNSEEN = (8, 8)  # extent of the blank image on which bugs are tried: only taps are looked at
_FEW = 0.2  # of a kernel's taps: more are no damage but a method


def check_weights(model: Model, path: str | Path) -> Report:
    """Judge the arrays of a weight file against `model`, without running it.

    Parameters
    ----------
    model : Model
        Train form: its exact fusion is the reference. Deploy form: its arrays are.
    path : str or Path
        ``.pth``, ``.npz`` or ``.safetensors`` in any dialect, fused or not.
    """
    name = Path(path).name
    try:
        port = load(path, eps=model.eps)
    except ReportedError as error:
        return Report("cannot-judge", str(error), model.name, name, "weights")
    if _geometry(port) != _geometry(model):
        reason = f"the file holds {port.name}, another network than {model.name}"
        return Report("disagree", reason, model.name, name, "weights")
    if port.form == "train" and model.form == "train":
        return _same_arrays(model, port, name)
    if port.form == "train":
        reason = "the reference is fused and the candidate is not: give the train form as reference"
        return Report("cannot-judge", reason, model.name, name, "weights")
    return _fused_file(model, port, name)


def _geometry(model: Model) -> list[tuple[object, ...]]:
    blocks = [(b.name, b.in_channels, b.out_channels, b.groups, b.se) for b in model.arch.blocks]
    return [*blocks, (model.arch.features, model.arch.num_classes)]


def _fused_file(model: Model, port: Model, name: str) -> Report:
    layers: list[LayerReport] = []
    findings: list[Finding] = []
    programs = Programs(model)
    for spec in model.arch.blocks:
        layer = spec.name
        got = FusedConv(port.params[f"{layer}.fused.weight"], port.params[f"{layer}.fused.bias"])
        site = site_of(programs, layer, np.zeros((1, spec.in_channels, *_UNSEEN)))
        report, found = check_kernel(site, got)
        copied = _copied(model, port, f"{layer}.se.")
        layers.append(report if copied is None or not report.ok else copied)
        findings += [f for f in found if f.bug not in {known.bug for known in findings}]
    head = _copied(model, port, "linear.")
    layers.append(head or LayerReport("linear", 0.0, 0.0, 0.0, ok=True))
    return _report(model, name, layers, findings)


def _report(model: Model, name: str, layers: list[LayerReport], found: list[Finding]) -> Report:
    bad = [layer for layer in layers if not layer.ok]
    if not bad:
        reason = "every tap is the exact fusion to within the rounding of one conversion"
        return Report("agree", reason, model.name, name, "weights", tuple(layers))
    first = bad[0]
    says = next((f.says for f in found if f.layer == first.name), "")
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
    )


def check_kernel(site: Site[BlockProgram], got: FusedConv) -> tuple[LayerReport, list[Finding]]:
    """Compare one fused kernel; `site.program` is how the reference computes the block."""
    program = site.program
    layer, exact = program.name, program.fused_kernel()
    unit = float(np.finfo(got.weight.dtype).eps) / 2
    tiny = float(np.finfo(got.weight.dtype).smallest_subnormal)
    magnitude = _magnitude(program)
    seen = Observation(
        _taps(exact),
        _taps(got),
        _ERROR * unit * _taps(magnitude) + tiny,
        _LIKELY * unit * _taps(magnitude) + tiny,
    )
    error = np.abs(seen.y_hat - seen.y)
    at = np.unravel_index(np.argmax(error / seen.certified), error.shape)
    odd = inconsistent_taps(program, got)
    report = LayerReport(
        layer,
        float(error[at]),
        float(seen.certified[at]),
        float(error[at] / seen.certified[at]),
        ok=bool((error <= seen.certified).all()) and not odd.any(),
        likely_ratio=float((error / seen.likely).max()),
        note=f"{int(odd.sum())} taps contradict the rest of their channel" if odd.any() else "",
    )
    if report.ok:
        return report, []
    taps = TapEvidence(site, _coarse(seen, unit))
    if named := [trial for trial in taps.trials() if trial.named]:
        return report, taps.seen.ranked(named)
    if odd.any() and odd.sum() < _FEW * got.weight.size:
        return report, [_odd_taps(layer, odd)]
    return report, [_unknown(layer, seen)]


def _coarse(seen: Observation, unit: float) -> Observation:
    """The same for comparing *other* kernels, which put large taps where ours are small.

    Bounds are those of the largest tap, and of the largest bias.
    """
    largest = np.maximum(np.abs(seen.y), np.abs(seen.y_hat))
    bound = np.empty_like(seen.y)
    bound[..., :-1], bound[..., -1] = largest[..., :-1].max(), max(largest[..., -1].max(), 1e-30)
    return replace(seen, certified=_ERROR * unit * bound, likely=_LIKELY * unit * bound)


def inconsistent_taps(program: BlockProgram, got: FusedConv) -> Array:
    """Taps of each channel, (O,), that no common scale explains; 0 for most.

    Each tap that only one branch has confines t to
    ``[(tap_hat - ulp/2) / W, (tap_hat + ulp/2) / W]``. The scale that most taps admit is found;
    those that do not admit it are counted.
    """
    counts = np.zeros(len(got.weight), int)
    if not program.branches:
        return counts
    raw, alone = _taps_of_one_branch(program)
    if not alone.any():
        return counts
    w, taps = raw[:, :, alone].reshape(len(raw), -1), got.weight[:, :, alone].reshape(len(raw), -1)
    half = np.spacing(np.abs(taps)).astype(np.float64) / 2 * (1 + 1e-9)
    usable = np.abs(w) > 1e-30
    safe = np.where(usable, w, 1.0)
    a, b = (taps - half) / safe, (taps + half) / safe
    low = np.where(usable, np.minimum(a, b), -np.inf)
    high = np.where(usable, np.maximum(a, b), np.inf)
    for o in np.flatnonzero(low.max(axis=1) > high.min(axis=1)):
        counts[o] = int(usable[o].sum()) - _most_common(low[o][usable[o]], high[o][usable[o]])
    return counts


def _taps_of_one_branch(program: BlockProgram) -> tuple[Array, Array]:
    """The branch with most taps that no other has: its kernel, widened, and where those are."""
    kernels = [branch.weight for branch in program.branches.values()]
    covers = np.array([program.widened(np.ones_like(k[:1, :1]))[0, 0] > 0 for k in kernels])
    own = covers & (covers.sum(axis=0) == 1)  # (branches, Kh, Kw)
    most = int(np.argmax(own.sum(axis=(1, 2))))
    return program.widened(kernels[most]), own[most]


def _most_common(low: Array, high: Array) -> int:
    """How many of the intervals share a point, at most."""
    ends = np.concatenate([low, high])
    steps = np.concatenate([np.ones(len(low)), -np.ones(len(high))])
    order = np.lexsort((-steps, ends))  # at a tie an interval opens before another closes
    return int(np.cumsum(steps[order]).max())


class TapEvidence(Evidence):
    """A fused kernel: bugs that leave geometry and activations alone show in it."""

    fits_parameters = False  # some eps can be found for any tap that is slightly wrong

    def predict(self, program: Any) -> Array | None:
        """The program's taps; None if its kernel is of another shape, or it has none."""
        if program.is_skipped:
            return None
        taps = _taps(program.fused_kernel())
        return taps if taps.shape == self.seen.y.shape else None


def _taps(kernel: FusedConv) -> Array:
    """Kernel and bias as one (1, O, taps + 1) array: the bias is the last tap."""
    flat = np.asarray(kernel.weight, np.float64).reshape(len(kernel.weight), -1)
    bias = np.asarray(kernel.bias, np.float64)[:, None]
    return np.concatenate([flat, bias], axis=1)[None]


def _magnitude(program: BlockProgram) -> FusedConv:
    """Sum of the magnitudes of each tap's terms."""
    kernels = layer_kernels(program)
    return FusedConv(kernels.weight_magnitude, kernels.bias_magnitude)


def _copied(model: Model, port: Model, prefix: str) -> LayerReport | None:
    """A report if some array that fusion leaves alone is not the reference's; else None."""
    for name, want in model.params.items():
        if name.startswith(prefix):
            got = port.params[name].astype(np.float64)
            if not (got == want).all():
                error = float(np.abs(got - want).max())
                layer = prefix.removesuffix(".se.").removesuffix(".")
                note = f"{name} is not the reference's"
                return LayerReport(layer, error, 0.0, float("inf"), ok=False, note=note)
    return None


def _same_arrays(model: Model, port: Model, name: str) -> Report:
    """Two train forms: the arrays must be equal."""
    layers: list[LayerReport] = []
    for layer in model.arch.layer_names:
        names = [n for n in model.params if n.startswith(layer + ".") and _matters(n)]
        errors = {n: float(np.abs(port.params[n] - model.params[n]).max()) for n in names}
        wrong = [n for n in names if not errors[n] <= 0]  # a NaN is wrong
        worst = max(errors.values(), default=0.0)
        note = f"{wrong[0]} is not the reference's" if wrong else ""
        ratio = float("inf") if wrong else 0.0
        layers.append(LayerReport(layer, worst, 0.0, ratio, ok=not wrong, note=note))
    return _report(model, name, layers, [])


def _matters(name: str) -> bool:
    return is_trainable(name) or not name.endswith(".num_batches_tracked")


def _odd_taps(layer: str, odd: Array) -> Finding:
    channels = np.flatnonzero(odd)
    shown = ", ".join(map(str, channels[:6])) + (", ..." if len(channels) > 6 else "")
    return Finding(
        "taps-altered",
        layer,
        float(odd.sum()),
        1.0,
        1.0,
        f"{int(odd.sum())} taps, in output channels {shown}, are not their raw weight times the"
        " scale that the rest of the channel has",
        "convert again; a damaged or edited file, or weights fused in mixed precision",
    )


def _unknown(layer: str, seen: Observation) -> Finding:
    bad = np.abs(seen.residual) > seen.certified
    taps, channels = int(bad.sum()), int(bad.any(axis=(0, 2)).sum())
    bias_only = bool(bad[..., -1].any() and not bad[..., :-1].any())
    says = f"{taps} taps in {channels} of {bad.shape[1]} channels are beyond their bound"
    return Finding(
        "unknown",
        layer,
        None,
        0.0,
        0.0,
        says + (", all of them biases" if bias_only else ""),
        "the bug is not in the library: compare the taps named here",
    )
