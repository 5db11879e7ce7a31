"""What is in the wheel: three packages and nothing that could overwrite another project's."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
    assert top == {"repvgg_ref", "weights_io", "repvgg_ref_cli", "repvgg_ref-0.1.0.dist-info"}


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
        *("onnx", "mpi", "jpeg", "tensorboard", "test", "peers"),
    }
    assert "Requires-Dist: torch" not in "\n".join(
        line for line in metadata.splitlines() if "extra ==" not in line
    )


def test_no_bytecode_tests_or_caches_are_in_it(wheel: Path) -> None:
    assert not [n for n in members(wheel) if "__pycache__" in n or n.startswith("tests")]
