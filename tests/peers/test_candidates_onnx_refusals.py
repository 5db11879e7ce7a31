"""ONNX candidates that cannot be judged say why in one line."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from repvgg_ref.arrays import Array
from repvgg_ref.errors import MissingExtraError
from repvgg_ref.files.onnx_graph import packages
from repvgg_ref.oracle.candidates import (
    CandidateFailure,
    Outputs,
    WeightsCandidate,
    resolve,
)
from tests.oracle.candidates.ports import images, network
from tests.peers.candidate_graphs import Graph, Style, onnx_model, saved

pytestmark = pytest.mark.peers
arch = network().arch


def run(path: Path, x: Array | None = None, timeout: float = 60.0) -> Outputs:
    candidate = resolve(path, arch, timeout=timeout)
    assert not isinstance(candidate, WeightsCandidate)
    return candidate.run(images() if x is None else x)


def failure(path: Path, x: Array | None = None, timeout: float = 60.0) -> CandidateFailure:
    with pytest.raises(CandidateFailure) as raised:
        run(path, x, timeout)
    assert "\n" not in str(raised.value)
    assert raised.value.verdict == "cannot-judge"
    return raised.value


def model_of(graph: Graph, ends: list[str], shape: Any = ("n", 3, "h", "w"), kind: int = 1) -> Any:
    proto = helper.make_graph(
        graph.nodes,
        "g",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in ends],
        graph.constants,
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize(
    "content",
    [b"", b"<!doctype html><html>", b"\x08\x07", b"\x08\x07\x12\x05abc", b"\x80\x02}q.", bytes(9)],
)
def test_what_is_no_onnx_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert "no ONNX model" in str(failure(tmp_path / "m.onnx"))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_model_is_refused(tmp_path: Path, part: float) -> None:
    whole = onnx_model(network()).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole[: int(part * len(whole))])
    failure(tmp_path / "m.onnx")


def test_a_model_is_recognised_without_its_suffix(tmp_path: Path) -> None:
    outputs = run(saved(tmp_path / "model.bin", onnx_model(network())))
    assert list(outputs.layers) == list(arch.layer_names)


def test_nan_passes_through(tmp_path: Path) -> None:
    proto = onnx_model(network())
    bias = next(t for t in proto.graph.initializer if list(t.dims) == [7])
    bias.CopyFrom(numpy_helper.from_array(np.full(7, np.nan, np.float32), bias.name))
    assert np.isnan(run(saved(tmp_path / "m.onnx", proto)).layers["linear"]).all()


def test_an_operator_of_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    proto = onnx_model(network())
    proto.graph.node[0].domain = "com.stranger"
    proto.opset_import.append(helper.make_opsetid("com.stranger", 1))
    assert "ONNX Runtime refuses" in str(failure(saved(tmp_path / "m.onnx", proto)))


def test_a_model_that_fails_while_running_is_reported(tmp_path: Path) -> None:
    graph = Graph()
    target = graph.constant([7, 11, 13], np.int64)
    flat = graph.add("Reshape", "pixels", target)
    logits = graph.add("MatMul", flat, graph.constant(np.ones((13, 7))))
    path = saved(tmp_path / "m.onnx", model_of(graph, [logits]))
    assert "ONNX Runtime failed" in str(failure(path))


def test_a_loop_without_end_is_stopped(tmp_path: Path) -> None:
    true = helper.make_node("Constant", [], ["on"], value=numpy_helper.from_array(np.array(True)))
    body = helper.make_graph(
        [true, helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    graph = Graph()
    go = graph.constant(np.array(True), np.bool_)
    graph.nodes.append(helper.make_node("Loop", ["", go, "pixels"], ["spun"], body=body))
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", "spun"))
    logits = graph.add("MatMul", flat, graph.constant(np.ones((3, 7))))
    path = saved(tmp_path / "m.onnx", model_of(graph, [logits]))
    started = time.monotonic()
    assert "too long" in str(failure(path, timeout=1.0))
    assert time.monotonic() - started < 20


def test_two_inputs_are_refused_by_name(tmp_path: Path) -> None:
    proto = onnx_model(network())
    proto.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.FLOAT, [1]))
    assert "pixels, flag" in str(failure(saved(tmp_path / "m.onnx", proto)))


def test_integer_images_are_refused_where_they_are_no_numbers(tmp_path: Path) -> None:
    """A cast in front is understood; picking colours from a table is not."""
    proto = onnx_model(network())
    table = numpy_helper.from_array(np.ones(256, np.float32), "table")
    proto.graph.initializer.append(table)
    proto.graph.node.insert(0, helper.make_node("Gather", ["table", "bytes"], ["pixels"]))
    value = helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["n", 3, "h", "w"])
    proto.graph.input[0].CopyFrom(value)
    assert "tensor(uint8)" in str(failure(saved(tmp_path / "m.onnx", proto)))


@pytest.mark.parametrize(
    ("scale", "shift"), [(255.0, 0.0), (0.229, 0.485), (1 / 255, -1000.0)], ids=str
)
def test_what_is_no_normalisation_of_pixels_is_not_judged(
    tmp_path: Path, scale: float, shift: float
) -> None:
    def first(graph: Graph, x: str) -> str:
        return graph.add("Add", graph.add("Mul", x, graph.constant(scale)), graph.constant(shift))

    path = saved(tmp_path / "m.onnx", onnx_model(network(), Style(entrance=first)))
    assert "no normalisation of pixels" in str(failure(path))


@pytest.mark.parametrize("shape", [("n", 3, 224, 224), (3, 3, 20, 12), (0, 3, 20, 12)])
def test_another_fixed_shape_is_refused_with_both(tmp_path: Path, shape: Any) -> None:
    error = failure(saved(tmp_path / "m.onnx", onnx_model(network(), Style(input_shape=shape))))
    assert "(2, 3, 20, 12)" in str(error)
    assert str(shape[2]) in str(error)


def test_an_input_is_needed(tmp_path: Path) -> None:
    candidate = resolve(saved(tmp_path / "m.onnx", onnx_model(network())), arch)
    assert not isinstance(candidate, WeightsCandidate)
    with pytest.raises(CandidateFailure, match="input batch"):
        candidate.run(None)


def test_an_output_that_depends_on_nothing_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    logits = graph.add("Identity", graph.constant(np.ones((2, 7))))
    path = saved(tmp_path / "m.onnx", model_of(graph, [logits]))
    assert "no output of the graph depends" in str(failure(path))


def test_a_graph_in_a_circle_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    graph.nodes.append(helper.make_node("Add", ["pixels", "b"], ["a"]))
    graph.nodes.append(helper.make_node("Relu", ["a"], ["b"]))
    assert "loop" in str(failure(saved(tmp_path / "m.onnx", model_of(graph, ["a"]))))


def test_branches_that_read_a_blocks_output_count_as_its_readers(tmp_path: Path) -> None:
    """An If whose body takes the layer from outside: still one chain."""
    proto = onnx_model(network(), Style(form="fused", opset=13))
    relu = next(n for n in proto.graph.node if n.op_type == "Relu")
    inner, outer = "inner", relu.output[0]
    body = helper.make_graph(
        [helper.make_node("Relu", [relu.input[0]], [inner])],
        "body",
        [],
        [helper.make_tensor_value_info(inner, TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Abs", [relu.input[0]], ["other"])],
        "other",
        [],
        [helper.make_tensor_value_info("other", TensorProto.FLOAT, None)],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    choice = helper.make_node("If", ["yes"], [outer], then_branch=body, else_branch=other)
    relu.CopyFrom(choice)
    outputs = run(saved(tmp_path / "m.onnx", proto))
    assert list(outputs.layers) == list(arch.layer_names)
    assert outputs.problem is None


# ------------------------------------------------------------------------- external data


def external(folder: Path, **changes: Any) -> Path:
    """A model whose weights lie beside it; `changes` are made to one tensor's description."""
    proto = onnx_model(network(), Style(form="fused"))
    onnx.save_model(
        proto,
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key in changes:
            entry.value = str(changes[entry.key])
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    assert list(run(external(tmp_path)).layers) == list(arch.layer_names)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"location": "../m.data"}, "outside"),
        ({"location": "/etc/passwd"}, "outside"),
        ({"location": "link"}, "outside"),
        ({"location": ""}, "outside"),
        ({"location": "missing"}, "cannot be opened"),
        ({"length": 1 << 40}, "does not hold"),
        ({"offset": 1 << 40}, "does not hold"),
        ({"offset": -1}, "outside"),
        ({"length": "x"}, "outside"),
    ],
)
def test_external_data_that_lies_or_leads_outside_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder, **changes)
    (tmp_path / "m.data").write_bytes((folder / "m.data").read_bytes())
    (folder / "link").symlink_to(tmp_path / "m.data")
    assert says in str(failure(path))


