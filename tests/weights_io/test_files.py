"""What a name may mean, and what a replaced or abandoned file leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weights_io
from weights_io.writers import atomic

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def _is_unnamed(folder: Path) -> bool:
    made = atomic._without_name(folder)
    if made:
        made[1].close()
    return made is not None


unnamed = pytest.mark.skipif(
    not _is_unnamed(Path(tempfile.gettempdir())), reason="needs files without a name (O_TMPFILE)"
)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


IRREGULAR: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "a folder"),
    "FIFO": (os.mkfifo, "a FIFO"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "endless link": (lambda path: path.symlink_to(path), "Too many levels"),
    "socket": (_socket, "No such device"),
}


@posix
@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_refused_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    make, said = IRREGULAR[kind]
    make(Path("file.pth"))
    with pytest.raises(OSError, match=said):
        weights_io.open_regular("file.pth")
    with pytest.raises(weights_io.WeightsFileError, match=said):
        weights_io.open_weights("file.pth").__enter__()


@posix
def test_what_is_written_to_is_not_reached_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="Too many levels"):
        weights_io.open_regular(tmp_path / "lock", create=True)
    assert victim.read_text() == "precious"


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_a_replaced_file_hands_on_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    path.touch()
    path.chmod(mode)
    with weights_io.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root gives away files")
def test_a_replaced_file_hands_on_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    path.touch()
    os.chown(path, 12345, 23456)
    with weights_io.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


NAMES = {
    "long": b"n" * 251 + b".npz",
    "long in bytes": "\N{SNOWMAN}".encode() * 83 + b".pth",
    "not UTF-8": b"caf\xe9.npz",
    "suffix alone": b"." + b"s" * 200,
}


@posix
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_that_the_system_allows(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    for text in ("old", "new"):
        with weights_io.atomic_path(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "new"
    assert [os.fsencode(each.name) for each in tmp_path.iterdir()] == [name]


WRITER = """
import sys, weights_io
if sys.argv[2] == "named":
    weights_io.writers.atomic._without_name = lambda folder: None
with weights_io.atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(flush=True)
    sys.stdin.read()
"""


def writer(folder: Path, kind: str) -> subprocess.Popen[bytes]:
    """A process that writes ``file.npz`` there, and goes on when its stdin ends."""
    started = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder / "file.npz"), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(weights_io.__file__).parents[1])},
    )
    assert started.stdout is not None
    started.stdout.readline()
    return started


@unnamed
@pytest.mark.parametrize("before", [None, "old"])
def test_a_killed_writer_leaves_nothing(before: str | None, tmp_path: Path) -> None:
    if before is not None:
        (tmp_path / "file.npz").write_text(before)
    names = sorted(tmp_path.iterdir())
    alive, killed = writer(tmp_path, "unnamed"), writer(tmp_path, "unnamed")
    assert sorted(tmp_path.iterdir()) == names
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert sorted(tmp_path.iterdir()) == names
    alive.communicate()
    assert [each.name for each in tmp_path.iterdir()] == ["file.npz"]
    assert (tmp_path / "file.npz").read_text() == "half"


@unnamed
@pytest.mark.parametrize("links", [0, 1])
@pytest.mark.parametrize("before", [None, 0o600])
def test_a_file_without_a_name_is_copied_where_it_can_be_given_none(
    before: int | None, links: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sandbox without links, or where the first fails."""
    path = tmp_path / "file.npz"
    if before is not None:
        path.write_text("old")
        path.chmod(before)
    link, calls = os.link, []

    def refused(*names: Any, **options: Any) -> None:
        calls.append(names)
        if links == 0 or len(calls) <= links:
            raise PermissionError(errno.EPERM, "no links here")
        link(*names, **options)

    monkeypatch.setattr(os, "link", refused)
    with weights_io.atomic_path(path, sync=True) as temporary:
        temporary.write_text("new")
        temporary.write_text("newer")
    assert calls
    assert path.read_text() == "newer"
    assert [each.name for each in tmp_path.iterdir()] == ["file.npz"]
    if before is not None:
        assert stat.S_IMODE(path.stat().st_mode) == before


