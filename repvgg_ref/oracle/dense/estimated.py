"""Blocks of a dense network, held to the statistical tests that a chain's layers are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repvgg_ref.models.layers import Block
from repvgg_ref.oracle.bounds.comparison import Comparison
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.dense.port import DensePort, Judged
from repvgg_ref.oracle.diagnosis.explain import Case, is_estimable

_MOST_PRODUCTS = 8192  # that an output is the sum of: of more, estimates take minutes and gigabytes


def case_of(port: DensePort, outputs: Outputs, layers: Sequence[Judged], candidate: str) -> Case:
    """The blocks among judged `layers` that were computed of the candidate's own inputs alone."""
    comparisons = {}
    for each in layers:
        inputs, own = port.inputs(each.node), port.own(each.node.name)
        is_own = inputs is not None and all(known.slack is None for known in inputs)
        if isinstance(each.node.op, Block) and is_own and each.y is not None and own is not None:
            comparisons[each.node.name] = Comparison(each.report, each.y, own, each.bound)
    exact = {name: known.y for name, known in port.known.items() if known.slack is None}
    unestimated = frozenset(name for name in comparisons if not _is_estimated(port, name))
    return Case(
        port.programs,
        comparisons,
        port.x,
        replace(outputs, layers=exact),
        port.precision,
        candidate=candidate,
        unestimated=unestimated,
    )


def _is_estimated(port: DensePort, name: str) -> bool:
    program = port.programs[name]
    channels, *taps = program.fused_kernel().weight.shape[1:]
    few = channels * taps[0] * taps[1] <= _MOST_PRODUCTS
    return few and is_estimable(program, port.precision)
