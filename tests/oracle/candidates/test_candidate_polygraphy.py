from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.oracle.candidates import CandidateFailure, Outputs, WeightsCandidate, resolve
from repvgg_ref.oracle.candidates.polygraphy import read_inputs
from tests.oracle.candidates.ports import (
    architecture,
    assert_same,
    channels_last,
    images,
    right_outputs,
)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def encoded(array: Any) -> dict[str, Any]:
    """What Polygraphy 0.53 writes for a NumPy array."""
    text = base64.b64encode(npy(array)).decode()
    values = {"array": text, "polygraphy_class": "ndarray"}
    return {"values": values, "polygraphy_class": "LazyArray"}


def results(*runs: tuple[str, list[dict[str, Any]]]) -> dict[str, Any]:
    lst = [
        [
            runner,
            [
                {"outputs": o, "runtime": 0.1, "runner_name": runner, "polygraphy_class": "X"}
                for o in iterations
            ],
        ]
        for runner, iterations in runs
    ]
    return {"lst": lst, "polygraphy_class": "RunResults"}


def run(path: Path | str, x: Any = None) -> Outputs:
    found = resolve(path, architecture())
    assert not isinstance(found, WeightsCandidate)
    return found.run(x)


def written(folder: Path, root: Any) -> Path:
    path = folder / "outputs.json"
    path.write_text(json.dumps(root))
    return path


def all_encoded(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: encoded(array) for name, array in outputs.items()}


def test_outputs_named_after_layers_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, results(("onnxrt-runner", [all_encoded(right_outputs())])))
    outputs = run(path, images())
    assert_same(outputs.layers, right_outputs())
    assert outputs.notes == ("runner onnxrt-runner",)


def test_nhwc_outputs_are_recognised(tmp_path: Path) -> None:
    path = written(tmp_path, results(("trt", [all_encoded(channels_last(right_outputs()))])))
    assert_same(run(path).layers, right_outputs())


def test_all_marked_tensors_of_a_torch_export_are_sorted_out(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"input": images()}
    for layer, array in right_outputs().items():
        stage = layer.partition(".")[0]
        path = f"/{layer}" if layer == stage else f"/{stage}/{layer}"
        if array.ndim == 4:
            tensors[f"{path}/rbr_reparam/Conv_output_0"] = array - 1
            tensors[f"{path}/nonlinearity/Relu_output_0"] = array
        else:
            tensors["output"] = array
    outputs = run(written(tmp_path, results(("trt", [all_encoded(tensors)]))))
    assert_same(outputs.layers, right_outputs())
    assert outputs.x is not None
    assert any("6 tensors" in note for note in outputs.notes)


@pytest.mark.parametrize("pattern", ["{}", "relu_{}"])
def test_tensors_without_telling_names_are_matched_by_their_order(
    tmp_path: Path, pattern: str
) -> None:
    tensors: dict[str, Any] = {}
    for i, array in enumerate(right_outputs().values()):
        if "relu" in pattern and array.ndim == 4:
            tensors[f"conv_{i}"] = array - 1
        tensors[pattern.format(100 + i)] = array
    outputs = run(written(tmp_path, results(("trt", [all_encoded(tensors)]))))
    assert_same(outputs.layers, right_outputs())
    assert any("order" in note for note in outputs.notes)


def test_a_single_output_is_the_logits(tmp_path: Path) -> None:
    logits = right_outputs()["linear"]
    outputs = run(written(tmp_path, results(("trt", [{"1234": encoded(logits)}]))))
    assert_same(outputs.layers, {"linear": logits})


def test_the_first_runner_and_iteration_are_taken_and_others_can_be_named(tmp_path: Path) -> None:
    right = all_encoded(right_outputs())
    wrong = all_encoded({name: array + 1 for name, array in right_outputs().items()})
    path = written(tmp_path, results(("trt", [wrong, right]), ("onnxrt", [right])))
    assert run(path).layers["stage0"][0, 0, 0, 0] == right_outputs()["stage0"][0, 0, 0, 0] + 1
    assert any("onnxrt" in note for note in run(path).notes)
    assert_same(run(f"{path}#onnxrt").layers, right_outputs())
    with pytest.raises(CandidateFailure, match="no such runner"):
        run(f"{path}#openvino")


def test_old_versions_wrote_arrays_without_wrapping(tmp_path: Path) -> None:
    marker = {"__polygraphy_encoded_ndarray": "constructor"}
    old = {
        n: {"array": base64.b64encode(npy(a)).decode()} | marker for n, a in right_outputs().items()
    }
    assert_same(run(written(tmp_path, results(("trt", [old])))).layers, right_outputs())
    older = {n: {"array": npy(a).decode("latin-1")} | marker for n, a in right_outputs().items()}
    assert_same(run(written(tmp_path, results(("trt", [older])))).layers, right_outputs())


