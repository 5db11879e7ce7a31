"""A file of blocks, fused by somebody, against its training checkpoint: block by block, no run.

Every fused number must lie within what a converter's arithmetic can do, `ROUNDINGS` of the
magnitudes that were added. Where it does not, blocks with one thing wrong are tried (`mistakes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.run import EVERYTHING, Linear, Reader
from repvgg_ref.errors import CheckpointError, ReportedError
from repvgg_ref.files.convert_modules import require_blocks
from repvgg_ref.files.modules import FoundBlock, blocks_of
from repvgg_ref.files.recorded import geometry_of
from repvgg_ref.files.wrappers import listed, select
from repvgg_ref.oracle.report import Finding, LayerReport, Report
from repvgg_ref.oracle.weights.affine import as_kept
from repvgg_ref.oracle.weights.arithmetic import FORMAT_NAMES, UNITS, least_error
from repvgg_ref.oracle.weights.conversion import ROUNDINGS
from repvgg_ref.oracle.weights.copies import is_counter, unlike
from repvgg_ref.oracle.weights.mistakes import GENERAL, UNKEYED, Mistake, mistakes
from weights_io import LazyArray, sanitize

_FEW = 4  # output channels on which every mistake is tried
_MOST_SEARCHED = 16  # bad blocks whose arrays are searched for a mistake, at a tenth of a second
_FORMATS = {dtype: short for short, dtype in FORMAT_NAMES.items()}
NOT_TESTED = (
    "not tested: strides, padding and what computes with these numbers, which no array says"
)


@dataclass(frozen=True)
class _Fused:
    """What a block must fuse to, and the magnitudes that were added for each number."""

    weight: Array
    bias: Array
    weight_size: Array
    bias_size: Array

    @property
    def is_finite(self) -> bool:
        """Whether anything can be held to it."""
        return all(np.isfinite(array).all() for array in vars(self).values())


class _Stored(NamedTuple):
    """A candidate's arrays in float64, and how coarsely each is computed or stored."""

    weight: Array
    bias: Array
    units: tuple[float, float]
    least: tuple[float, float]

    def part(self, rows: slice) -> _Stored:
        """That of some output channels."""
        return self._replace(weight=self.weight[rows], bias=self.bias[rows])


def judge_family(
    reference: Path, candidate: Path, *, family: str = "auto", eps: float | None = None
) -> Report:
    """Judge the fused file `candidate` against the training file `reference`.

    Raises
    ------
    ReportedError
        If the reference holds no block of the family.
    """
    with weights_io.open_weights(reference) as trained, weights_io.open_weights(candidate) as port:
        ours = select(trained.root, "model", []).arrays
        blocks = blocks_of(ours, family=family, eps=eps)
        require_blocks(reference, blocks, ours, trained.metadata)
        title = f"{sanitize(reference.name)} ({blocks.family})"
        notes = (NOT_TESTED, *blocks.notes)
        report = Report("agree", "", title, sanitize(candidate.name), "weights", notes=notes)
        try:
            return compared(blocks.found, ours, select(port.root, "model", []).arrays, report)
        except ReportedError as error:
            return replace(report, verdict="cannot-judge", reason=str(error))


