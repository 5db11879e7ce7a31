"""The symmetry of weight files of networks that are no chain.

Between a block and the only one that it feeds, orders and scales of channels are solved for as in a
chain. What several layers write or read together, the stream beside residual blocks say, is only
looked at: where all of them may hold it in another order or scale, nothing is said to be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.graph import Network, Node
from repvgg_ref.models.layers import Block, Linear
from repvgg_ref.models.names import official_names
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.symmetry.kernels import SCALINGS, Realigned, realign_inside, rows_of
from repvgg_ref.oracle.symmetry.match import Change, matched
from repvgg_ref.oracle.weights.arithmetic import FORMAT_NAMES, UNITS
from repvgg_ref.oracle.weights.conversion import ROUNDINGS
from weights_io import LazyArray

_GONE = 0.5  # of what was unexplained may be left in a reader that takes a change back
_ROOM = 4 * (ROUNDINGS + SCALINGS)  # roundings of a row's largest number, for all that is in it
_UNSURE = {"unknown", "channel-scaled", "taps-altered"}  # what an order or a scale looks like
_FORMATS = {dtype: short for short, dtype in FORMAT_NAMES.items()}

Again = Callable[[Mapping[str, LazyArray], Mapping[str, int]], Report]


def reconsidered(
    report: Report,
    model: Model,
    called: Mapping[str, str],
    theirs: Mapping[str, LazyArray],
    again: Again,
) -> Report:
    """`report`, which disagrees, unless the network is equal, or may be, though its layers differ.

    Parameters
    ----------
    model : Model
        The reference, train form.
    called : mapping
        Block -> what the report calls it.
    theirs : mapping
        The candidate's arrays, kernels of four axes, by their official names.
    again : callable
        The report with some arrays changed, and with so many roundings in some blocks.
    """
    return _Case(report, model, called, theirs).judged(again)


class _Case:
    """A report that disagrees, and the arrays that it is of."""

    def __init__(
        self,
        report: Report,
        model: Model,
        called: Mapping[str, str],
        theirs: Mapping[str, LazyArray],
    ) -> None:
        self.report, self.model, self.called = report, model, called
        self.programs, self.arch = Programs(model), model.arch
        self.keys = official_names(model.arch, "deploy")
        self.theirs = theirs
        self.nodes = {node.name: node for node in self.arch.evaluated}

    def judged(self, again: Again) -> Report:
        """What is said once all that can be solved for is."""
        bad = self._bad(self.report)
        open_ones = {name for name in bad if not self._is_named(self.called.get(name, name))}
        rows = [row for row in _rows(self.arch) if {*row} & open_ones and self._is_there(row)]
        if rows:
            self._solve(rows, bad, again)
        if self.report.verdict == "disagree" and (why := self._may_be_equal()):
            # a verdict on what is not known to be wrong names no layer
            return replace(
                self.report, verdict="cannot-judge", reason=why, first_bad_layer=None, diagnosis=()
            )
        return self.report

    def _is_named(self, layer: str) -> bool:
        """Whether something else than an order or a scale of channels is known of a layer."""
        return any(f.bug not in _UNSURE and f.is_in(layer) for f in self.report.diagnosis)

    def _bad(self, report: Report) -> set[str]:
        """The nodes of which something differs."""
        wrong = [row.name for row in report.layers if not row.ok]
        blocks = {name for name, said in self.called.items() if said in wrong}
        return blocks | {ours.rpartition(".")[0] for ours, key in self.keys.items() if key in wrong}

    def _solve(self, rows: list[list[str]], bad: set[str], again: Again) -> None:
        keys = [self._keys(name) for row in rows for name in row]
        held = {ours: self.theirs[key] for pair in keys for ours, key in pair.items()}
        unit = max(self._unit(array) for array in held.values())
        params = {ours: array.read() for ours, array in held.items()}
        same = realign_inside(self.programs, params, unit, bad, rows, self.called)
        if not same.equivalences:
            self.report = _with(self.report, same)
            return
        changed = {
            self.keys[ours]: _holding(held[ours], array)
            for ours, array in same.params.items()
            if array is not params[ours]
        }
        most = {self.called[name]: ROUNDINGS + SCALINGS for name in same.rescaled}
        found = again(changed, most)
        if same.is_chance(len(self._bad(found)), len(bad)):
            return
        self.theirs = {**self.theirs, **changed}
        self.report = replace(_with(found, same), equivalences=same.equivalences)

    def _keys(self, name: str) -> dict[str, str]:
        names = (f"{name}.fused.{part}" for part in ("weight", "bias"))
        return {ours: self.keys[ours] for ours in names}

    def _is_there(self, row: list[str]) -> bool:
        """Whether the candidate's kernels are such as can be matched."""
        return all(self._numbers(name) is not None for name in row)

    def _numbers(self, name: str) -> FusedConv | None:
        """A block's kernel and bias as the candidate has them, if they are of its shape."""
        spec, (weight, bias) = self.nodes[name].op, self._keys(name).values()
        assert isinstance(spec, Block)
        shapes = spec.shapes("deploy")
        for key, part in ((weight, "weight"), (bias, "bias")):
            array = self.theirs.get(key)
            if array is None or array.shape != shapes[f"fused.{part}"]:
                return None
            if array.dtype not in _FORMATS:
                return None
        found = FusedConv(self.theirs[weight].read(), self.theirs[bias].read())
        return found if all(np.isfinite(part).all() for part in found) else None

    def _unit(self, array: LazyArray) -> float:
        return max(UNITS[_FORMATS[array.dtype]], UNITS["fp32"])

    # ------------------------------------------------------------- what several layers share

    def _may_be_equal(self) -> str:
        """Why the first bad layer may be right; "" if it is wrong."""
        bad, first = self._bad(self.report), self.report.first_bad_layer
        name = next((n for n, said in self.called.items() if said == first and n in bad), None)
        if name is None or not isinstance(self.nodes[name].op, Block):
            return ""
        if self._is_named(str(first)):
            return ""
        got = self._numbers(name)
        if got is None or (change := self._of_rows(name, got)) is None:
            return ""
        writers, readers = _around(self.arch, name)
        if not {*writers, *readers} <= bad or not all(
            self._takes_back(each, change) for each in readers
        ):
            return ""
        how = "in another order" if len(change.moved) else "scaled by positive factors"
        shown = ", ".join(self.called.get(each, each) for each in (*writers, *readers)[:6])
        return (
            f"{first} holds the reference's channels {how}, and so may all layers that share them"
            f" ({shown}): such a network may be equal. This is solved for only where one layer"
            " feeds one other: give the port itself, or its logits"
        )

    def _of_rows(self, name: str, got: FusedConv) -> Change | None:
        """How the output channels differ, if that is all that differs."""
        ours, theirs = rows_of(self.programs[name].fused_kernel()), rows_of(got)
        unit = max(self._unit(self.theirs[key]) for key in self._keys(name).values())
        change, _ = matched(ours, theirs, ROUNDINGS * unit)
        expected = ours[change.order]
        power = (expected**2).sum(axis=1)
        factor = (expected * theirs).sum(axis=1) / np.where(power > 0, power, 1.0)
        rest = np.abs(theirs - factor[:, None] * expected).max(axis=1)
        room = _ROOM * unit * np.abs(theirs).max(axis=1)
        if not ((rest <= room) & ((factor > 0) | (power == 0))).all():
            return None
        return Change(change.order, np.where(factor > 0, factor, 1.0))

    def _takes_back(self, reader: str, change: Change) -> bool:
        """Whether a layer is nearer to the reference's with a change of its inputs undone."""
        weights = self._weights(reader)
        if weights is None or weights[0].shape[1] != len(change.order):
            return True  # nothing that shows it: its groups, or what is concatenated before it
        ours, theirs = weights
        undone, room = change.undone(theirs, 1, 1), _ROOM * UNITS["fp32"]

        def left(array: Array) -> float:
            return float(matched(_flat(ours), _flat(array), room)[1].mean())

        return left(undone) < _GONE * left(theirs)

    def _weights(self, name: str) -> tuple[Array, Array] | None:
        """A layer's weights, ours and theirs; None if they cannot be compared."""
        if isinstance(self.nodes[name].op, Block):
            got = self._numbers(name)
            return None if got is None else (self.programs[name].fused_kernel().weight, got.weight)
        ours = self.model.params.get(f"{name}.weight")
        array = self.theirs.get(self.keys.get(f"{name}.weight", ""))
        if ours is None or array is None or array.shape[:2] != ours.shape[:2]:
            return None
        return np.asarray(ours, np.float64), array.read().reshape(ours.shape)