UNKNOWN = ("EOPNOTSUPP", "ENOSYS", "EINVAL", "EISDIR", "ENOENT", "EACCES", "ELOOP", "ENFILE")
NO_LINKS = ("EXDEV", "ENOSYS", "EOPNOTSUPP", "ENOLINK", "EPERM", "EMLINK", "ENOENT", "EACCES")


def refusing(monkeypatch: pytest.MonkeyPatch, call: str, code: str, *, if_flags: int = 0) -> None:
    """Let a function of `os` fail; of `open` those with these flags alone."""
    real = getattr(os, call)

    def refused(*arguments: Any, **options: Any) -> Any:
        if if_flags and (arguments[1] & if_flags) != if_flags:
            return real(*arguments, **options)
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(os, call, refused)


@unnamed
@pytest.mark.parametrize("before", [None, 0o600])
@pytest.mark.parametrize(
    ("call", "code"), [*(("open", code) for code in UNKNOWN), *(("link", c) for c in NO_LINKS)]
)
def test_file_systems_without_unnamed_files_or_links(
    call: str, code: str, before: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS, FUSE, old overlays and kernels, sandboxes: each says it in a way of its own."""
    path = tmp_path / "file.npz"
    if before is not None:
        path.write_text("old")
        path.chmod(before)
    refusing(monkeypatch, call, code, if_flags=os.O_TMPFILE if call == "open" else 0)
    with weights_io.atomic_path(path, sync=True) as temporary:
        assert (temporary.parent == tmp_path) == (call == "open")
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert before is None or stat.S_IMODE(path.stat().st_mode) == before
    with pytest.raises(FileNotFoundError), weights_io.atomic_path(path) as temporary:
        Path(tmp_path, "nothing").stat()
    assert [each.read_text() for each in tmp_path.iterdir()] == ["new"]


@posix
@pytest.mark.parametrize("code", ["EINVAL", "ENOSYS", "EBADF"])
def test_a_folder_that_cannot_be_synced_is_no_failure(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(getattr(errno, code), "no")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    with weights_io.atomic_path(tmp_path / "file.npz", sync=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file.npz").read_text() == "new"


@posix
@pytest.mark.parametrize(("before", "is_kept"), [(0o666, True), (0o600, False)])
def test_a_disk_without_modes_takes_files_that_nobody_may_read_more_of(
    before: int, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only its owner could read is not replaced by what all can."""
    path = tmp_path / "file.npz"
    path.write_text("old")
    path.chmod(before)
    refusing(monkeypatch, "chmod", "EPERM")
    refused = (
        contextlib.nullcontext()
        if is_kept
        else pytest.raises(weights_io.WeightsFileError, match="Operation not permitted")
    )
    umask = os.umask(0o022)
    try:
        with refused, weights_io.atomic_path(path) as temporary:
            temporary.write_text("new")
    finally:
        os.umask(umask)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["new" if is_kept else "old"]


@unnamed
def test_a_hidden_name_goes_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, target: Path) -> None:
        assert path.read_text() == "new"
        raise KeyboardInterrupt

    (tmp_path / "file.npz").write_text("old")
    monkeypatch.setattr(Path, "replace", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        weights_io.atomic_path(tmp_path / "file.npz") as temporary,
    ):
        temporary.write_text("new")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


@posix
def test_what_a_killed_writer_leaves_is_swept_and_what_a_live_one_writes_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / ".repvgg-ref-0123456789abcd.npz").touch()  # one digit too many: not ours
    alive, killed = writer(tmp_path, "named"), writer(tmp_path, "named")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 3
    atomic.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    alive.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {
        "file.npz",
        ".repvgg-ref-0123456789abcd.npz",
    }


def test_the_next_writer_to_a_folder_sweeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []
    monkeypatch.setattr(atomic, "sweep", swept.append)
    for name in ("a", "b"):
        with weights_io.atomic_path(tmp_path / name):
            pass
    assert swept == [tmp_path.resolve()]


@posix
def test_a_full_disk_says_which_file_and_how_much_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file.npz").write_text("old")
    monkeypatch.setattr(Path, "replace", full)
    with (
        pytest.raises(weights_io.WeightsFileError, match=r"file\.npz.*No space left.*MB left in"),
        weights_io.atomic_path(tmp_path / "file.npz"),
    ):
        pass
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]
