"""``-``: files on stdin, results on stdout, and never two things on one stream."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from repvgg_ref_cli.main import main

import repvgg_ref as rr
from repvgg_ref.data.digits import MODEL_PATH, sample_paths
from repvgg_ref.files.checkpoint import save
from tests.cli.runner import environment, save_small, small_model


class Done(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes


Run = Callable[..., Done]


@pytest.fixture
def piped(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``piped(data, ...)`` runs the command with `data` on stdin."""

    def run(data: bytes, *arguments: object) -> Done:
        capsysbinary.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = main([str(argument) for argument in arguments])
        return Done(code, *capsysbinary.readouterr())

    return run


def test_a_process_is_a_filter_and_leaves_no_copy_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "repvgg_ref_cli", "convert", "-"],
        input=MODEL_PATH.read_bytes(),
        env=environment() | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout[:4]) == (0, b"PK\x03\x04"), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is a thing of POSIX")
def test_an_interrupt_while_stdin_is_read_is_one_line_and_leaves_no_copy(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "repvgg_ref_cli", "inspect", "-", "--json"],
        env=environment() | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        while process.poll() is None and not list(tmp_path.glob("*/stdin")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stdout is not None
        assert process.stderr is not None
        told = json.loads(process.stdout.read())["error"]
        assert (told["kind"], told["exit_code"]) == ("interrupted", 130)
        assert process.stderr.read().decode() == f"error: {told['message']}\n"
    assert list(tmp_path.iterdir()) == []


def test_convert_is_a_filter(piped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    done = piped(MODEL_PATH.read_bytes(), "convert", "-")
    assert done.returncode == 0, done.stderr
    assert list(copies.iterdir()) == []
    told = done.stderr.decode()
    assert told.startswith("read   stdin: custom, train form")
    assert "wrote  stdout: 18 arrays" in told
    out = tmp_path / "out"
    out.write_bytes(done.stdout)
    wanted = rr.fuse(rr.load(MODEL_PATH)).state_dict()
    with np.load(out) as found:
        for name, array in wanted.items():
            assert np.array_equal(found[name], array)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth"])
def test_a_file_goes_to_stdout_byte_by_byte(piped: Run, kind: str, tmp_path: Path) -> None:
    """The same bytes as in a file of that name: the container is binary, and holds no newline
    translations, no text and no note."""
    source = save_small(tmp_path / "in.npz")
    done = piped(b"", "convert", source, "--out", "-", "--to", kind)
    assert done.returncode == 0, done.stderr
    path = tmp_path / f"stdout.{kind}"
    path.write_bytes(done.stdout)
    assert rr.load(path).form == "deploy"
    again = tmp_path / f"again.{kind}"
    assert piped(b"", "convert", source, "--out", again).returncode == 0
    assert again.read_bytes() == done.stdout


def test_with_a_name_for_the_result_stdout_is_for_people_or_json(
    piped: Run, tmp_path: Path
) -> None:
    data = save_small(tmp_path / "in.npz").read_bytes()
    out = tmp_path / "out.npz"
    shown = piped(data, "convert", "--in", "-", "--out", out)
    assert shown.stdout.decode().startswith("read   stdin: ")
    told = piped(data, "convert", "-", "--out", out, "--json")
    assert json.loads(told.stdout)["out"] == str(out)
    assert rr.load(out).form == "deploy"


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "-", "--json"],
        ["convert", str(MODEL_PATH), "--out", "-", "--json"],
        ["verify", "--reference", str(MODEL_PATH), "--candidate", "-", "--report", "-", "--json"],
        ["verify", "--reference", str(MODEL_PATH), "--candidate", "-", "--junit", "-", "--json"],
    ],
)
def test_json_and_a_file_never_share_stdout(piped: Run, arguments: list[str]) -> None:
    done = piped(MODEL_PATH.read_bytes(), *arguments)
    assert done.returncode == 2
    assert b"and --json would both write to stdout" in done.stderr
    assert list(json.loads(done.stdout)) == ["error"]


def test_two_pages_never_share_stdout(piped: Run) -> None:
    pages = ["--report", "-", "--junit", "-"]
    done = piped(b"", "verify", "--reference", MODEL_PATH, "--candidate", MODEL_PATH, *pages)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--report - and --junit - would both write to stdout" in done.stderr


