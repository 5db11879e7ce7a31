"""What the README shows is what happens: its commands are run and their output compared."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import repvgg_ref_cli.main

from tests.cli.runner import run_python

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BITES = "## Conventions that bite"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def sessions() -> Iterator[tuple[str, str]]:
    """Each command of the console blocks, with the output shown below it."""
    for block in blocks("console"):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = session.partition("\n")
            yield command, output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the clone to commands that name the bundled files."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "repvgg_ref" / "data", clone / "repvgg_ref" / "data")
    return clone


def stable(output: str) -> str:
    """`output` without what another processor may round differently: errors and percentages."""
    return re.sub(r"\d+(\.\d+)?e-\d+|\d+\.\d+%", "#", output).replace("  #", "#")


@pytest.mark.parametrize(("command", "shown"), list(sessions()), ids=lambda text: text[:40])
def test_commands_print_what_is_shown(command: str, shown: str, folder: Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "repvgg-ref"
    if command.endswith(".onnx") and find_spec("onnx") is None:
        pytest.skip("needs the extra 'onnx'")
    done = run_python("-m", repvgg_ref_cli.main.__package__, *arguments, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert stable(done.stdout) == stable(shown)


def test_python_sessions_give_what_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found: list[str] = []
    for session in blocks("python"):
        test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
        results = doctest.DocTestRunner().run(test, out=found.append)
        assert results.attempted > 5
        assert results.failed == 0, "".join(found)


def test_the_first_two_blocks_are_the_two_set_up_lines() -> None:
    first, second = blocks("bash")[:2]
    for line in (first, second):
        assert line.count("\n") == 1
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
    assert first.endswith(".venv/bin/repvgg-ref demo\n")
    assert second.endswith("-m pytest -q -n auto\n")


def test_every_command_it_lists_exists() -> None:
    listed = re.findall(r"^\| `([a-z-]+)", TEXT.split("## Reading order")[0], re.MULTILINE)
    assert listed == list(repvgg_ref_cli.main.COMMANDS)


def test_every_file_of_the_reading_order_exists() -> None:
    order = TEXT.split("## Reading order")[1].split("Synonyms")[0]
    lines = re.findall(r"^\d+\. (.*)", order, re.MULTILINE)
    assert len(lines) == 12
    for line in lines:
        first, *others = re.findall(r"`([\w/]+(?:\.py|/))`", line)
        beside = (ROOT / first).parent
        assert (ROOT / first).exists(), first
        assert all((beside / name).exists() or (ROOT / name).exists() for name in others), line


def test_the_convention_table_is_whole() -> None:
    rows = TEXT.split(BITES)[1].split("##")[0].strip().splitlines()
    asked = [row.split("|")[1].strip() for row in rows[2:]]
    assert asked == [
        "running average",
        "batch variance",
        "convolution",
        "eps",
        "padding",
        "authority",
    ]
