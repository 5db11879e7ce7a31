"""Small ONNX files that ask for hours, for memory, or for a crash: one line, and soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.onnx_graph import load
from repvgg_ref.files.onnx_graph.functions import Size, require_moderate
from repvgg_ref.oracle.candidates import CandidateFailure, WeightsCandidate, resolve
from repvgg_ref.oracle.candidates.onnx_model import OnnxCandidate
from tests.oracle.candidates.ports import images, network
from tests.peers.candidate_graphs import Style, onnx_model, saved

pytestmark = pytest.mark.peers
arch = network().arch
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]


def candidate(path: Path, timeout: float = 60.0) -> OnnxCandidate:
    found = resolve(path, arch, timeout=timeout)
    assert isinstance(found, OnnxCandidate)
    return found


def failure(path: Path, timeout: float = 60.0) -> str:
    with pytest.raises(CandidateFailure) as raised:
        candidate(path, timeout).run(images())
    assert raised.value.verdict == "cannot-judge"
    return str(raised.value)


def function(name: str, nodes: list[Any]) -> Any:
    return helper.make_function("own", name, ["x"], ["y"], nodes, OPSETS)


def with_functions(functions: list[Any], call: str) -> Any:
    """The network's model behind a call of one of `functions`."""
    proto = onnx_model(network(), Style(form="fused", opset=17))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node.insert(0, helper.make_node(call, ["image"], ["pixels"], domain="own"))
    proto.graph.input[0].name = "image"
    proto.functions.extend(functions)
    return proto


def doubling(levels: int) -> list[Any]:
    """Functions of which each calls the one before twice: 2^levels nodes."""
    found = [function("f0", [helper.make_node("Relu", ["x"], ["y"])])]
    for i in range(1, levels + 1):
        calls = [
            helper.make_node(f"f{i - 1}", ["x"], ["m"], domain="own"),
            helper.make_node(f"f{i - 1}", ["m"], ["y"], domain="own"),
        ]
        found.append(function(f"f{i}", calls))
    return found


def test_functions_that_double_are_counted_before_they_are_inlined(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", with_functions(doubling(200), "f200"))
    assert path.stat().st_size < 1 << 20
    assert "more than 100000" in failure(path)


def test_what_a_function_holds_is_counted_as_often_as_it_is_called() -> None:
    """A constant of 4 kB in the innermost of ten doublings is 4 MB."""
    functions = doubling(10)
    large = numpy_helper.from_array(np.zeros(1000, np.float32), "c")
    functions[0].node.append(helper.make_node("Constant", [], ["c"], value=large))
    model = with_functions(functions, "f10")
    require_moderate(model, "m", Size(10_000, 6 << 20))
    with pytest.raises(CheckpointError, match="too large"):
        require_moderate(model, "m", Size(10_000, 4_000_000))


@pytest.mark.parametrize("levels", [0, 1, 5])
def test_no_more_nodes_come_of_it_than_were_counted(levels: int) -> None:
    from onnx.inliner import inline_local_functions

    model = with_functions(doubling(levels), f"f{levels}")
    inlined = len(inline_local_functions(model).graph.node)
    calls = 2 ** (levels + 1) - 1  # they are counted, too, and then replaced
    require_moderate(model, "m", Size(inlined + calls, 1 << 30))
    with pytest.raises(CheckpointError, match="too many nodes"):
        require_moderate(model, "m", Size(inlined + calls - 1, 1 << 30))


@pytest.mark.parametrize("inner", ["f", "g"])
def test_a_function_that_calls_itself_is_refused(tmp_path: Path, inner: str) -> None:
    functions = [
        function("f", [helper.make_node(inner, ["x"], ["y"], domain="own")]),
        function("g", [helper.make_node("f", ["x"], ["y"], domain="own")]),
    ]
    path = saved(tmp_path / "m.onnx", with_functions(functions, "f"))
    assert "calls itself" in failure(path)


def test_functions_of_a_sane_model_are_followed(tmp_path: Path) -> None:
    port = candidate(saved(tmp_path / "m.onnx", with_functions(doubling(2), "f2")))
    x = np.abs(images())  # the calls are ReLUs
    layers = port.run(x).layers
    port.close()
    assert np.abs(layers["linear"] - network().forward(x)).max() < 1e-4


def test_a_chain_of_many_functions_needs_no_stack(tmp_path: Path) -> None:
    functions = [function("f0", [helper.make_node("Relu", ["x"], ["y"])])]
    for i in range(1, 5000):
        call = helper.make_node(f"f{i - 1}", ["x"], ["y"], domain="own")
        functions.append(function(f"f{i}", [call]))
    require_moderate(with_functions(functions, "f4999"), "m", Size(10_000, 1 << 30))


def slow_to_open() -> Any:
    """The network behind zeros that the runtime computes when it opens the file, for minutes."""
    proto = onnx_model(network(), Style(form="fused", opset=17))
    side = numpy_helper.from_array(np.array([4096, 4096]), "side")
    nodes = [helper.make_node("ConstantOfShape", ["side"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(500)]
    nodes += [
        helper.make_node("ReduceSum", ["m500"], ["zero"], keepdims=0),
        helper.make_node("Add", ["image", "zero"], ["pixels"]),
    ]
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)
    proto.graph.input[0].name = "image"
    proto.graph.initializer.append(side)
    return proto


def test_a_file_that_takes_minutes_to_open_is_stopped(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", slow_to_open())
    assert path.stat().st_size < 1 << 20
    assert "took too long and was stopped (got no result after 1" in failure(path, timeout=1.5)


def test_a_runtime_that_dies_costs_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = candidate(saved(tmp_path / "m.onnx", onnx_model(network())))
    assert list(port.run(images()).layers) == list(arch.layer_names)
    session = port._session
    assert session is not None
    session._child._process.kill()
    with pytest.raises(CandidateFailure, match="killed by SIGKILL") as raised:
        port.run(images())
    assert raised.value.refused
    assert list(port.run(images()).layers) == list(arch.layer_names)  # a new one
    port.close()
    assert not session._folder.exists()


def test_the_limit_is_for_all_calls_together(tmp_path: Path) -> None:
    port = candidate(saved(tmp_path / "m.onnx", onnx_model(network())), timeout=60.0)
    port.run(images())
    assert port.timeout < 60
    port.timeout = 0.0
    with pytest.raises(CandidateFailure, match="too long"):
        port.run(images())


@pytest.mark.parametrize("place", ["graph", "branch", "function"])
def test_data_outside_the_folder_is_refused_wherever_it_is_named(
    tmp_path: Path, place: str
) -> None:
    tensor = TensorProto(name="t", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    constant = helper.make_node("Constant", [], ["t"], value=tensor)
    proto = with_functions(doubling(0), "f0")
    if place == "function":
        proto.functions[0].node.append(constant)
    elif place == "graph":
        proto.graph.node.append(constant)
    else:
        body = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("t", 1, None)])
        proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        both = {"then_branch": body, "else_branch": body}
        proto.graph.node.append(helper.make_node("If", ["yes"], ["u"], **both))
    assert "outside its folder" in failure(saved(tmp_path / "m.onnx", proto))


def test_a_file_above_protobufs_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "m.onnx", onnx_model(network()))
    monkeypatch.setattr(load, "PROTOBUF_BYTES", path.stat().st_size - 1)
    assert "is too large" in failure(path)
    assert isinstance(onnx.load(path), onnx.ModelProto)
    assert not isinstance(resolve(path, arch), WeightsCandidate)