def test_torch_tensors_are_read_without_torch_and_pickles_never_run(tmp_path: Path) -> None:
    stream = tmp_path / "a.pth"
    weights_io.save_weights(stream, {"t": right_outputs()["linear"]}, container="torch-zip")
    tensor = {"tensor": base64.b64encode(stream.read_bytes()).decode()}
    path = written(tmp_path, results(("trt", [{"linear": {"values": tensor}}])))
    assert list(run(path).layers) == ["linear"]
    hostile = base64.b64encode(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.").decode()
    path = written(tmp_path, results(("trt", [{"linear": {"values": {"tensor": hostile}}}])))
    with pytest.raises(CandidateFailure, match="no readable array"):
        run(path)


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ({}, "no outputs of Polygraphy"),
        ([], "no outputs of Polygraphy"),
        ({"lst": []}, "no outputs of Polygraphy"),
        ({"lst": [1]}, "no outputs of Polygraphy"),
        ({"lst": [["trt", []]]}, "left no outputs"),
        (results(("trt", [{}])), "left no outputs"),
        (results(("trt", [{"linear": 3}])), "no array"),
        (results(("trt", [{"linear": {"array": "AAAA"}}])), "no readable array"),
        (results(("trt", [{"linear": {"array": ""}}])), "no readable array"),
        (
            results(("trt", [{"a": encoded(np.zeros((2, 5))), "b": encoded(np.zeros((2, 5)))}])),
            "mean no layer",
        ),
    ],
)
def test_what_polygraphy_does_not_write_is_refused(tmp_path: Path, root: Any, says: str) -> None:
    with pytest.raises(CandidateFailure, match=says):
        run(written(tmp_path, root))


def test_a_truncated_json_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, results(("trt", [all_encoded(right_outputs())])))
    path.write_text(path.read_text()[:2000])
    with pytest.raises(CandidateFailure, match="no JSON"):
        run(path)


# ------------------------------------------------------------------------- saved inputs


def _bare(array: Any) -> dict[str, str]:
    return {"array": base64.b64encode(npy(array)).decode()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: [{"input": _bare(x)}],
        lambda x: [{"images": encoded(x)}, {"images": encoded(x + 1)}],
        lambda x: [{"x": _bare(x), "polygraphy_serialized_json_type": "dict"}],
        lambda x: {"whatever": _bare(x)},
        lambda x: {"lst": [{"x": _bare(x)}], "polygraphy_class": "FeedDicts"},
        lambda x: [{"dct": {"x": _bare(x)}, "polygraphy_class": "OrderedDict"}],
        lambda x: [{"input": _bare(x), "threshold": _bare(np.ones(1, np.float32))}],
        lambda x: [{"a": _bare(x), "b": _bare(np.ones((2, 7), np.float32))}],
        lambda x: results(("trt", [{"input": encoded(x), "logits": encoded(x[:, :, 0, 0])}])),
    ],
)
def test_saved_inputs_are_read_in_every_layout(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "inputs.json"
    path.write_text(json.dumps(wrap(images())))
    assert np.array_equal(read_inputs(path, 3), images())


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ([], "no inputs of Polygraphy"),
        ({}, "no inputs of Polygraphy"),
        ([{"x": 3}], "no array in Polygraphy's form"),
        ([{"a": _bare(np.ones((1, 3, 4, 4))), "b": _bare(np.ones((1, 3, 4, 4)))}], "which tensor"),
        ([3], "no inputs of Polygraphy"),
        ({"lst": [["runner"]]}, "no outputs of Polygraphy"),
    ],
)
def test_inputs_that_cannot_be_told_are_refused(tmp_path: Path, root: Any, says: str) -> None:
    path = tmp_path / "inputs.json"
    path.write_text(json.dumps(root))
    with pytest.raises(CandidateFailure, match=says):
        read_inputs(path, 3)


@pytest.mark.parametrize(
    ("root", "says"),
    [
        (lambda x: [{"x": _bare(x)}], []),
        (lambda x: {"x": _bare(x)}, []),
        (lambda x: [{"x": _bare(x + i)} for i in range(3)], ["i.json: the first of 3 iterations"]),
        (
            lambda x: results(("trt", [{"input": encoded(x)}, {"input": encoded(x + 1)}])),
            ["i.json: the first of 2 iterations"],
        ),
    ],
)
def test_of_several_iterations_the_first_is_taken_and_that_is_said(
    tmp_path: Path, root: Any, says: list[str]
) -> None:
    path, notes = tmp_path / "i.json", list[str]()
    path.write_text(json.dumps(root(images())))
    assert np.array_equal(read_inputs(path, 3, notes), images())
    assert notes == says