def _flat(weight: Array) -> Array:
    return np.asarray(weight, np.float64).reshape(len(weight), -1)


def _with(report: Report, same: Realigned) -> Report:
    """What was found on the way, said first, and of its layers no longer that nothing is known."""
    where = {finding.layer for finding in same.findings}
    rest = (f for f in report.diagnosis if f.bug != "unknown" or f.layer not in where)
    return replace(
        report,
        diagnosis=(*same.findings, *rest),
        notes=(*report.notes, *same.notes),
    )


def _holding(array: LazyArray, values: Array) -> LazyArray:
    """Other values, as coarse as the file's."""
    return LazyArray(array.shape, array.dtype, lambda: values, array.module)


def _rows(arch: Network) -> Iterator[list[str]]:
    """Blocks of which each feeds the next one and nothing else."""
    readers = _readers(arch)
    taken: set[str] = set()
    for node in arch.evaluated:
        row: list[str] = []
        at: Node | None = node
        while at is not None and _is_plain(at) and at.name not in taken:
            row.append(at.name)
            after = readers.get(at.name, [])
            at = after[0] if len(after) == 1 and not at.loss_weight else None
        taken.update(row)
        if len(row) > 1:
            yield row


def _is_plain(node: Node) -> bool:
    return isinstance(node.op, Block) and node.op.spec.se == "none"


def _readers(arch: Network) -> dict[str, list[Node]]:
    """Node -> those that it feeds."""
    found: dict[str, list[Node]] = {}
    for node in arch.evaluated:
        for source in node.inputs:
            found.setdefault(source, []).append(node)
    return found


def _around(arch: Network, name: str) -> tuple[list[str], list[str]]:
    """The layers whose outputs a block's are added to or joined with, and those that read them."""
    nodes, readers = {node.name: node for node in arch.evaluated}, _readers(arch)
    writers, reading, seen, ahead = dict[str, None](), dict[str, None](), set[str](), [name]
    while ahead:
        at = ahead.pop()
        if at in seen or at not in nodes:
            continue
        seen.add(at)
        if isinstance(nodes[at].op, Block | Linear):
            writers[at] = None
        else:
            ahead += nodes[at].inputs
        for after in readers.get(at, []):
            if isinstance(after.op, Block | Linear):
                reading[after.name] = None
            else:
                ahead.append(after.name)
    return list(writers), list(reading)
