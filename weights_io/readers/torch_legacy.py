"""The torch container before 1.6: five pickles in a row, then the storages.

The pickles are a magic number, a protocol version, facts about the writing machine, the object,
and the list of storage keys. Then, for each key, the element count and the raw elements, both
little-endian on every machine.
"""

from __future__ import annotations

from weights_io.budget import Budget
from weights_io.dtypes import stored_bytes
from weights_io.errors import WeightsFileError
from weights_io.pickles.inert import Storage, malformed
from weights_io.pickles.opcodes import run_pickle
from weights_io.pickles.tree import TreeBuilder
from weights_io.readers.contents import Contents
from weights_io.readers.torch_tensors import Storages, TensorResolver, check_record_size
from weights_io.source import Region, Source
from weights_io.text import sanitize

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read_torch_legacy(source: Source, budget: Budget) -> Contents:
    """Read the tree of a legacy stream; its storages stay in the file."""
    magic, at = run_pickle(source, 0, budget)
    version, at = run_pickle(source, at, budget)
    system, at = run_pickle(source, at, budget)
    _check_preamble(magic, version, system)
    storages = Storages(id_length=6)
    raw, at = run_pickle(source, at, budget, storages.persistent)
    keys, at = run_pickle(source, at, budget)
    records = _find_records(source, at, _check_keys(keys, storages.by_key))

    def find(storage: Storage) -> Region:
        return records[storage.key]

    resolve = TensorResolver(find, budget)
    return Contents("torch-legacy", TreeBuilder(budget, resolve).build(raw), {})


def _check_preamble(magic: object, version: object, system: object) -> None:
    if magic != MAGIC or version != VERSION:
        raise WeightsFileError(
            "not a legacy torch file of the known version",
            got=sanitize((magic, version)),
            wanted=f"{(MAGIC, VERSION)}",
        )
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsFileError(
            "a legacy torch file that was not written on a little-endian machine",
            advice="load it in torch and save it again there",
        )


def _check_keys(keys: object, storages: dict[str, Storage]) -> list[Storage]:
    """Return the storages in file order.

    torch itself loads a file whose list lacks a storage, and gives out uninitialised memory.
    """
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise malformed("the list of storage keys is no list of strings")
    if len(set(keys)) != len(keys) or set(keys) != set(storages):
        raise WeightsFileError(
            "the listed storages are not the ones that the tensors use",
            got=f"{len(keys)} keys",
            wanted=f"{len(storages)} different keys",
            advice="the file is damaged: copy or download it again",
        )
    return [storages[key] for key in keys]


def _find_records(source: Source, at: int, storages: list[Storage]) -> dict[str, Region]:
    records = {}
    for storage in storages:
        count = int.from_bytes(source.read(at, 8), "little", signed=True)
        size = count * stored_bytes(storage.dtype)
        check_record_size(storage, size)
        source.require(at + 8, size)
        records[storage.key] = Region(source, at + 8, size)
        at += 8 + size
    if at != source.size:
        raise WeightsFileError("bytes follow the last storage", got=source.size - at, wanted=0)
    return records
