"""What an ONNX file holds is read: right files in unusual shapes agree, wrong ones are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.comparison import compare
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Outputs, WeightsCandidate, resolve
from repvgg_ref.oracle.diagnosis.file_evidence import is_rounded_once, with_file_evidence
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Finding, LayerReport, Report, Verdict
from repvgg_ref.oracle.verification import verify
from tests.oracle.candidates.ports import deployed, images, network
from tests.peers.candidate_graphs import Style, onnx_model, saved
from tests.peers.onnx_edits import add_constant, changed, convolutions, one_tap_off, stored
from tests.peers.onnx_ends import behind
from tests.peers.onnx_variants import RIGHT, WRONG
from tests.random_networks import random_model

pytestmark = pytest.mark.peers


def run(path: Path, model: Model, x: Array | None = None) -> tuple[Outputs, Array]:
    """The candidate's layers, and what enters the first: made so that `images()` would."""
    found = resolve(path, model.arch)
    assert not isinstance(found, WeightsCandidate)
    shape = found.input_shape() or (None,) * 4
    x = images() if x is None else x
    if shape[2] is not None and shape[3] is not None:
        x = np.resize(x, (2, 3, shape[2], shape[3]))
    outputs = found.run(found.images(x))
    return outputs, x if outputs.x is None else outputs.x


def judged(path: Path, model: Model) -> Report:
    """Values and file, without the search for bugs that hide in rounding."""
    outputs, x = run(path, model)
    layers = {}
    for name, program in Programs(model).items():
        if name not in outputs.layers:
            continue
        y_hat = np.asarray(outputs.layers[name], np.float64)
        layers[name] = compare(program, np.asarray(x, np.float64), y_hat, PRECISIONS["fp32"]).report
        x = y_hat
    bad = next((name for name, layer in layers.items() if not layer.ok), None)
    verdict: Verdict = "agree" if bad is None and outputs.problem is None else "disagree"
    report = Report(verdict, "", "m", "c", "fp32", tuple(layers.values()), (), bad, outputs.notes)
    return with_file_evidence(report, Programs(model), outputs.evidence)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_graph_agrees_and_all_of_its_kernels_are_read(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "m.onnx", RIGHT[name]())
    report = judged(path, network())
    assert report.verdict == "agree", (report.reason, report.notes)
    assert len(report.layers) == 7
    assert "the file's weights were compared tap by tap in 7 of 7 layers" in report.notes


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_graph_is_placed(tmp_path: Path, name: str) -> None:
    wrong = WRONG[name]
    report = judged(saved(tmp_path / "m.onnx", wrong.make()), network())
    assert report.verdict == "disagree"
    assert report.first_bad_layer == wrong.layer
    if wrong.bugs != ("input-bgr",):  # which the values tell
        assert {finding.bug for finding in report.diagnosis} & set(wrong.bugs)


@pytest.mark.parametrize("form", ["bn", "folded", "fused"])
@pytest.mark.parametrize(("se", "groups"), [("none", 2), ("before_relu", 1), ("after_relu", 1)])
@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
def test_what_onnx_runtime_has_saved_is_read(
    tmp_path: Path, form: str, se: Any, groups: int, level: str
) -> None:
    model = network(se, groups)
    right = optimised(tmp_path, onnx_model(model, Style(form=form)), level)
    report = judged(right, model)
    assert report.verdict == "agree", (report.reason, report.notes)
    assert "the file's weights were compared tap by tap in 7 of 7 layers" in report.notes
    wrong = one_tap_off(4, form=form, se=se, groups=groups)
    report = judged(optimised(tmp_path, wrong, level), model)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage2.1")
    assert report.diagnosis[0].bug == "taps-altered"


@pytest.mark.parametrize("level", ["BASIC", "ALL"])
def test_a_wrong_bias_shows_among_branches_that_the_runtime_has_folded(
    tmp_path: Path, level: str
) -> None:
    """Their sum is right to float32's rounding of each branch, and to no less."""
    proto = onnx_model(network(), Style(form="bn"))
    norm = next(node for node in proto.graph.node if node.op_type == "BatchNormalization")

    def edited(beta: Array) -> Array:
        beta[3] += np.float32(3e-5)
        return beta

    changed(proto, norm.input[2], edited)
    report = judged(optimised(tmp_path, proto, level), network())
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")
    assert "1 taps in 1 of 32 channels" in report.reason
    assert "biases" in report.reason


@pytest.mark.parametrize("form", ["bn", "fused"])
@pytest.mark.parametrize("channels", [(24, 40, 56), (8, 8, 8)])
def test_blocks_of_channels_need_not_be_full(
    tmp_path: Path, form: str, channels: tuple[int, ...]
) -> None:
    arch = plain_architecture(depths=(2, 2), channels=channels, num_classes=5)
    model = random_model(arch, 3)
    report = judged(optimised(tmp_path, onnx_model(model, Style(form=form)), "ALL"), model)
    assert report.verdict == "agree", (report.reason, report.notes)
    assert "the file's weights were compared tap by tap in 6 of 6 layers" in report.notes


