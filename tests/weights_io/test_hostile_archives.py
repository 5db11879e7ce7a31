"""Zip, npz, safetensors and legacy files that are broken, that lie or that hide something."""

from __future__ import annotations

import io
from collections.abc import Callable
from struct import pack

import pytest

import weights_io
from tests.weights_io.forge import (
    Entry,
    entry,
    npy,
    npz,
    proto,
    safetensors,
    state_dict,
    storage,
    tensor,
    torch_legacy,
    torch_zip,
    zip_file,
)
from tests.weights_io.refusal import assert_refused, read_everything

DATA = bytes(16)
COUNTING = bytes(range(16))
GOOD_PKL = state_dict({"w": tensor()})
GOOD_ZIP = torch_zip(GOOD_PKL)
GOOD_LEGACY_PKL = state_dict({"w": tensor(of=storage(legacy=True))})
PKL = Entry("m/data.pkl", GOOD_PKL)
DATA_0 = Entry("m/data/0", DATA)
GOOD_ZIP64 = zip_file([PKL, DATA_0], zip64=True)


def overlapping() -> bytes:
    """Two directory entries for the same bytes: Fifield's quoted-overlap bomb in its smallest."""
    return zip_file([Entry("a.npy", npy()), Entry("b.npy", npy(), offset=0)])


def patched(data: bytes, at: int, value: bytes) -> bytes:
    at %= len(data)
    return data[:at] + value + data[at + len(value) :]


