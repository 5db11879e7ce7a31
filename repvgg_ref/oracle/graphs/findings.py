"""Why a node of a network that is no chain is wrong: its own bugs, and those hidden before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import Block
from repvgg_ref.oracle.bugs import NODE_BUGS, Bug, Site
from repvgg_ref.oracle.diagnosis.diagnose import diagnose_shape, energy_left
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.graphs.hidden import Seen, seen_through
from repvgg_ref.oracle.graphs.inside import inside_trials, together_trials
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.report import Finding

_ADVICE = next(bug.advice for bug in NODE_BUGS if bug.name == "another-output")
_LEFT = 1e-4  # of a wrong shape's energy, by the bug that explains it


class NodeEvidence(LayerEvidence):
    """A node's output at sampled pixels; bugs before it that the candidate hides are tried too."""

    def __init__(self, port: GraphPort, name: str) -> None:
        self.port, self.node, shown = port, port.nodes[name], port.comparisons[name]
        excused = port.precision.number_format
        super().__init__(port.site(self.node), shown.y, shown.y_hat, port.bound(name), excused)

    def trials_of(self, bugs: Iterable[Bug[Any]], site: Site[Any]) -> Iterator[Trial]:
        """None at a hidden node's: two bugs at once are looked for in one node alone."""
        if site is self.site or getattr(site.program, "name", None) == self.node.name:
            yield from super().trials_of(bugs, site)

    def trials(self, site: Site[Any] | None = None) -> Iterator[Trial]:
        """Every bug of the node, and every one of the nodes that lie hidden before it."""
        yield from super().trials(site)
        if site is not None:
            return
        for mutant, y in rewired(self.port, self.node):
            if y.shape == (*self.seen.y.shape[:2], *self.size) and np.isfinite(y).all():
                found = self.seen.compare(mutant, self.at_pixels(y))
                if found is not None:
                    yield found
        yield from inside_trials(self.port, self.node, self)

    def hidden_trials(self, bug: str) -> Iterator[Trial]:
        """The bug in all blocks hidden before the node that can have it."""
        yield from together_trials(self.port, self.node, self, bug)


def rewired(port: GraphPort, node: Node) -> Iterator[Seen]:
    """Bugs of the nodes hidden before `node`, or of its output as a whole: what it then gives."""
    if isinstance(node.op, Block):
        yield from seen_through(port, [node], node)
    hidden = [each for each in port.hidden_before(node) if not isinstance(each.op, Block)]
    yield from seen_through(port, hidden, node)


def of_shape(port: GraphPort, name: str) -> list[Finding]:
    """Explain an output of another size."""
    node, y_hat = port.nodes[name], port.comparisons[name].y_hat
    found = diagnose_shape(port.site(node), y_hat)
    for mutant, y in rewired(port, node):
        if y.shape == y_hat.shape and (left := energy_left(y, y_hat)) < _LEFT:
            bug, says = mutant.bug, mutant.says
            estimate = mutant.variant.parameter
            found.append(Finding(bug.name, mutant.layer, estimate, 1.0, 1 - left, says, bug.advice))
    return sorted(found, key=lambda finding: -finding.explains)[:3]


def other_output(port: GraphPort) -> tuple[Finding, ...]:
    """What logits are that cannot be compared, if not the network's: "unknown" if nobody knows."""
    name = port.model.arch.head.name
    y_hat, main = port.own(name), port.main_logits()
    if y_hat is None or y_hat.shape != main.shape:
        return ()
    left = energy_left(main, y_hat)
    nothing = min(_LEFT**2, _LEFT * left)
    found = tuple(
        Finding("another-output", name, None, 1.0, 1.0, f"this is {what}", _ADVICE)
        for what, y in port.with_auxiliary(name, partial(np.asarray, main)).items()
        if energy_left(y, y_hat) < nothing
    )
    if found or left < _LEFT:
        return found
    says = "the logits are not the network's; in them, or in what could not be compared before them"
    return (Finding("unknown", name, None, 0.0, 0.0, says, "compare what leads to the logits"),)
