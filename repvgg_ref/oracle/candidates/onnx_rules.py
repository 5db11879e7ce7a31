"""All rules by which ONNX operators are read, ONNX Runtime's own among them.

A rule takes the node, its operands (readings, constants, or None where nothing is known) and the
reader, and returns what the node makes of them; None where it does not understand the case.
"""

from __future__ import annotations

from repvgg_ref.files.onnx_graph.constants import Constants
from repvgg_ref.oracle.candidates.onnx_reading import Reader, Reading, Rule
from repvgg_ref.oracle.candidates.onnx_rules_layout import LAYOUT
from repvgg_ref.oracle.candidates.onnx_rules_linear import LINEAR

_RULES: dict[str, Rule] = {**LAYOUT, **LINEAR}


def reader(constants: Constants, start: dict[str, Reading]) -> Reader:
    """A reader that knows all rules and the tensors of `start`."""
    return Reader(constants, _RULES, start)
