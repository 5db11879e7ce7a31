"""Layers of ONNX graphs are found by position, in whatever way the graph is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.models.graph import Network

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.mobileone import mobileone
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.candidates import Outputs, WeightsCandidate, resolve
from repvgg_ref.oracle.verification import verify
from tests.oracle.candidates.ports import assert_same, deployed, images, network
from tests.peers import candidate_graphs as graphs
from tests.peers.candidate_graphs import Style, onnx_model, saved
from tests.random_networks import random_model

pytestmark = pytest.mark.peers
FLOAT32 = 3e-6
NETWORKS: list[Any] = [("none", 1), ("none", 2), ("before_relu", 1), ("after_relu", 1)]


def expected(model: Model, x: Array) -> dict[str, Array]:
    outputs: dict[str, Array] = model.forward(x.astype(np.float64), layers=True)
    return outputs


def run(path: Path, arch: Network, x: Array) -> Outputs:
    candidate = resolve(path, arch)
    assert not isinstance(candidate, WeightsCandidate)
    assert not candidate.brings_input
    return candidate.run(x)


def check(
    tmp_path: Path,
    style: Style,
    model: Model | None = None,
    tolerance: float = FLOAT32,
    feed: Array | None = None,
) -> Outputs:
    """Write, run and compare every layer."""
    model = model or network()
    x = images() if feed is None else feed
    outputs = run(saved(tmp_path / "m.onnx", onnx_model(model, style)), model.arch, x)
    assert outputs.problem is None
    assert_same(outputs.layers, expected(model, x), tolerance)
    return outputs


@pytest.mark.parametrize(("se", "groups"), NETWORKS)
def test_our_own_export(tmp_path: Path, se: Any, groups: int) -> None:
    model = deployed(se, groups)
    write_onnx(tmp_path / "m.onnx", model.arch, model.params, metadata={})
    outputs = run(tmp_path / "m.onnx", model.arch, images())
    assert_same(outputs.layers, expected(model, images()), FLOAT32)
    assert (outputs.precision, outputs.notes, outputs.problem) == ("fp32", (), None)


@pytest.mark.parametrize("se", ["none", "before_relu", "after_relu"])
def test_blocks_of_one_tap_are_blocks_but_gates_and_head_are_not(tmp_path: Path, se: Any) -> None:
    """As in MobileOne: every second block is a 1x1 convolution."""
    arch = deployed(se, 1).arch
    assert isinstance(arch, Architecture)
    blocks = [
        replace(spec, kind="mobileone", kernel=1, stride=1) if k % 2 else spec
        for k, spec in enumerate(arch.blocks)
    ]
    model = rr.fuse(random_model(replace(arch, blocks=tuple(blocks)), 2))
    write_onnx(tmp_path / "m.onnx", model.arch, model.params, metadata={})
    outputs = run(tmp_path / "m.onnx", model.arch, images())
    assert_same(outputs.layers, expected(model, images()), FLOAT32)
    assert (outputs.precision, outputs.notes, outputs.problem) == ("fp32", (), None)


def test_mobileone_agrees_and_its_mutant_is_found_in_its_layer(tmp_path: Path) -> None:
    arch = mobileone("small", widths=(0.1, 0.1, 0.1, 0.1), copies=2, num_classes=3)
    model = random_model(arch, 1)
    fused = rr.fuse(model)
    write_onnx(tmp_path / "m.onnx", model.arch, fused.params, metadata={})
    report = verify(model, tmp_path / "m.onnx")
    assert report.verdict == "agree", report.reason
    assert len(report.layers) == len(model.arch.layer_names)
    weight = fused.params["stage2.5.fused.weight"]
    assert weight.shape[2:] == (1, 1)
    wrong = fused.params | {"stage2.5.fused.weight": weight[::-1].copy()}
    write_onnx(tmp_path / "m.onnx", model.arch, wrong, metadata={})
    report = verify(model, tmp_path / "m.onnx")
    assert report.verdict == "disagree"
    assert "stage2.5" in report.reason


@pytest.mark.parametrize(("se", "groups"), NETWORKS)
@pytest.mark.parametrize("form", graphs.FORMS)
@pytest.mark.parametrize("seed", [None, 5])
def test_three_branches_folded_and_fused(
    tmp_path: Path, se: Any, groups: int, form: str, seed: int | None
) -> None:
    outputs = check(tmp_path, Style(form=form, seed=seed), network(se, groups))
    assert outputs.precision == "fp32"
    assert outputs.notes == ()


@pytest.mark.parametrize("opset", [7, 9, 11, 15, 18, 22])
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean"])
def test_opsets(tmp_path: Path, opset: int, pool: str) -> None:
    check(tmp_path, Style(opset=opset, pool=pool, form="bn"))


@pytest.mark.parametrize("head", ["Gemm", "MatMul", "Conv"])
def test_heads(tmp_path: Path, head: str) -> None:
    check(tmp_path, Style(head=head))


@pytest.mark.parametrize("form", graphs.FORMS)
@pytest.mark.parametrize(
    ("between", "tolerance"), [(graphs.there_and_back, FLOAT32), (graphs.cast_to_half, 2e-2)]
)
def test_what_is_put_between_blocks_is_walked_over(
    tmp_path: Path, form: str, between: Any, tolerance: float
) -> None:
    check(tmp_path, Style(form=form, between=between), tolerance=tolerance)


def test_a_tap_inside_nhwc_is_transposed_back(tmp_path: Path) -> None:
    def relu_in_nhwc(graph: graphs.Graph, x: str) -> str:
        """The activation once more, in the other layout: the block's output is NHWC."""
        last = graph.add("Relu", graph.add("Transpose", x, perm=[0, 2, 3, 1]))
        return graph.add("Transpose", last, perm=[0, 3, 1, 2])

    check(tmp_path, Style(between=relu_in_nhwc, form="fused"))


