"""`weights_io` imports NumPy and a short list of the standard library, and evaluates nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import weights_io

PACKAGE = Path(weights_io.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {
    *("__future__", "collections", "contextlib", "dataclasses", "errno", "fcntl", "io"),
    *("gc", "itertools", "json", "msvcrt"),
    *("math", "operator", "os", "pathlib", "pickletools", "re", "secrets", "stat", "struct"),
    *("threading", "types", "typing", "zlib", "numpy", "weights_io"),
}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "import_module", "literal_eval"}
LINES = 400


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_little_and_evaluates_nothing(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= ALLOWED
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            if node.module == "sys":  # a list of names; the rest of it opens every door
                assert [alias.name for alias in node.names] == ["stdlib_module_names"]
                continue
            assert node.module.partition(".")[0] in ALLOWED
        name = getattr(node, "id", getattr(node, "attr", None))
        assert (
            not isinstance(node, ast.Name | ast.Attribute)
            or name not in FORBIDDEN_NAMES
            or (
                source.name == "npz.py" and name == "compile"  # of a regular expression
            )
        )


def test_importing_it_loads_no_framework_and_no_unpickler() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import weights_io; "
        "print(*sorted(set(sys.modules) - before))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    loaded = {name.partition(".")[0] for name in output.split()}
    assert loaded.isdisjoint({"torch", "safetensors", "cupy", "onnx", "scipy", "pickletools"})
    assert {name for name in output.split() if name.startswith("weights_io.")}
