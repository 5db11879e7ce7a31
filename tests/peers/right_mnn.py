"""MNN, its graph built call by call (its converter would send telemetry), at each precision."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.network import Model, fuse
from tests.peers.right_candidates import Port, RightCandidate


def _constant(expr: Any, array: Array) -> Any:
    return expr.const(np.ascontiguousarray(array, np.float32), list(array.shape), expr.NCHW)


def _conv(expr: Any, x: Any, weight: Array, bias: Array, spec: BlockSpec) -> Any:
    """A convolution of an NCHW variable, one for each group (MNN 3.6's own `group` is wrong)."""
    if spec.groups == 1:
        return _dense_conv(expr, x, weight, bias, spec)
    parts = expr.split(x, [x.shape[1] // spec.groups] * spec.groups, 1)
    weights, biases = (np.split(array, spec.groups) for array in (weight, bias))
    return expr.concat(
        [_dense_conv(expr, *part, spec) for part in zip(parts, weights, biases, strict=True)], 1
    )


def _dense_conv(expr: Any, x: Any, weight: Array, bias: Array, spec: BlockSpec) -> Any:
    wide = weight.shape[2] == 3
    y = expr.conv2d(
        expr.convert(x, expr.NC4HW4),
        _constant(expr, weight),
        _constant(expr, bias),
        stride=[spec.stride] * 2,
        padding=[spec.dilation if wide else 0] * 2,
        dilate=[spec.dilation if wide else 1] * 2,
        padding_mode=expr.CAFFE,
    )
    return expr.convert(y, expr.NCHW)


def _squeeze(expr: Any, x: Any, params: dict[str, Array], spec: BlockSpec) -> Any:
    point = BlockSpec("", 1, 1, 1)
    se = f"{spec.name}.se"
    gate = expr.reduce_mean(x, [2, 3], True)
    down, up = (
        (params[f"{se}.{part}.weight"], params[f"{se}.{part}.bias"]) for part in ("down", "up")
    )
    gate = expr.relu(_conv(expr, gate, *down, point))
    gate = expr.sigmoid(_conv(expr, gate, *up, point))
    return x * gate


def _write(expr: Any, model: Model, shape: tuple[int, ...], path: Path) -> None:
    params = fuse(model).params
    x = expr.placeholder(list(shape), expr.NCHW, expr.float)
    x.name = "input"
    outputs = []
    for spec in model.arch.blocks:
        weight, bias = params[f"{spec.name}.fused.weight"], params[f"{spec.name}.fused.bias"]
        x = _conv(expr, x, weight, bias, spec)
        x = _squeeze(expr, x, params, spec) if spec.se == "before_relu" else x
        x = expr.relu(x)
        x = _squeeze(expr, x, params, spec) if spec.se == "after_relu" else x
        x.name = spec.name
        outputs.append(x)
    features = expr.reduce_mean(x, [2, 3], False)
    weight = _constant(expr, params["linear.weight"])
    y = expr.matmul(features, weight, False, True) + _constant(expr, params["linear.bias"])
    y.name = "linear"
    expr.save([*outputs, y], str(path))


def _session(precision: str) -> Any:
    def build(model: Model, folder: Path) -> Port:
        expr: Any = importlib.import_module("MNN.expr")
        nn: Any = importlib.import_module("MNN.nn")
        names = list(model.arch.layer_names)

        def run(x: Array) -> dict[str, Array]:
            path = folder / f"{'x'.join(map(str, x.shape))}.mnn"
            if not path.exists():
                _write(expr, model, x.shape, path)
            config = {"backend": 0, "numThread": 1, "precision": precision}
            runtime = nn.create_runtime_manager((config,))
            network = nn.load_module_from_file(str(path), ["input"], names, runtime_manager=runtime)
            outputs = network.forward([_constant(expr, x)])
            return {n: np.array(y.read()) for n, y in zip(names, outputs, strict=True)}

        return run

    return build


# Where the processor has no float16 of MNN's liking, "low" is float32 as well.
_LOW = "fp32" if platform.machine() == "x86_64" else "fp16"

CANDIDATES = [
    RightCandidate("mnn high", "MNN", "fp32", _session("high")),
    RightCandidate("mnn normal", "MNN", "fp32", _session("normal")),
    RightCandidate("mnn low", "MNN", _LOW, _session("low")),
]