def test_the_border_may_be_a_node_of_its_own(tmp_path: Path) -> None:
    proto = onnx_model(network(), Style(form="fused"))
    for node in [n for n in proto.graph.node if n.op_type == "Conv"]:
        pads = next(a for a in node.attribute if a.name == "pads")
        pads.ints[:] = [0, 0, 0, 0]
        sizes = numpy_helper.from_array(
            np.array([0, 0, 1, 1, 0, 0, 1, 1]), f"sizes {node.output[0]}"
        )
        proto.graph.initializer.append(sizes)
        padded = f"padded {node.output[0]}"
        pad = helper.make_node("Pad", [node.input[0], sizes.name], [padded])
        proto.graph.node.insert(list(proto.graph.node).index(node), pad)
        node.input[0] = padded
    outputs = run(saved(tmp_path / "m.onnx", proto), network().arch, images())
    assert_same(outputs.layers, expected(network(), images()), FLOAT32)


@pytest.mark.parametrize("form", graphs.FORMS)
def test_groups_may_be_convolutions_of_their_own(tmp_path: Path, form: str) -> None:
    check(tmp_path, Style(form=form, split_groups=True), network("none", 2))


def test_an_nhwc_input_is_fed_in_its_layout(tmp_path: Path) -> None:
    style = Style(entrance=graphs.to_nchw, input_shape=("n", "h", "w", "c"))
    check(tmp_path, style)
    fixed = Style(entrance=graphs.to_nchw, input_shape=(2, 20, 12, 3))
    check(tmp_path, fixed)
    candidate = resolve(tmp_path / "m.onnx", network().arch)
    assert not isinstance(candidate, WeightsCandidate)
    assert candidate.input_shape() == (2, 3, 20, 12)


def test_preprocessing_in_the_graph_is_noted(tmp_path: Path) -> None:
    def shift(graph: graphs.Graph, x: str) -> str:
        return graph.add("Sub", x, graph.constant(np.zeros((3, 1, 1))))

    outputs = check(tmp_path, Style(entrance=shift))
    assert any("before the first block: Sub" in note for note in outputs.notes)


def test_softmax_behind_the_logits_is_left_out_and_noted(tmp_path: Path) -> None:
    outputs = check(tmp_path, Style(tail=graphs.softmax))
    assert any("Softmax" in note for note in outputs.notes)


