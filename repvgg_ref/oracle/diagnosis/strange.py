"""Whether a port errs in ways of its own: then nothing can be said of it, right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repvgg_ref.oracle.bounds.comparison import Comparison
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.diagnosis.small import ESTIMATED
from repvgg_ref.oracle.estimates.port import PortEstimates
from repvgg_ref.oracle.estimates.randomness import bits_kept
from repvgg_ref.oracle.report import Finding

_SYSTEMATIC = {"outputs-scaled", "bias-scaled"}  # no arithmetic does that in all layers
_MOST_STRANGE = 3  # a third of the layers is no fault of one of them


def strangeness(
    comparisons: Mapping[str, Comparison], estimates: PortEstimates, diagnosis: Sequence[Finding]
) -> str:
    """Why nothing can be said of a port whose arithmetic is not known; empty if it can.

    All its layers are within their certified bounds. Errors in most of them that no bug explains
    are more likely an arithmetic nobody told us of; not if all outputs have few bits. Where the
    noise of most layers is of no kind that is known, or half of the layers are odd, what was
    estimated explains nothing either. Where sums are cut in a direction that is not known, in an
    order that is not, even scales may come of that.
    """
    odd = estimates.alarms
    if not odd:
        return ""
    unknown_noise = estimates.is_of_unknown_noise
    everywhere = 2 * len(odd) >= len(comparisons)
    in_tiles = _may_be_in_tiles(estimates)
    estimated = ESTIMATED - _SYSTEMATIC if everywhere or unknown_noise else frozenset()
    if estimates.arithmetic.directed.is_at_limit or in_tiles:
        estimated = ESTIMATED
    explains_nothing = {"unknown", *estimated}
    explained = any(finding.bug not in explains_nothing for finding in diagnosis)
    unit = estimates.arithmetic.unit
    kept = any(bits_kept(comparisons[name].y_hat, unit) for name in odd)
    of = f"{len(odd)} of {len(comparisons)} layers err"
    if {finding.bug for finding in diagnosis} == {"outputs-rounded"} and not (kept or in_tiles):
        return (
            f"{of} at random by more than any arithmetic known here does, all within their"
            " certified bounds: a fast algorithm that is not known here, or outputs kept in fewer"
            " bits"
        )
    if explained:
        return ""
    if in_tiles:
        return in_tiles
    if unknown_noise:
        return (
            f"most layers err as in no arithmetic known here (with heavier tails), {len(odd)} of"
            f" {len(comparisons)} by more than such arithmetics do, all within their"
            " certified bounds, and no known bug explains it"
        )
    if len(odd) * _MOST_STRANGE < len(comparisons):
        return ""
    return (
        f"{of} more than any arithmetic known here does, all within their certified bounds, and no"
        " bug explains it"
    )


def _may_be_in_tiles(estimates: PortEstimates) -> str:
    """Why odd layers may be right: a fast algorithm's errors, too few outputs to prove it."""
    possible, odd = estimates.arithmetic.possible, list(estimates.alarms)
    if not possible or any(estimates.samples[name].tile_stride != 1 for name in odd):
        return ""
    names = " to ".join(f"F({m}x{m}, 3x3)" for m in sorted({possible[0].m, possible[-1].m}))
    errs = "errs" if len(odd) == 1 else "err"
    return (
        f"{listed(odd)} {errs} by more than direct sums do, as Winograd's {names} may: a fault or"
        " such an algorithm, there are too few outputs to tell; larger images have more"
    )
