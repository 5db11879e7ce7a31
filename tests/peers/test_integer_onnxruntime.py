"""Integer layers against ONNX Runtime's own kernels, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.data.digits import MODEL_PATH, load_digits, to_input
from repvgg_ref.files.integer_onnx import write_integer_onnx
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import quantize
from repvgg_ref.oracle.integers.onnx_reading import read_integer_onnx
from tests.integer.networks import chain, conv, images, quantization

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from tests.peers.integer_edits import EXACT, exact_sums  # noqa: E402, F401 - needs onnx, a fixture
from tests.peers.onnx_edits import changed  # noqa: E402 - needs onnx

pytestmark = pytest.mark.peers


def options_of(*, exact: bool) -> Any:
    """`exact`: without VNNI, too, sums of two products of uint8 and int8 do not saturate.

    Not for int8 activations, which are exact without it, and with it are not.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry(*EXACT if exact else (EXACT[0], "0"))
    return options


def qlinear_conv(layer: IntegerLayer, x: Any, *, exact: bool = True) -> Any:
    """What ONNX Runtime's QLinearConv makes of the layer; ReLU by the caller."""
    from onnx import TensorProto, helper, numpy_helper

    arrays = {
        "xs": layer.input.scale,
        "xz": layer.input.zero_point,
        "w": layer.weight,
        "ws": layer.weight_scale,
        "wz": np.zeros(len(layer.weight_scale), np.int8),  # type: ignore[arg-type]
        "ys": layer.output.scale,
        "yz": layer.output.zero_point,
        "b": layer.bias,
    }
    node = helper.make_node(
        "QLinearConv",
        ["x", *arrays],
        ["y"],
        strides=[layer.stride] * 2,
        pads=[layer.padding] * 4,
        dilations=[layer.dilation] * 2,
        group=layer.groups,
    )
    kind = {np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8}[layer.input.dtype.type]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, list(x.shape))],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(
        model.SerializeToString(),
        options_of(exact=exact and x.dtype == np.uint8),
        providers=["CPUExecutionProvider"],
    )
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2}, {"groups": 4, "stride": 2}],
    ids=str,
)
def test_float_even_is_what_qlinearconv_computes(settings: dict[str, Any], dtype: Any) -> None:
    low = np.iinfo(dtype).min
    for seed in range(4):
        before = quantization(0.013 * (seed + 1), low + 31 * seed, dtype)
        after = quantization(0.5**seed, low + 128, dtype)  # powers of two: halves occur
        layer = conv("layer", 16, 12, before, after, seed=seed, relu=False, **settings)
        x = np.random.default_rng(seed).integers(low, low + 256, (2, 16, 13, 11)).astype(dtype)
        np.testing.assert_array_equal(layer.forward(x, "float-even"), qlinear_conv(layer, x))


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2}, {"groups": 4, "stride": 2}]
)
def test_machines_without_vnni_saturate_pairs_as_the_bug_of_that_name(
    settings: dict[str, Any],
) -> None:
    before, after = quantization(0.04, 62, np.uint8), quantization(0.25, 128, np.uint8)
    layer = conv("layer", 16, 12, before, after, seed=2, relu=False, **settings)
    x = np.random.default_rng(2).integers(0, 256, (2, 16, 13, 11)).astype(np.uint8)
    numbers = {"input": x, "layer": qlinear_conv(layer, x, exact=False)}
    report = rr.verify(IntegerNetwork((layer,), "float-even"), numbers)
    if report.verdict == "agree":
        pytest.skip("this machine has VNNI")
    assert [finding.bug for finding in report.diagnosis] == ["pairs-saturate-16"]


def test_exact_halves_go_where_onnx_runtime_sends_them() -> None:
    """M = 1/4 puts a quarter of the sums onto halves."""
    from dataclasses import replace

    before, after = quantization(0.25, 0), quantization(1.0, 3)
    layer = conv("layer", 4, 4, before, after, seed=1, relu=False)
    weight = np.random.default_rng(2).integers(-2, 3, layer.weight.shape).astype(np.int8)  # type: ignore[union-attr]
    layer = replace(
        layer, weight=weight, weight_scale=np.ones(4, np.float32), bias=np.arange(4, dtype=np.int32)
    )
    x = np.random.default_rng(3).integers(-9, 10, (2, 4, 30, 30)).astype(np.int8)
    sums = layer.accumulate(x)
    assert (sums % 4 == 2).mean() > 0.2
    np.testing.assert_array_equal(layer.forward(x, "float-even"), qlinear_conv(layer, x))
    assert (layer.forward(x, "single") != qlinear_conv(layer, x)).any()


