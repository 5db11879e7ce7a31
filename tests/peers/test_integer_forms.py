"""The same quantised network written in other ways: read as what it is, accused of nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.integer_onnx import Style, write_integer_onnx
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import quantize
from tests.models.small import SMALL, distinct_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402 - needs onnx

from tests.peers.integer_edits import (  # noqa: E402 - needs onnx
    LINEAR,
    behind,
    exact_sums,  # noqa: F401 - a fixture
    product_and_sum,
)
from tests.peers.onnx_edits import add_constant, changed  # noqa: E402 - needs onnx

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("exact_sums")]

SIZE = 16
_DRAWN = rr.fuse(distinct_model(SMALL["plain"], seed=3))
MODEL = replace(_DRAWN, params={k: v.astype(np.float32) for k, v in _DRAWN.params.items()})
IMAGES = np.random.default_rng(0).normal(size=(6, 3, SIZE, SIZE)).astype(np.float32)
STYLES: tuple[Style, ...] = ("qdq", "qlinear")


@cache
def network() -> IntegerNetwork:
    return quantize(MODEL, IMAGES, dtype=np.uint8)


def written(folder: Path, style: Style = "qdq", *edits: Callable[[Any], None]) -> Path:
    write_integer_onnx(folder / "plain.onnx", network(), style=style, size=(SIZE, SIZE))
    proto = onnx.load(str(folder / "plain.onnx"))
    for edit in edits:
        edit(proto)
    onnx.save(proto, str(folder / "q.onnx"))
    return folder / "q.onnx"


def node_of(proto: Any, operator: str) -> Any:
    return next(each for each in proto.graph.node if each.op_type == operator)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("operators", "settings"),
    [
        ([("Softmax", None)], {"axis": 1}),
        ([("Softmax", None)], {}),
        ([("LogSoftmax", None)], {"axis": -1}),
        ([("ArgMax", None)], {"axis": 1}),
        ([("Identity", None), ("Softmax", None)], {}),
        ([("Softmax", None), ("Identity", None)], {}),
    ],
    ids=str,
)
def test_what_is_customary_behind_logits_is_said(
    style: Style, operators: Any, settings: Any, tmp_path: Path
) -> None:
    report = rr.verify(MODEL, written(tmp_path, style, behind(*operators, **settings)))
    assert report.verdict == "agree", report.reason
    assert any("left out at the end" in note for note in report.notes)


@pytest.mark.few
@pytest.mark.parametrize("batch", [None, 1, 2, 3])
@pytest.mark.parametrize("style", STYLES)
def test_a_file_of_fixed_size_is_run_at_that_size(
    style: Style, batch: int | None, tmp_path: Path
) -> None:
    def fixed(proto: Any) -> None:
        for value in (proto.graph.input[0], proto.graph.output[0]):
            if batch is not None:
                value.type.tensor_type.shape.dim[0].dim_value = batch

    path = written(tmp_path, style, fixed)
    for reference in (path, network()):
        report = rr.verify(reference, path)
        assert report.verdict == "agree", report.reason
        assert any(f"{SIZE} x {SIZE}, the size that q.onnx states" in n for n in report.notes)
    given = rr.verify(network(), path, inputs=IMAGES)
    assert given.verdict == "agree", given.reason
    other = rr.verify(network(), path, inputs=IMAGES[..., :-2])
    assert other.verdict == "cannot-judge"
    assert "fixed shape" in other.reason


def test_a_tail_is_judged_where_the_file_is_run_too(tmp_path: Path) -> None:
    altered = written(tmp_path, "qdq", behind(("Mul", np.array([3], np.float32))))
    report = rr.verify(network(), altered, inputs=IMAGES)
    assert (report.verdict, report.diagnosis[0].bug) == ("disagree", "head-output")
    assert rr.verify(altered, altered).verdict == "agree"
    plain = tmp_path / "plain.onnx"
    assert rr.verify(altered, plain).verdict == "cannot-judge"


def no_bias(proto: Any) -> None:
    node = node_of(proto, "Gemm")
    del node.input[2]


def float_sum(proto: Any) -> None:
    """The bias behind the last DequantizeLinear, in float: what a quantiser of products leaves."""
    arrays = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    real = arrays[f"{LINEAR}.bias"] * arrays[f"{LINEAR}.bias_scale"]
    no_bias(proto)
    behind(("Add", real.astype(np.float32)))(proto)


def rounded_sum(proto: Any) -> None:
    """The product is quantised, then the bias is added, of 8 bits, and quantised again."""
    arrays = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    real = arrays[f"{LINEAR}.bias"] * arrays[f"{LINEAR}.bias_scale"]
    float_sum(proto)
    step = np.float32(np.abs(real).max() / 127)
    add_constant(proto, "b8", np.rint(real / step).astype(np.int8))
    add_constant(proto, "b8.scale", step)
    add = proto.graph.node[-1]
    add.input[1] = "b8.real"
    add.output[0] = "sum"
    sides = [f"{LINEAR}.scale", f"{LINEAR}.zero_point"]
    proto.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["b8", "b8.scale"], ["b8.real"])
    )
    proto.graph.node.append(helper.make_node("QuantizeLinear", ["sum", *sides], ["again"]))
    proto.graph.node.append(helper.make_node("DequantizeLinear", ["again", *sides], ["logits"]))


def left_real(proto: Any) -> None:
    """The last layer's output is not quantised."""
    last = next(each for each in proto.graph.node if f"{LINEAR}.y" in each.output)
    gone = [each for each in proto.graph.node if each.output[0] in (LINEAR, "logits")]
    for each in gone:
        proto.graph.node.remove(each)
    last.output[0] = "logits"


