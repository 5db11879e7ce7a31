"""What the figures were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

from repvgg_ref.gpu import find_cudnn, require_device
from tests.studies.gpu.settle.sections import Found

PACKAGES = (
    *("numpy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-frontend", "nvidia-cudnn-cu12"),
    *("nvidia-cudnn-cu13", "torch", "triton", "tensorrt", "ml_dtypes", "pytest"),
)
_QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"


def describe(found: Found) -> None:
    """Device, libraries, versions, clocks."""
    found["device"] = require_device()._asdict()
    found["cudnn"] = find_cudnn()._asdict()
    found["python"] = platform.python_version()
    found["processors"] = os.cpu_count()
    found["packages"] = {name: _version(name) for name in PACKAGES}
    if tool := shutil.which("nvidia-smi"):
        shown = subprocess.run(
            [tool, f"--query-gpu={_QUERY}", "--format=csv"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        found["nvidia-smi"] = (shown.stdout or shown.stderr).strip().splitlines()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
