"""Files of any size whose arrays take more memory, or more work, than most: one entry a kind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from struct import pack

from tests.weights_io.forge import (
    ORDERED,
    REBUILD,
    Entry,
    integer,
    npy,
    proto,
    safetensors,
    state_dict,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    zip_file,
)

_NOISE = random.Random(0).randbytes(1 << 20)
_PIECE = 1 << 18  # bytes of an array of many


def _noise(size: int) -> bytes:
    return (_NOISE * (size // len(_NOISE) + 1))[:size]


def _packs(size: int, ratio: float) -> bytes:
    """So many bytes that deflate to a part of their size: some noise in each megabyte of zeros."""
    some = int((1 << 20) / ratio)
    piece = random.Random(1).randbytes(some) + bytes((1 << 20) - some)
    return (piece * (size // (1 << 20) + 1))[:size]


def _npz(arrays: Iterator[tuple[str, bytes]], *, deflate: bool = False) -> bytes:
    return zip_file(Entry(f"{name}.npy", data, deflate=deflate) for name, data in arrays)


def _one_npy(data: bytes, descr: str, itemsize: int, fortran: str = "False") -> bytes:
    rows = len(data) // itemsize // 2
    return npy(data[: 2 * rows * itemsize], descr=descr, shape=f"(2, {rows})", fortran=fortran)


def _safetensors(size: int, dtype: str, itemsize: int, arrays: int = 1) -> bytes:
    count = size // arrays // itemsize
    header = {
        f"w.{i}": {
            "dtype": dtype,
            "shape": [count],
            "data_offsets": [i * count * itemsize, (i + 1) * count * itemsize],
        }
        for i in range(arrays)
    }
    return safetensors(json.dumps(header).encode(), _noise(arrays * count * itemsize))


def _torch(
    size: int, kind: str, itemsize: int, *, big: bool = False, deflate: bool = False
) -> bytes:
    count = size // itemsize
    pickle = state_dict({"a.w": tensor((count,), (1,), of=storage(count, kind=kind))})
    members = [Entry("m/data.pkl", pickle), Entry("m/byteorder", b"big" if big else b"little")]
    data = Entry("m/data/0", _noise(count * itemsize), deflate=deflate)
    return zip_file([*members, data])


def _transposed(size: int, kind: str, itemsize: int) -> bytes:
    """As networks whose channels are last are saved."""
    count = size // itemsize // 2
    pickle = state_dict({"a.w": tensor((2, count), (1, 2), of=storage(2 * count, kind=kind))})
    return torch_zip(pickle, {"0": _noise(2 * count * itemsize)})


def _shared(size: int, times: int) -> bytes:
    """A storage that as many tensors share as a whole."""
    count = size // 4
    view = tensor((count,), (1,), of=b"h\x00")
    first = tensor((count,), (1,), of=storage(count) + b"q\x00")
    named = text("a.0") + first + b"".join(text(f"a.{i}") + view for i in range(1, times))
    return torch_zip(proto(ORDERED + b"(" + named + b"u"), {"0": _noise(4 * count)})


def _legacy(size: int) -> bytes:
    count = size // 4
    pickle = state_dict({"a.w": tensor((count,), (1,), of=storage(count, legacy=True))})
    return torch_legacy(pickle, ("0",), [(count, _noise(4 * count))])


def _opcodes(piece: bytes, size: int) -> bytes:
    """A pickle of nothing but objects, beside a storage that makes the file as large."""
    most = min(size // 48 * len(piece), 14 << 20)
    body = b"](" + piece * (most // len(piece)) + b"e"
    count = (size - most) // 4
    pickle = ORDERED + b"(" + text("a.w") + tensor((count,), (1,), of=storage(count)) + text("b")
    return torch_zip(proto(pickle + body + b"u", 4), {"0": bytes(4 * count)})


def _pickled_array(size: int) -> bytes:
    """A NumPy array in a pickle of protocol 2, whose bytes are text of twice their size."""
    data = (_noise(size // 2)).decode("latin-1").encode()
    count = len(data.decode())
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"\x89\x88\x87R"
    state = b"(K\x01" + integer(count) + b"\x85" + dtype + b"\x89"
    held = b"X" + pack("<I", len(data)) + data + text("latin1") + b"\x86"
    make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    array = make + state + b"c_codecs\nencode\n" + held + b"Rtb"
    return proto(b"}" + text("a.w") + array + b"s", 3)


def _views(size: int) -> bytes:
    """Tensors of one number, in a storage that is deflated: each inflates all of it."""
    count = size // 4
    view = b"(" + b"h\x00" + b"K\x00K\x01\x85K\x01\x85\x89" + ORDERED + b"t"
    first = tensor((1,), (1,), of=storage(count) + b"q\x00")
    named = (
        text("a.0") + first + b"".join(text(f"a.{i}") + REBUILD + view + b"R" for i in range(1, 9))
    )
    pickle = proto(ORDERED + b"(" + named + b"u")
    return zip_file(
        [Entry("m/data.pkl", pickle), Entry("m/data/0", _noise(4 * count), deflate=True)]
    )


FILES: dict[str, Callable[[int], bytes]] = {
    "safetensors, one array": lambda size: _safetensors(size, "F32", 4),
    "safetensors, many arrays": lambda size: _safetensors(size, "F32", 4, size // _PIECE),
    "safetensors, bfloat16": lambda size: _safetensors(size, "BF16", 2),
    "safetensors, many bfloat16": lambda size: _safetensors(size, "BF16", 2, size // _PIECE),
    "safetensors, bool": lambda size: _safetensors(size, "BOOL", 1),
    "torch zip, one array": lambda size: _torch(size, "FloatStorage", 4),
    "torch zip, bfloat16": lambda size: _torch(size, "BFloat16Storage", 2),
    "torch zip, big-endian": lambda size: _torch(size, "FloatStorage", 4, big=True),
    "torch zip, big-endian bfloat16": lambda size: _torch(size, "BFloat16Storage", 2, big=True),
    "torch zip, deflated": lambda size: _torch(size, "FloatStorage", 4, deflate=True),
    "torch zip, channels last": lambda size: _transposed(size, "FloatStorage", 4),
    "torch zip, bfloat16 channels last": lambda size: _transposed(size, "BFloat16Storage", 2),
    "torch zip, a storage shared by 2": lambda size: _shared(size, 2),
    "torch zip, a storage shared by 3": lambda size: _shared(size, 3),
    "torch zip, a storage shared by 5": lambda size: _shared(size, 5),
    "torch zip, views of one deflated": _views,
    "torch zip, sets without end": lambda size: _opcodes(b"\x8f", size),
    "torch zip, dicts without end": lambda size: _opcodes(b"}", size),
    "torch zip, remembered lists": lambda size: _opcodes(b"]\x94", size),
    "torch legacy": _legacy,
    "pickle, an array as text": _pickled_array,
    "npz, one array": lambda size: _npz(iter([("w", _one_npy(_noise(size), "'<f4'", 4))])),
    "npz, big-endian": lambda size: _npz(iter([("w", _one_npy(_noise(size), "'>f4'", 4))])),
    "npz, Fortran's order": lambda size: _npz(
        iter([("w", _one_npy(_noise(size), "'>f4'", 4, "True"))])
    ),
    "npz, many arrays": lambda size: _npz(
        (f"w{i}", _one_npy(_noise(_PIECE), "'<f4'", 4)) for i in range(size // _PIECE)
    ),
    "npz, deflated, noise": lambda size: _npz(
        iter([("w", _one_npy(_noise(size), "'<f4'", 4))]), deflate=True
    ),
    **{
        f"npz, deflated {ratio} to 1{', Fortran' * (order == 'True')}": (
            lambda size, ratio=ratio, order=order: _npz(  # type: ignore[misc]
                iter([("w", _one_npy(_packs(int(size * ratio), ratio), "'>f4'", 4, order))]),
                deflate=True,
            )
        )
        for ratio in (2, 3, 4)
        for order in ("False", "True")
    },
}  # fmt: skip
