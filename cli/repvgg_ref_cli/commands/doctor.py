"""`repvgg-ref doctor`: what works on this machine, and the command that mends each gap."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Any

import click

from repvgg_ref_cli.extras import (
    PACKAGE,
    PURPOSES,
    gaps,
    metadata_lines,
    read_extras,
    supplanted_by,
)
from repvgg_ref_cli.failures import printable
from repvgg_ref_cli.options import BACKENDS, debug_option, json_option, print_json

_MARKS = {"ok": ("ok", "green"), "missing": ("--", "yellow"), "broken": ("!!", "red")}

_NARROW, _NARROWEST, _DETAIL = 60, 20, 23  # columns; details stand in the last


@dataclass(frozen=True)
class Check:
    """One thing looked at; `fix` is the command that mends it, None if nothing needs mending."""

    name: str
    status: str
    detail: str
    fix: str | None = None


@click.command(short_help="Show what works here, and how to mend what does not.")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Look at Python, libraries, backends, the GPU and every extra; exit code 0 whatever is found.

    An extra is what `pip install` takes in brackets; the command that mends a gap names what is
    missing of it.
    """
    extras = _extras()
    checks = [
        Check("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *_required(),
        *_backends(),
        _gpu(),
        _cupy(),
        _cudnn(),
        *_optional(),
    ]
    if as_json:
        found = {"version": _version(PACKAGE), "checks": [asdict(c) for c in checks]}
        print_json(found | {"extras": [asdict(c) for c in extras]})
        return
    for check in checks:
        _show(check)
    click.echo("\nextras")
    for check in extras:
        _show(check)
    if not extras:
        click.echo(f"    {PACKAGE} is not installed, so its extras are not known")


def _show(check: Check) -> None:
    """Name and detail beside each other, one under the other where the terminal is narrow."""
    import textwrap

    mark, colour = _MARKS[check.status]
    width = shutil.get_terminal_size().columns
    narrow = width < _NARROW
    indent = " " * (4 if narrow else _DETAIL)
    lines = textwrap.wrap(printable(check.detail), max(width - len(indent), _NARROWEST))
    first = check.name if narrow else f"{check.name:<{_DETAIL - 5}} {lines.pop(0)}"
    click.echo(f"{click.style(mark, fg=colour)}  {first}")
    for line in lines:
        click.echo(indent + line)
    if check.fix:
        # A command stays on one line, to be copied; words need not.
        is_command = check.fix.startswith(_pip())
        room = max(width - len(indent), _NARROWEST)
        mend = f"mend: {check.fix}"
        for line in [mend] if is_command else textwrap.wrap(mend, room):
            click.echo(indent + line)


def _required() -> list[Check]:
    fix = f"{_pip()} install --force-reinstall"
    return [
        _library("numpy", f"{fix} numpy", describe=_blas),
        _library("scipy", f"{fix} scipy"),
        _library("threadpoolctl", f"{fix} threadpoolctl"),
        _library("PIL", f"{fix} pillow", package="pillow"),
        _library("rich", f"{fix} rich"),
        _library("jinja2", f"{fix} jinja2"),
    ]


def _extras() -> list[Check]:
    """Every extra of the package: whole, or what it lacks."""
    extras = read_extras(metadata_lines())
    lacking = {name: gaps(asked, _version) for name, asked in extras.items()}
    whole = {name: not gap for name, gap in lacking.items()}
    found = []
    for name, gap in lacking.items():
        purpose = f" (for: {PURPOSES[name]})" if name in PURPOSES else ""
        if not gap:
            versions = ", ".join(f"{r.package} {_version(r.package)}" for r in extras[name])
            found.append(Check(name, "ok", versions + purpose))
        elif other := supplanted_by(name, whole):
            found.append(Check(name, "ok", f"not needed: {other} is here{purpose}"))
        else:
            status = "missing" if all(g.installed is None for g in gap) else "broken"
            wanted = " ".join(f'"{g.requirement}"' for g in gap)
            detail = "; ".join(map(str, gap)) + purpose
            found.append(Check(name, status, detail, f"{_pip()} install {wanted}"))
    return found


def _optional() -> list[Check]:
    return [
        _library("onnx", f'{_pip()} install "onnx>=1.16"', purpose="convert to .onnx"),
        _library(
            "onnxruntime", f'{_pip()} install "onnxruntime>=1.18"', purpose="tests of .onnx files"
        ),
        _library(
            "safetensors", f"{_pip()} install safetensors", purpose="tests only; read without it"
        ),
        _library(
            "matplotlib", f'{_pip()} install "matplotlib>=3.8"', purpose="curves of a training"
        ),
        _library("torch", f"{_pip()} install torch", purpose="peer tests only"),
        _library("pytest", f"{_pip()} install pytest hypothesis", purpose="tests only"),
    ]


def _backends() -> list[Check]:
    from repvgg_ref.backends import backend_ops
    from repvgg_ref.errors import ReportedError

    found = []
    for name in BACKENDS:
        try:
            table = backend_ops(name)
        except ReportedError as error:
            found.append(Check(f"backend {name}", "missing", error.what, error.advice))
        else:
            found.append(Check(f"backend {name}", "ok", f"computes with the {table.name} table"))
    return found


def _gpu() -> Check:
    """Told without CUDA libraries; only a working driver puts `nvidia-smi` to work."""
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", "missing", "no NVIDIA driver found; everything here runs without one")
    try:
        listed = subprocess.run(
            [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check("gpu", "broken", f"nvidia-smi fails: {error}")
    return Check("gpu", "ok", " ; ".join(listed.stdout.strip().splitlines()))


def _cupy() -> Check:
    """Not whether it is installed, but whether it computes: one kernel and one matrix product."""
    from repvgg_ref.errors import BackendError
    from repvgg_ref.gpu import installed_cupys, require_device, several_cupys

    found = installed_cupys()
    try:
        device = require_device()
    except BackendError as error:
        status = "broken" if found else "missing"
        got = f" ({error.got})" if error.got else ""
        return Check("cupy", status, f"{error.what}{got}", error.advice)
    if len(found) > 1:
        several = several_cupys(found)
        return Check("cupy", "broken", f"works, but {several.what}", several.advice)
    return Check(
        "cupy",
        "ok",
        f"{device.cupy} on {device.name}, compute capability {device.compute_capability}, "
        f"{device.memory / 2**30:.0f} GiB, driver {device.driver}, runtime {device.runtime}",
    )


def _cudnn() -> Check:
    from repvgg_ref.gpu import find_cudnn

    found = find_cudnn()
    if found.version is None:
        detail = f"{found.missing} (for: fast convolutions of the cupy backend)"
        return Check("cudnn", "missing", detail, found.fix)
    return Check("cudnn", "ok", f"{found.version} for the convolutions of the cupy backend")


def _library(
    module: str,
    fix: str,
    *,
    package: str | None = None,
    purpose: str | None = None,
    describe: Any = None,
) -> Check:
    """Import what is there: an installed library that does not load is the gap hardest to see."""
    name = package or module
    version = _version(name)
    why = f" (for: {purpose})" if purpose else ""
    if version is None:
        return Check(name, "missing", f"not installed{why}", fix)
    if module == "torch":  # takes seconds to import, and nothing here depends on it
        return Check(name, "ok", version + why)
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # whatever a broken library raises is the answer
        return Check(name, "broken", f"{version} does not load: {error}", fix)
    return Check(name, "ok", version + (describe(loaded) if describe else "") + why)


def _blas(numpy: Any) -> str:
    """Which BLAS NumPy multiplies matrices with: it decides the speed of everything here."""
    import os

    try:
        blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        library = f"{blas['name']} {blas['version']}"
    except (KeyError, TypeError):
        library = "unknown"
    pinned = os.environ.get("OPENBLAS_CORETYPE")
    kernels = f" held to {pinned} kernels by OPENBLAS_CORETYPE" if pinned else ""
    return f", BLAS {library}{kernels}, {os.cpu_count()} processors"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip() -> str:
    return f"{sys.executable} -m pip"