def float_biases(proto: Any) -> None:
    """Biases as real numbers, which exporters of fake-quantised networks write."""
    for node in [each for each in proto.graph.node if each.op_type == "DequantizeLinear"]:
        if node.input[0].endswith(".bias"):
            layer = node.input[0].removesuffix(".bias")
            real = MODEL.params["linear.bias" if layer == LINEAR else f"{layer}.fused.bias"]
            add_constant(proto, f"{node.input[0]}.float", real.astype(np.float32))
            for reader in proto.graph.node:
                reader.input[:] = [
                    f"{node.input[0]}.float" if each == node.output[0] else each
                    for each in reader.input
                ]


def convolved(proto: Any) -> None:
    """The classifier as a convolution of one pixel."""
    flatten, gemm = node_of(proto, "Flatten"), node_of(proto, "Gemm")
    flatten.op_type = "Identity"
    del flatten.attribute[:]
    changed(proto, f"{LINEAR}.weight", lambda array: array[:, :, None, None])
    gemm.op_type = "Conv"
    del gemm.attribute[:]
    flat = helper.make_node("Flatten", ["logits.image"], ["logits"])
    proto.graph.node[-1].output[0] = "logits.image"
    proto.graph.node.append(flat)


def without_zero_points(proto: Any) -> None:
    """Zero points of weights, which are 0, are left out."""
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight"):
            del node.input[2]


