"""The fixture `repvgg_oracle`, in a pytest of its own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from repvgg_ref.data.digits import MODEL_PATH
from tests.cli.runner import ROOT, environment

PLUGIN = "repvgg_ref_cli.pytest_plugin"
PORT = f"""
import numpy as np
import repvgg_ref as rr
from repvgg_ref.data.digits import load_digits, to_input

REFERENCE = {str(MODEL_PATH)!r}
X = to_input(load_digits().test.images[:2])
right, wrong = rr.load(REFERENCE), rr.load(REFERENCE, eps=1e-3)

def good(x): return right.forward(x, layers=True)
def bad_port(x): return wrong.forward(x, layers=True)
"""
PORTS = """
import pytest
from port import *

def test_right(repvgg_oracle):
    repvgg_oracle(REFERENCE, good, inputs=X).raise_if_bad()

def test_wrong(repvgg_oracle):
    repvgg_oracle(REFERENCE, bad_port, inputs=X).raise_if_bad()

@pytest.mark.parametrize("name", ["a/../b"])
def test_dropped(repvgg_oracle, name):
    for port in (bad_port, good, bad_port):
        repvgg_oracle(REFERENCE, port, inputs=X)

def test_broken(repvgg_oracle):
    def broken(x): raise RuntimeError("boom")
    repvgg_oracle(REFERENCE, broken, inputs=X).raise_if_bad()
"""


def run(folder: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `test` with the plugin, and no other, in a process of its own."""
    (folder / "port.py").write_text(PORT)
    (folder / "test_port.py").write_text(test)
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(folder)])
    pytest_alone = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    return subprocess.run(
        [*pytest_alone, "-p", PLUGIN, f"--rootdir={folder}", *options, "test_port.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder and what was printed of ports of every kind: one run serves all that look at it."""
    folder = tmp_path_factory.mktemp("ports")
    done = run(folder, PORTS, "--repvgg-report=pages", "-rA")
    assert done.returncode == 1, done.stdout
    assert "2 failed, 2 passed, 1 error" in done.stdout
    return folder, done.stdout


def test_a_right_port_passes_in_one_line(ran: tuple[Path, str]) -> None:
    assert "PASSED test_port.py::test_right" in ran[1]


def test_a_wrong_port_fails_with_the_whole_story_and_a_page(ran: tuple[Path, str]) -> None:
    folder, printed = ran
    for said in (
        "FAILED test_port.py::test_wrong",
        "bad_port: disagrees",
        "first bad   stage0",
        "eps-value",
        "try next",
        "report      pages/test_port.py-test_wrong.html",
    ):
        assert said in printed
    assert "raise VerificationError" not in printed  # the test's own line is shown instead
    page = folder / "pages" / "test_port.py-test_wrong.html"
    assert "Disagrees" in page.read_text("utf-8")


def test_only_bad_reports_have_pages_and_those_of_one_test_do_not_overwrite_each_other(
    ran: tuple[Path, str],
) -> None:
    names = {path.name for path in (ran[0] / "pages").iterdir()}
    assert {name for name in names if "broken" not in name} == {
        "test_port.py-test_wrong.html",
        "test_port.py-test_dropped-a-..-b-3.html",
        "test_port.py-test_dropped-a-..-b.html",
    }


def test_a_bad_report_that_is_dropped_fails_the_test(ran: tuple[Path, str]) -> None:
    assert "ERROR test_port.py::test_dropped[a/../b]" in ran[1]
    assert "call raise_if_bad()" in ran[1]


def test_a_port_that_cannot_be_judged_fails(ran: tuple[Path, str]) -> None:
    for said in ("FAILED test_port.py::test_broken", "cannot judge", "boom"):
        assert said in ran[1]


def test_pytest_starts_without_numpy(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "import sys\n"
        "def test_light(request):\n"
        "    assert request.config.getoption('--repvgg-report') is None\n"
        "    assert not {'numpy', 'repvgg_ref', 'jinja2', 'rich', 'click'} & set(sys.modules)\n",
    )
    assert done.returncode == 0, done.stdout


def test_it_is_registered_with_pytest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (module,) = project["entry-points"]["pytest11"].values()
    assert module == PLUGIN
    assert importlib.import_module(module).repvgg_oracle is not None


def test_the_option_is_explained(tmp_path: Path) -> None:
    assert "--repvgg-report=DIR" in run(tmp_path, "", "--help").stdout


@pytest.mark.parametrize("fixture", ["repvgg_oracle"])
def test_the_fixture_is_listed_with_its_docstring(tmp_path: Path, fixture: str) -> None:
    listed = run(tmp_path, "", "--fixtures").stdout
    assert fixture in listed
    assert "raise_if_bad" in listed