def compared(
    blocks: list[FoundBlock],
    ours: Mapping[str, LazyArray],
    theirs: Mapping[str, LazyArray],
    report: Report,
) -> Report:
    """`report` with a verdict: on the blocks, on copied arrays, and on those that nobody knows."""
    fused = [key for block in blocks for key in _keys(block)]
    if fused and not any(key in theirs for key in fused):
        raise CheckpointError(
            "no array is called as a fused one is", got=listed(list(theirs)), wanted=listed(fused)
        )
    folded, blocks = blocks, [as_kept(block, theirs) for block in blocks]
    judged: list[tuple[LayerReport, list[Finding]]] = []
    for pair in zip(blocks, folded, strict=True):
        thoroughly = sum(not row.ok for row, _ in judged) < _MOST_SEARCHED
        judged.append(_judged(*pair, ours, theirs, thoroughly=thoroughly))
    owned = {key for block in blocks for key in block.owned}
    rest = [(key, why) for key in ours if key not in owned if (why := _rest(key, ours, theirs))]
    rows = [row for row, _ in judged] + [LayerReport.incomparable(*each) for each in rest]
    report = replace(
        report, layers=tuple(rows), diagnosis=tuple(each for _, found in judged for each in found)
    )
    if beside := [key for key in theirs if key in owned and key not in fused]:
        note = (
            "branches stand beside the fused convolutions; adding both would be wrong, which no "
            f"array says: {listed(beside)}"
        )
        report = replace(report, notes=(*report.notes, note))
    open_ones = {str(each.layer) for _, found in judged for each in found if each.bug == UNKEYED}
    bad = next((row for row in rows if not row.ok and row.name not in open_ones), None)
    if bad is None and open_ones:
        says = next(each.says for each in report.diagnosis if each.bug == UNKEYED)
        reason = f"{listed(sorted(open_ones))}: {says}"
        return replace(report, verdict="cannot-judge", reason=reason)
    if bad is not None:
        why = bad.note or "its fused numbers are none that rounding explains"
        reason = f"{bad.name}: {why}"
        return replace(report, verdict="disagree", reason=reason, first_bad_layer=bad.name)
    those = f"{len(blocks)} fused blocks and all other arrays" if blocks else "all arrays"
    agrees = f"{those} are those of the checkpoint"
    unknown = [k for k in theirs if not (k in ours or k in fused or is_counter(k))]
    if unknown:
        reason = f"{agrees}, but what these do is not known: {listed(unknown)}"
        return replace(report, verdict="cannot-judge", reason=reason)
    return replace(report, reason=agrees)


def _keys(block: FoundBlock) -> list[str]:
    return [f"{block.fused}.{part}".lstrip(".") for part in ("weight", "bias")]


def _judged(
    block: FoundBlock,
    folded: FoundBlock,
    ours: Mapping[str, LazyArray],
    theirs: Mapping[str, LazyArray],
    *,
    thoroughly: bool,
) -> tuple[LayerReport, list[Finding]]:
    name = block.prefix.rstrip(".") or block.member.name
    keys = _keys(block)
    if missing := [key for key in keys if key not in theirs]:
        return LayerReport.incomparable(name, f"{listed(missing)} is missing"), []
    parts = {leaf: ours[key].read() for leaf, key in folded.names.items()}
    with np.errstate(over="ignore", invalid="ignore"):  # looked for here
        wanted = _fused(block.linear, parts, block.eps, block)
    if not wanted.is_finite:
        raise CheckpointError(
            f"{sanitize(name)} has no fused numbers",
            got="NaN, infinity, or a negative variance among its arrays",
            wanted="finite numbers",
            advice="take an earlier checkpoint of this run",
        )
    got = [theirs[key] for key in keys]
    if block.is_told and (why := _otherwise(block, got[0])):
        return LayerReport.incomparable(name, why), []
    shapes = tuple(array.shape for array in got)
    if shapes != (wanted.weight.shape, wanted.bias.shape):
        note = f"shapes {shapes}, not {(wanted.weight.shape, wanted.bias.shape)}"
        return LayerReport.incomparable(name, note), []
    if other := [array.dtype for array in got if array.dtype not in _FORMATS]:
        return LayerReport.incomparable(name, f"holds {other[0]}, no real numbers"), []
    stored = _stored(got, all(ours[key].dtype == "float64" for key in block.names.values()))
    error, bound = _worst(stored, wanted)
    ok = bool(error <= bound)
    row = LayerReport(name, error, bound, error / bound if bound else float(error > 0), ok)
    if ok:
        return row, []
    given = parts, stored, wanted
    return row, [_named(block, folded, name, *given, thoroughly=thoroughly)]


def _otherwise(block: FoundBlock, weight: LazyArray) -> str:
    """How a fused convolution that the candidate holds as a module reads its input otherwise."""
    if weight.module is None or weight.shape != block.conv.shapes()["fused.weight"]:
        return ""
    told = geometry_of(weight.module, weight.shape, centred=False)
    for what in told._fields:
        wanted, got = getattr(block.conv, what), getattr(told, what)
        if got != wanted and not (what == "dilation" and block.conv.kernel == (1, 1)):
            return f"its {what} is {got}, not {wanted}"
    return ""


def _stored(got: list[LazyArray], is_double: bool) -> _Stored:
    """Numbers are held to float64 only if they were trained and are stored in it."""
    formats = [_FORMATS[array.dtype] for array in got]
    computed = UNITS["fp64" if is_double else "fp32"]
    weight, bias = (array.read().astype(np.float64) for array in got)
    units, least = [max(UNITS[f], computed) for f in formats], [least_error(f) for f in formats]
    return _Stored(weight, bias, (units[0], units[1]), (least[0], least[1]))


