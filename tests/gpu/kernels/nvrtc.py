"""NVIDIA's run-time compiler through ctypes: `.cu` text to machine code without a device."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)


class Compiled(NamedTuple):
    """Machine code, and what the compiler had to say."""

    cubin: bytes
    log: str


@cache
def library() -> ctypes.CDLL | None:
    """The compiler of the wheel nvidia-cuda-nvrtc-cu12 (or -cu13), or None."""
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in found.submodule_search_locations or () if found else ():
            for path in sorted(Path(folder).glob("lib/libnvrtc.so.*")):
                return ctypes.CDLL(str(path))
    return None


def architectures() -> list[int]:
    """Those of `ARCHITECTURES` that the installed compiler knows."""
    nvrtc = library()
    if nvrtc is None:
        return []
    count = ctypes.c_int()
    _check(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check(nvrtc.nvrtcGetSupportedArchs(known))
    return [number for number in ARCHITECTURES if number in list(known)]


def compile_cubin(code: str, options: Sequence[str]) -> Compiled:
    """Compile `code`; raise SyntaxError with the compiler's words if it cannot."""
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), None, 0, None, None))
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), words)
        log = _fetch("nvrtcGetProgramLog", program).rstrip(b"\0").decode().strip()
        if failed:
            raise SyntaxError(log)
        return Compiled(_fetch("nvrtcGetCUBIN", program), log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(what: str, program: Any) -> bytes:
    nvrtc, size = library(), ctypes.c_size_t()
    _check(getattr(nvrtc, f"{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, what)(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    assert status == 0, f"NVRTC status {status}"
