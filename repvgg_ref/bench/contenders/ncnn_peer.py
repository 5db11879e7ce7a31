"""ncnn in float32, image after image since it knows no batch; its files are written here."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.bench.contenders.base import CannotTakePartError, Contender
from repvgg_ref.bench.task import Task
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.network import Model, fuse

_MAGIC = "7767517"  # of a text .param file
_16_BIT = (
    "fp16_packed",
    "fp16_storage",
    "fp16_arithmetic",
    "bf16_storage",
    "bf16_packed",
)


def variants(task: Task) -> tuple[str, ...]:
    """One: ncnn's own choice of algorithm for each layer."""
    return ("float32",)


def prepare(task: Task, variant: str) -> Contender:
    """A loaded network; 16-bit storage, its default on many processors, is switched off."""
    ncnn: Any = importlib.import_module("ncnn")
    network = ncnn.Net()
    network.opt.num_threads = task.threads
    for name in _16_BIT:
        setattr(network.opt, f"use_{name}", False)
    with TemporaryDirectory() as folder:
        param, data = write_ncnn(fuse(task.model()), Path(folder))
        if network.load_param(str(param)) or network.load_model(str(data)):
            raise CannotTakePartError("ncnn refuses the network that was written for it")
    images = [ncnn.Mat(image).clone() for image in task.images()]

    def run() -> list[Array]:
        found = []
        for image in images:
            extractor = network.create_extractor()
            extractor.input("input", image)
            status, logits = extractor.extract("linear")
            if status:
                raise CannotTakePartError("ncnn failed in the middle of the network", got=status)
            found.append(np.array(logits))
        return found

    return Contender(run, outputs=lambda found: {"logits": np.stack(found)})


def write_ncnn(deploy: Model, folder: Path) -> tuple[Path, Path]:
    """The fused chain as a ``.param`` and a ``.bin`` file in `folder`."""
    if any(spec.se != "none" for spec in deploy.arch.blocks):
        raise CannotTakePartError("squeeze-and-excitation is not written for ncnn")
    param, data = folder / "deploy.param", folder / "deploy.bin"
    lines, x = ["Input input 0 1 input"], "input"
    with data.open("wb") as file:
        for spec in deploy.arch.blocks:
            lines.append(_convolution(spec, x))
            _weights(file, deploy, f"{spec.name}.fused")
            x = spec.name
        lines.append(f"Pooling pool 1 1 {x} pool 0=1 4=1")
        classes, weight = deploy.arch.num_classes, deploy.params["linear.weight"]
        lines.append(f"InnerProduct linear 1 1 pool linear 0={classes} 1=1 2={weight.size}")
        _weights(file, deploy, "linear")
    param.write_text("\n".join([_MAGIC, f"{len(lines)} {len(lines)}", *lines]) + "\n")
    return param, data


def _convolution(spec: BlockSpec, x: str) -> str:
    """With bias (5) and ReLU (9) included."""
    kernel = fused_conv(spec).kernel[0]
    weights = kernel**2 * spec.out_channels * spec.in_channels // spec.groups
    settings = (
        f"0={spec.out_channels} 1={kernel} 2={spec.dilation} 3={spec.stride} "
        f"4={spec.dilation * (kernel // 2)} 5=1 6={weights} 9=1"
    )
    if spec.groups == 1:
        return f"Convolution {spec.name} 1 1 {x} {spec.name} {settings}"
    return f"ConvolutionDepthWise {spec.name} 1 1 {x} {spec.name} {settings} 7={spec.groups}"


def _weights(file: BinaryIO, deploy: Model, layer: str) -> None:
    file.write(struct.pack("<I", 0))  # float32 follows
    for part in ("weight", "bias"):
        file.write(np.ascontiguousarray(deploy.params[f"{layer}.{part}"], "<f4").tobytes())
