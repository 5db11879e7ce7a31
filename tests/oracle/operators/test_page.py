"""The page on machine-written kernels shows what happens, and its table is the catalogue."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest
import repvgg_ref_cli.main
from repvgg_ref_cli.pages import read_page

import repvgg_ref.oracle.operators.catalogue as catalogue
from tests.cli.runner import run_python
from tests.test_readme import stable

PAGE = read_page("kernels").text


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_command_prints_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(blocks("python")[0])
    command, _, shown = blocks("console")[0].removeprefix("$ ").partition("\n")
    program, *arguments = shlex.split(command)
    assert program == "repvgg-ref"
    done = run_python("-m", repvgg_ref_cli.main.__package__, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert _words(done.stdout) == _words(shown)


def _words(output: str) -> list[str]:
    return [line.rstrip() for line in stable(output).splitlines() if line.strip()]


def test_the_python_session_gives_what_is_shown() -> None:
    found: list[str] = []
    test = doctest.DocTestParser().get_doctest(blocks("python")[1], {}, "page", "page", 0)
    results = doctest.DocTestRunner().run(test, out=found.append)
    assert results.attempted > 5
    assert results.failed == 0, "".join(found)


@pytest.mark.parametrize("name", catalogue.OPERATORS)
def test_every_operator_stands_in_the_table(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line)
    operator = catalogue.OPERATORS[name]
    assert all(array in row for array in operator.arrays)
    assert all(output in row for output in operator.outputs)
    if "..." not in row:
        assert all(
            f"{key}={value}" in row.replace("1e-5", "1e-05")
            for key, value in operator.settings.items()
        )