FORMS = [
    *(product_and_sum, float_sum, rounded_sum, left_real, float_biases),
    *(convolved, without_zero_points),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_right_file_is_not_accused(form: Callable[[Any], None], tmp_path: Path) -> None:
    path = written(tmp_path, "qdq", form)
    report = rr.verify(MODEL, path)
    assert report.verdict == "agree", (report.reason, report.diagnosis)
    for reference in (path, network()):
        report = rr.verify(reference, path, inputs=IMAGES)
        assert report.verdict != "disagree", (report.reason, report.diagnosis)


@pytest.mark.parametrize("form", [float_sum, rounded_sum], ids=lambda form: form.__name__)
def test_a_wrong_bias_behind_the_product_is_found(
    form: Callable[[Any], None], tmp_path: Path
) -> None:
    def dropped(proto: Any) -> None:
        names = {each.name for each in proto.graph.initializer}
        changed(proto, "b8" if "b8" in names else "beside0", np.zeros_like)

    report = rr.verify(MODEL, written(tmp_path, "qdq", form, dropped))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    assert report.diagnosis[0].bug == "bias-dropped"


def skipping(proto: Any) -> None:
    """A layer reads the numbers of an earlier one, of the same shape."""
    layer = next(each for each in proto.graph.node if each.name == "stage1.1.x")
    layer.input[:] = ["stage0", "stage0.scale", "stage0.zero_point"]


def other_meaning(proto: Any) -> None:
    """A layer takes its input's numbers for others than they are."""
    add_constant(proto, "half", np.float32(0.013))
    node = next(each for each in proto.graph.node if each.name == "stage1.1.x")
    node.input[1] = "half"


def own_domain(proto: Any) -> None:
    node_of(proto, "Relu").domain = "somebody"


@pytest.mark.parametrize(
    "edit", [skipping, other_meaning, own_domain], ids=lambda edit: edit.__name__
)
def test_what_is_no_chain_is_refused(edit: Callable[[Any], None], tmp_path: Path) -> None:
    report = rr.verify(MODEL, written(tmp_path, "qdq", edit))
    assert report.verdict == "cannot-judge", report.reason


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("kept", [["Add"], []], ids=["Add in float", "Add quantised"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_products_and_sums_of_onnx_runtimes_quantiser(
    form: str, kept: list[str], per_channel: bool, tmp_path: Path
) -> None:
    """Its bias stays behind the product, and is the linear layer's."""
    from tests.peers.test_integer_onnxruntime import quantised_by_runtime

    rr.save(MODEL, tmp_path / "float.onnx")
    proto = onnx.load(str(tmp_path / "float.onnx"))
    gemm = node_of(proto, "Gemm")
    changed(proto, gemm.input[1], lambda array: array.T)
    product = helper.make_node("MatMul", list(gemm.input[:2]), ["product"], "product")
    total = helper.make_node("Add", ["product", gemm.input[2]], list(gemm.output), "total")
    at = list(proto.graph.node).index(gemm)
    proto.graph.node.remove(gemm)
    proto.graph.node.insert(at, product)
    proto.graph.node.insert(at + 1, total)
    onnx.save(proto, str(tmp_path / "product.onnx"))
    out = tmp_path / "q.onnx"
    quantised_by_runtime(
        tmp_path / "product.onnx", out, IMAGES, form, per_channel, exclude=["total"] * bool(kept)
    )
    report = rr.verify(MODEL, out)
    assert report.verdict == "agree", (report.reason, report.diagnosis)
    assert rr.verify(out, out, inputs=IMAGES).verdict != "disagree"


def setting_of(operator: str, name: str, value: Any) -> Callable[[Any], None]:
    """One attribute more."""
    return lambda proto: node_of(proto, operator).attribute.append(
        helper.make_attribute(name, value)
    )


def opset(version: int) -> Callable[[Any], None]:
    def edit(proto: Any) -> None:
        proto.opset_import[0].version = version

    return edit


def float_group(proto: Any) -> None:
    node = node_of(proto, "Conv")
    for each in [each for each in node.attribute if each.name == "group"]:
        node.attribute.remove(each)
    node.attribute.append(helper.make_attribute("group", 1.0))


def strides_of_a_function(proto: Any) -> None:
    strides = next(each for each in node_of(proto, "Conv").attribute if each.name == "strides")
    strides.ClearField("ints")
    strides.ref_attr_name = "steps"


def softmax_of_the_past(proto: Any) -> None:
    behind(("Softmax", None))(proto)
    proto.graph.node[-1].attribute.append(helper.make_attribute("consumed_inputs", [0]))


def no_kernel(proto: Any) -> None:
    node_of(proto, "GlobalAveragePool").op_type = "AveragePool"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (setting_of("Relu", "max", 6.0), "knows no attribute max"),
        (setting_of("QuantizeLinear", "saturate", 1), "opset 17 knows no attribute saturate"),
        (setting_of("QuantizeLinear", "output_dtype", 2), "knows no attribute output_dtype"),
        (setting_of("DequantizeLinear", "block_size", 0), "knows no attribute block_size"),
        (setting_of("Gemm", "alpha", 1), "attribute alpha is not of the type FLOAT"),
        (setting_of("Flatten", "axis", 1), "states the attribute axis twice"),
        (float_group, "attribute group is not of the type INT"),
        (strides_of_a_function, "attribute strides is that of a function around it"),
        (no_kernel, "has no attribute kernel_shape"),
        (softmax_of_the_past, "knows no attribute consumed_inputs"),
        (opset(9), "QuantizeLinear entry: no operator of opset 9"),
        (opset(12), "opset 12 knows no attribute axis"),
        (opset(99), "its opset 99 is newer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_onnx_is_not_judged_and_no_runtime_takes_it(
    edit: Callable[[Any], None], says: str, tmp_path: Path
) -> None:
    """Settings that change nothing, but that the file's opset does not know."""
    path = written(tmp_path, "qdq", edit)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception):  # noqa: B017, PT011 - the runtime's classes are not public
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    report = rr.verify(MODEL, path)
    assert report.verdict == "cannot-judge"
    assert says in report.reason


def bordered(how: str, *, strided: bool = True, pads: bool = False) -> Callable[[Any], None]:
    """Convolutions, or those with stride 1 alone, whose padding is a word."""

    def edit(proto: Any) -> None:
        for node in [each for each in proto.graph.node if each.op_type in ("Conv", "QLinearConv")]:
            known = {each.name: each for each in node.attribute}
            if strided or list(known["strides"].ints) == [1, 1]:
                if not pads:
                    node.attribute.remove(known["pads"])
                node.attribute.append(helper.make_attribute("auto_pad", how))

    return edit


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("edit", "verdict", "says"),
    [
        (bordered("SAME_LOWER"), "agree", ""),
        (bordered("SAME_UPPER", strided=False), "agree", ""),
        (bordered("VALID"), "disagree", "padding is 0, not 1"),
        (bordered("SAME_UPPER"), "cannot-judge", "auto_pad SAME_UPPER with strides [2, 2]"),
        (bordered("SAME_LOWER", pads=True), "cannot-judge", "contradict each other"),
        (bordered("SAME"), "cannot-judge", "no auto_pad that ONNX knows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_padding_in_a_word_is_read_where_it_depends_on_no_image(
    style: Style, edit: Callable[[Any], None], verdict: str, says: str, tmp_path: Path
) -> None:
    path = written(tmp_path, style, edit)
    report = rr.verify(MODEL, path)
    assert report.verdict == verdict, report.reason
    assert says in report.reason
    if verdict == "agree":  # and the runtime gives the numbers of the file with pads
        numbers = rr.verify(tmp_path / "plain.onnx", path, inputs=IMAGES)
        assert numbers.verdict == "agree", numbers.reason


@pytest.mark.parametrize("version", [13, 18, 21, 23])
def test_files_of_other_opsets_are_read(version: int, tmp_path: Path) -> None:
    assert rr.verify(MODEL, written(tmp_path, "qdq", opset(version))).verdict == "agree"
