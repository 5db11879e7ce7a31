"""The house plan, enforced: who may import whom, who prints, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"repvgg_ref": ROOT, "weights_io": ROOT, "repvgg_ref_cli": ROOT / "cli"}
LONGEST = 400

# Everybody's: the ground floor. `backends` is a room of its own, since it picks a table.
GROUND = ("arrays", "errors", "interpreter", "version")
DRAWING = ROOT / "CONTRIBUTING.md"
TOP_ROOMS = ("train", "oracle", "bench")

# What only the catalogue and the key maps may know: how RepVGG's branches are called.
BRANCH_NAMES = ("branch_3x3", "branch_1x1", "branch_identity")
MAY_NAME_BRANCHES = (
    "repvgg_ref.blocks.catalogue",
    "repvgg_ref.blocks.quantised",  # data of the family: YOLO-NAS calls its branches so, too
    "repvgg_ref.files.dialects",
    "repvgg_ref.oracle.programs.block",  # whose three constants bugs are called by
)

# Whoever reads or writes files, or makes a file's names printable, needs weights_io itself.
MAY_USE_WEIGHTS_IO = ("errors", "files", "data", *TOP_ROOMS)
# ``python -m repvgg_ref[.train] ARGS`` must equal ``repvgg-ref [train] ARGS``, so these programs,
# which nobody imports, call the command.
ARE_THE_COMMAND = ("repvgg_ref.__main__", "repvgg_ref.train.__main__")

SOURCES = sorted(path for name, root in PACKAGES.items() for path in (root / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def module_name(path: Path) -> str:
    root = ROOT / "cli" if path.is_relative_to(ROOT / "cli") else ROOT
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path))


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
    named = [p for p in paths if any(each.rpartition(".")[2] in text(p) for each in packages)]
    return [
        f"{module_name(path)} imports {name}"
        for path in named  # only those are parsed
        for name in imports(path)
        if any(is_in(name, package) for package in packages)
    ]


def test_there_are_sources_to_look_at() -> None:
    assert all(len(sources(package)) > 5 for package in PACKAGES)


def test_weights_io_knows_nothing_of_repvgg() -> None:
    assert offenders(sources("weights_io"), "repvgg_ref", "repvgg_ref_cli") == []


def test_nobody_imports_the_command() -> None:
    command = ("repvgg_ref_cli", *ARE_THE_COMMAND)
    library = [p for p in SOURCES if not any(is_in(module_name(p), part) for part in command)]
    assert offenders(library, "repvgg_ref_cli", "click") == []
    assert offenders([path for path in library if not _is_a_program(path)], "rich") == []


def test_files_are_touched_only_by_those_who_are_meant_to() -> None:
    allowed = [f"repvgg_ref.{room}" for room in MAY_USE_WEIGHTS_IO]
    others = [
        p for p in sources("repvgg_ref") if not any(is_in(module_name(p), r) for r in allowed)
    ]
    assert offenders(others, "weights_io") == []


def room_of(module: str) -> str:
    """``blocks`` of ``repvgg_ref.blocks.linear``; the other packages are rooms themselves."""
    package, *inner = module.split(".")
    return inner[0] if package == "repvgg_ref" and inner else package


@cache
def built() -> dict[str, set[str]]:
    """Room -> the rooms that it imports, lazily or not; the ground floor left out."""
    known = {module_name(path) for path in SOURCES}
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        module = module_name(path)
        if module in ARE_THE_COMMAND:
            continue
        reached = {room_of(name) for name in imports(path) if name in known}
        found.setdefault(room_of(module), set()).update(reached)
    aside = {*GROUND, "repvgg_ref"}
    return {room: reached - aside - {room} for room, reached in found.items() if room not in aside}


def drawn() -> dict[str, set[str]]:
    """The same as the drawing of the house says it, line by line: ``room -> room, room``."""
    lines = re.findall(r"^(\w+) +-> *(.*)$", DRAWING.read_text(encoding="utf-8"), re.MULTILINE)
    return {room: {name for name in reached.split(", ") if name} for room, reached in lines}


def test_the_drawing_of_the_house_is_what_the_imports_say() -> None:
    assert drawn() == built()


def test_no_two_files_import_each_other_in_a_circle() -> None:
    """Lazy imports count."""
    modules = {module_name(path): path for path in SOURCES if path.name != "__init__.py"}
    reads = {
        name: {n for n in imports(path) if n in modules and n != name}
        for name, path in modules.items()
    }
    list(TopologicalSorter(reads).static_order())  # raises CycleError, which names the circle


def test_the_ground_floor_holds_what_everybody_stands_on() -> None:
    loose = {path.stem for path in (ROOT / "repvgg_ref").glob("*.py")}
    assert loose == {"__init__", "__main__", "backends", *GROUND}


def test_operators_import_arrays_and_errors_only() -> None:
    assert built()["ops"] == set()
    assert built()["exact"] == set()


def test_lower_rooms_do_not_reach_up() -> None:
    for room in ("ops", "blocks", "models", "cpu", "gpu", "data", "files"):
        assert not built()[room] & {*TOP_ROOMS, "cli"}, room
    for room in ("ops", "blocks"):
        assert not built()[room] & {"models", "cpu", "gpu", "files"}, room


def test_branches_are_named_where_blocks_are_data_and_nowhere_else() -> None:
    """No fixed tuple of branch names: the next block would be left out of it in silence."""
    found = [
        f"{module_name(path)}:{node.lineno}: {node.value}"
        for path in SOURCES
        if module_name(path) not in MAY_NAME_BRANCHES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in BRANCH_NAMES
    ]
    assert found == []


def test_no_code_outside_a_table_asks_which_table_it_is() -> None:
    asking = [
        f"{module_name(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare)
        and any(isinstance(op, ast.Is | ast.IsNot | ast.Eq | ast.NotEq) for op in node.ops)
        and {"NUMPY", "CUPY", "REFERENCE"} & {ast.unparse(side) for side in node.comparators}
    ]
    assert asking == []


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


def test_no_file_is_longer_than_400_lines() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in SOURCES + TESTS}
    assert [f"{p.relative_to(ROOT)}: {n}" for p, n in lines.items() if n > LONGEST] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module_name(path) for path in SOURCES if not ast.get_docstring(tree(path))] == []


def test_no_drawer_for_odds_and_ends() -> None:
    names = {path.stem for path in SOURCES + TESTS}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_importing_the_library_loads_nothing_heavy() -> None:
    program = (
        "import sys, repvgg_ref; heavy = {'torch', 'cupy', 'onnx', 'onnxruntime', 'scipy', 'PIL', "
        "'rich', 'click', 'sklearn', 'safetensors'} & set(sys.modules); "
        "import numpy; plain = repvgg_ref.architecture('RepVGG-A0'); "
        "from repvgg_ref.models.arguments import image_batch; "
        "image_batch(plain, numpy.zeros((1, 3, 32, 32), 'f4')); "
        "heavy |= {'numpy.ma'} & set(sys.modules); repvgg_ref.verify; "
        "heavy |= {'scipy.special', 'scipy.optimize'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
