"""A call's answers beside what they should be, and which bug would have given them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.comparison import diagnosis_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.diagnosis.evidence import Evidence, LayerEvidence
from repvgg_ref.oracle.diagnosis.ranking import Observation, Trial
from repvgg_ref.oracle.operators.bugs import CALL_BUGS
from repvgg_ref.oracle.operators.operator import Call, Expected
from repvgg_ref.oracle.operators.rounding import Approx
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import Program, layer_output
from repvgg_ref.oracle.report import Finding

_FAR = 1e300  # the bound of numbers that are no outputs


def channel_axis(name: str, array: Array) -> int:
    """Where an output's channels are: y and grad_x have images first, everything else not."""
    return 1 if name in ("y", "grad_x") and array.ndim > 1 else 0


class CallEvidence(Evidence):
    """All outputs of one call as one observation: a cluster for every channel of every output."""

    def __init__(
        self,
        call: Call,
        given: Mapping[str, Array],
        certified: Expected,
        likely: Expected,
        precision: Precision,
    ) -> None:
        self.names = [n for n in given if given[n].shape == certified[n].value.shape]
        self.shapes = {n: given[n].shape for n in self.names}
        right = {n: certified[n].value for n in self.names}
        seen = Observation(
            self._packed(right),
            self._packed(given),
            self._packed({n: _widened(certified[n], precision) for n in self.names}, _FAR),
            self._packed({n: _widened(likely[n], precision) for n in self.names}, _FAR),
        )
        super().__init__(Site(call, np.zeros(0)), seen, precision.number_format)

    def predict(self, program: Any) -> Array | None:
        """The call's outputs, packed; None if one has another shape."""
        try:
            outputs = program.outputs()
        except (ShapeError, ValueError):
            return None
        if any(n not in outputs or outputs[n].shape != self.shapes[n] for n in self.names):
            return None
        packed = self._packed(outputs)
        return packed if np.isfinite(packed).all() else None

    def trials(self, site: Site[Any] | None = None) -> Iterator[Trial]:
        """Every bug of calls."""
        for each in CALL_BUGS:
            yield from self._trials_of(each, site or self.site)

    def _packed(self, outputs: Mapping[str, Array], fill: float = 0.0) -> Array:
        """(1, channels of all outputs, the most numbers of one), `fill` where there are none."""
        rows = []
        for name in self.names:
            axis = channel_axis(name, outputs[name])
            rows.append(np.moveaxis(outputs[name], axis, 0).reshape(self.shapes[name][axis], -1))
        most = max((row.shape[1] for row in rows), default=1)
        packed = np.full((sum(map(len, rows)) or 1, most), fill)
        start = 0
        for row in rows:
            packed[start : start + len(row), : row.shape[1]] = row
            start += len(row)
        return packed[None]


def _widened(right: Approx, precision: Precision) -> Array:
    """A bound for other outputs than the right one: where that is certainly 0 a bug may be on."""
    floor = precision.u_store * float(np.abs(right.value).max(initial=0)) + precision.tiny
    return np.maximum(right.error, floor)


def layer_site(call: Call, program: Program, y_hat: Array) -> Site[Any]:
    """Where the library of blocks and heads is tried."""
    x = np.asarray(call.arrays["x"], np.float64)
    if x.ndim == 2:  # a linear layer behind a pool over one pixel
        x = x[:, :, None, None]
    return Site(program, x, y_hat)


def layer_evidence(
    call: Call, program: Program, y_hat: Array, bound: Bound, precision: Precision
) -> LayerEvidence:
    """A forward pass as the diagnosis of networks wants it; `bound` is that of the right output."""
    site = layer_site(call, program, y_hat)
    y = layer_output(program, site.x)
    if isinstance(program, BlockProgram) and program.activation != "none":
        bound = diagnosis_bound(program, site.x, y, precision)
    return LayerEvidence(site, y, y_hat, bound, precision.number_format)


def shape_findings(call: Call, given: Mapping[str, Array]) -> list[Finding]:
    """Bugs of calls that give outputs of just these shapes and values."""
    found = []
    for mutant in planted(CALL_BUGS, Site(call, np.zeros(0))):
        try:
            outputs = mutant.variant.program.outputs()
        except (ShapeError, ValueError):
            continue
        if set(outputs) <= set(given) and all(
            outputs[n].shape == given[n].shape
            and np.allclose(outputs[n], given[n], rtol=1e-3, atol=1e-3 * np.abs(outputs[n]).max())
            for n in outputs
        ):
            bug = mutant.bug
            found.append(Finding(bug.name, None, None, 1.0, 1.0, mutant.says, bug.advice))
    return found
