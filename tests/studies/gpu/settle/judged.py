"""Right? The tests that need a GPU, and the oracle on every architecture."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.oracle import Report
from tests.gpu.agreement import inference_report, training_report
from tests.random_networks import random_model
from tests.studies.gpu.settle.sections import Found
from tests.studies.gpu.settle.sizes import Sizes, network

ROOT = Path(__file__).parents[4]


def run_tests(found: Found, sizes: Sizes, seconds: float) -> None:
    """pytest in a process of its own: every test marked gpu, none skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu"]
    if sizes.rehearsal:
        command += ["--collect-only", "-k", "test_probe"]
    else:
        command += ["-m", "gpu", "--require-gpu", "--durations=5"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        shown = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        found["output"] = shown.splitlines()[-40:]
        raise
    lines = done.stdout.splitlines()
    found["summary"] = lines[-1] if lines else done.stderr[-500:]
    found["failed"] = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    if done.returncode:
        found["output"] = lines[-80:] + done.stderr.splitlines()[-10:]
        raise AssertionError(f"pytest ends with {done.returncode}: {found['summary']}")


def judge_inference(found: Found, sizes: Sizes) -> None:
    """The fused form of every architecture in strict float32; some also in lower precision."""
    runs: list[tuple[str, Any]] = [(name, "fp32") for name in sizes.judged]
    runs += [(name, math) for name in sizes.judged_mixed for math in ("tf32", "bf16", "fp16")]
    for name, math in runs:
        began = time.monotonic()
        arch = network(name)
        pixels = sizes.judged_pixels
        x = np.random.default_rng(1).normal(size=(1, arch.in_channels, pixels, pixels + 4))
        report = inference_report(random_model(arch, 0), x.astype(np.float32), math)
        found[f"{name} {math}"] = _told(report, began)
    _require_agreement(found)


def judge_training(found: Found, sizes: Sizes) -> None:
    """Training steps in float32, every gradient."""
    for name in sizes.judged_mixed:
        began = time.monotonic()
        arch = network(name)
        rng = np.random.default_rng(2)
        x = rng.normal(size=(4, arch.in_channels, 36, 32)).astype(np.float32)
        labels = rng.integers(0, arch.num_classes, 4)
        report = training_report(random_model(arch, 0), x, labels, steps=1)
        found[name] = _told(report, began)
    _require_agreement(found)


def _told(report: Report, began: float) -> Found:
    return {
        "verdict": report.verdict,
        "reason": report.reason,
        "first_bad_layer": report.first_bad_layer,
        "diagnosis": [finding.says for finding in report.diagnosis[:2]],
        "took_s": round(time.monotonic() - began, 1),
    }


def _require_agreement(found: Found) -> None:
    others = [name for name, told in found.items() if told["verdict"] != "agree"]
    if others:
        raise AssertionError(f"the oracle does not agree with {', '.join(others)}")
