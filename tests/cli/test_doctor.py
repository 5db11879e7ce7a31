"""`repvgg-ref doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pytest

from tests.cli.runner import invoke


def test_json_names_every_part_and_how_to_mend_each_gap(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", _without("onnx"))
    shown = invoke(capsys, "doctor", "--json")
    assert shown.code == 0
    found = shown.json()
    assert list(found) == ["version", "checks", "extras"]
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "numpy", "scipy", "gpu", "backend numpy", "backend cupy"} <= set(checks)
    for check in found["checks"]:
        assert list(check) == ["name", "status", "detail", "fix"]
        assert check["status"] in ("ok", "missing", "broken")
    assert checks["numpy"]["status"] == "ok"
    assert "BLAS" in checks["numpy"]["detail"]
    assert checks["onnx"]["status"] == "missing"
    assert checks["onnx"]["fix"].endswith('-m pip install "onnx>=1.16"')


def test_a_library_that_does_not_load_is_told_from_one_that_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> object:
        if name == "scipy":
            raise ImportError("libgfortran.so.5: cannot open")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    shown = invoke(capsys, "doctor")
    assert shown.code == 0
    assert "!!  scipy" in shown.out
    assert "does not load: libgfortran.so.5" in shown.out
    assert "-m pip install --force-reinstall scipy" in shown.out


@pytest.mark.parametrize("width", [40, 80])
def test_what_it_says_fits_the_terminal_and_what_it_advises_can_be_copied(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(importlib.metadata, "version", _without("onnx"))
    lines = invoke(capsys, "doctor").out.splitlines()
    assert max(len(line) for line in lines if "mend: " not in line) <= width
    assert any(line.endswith("mend: " + _fix("onnx>=1.16")) for line in lines)


def _fix(requirement: str) -> str:
    return f'{sys.executable} -m pip install "{requirement}"'


def _without(missing: str) -> object:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name) if name != "repvgg-ref" else "0.1.0"

    return version
