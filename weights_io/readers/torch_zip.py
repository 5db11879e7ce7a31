"""The torch container of version 1.6 and later: a zip of one pickle and one file per storage."""

from __future__ import annotations

from weights_io.errors import WeightsFileError
from weights_io.limits import Ledger, Limits
from weights_io.pickles.inert import Storage, malformed
from weights_io.pickles.machine import run_pickle
from weights_io.pickles.tree import TreeBuilder
from weights_io.readers.contents import Contents
from weights_io.readers.metadata import parse_json, parse_text_metadata
from weights_io.readers.torch_tensors import Storages, TensorResolver, check_record_size
from weights_io.source import Source
from weights_io.text import sanitize
from weights_io.zips.member import Member

PICKLE = "data.pkl"
METADATA = ".metadata.json"
_PLAIN_MEMBERS = (PICKLE, "byteorder", "version")


def read_torch_zip(source: Source, members: dict[str, Member], limits: Limits) -> Contents:
    """Read the tree of a torch zip; its storages stay in the file."""
    root_folder = _root_folder(members)
    _refuse_strangers(members, root_folder)
    pickle = _pickle_source(members[root_folder + PICKLE], limits)
    storages = Storages(id_length=5)
    raw, end = run_pickle(pickle, 0, limits, storages.persistent)
    if end != pickle.size:
        raise malformed(f"{pickle.size - end} bytes follow its end")

    def find(storage: Storage) -> Member:
        member = members.get(f"{root_folder}data/{storage.key}")
        if member is None:
            raise WeightsFileError(
                f"storage {sanitize(storage.key)} is missing from the archive",
                advice="the file is damaged: copy or download it again",
            )
        check_record_size(storage, member.size)
        return member

    resolve = TensorResolver(
        find,
        Ledger(limits, source.size),
        big_endian=_is_big_endian(members.get(root_folder + "byteorder"), limits),
    )
    root = TreeBuilder(resolve.ledger, resolve).build(raw)
    return Contents("torch-zip", root, _metadata(members.get(root_folder + METADATA), limits))


def _metadata(member: Member | None, limits: Limits) -> dict[str, str]:
    """The table of texts that `write_torch_zip` puts beside the arrays."""
    if member is None:
        return {}
    return parse_text_metadata(parse_json(member.read(limits), "the archive's metadata"))


def _root_folder(members: dict[str, Member]) -> str:
    """Return the one folder, slash included, that holds data.pkl and everything else.

    torch names it after the file at save time, so a renamed file still has the old name inside.
    """
    folders = {name.partition("/")[0] for name in members}
    if len(folders) != 1:
        raise WeightsFileError("a torch zip with more than one top-level folder", got=len(folders))
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


def _pickle_source(member: Member, limits: Limits) -> Source:
    limits.enforce("pickle_bytes", member.size, "the pickle is too large")
    return Source.from_bytes(member.read_all(), sanitize(member.name))


def _is_big_endian(member: Member | None, limits: Limits) -> bool:
    order = b"little" if member is None else member.read(limits)
    if order not in (b"little", b"big"):
        raise WeightsFileError(
            "unknown byte order", got=sanitize(order[:20]), wanted="little or big"
        )
    return order == b"big"
