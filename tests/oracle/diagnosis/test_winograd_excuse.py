"""Winograd arithmetic is excused; a bug that is as small as Winograd's error is not."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.bounds.comparison import compare
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import block_program
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.verification import judge
from tests.studies.oracle.matrix_study import Port

ARCH = plain_architecture(depths=[2, 3], channels=[16, 24, 32], num_classes=5)
LAYER = "stage2.1"


@pytest.fixture(scope="module")
def port() -> Port:
    model = distinguishing_model(ARCH)
    return Port(model, distinguishing_inputs(ARCH, height=48, width=40))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "algorithm", ["direct", "winograd2", "winograd4", "winograd6", "winograd7"]
)
def test_a_port_that_convolves_by_winograd_agrees(port: Port, algorithm: str) -> None:
    outputs = fuse(port.model).forward(port.x, layers=True, algorithm=algorithm)
    report = judge(port.model, Outputs(outputs), port.x)
    assert report.verdict == "agree", report.reason


def _beyond(port: Port, wrong: Array) -> float:
    program = block_program(port.model, port.model.arch.block(LAYER))
    x = port.inputs[LAYER]
    return compare(program, x, wrong.astype(float), PRECISIONS["fp32"]).report.ratio


@pytest.mark.few(1)
@pytest.mark.parametrize("times", [1.5, 3, 10, 30])
@pytest.mark.parametrize("kind", ["bias", "scale", "tap"])
def test_a_bug_some_times_the_direct_bound_is_no_winograd(
    port: Port, kind: str, times: float
) -> None:
    right = port.outputs[LAYER].astype(np.float64)
    channel = int(np.argmax((right > 0).sum(axis=(0, 2, 3))))
    on = right[:, channel] > 0
    x = port.inputs[LAYER]
    cause = {"bias": np.ones_like(right[:, 0]), "scale": right[:, channel], "tap": x[:, 3]}[kind]
    step = 1e-7 * np.abs(right).max() / np.abs(cause).max()
    wrong = right.copy()
    for _ in range(60):  # the smallest size that the direct bound does not allow
        wrong[:, channel] = np.where(on, right[:, channel] + step * cause, 0)
        if _beyond(port, wrong) > times:
            break
        step *= 1.2
    outputs = port.outputs | {LAYER: wrong.astype(np.float32)}
    for name in (
        "stage2.2",
        "linear",
    ):  # else the next layer takes a scaling back: an equal network
        program = port.programs[name]
        outputs[name] = layer_output(program, wrong.astype(np.float64)).astype(np.float32)
        wrong = outputs[name]
    report = judge(port.model, Outputs(outputs), port.x)
    assert report.verdict == "disagree"
    assert report.first_bad_layer == LAYER
    explained = {"bias": "bias-altered", "scale": "channel-scaled", "tap": "taps-altered"}
    assert report.diagnosis[0].bug in {"unknown", explained[kind]}
