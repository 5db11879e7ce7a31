"""The extras that `doctor` shows are those of pyproject.toml, each with what mends it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from repvgg_ref_cli.extras import PURPOSES, Requirement, gaps, read_extras, supplanted_by

from tests.cli.runner import invoke

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
DECLARED: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def as_metadata(extras: dict[str, list[str]]) -> list[str]:
    """As a build backend writes them; hatchling sorts the clauses of a version."""
    lines = ["numpy>=1.26"]
    for extra, asked in extras.items():
        for each in asked:
            requirement, _, condition = (part.strip() for part in each.partition(";"))
            also = f"({condition}) and " if condition else ""
            lines.append(f"{requirement}; {also}extra == '{extra}'")
    return lines


def package(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, by package; pyproject's extras are what the metadata says."""
    versions = {"repvgg-ref": "0.1.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: as_metadata(DECLARED))
    return versions


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    found = invoke(capsys, "doctor", "--json").json()["extras"]
    assert all(list(each) == ["name", "status", "detail", "fix"] for each in found)
    return {each["name"]: each for each in found}


def test_every_extra_is_listed_with_the_command_that_mends_it(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = shown(capsys)
    assert list(found) == list(DECLARED)
    for extra, asked in DECLARED.items():
        assert found[extra]["status"] == "missing"
        assert " -m pip install " in found[extra]["fix"]
        direct = [each for each in asked if package(each) != "repvgg-ref"]
        for each in direct:
            assert f'"{each.partition(";")[0].strip()}"' in found[extra]["fix"], extra
    people = invoke(capsys, "doctor").out.partition("\nextras\n")[2]
    assert all(re.search(rf"^--  {extra} ", people, re.MULTILINE) for extra in DECLARED)


def test_what_is_whole_has_versions_and_needs_nothing(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed |= {"onnx": "1.16", "onnxruntime": "1.18.0"}
    onnx = shown(capsys)["onnx"]
    assert (onnx["status"], onnx["fix"]) == ("ok", None)
    assert onnx["detail"].startswith("onnx 1.16, onnxruntime 1.18.0")


def test_only_what_is_missing_or_too_old_is_installed(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed |= {"onnx": "1.9.2", "onnxruntime": "1.18.0"}
    onnx = shown(capsys)["onnx"]
    assert onnx["status"] == "broken"
    assert onnx["detail"].startswith("onnx is 1.9.2, not >=1.16")
    assert onnx["fix"].endswith('-m pip install "onnx>=1.16"')
    del installed["onnx"]
    assert shown(capsys)["onnx"]["status"] == "missing"


def test_an_extra_of_extras_asks_for_what_they_ask_for(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    fix = shown(capsys)["peers"]["fix"]
    assert "repvgg-ref" not in fix.partition("install")[2]
    assert '"onnx>=1.16"' in fix
    assert '"torch>=2.4"' in fix


def test_what_another_cuda_does_is_no_gap(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed |= {"cupy-cuda13x": "14.1", "ml_dtypes": "0.5.1", "ml-dtypes": "0.5.1"}
    found = shown(capsys)
    assert found["cupy13"]["status"] == "ok"
    assert found["cupy12"]["detail"].startswith("not needed: cupy13 is here")
    assert found["cupy12"]["fix"] is None
    assert supplanted_by("onnx", {"onnx": False, "mpi": True}) is None


def test_a_clone_that_is_not_installed_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert "extras are not known" in invoke(capsys, "doctor").out


def test_every_extra_says_what_it_is_for() -> None:
    assert set(PURPOSES) == set(DECLARED)


@pytest.mark.parametrize(
    ("installed_version", "wanted", "fits"),
    [
        ("1.16", ">=1.16", True),
        ("1.16.0", ">=1.16", True),
        ("1.9", ">=1.16", False),
        ("2.0.1rc1", ">=2", True),
        ("1.29", ">=1.24,<1.29", False),
        ("1.29.0", "<1.29,>=1.24", False),
        ("1.28.9", ">=1.24,<1.29", True),
        ("20240820", ">=1.0.20240820", True),
        ("1.0.20240819", ">=1.0.20240820", False),
        ("3.0", "~=2.1", True),  # written otherwise than ours are: believed
        ("1.0+cpu", "", True),
    ],
)
def test_versions_are_compared_as_numbers(installed_version: str, wanted: str, fits: bool) -> None:
    found = gaps([Requirement("p", wanted)], lambda name: installed_version)
    assert (found == []) is fits


def test_lines_of_metadata_are_read_in_all_their_forms() -> None:
    lines = [
        "numpy>=1.26",
        'a[b,c] (>=1,<2) ; extra == "x"',
        "d; python_version < '3.13' and extra == 'x'",
        "repvgg-ref[x,y]; extra == 'y'",
    ]
    found = read_extras(lines)
    assert [str(each) for each in found["x"]] == ["a[b,c]>=1,<2", "d"]
    assert found["y"] == found["x"]  # and an extra of itself ends
