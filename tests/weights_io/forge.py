"""Makes files byte by byte, right and wrong ones, independently of `weights_io`'s writers."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from struct import pack

OS_SYSTEM = b"cos\nsystem\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FULL32 = 0xFFFFFFFF
ORDERED = b"ccollections\nOrderedDict\n)R"


# Pickles ------------------------------------------------------------------------------------


def proto(body: bytes, protocol: int = 2) -> bytes:
    """A whole pickle around a body that leaves one object."""
    return b"\x80" + bytes([protocol]) + body + b"."


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def storage(
    count: int = 4, *, kind: str = "FloatStorage", key: str = "0", legacy: bool = False
) -> bytes:
    parts = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    return b"(" + parts + integer(count) + (b"N" if legacy else b"") + b"tQ"


def tensor(
    size: Iterable[int] = (4,),
    stride: Iterable[int] = (1,),
    *,
    offset: int = 0,
    of: bytes | None = None,
    extra: bytes = b"",
) -> bytes:
    view = integer(offset) + integers(size) + integers(stride)
    arguments = (storage() if of is None else of) + view + b"\x89" + ORDERED + extra
    return REBUILD + b"(" + arguments + b"tR"


def state_dict(items: Mapping[str, bytes], tail: bytes = b"") -> bytes:
    pairs = b"".join(text(name) + value for name, value in items.items())
    return proto(ORDERED + b"(" + pairs + b"u" + tail)


_PIECE = 1 << 20

# Containers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A zip member; the last four fields lie if they are set."""

    name: str
    data: bytes
    deflate: bool = False
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    local_name: str | None = None
    offset: int | None = None


def zip_file(
    entries: Iterable[Entry], *, comment: bytes = b"", gap: bytes = b"", zip64: bool = False
) -> bytes:
    """A zip; with `zip64` every size and offset stands in the 64-bit records alone."""
    body, directory, count = bytearray(), bytearray(), 0
    for entry in entries:
        packed = _deflated(entry.data) if entry.deflate else entry.data
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        name, local_name = entry.name.encode(), (entry.local_name or entry.name).encode()
        method = 8 if entry.deflate else 0
        offset = len(body) if entry.offset is None else entry.offset
        sizes = (crc, len(packed), size)
        common = (20, entry.flags, method, 0, 0x21, *sizes)
        local = pack("<4s5H3I2H", b"PK\x03\x04", *common, len(local_name), 0)
        body += local + local_name + packed + gap
        extra = pack("<2H3Q", 1, 24, size, len(packed), offset) if zip64 else b""
        if zip64:
            common, offset = (*common[:5], crc, FULL32, FULL32), FULL32
        central = (20, *common, len(name), len(extra), 0, 0, 0, 0, offset)
        directory += pack("<4s6H3I5H2I", b"PK\x01\x02", *central) + name + extra
        count += 1
    if zip64:
        wide = (count, count, len(directory), len(body))
        end64 = pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *wide)
        locator = pack("<4sIQI", b"PK\x06\x07", 0, len(body) + len(directory), 1)
        narrow = pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, FULL32, FULL32, 0)
        return bytes(body + directory) + end64 + locator + narrow
    numbers = (0, 0, count, count, len(directory), len(body), len(comment))
    return bytes(body + directory) + pack("<4s4H2IH", b"PK\x05\x06", *numbers) + comment


def _deflated(data: bytes) -> bytes:
    """As one stream; of many equal pieces only the first is compressed."""
    piece, count = data[:_PIECE], len(data) // _PIECE
    if piece * count != data:
        piece, count = data, 1
    engine = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = engine.compress(piece) + engine.flush(zlib.Z_FULL_FLUSH)
    return packed * count + engine.flush()


def torch_zip(
    data_pkl: bytes, storages: Mapping[str, bytes] | None = None, *more: Entry, root: str = "m"
) -> bytes:
    """A torch zip; by default its one storage holds four float32."""
    records = {"0": bytes(16)} if storages is None else storages
    entries = [Entry(f"{root}/data.pkl", data_pkl), Entry(f"{root}/byteorder", b"little")]
    entries += [Entry(f"{root}/data/{key}", data) for key, data in records.items()]
    return zip_file([*entries, Entry(f"{root}/version", b"3\n"), *more])


def torch_legacy(
    obj: bytes,
    keys: object = ("0",),
    records: Iterable[tuple[int, bytes]] = ((4, bytes(16)),),
    *,
    system: object = None,
    tail: bytes = b"",
) -> bytes:
    facts = {"protocol_version": 1001, "little_endian": True} if system is None else system
    listed = list(keys) if isinstance(keys, tuple) else keys
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, facts)]
    stored = b"".join(pack("<q", count) + data for count, data in records)
    return b"".join(head) + obj + pickle.dumps(listed, 2) + stored + tail


def safetensors(header: object, data: bytes = b"", *, size: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return pack("<Q", len(raw) if size is None else size) + raw + data


def entry(
    shape: object = (4,), offsets: object = (0, 16), dtype: object = "F32"
) -> dict[str, object]:
    """A safetensors header entry, by default of four float32."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def npy(
    data: bytes = bytes(16),
    *,
    descr: str = "'<f4'",
    shape: str = "(4,)",
    fortran: str = "False",
    version: int = 1,
    header: bytes | None = None,
) -> bytes:
    literal = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    raw = literal if header is None else header
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + pack(width, len(raw)) + raw + data


def npz(members: Mapping[str, bytes]) -> bytes:
    return zip_file([Entry(f"{name}.npy", data) for name, data in members.items()])