def outputs_of(path: Any, x: Any, *, level: str = "all") -> dict[str, Any]:
    """Every layer's numbers, tapped."""
    model = onnx.load(str(path))
    names = [node.name for node in model.graph.node if node.name in LAYERS]
    for name in names:
        kind = onnx.TensorProto.UINT8 if "uint8" in path.name else onnx.TensorProto.INT8
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    options = options_of(exact="uint8" in path.name)
    options.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[level]
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, {"input": x}), strict=True))


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_models_of_onnx_runtimes_own_quantiser_agree(
    form: str, per_channel: bool, tmp_path: Any
) -> None:
    """Nobody here wrote that quantiser: its integers are right, and its runtime gives our bits."""
    quantised = tmp_path / "quantised.onnx"
    model = rr.load(MODEL_PATH)
    x = to_input(load_digits().test.images[:24])
    rr.save(rr.fuse(model), tmp_path / "float.onnx")
    quantised_by_runtime(tmp_path / "float.onnx", quantised, x, form, per_channel)
    report = rr.verify(model, quantised)
    assert report.verdict == "agree", report.reason
    own = rr.verify(quantised, quantised, inputs=x)
    assert own.verdict == "agree", own.reason
    assert "float-even" in own.to_json()["schemes"]
    assert len(own.layers) >= 10


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
@pytest.mark.parametrize(("form", "per_channel"), [("QDQ", False), ("QOperator", True)])
def test_asymmetric_weights_of_its_quantiser_agree_and_their_zero_points_count(
    form: str, per_channel: bool, kind: str, tmp_path: Any
) -> None:
    """Weights less their zero points leave int8, and the runtime still gives our bits."""
    path, model = tmp_path / "quantised.onnx", rr.load(MODEL_PATH)
    x = to_input(load_digits().test.images[:8])
    rr.save(rr.fuse(model), tmp_path / "float.onnx")
    quantised_by_runtime(
        tmp_path / "float.onnx", path, x, form, per_channel, kind=kind, symmetric=False
    )
    layers = [each for each in read_integer_onnx(path).network.layers if each.weight is not None]
    assert all(each.weight.dtype == np.int16 for each in layers)  # type: ignore[union-attr]
    zeros = [each.weight_zero_point for each in layers]
    assert all(each is not None and (each.size > 1) == per_channel for each in zeros)
    for report in (rr.verify(model, path), rr.verify(path, path, inputs=x)):
        assert report.verdict == "agree", report.reason
    proto = onnx.load(str(path))
    name = next(
        each.name
        for each in proto.graph.initializer
        if each.name.startswith("stage1.0") and each.name.endswith("weight_zero_point")
    )
    changed(proto, name, lambda array: array + np.ones_like(array))
    onnx.save(proto, str(tmp_path / "wrong.onnx"))
    wrong = rr.verify(model, tmp_path / "wrong.onnx")
    assert (wrong.verdict, wrong.first_bad_layer) == ("disagree", "stage1.0")
    assert [finding.bug for finding in wrong.diagnosis] == ["weight-zero-point"]
    assert "off by -1" in wrong.diagnosis[0].says


def test_a_wrong_weight_in_a_quantised_file_is_placed(tmp_path: Any) -> None:
    model = rr.load(MODEL_PATH)
    x = to_input(load_digits().test.images[:24])
    rr.save(rr.fuse(model), tmp_path / "float.onnx")
    quantised_by_runtime(tmp_path / "float.onnx", tmp_path / "q.onnx", x, "QDQ", True)
    edited = onnx.load(str(tmp_path / "q.onnx"))
    for tensor in edited.graph.initializer:
        if tensor.name.startswith("stage2.0") and tensor.name.endswith("weight_quantized"):
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[3, 2, 1, 1] ^= 16
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
            break
    else:
        raise AssertionError([tensor.name for tensor in edited.graph.initializer])
    onnx.save(edited, str(tmp_path / "wrong.onnx"))
    report = rr.verify(model, tmp_path / "wrong.onnx")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage2.0")
    assert "channels 3" in report.diagnosis[0].says


