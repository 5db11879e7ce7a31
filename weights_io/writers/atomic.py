"""Files that appear whole or not at all, and leave nothing else behind."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from weights_io.errors import WeightsFileError
from weights_io.regular import open_regular
from weights_io.text import sanitize
from weights_io.writers.claim import POSIX, claim

_LONGEST_SUFFIX = 16
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EISDIR)
_HEX = "0123456789abcdef"
_CHUNK = 1 << 20  # bytes
_PREFIX, _DIGITS = ".repvgg-ref-", 12
_OPEN_FILES = Path("/proc/self/fd")
_swept: set[tuple[int, Path]] = set()


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file; it becomes `path` when the block succeeds.

    On any exception, an interrupt included, the temporary file is removed and an old `path` stays
    as it was; a killed process leaves the old file or none under the final name. On Linux the file
    has no name in the folder until it is finished: what is yielded is one of ``/proc``, without a
    suffix, that this process alone can open, and a killed process leaves nothing; but one that is
    killed between the two system calls that replace an old file, microseconds apart, leaves it
    under a hidden name. (No call does both: `linkat` replaces nothing, and `renameat2` takes names,
    of which a file without one has none.) Such a hidden file, and elsewhere the one that is being
    written, goes when a process next writes its first file to that folder. A file that is replaced
    hands on its mode, and its owner where the system allows it.

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
        # Fails now, before any work, if it has to.
        temporary, held = _without_name(final.parent) or _created(final)
    try:
        yield temporary
        with reported(path):
            _hand_on(final, temporary)
            if sync:
                _sync(temporary, held)
            if temporary.parent == _OPEN_FILES:
                _give_name(temporary, held, final)
            else:
                temporary.replace(final)
    except BaseException as error:
        _abandon(temporary, held)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise _failed(path, error) from None  # `write` and `close` do not say of which file
        raise
    with reported(path):
        held.close()
        if sync and POSIX:
            _sync_folder(final.parent)


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that were killed; those of live ones are locked.

    Where nothing can be locked while it is written, they have to be removed by hand.
    """
    if not POSIX:
        return
    for path in [each for each in folder.iterdir() if _is_temporary(each.name)]:
        with contextlib.suppress(OSError), open_regular(path) as file:
            if claim(file):
                path.unlink()


@contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's errors about `path` into a `WeightsFileError`."""
    try:
        yield
    except OSError as error:
        raise _failed(path, error) from None


def _is_temporary(name: str) -> bool:
    """Whether `_created` gives such names."""
    digits, dot, _ = name.removeprefix(_PREFIX).partition(".")
    is_ours = name.startswith(_PREFIX) and len(digits) == _DIGITS and set(digits) <= set(_HEX)
    return is_ours and (not dot or Path(name).stem == _PREFIX + digits)


def _sweep_once(folder: Path) -> None:
    """At the first file that this process writes to a folder."""
    if (os.getpid(), folder) not in _swept:
        _swept.add((os.getpid(), folder))
        with contextlib.suppress(OSError):
            sweep(folder)


def _without_name(folder: Path) -> tuple[Path, FileIO] | None:
    """A new file of no name in `folder`, and what holds it; None where there is no such thing.

    It goes with the process, however that ends.
    """
    flags = getattr(os, "O_TMPFILE", 0)
    if not flags:
        return None
    with contextlib.suppress(OSError):  # network file systems, and a chroot without /proc
        held = FileIO(
            str(folder),
            "r+",
            opener=lambda name, _: os.open(name, flags | os.O_RDWR | os.O_CLOEXEC, 0o666),
        )
        temporary = _OPEN_FILES / str(held.fileno())
        with contextlib.suppress(OSError):
            if os.path.samestat(temporary.stat(), os.fstat(held.fileno())):
                claim(held)  # so that it is not swept in the moment that it has a hidden name
                return temporary, held
        held.close()
    return None


