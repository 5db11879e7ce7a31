"""Starting, leaving, and one line for whatever goes wrong."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from repvgg_ref_cli import options
from repvgg_ref_cli.failures import printable
from repvgg_ref_cli.main import COMMANDS

from repvgg_ref import backends
from repvgg_ref.blocks.selfcheck import SelfCheckError
from repvgg_ref.cpu.convolution.algorithms import ALGORITHMS
from repvgg_ref.data.digits import MODEL_PATH
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files import convert
from tests.cli.runner import environment, invoke, run_python, save_small


def test_help_imports_neither_numpy_nor_rich() -> None:
    program = (
        "import sys; from repvgg_ref_cli.main import main; code = main(['--help']); "
        "heavy = {'numpy', 'rich', 'scipy', 'PIL', 'repvgg_ref', 'weights_io'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = run_python("-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_help_answers_at_once() -> None:
    """Counted in processor time, which is the wall's time on a machine that does nothing else."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python("-m", "repvgg_ref_cli", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    best = min(seconds() for _ in range(3))
    assert best < 0.25, f"--help took {best:.3f} s"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_help_and_a_summary(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = invoke(capsys, name, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert "--debug" in shown.out


@pytest.mark.parametrize("name", ["demo", "bench"])
@pytest.mark.parametrize("variable", ["REPVGG_MEMORY", "REPVGG_NUM_THREADS", "REPVGG_WORKERS"])
def test_what_a_variable_cannot_mean_is_told_at_once(
    variable: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "two")
    assert f"{variable} " in invoke(capsys, name).error_line()


def test_nothing_asked_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys)
    assert shown.code == 0
    assert shown.out.startswith("Usage: repvgg-ref")


def test_version_needs_no_numpy() -> None:
    program = (
        "import sys; from repvgg_ref_cli.main import main; "
        "main(['--version']); sys.exit('numpy' in sys.modules)"
    )
    done = run_python("-c", program)
    if "PackageNotFoundError" in done.stderr:
        pytest.skip("the package is not installed, so it has no version to show")
    assert (done.returncode, done.stdout) == (0, "repvgg-ref 0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["--bogus"],
        ["convert"],
        ["convert", "--in"],
        ["convert", "--in", "x", "--to", "tar"],
        ["convert", "--in", "x", "--eps", "nan"],
        ["convert", "--in", "x", "--eps", "-1"],
        ["convert", "--in", "x", "--size", "0"],
        ["convert", "--in", "x", "--size", "3x"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["predict", "--weights", "x"],
        ["predict", "picture.png"],
        ["predict", "--weights", "x", "--top", "0", "picture.png"],
        ["predict", "--weights", "x", "--backend", "tpu", "picture.png"],
        ["table", "--bogus\x1b[2J\nerror: forged"],
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help`)" in invoke(capsys, *arguments).error_line()


def test_control_characters_of_names_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = invoke(capsys, "inspect", tmp_path / "a\x1b[31m\nerror: b\u202e.pth").error_line()
    assert "\\x1b[31m" in line
    assert printable("a\rb\tc") == "a b\\tc"


def test_lists_kept_here_for_speed_are_those_of_the_library() -> None:
    assert options.BACKENDS == backends.BACKENDS
    assert ("auto", "measure", *ALGORITHMS) == options.ALGORITHMS
    assert options.FORMATS == convert.FORMATS


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--debug", "inspect"] if place == "before" else ["inspect", "--debug"]
    shown = invoke(capsys, *arguments, "does-not-exist.pth")
    assert shown.code == 2
    assert shown.err.startswith("Traceback (most recent call last):\n")
    assert shown.err.splitlines()[-1].startswith("error: does-not-exist.pth: cannot be opened")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SelfCheckError("stage1.0: off", got=2, wanted=1), 1, "stage1.0: off (got 2 ; wanted 1)"),
        (CheckpointError("no such", advice="do this"), 2, "no such (do this)"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written is left"),
        (PermissionError(13, "Permission denied", "x.npz"), 2, "x.npz: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (MemoryError(), 2, "not enough memory"),
        (ZeroDivisionError("a\nb"), 2, "unexpected ZeroDivisionError: a b (this is a bug"),
    ],
)
def test_every_kind_of_error_has_its_code_and_one_line(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("repvgg_ref.files.inspect.inspect_file", fails)
    shown = invoke(capsys, "inspect", "x")
    assert (shown.code, shown.out) == (code, "")
    assert shown.err.startswith(f"error: {line}")
    assert shown.err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "repvgg_ref_cli", "table", "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [["table", "--json"], ["table"], ["convert", str(MODEL_PATH), "--out", "-"]],
)
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "repvgg_ref_cli", *arguments],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: standard output: No space left on device"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX closes it")
@pytest.mark.parametrize(
    "command", ["convert {} --out -", "convert - <{}", "advise --in {} --report -"]
)
def test_bytes_for_a_closed_stdout_are_one_error(command: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m repvgg_ref_cli {command.format(MODEL_PATH)} >&-",
        shell=True,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "writes bytes to stdout, which is closed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_names_that_the_terminal_cannot_show_do_not_stop_it(tmp_path: Path) -> None:
    path = save_small(tmp_path / "größe-\u4e2d.npz")
    done = subprocess.run(
        [sys.executable, "-m", "repvgg_ref_cli", "inspect", str(path)],
        env=environment() | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "größe-\\u4e2d.npz".encode("latin-1") in done.stdout
