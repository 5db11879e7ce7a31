"""ONNX test_data_set folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, numpy_helper

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.candidates import CandidateFailure, Outputs, WeightsCandidate, resolve
from tests.oracle.candidates.ports import architecture, assert_same, images, right_outputs

pytestmark = pytest.mark.peers


def write(folder: Path, outputs: dict[str, Array], x: Array | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if x is not None:
        tensor = numpy_helper.from_array(x, "pixels")
        (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    for i, (name, array) in enumerate(outputs.items()):
        tensor = numpy_helper.from_array(array, name)
        (folder / f"output_{i}.pb").write_bytes(tensor.SerializeToString())
    return folder


def run(path: Path) -> Outputs:
    candidate = resolve(path, architecture())
    assert not isinstance(candidate, WeightsCandidate)
    return candidate.run(None)


@pytest.mark.parametrize("named", [True, False])
def test_outputs_are_matched_by_name_or_by_position(tmp_path: Path, named: bool) -> None:
    outputs = {n if named else f"{i + 90}x": a for i, (n, a) in enumerate(right_outputs().items())}
    found = run(write(tmp_path / "test_data_set_0", outputs, images()))
    assert_same(found.layers, right_outputs())
    assert found.x is not None
    assert np.array_equal(found.x, images())


def test_a_single_output_is_the_logits(tmp_path: Path) -> None:
    logits = right_outputs()["linear"]
    found = run(write(tmp_path, {"": logits}, images()))
    assert_same(found.layers, {"linear": logits})


def test_the_first_data_set_of_a_model_zoo_folder_is_taken(tmp_path: Path) -> None:
    for i in (10, 2):
        outputs = {name: array + i for name, array in right_outputs().items()}
        write(tmp_path / f"test_data_set_{i}", outputs, images())
    (tmp_path / "model.onnx").write_bytes(b"")
    found = run(tmp_path)
    assert np.array_equal(found.layers["linear"], right_outputs()["linear"] + 2)
    assert any("test_data_set_2, of 2" in note for note in found.notes)


def test_bfloat16_is_widened_and_declared(tmp_path: Path) -> None:
    import ml_dtypes

    logits = right_outputs()["linear"].astype(ml_dtypes.bfloat16)
    found = run(write(tmp_path, {"linear": logits}, images()))
    assert found.precision == "bf16"
    assert found.layers["linear"].dtype == np.float32


def _text() -> bytes:
    tensor = TensorProto(name="stage0", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    return bytes(tensor.SerializeToString())


def _external() -> bytes:
    tensor = TensorProto(data_type=1, dims=[2, 7], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return bytes(tensor.SerializeToString())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xff\xff", "no readable TensorProto"),
        (b"", "no readable TensorProto|no array"),
        (TensorProto(data_type=1, dims=[9, 9], raw_data=bytes(8)).SerializeToString(), "readable"),
        (TensorProto(data_type=99, dims=[2], raw_data=bytes(8)).SerializeToString(), "readable"),
        (_text(), "no array of real numbers"),
        (_external(), "another file"),
    ],
)
def test_a_damaged_tensor_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    write(tmp_path, right_outputs(), images())
    (tmp_path / "output_0.pb").write_bytes(content)
    with pytest.raises(CandidateFailure, match=says):
        run(tmp_path)


def change(folder: Path, what: str) -> None:
    if what == "no outputs":
        for path in folder.glob("output_*"):
            path.unlink()
    elif what == "two inputs":
        (folder / "input_1.pb").write_bytes((folder / "input_0.pb").read_bytes())
    elif what == "two outputs":
        for i in range(2, 7):
            (folder / f"output_{i}.pb").unlink()
        tensor: Any = numpy_helper.from_array(right_outputs()["linear"], "surprise")
        (folder / "output_0.pb").write_bytes(tensor.SerializeToString())


@pytest.mark.parametrize(
    ("what", "says"),
    [("no outputs", "0 outputs"), ("two inputs", "2 inputs"), ("two outputs", "surprise")],
)
def test_what_is_no_data_set_of_this_network_is_refused(
    tmp_path: Path, what: str, says: str
) -> None:
    write(tmp_path, right_outputs(), images())
    change(tmp_path, what)
    with pytest.raises(CandidateFailure, match=says):
        run(tmp_path)
