"""A file of blocks, fused by somebody, against its training checkpoint: block by block, no run.

Every fused number must lie within what a converter's arithmetic can do, `ROUNDINGS` of the
magnitudes that were added. Where it does not, blocks with one thing wrong are tried (`mistakes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError, ReportedError
from repvgg_ref.files.convert_modules import require_blocks
from repvgg_ref.files.modules import FoundBlock, blocks_of
from repvgg_ref.files.recorded import geometry_of
from repvgg_ref.files.wrappers import listed, select
from repvgg_ref.models.about import Assumed
from repvgg_ref.oracle.families.family_named import is_hidden, joined, named
from repvgg_ref.oracle.families.kernel_mistakes import swapped
from repvgg_ref.oracle.report import Finding, LayerReport, Report
from repvgg_ref.oracle.weights.affine import as_kept, with_outer
from repvgg_ref.oracle.weights.copies import is_counter, unlike
from repvgg_ref.oracle.weights.fused_block import FORMATS, Stored, fused_of, stored_of, worst
from repvgg_ref.oracle.weights.mistakes import UNKEYED
from weights_io import LazyArray, sanitize

_MOST_SEARCHED = (
    16  # bad blocks whose arrays are searched for a mistake, a tenth of a second to seconds
)
NOT_TESTED = (
    "not tested: strides, padding and what computes with these numbers, which no array says"
)


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
        ours = select(trained, "model", []).arrays
        blocks = blocks_of(ours, family=family, eps=eps)
        require_blocks(reference, blocks, ours, trained.metadata)
        title = f"{sanitize(reference.name)} ({blocks.family})"
        notes = (NOT_TESTED, *blocks.notes)
        assumed = Assumed(eps=blocks.assumed_eps)
        report = Report(
            "agree", "", title, sanitize(candidate.name), "weights", notes=notes, assumed=assumed
        )
        try:
            return compared(blocks.found, ours, select(port, "model", []).arrays, report)
        except ReportedError as error:
            return replace(report, verdict="cannot-judge", reason=str(error))


def compared(
    blocks: list[FoundBlock],
    ours: Mapping[str, LazyArray],
    theirs: Mapping[str, LazyArray],
    report: Report,
    roundings: Mapping[str, int] | None = None,
) -> Report:
    """`report` with a verdict: on the blocks, on copied arrays, and on those that nobody knows.

    Parameters
    ----------
    roundings : mapping, optional
        Block -> how many a number of it may be off, where these are not `ROUNDINGS`.
    """
    fused = [key for block in blocks for key in _keys(block)]
    if fused and not any(key in theirs for key in fused):
        raise CheckpointError(
            "no array is called as a fused one is", got=listed(list(theirs)), wanted=listed(fused)
        )
    if _is_unfused(blocks, ours, theirs):
        raise CheckpointError(
            "its blocks are as they were trained", got=listed(fused), wanted="fused ones"
        )
    blocks = [with_outer(block, ours, theirs) for block in blocks]
    folded, blocks = blocks, [as_kept(block, theirs) for block in blocks]
    held = _Files(ours, theirs, roundings or {})
    judged: list[tuple[LayerReport, list[Finding]]] = []
    for pair in zip(blocks, folded, strict=True):
        thoroughly = sum(not row.ok for row, _ in judged) < _MOST_SEARCHED
        judged.append(_judged(*pair, held, thoroughly=thoroughly))
    owned = {key for block in blocks for key in block.owned}
    rest = [(key, why) for key in ours if key not in owned if (why := _rest(key, ours, theirs))]
    rows = [row for row, _ in judged] + [LayerReport.incomparable(*each) for each in rest]
    found = _exchanged([each for _, of_one in judged for each in of_one], blocks, held)
    report = replace(report, layers=tuple(rows), diagnosis=tuple(found))
    if beside := [key for key in theirs if key in owned and key not in fused]:
        note = (
            "branches stand beside the fused convolutions; adding both would be wrong, which no "
            f"array says: {listed(beside)}"
        )
        report = replace(report, notes=(*report.notes, note))
    open_ones = {str(each.layer) for each in found if each.bug == UNKEYED}
    bad = next((row for row in rows if not row.ok and row.name not in open_ones), None)
    if bad is None and open_ones:
        says = next(each.says for each in report.diagnosis if each.bug == UNKEYED)
        reason = f"{listed(sorted(open_ones))}: {says}"
        return replace(report, verdict="cannot-judge", reason=reason)
    if bad is not None:
        why = bad.note or "its fused numbers are none that rounding explains"
        reason = f"{bad.name}: {why}"
        causes = _joined(found, [row for row, _ in judged], blocks, held)
        return replace(
            report, verdict="disagree", reason=reason, first_bad_layer=bad.name, diagnosis=causes
        )
    those = f"{len(blocks)} fused blocks and all other arrays" if blocks else "all arrays"
    agrees = f"{those} are those of the checkpoint"
    unknown = [k for k in theirs if not (k in ours or k in fused or is_counter(k))]
    if unknown:
        reason = f"{agrees}, but what these do is not known: {listed(unknown)}"
        return replace(report, verdict="cannot-judge", reason=reason)
    return replace(report, reason=agrees)


def _keys(block: FoundBlock) -> list[str]:
    return [f"{block.fused}.{part}".lstrip(".") for part in ("weight", "bias")]


def _is_unfused(
    blocks: list[FoundBlock], ours: Mapping[str, LazyArray], theirs: Mapping[str, LazyArray]
) -> bool:
    """Whether all that is called as a fused array is the training file's own, beside branches."""
    owned = {key for block in blocks for key in block.owned}
    fused = [key for block in blocks for key in _keys(block)]
    if not fused or not owned.issuperset(fused):
        return False
    kept = all(key in theirs or is_counter(key) for key in owned)
    return kept and not any(unlike(ours[key], theirs[key]) for key in fused)


