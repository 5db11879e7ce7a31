# mypy: allow-subclassing-any
"""ONNX files of PSPNets, ours and torch's, at every level of ONNX Runtime: right ones, wrong ones.

The faults are planted in the torch network, with torch's own operators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.pspnet import pspnet
from tests.models.segmenters import AUX, CHANNELS, CLASSES, DEPTHS, HEAD
from tests.oracle.graphs.ports import MODEL
from tests.random_networks import random_model

torch: Any = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers

LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
SIZE = (41, 89)  # features of 6 x 12: the older exporter of torch wants bins that divide them
Fault = Callable[[Any], None]


def peer() -> Any:
    from tests.peers.torch_pspnet import TorchPSPNet

    net = TorchPSPNet(DEPTHS, CHANNELS, fast=False, classes=CLASSES, width=HEAD, aux=AUX)
    net.load_state_dict({n: torch.tensor(np.asarray(a)) for n, a in MODEL.state_dict().items()})
    return net


class Port(torch.nn.Module):
    """`net` up to its main head's classes, and then `end` of them and the images."""

    def __init__(self, net: Any, end: Callable[..., Any], head: Callable[..., Any] | None) -> None:
        super().__init__()
        self.net, self.end, self.head = net, end, head or net.cls

    def forward(self, x: Any) -> Any:
        y = x
        for stage in range(5):
            y = getattr(self.net, f"layer{stage}")(y)
        return self.end(self.head(self.net.ppm(y)), x)


def resized(y: Any, x: Any, **how: Any) -> Any:
    how = how or {"align_corners": True}
    return torch.nn.functional.interpolate(y, x.shape[2:], mode="bilinear", **how)


def exported(
    path: Path,
    fault: Fault | None = None,
    *,
    end: Callable[..., Any] = resized,
    head: Callable[[Any], Callable[..., Any]] | None = None,
    size: tuple[int, int] = SIZE,
    folded: bool = True,
) -> Path:
    net = peer()
    if fault is not None:
        fault(net)
    port = Port(net, end, None if head is None else head(net)).eval()
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            port,
            (torch.zeros(2, 3, *size),),
            str(path),
            input_names=["images"],
            dynamo=False,
            training=mode,
            do_constant_folding=folded,
        )
    return path


def optimised(path: Path, level: str) -> Path:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(path.with_suffix(f".{level}.onnx"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return path.with_suffix(f".{level}.onnx")


@pytest.mark.few(4)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["ours-13", "ours-18", "fused", "apart"])
def test_right_files_agree_in_every_layer(tmp_path: Path, kind: str, level: str) -> None:
    path = tmp_path / "a.onnx"
    if kind.startswith("ours"):
        save(MODEL, path, opset=int(kind[-2:]))
    else:
        exported(path, folded=kind == "fused")
    report = rr.verify(MODEL, optimised(path, level))
    assert report.verdict == "agree", report.reason
    shown = {layer.name for layer in report.layers}
    assert shown | {"cls.dropout"} == set(MODEL.arch.layer_names)
    assert any("tap by tap in 17 of 17 layers" in note for note in report.notes)


def pyramid(order: tuple[int, ...] = (0, 1, 2, 3, 4), lost: int = -1, **how: Any) -> Fault:
    def plant(net: Any) -> None:
        def forward(self: Any, x: Any) -> Any:
            floors = [
                torch.nn.functional.interpolate(each(x), x.shape[2:], **how)
                for each in self.features
            ]
            parts = [p * 0 if n == lost else p for n, p in enumerate([x, *floors])]
            return torch.cat([parts[n] for n in order], 1)

        net.ppm.forward = MethodType(forward, net.ppm)

    return plant


ALIGNED: dict[str, Any] = {"mode": "bilinear", "align_corners": True}


def other_steps(dilation: int, stride: int = 1) -> Fault:
    def plant(net: Any) -> None:
        for layer in (net.layer3, net.layer4):
            for block in layer:
                block.rbr_dense.conv.dilation = block.rbr_dense.conv.padding = (dilation,) * 2
            layer[0].rbr_dense.conv.stride = layer[0].rbr_1x1.conv.stride = (stride,) * 2

    return plant


def other_eps(net: Any) -> None:
    for head in (net.cls, *net.ppm.features):
        for module in head:
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-3


def other_pool(floor: int, pool: Any) -> Fault:
    def plant(net: Any) -> None:
        net.ppm.features[floor][0] = pool

    return plant


def no_relu(floor: int) -> Fault:
    def plant(net: Any) -> None:
        net.ppm.features[floor][3] = torch.nn.Identity()

    return plant


def exchanged_weights(net: Any) -> None:
    one, two = net.ppm.features[1], net.ppm.features[2]
    one[1], two[1] = two[1], one[1]
    one[2], two[2] = two[2], one[2]


# fault -> the bug's name and the first bad layer
FAULTS: dict[str, tuple[Fault, str, str]] = {
    "half-pixel": (pyramid(mode="bilinear"), "corners-not-aligned", "ppm.1.resize"),
    "nearest": (pyramid(mode="nearest"), "nearest-pixel", "ppm.1.resize"),
    "cubic": (pyramid(mode="bicubic", align_corners=True), "resize-cubic", "ppm.1.resize"),
    "last": (pyramid((1, 2, 3, 4, 0), **ALIGNED), "concat-order", "ppm"),
    "reversed": (pyramid((0, 4, 3, 2, 1), **ALIGNED), "concat-order", "ppm"),
    "twice": (pyramid((0, 1, 1, 3, 4), **ALIGNED), "pyramid-part-twice", "ppm"),
    "zeros": (pyramid(lost=3, **ALIGNED), "pyramid-part-missing", "ppm"),
    "undilated": (other_steps(1), "dilation-ignored", "stage3.0"),
    "dilated by 3": (other_steps(3), "dilation-other", "stage3.0"),
    "eps": (other_eps, "eps-value", "ppm.0"),
    "maxima": (other_pool(2, torch.nn.AdaptiveMaxPool2d(3)), "pool-max", "ppm.2.pool"),
    "bins": (other_pool(3, torch.nn.AdaptiveAvgPool2d(2)), "pool-bins", "ppm.3.pool"),
    "no relu": (no_relu(1), "relu-missing", "ppm.1"),
    "exchanged": (exchanged_weights, "layers-swapped", "ppm.1"),
}


@pytest.mark.few(5)
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_graph_are_placed_and_named(tmp_path: Path, fault: str, level: str) -> None:
    plant, bug, layer = FAULTS[fault]
    path = optimised(exported(tmp_path / "a.onnx", plant), level)
    report = rr.verify(MODEL, path)
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer), report.reason
    assert report.diagnosis[0].bug == bug, report.diagnosis
    assert report.diagnosis[0].is_in(layer)


