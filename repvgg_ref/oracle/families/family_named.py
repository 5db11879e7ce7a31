"""Why the numbers of a fused block are wrong, and what is wrong alike in all blocks of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.parts import with_eps
from repvgg_ref.blocks.run import EVERYTHING
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.modules import FoundBlock
from repvgg_ref.oracle.families.kernel_mistakes import hides, of_kernel, unexplained
from repvgg_ref.oracle.report import EVERYWHERE, Finding
from repvgg_ref.oracle.weights.fused_block import Fused, Stored, fused_of, worst
from repvgg_ref.oracle.weights.mistakes import GENERAL, Mistake, mistakes, rare_mistakes

EPS = "eps-value"
_FEW = 4  # output channels on which every mistake is tried


def named(
    block: FoundBlock,
    folded: FoundBlock,
    name: str,
    parts: Mapping[str, Array],
    got: Stored,
    wanted: Fused,
    *,
    thoroughly: bool,
) -> Finding:
    """The mistakes that give exactly these numbers; some channels rule out most of them."""

    def those(tries: Iterable[Mistake]) -> dict[str, Mistake]:
        return _explaining(tries, parts, got, block, thoroughly=thoroughly)

    found = those(mistakes(block, folded, parts)) or those(rare_mistakes(block, parts))
    if found:
        first, *others = found.values()
        alike = tuple(each.bug for each in others)
        sure = 1 / len(found)
        says, advice = first.says, first.advice
        return Finding(first.bug, name, first.estimate, sure, 1.0, says, advice, equivalents=alike)
    return of_kernel(name, got, wanted, block.conv.groups) or _unknown(name, got, wanted)


def is_hidden(finding: Finding, block: FoundBlock, parts: Mapping[str, Array], got: Stored) -> bool:
    """Whether a right block would be as right with what a finding says."""
    if finding.bug != EPS or finding.estimate is None:
        wanted = fused_of(block.linear, parts, block.eps, block)
        return hides(finding, wanted, block.conv.groups)
    alike = with_eps(block.linear, lambda _: None)
    error, bound = worst(got, fused_of(alike, parts, finding.estimate, block))
    return error <= bound


def joined(
    found: Sequence[Finding], bad: Sequence[str], stands: Callable[[Finding], bool]
) -> tuple[Finding, ...]:
    """One finding of "all" where every block that is wrong has one cause, in the same words.

    Parameters
    ----------
    found : sequence of Finding
        One of each block that is wrong, if its numbers could be compared.
    bad : sequence of str
        The blocks that are wrong.
    stands : callable
        Whether the blocks that are right would not show it.
    """
    alike = len({(each.bug, each.says) for each in found}) == 1
    if not alike or len(found) < 2 or len(found) < len(bad) or found[0].bug == "unknown":
        return tuple(found)
    if not stands(found[0]):
        return tuple(found)
    says = f"{found[0].says} (in all {len(found)} blocks that show it)"
    return (replace(found[0], layer=EVERYWHERE, says=says),)


def _explaining(
    tries: Iterable[Mistake],
    parts: Mapping[str, Array],
    got: Stored,
    block: FoundBlock,
    *,
    thoroughly: bool,
) -> dict[str, Mistake]:
    """The first of each name that gives exactly these numbers."""
    found: dict[str, Mistake] = {}
    few = _few(block)
    for tried in tries:
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
    return found


def _few(block: FoundBlock) -> slice:
    """Some output channels: whole groups, or some of one."""
    per_group = block.linear.out_channels // block.linear.groups
    return slice(0, _FEW // per_group * per_group or _FEW)


def _explains(tried: Mistake, got: Stored, block: FoundBlock, rows: slice) -> bool:
    error, bound = worst(got, fused_of(tried.linear, tried.parts, tried.eps, block, rows))
    return error <= bound < np.inf


def _unknown(name: str, got: Stored, wanted: Fused) -> Finding:
    """What of a block differs that no mistake explains."""
    odd = unexplained(got, wanted)
    taps = np.flatnonzero(odd.taps.any(axis=(0, 1)).ravel()).tolist()
    biases = int(odd.bias.sum())
    said = []
    if taps:
        height, width = odd.taps.shape[2:]
        where = f", at taps {taps[:9]} of {height} x {width}" if height * width > 1 else ""
        said.append(f"{int(odd.taps.sum())} of {odd.taps.size} weights differ{where}")
    else:
        said.append("all weights agree")
    said.append(f"{biases} of {odd.bias.size} biases differ" if biases else "the bias agrees")
    advice = "fuse this block by hand"
    return Finding("unknown", name, None, 0.0, 0.0, says="; ".join(said), advice=advice)
