"""ONNX files of networks that are no chain: their wiring tells the layers, or their ReLUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.models.baselines import resnet
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers

ARCH = resnet("small", depths=(1, 1), bottleneck=False, num_classes=3)
MODEL = distinguishing_model(ARCH, seed=1)
X = np.random.default_rng(0).standard_normal((2, 3, 24, 32)).astype(np.float32)
RELUS = ["conv1", "layer1.0.conv1", "layer1.0.add", "layer2.0.conv1", "layer2.0.add"]


def written(folder: Path, model: Any = MODEL) -> Path:
    path = folder / "small.onnx"
    rr.save(model, path)
    return path


def edited(folder: Path, change: Callable[[Any], None]) -> Path:
    """The right file with its graph changed."""
    model = onnx.load(written(folder))
    change(model.graph)
    onnx.save(model, folder / "edited.onnx")
    return folder / "edited.onnx"


def nodes(graph: Any, kind: str) -> list[Any]:
    return [node for node in graph.node if node.op_type == kind]


def test_every_layer_and_kernel_is_found_by_the_wiring(tmp_path: Path) -> None:
    report = rr.verify(MODEL, written(tmp_path))
    assert report.verdict == "agree", report.reason
    assert [layer.name for layer in report.layers] == list(ARCH.layer_names)
    assert report.notes[-1] == "the file's weights were compared tap by tap in 7 of 10 layers"
    assert all(layer.detects for layer in report.layers if "conv" in layer.name)


def unwired(graph: Any) -> None:
    """Every convolution reads through an operator that changes nothing."""
    for at, conv in enumerate(nodes(graph, "Conv")):
        same = onnx.helper.make_node("Cast", [conv.input[0]], [f"same{at}"], to=1)
        graph.node.insert(list(graph.node).index(conv), same)
        conv.input[0] = f"same{at}"


def test_else_the_k_th_relu_is_the_k_th_layer_with_one(tmp_path: Path) -> None:
    report = rr.verify(MODEL, edited(tmp_path, unwired))
    assert report.verdict == "agree", report.reason
    assert [layer.name for layer in report.layers] == [*RELUS, "linear"]
    assert report.notes[0].startswith("its 5 ReLUs taken for the network's")


def times(factor: float) -> Callable[[Any], None]:
    """One middling weight of an inner layer times a factor."""

    def change(graph: Any) -> None:
        name = nodes(graph, "Conv")[1].input[1]
        tensor = next(each for each in graph.initializer if each.name == name)
        weight = onnx.numpy_helper.to_array(tensor).copy()
        weight.flat[np.argsort(np.abs(weight), axis=None)[weight.size // 2]] *= factor
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight, name))

    return change


@pytest.mark.few(1)
@pytest.mark.parametrize("factor", [1.1, 1 + 1e-5])
def test_one_tap_is_found_in_the_file(factor: float, tmp_path: Path) -> None:
    report = rr.verify(MODEL, edited(tmp_path, times(factor)), inputs=X)
    found = [(f.bug, f.layer) for f in report.diagnosis]
    assert (report.verdict, found) == ("disagree", [("taps-altered", "layer1.0.conv1")])


def relu_behind_the_pool(graph: Any) -> None:
    """Which is the same: the larger of two stays it."""
    relu, pool = nodes(graph, "Relu")[0], nodes(graph, "MaxPool")[0]
    bare, end = relu.input[0], pool.output[0]
    pool.input[0], pool.output[0], relu.input[0], relu.output[0] = bare, "pooled", "pooled", end
    order = list(graph.node)
    i, j = order.index(relu), order.index(pool)
    order[i], order[j] = order[j], order[i]
    del graph.node[:]
    graph.node.extend(order)


def test_a_relu_may_stand_behind_the_pool(tmp_path: Path) -> None:
    report = rr.verify(MODEL, edited(tmp_path, relu_behind_the_pool))
    assert report.verdict == "agree", report.reason


def replaced(kind: str, at: int, other: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        nodes(graph, kind)[at].op_type = other

    return change


def without_border(graph: Any) -> None:
    pads = next(each for each in nodes(graph, "MaxPool")[0].attribute if each.name == "pads")
    pads.ints[:] = [0, 0, 0, 0]


def with_relu(of: int) -> Callable[[Any], None]:
    """A ReLU before the last sum, of one of its terms."""

    def change(graph: Any) -> None:
        adding = nodes(graph, "Add")[-1]
        relu = onnx.helper.make_node("Relu", [adding.input[of]], ["early"])
        graph.node.insert(list(graph.node).index(adding), relu)
        adding.input[of] = "early"

    return change


WRONG = {
    "pool-average": ("maxpool", replaced("MaxPool", 0, "AveragePool")),
    "pool-placed": ("maxpool", without_border),
    "relu-missing": ("layer2.0.add", replaced("Relu", -1, "Identity")),
    "shortcut-weighted": ("layer1.0.add", replaced("Add", 0, "Sub")),
    "activation-added": ("layer2.0.conv2", with_relu(0)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("bug", WRONG)
def test_what_a_graph_does_otherwise_is_placed_and_named(bug: str, tmp_path: Path) -> None:
    layer, change = WRONG[bug]
    report = rr.verify(MODEL, edited(tmp_path, change), inputs=X)
    assert report.verdict == "disagree"
    assert [(f.bug, f.layer) for f in report.diagnosis] == [(bug, layer)]


def test_wrong_files_are_placed_and_named(tmp_path: Path) -> None:
    report = rr.verify(MODEL, written(tmp_path, replace(MODEL, eps=1e-3)), inputs=X)
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("eps-value", "all")]
    graph = onnx.load(written(tmp_path))
    adding = [node for node in graph.graph.node if node.op_type == "Add"][-1]
    adding.input[1] = adding.input[0]  # the sum of a branch and itself, without its shortcut
    onnx.save(graph, tmp_path / "wrong.onnx")
    report = rr.verify(MODEL, tmp_path / "wrong.onnx")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "layer2.0.add")


def test_fixed_extents_are_met(tmp_path: Path) -> None:
    graph = onnx.load(written(tmp_path))
    for dim, size in zip(
        graph.graph.input[0].type.tensor_type.shape.dim, (1, 3, 40, 56), strict=True
    ):
        dim.dim_value = size
    onnx.save(graph, tmp_path / "fixed.onnx")
    assert rr.verify(MODEL, tmp_path / "fixed.onnx").verdict == "agree"


def test_other_graphs_cannot_be_judged_and_say_why(tmp_path: Path) -> None:
    graph = onnx.load(edited(tmp_path, unwired))
    last = [node for node in graph.graph.node if node.op_type == "Relu"][-1]
    last.op_type = "Identity"
    onnx.save(graph, tmp_path / "fewer.onnx")
    report = rr.verify(MODEL, tmp_path / "fewer.onnx")
    assert report.verdict == "cannot-judge"
    assert "its layers are not told by its ReLUs" in report.reason
    assert "got 4 of them ; wanted 5" in report.reason
    (tmp_path / "broken.onnx").write_bytes((tmp_path / "fewer.onnx").read_bytes()[:300])
    assert rr.verify(MODEL, tmp_path / "broken.onnx").verdict == "cannot-judge"
    graph = onnx.load(written(tmp_path))
    graph.graph.node[0].input[1] = "nothing"
    onnx.save(graph, tmp_path / "refused.onnx")
    report = rr.verify(MODEL, tmp_path / "refused.onnx")
    assert "ONNX Runtime refuses the model" in report.reason


def test_given_images_are_run(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 3, 33, 47)).astype(np.float32)
    assert rr.verify(MODEL, written(tmp_path), inputs=x).verdict == "agree"
