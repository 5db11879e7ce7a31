"""Can cuDNN plan our convolutions on a device that is not here? Opt-in: needs cuDNN (1.1 GB).

    pip install nvidia-cudnn-cu12 && python -m tests.studies.gpu.plans [--model RepVGG-A0]

cuDNN builds plans from a description of a device (its "deviceless" mode, from 9.8). Where it
looks for the driver's library and cuBLAS's empty ones are put; nothing is run. What has no plan
would be a matrix product on that device (`gpu.gemm_conv`).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from repvgg_ref.gpu.geometry import Geometry
from repvgg_ref.gpu.math_mode import MATH_MODES, activation_dtype
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.graph import Network
from tests.gpu.fake_cupy import installed

# What `cudnn.create_device_properties(0).serialize()` gives, for an H100 SXM; from its data sheet.
H100: dict[str, Any] = {
    "cudaDeviceId": 0,
    "deviceVer": 900,
    "driverVer": 13000,
    "deviceName": "NVIDIA H100",
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536,
    "multiProcessorCount": 132,
    "smCountOrigin": 0,
    "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "oversizedSharedMemoryPerBlock": 0,
    "reservedSharedMemoryPerBlock": 1024,
    "maxSharedMemoryPerSM": 233472,
    "maxRegistersPerSM": 65536,
    "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "pciDeviceId": 8960,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 2619000,
    "memoryBusWidth": 5120,
    "l2CacheSize": 52428800,
    "totalGlobalMem": 85024112640,
}
# Libraries that cuDNN loads though it plans without them -> what their functions' names are like,
# and what those give that it asks at once. All others say 999, unknown error.
_EMPTY = {
    "libcuda.so.1": (rb"\0(cu[A-Z][A-Za-z0-9]{3,40}(?:_v\d)?)\0", {}),
    "libcublasLt.so.12": (rb"\0(cublasLt[A-Za-z_]{3,50})\0", {"cublasLtGetVersion": 120900}),
}


@click.command()
@click.option("--model", multiple=True, default=("RepVGG-A0", "RepVGG-B1g4"), show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--math", multiple=True, type=click.Choice(MATH_MODES), default=MATH_MODES)
def main(model: tuple[str, ...], batch: int, math: tuple[Any, ...]) -> None:
    """Build every graph of the fused networks and of training steps; exit code 1 if one fails."""
    cudnn: Any = _cudnn_without_driver()
    device = cudnn.create_device_properties(json.dumps(H100))
    click.echo(f"cuDNN {cudnn.backend_version_string()} for {H100['deviceName']}")
    missing = 0
    with installed(cudnn):
        from repvgg_ref.gpu import cudnn_conv

        for name in model:
            cases = list(dict.fromkeys(graphs(architecture(name), batch)))
            for each in math:
                dtype, began = activation_dtype(each).name, time.monotonic()
                failed: Counter[str] = Counter()
                for kind, sizes in cases:
                    key = cudnn_conv.GraphKey(kind, sizes, dtype)
                    try:
                        _plan(cudnn_conv, key, each, device)
                    except cudnn.cudnnGraphNotSupportedError as error:
                        failed[kind] += 1
                        click.echo(f"  no plan: {kind} {sizes} {each}: {str(error)[:150]}")
                missing += failed.total()
                built = f"{len(cases) - failed.total()} of {len(cases)} graphs"
                click.echo(f"{name} {each}: {built} ({time.monotonic() - began:.0f} s)")
    sys.exit(1 if missing else 0)


def _plan(cudnn_conv: Any, key: Any, math: Any, device: Any) -> None:
    """`pygraph.build` without its `check_support`, which asks the driver for a device."""
    graph, _ = cudnn_conv.make_graph(key, math, deterministic=False, device_property=device)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans(cudnn_conv.HEURISTICS)
    graph.build_plans()


def graphs(arch: Network, batch: int) -> Iterator[tuple[Any, Geometry]]:
    """Every convolution of the fused network and of a training step at 224 pixels."""
    size = (224, 224)
    for spec in arch.blocks:
        geometry = Geometry(
            batch,
            size,
            spec.in_channels,
            spec.out_channels,
            (3, 3),
            (spec.stride, spec.stride),
            (spec.dilation, spec.dilation),
            (spec.dilation, spec.dilation),
            spec.groups,
        )
        pointwise = geometry._replace(kernel=(1, 1), padding=(0, 0))
        yield "forward_bias_relu" if spec.se == "none" else "forward_bias", geometry
        for each in (geometry, pointwise):
            yield "forward", each
            yield "grad_weight", each
            if spec is not arch.blocks[0]:
                yield "grad_x", each
        size = geometry.out_size


def _cudnn_without_driver() -> Any:
    """The frontend, with empty libraries where cuDNN would look for the driver's and cuBLAS's."""
    folder = Path(tempfile.mkdtemp())
    for library, (pattern, gives) in _EMPTY.items():
        try:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)  # the real one is as good
        except OSError:
            source = folder / "empty.c"
            names = sorted(_names_in_cudnn(pattern))
            source.write_text(
                "".join(f"int {name}() {{ return {gives.get(name, 999)}; }}\n" for name in names)
            )
            flags = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library}"]
            subprocess.run(["gcc", *flags, "-o", folder / library, source], check=True)
            ctypes.CDLL(str(folder / library), ctypes.RTLD_GLOBAL)
    return importlib.import_module("cudnn")


def _names_in_cudnn(pattern: bytes) -> set[str]:
    """Functions that cuDNN's libraries look up by name, or are linked to."""
    names: set[str] = set()
    for path in _cudnn_folder().glob("libcudnn*.so.9"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            names |= {match.decode() for match in re.findall(pattern, text)}
    return names


def _cudnn_folder() -> Path:
    """Where the wheel, or a folder of LD_LIBRARY_PATH, has cuDNN."""
    wheel = Path(sysconfig.get_path("purelib")) / "nvidia/cudnn/lib"
    for folder in (*map(Path, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)), wheel):
        if (folder / "libcudnn.so.9").exists():
            return folder
    raise click.ClickException("cuDNN is not installed: pip install nvidia-cudnn-cu12")


if __name__ == "__main__":
    main()
