"""Shell completion, asked as shells ask: by the variable that click's protocol knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from repvgg_ref_cli import completion
from repvgg_ref_cli.commands.train import _recipe_options
from repvgg_ref_cli.main import COMMANDS, cli, main

from repvgg_ref.blocks.catalogue import block_names
from repvgg_ref.blocks.family import FAMILY
from repvgg_ref.models.architectures import NAMES
from repvgg_ref.train.recipe import recipe_names
from tests.cli.runner import environment, invoke, run_python


class Shell:
    """Asks in this process what would be offered at the end of a line."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def lines(self, line: str, shell: str) -> list[str]:
        words = line.split(" ")
        self._monkeypatch.setenv("COMP_WORDS", line)
        cursor = words[-1] if shell == "fish" else str(len(words) - 1)
        self._monkeypatch.setenv("COMP_CWORD", cursor)
        self._monkeypatch.setenv(completion.VARIABLE, f"{shell}_complete")
        self._capsys.readouterr()
        assert main() == 0
        captured = self._capsys.readouterr()
        assert captured.err == ""
        return captured.out.splitlines()

    def offers(self, line: str) -> list[str]:
        """Bash: ``plain,--out``; what the shell is to complete itself has another kind."""
        return [found.removeprefix("plain,") for found in self.lines(line, "bash")]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


def test_every_command_is_offered(shell: Shell) -> None:
    assert shell.offers("repvgg-ref ") == list(COMMANDS)
    assert shell.offers("repvgg-ref veri") == ["verify", "verify-op"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_offered(name: str, shell: Shell) -> None:
    command = cli.commands.get(name) or cli.get_command(cli.make_context("x", ["doctor"]), name)
    assert command is not None
    offered = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    options = {flag for p in offered for flag in p.opts}
    if name == "train":
        options |= {flag for p in _recipe_options() for flag in p.opts}
    assert options | {"--help"} <= set(shell.offers(f"repvgg-ref {name} --"))


def test_choices_and_names_are_offered(shell: Shell) -> None:
    assert shell.offers("repvgg-ref convert --to s") == ["safetensors"]
    assert shell.offers("repvgg-ref verify-op li") == ["linear", "linear-backward"]
    assert set(NAMES) <= set(shell.offers("repvgg-ref bench --model "))
    assert shell.offers("repvgg-ref predict --model repvgg-d") == ["RepVGG-D2se"]
    assert shell.offers("repvgg-ref train --model repvgg-d") == ["RepVGG-D2se"]
    assert shell.offers("repvgg-ref train --recipe ") == list(recipe_names())
    assert shell.offers("repvgg-ref inspect --block ") == block_names()
    assert shell.offers("repvgg-ref convert --family yolo") == [
        name for name in FAMILY if name.startswith("yolo")
    ]


@pytest.mark.parametrize(
    "line",
    [
        "convert --checkpoint ",
        "convert --in ",
        "convert dig",
        "verify --candidate ",
        "golden --reference dig",
        "eval --data ",
        "train --recipe ./",
    ],
)
def test_files_are_left_to_the_shell(line: str, shell: Shell) -> None:
    (found,) = shell.lines(f"repvgg-ref {line}", "bash")
    assert found.startswith("file,")


def test_zsh_and_fish_get_what_their_scripts_read(shell: Shell) -> None:
    kind, value, says = shell.lines("repvgg-ref doc", "zsh")[:3]
    assert (kind, value) == ("plain", "doctor")
    assert "mend" in says
    found = "\n".join(shell.lines("repvgg-ref doc", "fish"))
    assert re.match(r"plain[,\n]doctor[\t\n]", found)


def test_a_line_that_cannot_be_understood_stays_as_it_is(shell: Shell) -> None:
    assert shell.offers("repvgg-ref bogus --") in ([], shell.offers("repvgg-ref --"))
    assert shell.offers("repvgg-ref convert --eps nonsense --size 0 --ou") == ["--out"]
    assert shell.offers("repvgg-ref convert - --ou") == ["--out"]  # and stdin is not read


def test_what_goes_wrong_while_completing_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(completion.VARIABLE, "bash_complete")
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert main() == 1
    monkeypatch.setenv(completion.VARIABLE, "nushell_complete")
    assert main() == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", completion.SHELLS)
def test_the_script_asks_by_our_variable(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys, "completion", name)
    assert (shown.code, shown.err) == (0, "")
    assert f"{completion.VARIABLE}={name}_complete" in shown.out
    assert "repvgg-ref" in shown.out
    help = invoke(capsys, "completion", "--help").out
    assert f"repvgg-ref completion {name}" in help


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'bash', 'zsh', 'fish'" in invoke(capsys, "completion", "nushell").error_line()


@pytest.fixture
def on_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``repvgg-ref`` is this tree's command."""
    program = tmp_path / "repvgg-ref"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m repvgg_ref_cli "$@"\n')
    program.chmod(0o755)
    return environment() | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("name", completion.SHELLS)
def test_a_real_shell_completes(name: str, on_path: dict[str, str]) -> None:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    lines = {
        "bash": 'eval "$(repvgg-ref completion bash)"; COMP_WORDS=(repvgg-ref comp); '
        'COMP_CWORD=1; _repvgg_ref_completion repvgg-ref; echo "${COMPREPLY[@]}"',
        "zsh": 'autoload -U compinit; compinit -u -D; eval "$(repvgg-ref completion zsh)"; '
        "_describe() { print -r -- ${${(P)3}%%:*} }; "
        "words=(repvgg-ref comp); CURRENT=2; _repvgg_ref_completion",
        "fish": "repvgg-ref completion fish | source; complete -C 'repvgg-ref comp'",
    }
    done = subprocess.run(
        [program, "-c", lines[name]], env=on_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "completion"


def test_an_answer_needs_click_only() -> None:
    program = (
        "import os, sys; os.environ['COMP_WORDS'] = 'repvgg-ref convert --'; "
        f"os.environ.update(COMP_CWORD='2', {completion.VARIABLE}='bash_complete'); "
        "sys.argv = ['repvgg-ref']; from repvgg_ref_cli.main import main; code = main(); "
        "heavy = {'numpy', 'rich', 'scipy', 'PIL', 'repvgg_ref', 'weights_io'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = run_python("-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert "plain,--checkpoint" in done.stdout
