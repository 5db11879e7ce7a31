"""`repvgg-ref convert`: the contract's JSON, every format, and nothing half-written, ever."""

from __future__ import annotations

import json
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.blocks.fusion import FusedConv, fuse_block
from repvgg_ref.errors import NotFusibleError
from tests.cli.runner import invoke, run_python, save_small, small_model
from tests.models.small import SMALL, batch

KEYS = [
    *("model", "dialect", "container", "form", "tensors", "out", "format", "self_check"),
    *("assumed", "dtype", "opset"),
]


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
@pytest.mark.parametrize("network", ["plain", "grouped", "se-before-relu"])
def test_json_is_the_contracts_and_the_file_computes_the_same(
    suffix: str, network: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.pth", network), tmp_path / f"b.{suffix}"
    shown = invoke(capsys, "convert", "--in", source, "--out", out, "--json")
    assert (shown.code, shown.err) == (0, "")
    found = shown.json()
    assert list(found) == KEYS
    check = found.pop("self_check")
    assert list(check) == ["max_error", "bound", "ok"]
    assert check["ok"] is True
    assert 0 <= check["max_error"] <= check["bound"] < 1e-4
    deploy = rr.load(out)
    assert found == {
        "model": "custom",
        "dialect": "official",
        "container": "torch-zip",
        "form": "train",
        "tensors": len(deploy.params),
        "out": str(out),
        "format": suffix,
        "assumed": {"eps": None, "strides": {}, "dilations": {}},
        "dtype": "float32",
        "opset": None,
    }
    x, _ = batch(SMALL[network])
    want = rr.load(source, dtype=np.float64).forward(x)
    error = np.abs(deploy.forward(x) - want).max() / np.abs(want).max()
    assert not (error > 1e-5), error


def test_people_are_told_what_was_read_written_checked_and_what_is_next(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "net.safetensors"
    weights_io.save_weights(source, small_model().state_dict(), container="safetensors")
    shown = invoke(capsys, "convert", "--in", source)
    assert (shown.code, shown.err) == (0, "")
    assert [line[:7] for line in shown.out.splitlines()] == [
        "read   ",
        "wrote  ",
        "check  ",
        "       ",
        "next   ",
    ]
    assert "net.safetensors: custom, train form, official names, safetensors" in shown.out
    assert (
        "       assumed, where nobody has said otherwise, eps 1e-05; stride 2 in stage0, stage1.0"
        in shown.out
    )
    assert (tmp_path / "net-deploy.npz").exists()


def test_onnx_with_fixed_extents(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "a.onnx"
    options = ["--batch", "2", "--size", "48x64"]
    shown = invoke(capsys, "convert", "--in", source, "--out", out, *options)
    assert shown.code == 0, shown.err
    (entry,) = onnx.load(out).graph.input
    assert [d.dim_value for d in entry.type.tensor_type.shape.dim] == [2, 3, 48, 64]


@pytest.mark.parametrize("options", [["--batch", "2"], ["--size", "32"]])
def test_fixed_extents_are_for_onnx_only(
    options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = save_small(tmp_path / "a.pth")
    line = invoke(capsys, "convert", "--in", source, *options).error_line()
    assert "format onnx" in line
    assert list(tmp_path.iterdir()) == [source]


def test_a_fused_file_is_rewritten_and_said_to_be_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fused = tmp_path / "fused.npz"
    rr.save(rr.fuse(small_model()), fused)
    out = tmp_path / "again.pth"
    shown = invoke(capsys, "convert", "--in", fused, "--out", out)
    assert shown.code == 0
    assert "it was fused already: rewritten as it is" in shown.out
    before, after = rr.load(fused), rr.load(out)
    assert all((after.params[name] == array).all() for name, array in before.params.items())
    found = invoke(capsys, "convert", "--in", fused, "--out", out, "--json").json()
    assert list(found) == KEYS
    assert (found["form"], found["self_check"]) == ("deploy", None)
    with pytest.raises(NotFusibleError, match="needs the three branches of a block"):
        rr.fuse(after)


def test_the_ema_set_is_offered_and_taken_when_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = tmp_path / "both.pkl", tmp_path / "out.npz"
    plain = small_model().state_dict()
    average = {name: np.asarray(array + 1) for name, array in plain.items()}
    source.write_bytes(pickle.dumps({"model": plain, "ema": average, "epoch": 3}, protocol=2))
    shown = invoke(capsys, "convert", "--in", source, "--out", out, "--json")
    assert "--weights ema" in shown.err
    shown = invoke(capsys, "convert", "--in", source, "--out", out, "--weights", "ema", "--json")
    assert shown.code == 0
    assert (rr.load(out).params["linear.bias"] == plain["linear.bias"] + 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "RepVGG-A0"], "the shapes are not those of RepVGG-A0"),
        (["--model", "RepVGG-Z9"], "no official model of that name"),
        (["--weights", "ema"], "there is no EMA entry"),
        (["--out", "x.bin"], "suffix"),
        (["--out", "no/such/folder/x.npz"], "folder does not exist"),
        (["--out", "/dev/full", "--to", "npz"], "no regular file"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = save_small(tmp_path / "a.pth")
    assert words in invoke(capsys, "convert", "--in", source, *options, "--json").error_line()
    assert list(tmp_path.iterdir()) == [source]


def test_the_input_is_never_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = save_small(tmp_path / "a.npz")
    before = source.read_bytes()
    line = invoke(capsys, "convert", "--in", source, "--out", source).error_line()
    assert "would overwrite the input" in line
    assert source.read_bytes() == before


def test_a_failed_self_check_is_exit_code_1_and_leaves_the_old_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "out.npz"
    out.write_bytes(b"old")

    def off_by_a_thousandth(*args: Any, **kwargs: Any) -> FusedConv:
        fused = fuse_block(*args, **kwargs)
        fused.weight[0, 0, 1, 1] *= 1.001
        return fused

    monkeypatch.setattr("repvgg_ref.files.convert.fuse_block", off_by_a_thousandth)
    shown = invoke(capsys, "convert", "--in", source, "--out", out)
    assert (shown.code, shown.out) == (1, "")
    assert shown.err.startswith("error: stage0: the fused convolution differs from its branches")
    assert shown.err.count("\n") == 1
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [source, out]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_killed_run_leaves_the_old_file(number: int, code: int, tmp_path: Path) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "out.npz"
    out.write_bytes(b"old")
    program = f"""
import os, sys, time
import weights_io.writers.write as writers
from repvgg_ref_cli.main import main
real = writers.encode_all
def killed_half_way(specs, arrays):
    for count, block in enumerate(real(specs, arrays)):
        if count == 3:
            os.kill(os.getpid(), {int(number)})
            time.sleep(5)
        yield block
writers.encode_all = killed_half_way
sys.exit(main(['convert', '--in', {str(source)!r}, '--out', {str(out)!r}]))
"""
    done = run_python("-c", program)
    assert (done.returncode, done.stdout) == (code, "")
    assert out.read_bytes() == b"old"
    if number != signal.SIGKILL:  # nobody can tidy up after that one
        assert sorted(tmp_path.iterdir()) == [source, out]


def test_metadata_says_where_the_file_came_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "out.npz"
    assert invoke(capsys, "convert", "--in", source, "--out", out, "--eps", "1e-3").code == 0
    with weights_io.open_weights(out) as archive:
        said = dict(archive.metadata)
    blocks = [spec.name for spec in SMALL["plain"].blocks]
    assert list(json.loads(said.pop("strides"))) == blocks
    assert json.loads(said.pop("dilations")) == dict.fromkeys(blocks, 1)
    assert said == {
        "writer": f"repvgg-ref {rr.__version__}",
        "model": "custom",
        "form": "deploy",
        "block": "repvgg",
        "eps": "0.001",
        "source": "a.pth",
    }


def test_a_pth_says_how_the_official_code_loads_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = save_small(tmp_path / "a.npz")
    shown = invoke(capsys, "convert", "--in", source, "--out", tmp_path / "b.pth")
    assert "deploy=True: model.load_state_dict(torch.load(" in shown.out.splitlines()[-1]
