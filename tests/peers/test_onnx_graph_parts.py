"""ONNX graphs of which some part gives trouble: names that are taken, parts at which we fail."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from repvgg_ref.files.convert_graph import convert_graph
from tests.peers.linear_graphs import Graph, X, run, saved

pytestmark = pytest.mark.peers


def fused(folder: Path, model: Any) -> tuple[Any, Any]:
    done = convert_graph(saved(folder / "in.onnx", model), folder / "out.onnx")
    return done, onnx.load(folder / "out.onnx")


@pytest.mark.parametrize("depth", [1, 2])
def test_new_names_are_nobodys_in_a_branch_either(depth: int, tmp_path: Path) -> None:
    """The names of what a part gets are already an initializer, a node and a tensor in there."""
    g = Graph()
    y = g.bn(g.conv(X, 4, 4), 4)
    names = f"{y}.weight", f"{y}.fused", f"{y}.bias"
    numbers = numpy_helper.from_array(np.ones(3, np.float32), names[0])
    nodes = [
        helper.make_node("ReduceSum", [names[0]], [names[2]], names[1], keepdims=0),
        helper.make_node("Add", [y, names[2]], ["inner"]),
    ]
    made = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n", 4, "h", "w"])
    body, true = helper.make_graph(nodes, "body", [], [made], [numbers]), g.constant(np.array(True))
    for level in range(1, depth):
        both = {"then_branch": body, "else_branch": body}
        outer = helper.make_node("If", [true], [f"inner{level}"], **both)
        made = helper.make_tensor_value_info(f"inner{level}", TensorProto.FLOAT, list("nchw"))
        body = helper.make_graph([outer], f"body{level}", [], [made])
    model = g.model(4, g.node("If", true, then_branch=body, else_branch=body))
    done, result = fused(tmp_path, model)
    assert done.convs_after == 1
    assert not {*names} & {result.graph.node[0].name, *result.graph.node[0].input}
    x = np.random.default_rng(3).normal(size=(1, 4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(run(result, x)[0], run(model, x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["plan.built", "joint.built", "rewrite.fuse_linear"])
def test_a_part_at_which_we_fail_is_left_and_the_others_are_fused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = Graph()
    first = g.conv_bn(X, 4, 4)
    both = g.conv(g.relu(first), 4, 8, 1)  # into its two readers, as one more part of `joint`
    second, third = g.conv_bn(both, 8, 6), g.conv_bn(both, 8, 6)
    model = g.model(4, g.add(g.relu(second), g.relu(third)))
    place, what = where.split(".")
    spoilt, other = (first, second) if place == "plan" else (second, first)
    module = importlib.import_module(f"repvgg_ref.files.onnx_graph.{place}")
    real = getattr(module, what)

    def failing(*given: Any, **how: Any) -> Any:
        if spoilt in given:
            raise ZeroDivisionError("Fraction(0, 0)")
        return real(*given, **how)

    monkeypatch.setattr(module, what, failing)
    done, result = fused(tmp_path, model)
    outputs = {each.output for each in done.merged}
    assert spoilt not in outputs or place == "joint"
    assert other in outputs
    if place != "joint":
        assert any("ZeroDivisionError: Fraction(0, 0)" in each.reason for each in done.left)
    x = np.random.default_rng(3).normal(size=(1, 4, 7, 6)).astype(np.float32)
    np.testing.assert_allclose(run(result, x)[0], run(model, x)[0], rtol=1e-3, atol=1e-4)
