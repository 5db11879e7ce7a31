"""Runtimes that are right stay within the bounds, and use enough of them to make them worth it.

The score, printed: the largest part of the certified and of the likely bound that any output
element of any layer used. Each layer is judged on the runtime's own input to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.architectures import Architecture, architecture, plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.oracle.bounds.block import Algorithm, block_bound, head_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS, precision_of
from repvgg_ref.oracle.programs.layers import block_program
from repvgg_ref.oracle.programs.program import layer_output
from tests.oracle.bounds.cases import deploy_block
from tests.oracle.bounds.test_block import reference

torch: Any = pytest.importorskip("torch")
onnx: Any = pytest.importorskip("onnx")
ort: Any = pytest.importorskip("onnxruntime")
from tests.peers.torch_repvgg import build_torch, to_torch  # noqa: E402 - it imports torch

pytestmark = pytest.mark.peers

ARCHITECTURES: dict[str, Architecture] = {
    "A0": architecture("RepVGG-A0"),
    "groups of 4": plain_architecture(
        depths=(2, 3, 2), channels=(16, 32, 64, 96), groups=4, num_classes=50
    ),
    "SE before ReLU": plain_architecture(
        depths=(2, 2), channels=(32, 32, 64), se="before_relu", num_classes=50
    ),
    "SE after ReLU": plain_architecture(
        depths=(2, 2), channels=(32, 32, 64), se="after_relu", num_classes=50
    ),
}


class Used(NamedTuple):
    """Largest error over bound."""

    certified: float
    likely: float
    layer: str


def trained(arch: Network, seed: int) -> Model:
    """A model whose batch norms have seen something."""
    model = build(arch, seed=seed)
    rng = np.random.default_rng(seed)
    for name, array in model.params.items():
        kind = name.rsplit(".", 1)[-1]
        low, high = {"gamma": (0.3, 1.2), "running_var": (0.2, 3)}.get(kind, (-0.5, 0.5))
        if kind in ("gamma", "beta", "running_mean", "running_var"):
            model.params[name] = rng.uniform(low, high, array.shape).astype(np.float32)
    return model


def judge(model: Model, x: Array, outputs: dict[str, Array], precision: str) -> Used:
    """Compare every layer on its own input; `outputs` are the runtime's."""
    p = PRECISIONS[precision]
    found: list[Used] = []
    seen = x.astype(np.float64)
    for spec in model.arch.blocks:
        program = block_program(model, spec)
        y = layer_output(program, seen)
        bound = block_bound(program, seen, y, p)
        found.append(_used(spec.name, outputs[spec.name], y, bound))
        seen = outputs[spec.name].astype(np.float64)
    weight, bias = (model.params[f"linear.{n}"].astype(np.float64) for n in ("weight", "bias"))
    y = seen.mean(axis=(2, 3)) @ weight.T + bias
    found.append(_used("linear", outputs["linear"], y, head_bound(weight, bias, seen, y, p)))
    return max(found)


def _used(layer: str, y_hat: Array, y: Array, bound: Any) -> Used:
    error = np.abs(y_hat.astype(np.float64) - y)
    if not (error <= bound.certified).all():  # NaN must fail
        raise AssertionError(f"{layer}: {float((error / bound.certified).max())} of the bound")
    return Used(float((error / bound.certified).max()), float((error / bound.likely).max()), layer)


Runtime = Callable[[Model, Array, Path], dict[str, Array]]


def _torch(dtype: Any, *, fused: bool = False, channels_last: bool = False) -> Runtime:
    def run(model: Model, x: Array, folder: Path) -> dict[str, Array]:
        del folder
        chosen = fuse(model) if fused else model
        module = build_torch(chosen.arch, deploy=fused, eps=model.eps)
        module.load_state_dict(to_torch(chosen.state_dict()))
        module = module.eval().to(dtype)
        image = torch.tensor(x).to(dtype)
        if channels_last:
            module, image = (v.to(memory_format=torch.channels_last) for v in (module, image))
        with torch.no_grad():
            return {name: y.float().numpy() for name, y in module.layers(image)}

    return run


def _onnx_file(model: Model, x: Array, folder: Path) -> Path:
    """The fused model with every layer's output an output of the graph."""
    path = folder / "model.onnx"
    write_onnx(path, model.arch, fuse(model).params, metadata={}, size=x.shape[2:])
    graph = onnx.load(path)
    taps = [n for n in model.arch.layer_names if n not in {o.name for o in graph.graph.output}]
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in taps
    )
    onnx.save(graph, path)
    return path


def _onnxruntime(*, half: bool = False) -> Runtime:
    def run(model: Model, x: Array, folder: Path) -> dict[str, Array]:
        path = _onnx_file(model, x, folder)
        if half:
            _halve(path)
            x = x.astype(np.float16)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {"input": x}), strict=True))

    return run


def _halve(path: Path) -> None:
    """Make every tensor of an ONNX file float16."""
    model = onnx.load(path)
    for i, tensor in enumerate(model.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            half = onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name)
            model.graph.initializer[i].CopyFrom(half)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, path)


def _openvino(hint: str) -> Runtime:
    def run(model: Model, x: Array, folder: Path) -> dict[str, Array]:
        openvino = pytest.importorskip("openvino")
        core = openvino.Core()
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has no bfloat16: OpenVINO would run in float32")
        compiled = core.compile_model(
            _onnx_file(model, x, folder), "CPU", {"INFERENCE_PRECISION_HINT": hint}
        )
        found = compiled(x)
        return {min(port.names, key=len): np.array(value) for port, value in found.items()}

    return run


