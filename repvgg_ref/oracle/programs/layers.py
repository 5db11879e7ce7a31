"""One layer of a candidate beside the reference: the local check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import block_branches
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.block import Bound, block_bound, head_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.programs.evaluate import evaluate
from repvgg_ref.oracle.programs.head import HeadProgram, evaluate_head
from repvgg_ref.oracle.programs.program import BlockProgram, correct_program, output_size
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
        return bool(np.median(self.bound.certified) > np.abs(self.y).max())


def block_program(model: Model, spec: BlockSpec) -> BlockProgram:
    """How the reference computes the block `spec`, in float64."""
    branches = block_branches(spec, model.params) if model.form == "train" else {}
    return correct_program(spec, model.params, model.eps, branches)


def head_program(model: Model) -> HeadProgram:
    """How the reference computes its logits, in float64."""
    return HeadProgram(
        np.asarray(model.params["linear.weight"], np.float64),
        np.asarray(model.params["linear.bias"], np.float64),
    )


def block_output(program: BlockProgram, x: Array) -> Array:
    """The whole output (N, O, Ho, Wo), one image at a time to bound the memory."""
    size = output_size(program, *x.shape[2:])
    images = [evaluate(program, x[i : i + 1]) for i in range(len(x))]
    return np.concatenate(images).reshape(len(x), -1, *size)


def compare_block(
    program: BlockProgram, x: Array, y_hat: Array, precision: Precision, inherited: float | None
) -> Comparison:
    """Check one block; `x` and `y_hat` are the candidate's input and output of it."""
    y = block_output(program, x)
    name = program.spec.name
    if y_hat.shape != y.shape:
        return _incomparable(name, y, y_hat, inherited)
    bound = block_bound(program, x, y, precision)
    return Comparison(_judged(name, y, y_hat, bound, inherited, precision), y, y_hat, bound)


def compare_head(
    head: HeadProgram, x: Array, y_hat: Array, precision: Precision, inherited: float | None
) -> Comparison:
    """Check the pool and the linear layer; `x` is the candidate's last block output."""
    y = evaluate_head(head, x)
    if y_hat.shape != y.shape:
        return _incomparable("linear", y, y_hat, inherited)
    bound = head_bound(head.weight, head.bias, x, y, precision)
    return Comparison(_judged("linear", y, y_hat, bound, inherited, precision), y, y_hat, bound)


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


def diagnosis_bound(program: BlockProgram, x: Array, y: Array, precision: Precision) -> Bound:
    """A block's bound for comparing *other* programs: as if ReLU were never certainly off.

    Where it is off the right output is exactly 0 and its bound next to nothing, but a bug may turn
    it on, and what it gives then is rounded. The bound before the activations is added (a gate
    multiplies by at most 1).
    """
    after = block_bound(program, x, y, precision)
    before = block_bound(replace(program, activation="none", se=None), x, y, precision)
    return Bound(after.certified + before.certified, after.likely + before.likely)


def _incomparable(name: str, y: Array, y_hat: Array, inherited: float | None) -> Comparison:
    note = f"shape {_plain(y_hat.shape)} instead of {_plain(y.shape)}"
    nan = float("nan")
    report = LayerReport(name, nan, 0.0, nan, ok=False, inherited=inherited, note=note)
    return Comparison(report, y, y_hat, None)


def _plain(shape: tuple[Any, ...]) -> str:
    return "x".join(str(int(extent)) for extent in shape)


def relative_difference(x_hat: Array, x: Array | None) -> float | None:
    """Largest difference, relative to the largest value; None where it cannot be said."""
    if x is None or x.shape != x_hat.shape:
        return None
    size = float(np.abs(x).max())
    return float(np.abs(x_hat - x).max()) / size if size > 0 else None


class Programs(Mapping[str, BlockProgram]):
    """Every block's correct program by layer name, built when asked for: float64 is large."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._last: BlockProgram | None = None

    def __getitem__(self, name: str) -> BlockProgram:
        last = self._last  # threads may race for the slot; each returns what it looked up
        if last is None or last.spec.name != name:
            last = self._last = block_program(self._model, self._model.arch.block(name))
        return last

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self._model.arch.blocks)

    def __len__(self) -> int:
        return len(self._model.arch.blocks)

    def alike(self, name: str) -> Iterator[str]:
        """Other blocks of the same shape, which a port could take for this one."""
        mine = self._model.arch.block(name)
        for spec in self._model.arch.blocks:
            if spec.name != name and replace(spec, name=name) == mine:
                yield spec.name
