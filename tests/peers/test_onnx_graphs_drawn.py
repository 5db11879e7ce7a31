"""Graphs drawn at random: whatever is merged, outputs stay, and nothing costs more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import numpy_helper

from repvgg_ref.files.convert_graph import convert_graph
from tests.peers.linear_graphs import Graph, X, run, saved

pytestmark = pytest.mark.peers
C = 4
SIZE = (11, 12)


class Drawn:
    """A graph in which every node reads tensors that are there; `live` are those of one size."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 5])
        self.g = Graph(seed=seed)
        self.live = [X]
        for _ in range(int(self.rng.integers(4, 16))):
            self.live.append(self.step())

    def pick(self) -> str:
        """Recent tensors more often."""
        back = min(int(self.rng.geometric(0.45)), len(self.live))
        return self.live[-back]

    def step(self) -> str:
        """One more tensor of C channels and the images' size."""
        g, rng, x = self.g, self.rng, self.pick()
        yes = bool(rng.integers(2))
        match int(rng.integers(16)):
            case 0 | 1:
                return g.conv(x, C, C, int(rng.choice([1, 3])), bias=yes)
            case 2 | 3:
                return g.conv(x, C, C, 1)
            case 4:
                return g.conv(x, C, C, 3, group=int(rng.choice([2, 4])), dilations=[1, 2])
            case 5 | 6:
                return g.bn(x, C)
            case 7 | 8 | 9:
                return str(g.node(str(rng.choice(["Add", "Sub", "Sum"])), x, self.pick()))
            case 10:
                return str(g.node(str(rng.choice(["Mul", "Div"])), x, g.drawn(C, 1, 1)))
            case 11:
                kind: Any = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": int(yes)}
                return str(g.node("AveragePool", x, **kind))
            case 12:
                halves = g.node("Split", x, g.constant(np.array([1, 3])), outputs=2, axis=1)
                return str(g.node("Concat", *halves[:: 1 if yes else -1], axis=1))
            case 13:
                y = g.node("Pad", x, g.constant(np.array([0, 0, 1, 0, 0, 0, 1, 2])))
                return g.conv(str(y), C, C, (3, 3), pads=[0] * 4)
            case 14:
                first, last = (g.constant(np.array(n)) for n in ([1, 0], [2**31, -2]))
                y = g.node("Slice", x, first, last, g.constant(np.array([2, 3])))
                return g.conv(str(y), C, C, (2, 1), pads=[1, 1, 1, 1])
            case _:
                return g.relu(x)

    def model(self) -> Any:
        """Its last tensors, and perhaps one in between, are the outputs."""
        ends = {self.live[-1], self.live[-2], self.pick()} - {X}
        fixed = bool(self.rng.integers(2))
        return self.g.model(C, *sorted(ends), size=SIZE if fixed else None)


def macs(model: Any) -> int:
    """Multiply-accumulates: of an image where its size is fixed, else a pixel."""
    kernels = {t.name: numpy_helper.to_array(t).size for t in model.graph.initializer}
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {each.name: each.type.tensor_type.shape.dim for each in graph.value_info}
    shapes |= {each.name: each.type.tensor_type.shape.dim for each in graph.output}
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            each = kernels[node.input[1]]
        elif node.op_type in ("BatchNormalization", "Mul", "Div", "AveragePool"):
            each = C
        else:
            continue
        rows, columns = (d.dim_value or 1 for d in shapes[node.output[0]][2:])
        total += each * rows * columns
    return total


@pytest.mark.few(25)
@pytest.mark.parametrize("seed", range(400))
def test_outputs_stay_and_nothing_costs_more(seed: int, tmp_path: Path) -> None:
    model = Drawn(seed).model()
    try:
        path = saved(tmp_path / "in.onnx", model)
        x = np.random.default_rng(seed).normal(size=(2, C, *SIZE)).astype(np.float32)
        want = run(model, x)
    except Exception:
        pytest.skip("the graph itself is none: sums of two sizes")
    done = convert_graph(path, tmp_path / "out.onnx")
    result = onnx.load(tmp_path / "out.onnx")
    assert done.convs_after <= done.convs_before
    assert macs(result) <= macs(model)
    assert done.runtime_check is None or done.runtime_check.ok
    assert not [each for each in done.left if "bug in repvgg-ref" in each.reason]
    for mine, theirs in zip(run(result, x), want, strict=True):
        finite = np.isfinite(theirs)
        assert (np.isfinite(mine) == finite).all()
        scale = np.abs(theirs[finite]).max(initial=1e-30)
        assert np.abs(mine - theirs)[finite].max(initial=0) <= 3e-5 * scale
    again = convert_graph(tmp_path / "out.onnx", tmp_path / "again.onnx")
    assert again.convs_after == done.convs_after  # nothing more to be had
