"""Right files of very many small parts: what training leaves is no flood, and is read."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.files.inspect import inspect_file
from tests.weights_io.forge import (
    ORDERED,
    REBUILD,
    Entry,
    integer,
    npy,
    proto,
    safetensors,
    text,
    torch_zip,
    zip_file,
)
from tests.weights_io.refusal import read_everything

_SCALAR = np.float32(1.5).tobytes()


# What torch's pickler spells once and recalls for every further tensor, by its place in the memo.
_ONCE = [REBUILD, text("storage"), b"ctorch\nFloatStorage\n", text("cpu"), ORDERED[:-2]]
_KNOWN = b"".join(piece + b"q" + bytes([place]) for place, piece in enumerate(_ONCE))


def _scalar(key: str, places: Iterator[int]) -> bytes:
    """A tensor of one number in a storage of its own, spelled as torch's pickler does."""

    def kept(piece: bytes) -> bytes:
        return piece + b"r" + next(places).to_bytes(4, "little")

    identity = b"(h\x01h\x02" + kept(text(key)) + b"h\x03K\x01" + kept(b"t") + b"Q"
    view = b"K\x00" + kept(b"K\x01\x85") + kept(b"K\x01\x85") + b"\x89" + kept(b"h\x04)R")
    return b"h\x00(" + identity + view + kept(kept(b"t") + b"R")


def _optimiser(parameters: int) -> bytes:
    """Adam's state of so many parameters, each of one number: three tensors a parameter."""
    state, records, places = [], {}, count(len(_ONCE))
    for number in range(parameters):
        names = ("step", "exp_avg", "exp_avg_sq")
        tensors = []
        for at, name in enumerate(names):
            key = str(3 * number + at)
            tensors.append(text(name) + _scalar(key, places))
            records[key] = _SCALAR
        state.append(integer(number) + b"}(" + b"".join(tensors) + b"u")
    known = text("known") + b"(" + _KNOWN + b"\x91"
    held = b"}(" + known + text("state") + b"}(" + b"".join(state) + b"uu"
    return torch_zip(proto(held, 4), records)


def _history(length: int) -> bytes:
    return pickle.dumps({"losses": [0.5 + number for number in range(length)]}, 2)


def _labels(length: int) -> bytes:
    return pickle.dumps({"targets": [number % 1000 for number in range(length)]}, 2)


def _boxes(count: int) -> bytes:
    return pickle.dumps({"boxes": [[number % 100] for number in range(count)]}, 4)


def _epochs(count: int) -> bytes:
    """What a trainer says of each epoch: five numbers under the same names."""
    told = [
        {"epoch": n, "loss": 1 / (n + 1), "lr": 0.1, "accuracy": 0.5 + n, "seconds": 3.25 * n}
        for n in range(count)
    ]
    return pickle.dumps({"history": told}, 2)


def _scalars(arrays: int) -> bytes:
    header = {
        f"l{number}": {"dtype": "F32", "shape": [], "data_offsets": [4 * number, 4 * number + 4]}
        for number in range(arrays)
    }
    return safetensors(header, _SCALAR * arrays)


def _members(arrays: int) -> bytes:
    array = npy(_SCALAR, shape="()")
    return zip_file([Entry(f"l{number}.npy", array) for number in range(arrays)])


def _zeros(megabytes: int) -> bytes:
    return zip_file(
        [Entry("w.npy", npy(bytes(megabytes << 20), shape=f"({megabytes << 18},)"), deflate=True)]
    )


FILES: dict[str, tuple[Callable[[int], bytes], int, Callable[[Any], int]]] = {
    "an optimiser's state": (_optimiser, 3200, lambda root: len(root["state"])),
    "losses": (_history, 400_000, lambda root: len(root["losses"])),
    "labels": (_labels, 400_000, lambda root: len(root["targets"])),
    "small lists": (_boxes, 150_000, lambda root: len(root["boxes"])),
    "dicts of an epoch": (_epochs, 30_000, lambda root: len(root["history"])),
    "scalars in safetensors": (_scalars, 9000, len),
    "members of an archive": (_members, 21_000, len),
    "zeros": (_zeros, 60, lambda root: root["w"].shape[0] >> 18),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("case", FILES)
def test_a_right_file_of_many_small_parts_is_read(case: str) -> None:
    make, parts, found = FILES[case]
    assert found(read_everything(make(parts))) == parts


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_a_larger_one_is_read_too(case: str) -> None:
    """But zeros: what they unpack to is bounded for every file."""
    make, parts, found = FILES[case]
    if case == "zeros":
        with pytest.raises(weights_io.LimitError, match="too much memory"):
            weights_io.open_weights(BytesIO(make(parts + 20)))
    else:
        with weights_io.open_weights(BytesIO(make(2 * parts))) as archive:
            assert found(archive.root) == 2 * parts


@pytest.mark.few(1)
@pytest.mark.parametrize("case", ["scalars in safetensors", "losses"])
def test_it_is_inspected(case: str, tmp_path: Path) -> None:
    make, parts, _ = FILES[case]
    path = tmp_path / "file.pth"
    path.write_bytes(make(parts))
    assert inspect_file(path).tensors == (parts if case.startswith("scalars") else 0)
