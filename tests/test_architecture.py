"""The house plan, enforced: who may import whom, who prints, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"repvgg_ref": ROOT, "weights_io": ROOT, "repvgg_ref_cli": ROOT / "cli"}
LONGEST = 400

# Who may import whom inside repvgg_ref, room by room: the arrows of the design. A room that is
# not listed may be imported by everybody but `ops`; nothing may import `train` or `oracle`.
OPS_IMPORTS = {"repvgg_ref.arrays", "repvgg_ref.errors", "repvgg_ref.ops"}
TOP_ROOMS = ("train", "oracle", "bench")
ROOMS_BELOW = ("ops", "blocks", "models", "data", "cpu", "gpu")

# Whoever reads or writes files, or makes a file's names printable, needs weights_io itself.
MAY_USE_WEIGHTS_IO = ("errors", "files", "data", *TOP_ROOMS)
# ``python -m repvgg_ref.train ARGS`` must equal ``repvgg-ref train ARGS``, so this program, which
# nobody imports, calls the command.
IS_THE_COMMAND = "repvgg_ref.train.__main__"

SOURCES = sorted(path for name, root in PACKAGES.items() for path in (root / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def module_name(path: Path) -> str:
    root = ROOT / "cli" if path.is_relative_to(ROOT / "cli") else ROOT
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that `path` imports anywhere, also inside functions and for type checkers."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def sources(package: str) -> list[Path]:
    return [path for path in SOURCES if is_in(module_name(path), package)]


def offenders(paths: list[Path], *packages: str) -> list[str]:
    return [
        f"{module_name(path)} imports {name}"
        for path in paths
        for name in imports(path)
        if any(is_in(name, package) for package in packages)
    ]


def test_there_are_sources_to_look_at() -> None:
    assert all(len(sources(package)) > 5 for package in PACKAGES)


def test_weights_io_knows_nothing_of_repvgg() -> None:
    assert offenders(sources("weights_io"), "repvgg_ref", "repvgg_ref_cli") == []


def test_nobody_imports_the_command() -> None:
    command = ("repvgg_ref_cli", IS_THE_COMMAND)
    library = [p for p in SOURCES if not any(is_in(module_name(p), part) for part in command)]
    assert offenders(library, "repvgg_ref_cli", "click") == []
    assert offenders([path for path in library if not _is_a_program(path)], "rich") == []


def test_files_are_touched_only_by_those_who_are_meant_to() -> None:
    allowed = [f"repvgg_ref.{room}" for room in MAY_USE_WEIGHTS_IO]
    others = [
        p for p in sources("repvgg_ref") if not any(is_in(module_name(p), r) for r in allowed)
    ]
    assert offenders(others, "weights_io") == []


def test_operators_import_arrays_and_errors_only() -> None:
    for path in sources("repvgg_ref.ops"):
        ours = {name for name in imports(path) if is_in(name, "repvgg_ref")}
        assert all(any(is_in(name, ok) for ok in OPS_IMPORTS) for name in ours), (path, ours)


def test_lower_rooms_do_not_reach_up() -> None:
    above = [f"repvgg_ref.{room}" for room in TOP_ROOMS]
    for room in ROOMS_BELOW:
        assert offenders(sources(f"repvgg_ref.{room}"), *above, "repvgg_ref.files.checkpoint") == []
    assert offenders(sources("repvgg_ref.blocks"), "repvgg_ref.models") == []


@pytest.mark.parametrize("witness", ["torch", "tensorflow", "jax", "sklearn", "timm"])
def test_witnesses_are_never_in_the_product(witness: str) -> None:
    assert offenders(SOURCES, witness) == []


def test_cupy_is_loaded_by_the_gpu_room_only() -> None:
    outside = [p for p in SOURCES if not is_in(module_name(p), "repvgg_ref.gpu")]
    assert offenders(outside, "cupy") == []


def test_torch_in_tests_stays_with_the_peers() -> None:
    """The museum rebuilds bugs of torch ports in torch: peers too, and marked so."""
    outside = [path for path in TESTS if not {"peers", "museum"} & set(path.parts)]
    assert offenders(outside, "torch") == []


def test_only_the_command_prints() -> None:
    printing = [
        f"{module_name(path)}:{node.lineno}"
        for path in sources("repvgg_ref") + sources("weights_io")
        if not _is_a_program(path)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert printing == []


def _is_a_program(path: Path) -> bool:
    """A script that is run with ``python -m`` talks to whoever runs it."""
    return (
        any(
            isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
            for node in tree(path).body
        )
        or path.name == "__main__.py"
    )


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_every_module_says_what_it_is_for() -> None:
    assert [module_name(path) for path in SOURCES if not ast.get_docstring(tree(path))] == []


def test_no_drawer_for_odds_and_ends() -> None:
    names = {path.stem for path in SOURCES + TESTS}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_importing_the_library_loads_nothing_heavy() -> None:
    program = (
        "import sys, repvgg_ref; heavy = {'torch', 'cupy', 'onnx', 'onnxruntime', 'scipy', 'PIL', "
        "'rich', 'click', 'sklearn', 'safetensors'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
