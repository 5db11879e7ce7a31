"""What the README shows is what happens: its commands are run and their output compared."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import repvgg_ref_cli.main
from repvgg_ref_cli.pages import names, read_page

from repvgg_ref.files.convert import convert
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
    """A folder that looks like the clone to commands that name the bundled files.

    Converted as by the first command, which another worker may be given.
    """
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "repvgg_ref" / "data", clone / "repvgg_ref" / "data")
    convert(ROOT / "repvgg_ref" / "data" / "digits-train.pth", clone / "digits.npz")
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
    table = TEXT.split("## Commands")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([a-z-]+)", table, re.MULTILINE)
    assert listed == list(repvgg_ref_cli.main.COMMANDS)


def test_every_file_of_the_reading_order_exists() -> None:
    lines = re.findall(r"^\d+\. (.*)", read_page("reading").text, re.MULTILINE)
    assert len(lines) == 12
    for line in lines:
        first, *others = re.findall(r"`([\w/]+(?:\.py|/))`", line)
        beside = (ROOT / first).parent
        assert (ROOT / first).exists(), first
        assert all((beside / name).exists() or (ROOT / name).exists() for name in others), line


def test_every_extra_is_listed() -> None:
    table = TEXT.split("## Extras")[1].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([a-z0-9]+)`", row[1] + row[2])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) <= listed
    assert listed - {"bench"} <= set(project["optional-dependencies"])


def test_every_page_is_linked_and_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", TEXT)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
    pages = TEXT.split("## More to read")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^- \[(\w+)\]", pages, re.MULTILINE)) == names()


def test_the_commands_with_json_are_those_it_names() -> None:
    without = [
        name
        for name in repvgg_ref_cli.main.COMMANDS
        if "--json" not in _options(repvgg_ref_cli.main.cli, name)
    ]
    (named,) = re.findall(r"`--json`, which all of them have but ([^,]*),", TEXT)
    excepted = re.findall(r"`([\w-]+)`", named)
    assert without == [name for name in excepted if name in repvgg_ref_cli.main.COMMANDS]


def _options(cli: click.Group, name: str) -> list[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return [option for parameter in command.params for option in parameter.opts]


def test_training_twice_as_shown_does_not_meet_itself() -> None:
    """Each line that trains writes to a folder of its own, or writes nothing."""
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    training = [line for line in lines if re.search(r"repvgg-ref train|repvgg_ref\.train", line)]
    assert len(training) == 4
    folders = [line.split("--out ")[1].split()[0] for line in training if "--dry-run" not in line]
    assert len(set(folders)) == len(folders) == 3


def test_the_convention_table_is_whole() -> None:
    rows = TEXT.split(BITES)[1].split("##")[0].strip().splitlines()
    asked = [row.split("|")[1].strip() for row in rows[2:]]
    assert asked == [
        "running average",
        "batch variance",
        "convolution",
        "eps",
        "padding",
        "changed weights",
        "authority",
    ]
