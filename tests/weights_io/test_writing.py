"""Writers stream, check what they are given, and leave a whole file or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weights_io
from weights_io.writers import atomic

CONTAINERS: list[weights_io.Container] = ["npz", "safetensors", "torch-zip", "torch-legacy"]
ONE = weights_io.ArraySpec("w", (2,), "float32")
GOOD = np.ones(2, np.float32)


def write(path: Path, *arrays: NDArray[Any], **options: Any) -> None:
    specs = options.pop("specs", [ONE])
    weights_io.write_weights(path, specs, iter(arrays), **{"container": "npz", **options})


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "weights.npz"
    path.write_bytes(b"old")
    return path


def assert_untouched(old: Path) -> None:
    assert old.read_bytes() == b"old"
    assert [path.name for path in old.parent.iterdir()] == [old.name]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_arrays_give_the_same_bytes(
    tmp_path: Path, container: weights_io.Container
) -> None:
    for name in ("a", "b"):
        weights_io.save_weights(tmp_path / name, {"w": GOOD, "n": np.array(1)}, container=container)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("container", CONTAINERS)
def test_memory_stays_near_one_array(tmp_path: Path, container: weights_io.Container) -> None:
    count, size = 24, 1 << 20
    specs = [weights_io.ArraySpec(f"w{i}", (size // 4,), "float32") for i in range(count)]
    arrays = (np.full(size // 4, i, np.float32) for i in range(count))
    tracemalloc.start()
    try:
        weights_io.write_weights(tmp_path / "w", specs, arrays, container=container)
        with weights_io.open_weights(tmp_path / "w") as archive:
            assert isinstance(archive.root, dict)
            for lazy in archive.root.values():
                lazy.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * size


@pytest.mark.parametrize("container", ["npz", "torch-zip"])
def test_array_data_in_a_zip_is_aligned(tmp_path: Path, container: weights_io.Container) -> None:
    arrays = {"a" * i: np.arange(i, dtype=np.float32) + 0.5 for i in range(1, 20)}
    weights_io.save_weights(tmp_path / "w", arrays, container=container)
    data = (tmp_path / "w").read_bytes()
    for array in list(arrays.values())[4:]:
        assert data.index(array.tobytes()) % 64 == 0
    with zipfile.ZipFile(tmp_path / "w") as archive:
        assert archive.testzip() is None
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_numpy_loads_the_npz(tmp_path: Path) -> None:
    arrays = {"w": GOOD, "n": np.array(3), "e": np.zeros((0, 2))}
    path = tmp_path / "w.npz"
    weights_io.save_weights(path, arrays, container="npz", metadata={"a": "ü"})
    with np.load(path, allow_pickle=False) as loaded:
        assert loaded["__metadata__"].item() == '{"a": "\\u00fc"}'
        for name, wanted in arrays.items():
            np.testing.assert_array_equal(loaded[name], wanted, strict=True)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ([], "too few arrays"),
        ([GOOD, GOOD], "too many arrays"),
        ([np.ones(3, np.float32)], "not the array that was announced"),
        ([np.ones(2)], "not the array that was announced"),
        ([np.ones(2, np.float32)[:, None]], "not the array that was announced"),
    ],
)
def test_arrays_other_than_announced_leave_the_old_file(
    old: Path, arrays: list[NDArray[Any]], match: str
) -> None:
    with pytest.raises(weights_io.WeightsFileError, match=match):
        write(old, *arrays)
    assert_untouched(old)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"specs": []}, "no array to write"),
        ({"specs": [ONE, ONE]}, "under this name"),
        ({"specs": [weights_io.ArraySpec("__metadata__", (2,), "float32")]}, "under this name"),
        ({"specs": [weights_io.ArraySpec("../w", (2,), "float32")]}, "cannot have this name"),
        ({"specs": [weights_io.ArraySpec("w", (2,), "complex64")]}, "dtype that is not written"),
        ({"specs": [weights_io.ArraySpec("w", (2,), "bfloat16")]}, "NumPy has no bfloat16"),
        ({"container": "pickle"}, "unknown container"),
        ({"container": "torch-legacy", "metadata": {"a": "b"}}, "no place for metadata"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(
    old: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(weights_io.WeightsFileError, match=match):
        write(old, GOOD, **options)
    assert_untouched(old)


def test_values_that_bfloat16_cannot_hold_are_refused(old: Path) -> None:
    spec = weights_io.ArraySpec("w", (2,), "bfloat16")
    with pytest.raises(weights_io.WeightsFileError, match="bfloat16 cannot hold"):
        write(old, GOOD / 3, specs=[spec], container="safetensors")
    assert_untouched(old)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupt_leaves_the_old_file(old: Path, error: type[BaseException]) -> None:
    def arrays() -> Iterator[NDArray[Any]]:
        yield GOOD
        raise error

    specs = [ONE, weights_io.ArraySpec("v", (2,), "float32")]
    with pytest.raises(error):
        weights_io.write_weights(old, specs, arrays(), container="npz")
    assert_untouched(old)


def test_a_check_sees_the_whole_file_before_it_is_committed(old: Path) -> None:
    def check(path: Path) -> None:
        assert old.read_bytes() == b"old"
        with weights_io.open_weights(path) as archive:
            assert isinstance(archive.root, dict)
            np.testing.assert_array_equal(archive.root["w"].read(), GOOD)

    write(old, GOOD, check=check)
    assert old.read_bytes() != b"old"


def test_a_check_that_raises_leaves_the_old_file(old: Path) -> None:
    def check(_: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write(old, GOOD, check=check)
    assert_untouched(old)


KILLED = """
import sys, numpy as np, weights_io
def arrays():
    yield np.ones(1 << 20, np.float32)
    print("writing", flush=True)
    sys.stdin.read()
specs = [weights_io.ArraySpec(name, (1 << 20,), "float32") for name in "ab"]
weights_io.write_weights(sys.argv[1], specs, arrays(), container=sys.argv[2])
"""


@pytest.mark.few
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("exists", [True, False])
def test_a_killed_run_leaves_the_old_file_or_none(
    tmp_path: Path, container: weights_io.Container, exists: bool
) -> None:
    path = tmp_path / "weights"
    if exists:
        path.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(path), container]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists() == exists
    assert not exists or path.read_bytes() == b"old"


def test_atomic_path_keeps_the_suffix_and_commits_on_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be without a name."""
    monkeypatch.setattr(atomic, "_without_name", lambda folder: None)
    final = tmp_path / "graph.onnx"
    with weights_io.atomic_path(final) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
        temporary.write_bytes(b"new")
        assert not final.exists()
    assert final.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]


def test_atomic_path_honours_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with weights_io.atomic_path(tmp_path / "a"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_to_the_new_file(tmp_path: Path, old: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(old)
    with weights_io.atomic_path(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("place", ["missing/w.npz", "file/w.npz", ".", "nul\0"])
def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(weights_io.WeightsFileError, match="cannot be written"):
        write(tmp_path / place, GOOD)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_reported() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(weights_io.WeightsFileError, match="no regular file"):
        write(Path("/dev/full"), GOOD)
