"""The torch container of version 1.6 and later: a zip of one pickle and one file per storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from weights_io.budget import Budget
from weights_io.errors import WeightsFileError
from weights_io.limits import Limits
from weights_io.pickles.inert import Storage, malformed
from weights_io.pickles.opcodes import run_pickle
from weights_io.pickles.tree import TreeBuilder
from weights_io.readers.contents import Contents
from weights_io.readers.metadata import parse_json, parse_text_metadata
from weights_io.readers.torch_tensors import Storages, TensorResolver, check_record_size
from weights_io.source import Readable, Source
from weights_io.text import sanitize
from weights_io.zips.member import Member

PICKLE = "data.pkl"
METADATA = ".metadata.json"
_PLAIN_MEMBERS = (PICKLE, "byteorder", "version")


class File(Readable, Protocol):
    """A file of a torch archive: a member of a zip, or a file of an unpacked folder."""

    name: str

    def read(self, limits: Limits) -> bytes:
        """Return all of it, which may be no larger than a header."""

    def read_all(self) -> bytes:
        """Return all of it; the caller has bounded its size."""


def read_torch_zip(members: dict[str, Member], budget: Budget) -> Contents:
    """Read the tree of a torch zip; its storages stay in the file."""
    root_folder = _root_folder(members)
    _refuse_strangers(members, root_folder)
    _refuse_equal_names(members)
    notes = _without_checksums(members)
    return read_torch_archive(members, root_folder, budget)._replace(notes=notes)


def read_torch_archive(files: Mapping[str, File], root_folder: str, budget: Budget) -> Contents:
    """Read the tree of data.pkl and its storages, in files that `root_folder` stands before."""
    limits = budget.limits
    # Once, for a folder's name may be long, and there are many storages.
    files = {name[len(root_folder) :]: file for name, file in files.items()}
    pickle = _pickle_source(files[PICKLE], limits)
    storages = Storages(id_length=5)
    raw, end = run_pickle(pickle, 0, budget, storages.persistent)
    if end != pickle.size:
        raise malformed(f"{pickle.size - end} bytes follow its end")

    def find(storage: Storage) -> File:
        file = files.get(f"data/{storage.key}")
        if file is None:
            raise WeightsFileError(
                f"storage {sanitize(storage.key)} is missing from the archive",
                advice="the file is damaged: copy or download it again",
            )
        check_record_size(storage, file.size)
        return file

    resolve = TensorResolver(
        find,
        budget,
        big_endian=_is_big_endian(files.get("byteorder"), limits),
    )
    root = TreeBuilder(budget, resolve).build(raw)
    return Contents("torch-zip", root, _metadata(files.get(METADATA), budget))


def _without_checksums(members: Mapping[str, Member]) -> tuple[str, ...]:
    """Take a file without any checksum as it is; of one that has some, all are verified.

    ``torch.serialization.set_crc32_options(False)`` writes a zero for each.
    """
    filled = [member for member in members.values() if member.size]
    if not all(member.lacks_checksum for member in filled):
        return ()
    for member in filled:
        member.take_unchecked()
    return ("the file was written without checksums: damage to its arrays cannot be told",)


def _metadata(member: File | None, budget: Budget) -> dict[str, str]:
    """The table of texts that `write_torch_zip` puts beside the arrays."""
    if member is None:
        return {}
    text = member.read(budget.limits)
    return parse_text_metadata(parse_json(text, "the archive's metadata", budget))


def _root_folder(members: dict[str, Member]) -> str:
    """Return the one folder, slash included, that holds data.pkl and everything else.

    torch names it after the file at save time, so a renamed file still has the old name inside.
    """
    folders = {name.partition("/")[0] for name in members}
    if PICKLE in members:  # packed again from inside the folder
        folder = ""
    elif len(folders) != 1:
        raise WeightsFileError("a torch zip with more than one top-level folder", got=len(folders))
    else:
        folder = folders.pop() + "/"
    if any(name.startswith(folder + "code/") for name in members) or (
        folder + "constants.pkl" in members
    ):
        raise WeightsFileError(
            "a TorchScript archive: it holds a program, not only weights",
            advice="save the weights alone: torch.save(torch.jit.load(old).state_dict(), new)",
        )
    if folder + PICKLE not in members:
        raise WeightsFileError("a zip archive without data.pkl in its top-level folder")
    return folder


def _refuse_strangers(members: dict[str, Member], folder: str) -> None:
    """Refuse members that torch never writes: `torch.load` can be told to run a second pickle."""
    for name in members:
        inside = name.removeprefix(folder)
        if inside not in _PLAIN_MEMBERS and not inside.startswith(("data/", ".")):
            raise WeightsFileError(
                "a torch zip with a member that no torch writes",
                got=sanitize(name),
                advice="get the file again from its source",
            )


def _refuse_equal_names(members: Mapping[str, Member]) -> None:
    """Refuse names that differ by case only: torch takes the one member for the other."""
    seen: dict[str, str] = {}
    for name in members:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise WeightsFileError(
                "the archive's members have names that differ by case only",
                got=f"{sanitize(other)} and {sanitize(name)}",
                advice="get the file again from its source",
            )


def _pickle_source(member: File, limits: Limits) -> Source:
    limits.enforce("pickle_bytes", member.size, "the pickle is too large")
    return Source.from_bytes(member.read_all(), sanitize(member.name))


def _is_big_endian(member: File | None, limits: Limits) -> bool:
    order = b"little" if member is None else member.read(limits)
    if order not in (b"little", b"big"):
        raise WeightsFileError(
            "unknown byte order", got=sanitize(order[:20]), wanted="little or big"
        )
    return order == b"big"
