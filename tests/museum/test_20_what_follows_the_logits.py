"""20. What follows the logits.

The ports: exported graphs whose network is right, with an operator more behind it: a sign, classes
in another order, a ReLU, a clip, rounding, five classes cut out, a softmax over the batch. And one
whose first output, the one that users read, is negated, while a second one is right.
(RangiLyu/nanodet issue 478: the export path appended an activation; NVIDIA/TensorRT issue 3850:
several outputs compared.)

Why no test saw it: whoever compares layer by layer stops at the layer that was asked for, the
classifier, and that is right.

The oracle: never agrees. Softmax over classes and arg max are customary there, and agree with a
note.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.museum.reports import follow, judged, port

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers

TAILS: dict[str, tuple[Any, ...]] = {
    "Neg": (),
    "Relu": (),
    "Round": (),
    "Clip": (np.float32(-1), np.float32(1)),
    "Gather": (np.roll(np.arange(10), 1),),
    "Slice": (np.array([0]), np.array([5]), np.array([1])),
}


@pytest.mark.parametrize("operator", TAILS)
def test_a_graph_that_changes_its_logits_does_not_agree(operator: str, tmp_path: Path) -> None:
    axis = {"axis": 1} if operator == "Gather" else {}
    report = judged(follow(port(), operator, *TAILS[operator], **axis), tmp_path)
    assert report.verdict != "agree", report.reason


def test_a_softmax_over_the_batch_does_not_agree(tmp_path: Path) -> None:
    assert judged(follow(port(), "Softmax", axis=0), tmp_path).verdict != "agree"


def test_a_softmax_over_classes_agrees(tmp_path: Path) -> None:
    report = judged(follow(port(), "Softmax", axis=1), tmp_path)
    assert report.verdict == "agree", report.reason


def test_a_wrong_output_beside_a_right_one_is_not_passed_over(tmp_path: Path) -> None:
    from onnx import helper

    proto = follow(port(), "Neg")
    second = helper.make_tensor_value_info("before", 1, None)
    proto.graph.output.append(second)
    report = judged(proto, tmp_path)
    assert report.verdict != "agree" or "before" in " ".join((report.reason, *report.notes))
