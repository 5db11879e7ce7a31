"""Why a layer of a network that is no chain is wrong: its own bugs, and those hidden before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import Block
from repvgg_ref.oracle.bugs import NODE_BUGS, Site
from repvgg_ref.oracle.dense.hidden import Seen, seen_through
from repvgg_ref.oracle.dense.port import DensePort, Judged
from repvgg_ref.oracle.diagnosis.diagnose import diagnose, diagnose_shape, energy_left
from repvgg_ref.oracle.diagnosis.everywhere import Layers, merged
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.diagnosis.explain import Case
from repvgg_ref.oracle.diagnosis.incomparable import not_finite, wrong_shape
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.diagnosis.small import explain_unknown
from repvgg_ref.oracle.report import Finding

_MOST_DIAGNOSED = 6
_ADVICE = next(bug.advice for bug in NODE_BUGS if bug.name == "another-output")
_LEFT = 1e-4  # of a wrong shape's energy, by the bug that explains it


class NodeEvidence(LayerEvidence):
    """A node's output at sampled pixels; bugs before it that the candidate hides are tried too."""

    def __init__(self, port: DensePort, judged: Judged) -> None:
        node, y_hat = judged.node, port.own(judged.node.name)
        assert y_hat is not None
        assert judged.y is not None
        self.port, self.node = port, node
        bound, excused = port.diagnosable(judged), port.precision.number_format
        super().__init__(port.site(node, y_hat), judged.y, y_hat, bound, excused)

    def trials(self, site: Site[Any] | None = None) -> Iterator[Trial]:
        """Every bug of the node, and every one of the nodes that lie hidden before it."""
        yield from super().trials(site)
        if site is not None:
            return
        rows, columns = self.pixels
        for mutant, y in rewired(self.port, self.node):
            if y.shape == (*self.seen.y.shape[:2], *self.size) and np.isfinite(y).all():
                found = self.seen.compare(mutant, y[:, :, rows, columns])
                if found is not None:
                    yield found


def dense_findings(
    port: DensePort, bad: Sequence[Judged], layers: Sequence[Judged], case: Case
) -> tuple[Finding, ...]:
    """Findings of the `bad` ones of all judged `layers`, one cause in all blocks once.

    What only follows from another's size is not explained.
    """
    caused = [each for each in bad if port.inputs(each.node) is not None] or bad
    chosen = caused  # the first, and the last: another stage's may have a cause of its own
    if len(caused) > _MOST_DIAGNOSED:
        chosen = [*caused[: _MOST_DIAGNOSED - 1], caused[-1]]
    found = {
        each.node.name: _findings(port, each, case, thoroughly=each is caused[0]) for each in chosen
    }
    judged = {each.node.name: each for each in layers}

    @cache
    def evidence(name: str) -> NodeEvidence | None:
        return None if judged[name].y is None else NodeEvidence(port, judged[name])

    wrong = [each.node.name for each in bad]
    return tuple(merged(found, Layers(list(judged), wrong, evidence)))


def other_output(port: DensePort) -> tuple[Finding, ...]:
    """What the logits are, if they are another output of the network, whatever came before them."""
    head = port.model.arch.head
    y_hat = port.own(head.name)
    if y_hat is None:
        return ()
    return tuple(
        Finding("another-output", head.name, None, 1.0, 1.0, f"this is {what}", _ADVICE)
        for what, y in port.without_main().items()
        if y.shape == y_hat.shape and energy_left(y, y_hat) < _LEFT**2
    )


def rewired(port: DensePort, node: Node) -> Iterator[Seen]:
    """Bugs of the nodes hidden before `node`, or of its output as a whole: what it then gives."""
    if isinstance(node.op, Block):
        yield from seen_through(port, [node], node)
    yield from seen_through(port, list(port.hidden_before(node)), node)


def _findings(port: DensePort, bad: Judged, case: Case, *, thoroughly: bool) -> list[Finding]:
    name, y_hat = bad.node.name, port.own(bad.node.name)
    assert y_hat is not None
    lost = ~np.isfinite(y_hat)
    if lost.any():
        return [not_finite(name, float(lost.mean()), overflow=False)]
    if port.inputs(bad.node) is None:
        return [wrong_shape(name, bad.report.note)]
    if bad.y is None:
        return _of_shape(port, bad.node, y_hat) or [wrong_shape(name, bad.report.note)]
    found = diagnose(NodeEvidence(port, bad), thoroughly=thoroughly)
    if found[0].bug != "unknown" or name not in case.estimates.samples:
        return found
    return explain_unknown(found[0], *case.shown(name))


def _of_shape(port: DensePort, node: Node, y_hat: Array) -> list[Finding]:
    """Explain an output of another size."""
    found = diagnose_shape(port.site(node, y_hat), y_hat)
    for mutant, y in rewired(port, node):
        if y.shape == y_hat.shape and (left := energy_left(y, y_hat)) < _LEFT:
            bug, says = mutant.bug, mutant.says
            estimate = mutant.variant.parameter
            found.append(Finding(bug.name, mutant.layer, estimate, 1.0, 1 - left, says, bug.advice))
    return sorted(found, key=lambda finding: -finding.explains)[:3]
