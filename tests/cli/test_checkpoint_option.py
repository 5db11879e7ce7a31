"""One name for the file that a command starts from; the older names stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from repvgg_ref_cli.main import COMMANDS, cli
from repvgg_ref_cli.piped import InputFile

from tests.cli.runner import ROOT, invoke, save_small

OLDER = {
    "convert": "--in",
    "inspect": "--in",
    "verify": "--reference",
    "golden": "--reference",
    "predict": "--weights",
    "eval": "--weights",
    "train": "--init",
    "quantize": "--in",
    "advise": "--in",
}

# Where the environment of the tests has it installed.
_HIDES_THE_COMMAND = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "repvgg_ref_cli":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hide())
"""


def options(name: str) -> list[click.Option]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return [each for each in command.params if isinstance(each, click.Option)]


def test_every_command_that_starts_from_a_file_calls_it_so() -> None:
    found = {
        name: option.opts
        for name in COMMANDS
        for option in options(name)
        if "--checkpoint" in option.opts
    }
    assert found == {name: ["--checkpoint", older] for name, older in OLDER.items()}


def test_every_such_file_may_come_on_stdin() -> None:
    """What it is then is tested in `test_piped`."""
    for name in OLDER:
        (option,) = (each for each in options(name) if "--checkpoint" in each.opts)
        assert isinstance(option.type, InputFile), name


@pytest.mark.parametrize("option", ["--checkpoint", "--in", None])
def test_convert_takes_it_by_either_name_or_none(
    option: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.npz"), tmp_path / "b.npz"
    named = [source] if option is None else [option, source]
    assert invoke(capsys, "convert", *named, "--out", out, "--json").json()["out"] == str(out)


def test_the_package_is_the_command(tmp_path: Path) -> None:
    """As it is installed: both packages beside each other, and no folder of the clone."""
    for package in (ROOT / "repvgg_ref", ROOT / "weights_io", ROOT / "cli" / "repvgg_ref_cli"):
        (tmp_path / package.name).symlink_to(package)
    for module, says in (
        ("repvgg_ref", "Usage: repvgg-ref [OPTIONS] "),
        ("repvgg_ref.train", "Usage: repvgg-ref train [OPTIONS]"),
    ):
        done = _run(module, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(says)


def test_without_the_command_the_package_says_how_to_have_it(tmp_path: Path) -> None:
    for package in (ROOT / "repvgg_ref", ROOT / "weights_io"):
        (tmp_path / package.name).symlink_to(package)
    (tmp_path / "sitecustomize.py").write_text(_HIDES_THE_COMMAND)
    done = _run("repvgg_ref", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the command is not installed (")
    assert done.stderr.count("\n") == 1


def _run(module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env={"PYTHONPATH": str(folder), "PATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
