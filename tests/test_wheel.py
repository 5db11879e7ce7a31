"""What is in the wheel: three packages and nothing that could overwrite another project's."""

from __future__ import annotations

import configparser
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("repvgg_ref", "weights_io", "repvgg_ref_cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the build backend is not installed; extra 'test'")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = folder.glob("*.whl")
    return built


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def test_the_top_level_is_exactly_three_packages(wheel: Path) -> None:
    top = {name.split("/")[0] for name in members(wheel)}
    assert top == {*PACKAGES, "repvgg_ref-0.1.0.dist-info"}


def test_every_source_file_is_in_it(wheel: Path) -> None:
    packed = set(members(wheel))
    for root, package in (
        (ROOT, "repvgg_ref"),
        (ROOT, "weights_io"),
        (ROOT / "cli", "repvgg_ref_cli"),
    ):
        for path in (root / package).rglob("*.py"):
            assert path.relative_to(root).as_posix() in packed


def test_the_reports_templates_are_in_it(wheel: Path) -> None:
    folder = "repvgg_ref/oracle/render/templates/"
    assert {f"{folder}report.html.j2", f"{folder}report.css"} <= set(members(wheel))


def test_every_page_and_figure_is_in_it(wheel: Path) -> None:
    folder = ROOT / "cli" / "repvgg_ref_cli" / "pages"
    pages = {path.relative_to(ROOT / "cli").as_posix() for path in folder.rglob("*.[ms][dv]*")}
    assert len(pages) > 8
    assert pages <= set(members(wheel))


def test_the_bundled_model_and_pictures_are_in_it_and_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        data = [i for i in file.infolist() if i.filename.startswith("repvgg_ref/data/")]
    names = [info.filename.rsplit("/", 1)[1] for info in data]
    assert {"digits-train.pth", "digits.npz"} <= set(names)
    assert sum(name.startswith("digit-") and name.endswith(".png") for name in names) == 10
    assert sum(info.file_size for info in data) < 1_000_000


def test_it_offers_one_command_a_pytest_plugin_and_its_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        info = "repvgg_ref-0.1.0.dist-info/"
        entry_points = file.read(info + "entry_points.txt").decode()
        metadata = file.read(info + "METADATA").decode()
    parsed = configparser.ConfigParser()
    parsed.read_string(entry_points)
    assert dict(parsed["console_scripts"]) == {"repvgg-ref": "repvgg_ref_cli.main:main"}
    extras = {
        line.split()[1] for line in metadata.splitlines() if line.startswith("Provides-Extra:")
    }
    assert extras == {
        *("cupy12", "cupy13", "cudnn12", "cudnn13"),
        *("onnx", "mpi", "jpeg", "tensorboard", "plots", "test", "peers"),
    }
    assert "Requires-Dist: torch" not in "\n".join(
        line for line in metadata.splitlines() if "extra ==" not in line
    )


def test_no_bytecode_tests_or_caches_are_in_it(wheel: Path) -> None:
    assert not [n for n in members(wheel) if "__pycache__" in n or n.startswith("tests")]


def test_every_package_says_that_it_is_typed(wheel: Path) -> None:
    marked = {name for name in members(wheel) if name.endswith("py.typed")}
    assert marked == {f"{package}/py.typed" for package in PACKAGES}


USERS_PROGRAM = """
import numpy as np
import repvgg_ref as rr
model = rr.build("repvgg_a0", num_classes=10)
x = np.zeros((1, 3, 32, 32), np.float32)
report = rr.verify(model, rr.fuse(model).forward, inputs=x)
print(model(x).argmax(), model(x, layers=True)["stage0"].shape, report.verdict, rr.list_models())
"""


@pytest.mark.slow  # seven seconds of a processor; `.ci/run` names it, so it runs there
def test_a_users_program_passes_mypy_strict(wheel: Path, tmp_path: Path) -> None:
    """Against the installed wheel; and a wrong one does not, so that types are really seen."""
    pytest.importorskip("mypy", reason="mypy is not installed; extra 'test'")
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    (site / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))

    def mypy(program: str) -> tuple[int, str]:
        (tmp_path / "user.py").write_text(program)
        python = tmp_path / "venv" / "bin" / "python"
        options: list[str | Path] = [
            "--strict",
            "--python-executable",
            python,
            "--cache-dir",
            tmp_path / "cache",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "mypy", *options, "user.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    assert mypy(USERS_PROGRAM) == (0, "Success: no issues found in 1 source file\n")
    code, said = mypy(USERS_PROGRAM + "report.verdikt\nmodel(x).nonsense\nrr.verify(7, 7)\n")
    assert code == 1
    for wrong in ('"Report" has no attribute "verdikt"', 'no attribute "nonsense"', '"verify"'):
        assert wrong in said