ZIPS: dict[str, tuple[bytes, str]] = {
    "a prefix, as in a polyglot": (b"\x00" * 16 + GOOD_ZIP, "not a weights file"),
    "a pickle before the zip": (proto(b"}") + GOOD_ZIP, "follow its end"),
    "a tail": (GOOD_ZIP + b"\x00", "does not end with its end record"),
    "a comment that is cut": (
        zip_file([PKL, DATA_0], comment=b"xy")[:-1],
        "does not end with its end record",
    ),
    "a comment and a tail": (
        zip_file([PKL, DATA_0], comment=b"x") + b"\x00",
        "does not end with its end record",
    ),
    "a comment that is an end record": (
        zip_file([PKL, DATA_0], comment=GOOD_ZIP[-22:]),
        "not where its end record says",
    ),
    "two zips in one": (GOOD_ZIP + GOOD_ZIP, "not where its end record says|hides bytes"),
    "a gap between members": (zip_file([PKL, DATA_0], gap=b"PK"), "hides bytes"),
    "overlapping members": (overlapping(), "hides bytes or its members overlap"),
    "a first member not at the start": (
        zip_file([Entry("m/data.pkl", GOOD_PKL, offset=4), DATA_0]),
        "hides bytes",
    ),
    "a duplicate name": (zip_file([PKL, DATA_0, PKL]), "two members called m/data.pkl"),
    "a name that climbs": (zip_file([PKL, Entry("m/../../x", b"")]), "leaves the archive"),
    "an absolute name": (zip_file([Entry("/etc/passwd", b""), PKL]), "leaves the archive"),
    "a Windows name": (zip_file([Entry("m\\..\\x", b""), PKL]), "leaves the archive"),
    "a name with a NUL": (zip_file([Entry("m/a\0b", b""), PKL]), "leaves the archive"),
    "an empty name": (zip_file([Entry("", b""), PKL]), "leaves the archive"),
    "a name with an escape": (zip_file([PKL, DATA_0, Entry("m/\x1b[2J", b"")]), "no torch writes"),
    "a name that is no text": (
        zip_file([PKL, Entry("m/é", b"")]).replace("é".encode(), b"\xff\xfe"),
        "a name that is no text",
    ),
    "an encrypted member": (zip_file([Entry("m/data.pkl", GOOD_PKL, flags=1)]), "encrypted"),
    "a split archive": (patched(GOOD_ZIP, -18, b"\x01"), "split over several disks"),
    "more entries than there are": (
        patched(GOOD_ZIP, -14, b"\x09\x00\x09\x00"),
        "directory is cut short|directory is damaged",
    ),
    "fewer entries than there are": (
        patched(GOOD_ZIP, -14, b"\x01\x00\x01\x00"),
        "more than its entries",
    ),
    "a directory elsewhere": (patched(GOOD_ZIP, -6, b"\x00"), "not where its end record says"),
    "a packing that is unknown": (
        GOOD_ZIP.replace(b"\x00\x00\x00\x00\x21\x00", b"\x0c\x00\x00\x00\x21\x00"),
        "unknown method",
    ),
    "a wrong checksum of the pickle": (
        zip_file([Entry("m/data.pkl", GOOD_PKL, crc=1), DATA_0]),
        "checksum of m/data.pkl is wrong",
    ),
    "a wrong checksum of a storage": (
        zip_file([PKL, Entry("m/data/0", DATA, crc=1)]),
        "checksum of m/data/0 is wrong",
    ),
    "a flipped bit in a storage": (
        torch_zip(GOOD_PKL, {"0": COUNTING}).replace(COUNTING, b"\x80" + COUNTING[1:]),
        "checksum of m/data/0 is wrong",
    ),
    "a size that lies": (
        zip_file([PKL, Entry("m/data/0", DATA, size=12)]),
        "two sizes differ",
    ),
    "a deflated size that lies": (
        zip_file([PKL, Entry("m/data/0", bytes(12), deflate=True, size=16)]),
        "does not decompress",
    ),
    "a deflated member that is none": (
        GOOD_ZIP.replace(b"\x00\x00\x00\x00\x21\x00", b"\x08\x00\x00\x00\x21\x00"),
        "does not decompress|checksum",
    ),
    "a zip bomb": (
        zip_file(
            [
                Entry("m/data.pkl", state_dict({"w": tensor((75 << 20,), of=storage(75 << 20))})),
                Entry("m/data/0", bytes(300 << 20), deflate=True),
            ]
        ),
        "ask for too much memory",
    ),
    "a zip bomb that lies about its size": (
        zip_file([PKL, Entry("m/data/0", bytes(30 << 20), deflate=True, size=16)]),
        "does not decompress",
    ),
    "a pickle bomb": (
        zip_file([Entry("m/data.pkl", bytes(80 << 20), deflate=True)]),
        "pickle is too large",
    ),
    "a zip64 end record elsewhere": (
        patched(GOOD_ZIP64, -22 - 12, b"\x01"),
        "not where its locator says",
    ),
    "a zip64 end record that is damaged": (
        GOOD_ZIP64.replace(b"PK\x06\x06", b"PK\x06\x05"),
        "zip64 end record is damaged",
    ),
    "a zip64 archive on two disks": (patched(GOOD_ZIP64, -22 - 4, b"\x02"), "where its locator"),
    "two end records that disagree": (
        patched(GOOD_ZIP64, -14, b"\x01\x00\x01\x00"),
        "disagree",
    ),
    "a zip64 directory of exabytes": (
        patched(GOOD_ZIP64, -22 - 20 - 16, b"\xff" * 7),
        "not where",
    ),
    "zip64 entries of exabytes": (
        patched(GOOD_ZIP64, -22 - 20 - 32, b"\xff" * 16),
        "too many members",
    ),
    "a zip64 size of exabytes": (
        GOOD_ZIP64.replace(pack("<2Q", 16, 16), pack("<2Q", 1 << 62, 1 << 62)),
        "hides bytes|headers disagree",
    ),
    "a zip64 size that is missing": (
        GOOD_ZIP64.replace(b"\x01\x00\x18\x00", b"\x02\x00\x18\x00"),
        "hides bytes|headers disagree|ends too early",
    ),
    "two roots": (zip_file([PKL, Entry("n/data/0", DATA)]), "more than one top-level folder"),
    "a nested root": (zip_file([Entry("a/b/data.pkl", GOOD_PKL)]), "without data.pkl"),
    "TorchScript": (
        torch_zip(GOOD_PKL, None, Entry("m/constants.pkl", b""), Entry("m/code/a.py", b"")),
        "TorchScript",
    ),
    "another zip": (zip_file([Entry("word/document.xml", b"<w/>")]), "holds no weights"),
    "an empty zip": (zip_file([]), "an empty zip archive"),
    "an unknown byte order": (
        zip_file([PKL, DATA_0, Entry("m/byteorder", b"middle")]),
        "unknown byte order",
    ),
    "local headers only": (GOOD_ZIP[: GOOD_ZIP.index(b"PK\x01\x02")], "end with its end record"),
}

