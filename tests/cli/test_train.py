"""`repvgg-ref train` as a user meets it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from repvgg_ref_cli.stop_signals import StopSignals

from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.network import build
from repvgg_ref.train.log import read_log
from tests.cli.runner import ROOT, environment, invoke, run_python
from tests.models.small import SMALL

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ("--epochs", 1, "--batch", 240)


def test_it_trains_the_bundled_digits_and_a_second_run_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = invoke(capsys, "train", "--out", out, *SHORT)
    assert done.code == 0, done.err
    assert "train  digits by digits: 1437 images" in done.out
    assert "epoch    1  loss" in done.out
    assert "proof  trained and fused form agree on 360 images" in done.out
    assert f"wrote  {out / 'deploy.npz'}" in done.out
    assert "forward and backward" in done.err
    assert "--resume" in invoke(capsys, "train", "--out", out, *SHORT).error_line()


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = invoke(capsys, "train", "--dry-run", "--out", out, "--epochs", 3)
    assert done.code == 0
    for words in ("66, 22 an epoch", "83,226 parameters", "MiB a rank", "s a step", "0 at step 0"):
        assert words in done.out
    assert "nothing was written" in done.out
    assert not out.exists()
    plan = invoke(capsys, "train", "--dry-run", "--json", "--out", out).json()
    assert plan["steps"] == 880
    assert plan["step_seconds"] > 0


def test_the_module_is_the_command() -> None:
    helps = [
        run_python("-m", name, *rest, "--help")
        for name, *rest in (
            ("repvgg_ref.train",),
            ("repvgg_ref_cli", "train"),
        )
    ]
    assert helps[0].returncode == helps[1].returncode == 0
    assert helps[0].stdout == helps[1].stdout
    assert "--label-smoothing" in helps[0].stdout
    assert "--nesterov / --no-nesterov" in helps[0].stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lr", "-1"), "lr"),
        (("--lr", "nan"), "lr"),
        (("--lr", "much"), "--lr"),
        (("--recipe", "paper-121"), "paper-120"),
        (("--schedule", "sine"), "cosine"),
        (("--model", "RepVGG-Z9"), "RepVGG-A0"),
        (("--batch", "100000"), "batch"),
        (("--batch", "0"), "batch"),
        (("--accumulate", "7"), "accumulate"),
        (("--data", "/nonexistent"), "nonexistent"),
        (("--init", "/nonexistent.pth"), "nonexistent.pth"),
        (("--out", "/proc/nowhere"), "/proc/nowhere"),
        (("--leraning-rate", "1"), "--leraning-rate"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    options: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = invoke(capsys, "train", *options).error_line()
    assert said.lower() in line.lower()
    assert not list(tmp_path.glob("runs/*/state*"))


def test_a_fused_file_cannot_be_trained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fused = tmp_path / "fused.npz"
    source = ROOT / "repvgg_ref" / "data" / "digits-train.pth"
    assert invoke(capsys, "convert", "--in", source, "--out", fused).code == 0
    line = invoke(capsys, "train", "--init", fused, "--out", tmp_path / "out").error_line()
    assert "three branches" in line


def test_the_readmes_fine_tuning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line, on a small network in place of A0: a thousand classes become three."""
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"^repvgg-ref (train --init .*)$", README, re.MULTILINE)
    small = replace(SMALL["grouped"], num_classes=1000)
    save(build(small, seed=3), Path("RepVGG-A0-train.pth"))
    for place in ("train/rose", "train/tulip", "train/daisy", "val/rose", "val/tulip", "val/daisy"):
        Path("flowers", place).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 40), (90 * number, 30, 200)).save(f"flowers/{place}/{number}.png")
    short = ("--epochs", 1, "--batch", 3, "--size", 32)
    planned = invoke(capsys, *shlex.split(line), *short, "--dry-run")
    assert "head's classes: 3 new" in planned.out, planned.err
    done = invoke(capsys, *shlex.split(line), *short)
    assert done.code == 0, done.err
    assert "train  custom by fine-tune: 6 images, 3 classes" in done.out
    assert "init   RepVGG-A0-train.pth: " in done.out
    assert "3 new (daisy, rose, tulip), 1000 left; the file does not name" in done.out
    init = json.loads(Path("runs/flowers/result.json").read_text())["init"]
    assert init["classes_new"] == ["daisy", "rose", "tulip"]
    assert Path("runs/flowers/deploy.npz").exists()


