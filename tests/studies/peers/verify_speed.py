"""How long does `verify` take on RepVGG-A0 as an ONNX or a weight file, and how much memory?

    python tests/studies/peers/verify_speed.py

The promise: under 10 s on 2 cores and under 1 GB, diagnosis included, right or wrong. Each case is
a process of its own. CPU seconds tell more than wall-clock seconds on a busy machine.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))  # run as a script, from anywhere

from repvgg_ref.arrays import Array
from repvgg_ref.files.checkpoint import save
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle import verify
from tests.random_networks import random_model

_SHAPES = {"224 x 224, fixed": (1, 224), "free": (None, None)}
_WEIGHTS = "weight file"
_BUGS = ("none", "identity left out of one layer", "bias twice in every layer", "unknown")


def planted(model: Model, bug: str) -> dict[str, Array]:
    """The fused weights with a bug, made without the oracle's library."""
    source = dict(model.params)
    if bug == "identity left out of one layer":
        gone = "stage3.4.branch_identity.bn."
        for field in ("gamma", "beta"):
            source[gone + field] = 0 * source[gone + field]
    params = dict(fuse(Model(model.arch, "train", source)).params)
    for name in list(params):
        if bug == "bias twice in every layer" and name.endswith("fused.bias"):
            params[name] = 2 * params[name]
    if bug == "unknown":
        kernel = params["stage3.4.fused.weight"] = params["stage3.4.fused.weight"].copy()
        kernel[3, :, 0, 2] *= np.float32(1.3)
    return params


def one(shape: str, bug: str) -> None:
    """Measure one case in this process and print a line."""
    model = random_model(architecture("RepVGG-A0"), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a0.npz" if shape == _WEIGHTS else "a0.onnx")
        if shape == _WEIGHTS:
            save(Model(model.arch, "deploy", planted(model, bug)), path)
        else:
            batch, size = _SHAPES[shape]
            write_onnx(path, model.arch, planted(model, bug), metadata={}, batch=batch, size=size)
        wall, cpu = time.perf_counter(), time.process_time()
        report = verify(model, path)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    named = report.diagnosis[0].bug if report.diagnosis else ""
    print(f"{shape:17} {bug:31} {wall:5.1f} s {cpu:5.1f} s {peak:5} MB {report.verdict} {named}")


def main() -> None:
    """Every case in a process of its own."""
    if len(sys.argv) == 3:
        one(sys.argv[1], sys.argv[2])
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'input':17} {'bug':31} {'wall':>7} {'CPU':>7} {'peak':>8}", flush=True)
    for shape in (*_SHAPES, _WEIGHTS):
        for bug in _BUGS:
            subprocess.run([sys.executable, __file__, shape, bug], check=True)


if __name__ == "__main__":
    main()
