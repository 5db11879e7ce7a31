"""NVIDIA's compiler takes every `.cu` file, for every device generation, without a warning."""

from __future__ import annotations

import pytest

from repvgg_ref.gpu.kernels import launch
from tests.gpu.kernels import nvrtc

ARCHITECTURES = nvrtc.ARCHITECTURES
STORAGE = ("float64", "float32", "float16", "bfloat16")
OLD_DEVICE = "nvrtc: warning: Architectures prior to"  # says nothing of the text
# Half precision for every device, the other storages for one: their text differs in a cast.
SETTINGS = [
    (storage, architecture)
    for architecture in ARCHITECTURES
    for storage in STORAGE
    if architecture == 90 or storage == "float16"
]


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if nvrtc.library() is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")


@pytest.mark.parametrize(("storage", "architecture"), SETTINGS)
@pytest.mark.parametrize("file", launch.FILES)
def test_it_compiles(file: str, storage: str, architecture: int) -> None:
    if architecture not in nvrtc.architectures():
        pytest.skip(f"this NVRTC does not know sm_{architecture}")
    compiled = _compile(launch.source(file), storage, architecture)
    assert compiled.log == ""
    assert compiled.cubin.startswith(b"\x7fELF")


def test_what_is_no_cuda_is_refused() -> None:
    broken = launch.source("convolution.cu").replace("threadIdx.x", "threadIdx.t")
    with pytest.raises(SyntaxError, match="threadIdx"):
        _compile(broken, "float32", 90)


def test_a_warning_is_an_error() -> None:
    code = "__global__ void kernel(float* x) { int unused; x[0] = 1; }"
    assert "never referenced" in _compile(code, "float32", 90).log


def _compile(code: str, storage: str, architecture: int) -> nvrtc.Compiled:
    options = (*launch.options(storage), f"-arch=sm_{architecture}")
    compiled = nvrtc.compile_cubin(code, options)
    lines = compiled.log.splitlines()
    kept = [line for line in lines if not line.startswith(OLD_DEVICE)]
    return compiled._replace(log="\n".join(kept))