def test_divergence_is_told_with_its_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = invoke(
        capsys, "train", "--out", tmp_path / "out", *SHORT, "--lr", 1e30, "--warm-up-epochs", 0
    )
    assert done.code == 2
    assert "diverged in step" in done.err
    assert "output of stage" in done.err


def test_a_file_of_ones_own_recipe_and_options_over_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('model = "digits"\nsize = 32\nepochs = 9\nbatch = 240\nflip = false\n')
    plan = invoke(capsys, "train", "--dry-run", "--json", "--recipe", recipe, "--epochs", 2).json()
    assert (plan["recipe"], plan["steps"]) == ("mine", 10)


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_training_can_be_resumed(
    number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--out", out, "--epochs", 1, "--batch", 120)
    process = subprocess.Popen(
        [sys.executable, "-m", "repvgg_ref.train", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not read_log(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume continues" in printed
    resumed = run_python("-m", "repvgg_ref.train", "--out", out, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["steps"] == 11
    assert "as before: --epochs 1 --batch 120" in resumed.stderr
    assert "resumed at step" in resumed.stderr


@pytest.mark.slow
def test_a_training_that_goes_on_keeps_every_option_of_every_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Values of every type, recipes of one's own, and what a later start has changed."""
    recipe, out = tmp_path / "mine.toml", tmp_path / "out"
    recipe.write_text('model = "digits"\nsize = 32\nepochs = 1\nbatch = 240\nflip = false\n')
    begun = ("--recipe", recipe, "--seed", 3, "--nesterov", "--step-epochs", 1, "--sync-bn")
    assert invoke(capsys, "train", "--out", out, *begun).code == 0
    first = json.loads((out / "options.json").read_text())
    assert first == {
        "recipe_name": str(recipe),
        "seed": 3,
        "sync_bn": True,
        "nesterov": True,
        "step_epochs": [1.0],
    }
    again = invoke(capsys, "train", "--out", out, "--resume")
    assert again.code == 0, again.err
    longer = ("--epochs", 2, "--resume")
    assert "--accept-changes" in invoke(capsys, "train", "--out", out, *longer).error_line()
    assert json.loads((out / "options.json").read_text()) == first
    done = invoke(capsys, "train", "--out", out, *longer, "--accept-changes", "--json")
    assert done.json()["steps"] == 10, done.err
    assert json.loads((out / "options.json").read_text()) == first | {"epochs": 2}
    assert invoke(capsys, "train", "--out", out, "--resume", "--json").json()["steps"] == 10


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"nowhere": 1}', '{"out": "x"}', '{"seed": "many"}', "[" * 9999]
)
def test_options_that_were_damaged_are_an_error_of_one_line(
    content: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "options.json").write_text(content)
    line = invoke(capsys, "train", "--out", tmp_path, "--resume").error_line()
    assert "options.json" in line or "'--seed'" in line
    assert "recursion" not in line


def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert not signals.asked()
        for _ in range(2):  # a terminal and mpiexec both send it
            signal.raise_signal(signal.SIGTERM)
        assert signals.asked()
        monkeypatch.setattr("repvgg_ref_cli.stop_signals._SAME", 0.0)
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_the_bar_stays_on_stderr_and_one_json_object_reaches_the_pipe(tmp_path: Path) -> None:
    """stderr is a terminal, stdout a pipe: what rich would divert must arrive."""
    pty = pytest.importorskip("pty", reason="needs a terminal")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "repvgg_ref.train", "--json", "--out", str(tmp_path / "out")]
        + [str(option) for option in SHORT],
        env=environment() | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = bytearray()
    with contextlib.suppress(OSError):  # what a terminal says at its end
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert b"images/s" in shown
    assert printed.count("\n") == 1
    found = json.loads(printed)
    assert (found["model"], found["recipe"], found["steps"]) == ("digits", "digits", 5)
    assert found["trained"]["top1"] == found["fused"]["top1"]
    assert found["difference"] <= found["tolerance"]
    assert all(Path(path).exists() for path in found["files"])
