"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weights_io.errors import WeightsFileError
from weights_io.text import sanitize


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    On any exception, an interrupt included, the temporary file is removed and an old `path` stays
    as it was; a killed process leaves the old file or none under the final name. The temporary
    path keeps the suffix, by which some libraries choose a format.

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
        temporary = final.with_name(f".{final.stem[:80]}.{secrets.token_hex(6)}{final.suffix}")
        temporary.touch(exist_ok=False)  # fails now, before any work, if it has to
    try:
        yield temporary
        with reported(path):
            temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's errors about `path` into a `WeightsFileError`."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error.strerror or error) from None


def _unwritable(path: str | os.PathLike[str], got: object) -> WeightsFileError:
    return WeightsFileError(f"{sanitize(path)}: cannot be written", got=got)
