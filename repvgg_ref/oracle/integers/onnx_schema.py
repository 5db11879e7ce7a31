"""Whether a graph is ONNX at all: operators and attributes that its opset knows.

A runtime refuses a file that is not, so nothing that is said of its numbers could be true.
"""

from __future__ import annotations

from typing import Any

from repvgg_ref.files.onnx_graph.packages import require
from repvgg_ref.oracle.integers.onnx_settings import ONNX, called
from weights_io import sanitize


def unlike_schema(model: Any) -> str:
    """The first node that ONNX's own schemas do not allow, in words; "" if there is none.

    Operators of other domains are not looked at: their settings are read or refused one by one.
    """
    defs = require("onnx").defs
    opsets = [int(each.version) for each in model.opset_import if each.domain in ONNX]
    if len(opsets) != 1:
        return f"it names {len(opsets)} opsets of ONNX's own operators"
    opset, newest = opsets[0], int(defs.onnx_opset_version())
    if opset > newest:
        return f"its opset {opset} is newer than {newest}, which the installed onnx knows"
    for node in model.graph.node:
        if said := _unbound(node):
            return f"{called(node)}: {said}"
        if node.domain in ONNX and (said := _unlike(node, opset, defs)):
            return f"{called(node)}: {said}"
    return ""


def _unbound(node: Any) -> str:
    """Which attribute is to come from a function, of a node that stands in none."""
    for each in node.attribute:
        if each.ref_attr_name:
            return (
                f"its attribute {sanitize(each.name)} is that of a function around it "
                f"(ref_attr_name {sanitize(each.ref_attr_name)}), but there is none: write its "
                "value, or inline functions before they are taken apart "
                "(onnx.inliner.inline_local_functions)"
            )
    return ""


def _unlike(node: Any, opset: int, defs: Any) -> str:
    """What an operator's schema does not allow of a node."""
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return f"no operator of opset {opset}"
    stated = [each.name for each in node.attribute]
    for each in node.attribute:
        known = schema.attributes.get(each.name)
        if known is None:
            return f"opset {opset} knows no attribute {sanitize(each.name)} of it"
        if int(known.type.value) != int(each.type):
            return f"its attribute {sanitize(each.name)} is not of the type {known.type.name}"
        if stated.count(each.name) > 1:
            return f"it states the attribute {sanitize(each.name)} twice"
    lacking = [name for name, each in schema.attributes.items() if each.required]
    lacking = [name for name in sorted(lacking) if name not in stated]
    return f"it has no attribute {lacking[0]}" if lacking else ""