def _fused(
    linear: Linear,
    parts: Mapping[str, Array],
    eps: float,
    block: FoundBlock,
    rows: slice = EVERYTHING,
) -> _Fused:
    form = linear.form(Reader(parts, eps), EVERYTHING)
    outputs, *rest = block.conv.shapes()["fused.weight"]
    if rows != EVERYTHING:
        form = form.part(rows, EVERYTHING)
    shape = len(range(outputs)[rows]), *rest
    weight, size = np.zeros(shape), np.zeros(shape)
    for i in range(shape[2]):
        for j in range(shape[3]):
            down, right = block.conv.dilation
            offset = down * (i - shape[2] // 2), right * (j - shape[3] // 2)
            if form.lattice.tap(offset) is not None:
                weight[:, :, i, j], size[:, :, i, j] = form.at(offset), form.size_at(offset)
    return _Fused(weight, np.asarray(form.bias), size, np.asarray(form.bias_size))


def _bounds(got: _Stored, wanted: _Fused) -> tuple[Array, Array]:
    sizes = wanted.weight_size, wanted.bias_size
    weight, bias = (
        ROUNDINGS * (unit * size + least)
        for unit, size, least in zip(got.units, sizes, got.least, strict=True)
    )
    return weight, bias


def _worst(got: _Stored, wanted: _Fused) -> tuple[float, float]:
    """Error and bound at the number that uses most of its bound; NaN counts as most."""
    bound = np.concatenate([each.ravel() for each in _bounds(got, wanted)])
    error = np.concatenate(
        [np.abs(got.weight - wanted.weight).ravel(), np.abs(got.bias - wanted.bias)]
    )
    at = int(np.argmax(np.where(np.isnan(error), np.inf, error / bound)))
    return float(error[at]), float(bound[at])


def _named(
    block: FoundBlock,
    folded: FoundBlock,
    name: str,
    parts: Mapping[str, Array],
    got: _Stored,
    wanted: _Fused,
    *,
    thoroughly: bool,
) -> Finding:
    """The mistakes that give exactly these numbers; some channels rule out most of them."""
    found: dict[str, Mistake] = {}
    few = slice(0, _FEW)
    for tried in mistakes(block, folded, parts):
        if tried.parts is not parts and not thoroughly:
            break
        if tried.bug in found or (found and tried.bug in GENERAL):
            continue
        try:
            with np.errstate(all="ignore"):
                if not _explains(tried, got.part(few), block, few):
                    continue
                if _explains(tried, got, block, EVERYTHING):
                    found[tried.bug] = tried
        except ReportedError:
            continue
    if found:
        first, *others = found.values()
        alike = tuple(each.bug for each in others)
        sure = 1 / len(found)
        says, advice = first.says, first.advice
        return Finding(
            first.bug, name, None, sure, 1.0, says=says, advice=advice, equivalents=alike
        )
    return _unknown(name, got, wanted)


def _explains(tried: Mistake, got: _Stored, block: FoundBlock, rows: slice) -> bool:
    error, bound = _worst(got, _fused(tried.linear, tried.parts, tried.eps, block, rows))
    return error <= bound < np.inf


def _unknown(name: str, got: _Stored, wanted: _Fused) -> Finding:
    """What of a block differs that no mistake explains."""
    weights, biases = _bounds(got, wanted)
    apart = ~(np.abs(got.weight - wanted.weight) <= weights)
    taps = np.flatnonzero(apart.any(axis=(0, 1)).ravel()).tolist()
    same_bias = (np.abs(got.bias - wanted.bias) <= biases).all()
    says = (
        f"{int(apart.sum())} of {apart.size} weights differ, at taps {taps[:9]} of "
        f"{apart.shape[2]} x {apart.shape[3]}; bias {'agrees' if same_bias else 'differs'}"
    )
    return Finding("unknown", name, None, 0.0, 0.0, says=says, advice="fuse this block by hand")


def _rest(key: str, ours: Mapping[str, LazyArray], theirs: Mapping[str, LazyArray]) -> str:
    """What is wrong with an array outside of blocks; "" if nothing is."""
    if is_counter(key):
        return ""
    return unlike(ours[key], theirs[key]) if key in theirs else "is missing"
