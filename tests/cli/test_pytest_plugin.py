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


def test_a_right_port_passes_in_one_line(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "from port import *\n"
        "def test_port(repvgg_oracle):\n"
        "    repvgg_oracle(REFERENCE, good, inputs=X).raise_if_bad()\n",
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_wrong_port_fails_with_the_whole_story_and_a_page(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "from port import *\n"
        "def test_port(repvgg_oracle):\n"
        "    repvgg_oracle(REFERENCE, bad_port, inputs=X).raise_if_bad()\n",
        "--repvgg-report=pages",
    )
    assert done.returncode == 1, done.stdout
    for said in (
        "bad_port: disagrees",
        "first bad   stage0",
        "eps-value",
        "try next",
        "report      pages/test_port.py-test_port.html",
    ):
        assert said in done.stdout
    assert "1 failed" in done.stdout
    assert "raise VerificationError" not in done.stdout  # the test's own line is shown instead
    page = tmp_path / "pages" / "test_port.py-test_port.html"
    assert "Disagrees" in page.read_text("utf-8")
    assert [path.name for path in page.parent.iterdir()] == [page.name]


def test_pages_of_one_test_do_not_overwrite_each_other(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "from port import *\nimport pytest\n"
        "@pytest.mark.parametrize('name', ['a/../b', 'c'])\n"
        "def test_port(repvgg_oracle, name):\n"
        "    for port in (bad_port, good, bad_port):\n"
        "        try: repvgg_oracle(REFERENCE, port, inputs=X).raise_if_bad()\n"
        "        except Exception: pass\n",
        "--repvgg-report=pages",
    )
    assert done.returncode == 0, done.stdout
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == [
        "test_port.py-test_port-a-..-b-3.html",
        "test_port.py-test_port-a-..-b.html",
        "test_port.py-test_port-c-3.html",
        "test_port.py-test_port-c.html",
    ]


def test_a_bad_report_that_is_dropped_fails_the_test(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "from port import *\n"
        "def test_port(repvgg_oracle):\n"
        "    repvgg_oracle(REFERENCE, bad_port, inputs=X)\n"
        "def test_right(repvgg_oracle):\n"
        "    repvgg_oracle(REFERENCE, good, inputs=X)\n",
    )
    assert done.returncode == 1, done.stdout
    assert "call raise_if_bad()" in done.stdout
    assert "2 passed, 1 error" in done.stdout


def test_a_port_that_cannot_be_judged_fails(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "from port import *\n"
        "def broken(x): raise RuntimeError('boom')\n"
        "def test_port(repvgg_oracle):\n"
        "    repvgg_oracle(REFERENCE, broken, inputs=X).raise_if_bad()\n",
    )
    assert done.returncode == 1, done.stdout
    assert "cannot judge" in done.stdout
    assert "boom" in done.stdout


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
