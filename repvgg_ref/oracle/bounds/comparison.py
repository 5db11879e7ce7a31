"""One layer of a candidate beside the reference: the local check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import Bound, block_output, layer_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import Program, layer_output, plain
from repvgg_ref.oracle.report import LayerReport


@dataclass(frozen=True)
class Comparison:
    """Reference and candidate output of one layer for the candidate's own input.

    `report.ok` says whether every element is within its certified bound. `bound` is None where
    the outputs cannot be compared (another shape).
    """

    report: LayerReport
    y: Array
    y_hat: Array
    bound: Bound | None

    @property
    def is_blind(self) -> bool:
        """Whether the bound is so wide, at most outputs, that it excludes nothing."""
        if self.bound is None or not self.report.ok:
            return False
        return bool(np.mean(self.bound.certified > np.abs(self.y).max()) > 0.5)


def compare(
    program: Program,
    x: Array,
    y_hat: Array,
    precision: Precision,
    inherited: float | None = None,
) -> Comparison:
    """Check one layer; `x` and `y_hat` are the candidate's input and output of it."""
    if isinstance(program, BlockProgram) and y_hat.shape[2:] == program.output_size(*x.shape[2:]):
        y, bound = block_output(program, x, precision)
    else:
        y = layer_output(plain(program), x)
        if y_hat.shape == y.shape:
            bound = layer_bound(program, x, y, precision)
    if y_hat.shape != y.shape:
        return _incomparable(program.name, y, y_hat, inherited)
    return Comparison(_judged(program.name, y, y_hat, bound, inherited, precision), y, y_hat, bound)


def _judged(
    name: str, y: Array, y_hat: Array, bound: Bound, inherited: float | None, precision: Precision
) -> LayerReport:
    """Every element is held against its bound; the worst is shown.

    Where ReLU is certainly off the bound is next to nothing and any error infinite times it. To
    choose and show the worst element, bounds count as at least one rounding of the largest output.
    """
    error = np.abs(y_hat - y)
    floor = precision.u_store * float(np.abs(y).max()) + precision.tiny
    shown = np.maximum(bound.certified, floor)
    ratio = error / shown
    at = np.unravel_index(np.argmax(ratio), ratio.shape)  # argmax stops at a NaN
    bad = int((~np.isfinite(y_hat)).sum())
    return LayerReport(
        name=name,
        max_error=float(error[at]),
        bound=float(shown[at]),
        ratio=float(ratio[at]),
        ok=bool((error <= bound.certified).all()),
        likely_ratio=float((error / np.maximum(bound.likely, floor)).max()),
        inherited=inherited,
        note=f"{bad} outputs are NaN or infinite" if bad else "",
    )


def _incomparable(name: str, y: Array, y_hat: Array, inherited: float | None) -> Comparison:
    return Comparison(misshapen(name, y_hat.shape, y.shape, inherited), y, y_hat, None)


def misshapen(
    name: str, got: Sequence[int], wanted: Sequence[int], inherited: float | None = None
) -> LayerReport:
    """The report of a layer whose output has another shape."""
    sizes = ["x".join(map(str, shape)) for shape in (got, wanted)]
    return LayerReport.incomparable(name, "shape {} instead of {}".format(*sizes), inherited)


def held(name: str, y: Array, own: Array, bound: Array) -> LayerReport:
    """The report of an output `own` that may be off by `bound`, which is nowhere 0, from `y`."""
    error = np.abs(own - y)
    ratio = error / bound
    at = np.unravel_index(np.argmax(ratio), ratio.shape)  # argmax stops at a NaN
    ok = bool((error <= bound).all())
    return LayerReport(name, float(error[at]), float(bound[at]), float(ratio[at]), ok=ok)


def diagnosis_bound(program: Program, x: Array, y: Array, precision: Precision) -> Bound:
    """A layer's bound for comparing *other* programs: as if ReLU were never certainly off.

    Where it is off the right output is exactly 0 and its bound next to nothing, but a bug may turn
    it on, and what it gives then is rounded. The bound before the activations is added (a gate
    multiplies by at most 1).
    """
    after = layer_bound(program, x, y, precision)
    if not isinstance(program, BlockProgram):
        return after
    before = layer_bound(replace(program, activation="none", se=None), x, y, precision)
    return Bound(after.certified + before.certified, after.likely + before.likely)


def relative_difference(x_hat: Array, x: Array | None) -> float | None:
    """Largest difference, relative to the largest value; None where it cannot be said."""
    if x is None or x.shape != x_hat.shape:
        return None
    size = float(np.abs(x).max())
    return float(np.abs(x_hat - x).max()) / size if size > 0 else None
