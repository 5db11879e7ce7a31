"""ONNX Runtime on the CPU, from the file that `convert --to onnx` writes."""

from __future__ import annotations

import importlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from repvgg_ref.bench.contenders.base import Contender
from repvgg_ref.bench.task import Task
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.graph import INPUT
from repvgg_ref.models.network import fuse


def variants(task: Task) -> tuple[str, ...]:
    """One: all graph optimisations."""
    return ("all optimisations",)


def prepare(task: Task, variant: str) -> Contender:
    """A session; its threads may spin within a run, as by default, but not between runs."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4
    with TemporaryDirectory() as folder:
        path = write_deploy_onnx(task, Path(folder))
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {INPUT: task.images()}
    return Contender(
        run=lambda: session.run(["linear"], feed), outputs=lambda found: {"logits": found[0]}
    )


def write_deploy_onnx(task: Task, folder: Path) -> Path:
    """The fused network with the task's fixed input shape."""
    deploy, path = fuse(task.model()), folder / "deploy.onnx"
    write_onnx(path, deploy.arch, deploy.params, metadata={}, batch=task.batch, size=task.size)
    return path
