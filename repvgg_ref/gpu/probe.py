"""Can this machine compute with CuPy? If not: what is missing, and the command that mends it.

An import proves nothing (CuPy imports without a GPU), so a kernel is compiled and a matrix product
taken. Every finding is an error of the package: what, got, wanted, what to do.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from typing import Any, NamedTuple, cast

from repvgg_ref.errors import BackendError

# Wheels of CuPy, each with a module `cupy` of its own: two of them overwrite each other's files.
DISTRIBUTIONS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
_LIBRARIES = ("nvrtc", "cublas", "cudart", "cuda_fp16.h", "curand", "cuda.h", "nvJitLink")


class Device(NamedTuple):
    """The current device, and the versions that matter."""

    name: str
    compute_capability: str
    memory: int  # bytes
    cupy: str
    driver: int  # 12040 for 12.4
    runtime: int


class Cudnn(NamedTuple):
    """The cuDNN that convolutions can use, or why there is none."""

    version: int | None
    missing: str | None = None
    fix: str | None = None


class NoCudnnWarning(RuntimeWarning):
    """Convolutions run as im2col and matrix products, several times slower than in cuDNN."""


@functools.cache
def require_device() -> Device:
    """The device, after CuPy has computed something on it.

    Raises
    ------
    BackendError
        If it could not: no CuPy, several, one that does not load, no driver, no device, or CUDA
        libraries missing; the message says which, and its advice is the command that mends it.
    """
    found = installed_cupys()
    if not found and importlib.util.find_spec("cupy") is None:
        raise BackendError(
            "CuPy is not installed",
            wanted="the extra cupy12 (driver for CUDA 12) or cupy13",
            advice=f'{_pip()} install "repvgg-ref[cupy12]"',
        )
    try:
        return _compute_something()
    except BackendError:
        raise
    except Exception as error:  # whatever a broken installation raises is the answer
        if len(found) > 1:
            raise several_cupys(found) from error
        raise _explained(error, found) from error


@functools.cache
def has_device() -> bool:
    """Whether `require_device` would be content."""
    try:
        require_device()
    except BackendError:
        return False
    return True


def installed_cupys() -> list[str]:
    """The CuPy distributions that are installed, by name."""
    names = {
        str(distribution.metadata["Name"]).lower().replace("_", "-")
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return sorted(names & set(DISTRIBUTIONS))


def several_cupys(found: list[str]) -> BackendError:
    """Two wheels of CuPy in one environment: which files are whose is chance."""
    keep = found[-1]
    return BackendError(
        "several CuPy packages are installed and overwrite each other's files",
        got=", ".join(found),
        wanted="one",
        advice=f"{_pip()} uninstall -y {' '.join(found)} && {_pip()} install {keep}",
    )


@functools.cache
def find_cudnn() -> Cudnn:
    """Look for cuDNN and its frontend; without them convolutions are matrix products."""
    extra = f"cudnn{cuda_major()}"
    fix = f'{_pip()} install "repvgg-ref[{extra}]"'
    if importlib.util.find_spec("cudnn") is None:
        return Cudnn(None, "nvidia-cudnn-frontend is not installed", fix)
    try:
        cudnn: Any = importlib.import_module("cudnn")
        version = int(cudnn.backend_version())
    except Exception as error:  # whatever a broken installation raises is the answer
        return Cudnn(None, f"cuDNN itself does not load: {error}", fix)
    if version < 90000:
        return Cudnn(None, f"cuDNN is too old: {version}; 9 or newer is needed", fix)
    return Cudnn(version)


@functools.cache
def use_cudnn() -> bool:
    """Say whether convolutions go through cuDNN; warn, once, if they cannot."""
    found = find_cudnn()
    if found.version is None:
        warnings.warn(
            f"no cuDNN: {found.missing}; convolutions run as matrix products, several times "
            f"slower ({found.fix})",
            NoCudnnWarning,
            stacklevel=2,
        )
    return found.version is not None


def cuda_major() -> str:
    """Major version of the CUDA that the installed CuPy is built for, "12" if it does not say."""
    for name in installed_cupys():
        if name.startswith("cupy-cuda"):
            return name.removeprefix("cupy-cuda").removesuffix("x")
    return "12"


def _compute_something() -> Device:
    """Compile a kernel, call cuBLAS, and read the result."""
    cupy: Any = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    count = int(runtime.getDeviceCount())
    if count < 1:
        raise _no_device("none counted")
    ones = cupy.arange(2).astype(cupy.float32).reshape(1, 2) + 1
    answer = float((ones @ ones.T).sum())
    if answer != 5:
        raise BackendError(
            "the GPU computes wrongly", got=f"1 + 4 = {answer}", advice="repvgg-ref doctor"
        )
    number = cupy.cuda.Device().id
    properties = runtime.getDeviceProperties(number)
    return Device(
        properties["name"].decode(),
        str(cupy.cuda.Device().compute_capability),
        int(properties["totalGlobalMem"]),
        str(cupy.__version__),
        int(runtime.driverGetVersion()),
        int(runtime.runtimeGetVersion()),
    )


def _explained(error: Exception, found: list[str]) -> BackendError:
    """The finding that `error` stands for; the order matters, a missing driver comes first."""
    text = f"{type(error).__name__}: {error}"
    package = found[0] if found else "cupy-cuda12x"
    if "cudaErrorInsufficientDriver" in text or "libcuda.so" in text:
        driver = _driver_version()
        if not driver:
            return BackendError(
                "no NVIDIA driver is loaded",
                got=text,
                advice="run on a machine with an NVIDIA GPU, or take --backend numpy",
            )
        return BackendError(
            "the NVIDIA driver is too old for this CuPy",
            got=f"a driver for CUDA {_readable(driver)}, {package}",
            wanted="the CuPy of the driver's major version, or a newer driver",
            advice=f"{_pip()} uninstall -y {package} && {_pip()} install "
            f'"cupy-cuda{driver // 1000}x[ctk]"',
        )
    if "cudaErrorNoDevice" in text or "cudaErrorInvalidDevice" in text:
        return _no_device(text)
    if any(library in text for library in _LIBRARIES):
        return BackendError(
            "CUDA libraries that CuPy needs are missing",
            got=text,
            wanted=f"{package}[ctk]",
            advice=f'{_pip()} install "{package}[ctk]"',
        )
    return BackendError(
        "CuPy does not work here", got=text, advice=f"{_pip()} install --force-reinstall {package}"
    )


def _no_device(got: str) -> BackendError:
    return BackendError(
        "the NVIDIA driver sees no GPU",
        got=got,
        wanted="a visible device (see nvidia-smi; CUDA_VISIBLE_DEVICES may hide it)",
        advice="run on a machine with a GPU, or take --backend numpy",
    )


def _driver_version() -> int:
    """As 12040 for CUDA 12.4; 0 if there is no driver."""
    try:
        return cast("int", importlib.import_module("cupy").cuda.runtime.driverGetVersion())
    except Exception:  # no driver version is the answer
        return 0


def _readable(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _pip() -> str:
    return f"{sys.executable} -m pip"
