"""Files of 1 MB that are one part again and again: each opcode, record and entry that may be dear.

A part is spelled once, remembered, and named by a few bytes; or it is spelled so often as fits.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import pack

from tests.weights_io.forge import (
    ORDERED,
    REBUILD,
    Entry,
    integer,
    integers,
    npy,
    proto,
    safetensors,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    zip_file,
)

SIZE = 1_000_000
_F8 = b"cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R"
_PARTS = b"}(" + b"".join(text(f"_{n}") + b"}" for n in ("parameters", "buffers", "modules")) + b"u"
_PARAMETER = b"ctorch._utils\n_rebuild_parameter\n"
_FROM_TYPE = b"ctorch._tensor\n_rebuild_from_type_v2\n"
_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
_FROMBUFFER = b"cnumpy.core.numeric\n_frombuffer\n"


def _kept(*known: bytes) -> bytes:
    """The `known`, remembered in this order, in a set that is a dead record."""
    return b"(" + b"".join(part + b"q" + bytes([at]) for at, part in enumerate(known)) + b"\x91"


def _again(piece: bytes, *known: bytes) -> Callable[[], bytes]:
    """A pickle of one list: `piece` as often as fits."""

    def make() -> bytes:
        return torch_zip(proto(b"](" + _kept(*known) + piece * (SIZE // len(piece)) + b"e", 4))

    return make


def _numbered(piece: Callable[[int], bytes], around: tuple[bytes, bytes] = (b"](", b"e")) -> bytes:
    """A pickle of `piece(0)`, `piece(1)`, ..."""
    count = SIZE // len(piece(99_999))
    return torch_zip(proto(around[0] + b"".join(map(piece, range(count))) + around[1], 4))


def _nested(make: bytes, step: bytes, depth: int) -> bytes:
    piece = make + step * depth
    return torch_zip(proto(b"](" + piece * (SIZE // len(piece)) + b"e", 4))


def _view(size: bytes, stride: bytes) -> bytes:
    return b"(" + storage() + b"K\x00" + size + stride + b"\x89" + ORDERED + b"t"


PICKLES: dict[str, Callable[[], bytes]] = {
    "classes": _again(b"h\x00h\x01\x93", text("foo"), text("Bar")),
    "classes of long names": _again(
        b"h\x00h\x01\x93", text("foo" * 300), text("B" + ".a" * 400 + ".\U00020000")
    ),
    "classes of many names": lambda: _numbered(lambda i: b"cf\nB%d\n" % i),
    "sets of five texts": _again(b"\x8f(" + b"".join(map(text, "abcde")) + b"\x90"),
    "sets of five known texts": _again(b"\x8f(h\x00h\x01h\x02h\x03h\x04\x90", *map(text, "abcde")),
    "frozen sets of five known texts": _again(
        b"(h\x00h\x01h\x02h\x03h\x04\x91", *map(text, "abcde")
    ),
    "records": _again(b"h\x00)\x81", b"cfoo\nBar\n"),
    "records of one state": _again(b"h\x00)\x81h\x01b", b"cfoo\nBar\n", _PARTS),
    "objects that take items": _again(b"h\x00)\x81(e", b"ccollections\ndeque\n"),
    "objects that are called": _again(b"h\x00)R", b"cdatetime\ndate\n"),
    "namespaces": _again(b"h\x00)\x81}b", b"cargparse\nNamespace\n"),
    "configurations": _again(b"h\x00)\x81", b"cyacs.config\nCfgNode\n"),
    "dicts of an odd key": _again(b"}NNs"),
    "dicts of a known key": _again(b"}h\x00Ns", text("a")),
    "one dict of odd keys": lambda: torch_zip(proto(b"}(" + b"N" * SIZE + b"u", 4)),
    "tuples for keys": lambda: torch_zip(proto(b"}(" + b")\x85N" * (SIZE // 3) + b"u", 4)),
    "ordered dicts": _again(b"h\x00)R", ORDERED[:-2]),
    "module versions": _again(b"h\x00)Rh\x01b", ORDERED[:-2], b"}" + text("_metadata") + b"}s"),
    "places of the memo": _again(b"N\x94"),
    "one place of the memo": _again(b"Nr\x05\x00\x00\x00"),
    "recalled by long numbers": _again(b"j\x00\x00\x00\x00", b"N"),
    "long texts": _again(b"h\x00", text("a" * 1025)),
    "long texts made bytes": _again(
        b"h\x01h\x00R", text("a" * 1025) + text("latin1") + b"\x86", b"c_codecs\nencode\n"
    ),
    "arrays of one buffer": _again(
        b"h\x01h\x00R", b"(C\x08" + bytes(8) + _F8 + b"K\x01\x85" + text("C") + b"t", _FROMBUFFER
    ),
    "arrays in the order of columns": _again(
        b"h\x01h\x00R",
        b"(C\x20" + bytes(32) + _F8 + b"K\x02K\x02\x86" + text("F") + b"t",
        _FROMBUFFER,
    ),
    "arrays that are built": _again(
        b"h\x01h\x00Rh\x02b",
        b"cnumpy\nndarray\nK\x00\x85C\x01b\x87",
        _RECONSTRUCT,
        b"(K\x01K\x01\x85" + _F8 + b"\x89C\x08" + bytes(8) + b"t",
    ),
    "arrays without a state": _again(
        b"h\x01h\x00R", b"cnumpy\nmatrix\nK\x00\x85C\x01b\x87", _RECONSTRUCT
    ),
    "dtypes of text": _again(b"h\x01h\x00R", text("U999999") + b"\x89\x88\x87", b"cnumpy\ndtype\n"),
    "parameters of one tensor": _again(
        b"h\x01h\x00R", tensor() + b"\x89" + ORDERED + b"\x87", _PARAMETER
    ),
    "tensors with attributes": _again(
        b"h\x01h\x00R",
        b"(" + REBUILD + b"ctorch\nTensor\n" + _view(b"K\x04\x85", b"K\x01\x85") + b"}t",
        _FROM_TYPE,
    ),
    "tensors of 32 dimensions": _again(
        b"h\x01h\x00R", _view(integers([1] * 32), integers([1] * 32)), REBUILD
    ),
    "empty tensors of many sizes": _again(
        b"h\x01h\x00R", _view(b"K\x00" + integer(1 << 30) + b"\x86", b"K\x01K\x01\x86"), REBUILD
    ),
    "one storage": _again(b"h\x00Q", storage()[:-1]),
    "one storage of a long key": _again(b"h\x00Q", storage(key="\u0149" * 500)[:-1]),
    "storages that are missing": lambda: _numbered(lambda i: tensor(of=storage(key=f"{i:06d}"))),
    "storages of letters that unfold": lambda: _numbered(
        lambda i: tensor(of=storage(key="\u0149" * 40 + f"{i:06d}"))
    ),
    "devices": _again(b"h\x01h\x00R", text("cuda") + b"K\x01\x86", b"ctorch\ndevice\n"),
    "devices of long names": _again(
        b"h\x01h\x00R", text("a" * 1000 + "\U00020000") + b"\x85", b"ctorch\ndevice\n"
    ),
    "sizes": _again(b"h\x01h\x00R", b"K\x01\x85\x85", b"ctorch\nSize\n"),
    "methods": _again(
        b"h\x01h\x00R", b"cfoo\nBar\n)\x81" + text("forward") + b"\x86", b"c__builtin__\ngetattr\n"
    ),
    "frozen sets in frozen sets": lambda: torch_zip(
        proto(b"(" * 90 + b"(\x91" * (SIZE // 2) + b"\x91" * 90, 4)
    ),
    "lists ninety deep": lambda: _nested(b"]", b"]" * 89 + b"a" * 89, 1),
    "tuples ninety deep": lambda: _nested(b")", b"\x85", 90),
    "short bytes": _again(b"C\x01a"),
    "bytes of the longest short": _again(b"B" + pack("<I", 1024) + bytes(1024)),
    "frames": _again(b"\x95" + bytes(8)),
    "integers of 32 bytes": _again(b"\x8a\x20" + b"\x7f" * 32),
    "a list that holds itself": lambda: torch_zip(proto(b"]q\x00(" + b"h\x00" * 499_000 + b"e")),
    "items one by one": lambda: torch_zip(proto(b"]" + b"Na" * (SIZE // 2))),
    "names one by one": lambda: _numbered(lambda i: text(f"{i:06d}") + b"Ns", (b"}", b"")),
    "names that stand for tensors": lambda: _numbered(
        lambda i: text(f"{i:06d}") + (b"h\x00" if i else tensor() + b"q\x00"), (b"}(", b"u")
    ),
}


def _directory(names: Callable[[int], str], each: int, *, zip64: bool = False) -> bytes:
    return zip_file((Entry(names(i), b"") for i in range(SIZE // each)), zip64=zip64)


def _deflated(packed: bytes) -> bytes:
    """An archive whose pickle unpacks to nothing: the packed bytes are given."""
    whole = zip_file([Entry("m/data.pkl", packed, size=0, crc=0)])
    stored, deflated = (pack("<5H", 0, method, 0, 0x21, 0)[:8] for method in (0, 8))
    return whole.replace(b"\x14\x00" + stored, b"\x14\x00" + deflated)


def _header(entry: Callable[[int], bytes]) -> bytes:
    count = SIZE // (len(entry(99_999)) + 1)
    return safetensors(b"{" + b",".join(map(entry, range(count))) + b"}")


_ENTRY = b'"dtype":"U8","shape":[%s],"data_offsets":[0,0]'

_BLANK = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }" + b" " * 4000
_SOURCE = b"(" + text("module") + b"cfoo\nBar\n" + text("a") * 2 + b"t"


def _legacy() -> bytes:
    keys = tuple(f"{i}" for i in range(SIZE // 120))
    held = {key: tensor((0,), of=storage(0, key=key, legacy=True)) for key in keys}
    body = b"".join(text(key) + value for key, value in held.items())
    return torch_legacy(proto(ORDERED + b"(" + body + b"u"), keys, [(0, b"")] * len(keys))


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "members of 64-bit sizes": lambda: _directory(lambda i: f"m/{i}", 150, zip64=True),
    "members of long names": lambda: _directory(lambda i: f"m/{i:06d}" + "a" * 40_000, 80_100),
    "members of deep names": lambda: _directory(lambda i: f"m/{i:06d}" + "/a" * 15_000, 60_100),
    "folders": lambda: _directory(lambda i: f"m/{i}/", 100),
    "leftovers of macOS": lambda: _directory(lambda i: f"__MACOSX/._{i}", 110),
    "arrays of no element": lambda: zip_file(
        Entry(f"{i}.npy", npy(b"", shape="(0,)")) for i in range(SIZE // 170)
    ),
    "packed arrays of no element": lambda: zip_file(
        Entry(f"{i}.npy", npy(b"", shape="(0,)"), deflate=True) for i in range(SIZE // 170)
    ),
    "arrays of long headers": lambda: zip_file(
        Entry(f"{i}.npy", npy(b"", header=b" " * 4000 + b"{}")) for i in range(SIZE // 4200)
    ),
    "packed headers of blanks": lambda: zip_file(
        Entry(f"{i}.npy", npy(bytes(4), header=_BLANK), deflate=True) for i in range(SIZE // 220)
    ),
    "blocks that unpack to nothing": lambda: _deflated(b"\x00\x00\x00\xff\xff" * (SIZE // 5)),
    "metadata": lambda: safetensors(
        b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(SIZE // 12)) + b"}}"
    ),
    "names of escapes": lambda: _header(
        lambda i: b'"' + b"\\u0149" * 20 + b'%06d":{' % i + _ENTRY % b"0" + b"}"
    ),
    "shapes of many sizes": lambda: _header(
        lambda i: b'"%06d":{' % i + _ENTRY % (b"0" + b",1" * 31) + b"}"
    ),
    "a shape of all the file": lambda: safetensors(
        b'{"a":{' + _ENTRY % (b"0" + b",1" * (SIZE // 2)) + b"}}"
    ),
    "one name again and again": lambda: _header(lambda i: b'"a":{' + _ENTRY % b"0" + b"}"),
    "entries in entries": lambda: safetensors(b'{"a":' * 900 + b"1" + b"}" * 900),
    "storages of no element": _legacy,
    "classes and their source": lambda: torch_legacy(
        proto(b"(" + _kept(_SOURCE) + b"h\x00Q" * 300_000 + b"\x91", 4), (), ()
    ),
}
