"""Files that appear whole or not at all, and leave nothing else behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weights_io.errors import WeightsFileError
from weights_io.regular import open_regular
from weights_io.text import sanitize

try:
    import fcntl
except ImportError:  # not POSIX: what a killed process leaves has to be removed by hand
    fcntl = None  # type: ignore[assignment]

_LONGEST_SUFFIX = 16
_TEMPORARY = re.compile(r"\.repvgg-ref-[0-9a-f]{12}(\.[^.]{0,15})?")
_swept: set[tuple[int, Path]] = set()


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    On any exception, an interrupt included, the temporary file is removed and an old `path` stays
    as it was; a killed process leaves the old file or none under the final name, and its temporary
    file goes when the next file is written to that folder. The temporary path keeps the suffix, by
    which some libraries choose a format. A file that is replaced hands on its mode, and its owner
    where the system allows it.

    Parameters
    ----------
    sync : bool
        Whether file and folder are down on the disk when this ends, so that no power cut undoes it.

    Raises
    ------
    WeightsFileError
        When the folder cannot be written, or `path` is something other than a file.
    """
    if "\0" in os.fspath(path):
        raise _unwritable(path, "a NUL in the name")
    with reported(path):
        # Through a symbolic link the file it points to is replaced, not the link.
        final = Path(os.path.realpath(path))
        if final.exists() and not final.is_file():
            raise _unwritable(path, "no regular file")
        _sweep_once(final.parent)
        temporary, held = _created(final)  # fails now, before any work, if it has to
    try:
        yield temporary
        with reported(path):
            _hand_on(final, temporary)
            if sync:
                _flush(temporary)
            temporary.replace(final)
    except BaseException as error:
        _abandon(temporary, held)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise _failed(path, error) from None  # `write` and `close` do not say of which file
        raise
    with reported(path):
        os.close(held)
        if sync:
            _flush(final.parent)


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that were killed; those of live ones are locked."""
    if fcntl is None:
        return
    for path in [each for each in folder.iterdir() if _TEMPORARY.fullmatch(each.name)]:
        with contextlib.suppress(OSError), open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's errors about `path` into a `WeightsFileError`."""
    try:
        yield
    except OSError as error:
        raise _failed(path, error) from None


def _sweep_once(folder: Path) -> None:
    """At the first file that this process writes to a folder."""
    if (os.getpid(), folder) not in _swept:
        _swept.add((os.getpid(), folder))
        with contextlib.suppress(OSError):
            sweep(folder)


def _created(final: Path) -> tuple[Path, int]:
    """A new file beside `final`, and a descriptor that holds it locked."""
    suffix = final.suffix if len(os.fsencode(final.suffix)) <= _LONGEST_SUFFIX else ""
    while True:
        temporary = final.with_name(f".repvgg-ref-{secrets.token_hex(6)}{suffix}")
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(held).st_nlink:
                return temporary, held
        except BaseException:
            _abandon(temporary, held)
            raise
        os.close(held)  # somebody swept it before it was locked


def _hand_on(final: Path, temporary: Path) -> None:
    """The mode and the owner of the file that is replaced."""
    with contextlib.suppress(FileNotFoundError):
        before = final.stat()
        with contextlib.suppress(OSError, AttributeError):  # not ours to give away; not POSIX
            os.chown(temporary, before.st_uid, before.st_gid)
        temporary.chmod(before.st_mode & 0o7777)


def _flush(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # a folder cannot be opened on Windows
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _abandon(temporary: Path, held: int) -> None:
    with contextlib.suppress(OSError):  # what was going wrong is told instead
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.close(held)


def _failed(path: str | os.PathLike[str], error: OSError) -> WeightsFileError:
    """What the system said; of a full disk also how much room is left, and where."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return _unwritable(path, error.strerror or error)
    folder = Path(os.path.realpath(path)).parent
    left = ""
    with contextlib.suppress(OSError):
        left = f"; {shutil.disk_usage(folder).free / 1e6:.1f} MB left in {sanitize(folder)}"
    return WeightsFileError(
        f"{sanitize(path)}: cannot be written",
        got=f"{error.strerror}{left}",
        advice="make room, or write it elsewhere",
    )


def _unwritable(path: str | os.PathLike[str], got: object) -> WeightsFileError:
    return WeightsFileError(f"{sanitize(path)}: cannot be written", got=got)