LEGACIES: dict[str, tuple[bytes, str]] = {
    "another magic": (
        torch_legacy(GOOD_LEGACY_PKL).replace(b"\x6c\xfc\x9c", b"\x6c\xfc\x9d"),
        "follow its end",
    ),
    "another version": (
        torch_legacy(GOOD_LEGACY_PKL).replace(b"M\xe9\x03.", b"M\xea\x03."),
        "not a legacy torch file",
    ),
    "a big-endian writer": (
        torch_legacy(GOOD_LEGACY_PKL, system={"little_endian": False}),
        "little-endian machine",
    ),
    "a missing key": (torch_legacy(GOOD_LEGACY_PKL, ()), "not the ones that the tensors use"),
    "a key too many": (torch_legacy(GOOD_LEGACY_PKL, ("0", "1")), "not the ones"),
    "a key twice": (torch_legacy(GOOD_LEGACY_PKL, ("0", "0")), "not the ones"),
    "keys that are no strings": (torch_legacy(GOOD_LEGACY_PKL, (0,)), "no list of strings"),
    "keys that are no list": (torch_legacy(GOOD_LEGACY_PKL, {"0": 1}), "no list of strings"),
    "another count": (torch_legacy(GOOD_LEGACY_PKL, records=[(3, DATA)]), "wrong size"),
    "a negative count": (torch_legacy(GOOD_LEGACY_PKL, records=[(-4, DATA)]), "wrong size"),
    "a huge count": (
        torch_legacy(
            state_dict({"w": tensor(of=storage(1 << 40, legacy=True))}), records=[(1 << 40, b"")]
        ),
        "ends too early",
    ),
    "missing data": (torch_legacy(GOOD_LEGACY_PKL, records=[(4, DATA[:15])]), "ends too early"),
    "a tail": (torch_legacy(GOOD_LEGACY_PKL, tail=b"\x00"), "bytes follow the last storage"),
    "a storage view": (
        torch_legacy(GOOD_LEGACY_PKL.replace(b"NtQ", b"(K\x00ttQ")),
        "cannot have",
    ),
    "ids as in a zip": (torch_legacy(GOOD_PKL), "no torch storage"),
}