def quantised_by_runtime(
    source: Any,
    target: Any,
    x: Any,
    form: str,
    per_channel: bool,
    exclude: Any = (),
    *,
    kind: str = "QInt8",
    symmetric: bool = True,
    activations: str = "QUInt8",
    centred: bool = False,
) -> None:
    """`centred`: activations, too, have the zero point in the middle of their type."""
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(x[:, None])

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {"input": image}

    quantization.quantize_static(
        str(source),
        str(target),
        Images(),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        weight_type=quantization.QuantType[kind],
        activation_type=quantization.QuantType[activations],
        nodes_to_exclude=list(exclude),
        extra_options={"WeightSymmetric": symmetric, "ActivationSymmetric": centred},
    )


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_symmetric_activations_are_judged(
    form: str, activations: str, per_channel: bool, tmp_path: Any
) -> None:
    """Operators on integers then leave a ReLU of real numbers in front of the pool."""
    from tests.peers.test_integer_forms import IMAGES, MODEL

    rr.save(MODEL, tmp_path / "float.onnx")
    path = tmp_path / "q.onnx"
    quantised_by_runtime(
        tmp_path / "float.onnx",
        path,
        IMAGES,
        form,
        per_channel,
        activations=activations,
        centred=True,
    )
    report = rr.verify(MODEL, path)
    assert report.verdict == "agree", report.reason
    if activations == "QInt8":  # of uint8 machines without VNNI saturate sums of two products
        assert rr.verify(path, path, inputs=IMAGES).verdict == "agree"
    proto = onnx.load(str(path))
    *_, last = (node for node in proto.graph.node if node.op_type == "Relu")
    for node in proto.graph.node:
        node.input[:] = [last.input[0] if each == last.output[0] else each for each in node.input]
    proto.graph.node.remove(last)
    onnx.save(proto, str(path))
    wrong = rr.verify(MODEL, path)
    assert (wrong.verdict, wrong.first_bad_layer) == ("disagree", "stage2.1")
    assert [finding.bug for finding in wrong.diagnosis] == ["relu-missing"]


LAYERS = [layer.name for layer in chain().layers]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("style", ["qlinear", "qdq"])
def test_our_onnx_files_give_the_bits_of_float_even(style: Any, dtype: Any, tmp_path: Any) -> None:
    for seed in range(4):
        network = chain(seed=seed, dtype=dtype, rounding="float-even", post_relu=True)
        path = tmp_path / f"{np.dtype(dtype).name}.onnx"
        write_integer_onnx(path, network, style=style)
        x = network.layers[0].input.real(images(network, seed=seed))
        wanted = network.forward(x)
        found = outputs_of(path, x)
        assert found.keys() == wanted.keys()
        for name, numbers in wanted.items():
            np.testing.assert_array_equal(found[name], numbers, err_msg=f"{name}, seed {seed}")


def test_openvino_runs_our_pairs_and_is_not_accused(tmp_path: Any) -> None:
    openvino = pytest.importorskip("openvino")
    x = to_input(load_digits().test.images[:8])
    network = quantize(rr.load(MODEL_PATH), to_input(load_digits().train.images[:64]))
    write_integer_onnx(tmp_path / "q.onnx", network, style="qdq")
    read = read_integer_onnx(tmp_path / "q.onnx")
    for tensor in read.tensors.values():
        read.model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    onnx.save(read.model, str(tmp_path / "tapped.onnx"))
    core = openvino.Core()
    model = core.read_model(str(tmp_path / "tapped.onnx"))
    # Without it a machine with bfloat16 finds no kernel for tapped pairs.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled([x])
    numbers = {name: np.array(answers[compiled.output(t)]) for name, t in read.tensors.items()}
    report = rr.verify(network, numbers)
    assert report.verdict == "agree", report.reason
