"""A folder that appears whole or not at all, and the digests of what is in it."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.oracle.json_files import read_object
from weights_io import IrregularFileError, open_regular, sanitize

MANIFEST, FORMAT, VERSION = "manifest.json", "repvgg-ref golden", 1


@contextmanager
def atomic_folder(path: Path, which: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in the place of `path` in the end.

    An older bundle whose manifest has the entries of `which` is replaced, nothing else is. On any
    exception, an interrupt included, the temporary folder is removed; a killed process leaves the
    old bundle or none under the name.

    Raises
    ------
    ReportedError
        If something else is there, as `require_free` says.
    """
    final = Path(path).absolute()
    require_free(final, which)
    temporary = final.with_name(f".{final.name[:80]}.{secrets.token_hex(6)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        require_free(final, which)  # somebody else may have been faster
        _put(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def is_golden(path: object) -> bool:
    """Whether `path` is a folder with the manifest of a golden bundle, be it damaged."""
    if not isinstance(path, str | Path) or not Path(path).is_dir():
        return False
    folder = Path(path)
    try:
        return read_manifest(folder).get("format") == FORMAT
    except ReportedError:  # beside several files of arrays it is no weights file's
        return (folder / MANIFEST).exists() and len(list(islice(folder.glob("*.npz"), 2))) > 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it stands; `ReportedError` if there is none."""
    path = folder / MANIFEST
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise ReportedError(
            f"{sanitize(path)}: no manifest of a golden bundle",
            got=sanitize(getattr(error, "strerror", None) or error),
        ) from None


def checked_manifest(
    folder: Path, needed: Callable[[Mapping[str, Any]], list[str]]
) -> dict[str, Any]:
    """The manifest, after every file was found to be the one it speaks of.

    `needed` tells from a manifest which files are read.

    Raises
    ------
    ReportedError
        If it is of another version, a file is another, or of one that is needed it tells none.
    """
    manifest = read_manifest(folder)
    if manifest.get("format") != FORMAT or manifest.get("format_version") != VERSION:
        raise ReportedError(
            f"{sanitize(folder.name)}: not a bundle this version reads",
            got=sanitize(f"{manifest.get('format')} {manifest.get('format_version')}"),
            wanted=f"{FORMAT} {VERSION}",
        )
    files = _told_files(folder, manifest, needed(manifest))
    for name, about in files.items():
        if found := _amiss(folder, name, about.get("sha256") if isinstance(about, dict) else None):
            raise ReportedError(
                f"{sanitize(folder.name)}: {sanitize(name)} is not the file that was written",
                got=found,
                wanted="the bundle as it was made",
                advice="get the bundle again from its source",
            )
    return manifest


def _told_files(folder: Path, manifest: Mapping[str, Any], needed: list[str]) -> Mapping[str, Any]:
    """The manifest's table of files, which must tell of all that are `needed`."""
    files = manifest.get("files")
    missing = [name for name in needed if not isinstance(files, dict) or name not in files]
    if isinstance(files, dict) and not missing:
        return files
    raise ReportedError(
        f"{sanitize(folder.name)}: the manifest tells no digest of the bundle's files",
        got=f"none of {missing[0]}" if isinstance(files, dict) else f"files: {sanitize(files)}",
        wanted="the bundle as it was made",
        advice="get the bundle again from its source",
    )


def sha256(path: Path) -> str:
    """The digest of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _amiss(folder: Path, name: str, digest: object) -> str:
    """What is wrong with a file of which the manifest tells the digest, if anything."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            return "no such file"
        return "" if sha256(path) == digest else "another digest"
    except IrregularFileError as error:
        return str(error.strerror)
    except (OSError, ValueError, RuntimeError):  # a NUL, a loop of links
        return "no such file"


def digest_of(arrays: Mapping[str, Array]) -> str:
    """A digest of named arrays that does not depend on the container they are stored in."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def require_free(path: Path, which: Mapping[str, Any]) -> None:
    """Raise `ReportedError` unless a bundle of the model described by `which` may be put there.

    A folder that is not there, an empty one and an older bundle of the same model are free.
    """
    if not path.exists():
        return
    if not path.is_dir() or (any(path.iterdir()) and not is_golden(path)):
        raise ReportedError(
            f"{sanitize(str(path))}: exists already, and is no golden bundle",
            wanted="a new folder, an empty one, or an older bundle to replace",
        )
    if not any(path.iterdir()):
        return
    found, wanted = read_manifest(path), json.loads(json.dumps(which))
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise ReportedError(
            f"{sanitize(str(path))}: holds the golden vectors of another model",
            got=sanitize(f"{found.get('model')}, {found.get('form')} form, another {other[0]}"),
            wanted=f"a new folder, or the bundle of this {wanted['model']}",
            advice="name another --out, or remove that folder first",
        )


def _put(temporary: Path, final: Path) -> None:
    """Move into place; between two renames there may be no bundle, never half of one."""
    if not final.exists():
        temporary.rename(final)
        return
    old = final.with_name(f".{final.name[:80]}.{secrets.token_hex(6)}.old")
    final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
