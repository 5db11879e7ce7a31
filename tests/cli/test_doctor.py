"""`repvgg-ref doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata

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


def _without(missing: str) -> object:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name) if name != "repvgg-ref" else "0.1.0"

    return version
