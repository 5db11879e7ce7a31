"""ONNX files around their linear parts: types, formats, who else reads a tensor, hostile ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from repvgg_ref.blocks.selfcheck import SelfCheckError
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.convert_graph import convert_graph, inspect_graph, is_graph
from repvgg_ref.files.onnx_graph import runtime
from repvgg_ref.files.onnx_graph.rewrite import Made
from tests.peers.linear_graphs import Graph, X, operators, run, saved

pytestmark = pytest.mark.peers


def block(dtype: Any = np.float32, channels: int = 4) -> Graph:
    """The paper's block."""
    g = Graph(dtype)
    branches = (g.conv_bn(X, channels, channels, k) for k in (3, 1))
    g.relu(g.add(*branches, g.bn(X, channels)))
    return g


def model_of(g: Graph, **how: Any) -> Any:
    return g.model(4, g.nodes[-1].output[0], **how)


def fused(folder: Path, model: Any) -> tuple[Any, Any]:
    done = convert_graph(saved(folder / "in.onnx", model), folder / "out.onnx")
    return done, onnx.load(folder / "out.onnx")


# -------------------------------------------------------------------------------------- types


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_keep_their_type(dtype: Any, tmp_path: Path) -> None:
    done, result = fused(tmp_path, model_of(block(dtype)))
    assert operators(result) == ["Conv", "Relu"]
    kernel = numpy_helper.to_array(result.graph.initializer[0])
    assert kernel.dtype == dtype
    if dtype == np.float64:  # of which ONNX Runtime's CPU convolves none
        assert done.runtime_check is None
        (said,) = done.notes
        assert "not run" in said
    else:
        assert done.runtime_check.ok
    assert done.self_check.ok


def test_bfloat16_is_left(tmp_path: Path) -> None:
    model = model_of(block())
    for tensor in (*model.graph.initializer,):
        raw = numpy_helper.to_array(tensor).view(np.uint32) >> 16
        tensor.CopyFrom(
            helper.make_tensor(
                tensor.name,
                TensorProto.BFLOAT16,
                tensor.dims,
                raw.astype("<u2").tobytes(),
                raw=True,
            )
        )
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = TensorProto.BFLOAT16
    model.opset_import[0].version, model.ir_version = 22, 10
    done, result = fused(tmp_path, model)
    assert result == model
    assert any("its type is bfloat16" in each.reason for each in done.left)


# ------------------------------------------------------------------- who else has a hand in it


def test_an_initializer_that_the_caller_may_set_is_no_constant(tmp_path: Path) -> None:
    model = model_of(block())
    weight = model.graph.initializer[0]
    model.graph.input.append(
        helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
    )
    done, result = fused(tmp_path, model)
    assert any("its kernel is no constant" in each.reason for each in done.left)
    assert operators(result).count("Conv") == 2
    model.ir_version, model.opset_import[0].version = 3, 8  # where all have to be inputs
    for other in model.graph.initializer[1:]:
        model.graph.input.append(
            helper.make_tensor_value_info(other.name, other.data_type, list(other.dims))
        )
    done, result = fused(tmp_path, model)
    assert done.convs_after == 1
    assert {each.name for each in result.graph.initializer} <= {
        each.name for each in result.graph.input
    }


def test_what_a_branch_of_control_flow_reads_is_kept(tmp_path: Path) -> None:
    g = Graph()
    y = g.conv(X, 4, 4)
    z = g.bn(y, 4)
    shape = ["n", 4, "h", "w"]
    made = helper.make_tensor_value_info("inner", TensorProto.FLOAT, shape)
    body = helper.make_graph([helper.make_node("Neg", [y], ["inner"])], "body", [], [made])
    both = {"then_branch": body, "else_branch": body}
    seen = g.node("If", g.constant(np.array(True)), **both)
    model = g.model(4, g.relu(z), seen)
    done, result = fused(tmp_path, model)
    assert result == model
    assert any("is read by n1, n2" in each.reason for each in done.left)


