"""torch archives that are changed here and there, and what torch and we make of each.

torch's `weights_only` reader and ours refuse most of them, not always the same ones. Where both
read a file they must read the same: two meanings of one file are how a scanner is deceived.
"""

from __future__ import annotations

import pickletools
import random
import warnings
from collections.abc import Callable
from io import BytesIO
from struct import pack
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch

import weights_io
from tests.peers.test_weights_io_torch import assert_same_tree, saved
from tests.weights_io import forge

Members = dict[str, bytes]
_DATA = "archive/data.pkl"
_KINDS = (b"FloatStorage", b"IntStorage", b"HalfStorage", b"ShortStorage", b"BFloat16Storage")
_NUMBERS = (0, 1, 2, 3, 4, 5, 6, 8, 12, 255)
_MOST_ELEMENTS = 1 << 20


class Opinions(NamedTuple):
    """Whether either reader took a file."""

    ours: bool
    torchs: bool


def original(chance: random.Random) -> object:
    """What is saved before it is changed: tensors that share, overlap, are views; plain data."""
    base = torch.tensor([chance.uniform(-1, 1) for _ in range(24)])
    tied = base[3:9]
    return {
        "weight": base.reshape(2, 3, 4).permute(2, 0, 1),
        "bias": tied,
        "tied": torch.nn.Parameter(tied[::2].clone()),
        "count": torch.tensor(chance.randrange(1000)),
        "half": base[:8].half(),
        "brain": base[8:16].bfloat16(),
        "bytes": torch.arange(6, dtype=torch.uint8).reshape(2, 3)[:, 1:],
        "flags": torch.tensor([True, False, True, True]),
        "epoch": 3,
        "names": ["a", ("b", 1.5), {"c": None}],
    }


