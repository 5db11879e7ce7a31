"""Arrays that fusion leaves alone: the head's, squeeze-and-excitation's, a whole unfused file's.

They are right if they are copies, so what is wrong with them can be read off: a bug of the library
that changes arrays alone, another order of the classes, one factor, or numbers that are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import Site, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.head import listed_order
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.report import Finding, LayerReport
from repvgg_ref.oracle.weights.held import is_copy

_ONE_FACTOR = 1e-6  # relatively: what rounding twice may change


class Copied(NamedTuple):
    """One array of the reference and what the file holds in its place."""

    name: str
    want: Array
    got: Array
    right: bool


def copied(
    theirs: Mapping[str, Array],
    wants: Mapping[str, Array],
    formats: Iterable[str],
    room: float = 0.0,
) -> list[Copied]:
    """Every array of `wants` beside the file's, which may be off by `room` relatively."""
    formats, found = set(formats), []
    for name, want in wants.items():
        got = np.asarray(theirs[name], np.float64)
        near = bool((np.abs(got - want) <= room * np.abs(want)).all())
        found.append(Copied(name, want, got, near or is_copy(got, want, formats)))
    return found


def copies_report(layer: str, arrays: Sequence[Copied]) -> LayerReport:
    """The layer's line: bad if any array is no copy."""
    worst = max((float(np.abs(a.got - a.want).max(initial=0)) for a in arrays), default=0.0)
    wrong = [array.name for array in arrays if not array.right]
    if not wrong:
        return LayerReport(layer, worst, 0.0, 0.0, ok=True)
    note = f"{wrong[0]} is not the reference's"
    return LayerReport(layer, worst, 0.0, float("inf"), ok=False, note=note)


def copies_finding(layer: str, arrays: Sequence[Copied]) -> Finding:
    """What is wrong, in words: how many numbers of each array differ, and where the first is."""
    says = "; ".join(_described(array) for array in arrays if not array.right)
    advice = "copy these arrays as they are; a damaged or edited file, or another checkpoint's"
    return Finding("unknown", layer, None, 0.0, 0.0, says, advice)


def head_finding(site: Site[HeadProgram], arrays: Sequence[Copied]) -> Finding:
    """What is wrong with the linear layer's matrix and bias: by name, if the library has one."""
    layer = site.program.name
    weight, bias = (next(a for a in arrays if a.name.endswith(end)) for end in (".weight", ".bias"))
    for mutant in planted(bugs_for(site.program), site, layer):
        wrong = mutant.variant.program
        if wrong.input_map or wrong.output_map or wrong.pool != site.program.pool:
            continue  # no array shows it
        if _near(weight.got, wrong.weight) and _near(bias.got, wrong.bias):
            bug = mutant.bug
            return Finding(bug.name, layer, 1.0, 1.0, 1.0, mutant.says, bug.advice)
    if (order := _other_order(weight, bias)) is not None:
        return Finding(
            "head-classes-permuted",
            layer,
            1.0,
            1.0,
            1.0,
            f"the classes come in another order ({order})",
            "check the class list (1001 classes with background?)",
        )
    return copies_finding(layer, arrays)


def _near(got: Array, wrong: Array) -> bool:
    """Whether an array is what a bug makes of it, computed in float32."""
    return bool((np.abs(got - wrong) <= _ONE_FACTOR * np.abs(wrong).max(initial=0)).all())


def _other_order(weight: Copied, bias: Copied) -> str | None:
    """Which classes stand at whose place, if the rows are the reference's in another order."""
    want, got = (
        [(*row.tolist(), float(b)) for row, b in zip(matrix, vector, strict=True)]
        for matrix, vector in ((weight.want, bias.want), (weight.got, bias.got))
    )
    place = {row: number for number, row in enumerate(want)}
    if len(place) < len(want) or set(got) != set(want):
        return None
    return listed_order([place[row] for row in got])


def _described(array: Copied) -> str:
    """`NAME: 3 of 144 numbers differ, the first at [0, 1], by at most 0.1`, or its factor."""
    name, want, got, _ = array
    if not np.isfinite(got).all():
        return f"{name} holds NaN or infinity"
    if not got.any():
        return f"{name} is 0"
    size = float((want**2).sum())
    factor = float((want * got).sum()) / size if size else 0.0
    if (np.abs(got - factor * want) <= _ONE_FACTOR * np.abs(got)).all():
        return f"{name} is {factor:.7g} times the reference's"
    off = got != want
    first = ", ".join(map(str, np.argwhere(off)[0]))
    most = float(np.abs(got - want).max())
    return (
        f"{int(off.sum())} of {off.size} numbers of {name} differ, the first at [{first}], by"
        f" at most {most:.3g}"
    )