def test_a_function_of_the_file_is_no_operator_of_onnx(tmp_path: Path) -> None:
    g = Graph()
    y = g.node("Double", g.conv(X, 4, 4), domain="own")
    model = g.model(4, g.relu(g.bn(y, 4)))
    model.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [helper.make_opsetid("", 17)]
    add = helper.make_node("Add", ["a", "a"], ["b"])
    model.functions.append(helper.make_function("own", "Double", ["a"], ["b"], [add], opsets))
    done, result = fused(tmp_path, model)
    assert operators(result) == operators(model)
    assert any("Double" in each.reason for each in done.left)


def test_all_else_is_as_it_was(tmp_path: Path) -> None:
    """Names, metadata, texts, unread initializers and nodes, other consumers."""
    g = block()
    g.drawn(3)
    model = model_of(g)
    model.graph.node.append(helper.make_node("Neg", [X], ["unread"], "spare"))
    helper.set_model_props(model, {"author": "somebody"})
    model.doc_string = "as it was"
    _, result = fused(tmp_path, model)
    assert operators(result) == ["Conv", "Relu", "Neg"]
    assert (result.metadata_props, result.doc_string) == (model.metadata_props, model.doc_string)
    assert result.graph.input == model.graph.input
    assert result.graph.output == model.graph.output
    assert result.graph.node[1:] == model.graph.node[-2:]
    kept = {each.name for each in result.graph.initializer} & set(g.tensors)
    assert kept == {list(g.tensors)[-1]}


def test_data_beside_the_file_come_into_it(tmp_path: Path) -> None:
    model = model_of(block(channels=4))
    inside, _ = fused(tmp_path, model)
    (tmp_path / "apart").mkdir()
    onnx.save_model(
        model,
        tmp_path / "apart" / "in.onnx",
        save_as_external_data=True,
        location="data.bin",
        size_threshold=0,
    )
    done = convert_graph(tmp_path / "apart" / "in.onnx", tmp_path / "apart.onnx")
    assert (tmp_path / "apart.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert done.merged == inside.merged
    (tmp_path / "apart" / "data.bin").unlink()
    with pytest.raises(CheckpointError, match=r"data.bin: cannot be opened"):
        convert_graph(tmp_path / "apart" / "in.onnx", tmp_path / "none.onnx")


def test_new_names_are_nobodys(tmp_path: Path) -> None:
    model = model_of(block())
    last = model.graph.node[-1].input[0]
    model.graph.initializer[0].name = f"{last}.weight"
    model.graph.node[0].input[1] = f"{last}.weight"
    _, result = fused(tmp_path, model)
    assert result.graph.node[0].input[1] == f"{last}.weight.2"


# ------------------------------------------------------------------------------------- checks


def test_a_wrong_tap_does_not_pass_in_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One corner of one kernel, so that only pixels off the border see it, and a bias."""
    real = runtime.check_part
    path = saved(tmp_path / "in.onnx", model_of(block()))
    for wrong in ("weight", "bias"):

        def spoilt(made: Made, *rest: Any, wrong: str = wrong) -> Any:
            if wrong == "weight":
                made.weight[0, 0, 0, 0] += np.float32(1e-3)
            else:
                made.fused.bias[2] -= np.float32(1e-3)
            return real(made, *rest)

        monkeypatch.setattr(runtime, "check_part", spoilt)
        with pytest.raises(SelfCheckError, match="differs from its branches"):
            convert_graph(path, tmp_path / "out.onnx")
        assert not (tmp_path / "out.onnx").exists()


def test_without_onnx_runtime_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "is_installed", lambda: False)
    done, _ = fused(tmp_path, model_of(block()))
    assert done.runtime_check is None
    assert done.self_check.ok
    assert 'pip install "repvgg-ref[onnx]"' in done.notes[0]


# -------------------------------------------------------------------------------- what is refused


def refusal(path: Path, out: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        convert_graph(path, out)
    assert not out.exists()
    return str(raised.value)


def test_files_that_are_no_graph_are_one_error(tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    for data in (b"", b"\x08\x08", b"no protobuf", b"\x80\x02}q\x00."):
        path.write_bytes(data)
        assert "is no ONNX model" in refusal(path, out)
    saved(path, model_of(block()))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "in.onnx" in refusal(path, out)
    model = model_of(block())
    del model.graph.node[0]
    onnx.save(model, path)
    assert "is no valid ONNX model" in refusal(path, out)
    assert "cannot be opened" in refusal(tmp_path / "missing.onnx", out)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "in.onnx", model_of(block()))
    assert "a graph can be written as a graph only" in refusal(path, tmp_path / "out.npz")
    with pytest.raises(CheckpointError, match="would overwrite the input"):
        convert_graph(path, path)
    model = model_of(block(), opset=6)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("is_test", 1))
    onnx.save(model, path)
    assert "its opset is too old to be fused" in refusal(path, tmp_path / "out.onnx")


def test_the_content_tells_a_graph_without_a_name(tmp_path: Path) -> None:
    named = saved(tmp_path / "in.onnx", model_of(block()))
    bare = tmp_path / "stdin"
    bare.write_bytes(named.read_bytes())
    assert is_graph(named)
    assert is_graph(bare)
    other = tmp_path / "other"
    for data in (b"", b"\x08", b"PK\x03\x04" * 9, b"\x80\x02" * 9, b"\x08\x05\x12\0\0\0\0\0{}"):
        other.write_bytes(data)
        assert not is_graph(other)
    assert not is_graph(tmp_path)
    assert not is_graph(tmp_path / "x.pth")


# ---------------------------------------------------------------------------------- hostile ones


def doubled() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4)
    for _ in range(60):
        y = g.add(y, y)
    return g.model(4, g.relu(y))


def crossed() -> Any:
    """Two sums of each other's terms, level by level: a tree of a million leaves."""
    g = Graph()
    a, b = g.conv(X, 4, 4), g.conv(X, 4, 4, 1)
    for _ in range(20):
        a, b = g.add(a, b), g.add(b, a)
    return g.model(4, a, b)


def many_terms() -> Any:
    g = Graph()
    return g.model(4, g.add(*(g.conv(X, 4, 4, 1) for _ in range(200))))


def many_norms() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4)
    for _ in range(300):
        y = g.bn(y, 4)
    return g.model(4, y)


