"""OpenVINO on the CPU at the precisions it has: f32, its default, bf16, f16."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from tests.peers.graphs import onnx_graph
from tests.peers.right_candidates import Port, RightCandidate

_OURS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


def default_precision() -> str:
    """What OpenVINO computes in unless it is asked: bf16 or f16 where the processor has it."""
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError:
        return "fp32"
    hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return _OURS[hint.get_type_name()]


def offers(kind: str) -> bool:
    """Whether this processor has the precision."""
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError:
        return False
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}[kind] in able


def _compiled(*, fused: bool, hint: str | None, static: bool = True) -> Any:
    def build(model: Model, folder: Path) -> Port:
        openvino: Any = importlib.import_module("openvino")
        path = folder / "model.onnx"
        path.write_bytes(onnx_graph(model, fused=fused).SerializeToString())
        core = openvino.Core()
        network = core.read_model(path)
        config: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        if hint:
            config["INFERENCE_PRECISION_HINT"] = hint
        compiled: dict[tuple[int, ...], Any] = {}

        def run(x: Array) -> dict[str, Array]:
            if static:
                network.reshape(list(x.shape))
            if x.shape not in compiled:
                compiled[x.shape] = core.compile_model(network, "CPU", config)
            request = compiled[x.shape].create_infer_request()
            request.infer({"input": x})
            return {n: np.array(request.get_tensor(n).data) for n in model.arch.layer_names}

        return run

    return build


CANDIDATES = [
    RightCandidate("openvino fused f32", "openvino", "fp32", _compiled(fused=True, hint="f32")),
    RightCandidate(
        "openvino fused f32, free shape",
        "openvino",
        "fp32",
        _compiled(fused=True, hint="f32", static=False),
    ),
    RightCandidate("openvino branches f32", "openvino", "fp32", _compiled(fused=False, hint="f32")),
    RightCandidate(
        "openvino fused, its default",
        "openvino",
        default_precision(),
        _compiled(fused=True, hint=None),
    ),
    RightCandidate(
        "openvino branches, its default",
        "openvino",
        default_precision(),
        _compiled(fused=False, hint=None),
    ),
    *(
        RightCandidate(
            f"openvino {'fused' if fused else 'branches'} {hint}",
            "openvino",
            _OURS[hint],
            _compiled(fused=fused, hint=hint),
        )
        for hint in ("bf16", "f16")
        if offers(hint)
        for fused in (True, False)
    ),
]