# Name -> precision, how to run it, and how little of the bound it may use before the bound is
# called useless (over all layers of a model, so it is the most used element).
RUNTIMES: dict[str, tuple[str, Runtime, float]] = {
    "torch fp32": ("fp32", _torch(torch.float32), 5e-3),
    "torch fp32 fused": ("fp32", _torch(torch.float32, fused=True), 5e-3),
    "torch fp32 channels last": ("fp32", _torch(torch.float32, channels_last=True), 5e-3),
    "torch bf16": ("bf16", _torch(torch.bfloat16), 2e-2),
    "torch bf16 fused": ("bf16", _torch(torch.bfloat16, fused=True), 2e-2),
    "torch fp16": ("fp16", _torch(torch.float16), 2e-2),
    "torch fp16 fused": ("fp16", _torch(torch.float16, fused=True), 2e-2),
    "onnxruntime fp32": ("fp32", _onnxruntime(), 5e-3),
    "onnxruntime fp16": ("fp16", _onnxruntime(half=True), 2e-2),
    "openvino fp32": ("fp32", _openvino("f32"), 5e-3),
    "openvino bf16": ("bf16", _openvino("bf16"), 1e-2),
}


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_right_runtime_is_within_the_bounds(
    runtime: str, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    precision, run, least = RUNTIMES[runtime]
    model = trained(ARCHITECTURES[name], seed=len(name))
    x = np.random.default_rng(1).normal(size=(2, 3, 48, 64)).astype(np.float32)
    outputs = run(model, x, tmp_path)
    used = judge(model, x, outputs, precision)
    record_property(
        f"bound used by {runtime} on {name}",
        f"{used.certified:.1%} of certified at {used.layer}, {used.likely:.1%} of likely",
    )
    assert used.certified >= least, "the bound is too loose to be of use"
    assert used.likely <= 1


def test_sixteen_bit_runtimes_give_themselves_away(tmp_path: Path) -> None:
    model = trained(ARCHITECTURES["groups of 4"], seed=0)
    x = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    for runtime in ("torch fp32", "torch bf16", "torch fp16", "onnxruntime fp16"):
        precision, run, _ = RUNTIMES[runtime]
        assert precision_of(run(model, x, tmp_path)) == precision, runtime


def test_a_lower_precision_is_not_within_the_bounds_of_a_higher_one(tmp_path: Path) -> None:
    model = trained(ARCHITECTURES["groups of 4"], seed=0)
    x = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    for runtime, higher in (("torch bf16", "fp16"), ("torch fp16", "fp32")):
        with pytest.raises(AssertionError, match="of the bound"):
            judge(model, x, RUNTIMES[runtime][1](model, x, tmp_path), higher)


def _ncnn_layers() -> Iterator[tuple[int, int]]:
    """Channels and image sizes at which ncnn picks F(2, 3), F(4, 3) or F(6, 3)."""
    yield from ((16, 14), (32, 28), (64, 28), (128, 12), (256, 7))


@pytest.mark.parametrize(("channels", "size"), list(_ncnn_layers()))
@pytest.mark.parametrize("winograd", [False, True])
def test_ncnn_is_within_the_bounds_of_its_algorithm(
    channels: int, size: int, winograd: bool, record_property: Callable[[str, object], None]
) -> None:
    """A convolution with ReLU, by Winograd's algorithm and without, as ncnn computes it."""
    ncnn = pytest.importorskip("ncnn")
    rng = np.random.default_rng(channels)
    weight = rng.normal(size=(channels, channels, 3, 3)).astype(np.float32)
    bias = rng.normal(size=channels).astype(np.float32)
    x = np.maximum(rng.normal(size=(1, channels, size, size)), 0).astype(np.float32)
    program = deploy_block(weight, bias)
    y = reference(program, x)
    y_hat = _ncnn(ncnn, weight, bias, x[0], winograd)[None].astype(np.float64)
    algorithms: tuple[Algorithm, ...] = ("direct", "winograd2", "winograd4", "winograd6")
    shares = {}
    for algorithm in algorithms:
        bound = block_bound(program, x, y, PRECISIONS["fp32"], algorithm=algorithm)
        shares[algorithm] = float((np.abs(y_hat - y) / bound.certified).max())
    record_property(f"bound used by ncnn, winograd={winograd}, {channels} channels", shares)
    assert shares["winograd6" if winograd else "direct"] <= 1


def _ncnn(ncnn: Any, weight: Array, bias: Array, x: Array, winograd: bool) -> Array:
    """One layer: the text of a net, its weights behind a flag that says float32."""
    net = ncnn.Net()
    net.opt.use_winograd_convolution = winograd
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    net.opt.num_threads = 1
    o = len(weight)
    net.load_param_mem(
        "7767517\n2 2\nInput in 0 1 in\n"
        f"Convolution conv 1 1 in out 0={o} 1=3 4=1 5=1 6={weight.size} 9=1\n"
    )
    net.load_model_mem(b"\0\0\0\0" + weight.tobytes() + bias.tobytes())
    with net.create_extractor() as extractor:
        extractor.input("in", ncnn.Mat(np.ascontiguousarray(x)))
        return np.array(extractor.extract("out")[1])
