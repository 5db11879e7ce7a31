"""ONNX files of networks that are no chain: their ReLUs tell the layers."""

from __future__ import annotations

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
RELUS = ["conv1", "layer1.0.conv1", "layer1.0.add", "layer2.0.conv1", "layer2.0.add"]


def written(folder: Path, model: Any = MODEL) -> Path:
    path = folder / "small.onnx"
    rr.save(model, path)
    return path


def test_the_k_th_relu_is_the_k_th_layer_with_one(tmp_path: Path) -> None:
    report = rr.verify(MODEL, written(tmp_path))
    assert report.verdict == "agree", report.reason
    assert [layer.name for layer in report.layers] == [*RELUS, "linear"]
    assert report.notes[0].startswith("its 5 ReLUs taken for the network's")


def test_wrong_files_are_placed_and_named(tmp_path: Path) -> None:
    report = rr.verify(MODEL, written(tmp_path, replace(MODEL, eps=1e-3)))
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
    graph = onnx.load(written(tmp_path))
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