# ------------------------------------------------------------------------------- extras


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_the_line_that_installs_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    import importlib

    real = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    path = saved(tmp_path / "m.onnx", onnx_model(network()))
    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(MissingExtraError, match=r'pip install "repvgg-ref\[onnx\]"'):
        run(path)


def test_nothing_here_is_imported_before_it_is_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys, repvgg_ref.oracle.candidates\n"
        "print([m for m in ('onnx', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------- broken graphs


def _break(proto: Any, rng: np.random.Generator) -> None:
    """Take away, add or exchange something that an operator needs."""
    nodes = proto.graph.node
    node, other = (nodes[int(i)] for i in rng.integers(len(nodes), size=2))
    match int(rng.integers(6)):
        case 0:
            node.op_type = str(rng.choice(["Conv", "Transpose", "ReduceMean", "Gemm", "Cast"]))
        case 1:
            del node.input[: int(rng.integers(1, 3))]
        case 2:
            del node.attribute[:]
        case 3 if node.input:
            node.input[0] = (*other.output, "nothing")[0]
        case 4:
            del node.output[:]
        case _:
            name = str(rng.choice(["perm", "axes", "kernel_shape", "strides"]))
            node.attribute.append(helper.make_attribute(name, [int(rng.integers(-3, 5))] * 3))


@pytest.mark.parametrize("form", ["bn", "fused"])
def test_a_graph_broken_anywhere_is_understood_or_refused(tmp_path: Path, form: str) -> None:
    whole = onnx_model(network("before_relu"), Style(form=form))
    for tensor in whole.graph.initializer:
        tensor.ClearField("raw_data")
    for seed in range(150):
        rng = np.random.default_rng(seed)
        proto = onnx.ModelProto()
        proto.CopyFrom(whole)
        for _ in range(1 + seed % 3):
            _break(proto, rng)
        data = bytearray(proto.SerializeToString())
        if seed % 5 == 0:
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        (tmp_path / "m.onnx").write_bytes(data)
        candidate = resolve(tmp_path / "m.onnx", arch)
        assert not isinstance(candidate, WeightsCandidate)
        with contextlib.suppress(CandidateFailure):
            candidate.input_shape()


def test_a_tensor_made_twice_is_refused(tmp_path: Path) -> None:
    proto = onnx_model(network())
    proto.graph.node[4].output[0] = proto.graph.node[2].output[0]
    assert "same tensor" in str(failure(saved(tmp_path / "m.onnx", proto)))
