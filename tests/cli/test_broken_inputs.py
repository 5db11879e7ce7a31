"""Files that are no good: one line each, exit code 2, under a second, nothing left behind."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.network import Model
from tests.cli.runner import invoke, small_model


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch owned",)


def _changed(edit: Callable[[Model], object]) -> Callable[[Path], None]:
    """A checkpoint whose arrays have been tampered with."""

    def write(path: Path) -> None:
        model = small_model()
        edit(model)
        save(model, path.with_suffix(".npz"))
        path.with_suffix(".npz").rename(path)

    return write


def _state(edit: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """An npz of a training checkpoint, with names taken away or added."""

    def write(path: Path) -> None:
        state: dict[str, object] = dict(small_model().state_dict())
        edit(state)
        with path.open("wb") as file:
            np.savez(file, **state)  # type: ignore[arg-type]

    return write


def _bytes(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def _tar() -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return memory.getvalue()


def _zip_of_text() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        file.writestr("readme.txt", "hello")
    return memory.getvalue()


def _cut(path: Path) -> None:
    save(small_model(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def _set(name: str, value: float) -> Callable[[Model], object]:
    return lambda model: model.params[name].__setitem__(0, value)


def _mixed(state: dict[str, object]) -> None:
    state["stage0.rbr_reparam.weight"] = np.zeros((4, 3, 3, 3), np.float32)


def _fused_with_branches_asked(path: Path) -> None:
    save(rr.fuse(small_model()), path.with_suffix(".npz"))
    path.with_suffix(".npz").rename(path)


MEAN, VAR = "stage1.1.branch_identity.bn.running_mean", "stage1.0.branch_3x3.bn.running_var"

BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (_bytes(b""), "is empty"),
    "web page": (_bytes(b"<!DOCTYPE html><html>404</html>"), "web page"),
    "gzip": (_bytes(gzip.compress(b"weights")), "gzip"),
    "tar": (_bytes(_tar()), "tar archive"),
    "zip of text": (_bytes(_zip_of_text()), "holds no weights"),
    "nonsense": (_bytes(bytes(range(1, 200))), "not a weights file"),
    "cut off": (_cut, ""),
    "runs code": (_bytes(pickle.dumps(_RunsCode(), protocol=2)), "system"),
    "no arrays": (_bytes(pickle.dumps({"epoch": 3}, protocol=2)), "no arrays"),
    "not a mapping": (_bytes(pickle.dumps([1, 2], protocol=2)), "no mapping of named arrays"),
    "NaN in a kernel": (_changed(_set("stage0.branch_1x1.conv.weight", np.nan)), "NaN"),
    "infinity in the head": (_changed(_set("linear.bias", np.inf)), "NaN or infinity"),
    "NaN in a mean": (_changed(_set(MEAN, np.nan)), "NaN"),
    "negative variance": (_changed(_set(VAR, -1.0)), "running_var is negative"),
    "missing array": (_state(lambda s: s.pop("stage1.1.rbr_identity.weight")), "1 missing"),
    "missing block": (
        _state(lambda s: [s.pop(n) for n in list(s) if n.startswith("stage1.0.")]),
        "blocks are missing",
    ),
    "missing head": (_state(lambda s: s.pop("linear.weight")), "linear.weight is missing"),
    "unexpected array": (
        _state(lambda s: s.update({"evil\x1b[2J": np.zeros(3)})),
        "evil\\x1b[2J",
    ),
    "wrong shape": (
        _state(lambda s: s.update({"stage1.0.rbr_1x1.bn.bias": np.zeros(5, np.float32)})),
        "wrong shape",
    ),
    "integers": (
        _state(lambda s: s.update({"linear.bias": np.zeros(3, np.int64)})),
        "does not hold real numbers",
    ),
    "train and deploy mixed": (_state(_mixed), "mixes fused kernels with training branches"),
    "a detector that lacks an array of every block": (
        _state(
            lambda s: [
                s.update({n.replace("stage", "model."): s.pop(n)})
                if "rbr_dense.bn.running_var" not in n
                else s.pop(n)
                for n in list(s)
            ]
        ),
        "nearest: model.0: yolov6 without rbr_dense.bn.running_var",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["people", "json"])
def test_convert_refuses_in_one_line_and_leaves_nothing(
    kind: str,
    flag: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "in.pth"
    write, words = BROKEN[kind]
    write(source)
    started = time.process_time()
    line = invoke(capsys, "convert", "--in", source, "--out", "out.npz", *flag).error_line()
    assert time.process_time() - started < 6  # measured: 0.2; shared machines are slower
    assert words in line
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("kind", BROKEN)
def test_inspect_explains_or_refuses_but_never_fails(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "in.pth"
    BROKEN[kind][0](source)
    shown = invoke(capsys, "inspect", source, "--json")
    if shown.code == 2:
        shown.error_line()
    else:
        levels = [finding["level"] for finding in shown.json()["findings"]]
        assert "error" in levels
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("what", ["folder", "missing file"])
def test_a_path_that_is_no_file(
    what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path if what == "folder" else tmp_path / "none.pth"
    for command in (["convert", "--in"], ["inspect"], ["predict", "x.png", "--weights"]):
        invoke(capsys, *command, path).error_line()


def test_a_fused_file_cannot_be_trained(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    _fused_with_branches_asked(path)
    x = np.zeros((2, 3, 32, 32), np.float32)
    with pytest.raises(rr.ReportedError, match=r"three branches.*deploy form.*train form"):
        rr.load(path).loss_and_grads(x, np.array([0, 1]))
