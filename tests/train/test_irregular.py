"""What is no file and stands where a training writes: gone, stepped over, or told at the start."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repvgg_ref.train.log import Log, read_log
from repvgg_ref.train.result import NAME as RESULT
from repvgg_ref.train.state import StateError, steps_in
from tests.train.small_training import changed, run, small_job

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs")
OUTPUTS = ["log.jsonl", RESULT, "train.pth", "deploy.npz", "deploy.pth", "curves.svg"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that has saved twice."""
    out = tmp_path_factory.mktemp("done") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)  # slower than all the rest
        run(small_job(out, recipe=changed(epochs=1), save_every=3))
    return out


@pytest.fixture
def out(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    return shutil.copytree(done, tmp_path / "out")


def resumed(out: Path) -> None:
    run(small_job(out, recipe=changed(epochs=1), save_every=3, resume=True))


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/null")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _taken(path: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("put", [_fifo, _device, _loop])
def test_the_newest_state_is_made_again_where_a_file_of_it_is_none(
    suffix: str, put: Callable[[Path], None], out: Path
) -> None:
    newest = steps_in(out)[0]
    wanted = (out / "train.pth").read_bytes()
    path = out / f"state-{newest:09}.{suffix}"
    _taken(path)
    put(path)
    resumed(out)
    assert path.is_file()
    assert not path.is_symlink()
    assert steps_in(out)[0] == newest
    assert (out / "train.pth").read_bytes() == wanted


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["state-000000005.json", "state-000000005.safetensors", *OUTPUTS])
def test_a_folder_in_the_way_is_told_before_a_step_is_made(name: str, out: Path) -> None:
    before = {path.name for path in out.iterdir()} | {name}
    _taken(out / name)
    (out / name).mkdir()
    with pytest.raises(StateError, match=f"{name} is in the way.*a folder.*move it away"):
        resumed(out)
    assert {path.name for path in out.iterdir()} == before
    (out / name).rmdir()
    resumed(out)
    assert steps_in(out)[0] == 5


@pytest.mark.few(2)
@pytest.mark.parametrize("name", OUTPUTS[:-1])
def test_a_fifo_in_the_place_of_an_output_goes(name: str, out: Path) -> None:
    _taken(out / name)
    _fifo(out / name)
    resumed(out)
    assert (out / name).is_file()


@pytest.mark.parametrize("name", OUTPUTS[1:])
def test_an_output_that_is_a_link_to_no_file_is_told(name: str, out: Path) -> None:
    _taken(out / name)
    _device(out / name)
    with pytest.raises(StateError, match="a link to what is no file"):
        resumed(out)


@pytest.mark.parametrize("target", ["precious", "/dev/zero", "log.jsonl", "nothing"])
def test_the_log_follows_no_link(target: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "log.jsonl").symlink_to(target)
    Log(tmp_path, after=0).close()
    assert read_log(tmp_path) == []
    assert not (tmp_path / "log.jsonl").is_symlink()
    assert (precious.read_text(), (tmp_path / "nothing").exists()) == ("mine", False)
