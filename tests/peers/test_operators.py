"""Right operators agree, wrong ones are caught and named: a few of each here, all in the study.

The study is ``tests/studies/peers/operators_study.py``; its results lie beside it.
"""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytestmark = pytest.mark.peers

from repvgg_ref.oracle.operators.verification import verify_op  # noqa: E402 - needs torch
from tests.peers.right_operators import Right, right_operators  # noqa: E402
from tests.peers.wrong_convolutions import Wrong  # noqa: E402
from tests.peers.wrong_operators import wrong_operators  # noqa: E402
from tests.studies.peers.operators_study import RESULTS  # noqa: E402


@pytest.mark.few(8)
@pytest.mark.parametrize("port", list(right_operators()), ids=lambda p: f"{p.operator}, {p.name}")
def test_a_right_operator_is_not_accused(port: Right) -> None:
    report = verify_op(port.operator, port.port, precision=port.precision, seed=1000)
    assert report.verdict == "agree", report.reason


@pytest.mark.few(8)
@pytest.mark.parametrize("port", list(wrong_operators()), ids=lambda p: f"{p.operator}, {p.name}")
def test_a_wrong_operator_is_caught_and_called_by_its_name(port: Wrong) -> None:
    report = verify_op(port.operator, port.port)
    assert report.verdict == "disagree", report.reason
    names = {name for each in report.diagnosis for name in (each.bug, *each.equivalents)}
    assert not port.bugs or names & set(port.bugs), names


def test_torch_itself_can_be_given() -> None:
    import torch.nn.functional as F  # noqa: N812 - as everybody calls it

    report = verify_op("conv2d", F.conv2d, stride=1, padding=1, dilation=1, groups=1)
    assert report.verdict == "agree"
    assert report.notes[0] == "called with torch tensors"


def test_the_recorded_study_accused_nobody_and_missed_nothing() -> None:
    right = json.loads((RESULTS / "operators-right.json").read_text())
    assert right["false_alarms"] == []
    assert right["ports"] >= 40
    wrong = json.loads((RESULTS / "operators-wrong.json").read_text())
    assert wrong["missed"] == []
    assert wrong["ports"] >= 60
    assert len(wrong["named_otherwise"]) <= 0.05 * wrong["with_a_name"]
