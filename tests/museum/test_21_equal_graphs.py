"""21. Equal, and accused.

The ports: all right. ONNX Runtime wrote its optimised model down, in its own blocked layout
(microsoft/onnxruntime issues 11005, 11746, 20218). The classifier is a 1x1 convolution in front of
the pool, which is the same linear map (frgfm/torch-cam issue 71). The graph normalises its images
itself, so that users feed numbers from 0 to 1 (open-mmlab/mmdetection issue 5958).

Why no test saw it: these are the oracle's own errors, by which it called right ports wrong. A judge
that accuses the innocent is switched off.

The oracle: agrees, or says why it cannot judge; never "disagree".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.museum.reports import images, judged, port, rename

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers


def test_an_optimised_graph_is_not_accused(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    onnx.save(port(), tmp_path / "port.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    cpu = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(str(tmp_path / "port.onnx"), options, providers=cpu)
    report = judged(onnx.load(tmp_path / "optimised.onnx"), tmp_path)
    assert report.verdict != "disagree", report.reason


def test_a_classifier_in_front_of_the_pool_is_not_accused(tmp_path: Path) -> None:
    from onnx import helper, numpy_helper

    proto = port()
    weight = next(w for w in proto.graph.initializer if w.name == "linear.weight")
    weight.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weight)[:, :, None, None], weight.name)
    )
    pool, *_ = (n for n in proto.graph.node if n.op_type == "GlobalAveragePool")
    kept = [
        n for n in proto.graph.node if n.op_type not in ("GlobalAveragePool", "Flatten", "Gemm")
    ]
    last = pool.input[0]
    del proto.graph.node[:]
    proto.graph.node.extend(
        [
            *kept,
            helper.make_node("Conv", [last, "linear.weight", "linear.bias"], ["map"]),
            helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["logits"]),
        ]
    )
    report = judged(proto, tmp_path)
    assert report.verdict != "disagree", report.reason


def test_a_graph_that_normalises_its_images_is_not_accused(tmp_path: Path) -> None:
    from onnx import helper, numpy_helper

    proto = port()
    rename(proto, "input", "normalised")
    constants = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    for name, values in constants.items():
        array = np.array(values, np.float32).reshape(1, 3, 1, 1)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    nodes = [
        helper.make_node("Sub", ["input", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
        *proto.graph.node,
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    report = judged(proto, tmp_path)
    told = "normalis" in report.reason or "changes its input" in report.reason
    assert report.verdict != "disagree" or told, report.reason
    assert images().shape[1] == 3