def optimised(folder: Path, proto: Any, level: str) -> Path:
    """The graph as ONNX Runtime saves it: NCHWc layouts and all at level ALL."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = getattr(levels, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)
    return folder / "optimised.onnx"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", ["bn", "folded", "fused"])
def test_a_kernel_that_is_read_is_the_exact_one_rounded_once(
    tmp_path: Path, form: str, groups: int
) -> None:
    model = network("none", groups)
    path = saved(tmp_path / "m.onnx", onnx_model(model, Style(form=form, split_groups=groups > 1)))
    evidence = run(path, model)[0].evidence
    assert evidence is not None
    exact = {n: p.fused_kernel() for n, p in Programs(model).items() if n != "linear"}
    read = {n: k for n, k in evidence.kernels.items() if n != "linear"}
    assert list(read) == list(exact)
    if form != "folded":  # which rounds every branch
        assert all(is_rounded_once(exact[name], kernel) for name, kernel in read.items())
    for name, kernel in read.items():
        error = np.abs(kernel.weight - exact[name].weight).max()
        assert error <= 3e-7 * np.abs(exact[name].weight).max()


def test_a_choice_is_doubted(tmp_path: Path) -> None:
    """ReLU as a choice: right on these values, and what else it may do is not known."""

    def chosen(graph: Any, x: str) -> str:
        zero = graph.constant(0.0)
        return str(graph.add("Where", graph.add("Greater", x, zero), x, zero))

    proto = onnx_model(network(), Style(form="fused", between=chosen))
    report = judged(saved(tmp_path / "m.onnx", proto), network())
    assert report.verdict == "cannot-judge"
    assert "Where" in report.reason


def dequantised(weight: Array) -> tuple[Array, Array]:
    """8 bits and a scale a channel."""
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    return np.rint(weight / scale[:, None, None, None]).astype(np.int8), scale


def test_dequantised_weights_are_read_as_what_they_are(tmp_path: Path) -> None:
    proto = onnx_model(network(), Style(form="fused"))
    wanted = {}
    names = [name for name in network().arch.layer_names if name != "linear"]
    for layer, node in zip(names, convolutions(proto), strict=True):
        tensor = stored(proto, node.input[1])
        whole, scale = dequantised(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(whole, tensor.name))
        add_constant(proto, f"{tensor.name}/scale", scale)
        add_constant(proto, f"{tensor.name}/zero", np.zeros(len(scale), np.int8))
        parts = [tensor.name, f"{tensor.name}/scale", f"{tensor.name}/zero"]
        node.input[1] = f"{tensor.name}/used"
        proto.graph.node.insert(
            0, helper.make_node("DequantizeLinear", parts, [node.input[1]], axis=0)
        )
        wanted[layer] = whole * scale[:, None, None, None]
    path = saved(tmp_path / "m.onnx", proto)
    evidence = run(path, network())[0].evidence
    assert evidence is not None
    for layer, weight in wanted.items():
        assert np.array_equal(evidence.kernels[layer].weight, weight)
    report = judged(path, network())
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")


@pytest.mark.parametrize("form", ["bn", "folded", "fused"])
def test_half_precision_is_no_wrong_weight(tmp_path: Path, form: str) -> None:
    """One kernel a layer is compared in its type; rounded branches are said not to be."""
    path = saved(tmp_path / "m.onnx", onnx_model(network(), Style(form=form, dtype=np.float16)))
    evidence = run(path, network())[0].evidence
    assert evidence is not None
    right = Report("agree", "", "m", "c", "fp16")
    report = with_file_evidence(right, Programs(network()), evidence)
    assert report.verdict == "agree"
    assert len(evidence.kernels) == (7 if form == "fused" else 1)
    assert any("stage0 (float16)" in note for note in report.notes) == (form != "fused")


def in_half_precision(*, cast: bool) -> Any:
    """Weights kept in float16, and cast; or the float32 numbers that ONNX Runtime makes of that."""
    proto = onnx_model(network(), Style(form="fused"))
    for tensor in list(proto.graph.initializer):
        if len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor).copy()
        if values.ndim == 4:
            values[0, :2] *= np.float32(1e-5)  # where float16 has few bits
        half, name = values.astype(np.float16), tensor.name
        if cast:
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}/half"))
            proto.graph.node.insert(0, helper.make_node("Cast", [f"{name}/half"], [name], to=1))
        else:
            tensor.CopyFrom(numpy_helper.from_array(half.astype(np.float32), name))
    return proto


def reference_of_small_taps() -> Model:
    """`network()` fused, some taps of every kernel as small as `in_half_precision` has them."""
    model = deployed()
    params = {name: array.copy() for name, array in model.params.items()}
    for array in params.values():
        if array.ndim == 4:
            array[0, :2] *= np.float32(1e-5)
    return replace(model, params=params)


@pytest.mark.parametrize("cast", [True, False])
def test_weights_in_half_precision_are_held_to_what_the_port_is_held_to(
    tmp_path: Path, cast: bool
) -> None:
    path = saved(tmp_path / "m.onnx", in_half_precision(cast=cast))
    model = reference_of_small_taps()
    evidence = run(path, model)[0].evidence
    assert evidence is not None
    right = Report("agree", "", "m", "c", "fp16")
    assert with_file_evidence(right, Programs(model), evidence).verdict == "agree"
    for layer in ("linear", "stage1.0"):
        kernel = evidence.kernels[layer]
        weight = kernel.weight.copy()
        weight[2, 5, -1, 0] *= 1.01
        kernels = {**evidence.kernels, layer: kernel._replace(weight=weight)}
        report = with_file_evidence(right, Programs(model), replace(evidence, kernels=kernels))
        assert (report.verdict, report.first_bad_layer) == ("disagree", layer)


def test_rounded_weights_are_not_called_right(tmp_path: Path) -> None:
    """Values and file say the same of a float32 port, and say it once."""
    path = saved(tmp_path / "m.onnx", in_half_precision(cast=True))
    model = reference_of_small_taps()
    report = judged(path, model)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")
    assert [finding.bug for finding in report.diagnosis] == ["weights-fp16"]
    assert not any("computed differently" in note for note in report.notes)
    again = with_file_evidence(report, Programs(model), run(path, model)[0].evidence)
    assert (again.diagnosis, again.reason) == (report.diagnosis, report.reason)


def test_verify_takes_file_and_values_together(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", one_tap_off(3))
    report = verify(network(), path, inputs=images())
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage2.0")
    assert report.diagnosis[0].bug == "taps-altered"
    assert "channel 3" in report.reason


def test_numbers_in_the_file_come_before_what_outputs_made_of_them(tmp_path: Path) -> None:
    """Few pixels or inputs that are alike tell weights apart badly; a bug of the library stays."""
    path = saved(tmp_path / "m.onnx", one_tap_off(3))
    evidence = run(path, network())[0].evidence
    seen = tuple(
        Finding(bug, "stage2.0", 1e-3, 1.0, 1.0, "as outputs have it")
        for bug in ("channel-scaled", "taps-altered", "relu-missing")
    )
    bad = LayerReport("stage2.0", 1e-6, 1e-5, 0.1, ok=False, note="channel 5 is off")
    report = Report(
        "disagree", "stage2.0: channel 5 is off", "m", "c", "fp32", (bad,), seen, "stage2.0"
    )
    both = with_file_evidence(report, Programs(network()), evidence)
    assert {finding.bug for finding in both.diagnosis} == {"relu-missing", "taps-altered"}
    (taps,) = (finding for finding in both.diagnosis if finding.bug == "taps-altered")
    assert "one tap, in output channel 3" in taps.says
    assert "channel 5" not in both.reason


def test_a_graph_that_swaps_channels_is_told_from_one_that_normalises(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", WRONG["bgr inside, normalised"].make())
    report = verify(network(), path, inputs=images())
    assert report.first_bad_layer == "stage0"
    assert report.diagnosis[0].bug == "input-bgr"


def test_the_output_that_is_judged_is_named_and_so_are_the_others(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", RIGHT["an auxiliary head first"]())
    assert any("not judged: second" in note for note in run(path, network())[0].notes)


def test_a_channel_taken_away_cannot_be_judged(tmp_path: Path) -> None:
    style = Style(
        form="fused",
        entrance=lambda g, x: g.add("Mul", x, g.constant(np.reshape([1, 0, 1], (3, 1, 1)))),
    )
    report = verify(network(), saved(tmp_path / "m.onnx", onnx_model(network(), style)))
    assert report.verdict == "cannot-judge"
    assert "channel 1 times 0" in report.reason


def test_arg_max_is_customary(tmp_path: Path) -> None:
    proto = onnx_model(
        network(), replace(Style(form="fused"), tail=lambda g, x: g.add("ArgMax", x, axis=1))
    )
    proto.graph.output[0].type.tensor_type.elem_type = 7
    report = judged(saved(tmp_path / "m.onnx", proto), network())
    assert report.verdict == "agree"
    assert any("arg max" in note for note in report.notes)
    proto = onnx_model(
        network(), replace(Style(form="fused"), tail=lambda g, x: g.add("ArgMax", x, axis=0))
    )
    proto.graph.output[0].type.tensor_type.elem_type = 7
    assert judged(saved(tmp_path / "n.onnx", proto), network()).verdict == "disagree"


@pytest.mark.parametrize(("narrow", "name"), [(10, "float16"), (16, "bfloat16")])
def test_logits_that_are_cast_at_the_end_are_no_rounded_weights(
    tmp_path: Path, narrow: int, name: str
) -> None:
    """The values say that they are kept in fewer bits; whoever asks for no more gets a pass."""
    proto = behind(lambda graph, x: graph.add("Cast", graph.add("Cast", x, to=narrow), to=1))
    path = saved(tmp_path / "m.onnx", proto)
    report = verify(network(), path, inputs=images())
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    assert [finding.bug for finding in report.diagnosis] == ["output-rounded"]
    assert name in report.diagnosis[0].says
    asked = {"float16": "fp16", "bfloat16": "bf16"}[name]
    assert verify(network(), path, inputs=images(), precision=asked).verdict == "agree"