def test_outputs_beside_the_logits_do_not_matter(tmp_path: Path) -> None:
    check(tmp_path, Style(extra_outputs=True))
    proto = onnx_model(network(), Style(extra_outputs=True))
    ends = list(proto.graph.output)
    del proto.graph.output[:]
    proto.graph.output.extend(ends[::-1])
    outputs = run(saved(tmp_path / "m.onnx", proto), network().arch, images())
    assert_same(outputs.layers, expected(network(), images()), FLOAT32)


def test_nodes_in_any_order(tmp_path: Path) -> None:
    """The chain is found though producers come last; whether to run it is the runtime's affair."""
    from repvgg_ref.oracle.candidates.onnx_chain import chains_of
    from repvgg_ref.oracle.candidates.onnx_taps import find_taps

    proto = onnx_model(network())
    wanted = find_taps(chains_of(proto.graph, 3, "m")[0], network().arch)
    nodes = list(proto.graph.node)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(nodes))
        del proto.graph.node[:]
        proto.graph.node.extend(nodes[i] for i in order)
        assert find_taps(chains_of(proto.graph, 3, "m")[0], network().arch) == wanted


def test_a_fixed_batch_is_fed_in_pieces(tmp_path: Path) -> None:
    style = Style(input_shape=(1, 3, 20, 12))
    check(tmp_path, style, feed=images(3))
    candidate = resolve(tmp_path / "m.onnx", network().arch)
    assert not isinstance(candidate, WeightsCandidate)
    assert candidate.input_shape() == (1, 3, 20, 12)


# ---------------------------------------------------------------------------- precisions


@pytest.mark.parametrize("form", graphs.FORMS)
def test_float16(tmp_path: Path, form: str) -> None:
    outputs = check(tmp_path, Style(form=form, dtype=np.float16), tolerance=2e-2)
    assert outputs.precision == "fp16"
    assert outputs.layers["stage0"].dtype == np.float16


@pytest.mark.parametrize("opset", [13, 22])
@pytest.mark.parametrize("form", graphs.FORMS)
def test_bfloat16_is_emulated_and_said_to_be(tmp_path: Path, form: str, opset: int) -> None:
    import ml_dtypes

    style = Style(form=form, dtype=ml_dtypes.bfloat16, opset=opset)
    outputs = check(tmp_path, style, tolerance=0.1)
    assert outputs.precision == "bf16"
    assert any("bfloat16 emulated" in note for note in outputs.notes)
    for layer in outputs.layers.values():
        assert layer.dtype == np.float32
        assert not (np.ascontiguousarray(layer).view(np.uint32) & 0xFFFF).any()


def test_float64_is_computed_in_float32_and_said_to_be(tmp_path: Path) -> None:
    outputs = check(tmp_path, Style(dtype=np.float64))
    assert outputs.precision == "fp32"
    assert any("float64" in note for note in outputs.notes)


def test_half_weights_cast_up_are_float32_arithmetic(tmp_path: Path) -> None:
    proto = onnx_model(network(), Style(form="fused"))
    for node in [n for n in proto.graph.node if n.op_type == "Conv"]:
        name = node.input[1]
        weight = next(t for t in proto.graph.initializer if t.name == name)
        half = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(half, f"{name} half"))
        cast = helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT)
        proto.graph.node.insert(0, cast)
    outputs = run(saved(tmp_path / "m.onnx", proto), network().arch, images())
    assert outputs.precision == "fp32"
    assert list(outputs.layers) == list(network().arch.layer_names)


