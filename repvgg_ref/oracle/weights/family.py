"""A file of blocks, fused by somebody, against its training checkpoint: block by block, no run.

Every fused number must lie within what a converter's arithmetic can do, 16 roundings of the
magnitudes that were added (`diagnosis.static_check`). Where it does not, expressions with one thing
wrong are tried: a branch left out or added twice, another eps, a scale ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.constructors import Bias, Scale
from repvgg_ref.blocks.linear import Chain, Identity, Sum
from repvgg_ref.blocks.run import EVERYTHING, Linear, Reader
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.convert_modules import require_blocks
from repvgg_ref.files.modules import FoundBlock, find_blocks
from repvgg_ref.files.wrappers import listed, select
from repvgg_ref.oracle.report import Finding, LayerReport, Report
from weights_io import LazyArray, sanitize

_ROUNDINGS = 16.0
_EPS = (1e-5, 1e-3, 1e-6, 0.0)
_UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-53}
_UNIT = 2.0**-24
_NOT_TESTED = (
    "not tested: strides, padding and what computes with these numbers, which no array says"
)


@dataclass(frozen=True)
class _Fused:
    """What a block must fuse to, and the magnitudes that were added for each number."""

    weight: Array
    bias: Array
    weight_size: Array
    bias_size: Array


def judge_family(
    reference: Path, candidate: Path, *, family: str = "auto", eps: float | None = None
) -> Report:
    """Judge the fused file `candidate` against the training file `reference`.

    Raises
    ------
    ReportedError
        If the reference holds no block of the family.
    """
    name, notes = sanitize(candidate.name), [_NOT_TESTED]
    with weights_io.open_weights(reference) as trained, weights_io.open_weights(candidate) as port:
        ours = select(trained.root, "model", []).arrays
        blocks = find_blocks({k: a.shape for k, a in ours.items()}, family=family, eps=eps)
        require_blocks(reference, blocks, ours)
        notes += blocks.notes
        title = f"{sanitize(reference.name)} ({blocks.family})"
        try:
            theirs = select(port.root, "model", []).arrays
        except ReportedError as error:
            return Report("cannot-judge", str(error), title, name, "weights")
        rows: list[LayerReport] = []
        findings: list[Finding] = []
        for block in blocks.found:
            row, found = _judged(block, ours, theirs)
            rows.append(row)
            findings += found
        rest = list(_rest(ours, theirs, {k for b in blocks.found for k in b.owned}))
    rows += [LayerReport.incomparable(key, why) for key, why in rest]
    bad = [row for row in rows if not row.ok]
    reason = (
        f"{bad[0].name}: {bad[0].note or 'its fused numbers are none that rounding explains'}"
        if bad
        else f"{len(blocks.found)} fused blocks and all other arrays are those of the checkpoint"
    )
    return Report(
        "disagree" if bad else "agree",
        reason,
        title,
        name,
        "weights",
        tuple(rows),
        tuple(findings),
        bad[0].name if bad else None,
        tuple(notes),
    )


def _judged(
    block: FoundBlock, ours: Mapping[str, LazyArray], theirs: Mapping[str, LazyArray]
) -> tuple[LayerReport, list[Finding]]:
    name = block.prefix.rstrip(".") or block.member.name
    keys = [f"{block.fused}.{part}".lstrip(".") for part in ("weight", "bias")]
    if missing := [key for key in keys if key not in theirs]:
        return LayerReport.incomparable(name, f"{listed(missing)} is missing"), []
    weight, bias = (theirs[key].read().astype(np.float64) for key in keys)
    parts = {leaf: ours[key].read() for leaf, key in block.names.items()}
    wanted = _fused(block.linear, parts, block.eps, block)
    if weight.shape != wanted.weight.shape or bias.shape != wanted.bias.shape:
        note = f"shape {weight.shape}, not {wanted.weight.shape}"
        return LayerReport.incomparable(name, note), []
    unit = _UNITS.get(theirs[keys[0]].dtype, _UNIT)
    error, bound = _worst(weight, bias, wanted, unit)
    ok = bool(error <= bound)
    row = LayerReport(name, error, bound, error / bound if bound else float(error > 0), ok)
    if ok:
        return row, []
    return row, [_named(block, name, parts, weight, bias, unit)]


def _fused(linear: Linear, parts: Mapping[str, Array], eps: float, block: FoundBlock) -> _Fused:
    form = linear.form(Reader(parts, eps), EVERYTHING)
    shape = block.conv.shapes()["fused.weight"]
    weight, size = np.zeros(shape), np.zeros(shape)
    for i in range(shape[2]):
        for j in range(shape[3]):
            rows, columns = block.conv.dilation
            offset = rows * (i - shape[2] // 2), columns * (j - shape[3] // 2)
            if form.lattice.tap(offset) is not None:
                weight[:, :, i, j], size[:, :, i, j] = form.at(offset), form.size_at(offset)
    return _Fused(weight, np.asarray(form.bias), size, np.asarray(form.bias_size))


def _worst(weight: Array, bias: Array, wanted: _Fused, unit: float) -> tuple[float, float]:
    """Error and bound at the number that uses most of its bound; NaN counts as most."""
    tiny = 2.0**-149 if unit >= _UNIT else 2.0**-1074
    error = np.concatenate([np.abs(weight - wanted.weight).ravel(), np.abs(bias - wanted.bias)])
    size = np.concatenate([wanted.weight_size.ravel(), wanted.bias_size])
    bound = _ROUNDINGS * unit * size + _ROUNDINGS * tiny
    at = int(np.argmax(np.where(np.isnan(error), np.inf, error / bound)))
    return float(error[at]), float(bound[at])


def _named(
    block: FoundBlock,
    name: str,
    parts: Mapping[str, Array],
    weight: Array,
    bias: Array,
    unit: float,
) -> Finding:
    found: list[tuple[str, str, str]] = []
    for told, linear, eps in _alternatives(block):
        try:
            other = _fused(linear, parts, eps, block)
        except ReportedError:
            continue
        error, bound = _worst(weight, bias, other, unit)
        if error <= bound:
            found.append(told)
    if found:
        bug, says, advice = found[0]
        others = tuple(each[0] for each in found[1:])
        sure = 1 / len(found)
        return Finding(bug, name, None, sure, 1.0, says=says, advice=advice, equivalents=others)
    wanted = _fused(block.linear, parts, block.eps, block)
    apart = np.abs(weight - wanted.weight) > _ROUNDINGS * unit * wanted.weight_size + 1e-30
    taps = np.flatnonzero(apart.any(axis=(0, 1)).ravel()).tolist()
    says = (
        f"{int(apart.sum())} of {apart.size} weights differ, at taps {taps[:9]} of "
        f"{weight.shape[2]} x {weight.shape[3]}; "
        f"bias {'differs' if np.any(np.abs(bias - wanted.bias) > 1e-6) else 'agrees'}"
    )
    return Finding("unknown", name, None, 0.0, 0.0, says=says, advice="fuse this block by hand")


def _alternatives(block: FoundBlock) -> Iterator[tuple[tuple[str, str, str], Linear, float]]:
    """((bug, what it says, advice), expression, eps) with one thing wrong."""
    linear, eps = block.linear, block.eps
    for other in _EPS:
        if other != eps:
            says = f"eps is {other:g}, not {eps:g}"
            yield ("eps-value", says, f"fuse with eps {eps:g}"), linear, other
    for says, changed in _changed(linear):
        bug = says.split(":")[0]
        yield (bug, says, "add every branch once"), changed, eps


def _changed(linear: Any) -> Iterator[tuple[str, Linear]]:
    """The expression with a branch left out or doubled, or a scale or shift ignored."""
    if isinstance(linear, Sum):
        for place, part in enumerate(linear.parts):
            rest = [*linear.parts[:place], *linear.parts[place + 1 :]]
            called = _called(part)
            if rest:
                yield f"branch-missing: {called} is left out", Sum(*rest)
            yield f"branch-doubled: {called} is added twice", Sum(*linear.parts, part)
            for says, inner in _changed(part):
                yield says, Sum(*linear.parts[:place], inner, *linear.parts[place + 1 :])
    if isinstance(linear, Chain):
        for place, part in enumerate(linear.parts):
            before, after = linear.parts[:place], linear.parts[place + 1 :]
            if isinstance(part, Scale | Bias):
                yield f"scale-ignored: {part.name} is ignored", Chain(*before, *after)
            for says, inner in _changed(part):
                yield says, Chain(*before, inner, *after)


def _called(part: Any) -> str:
    if isinstance(part, Identity):
        return "the identity"
    inner = part.parts[0] if isinstance(part, Chain | Sum) else part
    if isinstance(inner, Identity):
        return "the identity's batch norm"
    return str(getattr(inner, "name", "a branch"))


def _rest(
    ours: Mapping[str, LazyArray], theirs: Mapping[str, LazyArray], owned: set[str]
) -> Iterator[tuple[str, str]]:
    """Arrays outside of blocks that are missing, or not the same numbers."""
    for key, array in ours.items():
        if key in owned:
            continue
        if key not in theirs:
            yield key, "is missing"
        elif theirs[key].shape != array.shape:
            yield key, f"shape {theirs[key].shape}, not {array.shape}"
        else:
            mine, other = array.read(), theirs[key].read()
            if not np.array_equal(
                mine.astype(other.dtype), other, equal_nan=mine.dtype.kind == "f"
            ):
                yield key, "holds other numbers, and belongs to no block"
