"""What goes wrong with a fused kernel as a whole: laid out otherwise, another layer's, scaled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import LAYER_BUGS
from repvgg_ref.oracle.bugs.geometry import FLIPS, LAYOUTS, Changed
from repvgg_ref.oracle.diagnosis.kernel_factors import scaled
from repvgg_ref.oracle.diagnosis.odd_taps import FEW, altered
from repvgg_ref.oracle.diagnosis.ranking import Observation
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.weights.conversion import Odd
from repvgg_ref.oracle.weights.fused_block import Fused, Stored, bounds, worst

_LIBRARY = {bug.name: bug for bug in LAYER_BUGS}
_RGB = 3  # input channels, of a network's first convolution
_FEW = slice(0, 4)  # output channels
_CHANGES: tuple[tuple[str, dict[str, Changed]], ...] = (
    ("kernel-flipped", FLIPS),
    ("kernel-height-width-swapped", {"": lambda w: w.transpose(0, 1, 3, 2)}),
    ("kernel-in-out-swapped", {"": lambda w: w.transpose(1, 0, 2, 3)}),
    ("input-bgr", {"": lambda w: w[:, ::-1] if w.shape[1] == _RGB else w}),
    ("kernel-memory-layout", LAYOUTS),
)


def of_kernel(name: str, got: Stored, wanted: Fused, groups: int) -> Finding | None:
    """A kernel or a bias that is laid out, left out, scaled or altered in a few places.

    Parameters
    ----------
    name : str
        The block's.
    got, wanted : Stored, Fused
        Its numbers, which are not the same.
    """
    for bug, says, advice, other in _changed(wanted, groups):
        error, bound = worst(got.part(_FEW), other.part(_FEW))  # most are ruled out by these
        error, bound = worst(got, other) if error <= bound < np.inf else (error, bound)
        if error <= bound < np.inf:
            return Finding(bug, name, None, 1.0, 1.0, says=says, advice=advice)
    theirs, ours = _rows(got.weight, got.bias), _rows(wanted.weight, wanted.bias)
    odd, room = unexplained(got, wanted), _rows(*bounds(got, wanted))
    # an altered bias is told relative to itself
    seen = Observation(ours[None], theirs[None], room[None], np.abs(ours[None]))
    if (whole := scaled(name, seen, odd)) is not None:
        return whole
    count = int(odd.by_channel.sum())
    return altered(name, seen, odd, 1.0) if 0 < count < FEW * odd.taps.size else None


def hides(finding: Finding, right: Fused, groups: int) -> bool:
    """Whether a kernel is the same with the change that a finding names: 1x1 ones flipped, say."""
    if finding.bug not in dict(_CHANGES):
        return False
    return all(
        (bug, says) != (finding.bug, finding.says) for bug, says, *_ in _changed(right, groups)
    )


def swapped(name: str, other: str) -> Finding:
    """A block that holds the numbers of another."""
    bug = _LIBRARY["layers-swapped"]
    says = bug.says.format(parameter=0.0, detail=other)
    return Finding(bug.name, name, None, 1.0, 1.0, says=says, advice=bug.advice)


def unexplained(got: Stored, wanted: Fused) -> Odd:
    """The numbers that are beyond their bounds."""
    weights, biases = bounds(got, wanted)
    return Odd(
        ~(np.abs(got.weight - wanted.weight) <= weights),
        ~(np.abs(got.bias - wanted.bias) <= biases),
    )


def _changed(wanted: Fused, groups: int) -> Iterator[tuple[str, str, str, Fused]]:
    """Name, words, advice, and the numbers of a block with the bug."""
    for name, details in _CHANGES:
        bug = _LIBRARY[name]
        for detail, change in details.items():
            weight = change(wanted.weight)
            fits = weight.shape == wanted.weight.shape and (groups == 1 or "in-out" not in name)
            if fits and not np.array_equal(weight, wanted.weight):
                size = change(wanted.weight_size)
                says = bug.says.format(parameter=0.0, detail=detail)
                other = Fused(weight, wanted.bias, size, wanted.bias_size)
                yield name, says, bug.advice, other
    none = Fused(
        wanted.weight, np.zeros_like(wanted.bias), wanted.weight_size, np.zeros_like(wanted.bias)
    )
    yield "bias-missing", "the fused bias is left out: all of it is zero", "store the bias", none


def _rows(weight: Array, bias: Array) -> Array:
    return np.concatenate([weight.reshape(len(weight), -1), bias[:, None]], axis=1)