HEADERS: dict[str, tuple[bytes, str]] = {
    "a header longer than the file": (safetensors({}, size=1 << 20), "ends too early"),
    "a header of the largest size": (
        safetensors(b"{", b" " * (9 << 20), size=9 << 20),
        "header asks for too much memory",
    ),
    "a header of very many entries": (
        safetensors(b"{" + b",".join(b'"%d":{}' % i for i in range(150_000)) + b"}"),
        "other fields",
    ),
    "very many names, the last one twice": (
        safetensors(b"{" + b",".join(b'"%d":1' % (i // 2 * 2) for i in range(150_000)) + b"}"),
        "comes twice",
    ),
    "a header cut short": (safetensors({"w": entry()}, DATA, size=20), "no JSON"),
    "no JSON": (safetensors(b"{nope}"), "no JSON"),
    "JSON that is nested": (safetensors(b'{"a":' + b"[" * 100_000), "no JSON"),
    "JSON with a tail": (safetensors(b"{}{}"), "no JSON"),
    "no UTF-8": (safetensors(b'{"\xff": 1}'), "no JSON"),
    "a name twice": (
        safetensors(b'{"w": 1, "w": 2}'),
        "the key w comes twice",
    ),
    "a field twice": (
        safetensors(b'{"w": {"dtype": "F32", "dtype": "F32"}}'),
        "the key dtype comes twice",
    ),
    "an entry that is no table": (safetensors({"w": 1}), "other fields"),
    "a missing field": (safetensors({"w": {"dtype": "F32"}}), "other fields"),
    "a field too many": (safetensors({"w": {**entry(), "x": 1}}, DATA), "other fields"),
    "a dtype that is unknown": (safetensors({"w": entry(dtype="F80")}, DATA), "dtype"),
    "another dtype of the wrong size": (
        safetensors({"w": entry(dtype="F8_E4M3")}, DATA),
        "offsets that do not fit",
    ),
    "a dtype that is no text": (safetensors({"w": entry(dtype=["F32"])}, DATA), "dtype"),
    "a shape that is no list": (safetensors({"w": entry(4)}, DATA), "list of integers"),
    "a shape of floats": (safetensors(b'{"w": {"shape": [4.0]}}', DATA), "no integer"),
    "a shape of bools": (safetensors({"w": entry([True])}, DATA), "list of integers"),
    "NaN": (safetensors(b'{"w": NaN}'), "no integer"),
    "a negative size": (safetensors({"w": entry([-4])}, DATA), "negative size"),
    "a size that wraps": (safetensors({"w": entry([1 << 32] * 2)}, DATA), "too many elements"),
    "no element in too many": (
        safetensors({"w": entry([1 << 40, 1 << 40, 0], [0, 0])}),
        "too many elements",
    ),
    "an integer of a hundred digits": (safetensors(b'{"w": ' + b"9" * 100 + b"}"), "no JSON"),
    "an integer of a million digits": (safetensors(b'{"w": ' + b"9" * 1_000_000 + b"}"), "no JSON"),
    "three offsets": (safetensors({"w": entry(offsets=[0, 8, 16])}, DATA), "list of integers"),
    "offsets outside": (safetensors({"w": entry(offsets=[16, 32])}, DATA), "hole or overlaps"),
    "offsets that do not fit": (safetensors({"w": entry(offsets=[0, 12])}, DATA), "do not fit"),
    "offsets the wrong way": (safetensors({"w": entry(offsets=[16, 0])}, DATA), "do not fit"),
    "negative offsets": (safetensors({"w": entry(offsets=[-16, 0])}, DATA), "hole or overlaps"),
    "overlap": (safetensors({"v": entry(), "w": entry()}, DATA), "hole or overlaps"),
    "a hole": (safetensors({"w": entry(offsets=[4, 20])}, bytes(20)), "hole or overlaps"),
    "a tail": (safetensors({"w": entry()}, DATA + b"\x00"), "do not cover"),
    "data that is missing": (safetensors({"w": entry()}, DATA[:15]), "do not cover"),
    "metadata that is no text": (safetensors({"__metadata__": {"a": 1}}), "table of strings"),
    "metadata that is no table": (safetensors({"__metadata__": "a"}), "table of strings"),
    "a name with an escape": (safetensors({"\x1b[2Jw": 1}), "other fields"),
}

NPZS: dict[str, tuple[bytes, str]] = {
    "an object array": (npz({"w": npy(descr="'|O'")}), "object array"),
    "an object array of pickles": (npz({"w": npy(proto(b"}"), descr="'|O8'")}), "object array"),
    "a structured array": (npz({"w": npy(descr="[('a', '<f4')]")}), "no plain array"),
    "a header that calls": (npz({"w": npy(shape="(__import__('os'),)")}), "no plain array"),
    "a header that is nested": (npz({"w": npy(header=b"(" * 4000)}), "no plain array"),
    "a dtype that is unknown": (npz({"w": npy(descr="'<c9'")}), "dtype that is not read"),
    "another dtype of the wrong size": (npz({"w": npy(descr="'<c8'")}), "wrong size"),
    "text of the wrong size": (npz({"w": npy(descr="'<U2'")}), "wrong size"),
    "a negative size": (npz({"w": npy(shape="(-4,)")}), "no plain array"),
    "a size too large": (npz({"w": npy(shape="(5,)")}), "wrong size"),
    "a size too small": (npz({"w": npy(shape="(3,)")}), "wrong size"),
    "a size that wraps": (npz({"w": npy(shape=f"({1 << 32}, {1 << 32})")}), "too many elements"),
    "digits without end": (npz({"w": npy(shape=f"({'9' * 3000},)")}), "damaged shape"),
    "no element in too many": (
        npz({"w": npy(b"", shape=f"({1 << 40}, {1 << 40}, 0)")}),
        "too many elements",
    ),
    "a damaged shape": (npz({"w": npy(shape="(4 4,)")}), "damaged shape"),
    "another magic": (npz({"w": b"\x93NUMPX\x01\x00" + bytes(200)}), "no .npy file"),
    "another version": (npz({"w": npy(version=9)}), "no .npy file"),
    "an empty member": (npz({"w": b""}), "no .npy file"),
    "a header longer than its member": (
        npz({"w": b"\x93NUMPY\x01\x00\xff\x0e{"}),
        "ends inside its header",
    ),
    "a header too long": (npz({"w": npy(header=b"{" + b" " * 5000)}), "too large a header"),
    "a member that is no array": (
        zip_file([Entry("a.npy", npy()), Entry("run.py", b"")]),
        "holds no weights",
    ),
    "a checksum that is wrong": (zip_file([Entry("w.npy", npy(), crc=1)]), "checksum of w.npy"),
    "a bomb": (
        zip_file([Entry("w.npy", npy(bytes(99 << 20), shape=f"({99 << 18},)"), deflate=True)]),
        "ask for too much memory",
    ),
    "metadata that is no text": (npz({"__metadata__": npy()}), "no text"),
    "metadata that is no JSON": (
        npz({"__metadata__": npy("nope".encode("utf-32-le"), descr="'<U4'", shape="()")}),
        "no JSON",
    ),
    "metadata of lone surrogates": (
        npz({"__metadata__": npy(pack("<I", 0xD800), descr="'<U1'", shape="()")}),
        "no text",
    ),
    "metadata of the wrong size": (
        npz({"__metadata__": npy(bytes(4), descr="'<U9'", shape="()")}),
        "wrong size",
    ),
}


TABLES: dict[str, dict[str, tuple[bytes, str]]] = {
    "zip": ZIPS,
    "legacy": LEGACIES,
    "safetensors": HEADERS,
    "npz": NPZS,
}
CASES = [(table, case) for table, cases in TABLES.items() for case in cases]


@pytest.mark.parametrize(("table", "case"), CASES)
def test_a_bad_file_is_refused_in_one_line(table: str, case: str) -> None:
    data, match = TABLES[table][case]
    assert_refused(data, match)


@pytest.mark.parametrize(
    "good",
    [
        GOOD_ZIP,
        GOOD_ZIP64,
        torch_legacy(GOOD_LEGACY_PKL),
        safetensors({"w": entry()}, DATA),
        npz({"w": npy()}),
    ],
)
def test_the_forged_files_are_good_before_they_are_broken(good: bytes) -> None:
    root = read_everything(good)
    assert isinstance(root, dict)
    assert list(root) == ["w"]


def test_limits_are_enforced_and_say_how_to_raise_them() -> None:
    tight = weights_io.Limits(work=100)
    data = safetensors({"v": entry(), "w": entry(offsets=[16, 32])}, bytes(32))
    with pytest.raises(weights_io.LimitError, match=r"raise weights_io\.Limits\.work"):
        weights_io.open_weights(io.BytesIO(data), tight)
    with weights_io.open_weights(io.BytesIO(data)) as archive:
        assert archive.container == "safetensors"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: GOOD_ZIP, "file_bytes"),
        (lambda: GOOD_ZIP, "header_bytes"),
        (lambda: GOOD_ZIP, "pickle_bytes"),
        (lambda: GOOD_ZIP, "work"),
        (lambda: GOOD_ZIP, "text_bytes"),
        (lambda: GOOD_ZIP, "elements"),
        (lambda: npz({"w": npy()}), "npy_header_bytes"),
    ],
)
def test_every_limit_is_looked_at(make: Callable[[], bytes], field: str) -> None:
    limits = weights_io.Limits(**{field: 1})
    with (
        pytest.raises(weights_io.ReportedError),
        weights_io.open_weights(io.BytesIO(make()), limits) as archive,
    ):
        del archive
