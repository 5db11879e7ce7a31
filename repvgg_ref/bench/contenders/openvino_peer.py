"""OpenVINO on the CPU in float32: all threads on one request, or a stream for each thread."""

from __future__ import annotations

import importlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.bench.contenders.base import Contender
from repvgg_ref.bench.contenders.onnxruntime_peer import write_deploy_onnx
from repvgg_ref.bench.task import Task


def variants(task: Task) -> tuple[str, ...]:
    """`throughput` cuts the batch into as many requests as there are threads."""
    splits = task.threads > 1 and task.batch % task.threads == 0
    return ("latency", "throughput") if splits else ("latency",)


def prepare(task: Task, variant: str) -> Contender:
    """A compiled network; without the hint it would compute in bfloat16 where there is AMX."""
    openvino: Any = importlib.import_module("openvino")
    streams = task.threads if variant == "throughput" else 1
    core = openvino.Core()
    with TemporaryDirectory() as folder:
        network = core.read_model(write_deploy_onnx(task, Path(folder)))
        network.reshape([task.batch // streams, 3, task.size, task.size])
        config = {
            "PERFORMANCE_HINT": variant.upper(),
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": task.threads,
            "NUM_STREAMS": streams,
        }
        compiled = core.compile_model(network, "CPU", config)
    parts = np.split(task.images(), streams)
    requests = [compiled.create_infer_request() for _ in parts]

    def run() -> list[Array]:
        for request, part in zip(requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        for request in requests:
            request.wait()
        return [request.get_output_tensor(0).data for request in requests]

    return Contender(run, outputs=lambda found: {"logits": np.concatenate(found)})