def wide_taps() -> Any:
    g = Graph()
    y = X
    for _ in range(5):
        y = g.conv(y, 1, 1, (40, 40), pads=[0] * 4)
    return g.model(1, y)


@pytest.mark.parametrize("build", [doubled, crossed, many_terms, many_norms, wide_taps])
def test_graphs_that_would_grow_without_end_end_soon(
    build: Callable[[], Any], tmp_path: Path
) -> None:
    model = build()
    done, result = fused(tmp_path, model)
    assert any("more than 128 terms" in e.reason or "many taps" in e.reason for e in done.left)
    assert done.convs_after <= done.convs_before
    if build is not wide_taps:
        x = np.random.default_rng(0).normal(size=(1, 4, 6, 7)).astype(np.float32)
        for want, got in zip(run(model, x), run(result, x), strict=True):
            assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def mutilated(seed: int) -> Any:
    """A graph of which something is taken away, added or exchanged."""
    rng = np.random.default_rng(seed)
    g = block()
    g.node("AveragePool", g.nodes[-1].output[0], kernel_shape=[2, 2], strides=[2, 2])
    halves = g.node("Split", g.nodes[-1].output[0], g.constant(np.array([2, 2])), outputs=2, axis=1)
    g.node("Slice", g.node("Concat", *halves, axis=1), *map(g.constant, ([0], [3], [1])))
    model = g.model(4, g.nodes[-1].output[0])
    nodes = model.graph.node
    for _ in range(2):
        node, other = (nodes[int(i)] for i in rng.integers(len(nodes), size=2))
        match int(rng.integers(6)):
            case 0:
                node.op_type = other.op_type
            case 1:
                del node.input[int(rng.integers(1, 3)) :]
            case 2:
                del node.attribute[:]
            case 3:
                node.input[0] = other.output[0]
            case 4:
                tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
                tensor.dims.append(1)
            case _:
                node.attribute.append(helper.make_attribute("strides", [0, -1]))
    return model


@pytest.mark.few(12)
@pytest.mark.parametrize("seed", range(60))
def test_broken_graphs_end_in_a_file_or_in_one_error(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(mutilated(seed), path)
    try:
        convert_graph(path, tmp_path / "out.onnx")
    except CheckpointError:
        assert not (tmp_path / "out.onnx").exists()
    else:
        assert inspect_graph(tmp_path / "out.onnx").convs_before >= 0