def _give_name(temporary: Path, held: FileIO, final: Path) -> None:
    """Put a file without a name in the place of `final`."""
    try:
        _link(temporary, held, final)
    except OSError:
        # It is there, and no link replaces it: a hidden name, for an instant, is then renamed.
        hidden = _hidden(final)
        try:
            _link_or_copy(temporary, held, hidden, final)
            hidden.replace(final)
        except BaseException:
            _abandon(hidden, held)
            raise


def _link_or_copy(temporary: Path, held: FileIO, hidden: Path, final: Path) -> None:
    """Some sandboxes know no links."""
    try:
        _link(temporary, held, hidden)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        with temporary.open("rb") as file, hidden.open("xb") as copy:
            claim(copy)
            while chunk := file.read(_CHUNK):
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        _hand_on(final, hidden)


def _link(temporary: Path, held: FileIO, name: Path) -> None:
    # With a folder's descriptor, which an absolute path does not need, it is `linkat`, which
    # follows the link in /proc to the file; `link` makes a link to the link.
    os.link(temporary, name, src_dir_fd=held.fileno(), follow_symlinks=True)


def _hidden(final: Path) -> Path:
    suffix = final.suffix if len(os.fsencode(final.suffix)) <= _LONGEST_SUFFIX else ""
    return final.with_name(f"{_PREFIX}{secrets.token_hex(_DIGITS // 2)}{suffix}")


def _created(final: Path) -> tuple[Path, FileIO]:
    """A new file beside `final`, and what holds it locked."""
    while True:
        temporary = _hidden(final)
        held = FileIO(temporary, "x+")
        try:
            if not POSIX:  # an open file could be neither renamed nor removed
                held.close()
                return temporary, held
            claim(held)  # or not, on a file system without locks
            if os.fstat(held.fileno()).st_nlink:
                return temporary, held
        except BaseException:
            _abandon(temporary, held)
            raise
        held.close()  # somebody swept it before it was locked


def _hand_on(final: Path, temporary: Path) -> None:
    """The mode and the owner of the file that is replaced."""
    with contextlib.suppress(FileNotFoundError):
        before = final.stat()
        with contextlib.suppress(OSError, AttributeError):  # not ours to give away; not POSIX
            os.chown(temporary, before.st_uid, before.st_gid)
        mode = before.st_mode & 0o7777
        try:
            temporary.chmod(mode)
        except OSError:  # a disk whose files have one mode, which is the old file's, too
            if stat.S_IMODE(temporary.stat().st_mode) & ~mode:
                raise  # others could do with it what they could not with the old one


def _sync(temporary: Path, held: FileIO) -> None:
    """Down to the disk what was written, through whichever descriptor."""
    if POSIX:  # its mode may not let it be opened any more
        os.fsync(held.fileno())
    else:
        _flush(temporary, os.O_RDWR)


def _sync_folder(folder: Path) -> None:
    """The same of a name; some network file systems know no such thing of a folder."""
    try:
        _flush(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _flush(path: Path, way: int) -> None:
    descriptor = os.open(path, way)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _abandon(temporary: Path, held: FileIO) -> None:
    with contextlib.suppress(OSError):  # what was going wrong is told instead
        if temporary.parent != _OPEN_FILES:
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        held.close()


def _failed(path: str | os.PathLike[str], error: OSError) -> WeightsFileError:
    """What the system said; of a full disk also how much room is left, and where."""
    if error.errno not in _NO_ROOM:
        return _unwritable(path, error.strerror or error)
    folder = Path(os.path.realpath(path)).parent
    left = ""
    with contextlib.suppress(OSError, AttributeError):  # not POSIX
        disk = os.statvfs(folder)
        left = f"; {disk.f_bavail * disk.f_frsize / 1e6:.1f} MB left in {sanitize(folder)}"
    return WeightsFileError(
        f"{sanitize(path)}: cannot be written",
        got=f"{error.strerror}{left}",
        advice="make room, or write it elsewhere",
    )


def _unwritable(path: str | os.PathLike[str], got: object) -> WeightsFileError:
    return WeightsFileError(f"{sanitize(path)}: cannot be written", got=got)