@pytest.mark.parametrize("kind", ["QDQ", "QOperator", "dynamic"])
def test_quantised_models_are_matched(tmp_path: Path, kind: str) -> None:
    from onnxruntime import quantization as q

    class Data(q.CalibrationDataReader):  # type: ignore[misc]
        batches = iter([{"pixels": images()}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    path = saved(tmp_path / "f.onnx", onnx_model(network(), Style(form="fused")))
    made = tmp_path / "m.onnx"
    if kind == "dynamic":
        q.quantize_dynamic(path, made, op_types_to_quantize=["Conv", "MatMul"])
    else:
        q.quantize_static(path, made, Data(), quant_format=q.QuantFormat[kind])
    outputs = run(made, network().arch, images())
    assert outputs.problem is None
    assert outputs.precision is None
    assert any("quantised" in note for note in outputs.notes)
    if kind == "QOperator":  # layers stay in integers between the operators
        assert list(outputs.layers) == ["linear"]
        assert any("not compared: stage0" in note for note in outputs.notes)
    wanted = {name: expected(network(), images())[name] for name in outputs.layers}
    assert_same(outputs.layers, wanted, 0.3)


def test_what_onnx_runtime_has_optimised_is_matched(tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "m.onnx")
    path = saved(tmp_path / "f.onnx", onnx_model(network()))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = run(tmp_path / "m.onnx", network().arch, images())
    assert outputs.problem is None
    assert_same(outputs.layers, expected(network(), images()), FLOAT32)


# -------------------------------------------------------------------- another structure


@pytest.mark.parametrize(("skip", "matched"), [("stage2.1", 5), ("stage1.0", 1), ("stage0", 1)])
def test_a_missing_block_is_a_disagreement_with_the_blocks_in_front_of_it(
    tmp_path: Path, skip: str, matched: int
) -> None:
    """stage2.1 and stage2.2 look alike: which of them is missing shows in the values only."""
    model = network()
    style = Style(skip=(skip,), form="fused")
    proto = onnx_model(model, style)
    if skip == "stage0":
        first = next(n for n in proto.graph.node if n.op_type == "Conv")
        weight = next(t for t in proto.graph.initializer if t.name == first.input[1])
        slim = numpy_helper.to_array(weight)[:, :3]
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(slim), weight.name))
    outputs = run(saved(tmp_path / "m.onnx", proto), model.arch, images())
    assert outputs.problem is not None
    assert "5 convolution blocks" in outputs.problem
    assert "has 6" in outputs.problem
    assert "linear" in outputs.layers
    assert list(outputs.layers) == [*model.arch.layer_names[:matched], "linear"]


def test_a_network_of_another_depth_is_a_disagreement(tmp_path: Path) -> None:
    from repvgg_ref.models.architectures import plain_architecture

    shallow = plain_architecture(depths=(2, 2), channels=(32, 32, 64), num_classes=7)
    outputs = run(saved(tmp_path / "m.onnx", onnx_model(network())), shallow, images())
    assert outputs.problem is not None
    assert "6 convolution blocks" in outputs.problem


def test_a_graph_without_convolutions_gives_logits_only(tmp_path: Path) -> None:
    graph = graphs.Graph()
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", "pixels"))
    logits = graph.add("MatMul", flat, graph.constant(np.ones((3, 7))))
    info = helper.make_tensor_value_info
    proto = helper.make_graph(
        graph.nodes,
        "g",
        [info("pixels", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [info(logits, TensorProto.FLOAT, None)],
        graph.constants,
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(proto, opset_imports=opset, ir_version=8)
    outputs = run(saved(tmp_path / "m.onnx", model), network().arch, images())
    assert list(outputs.layers) == ["linear"]
    assert any("no convolution" in note for note in outputs.notes)


def test_blocks_without_a_cut_between_them_are_not_compared(tmp_path: Path) -> None:
    """A shortcut over two blocks, as in a residual network."""
    proto = onnx_model(network(), Style(form="fused"))
    relus = [n for n in proto.graph.node if n.op_type == "Relu"]
    before, after = relus[3].output[0], relus[5].output[0]  # stage2.0 and stage2.2
    nodes = list(proto.graph.node)
    for node in nodes:
        node.input[:] = ["shortcut" if name == after else name for name in node.input]
    add = helper.make_node("Add", [before, after], ["shortcut"])
    proto.graph.node.insert(nodes.index(relus[5]) + 1, add)
    outputs = run(saved(tmp_path / "m.onnx", proto), network().arch, images())
    assert list(outputs.layers) == ["stage0", "stage1.0", "stage1.1", "stage2.0", "linear"]
    assert outputs.problem is None
    assert any("not separated" in note for note in outputs.notes)