class _Files(NamedTuple):
    """The arrays of both files, and how many roundings some blocks may be off."""

    ours: Mapping[str, LazyArray]
    theirs: Mapping[str, LazyArray]
    roundings: Mapping[str, int]

    def parts(self, block: FoundBlock) -> dict[str, Array]:
        """The reference's arrays of a block, by their leaves."""
        return {leaf: self.ours[key].read() for leaf, key in block.names.items()}

    def stored(self, block: FoundBlock) -> Stored:
        """The candidate's numbers of a block."""
        is_double = all(self.ours[key].dtype == "float64" for key in block.names.values())
        stored = stored_of([self.theirs[key] for key in _keys(block)], is_double)
        most = self.roundings.get(name_of(block), stored.roundings)
        return stored._replace(roundings=most)


def name_of(block: FoundBlock) -> str:
    """What a report calls a block."""
    return block.prefix.rstrip(".") or block.member.name


def _judged(
    block: FoundBlock, folded: FoundBlock, held: _Files, *, thoroughly: bool
) -> tuple[LayerReport, list[Finding]]:
    name, theirs = name_of(block), held.theirs
    keys = _keys(block)
    if missing := [key for key in keys if key not in theirs]:
        return LayerReport.incomparable(name, f"{listed(missing)} is missing"), []
    parts = held.parts(folded)
    with np.errstate(over="ignore", invalid="ignore"):  # looked for here
        wanted = fused_of(block.linear, parts, block.eps, block)
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
    if other := [array.dtype for array in got if array.dtype not in FORMATS]:
        return LayerReport.incomparable(name, f"holds {other[0]}, no real numbers"), []
    stored = held.stored(block)
    error, bound = worst(stored, wanted)
    ok = bool(error <= bound)
    row = LayerReport(name, error, bound, error / bound if bound else float(error > 0), ok)
    if ok:
        return row, []
    given = parts, stored, wanted
    return row, [named(block, folded, name, *given, thoroughly=thoroughly)]


def _exchanged(found: list[Finding], blocks: list[FoundBlock], held: _Files) -> list[Finding]:
    """The findings, with the blocks named whose numbers those that nothing explains hold."""
    unknown = {str(each.layer) for each in found if each.bug == "unknown"}
    of_name = {name_of(block): block for block in blocks if name_of(block) in unknown}
    if len(of_name) < 2 or len(of_name) > _MOST_SEARCHED:
        return found
    wanted = {n: fused_of(b.linear, held.parts(b), b.eps, b) for n, b in of_name.items()}
    whose: dict[str, str] = {}
    for name, block in of_name.items():
        stored = held.stored(block)
        for other, numbers in wanted.items():
            if other != name and numbers.weight.shape == stored.weight.shape:
                error, bound = worst(stored, numbers)
                if error <= bound < np.inf:
                    whose.setdefault(name, other)
    return [
        swapped(str(f.layer), whose[str(f.layer)]) if f.layer in whose and f.bug == "unknown" else f
        for f in found
    ]


def _joined(
    found: list[Finding], rows: list[LayerReport], blocks: list[FoundBlock], held: _Files
) -> tuple[Finding, ...]:
    """One finding, if one cause stands in all blocks."""
    right = [block for block, row in zip(blocks, rows, strict=True) if row.ok]

    def stands(finding: Finding) -> bool:
        return all(
            is_hidden(finding, block, held.parts(block), held.stored(block)) for block in right
        )

    return joined(found, [row.name for row in rows if not row.ok], stands)


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


def _rest(key: str, ours: Mapping[str, LazyArray], theirs: Mapping[str, LazyArray]) -> str:
    """What is wrong with an array outside of blocks; "" if nothing is."""
    if is_counter(key):
        return ""
    return unlike(ours[key], theirs[key]) if key in theirs else "is missing"
