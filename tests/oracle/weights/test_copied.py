"""Arrays that fusion leaves alone: what is wrong with them is said, by name where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from tests.models.small import SMALL

Params = dict[str, Array]
_WEIGHT, _BIAS = "linear.weight", "linear.bias"


def judged(model: Model, change: Callable[[Params], None], folder: Path) -> Any:
    port = rr.fuse(model)
    change(port.params)
    rr.save(port, folder / "port.npz")
    return rr.verify(model, folder / "port.npz")


def _in_order(*order: int) -> Callable[[Params], None]:
    def change(params: Params) -> None:
        for name in (_WEIGHT, _BIAS):
            params[name] = params[name][list(order)]

    return change


def _times(name: str, factor: float) -> Callable[[Params], None]:
    def change(params: Params) -> None:
        params[name] = np.float32(factor) * params[name]

    return change


def _in_8_bits(params: Params) -> None:
    step = np.abs(params[_WEIGHT]).max() / 127
    params[_WEIGHT] = np.rint(params[_WEIGHT] / step) * step


def _reread(params: Params) -> None:
    params[_WEIGHT] = params[_WEIGHT].T.reshape(params[_WEIGHT].shape).copy()


def _one_number(params: Params) -> None:
    params[_WEIGHT][1, 2] += 0.5


def _rows_without_their_biases(params: Params) -> None:
    params[_WEIGHT] = params[_WEIGHT][::-1].copy()


@pytest.mark.parametrize(
    ("change", "bug", "says"),
    [
        (_times(_BIAS, 0), "head-bias", "left out"),
        (_times(_BIAS, 2), "head-bias", "added twice"),
        (_times(_BIAS, -1), "head-bias", "subtracted"),
        (_reread, "head-weight-layout", "wrong order"),
        (_in_8_bits, "weights-int8", "one scale a tensor"),
        (_in_order(1, 0, 2), "head-classes-permuted", "1 at the place of 0, 0 at the place of 1"),
        (_in_order(1, 2, 0), "head-classes-permuted", "1 at the place of 0, 2 at the place of 1"),
        (_times(_WEIGHT, 1.001), "unknown", "linear.weight is 1.001 times the reference's"),
        (_one_number, "unknown", "1 of 24 numbers of linear.weight differ, the first at [1, 2]"),
        (_rows_without_their_biases, "unknown", "16 of 24 numbers of linear.weight differ"),
    ],
)
def test_a_wrong_head_is_described(
    change: Callable[[Params], None], bug: str, says: str, tmp_path: Path
) -> None:
    report = judged(distinguishing_model(SMALL["plain"]), change, tmp_path)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    (found,) = report.diagnosis
    assert (found.bug, found.layer) == (bug, "linear")
    assert says in found.says


def test_a_wrong_gate_is_described_beside_a_wrong_kernel(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["se-before-relu"])

    def change(params: Params) -> None:
        params["stage0.se.up.bias"] = 0 * params["stage0.se.up.bias"]
        params["stage1.0.fused.bias"] = params["stage1.0.fused.bias"] + 1

    report = judged(model, change, tmp_path)
    assert report.first_bad_layer == "stage0"
    said = {finding.layer: finding.says for finding in report.diagnosis}
    assert said["stage0"] == "stage0.se.up.bias is 0"
    assert "stage1.0" in said


def test_a_wrong_array_of_an_unfused_file_is_described(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"])
    port = distinguishing_model(SMALL["plain"])
    name = "stage1.0.branch_3x3.bn.running_var"
    port.params[name][0] *= 2
    rr.save(port, tmp_path / "port.npz")
    report = rr.verify(model, tmp_path / "port.npz")
    (found,) = report.diagnosis
    assert (found.bug, found.layer) == ("unknown", "stage1.0")
    assert found.says.startswith(f"1 of {port.params[name].size} numbers of {name} differ")


def test_classes_that_a_port_exchanges_are_told() -> None:
    model = distinguishing_model(SMALL["plain"])

    def port(x: Array) -> dict[str, Array]:
        outputs = rr.fuse(model).forward(x, layers=True)
        return {**outputs, "linear": outputs["linear"][:, [2, 1, 0]]}

    report = rr.verify(model, port)
    assert report.first_bad_layer == "linear"
    assert report.diagnosis[0].bug == "head-classes-permuted"
