"""ncnn, its param and bin files written by hand; Winograd on and off; fp16 and bf16 storage."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.network import Model, fuse
from tests.peers.right_candidates import Port, RightCandidate


class _Writer:
    """Lines of a ``.param`` file, and a ``.bin`` file behind them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.lines, self.blobs = file, list[str](), 0

    def layer(self, kind: str, name: str, inputs: list[str], outputs: list[str], *p: str) -> None:
        ends = [str(len(inputs)), str(len(outputs)), *inputs, *outputs]
        self.lines.append(" ".join([kind, name, *ends, *p]))
        self.blobs += len(outputs)

    def weights(self, weight: Array, bias: Array) -> None:
        """A kernel, marked as float32, and its bias."""
        self.file.write(struct.pack("<I", 0))
        self.file.write(np.ascontiguousarray(weight, "<f4").tobytes())
        self.file.write(np.ascontiguousarray(bias, "<f4").tobytes())

    def conv(
        self, spec: BlockSpec, names: tuple[str, str], weight: Array, bias: Array, *, relu: bool
    ) -> None:
        kernel = weight.shape[2]
        parameters = {
            0: len(weight),
            1: kernel,
            2: spec.dilation if kernel == 3 else 1,
            3: spec.stride,
            4: spec.dilation if kernel == 3 else 0,
            5: 1,
            6: weight.size,
        } | ({7: spec.groups} if spec.groups > 1 else {})
        parameters |= {9: 1} if relu else {}
        kind = "ConvolutionDepthWise" if spec.groups > 1 else "Convolution"
        x, y = names
        self.layer(kind, y, [x], [y], *(f"{k}={v}" for k, v in parameters.items()))
        self.weights(weight, bias)

    def dense(self, names: tuple[str, str], weight: Array, bias: Array, *, relu: bool) -> None:
        x, y = names
        shape = (f"0={len(weight)}", "1=1", f"2={weight.size}", *(["9=1"] if relu else []))
        self.layer("InnerProduct", y, [x], [y], *shape)
        self.weights(weight, bias)

    def squeeze(self, spec: BlockSpec, x: str, y: str, params: dict[str, Array]) -> None:
        se = f"{spec.name}.se"
        self.layer("Split", f"{se}.split", [x], [f"{se}.a", f"{se}.b"])
        self.layer("Pooling", f"{se}.pool", [f"{se}.b"], [f"{se}.pool"], "0=1", "4=1")
        narrow = (f"{se}.pool", f"{se}.narrow")
        down, up = (
            (params[f"{se}.{part}.weight"], params[f"{se}.{part}.bias"]) for part in ("down", "up")
        )
        self.dense(narrow, *down, relu=True)
        self.dense((f"{se}.narrow", f"{se}.wide"), *up, relu=False)
        self.layer("Sigmoid", f"{se}.gate", [f"{se}.wide"], [f"{se}.gate"])
        self.layer("BinaryOp", y, [f"{se}.a", f"{se}.gate"], [y], "0=2")


def _block(writer: _Writer, spec: BlockSpec, x: str, params: dict[str, Array]) -> str:
    name = spec.name
    weight, bias = params[f"{name}.fused.weight"], params[f"{name}.fused.bias"]
    if spec.se == "none":
        writer.conv(spec, (x, name), weight, bias, relu=True)
    elif spec.se == "before_relu":
        writer.conv(spec, (x, f"{name}.conv"), weight, bias, relu=False)
        writer.squeeze(spec, f"{name}.conv", f"{name}.scaled", params)
        writer.layer("ReLU", name, [f"{name}.scaled"], [name])
    else:
        writer.conv(spec, (x, f"{name}.conv"), weight, bias, relu=True)
        writer.squeeze(spec, f"{name}.conv", name, params)
    return name


def _write(model: Model, folder: Path) -> tuple[Path, Path]:
    params = fuse(model).params
    param, data = folder / "model.param", folder / "model.bin"
    with data.open("wb") as file:
        writer = _Writer(file)
        writer.layer("Input", "input", [], ["input"])
        x = "input"
        for spec in model.arch.blocks:
            x = _block(writer, spec, x, params)
        writer.layer("Pooling", "pool", [x], ["pool"], "0=1", "4=1")
        head = params["linear.weight"], params["linear.bias"]
        writer.dense(("pool", "linear"), *head, relu=False)
    counts = f"{len(writer.lines)} {writer.blobs}"
    param.write_text("\n".join(["7767517", counts, *writer.lines]) + "\n")
    return param, data


def _network(**options: bool) -> Any:
    def build(model: Model, folder: Path) -> Port:
        ncnn: Any = importlib.import_module("ncnn")
        param, data = _write(model, folder)
        network = ncnn.Net()
        network.opt.num_threads = 1
        for name, value in options.items():
            setattr(network.opt, f"use_{name}", value)
        if network.load_param(str(param)) or network.load_model(str(data)):
            raise RuntimeError("ncnn refuses its own files")

        def run(x: Array) -> dict[str, Array]:
            images = [_run(ncnn, network, model, image) for image in x]
            return {n: np.stack([image[n] for image in images]) for n in model.arch.layer_names}

        return run

    return build


def _run(ncnn: Any, network: Any, model: Model, image: Array) -> dict[str, Array]:
    extractor = network.create_extractor()
    extractor.set_light_mode(False)  # keep what is tapped
    extractor.input("input", ncnn.Mat(np.ascontiguousarray(image)))
    found = {}
    for name in model.arch.layer_names:
        status, mat = extractor.extract(name)
        if status:
            raise RuntimeError(f"ncnn: {name} cannot be extracted")
        found[name] = np.array(mat)
    return found


_FP32 = {"fp16_packed": False, "fp16_storage": False, "fp16_arithmetic": False}
_BF16 = _FP32 | {"bf16_storage": True, "bf16_packed": True}
_FP16 = {"fp16_packed": True, "fp16_storage": True, "fp16_arithmetic": False}

CANDIDATES = [
    RightCandidate("ncnn fp32", "ncnn", "fp32", _network(**_FP32)),
    RightCandidate(
        "ncnn fp32, no Winograd",
        "ncnn",
        "fp32",
        _network(**_FP32, winograd_convolution=False),
    ),
    RightCandidate(
        "ncnn fp32, neither Winograd nor sgemm",
        "ncnn",
        "fp32",
        _network(**_FP32, winograd_convolution=False, sgemm_convolution=False),
    ),
    *(
        RightCandidate(
            f"ncnn fp32, Winograd F({m},3) only",
            "ncnn",
            "fp32",
            _network(
                **_FP32,
                **{f"winograd{n}3_convolution": n == m for n in (2, 4, 6)},
            ),
        )
        for m in (2, 4, 6)
    ),
    RightCandidate(
        "ncnn fp32, no packing", "ncnn", "fp32", _network(**_FP32, packing_layout=False)
    ),
    RightCandidate("ncnn fp16 storage", "ncnn", "fp16", _network(**_FP16)),
    RightCandidate("ncnn, its default", "ncnn", "fp16", _network()),
    RightCandidate("ncnn bf16 storage", "ncnn", "bf16", _network(**_BF16), groups_broken=True),
    RightCandidate(
        "ncnn bf16 storage, no Winograd",
        "ncnn",
        "bf16",
        _network(**_BF16, winograd_convolution=False),
        groups_broken=True,
    ),
]