def scaled_head(net: Any) -> Callable[..., Any]:
    return lambda x: net.cls[4](0.9 * net.cls[2](net.cls[1](net.cls[0](x))))


def in_steps(*sizes: Callable[[int], int], aligned: bool = True) -> Callable[..., Any]:
    """Resized by way of so many pixels for `n`, and then to the images' size."""

    def end(y: Any, x: Any) -> Any:
        how = {"mode": "bilinear", "align_corners": aligned}
        for size in sizes:
            between = tuple(size(n) for n in y.shape[2:])
            y = torch.nn.functional.interpolate(y, between, **how)
        return torch.nn.functional.interpolate(y, x.shape[2:], **how)

    return end


ENDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "none": ({"end": lambda y, x: y}, "resize-missing", "logits"),
    "half-pixel": (
        {"end": lambda y, x: resized(y, x, align_corners=False)},
        "corners-not-aligned",
        "logits",
    ),
    "steps": ({"end": in_steps(lambda n: 4 * n)}, "resize-in-steps", "logits"),
    "three steps": (
        {"end": in_steps(lambda n: 2 * n, lambda n: 2 * n)},
        "resize-in-steps",
        "logits",
    ),
    "transposed": (
        {"end": lambda y, x: resized(y, x).transpose(2, 3)},
        "output-height-width-swapped",
        "logits",
    ),
    "softmax": (
        {"end": lambda y, x: torch.softmax(resized(y, x), 1)},
        "another-output",
        "logits",
    ),
    "dropout": ({"head": scaled_head}, "dropout-scaled", "cls.dropout"),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ENDS)
def test_faults_of_the_ends_are_placed_and_named(tmp_path: Path, name: str) -> None:
    how, bug, layer = ENDS[name]
    report = rr.verify(MODEL, exported(tmp_path / "a.onnx", **how))
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer), report.reason
    assert (report.diagnosis[0].bug, report.diagnosis[0].layer) == (bug, layer)


def test_steps_that_keep_every_pixel_are_right_and_others_have_two_causes(tmp_path: Path) -> None:
    """By way of 2 (h - 1) + 1 pixels a piece between two pixels stays one straight line."""
    end = in_steps(lambda n: 2 * n - 1, lambda n: 2 * n - 1)
    report = rr.verify(MODEL, exported(tmp_path / "a.onnx", end=end))
    assert report.verdict == "agree", report.reason
    end = in_steps(lambda n: 2 * n, aligned=False)
    report = rr.verify(MODEL, exported(tmp_path / "b.onnx", end=end))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "logits"), report.reason
    assert {each.layer for each in report.diagnosis} == {"logits"}
    assert {each.bug for each in report.diagnosis} == {"corners-not-aligned", "resize-in-steps"}


