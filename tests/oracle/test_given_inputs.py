"""Inputs given beside a candidate: of a wrong shape they are an error for every kind of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.candidates import Candidate, resolve
from repvgg_ref.oracle.golden.write import write_golden
from tests.cli.runner import invoke
from tests.models.small import SMALL
from tests.random_networks import random_model

PORT = """
import numpy, repvgg_ref
def run(x):
    return repvgg_ref.load({file!r}).forward(x)
if __name__ == "__main__":
    import sys
    numpy.save(sys.argv[2], run(numpy.load(sys.argv[1])))
"""


@dataclass(frozen=True)
class Case:
    model: Model
    x: Array
    train: Path
    candidates: dict[str, Any]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("inputs")
    model = random_model(SMALL["plain"], 1, np.float32)
    deploy = rr.fuse(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 20, 24)).astype(np.float32)
    layers: dict[str, Any] = deploy.forward(x, layers=True)
    rr.save(model, folder / "train.npz")
    rr.save(deploy, folder / "deploy.npz")
    np.savez(folder / "dump.npz", **layers)
    np.savez(folder / "own.npz", input=x, **layers)
    np.save(folder / "logits.npy", layers["linear"])
    (folder / "npy").mkdir()
    for name, y in layers.items():
        np.save(folder / "npy" / f"{name}.npy", y)
    (folder / "port.py").write_text(PORT.format(file=str(folder / "deploy.npz")))
    candidates: dict[str, Any] = {
        "weights": folder / "deploy.npz",
        "dump": folder / "dump.npz",
        "dump with its input": folder / "own.npz",
        "logits": folder / "logits.npy",
        "folder": folder / "npy",
        "module": f"{folder / 'port.py'}:run",
        "exec": f"exec:python {folder / 'port.py'} {{input}} {{output}}",
        "callable": deploy.forward,
        "mapping": layers,
        "array": layers["linear"],
        "model": deploy,
        "nothing of the kind": folder / "nowhere.npz",
    }
    try:
        rr.save(model, folder / "deploy.onnx")
        candidates["onnx"] = folder / "deploy.onnx"
    except ReportedError:
        pass  # without the extra
    return Case(model, x, folder / "train.npz", candidates)


KINDS = (
    *("weights", "dump", "dump with its input", "logits", "folder", "module", "exec", "callable"),
    *("mapping", "array", "model", "nothing of the kind", "onnx"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.transpose(0, 2, 3, 1), "look like NHWC"),
        (lambda x: x[0], "one image"),
        (lambda x: x[:, :2], r"got shape \(2, 2, 20, 24\)"),
        (lambda x: x[:0], r"got shape \(0, 3, 20, 24\) ; wanted at least one image"),
        (lambda x: x.tolist(), "not an array"),
        (lambda x: x.astype(str), "no real numbers"),
        (lambda x: x > 0, "no real numbers"),
    ],
)
def test_inputs_that_are_no_batch_are_refused(
    case: Case, kind: str, change: Callable[[Array], Any], said: str
) -> None:
    if kind not in case.candidates:
        pytest.skip("needs the extra 'onnx'")
    with pytest.raises(ReportedError, match=said):
        rr.verify(case.model, case.candidates[kind], inputs=change(case.x))


@pytest.mark.parametrize("kind", ["weights", "dump with its input", "logits", "folder"])
def test_the_command_refuses_them_with_exit_code_2(
    case: Case, kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = tmp_path / "x.npy"
    np.save(wrong, case.x.transpose(0, 2, 3, 1))
    arguments = ("--reference", case.train, "--candidate", case.candidates[kind])
    shown = invoke(capsys, "verify", *arguments, "--inputs", wrong)
    assert "look like NHWC" in shown.error_line()
    if kind != "logits":
        np.save(wrong, case.x)
        assert invoke(capsys, "verify", *arguments, "--inputs", wrong).code == 0


@pytest.mark.parametrize("kind", ["weights", "dump", "callable"])
def test_images_that_are_lost_cannot_be_judged(case: Case, kind: str) -> None:
    lost = np.where(case.x > 1, np.nan, case.x)
    report = rr.verify(case.model, case.candidates[kind], inputs=lost)
    assert (report.verdict, "NaN or infinity" in report.reason) == ("cannot-judge", True)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stage1.0.rbr_dense.conv.weight", np.nan, "holds NaN or infinity"),
        ("linear.bias", np.inf, "holds NaN or infinity"),
        ("stage1.0.rbr_1x1.bn.running_var", -1.0, "is negative"),
    ],
)
@pytest.mark.parametrize("kind", ["weights", "mapping"])
def test_a_reference_s_own_fault_is_no_candidate_s(
    case: Case, kind: str, key: str, value: float, said: str
) -> None:
    model = random_model(SMALL["plain"], 1, np.float32)
    model.state_dict()[key].flat[0] = value
    with pytest.raises(ReportedError, match=f"{key} of the reference {said}"):
        rr.verify(model, case.candidates[kind], inputs=case.x)


@pytest.mark.parametrize("kind", ["weights", "mapping"])
def test_sums_in_16_bits_can_be_asked_for(case: Case, kind: str) -> None:
    report = rr.verify(case.model, case.candidates[kind], inputs=case.x, precision="fp16-acc16")
    assert report.verdict == "agree"
    with pytest.raises(ReportedError, match="wanted auto, fp32"):
        rr.verify(case.model, case.candidates[kind], inputs=case.x, precision="fp15")


@pytest.mark.parametrize("kind", ["dump", "logits", "folder", "dump with its input"])
def test_another_batch_than_the_dumps_cannot_be_judged(case: Case, kind: str) -> None:
    report = rr.verify(case.model, case.candidates[kind], inputs=case.x[:1])
    assert report.verdict == "cannot-judge"
    assert "another" in report.reason


def test_a_dumps_own_input_is_the_one_it_is_judged_on_and_that_is_said(case: Case) -> None:
    own = case.candidates["dump with its input"]
    report = rr.verify(case.model, own, inputs=case.x + 1)
    assert report.verdict == "agree"
    assert any("own input, not the given one" in note for note in report.notes)
    report = rr.verify(case.model, own, inputs=case.x)
    assert not any("own input" in note for note in report.notes)
    report = rr.verify(case.model, own, inputs=case.x[:, :, :16])
    assert report.verdict == "cannot-judge"
    assert "got shape (2, 3, 20, 24) in the dump, (2, 3, 16, 24) given" in report.reason


def test_a_tensor_of_another_library_is_taken(case: Case) -> None:
    class Tensor:
        def __init__(self, array: Array) -> None:
            self.shape, self.dtype, self._array = array.shape, array.dtype, array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return self._array

    layers = {name: Tensor(y) for name, y in case.candidates["mapping"].items()}
    report = rr.verify(case.model, layers, inputs=Tensor(case.x))  # type: ignore[arg-type]
    assert report.verdict == "agree"
    port = resolve(Tensor(case.candidates["array"]), case.model.arch)  # type: ignore[arg-type]
    assert isinstance(port, Candidate)
    np.testing.assert_array_equal(port.run(case.x).layers["linear"], case.candidates["array"])


def test_a_golden_bundle_takes_no_inputs_beside_its_own(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_golden(case.model, tmp_path / "b", inputs=case.x)
    layers = case.candidates["mapping"]
    with pytest.raises(ReportedError, match="has its own inputs"):
        rr.verify(tmp_path / "b", layers, inputs=case.x)
    dumped = case.candidates["dump"]
    arguments = ("--reference", tmp_path / "b", "--candidate", dumped, "--inputs", dumped)
    assert "has its own inputs" in invoke(capsys, "verify", *arguments).error_line()
    assert rr.verify(tmp_path / "b", layers).verdict == "agree"
    other = case.x[:1] + 1  # a dump that brings another input is judged on that
    dump = {"input": other, **rr.fuse(case.model).forward(other, layers=True)}
    assert rr.verify(tmp_path / "b", dump).verdict == "agree"