def mutated(chance: random.Random) -> bytes:
    """A saved archive with one to three changes."""
    legacy = chance.random() < 0.3
    data = saved(original(chance), _use_new_zipfile_serialization=not legacy).getvalue()
    if legacy:
        return _patched(data, chance)
    with ZipFile(BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(chance.randint(1, 3)):
        chance.choice(_CHANGES)(members, chance)
    return forge.zip_file(forge.Entry(name, content) for name, content in members.items())


def opinions(data: bytes) -> Opinions:
    """Read a file twice; raise AssertionError if both take it and differ."""
    ours, theirs = _read_ours(data), _read_torchs(data)
    if ours is not None and theirs is not None:
        with weights_io.open_weights(BytesIO(data)) as archive:
            assert_same_tree(archive.root, theirs[0])
    return Opinions(ours is not None, theirs is not None)


def _read_ours(data: bytes) -> object:
    try:
        with weights_io.open_weights(BytesIO(data)) as archive:
            _read_arrays(archive.root)
            return (archive.root,)
    except weights_io.WeightsFileError:
        return None


def _read_arrays(node: Any) -> None:
    if isinstance(node, weights_io.LazyArray):
        node.read()
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            _read_arrays(value)


def _read_torchs(data: bytes) -> tuple[Any] | None:
    """What torch reads; nothing, too, if its arrays are too large to compare."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch raises what it meets, and any of it is a refusal
        return None
    return (root,) if _elements(root) <= _MOST_ELEMENTS else None


def _elements(node: Any) -> int:
    if isinstance(node, torch.Tensor):
        return int(node.numel())
    if isinstance(node, dict | list | tuple):
        return sum(_elements(each) for each in (node.values() if isinstance(node, dict) else node))
    return 0


def of_two_cases(keys: str) -> bytes:
    """Tensors in storages of these names, beside the records `w` of zeros and `W` of ones."""
    tensors = {key: forge.tensor(of=forge.storage(key=key)) for key in keys}
    records = {"w": bytes(16), "W": np.ones(4, np.float32).tobytes()}
    return forge.torch_zip(forge.state_dict(tensors), records)


# Changes -----------------------------------------------------------------------------------------


def _patched(data: bytes, chance: random.Random) -> bytes:
    patched = bytearray(data)
    for _ in range(chance.randint(1, 2)):
        place = chance.randrange(len(patched))
        patched[place] = chance.choice([chance.randrange(256), (patched[place] + 1) % 256])
    return bytes(patched)


def _patch_pickle(members: Members, chance: random.Random) -> None:
    members[_DATA] = _patched(members[_DATA], chance)


def _pieces(pickle: bytes) -> list[bytes]:
    """The pickle's opcodes, each with its argument; all of what is broken as the last one."""
    starts = [0]
    try:
        starts = [at for _, _, at in pickletools.genops(pickle) if at is not None]
    except ValueError:
        return [pickle]
    return [pickle[a:b] for a, b in zip(starts, [*starts[1:], len(pickle)], strict=True)]


def _edit_opcodes(members: Members, chance: random.Random) -> None:
    """Another number, a piece twice, a piece gone, two pieces exchanged, or recalled instead."""
    pieces = _pieces(members[_DATA])
    place, other = (chance.randrange(len(pieces)) for _ in "12")
    kind = chance.randrange(8)
    numbers = [at for at, piece in enumerate(pieces) if piece[:1] in b"KM" and len(piece) < 4]
    if kind < 4 and numbers:
        pieces[chance.choice(numbers)] = b"K" + bytes([chance.choice(_NUMBERS)])
    elif kind == 4:
        pieces[place] = pieces[place] * 2
    elif kind == 5:
        del pieces[place]
    elif kind == 6:
        pieces[place], pieces[other] = pieces[other], pieces[place]
    else:
        pieces[place] = b"h" + bytes([chance.randrange(60)])
    members[_DATA] = b"".join(pieces)


def _edit_kind(members: Members, chance: random.Random) -> None:
    pickle = members[_DATA]
    members[_DATA] = pickle.replace(chance.choice(_KINDS), chance.choice(_KINDS), 1)


def _edit_key(members: Members, chance: random.Random) -> None:
    """A storage of another name, which may differ by its case only."""
    one, other = (chance.choice("0123456") for _ in "12")
    new = chance.choice([other, "a", "A", "x/y", "../data/0"])
    old = b"X" + pack("<I", 1) + one.encode()
    members[_DATA] = members[_DATA].replace(old, forge.text(new))
    if chance.random() < 0.7 and f"archive/data/{one}" in members:
        members[f"archive/data/{new}"] = members[f"archive/data/{one}"]


def _cross_case(members: Members, chance: random.Random) -> None:
    """Two storages whose names differ by case only, with different content."""
    for name, key in (("0", "w"), ("1", "W")):
        content = members.pop(f"archive/data/{name}", None)
        if content is not None:
            members[f"archive/data/{key}"] = content[::-1] if key == "W" else content
            old = b"X" + pack("<I", 1) + name.encode()
            members[_DATA] = members[_DATA].replace(old, forge.text(key))
    if chance.random() < 0.5 and "archive/data/w" in members:
        members["archive/data/W"] = members["archive/data/w"][::-1]


def _exchange(members: Members, chance: random.Random) -> None:
    storages = [name for name in members if name.startswith("archive/data/")]
    one, other = (chance.choice(storages) for _ in "12")
    members[one], members[other] = members[other], members[one]


def _noise(members: Members, chance: random.Random) -> None:
    """Other numbers, NaNs and infinities among them, under a checksum that is right."""
    name = chance.choice([name for name in members if name.startswith("archive/data/")])
    members[name] = np.random.default_rng(chance.randrange(1 << 30)).bytes(len(members[name]))


def _turn_around(members: Members, chance: random.Random) -> None:
    members["archive/byteorder"] = chance.choice([b"big", b"little", b"bi", b""])


def _drop_member(members: Members, chance: random.Random) -> None:
    del members[chance.choice([name for name in members if name != _DATA])]


def _reorder(members: Members, chance: random.Random) -> None:
    items = list(members.items())
    chance.shuffle(items)
    members.clear()
    members.update(items)


_CHANGES: list[Callable[[Members, random.Random], None]] = [
    *[_patch_pickle, _edit_opcodes, _edit_opcodes, _edit_opcodes, _edit_kind, _edit_key],
    *[_cross_case, _exchange, _noise, _turn_around, _drop_member, _reorder],
]
