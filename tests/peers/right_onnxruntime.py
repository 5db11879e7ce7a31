"""ONNX Runtime: fused and three-branch graphs at every optimisation level; 16-bit models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.network import Model, fuse
from tests.peers.graphs import onnx_graph
from tests.peers.right_candidates import Port, RightCandidate

_LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")


def _session(*, fused: bool, level: str, kind: str = "float32") -> Any:
    def build(model: Model, _folder: Path) -> Port:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level}"
        )
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        data = onnx_graph(model, fused=fused, kind=kind).SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

        def run(x: Array) -> dict[str, Array]:
            found = session.run(list(model.arch.layer_names), {"input": x.astype(kind)})
            return dict(zip(model.arch.layer_names, map(np.asarray, found), strict=True))

        return run

    return build


def _own_export(model: Model, folder: Path) -> Path:
    """Our own ``convert --to onnx``, run and tapped by the oracle's own adapter."""
    deploy = fuse(model)
    write_onnx(folder / "own.onnx", model.arch, deploy.params, metadata={})
    return folder / "own.onnx"


def _file(*, fused: bool, kind: str) -> Any:
    """A model in which only the logits are outputs: the adapter taps it."""

    def build(model: Model, folder: Path) -> Path:
        graph = onnx_graph(model, fused=fused, kind=kind)
        del graph.graph.output[:-1]
        path = folder / "model.onnx"
        path.write_bytes(graph.SerializeToString())
        return path

    return build


CANDIDATES = [
    RightCandidate("ort fused, our export, tapped", "onnxruntime", "fp32", _own_export),
    *(
        RightCandidate(
            f"ort {'fused' if fused else 'branches'} {level}",
            "onnxruntime",
            "fp32",
            _session(fused=fused, level=level),
        )
        for fused in (True, False)
        for level in _LEVELS
    ),
    RightCandidate(
        "ort branches, tapped", "onnxruntime", "fp32", _file(fused=False, kind="float32")
    ),
    *(
        RightCandidate(
            f"ort fused fp16 {level}",
            "onnxruntime",
            "fp16",
            _session(fused=True, level=level, kind="float16"),
        )
        for level in ("DISABLE_ALL", "ENABLE_ALL")
    ),
    RightCandidate(
        "ort fused fp16, tapped", "onnxruntime", "fp16", _file(fused=True, kind="float16")
    ),
    RightCandidate(
        "ort branches fp16, tapped", "onnxruntime", "fp16", _file(fused=False, kind="float16")
    ),
    RightCandidate(
        "ort fused bf16, widened", "onnxruntime", "bf16", _file(fused=True, kind="bfloat16")
    ),
]
