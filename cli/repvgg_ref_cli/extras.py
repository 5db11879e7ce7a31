"""The package's extras: what each is for, what of it is here, and the command that mends a gap.

What an extra asks for comes from the package's own metadata, that is from pyproject.toml.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

PACKAGE = "repvgg-ref"
PURPOSES = {
    "cupy12": "the GPU backend, CUDA 12",
    "cupy13": "the GPU backend, CUDA 13",
    "cudnn12": "fast convolutions of the GPU backend, CUDA 12",
    "cudnn13": "fast convolutions of the GPU backend, CUDA 13",
    "onnx": "convert to .onnx, verify .onnx files",
    "mpi": "training in several processes",
    "jpeg": "faster decoding of JPEG files",
    "plots": "the curves of a training",
    "tensorboard": "train --tensorboard",
    "test": "our own tests",
    "peers": "independent witnesses for tests, rivals for bench",
}
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\[([\w.,\s-]*)\])?\s*\(?([^;)]*)\)?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)['"]""")


@dataclass(frozen=True)
class Requirement:
    """A package that an extra asks for, ``version`` as written: ``>=1.24,<1.29``."""

    package: str
    version: str
    extras: tuple[str, ...] = ()

    def __str__(self) -> str:
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        return f"{self.package}{extras}{self.version}"


@dataclass(frozen=True)
class Gap:
    """A requirement that is not met; `installed` is the version that is too old or too new."""

    requirement: Requirement
    installed: str | None

    def __str__(self) -> str:
        if self.installed is None:
            return f"{self.requirement.package} is not installed"
        return f"{self.requirement.package} is {self.installed}, not {self.requirement.version}"


def read_extras(lines: Iterable[str]) -> dict[str, list[Requirement]]:
    """Every extra's requirements, from lines as metadata has them; extras of ours are put in.

    Where a line has further conditions (a Python version, a system), it counts everywhere.
    """
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        asked, _, condition = line.partition(";")
        if (extra := _EXTRA.search(condition)) is not None:
            found.setdefault(extra[1], []).append(_requirement(asked))
    return {name: list(_flat(found, name, ())) for name in found}


def gaps(requirements: Iterable[Requirement], version: Callable[[str], str | None]) -> list[Gap]:
    """What is not installed, or not in the version that is asked for."""
    installed = ((each, version(each.package)) for each in requirements)
    return [
        Gap(each, has) for each, has in installed if has is None or not _fits(has, each.version)
    ]


def supplanted_by(extra: str, whole: Mapping[str, bool]) -> str | None:
    """The extra that does the same for another CUDA and is all there; None if there is none."""
    family = extra.rstrip("0123456789")
    others = (name for name in whole if name != extra and name.rstrip("0123456789") == family)
    return next((name for name in others if whole[name]), None) if family != extra else None


def metadata_lines() -> list[str]:
    """The requirements in the installed package's metadata; none where it is not installed."""
    try:
        return importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _requirement(text: str) -> Requirement:
    found = _REQUIREMENT.match(text.strip())
    assert found is not None, text
    extras = tuple(name.strip() for name in (found[2] or "").split(",") if name.strip())
    return Requirement(found[1], found[3].replace(" ", ""), extras)


def _flat(
    extras: Mapping[str, list[Requirement]], name: str, above: tuple[str, ...]
) -> Iterable[Requirement]:
    for each in extras.get(name, []):
        if each.package != PACKAGE:
            yield each
            continue
        for inner in each.extras:
            if inner not in (*above, name):
                yield from _flat(extras, inner, (*above, name))


def _fits(installed: str, wanted: str) -> bool:
    """Whether ``>=``, ``<`` and the like hold; what is written otherwise is believed."""
    for clause in filter(None, wanted.split(",")):
        bound = clause.lstrip("<>=!~")
        operator = clause.removesuffix(bound)
        has, limit = _numbers(installed), _numbers(bound)
        length = max(len(has), len(limit))
        has, limit = (each + (0,) * (length - len(each)) for each in (has, limit))
        holds = {">=": has >= limit, ">": has > limit, "<": has < limit, "<=": has <= limit}
        if not holds.get(operator, True):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