def test_inspect_reads_any_container_from_stdin(piped: Run, tmp_path: Path) -> None:
    for suffix, container in (("npz", "npz"), ("safetensors", "safetensors"), ("pth", "torch-zip")):
        data = save_small(tmp_path / f"a.{suffix}").read_bytes()
        done = piped(data, "inspect", "--checkpoint", "-", "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        assert json.loads(done.stdout)["container"] == container
    assert piped(data, "inspect", "-").stdout.startswith(b"stdin\n  container  torch-zip\n")


def test_predict_takes_a_picture_or_the_weights_from_stdin(piped: Run) -> None:
    (seven,) = [path for path in sample_paths() if "digit-7" in path.name]
    named = ["predict", "--checkpoint", MODEL_PATH, "--top", 1]
    done = piped(seven.read_bytes(), *named, "-")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == b"stdin"
    assert done.stdout.split()[-1] == b"7"
    weights = ["predict", "--checkpoint", "-", "--top", 1, "--json", seven]
    (found,) = json.loads(piped(MODEL_PATH.read_bytes(), *weights).stdout)["images"]
    assert found["top"][0]["class"] == "7"


def test_verify_takes_candidate_or_inputs_from_stdin(piped: Run, tmp_path: Path) -> None:
    model = small_model()
    reference, fused = tmp_path / "a.npz", tmp_path / "b.npz"
    save(model, reference)
    save(rr.fuse(model), fused)
    named = ["verify", "--reference", reference]
    done = piped(fused.read_bytes(), *named, "--candidate", "-", "--json")
    assert json.loads(done.stdout)["verdict"] == "agree"
    port = tmp_path / "port.py"
    port.write_text(
        f"import repvgg_ref as rr\nmodel = rr.load({str(fused)!r})\n"
        "def run(x):\n    assert x.shape == (3, 3, 40, 24), x.shape\n"
        "    return model.forward(x, layers=True)\n"
    )
    batch = tmp_path / "x.npy"
    rng = np.random.default_rng(0)
    np.save(batch, rng.standard_normal((3, model.arch.in_channels, 40, 24)).astype(np.float32))
    asked = ["--candidate", f"{port}:run", "--inputs", "-", "--json"]
    done = piped(batch.read_bytes(), *named, *asked)
    assert json.loads(done.stdout)["verdict"] == "agree", done.stderr


def test_golden_takes_a_checkpoint_or_a_network_of_integers_from_stdin(
    piped: Run, tmp_path: Path
) -> None:
    model, numbers = tmp_path / "a.npz", tmp_path / "i.npz"
    save(small_model(), model)
    batch = tmp_path / "x.npy"
    np.save(batch, np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))
    made = ["quantize", "--checkpoint", "-", "--calibrate", batch, "--out", numbers]
    assert piped(model.read_bytes(), *made).returncode == 0
    for source, out in ((model, tmp_path / "floats"), (numbers, tmp_path / "integers")):
        done = piped(source.read_bytes(), "golden", "--reference", "-", "--out", out, "--json")
        assert (done.returncode, done.stdout[:1]) == (0, b"{"), done.stderr
        assert (out / "manifest.json").is_file()
        assert b"repvgg-ref-stdin" not in b"".join(f.read_bytes() for f in out.glob("*.json"))


def test_a_page_on_stdout_is_all_that_stands_there(piped: Run, tmp_path: Path) -> None:
    named = ["verify", "--reference", MODEL_PATH, "--candidate", MODEL_PATH]
    done = piped(b"", *named, "--report", "-")
    assert done.stdout.lower().startswith(b"<!doctype html>")
    assert done.stdout.rstrip().endswith(b"</html>")
    assert b"AGREES" in done.stderr
    assert piped(b"", *named, "--junit", "-").stdout.startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "-"], "stdin: is empty"),
        (["golden", "--reference", "-", "--out", "nowhere"], "stdin: is empty"),
        (["golden", "--reference", "", "--out", "nowhere"], "the name is empty"),
        (["predict", "--checkpoint", "-", "-"], "stdin can be read only once"),
        (["predict", "--checkpoint", str(MODEL_PATH), "-", "-"], "stdin can be read only once"),
    ],
)
def test_what_stdin_cannot_give_is_one_line(piped: Run, arguments: list[str], says: str) -> None:
    done = piped(b"", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert says in done.stderr.decode()
    assert tempfile.gettempdir() not in done.stderr.decode()


def test_a_failure_writes_nothing_to_stdout(piped: Run) -> None:
    done = piped(b"no weights", "convert", "-", "--to", "npz")
    assert (done.returncode, done.stdout) == (2, b"")