def test_a_backbone_that_kept_its_strides(tmp_path: Path) -> None:
    """A quarter of the size is left for the pyramid, which divides by 6 all the same."""
    path = exported(tmp_path / "a.onnx", other_steps(1, stride=2), size=(161, 353))
    report = rr.verify(MODEL, path)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage3.0")
    assert report.diagnosis[0].bug == "not-dilated"


def test_the_auxiliary_head_for_the_main_one(tmp_path: Path) -> None:

    class Auxiliary(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = peer()

        def forward(self, x: Any) -> Any:
            return self.net(x)[1]

    path = tmp_path / "a.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Auxiliary().eval(), (torch.zeros(2, 3, *SIZE),), str(path), dynamo=False)
    report = rr.verify(MODEL, path)
    assert report.verdict == "disagree"
    assert "no pyramid" in report.reason
    (finding,) = report.diagnosis
    assert (finding.bug, finding.layer) == ("another-output", "logits")
    assert "auxiliary" in finding.says


@pytest.mark.parametrize("layer", ["ppm.features.2.1.weight", "cls.4.weight"])
def test_one_weight_of_the_file_off_by_a_thousandth(tmp_path: Path, layer: str) -> None:
    save(MODEL, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    (tensor,) = (each for each in model.graph.initializer if each.name == layer)
    taps = onnx.numpy_helper.to_array(tensor).copy()
    taps.flat[np.abs(taps).argmax()] *= np.float32(1.001)
    tensor.CopyFrom(onnx.numpy_helper.from_array(taps, layer))
    onnx.save(model, tmp_path / "b.onnx")
    report = rr.verify(MODEL, tmp_path / "b.onnx")
    wanted = {"ppm.features.2.1.weight": "ppm.2", "cls.4.weight": "cls.4"}[layer]
    assert (report.verdict, report.first_bad_layer) == ("disagree", wanted)


def test_attributes_are_evidence_where_values_hide_them(tmp_path: Path) -> None:
    """Images of 9 x 9 leave two pixels a side: the bin 2 is resized to what it is."""
    save(MODEL, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    (node,) = (n for n in model.graph.node if n.name == "ppm.1.resize")
    (how,) = (a for a in node.attribute if a.name == "coordinate_transformation_mode")
    how.s = b"half_pixel"
    onnx.save(model, tmp_path / "b.onnx")
    x = np.random.default_rng(0).normal(size=(1, 3, 9, 9)).astype(np.float32)
    report = rr.verify(MODEL, tmp_path / "b.onnx", inputs=x)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "ppm.1.resize")
    assert report.diagnosis[0].bug == "corners-not-aligned"
    assert "half_pixel" in report.diagnosis[0].says


def test_dropout_in_training_mode_is_told_by_the_file(tmp_path: Path) -> None:
    save(MODEL, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    (node,) = (n for n in model.graph.node if n.name == "cls.dropout")
    node.op_type = "Dropout"
    node.input.extend(["ratio", "mode"])
    settings = {"ratio": np.float32(0.3), "mode": np.array(True)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in settings.items()
    )
    onnx.save(model, tmp_path / "b.onnx")
    report = rr.verify(MODEL, tmp_path / "b.onnx")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "cls.dropout")
    assert report.diagnosis[0].bug == "dropout-left-on"


@pytest.mark.few(1)
@pytest.mark.parametrize("other", ["deeper", "classifier", "the other way"])
def test_graphs_of_other_networks_are_no_traceback(tmp_path: Path, other: str) -> None:
    chain = plain_architecture(depths=(2, 2, 6, 2), channels=CHANNELS, num_classes=3)
    arch: Network = chain
    if other == "deeper":
        arch = pspnet(chain, num_classes=CLASSES, head=HEAD, aux_head=AUX)
    model, reference = random_model(arch, 0), MODEL
    if other == "the other way":
        model, reference = reference, model
    save(model, tmp_path / "a.onnx")
    report = rr.verify(reference, tmp_path / "a.onnx")
    unknown = ["cannot-judge"] if other == "the other way" else []
    assert report.verdict in ["disagree", *unknown]
    said = {"deeper": "13 convolution blocks", "classifier": "no pyramid"}.get(other, "")
    assert any(said in note for note in report.notes) or not said
