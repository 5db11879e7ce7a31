"""`.cu` text to a shared library: which kernels it holds, which of them have barriers, g++."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SANITIZE = "REPVGG_EMULATOR_SANITIZE"

_KERNEL = re.compile(r"\b__global__\s+void\s+(\w+)\s*\(")
_DEFINITION = re.compile(r"\b(\w+)\s*\([^;{}]*\)\s*\{")
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_BARRIERS = {"__syncthreads", "__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync"}
_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-march=native", "-fno-strict-aliasing", "-w")
_PLAIN = ("-O2",)
_SANITIZED = (
    *("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-fsanitize-sections=emulated_shared", "-fno-omit-frame-pointer"),
)


@cache
def why_missing() -> str | None:
    """Why kernels cannot be run here, or None."""
    return None if shutil.which("g++") else "g++ is not installed: .cu files cannot be run on a CPU"


def kernels(code: str) -> list[str]:
    """Names of the ``__global__`` functions."""
    return _KERNEL.findall(_plain(code))


def with_barriers(code: str) -> set[str]:
    """The functions that reach a barrier, by themselves or through those that they call."""
    called = {
        match[1]: set(re.findall(r"\w+", _block(plain, match.end())))
        for plain in [_plain(code)]
        for match in _DEFINITION.finditer(plain)
    }
    reaching = set(_BARRIERS)
    while more := {name for name, names in called.items() if names & reaching} - reaching:
        reaching |= more
    return reaching - _BARRIERS


def library(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """`code` compiled and loaded; kept in a temporary folder under the hash of all that went in."""
    text = _translation_unit(code)
    sanitized = os.environ.get(SANITIZE) == "1"
    flags = (*_FLAGS, *(_SANITIZED if sanitized else _PLAIN), *_defines(options))
    key = hashlib.sha256("\0".join((text, *flags, _compiler())).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"repvgg-ref-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{key}.so"
    if not built.exists():
        _build(text, flags, built)
    return ctypes.CDLL(str(built), mode=os.RTLD_LOCAL)


def _plain(code: str) -> str:
    """`code` without comments and launch bounds, which look like functions."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", code, flags=re.DOTALL)
    return re.sub(r"__launch_bounds__\s*\([^)]*\)", " ", code)


def _build(text: str, flags: tuple[str, ...], built: Path) -> None:
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        source, target = Path(scratch) / "kernels.cpp", Path(scratch) / built.name
        source.write_text(text, encoding="utf-8")
        command = ["g++", *flags, str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SyntaxError(f"g++ refuses the kernels:\n{done.stderr}")
        target.replace(built)  # atomic: another process may build the same


def _translation_unit(code: str) -> str:
    code = _DYNAMIC_SHARED.sub(r"\1* const \2 = (\1*)emulated::dynamic_shared;", code)
    fibers = with_barriers(code)
    entries = [
        f"""
extern "C" const char* emulated_parameters_{name}() {{ return emulated::parameters({name}); }}
extern "C" const char* emulated_launch_{name}(void** arguments, const int* grid, const int* block,
                                              long shared_bytes, unsigned long seed) {{
  return emulated::launch({name}, arguments, grid, block, shared_bytes, seed,
                          {str(name in fibers).lower()}, emulated::indices({name}));
}}"""
        for name in kernels(code)
    ]
    header, epilogue = ((HERE / name).read_text("utf-8") for name in ("device.h", "epilogue.h"))
    code = code.replace('extern "C" __global__', "__global__")
    # Nameless, so that all is local to the library and shared arrays of templates too.
    parts = (header, "namespace {", '#line 1 "kernels.cu"', code, "}", epilogue, *entries)
    return "\n".join(parts)


def _defines(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(option for option in options if option.startswith(("-D", "--define")))


@cache
def _compiler() -> str:
    asked = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return asked.stdout


def _block(code: str, start: int) -> str:
    """The text from `start`, just after a brace, to the brace that closes it."""
    depth = 1
    for position in range(start, len(code)):
        depth += {"{": 1, "}": -1}.get(code[position], 0)
        if depth == 0:
            return code[start:position]
    return code[start:]
