"""Right files with what no weights need: arrays of other types, no checksums, a zip's comment."""

from __future__ import annotations

import json
from io import BytesIO
from struct import pack
from typing import Any

import numpy as np
import pytest

import weights_io
from tests.weights_io.forge import Entry, proto, storage, tensor, text, torch_zip, zip_file
from tests.weights_io.refusal import charged, read_everything

VALUES = np.arange(4, dtype="<f4")
OTHERS: dict[str, Any] = {
    "u2": np.zeros(3, ">u2"),
    "u4": np.uint32(7),
    "u8": np.zeros((2, 0), np.uint64),
    "c8": np.zeros((2, 2), np.complex64),
    "c16": np.zeros(2, np.complex128),
    "f16": np.zeros(2, np.longdouble),
    "U": np.array(["Adam", "no"]),
    "S": np.array([b"Adam"]),
    "M8": np.array(["2026-11-30"], "M8[D]"),
    "m8": np.zeros(2, "m8"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_npz_is_read_beside_an_array_of_another_type(other: str) -> None:
    file = BytesIO()
    np.savez(file, w=VALUES, step=OTHERS[other])
    _assert_stepped_over(file.getvalue(), "numpy.ndarray of ")


@pytest.mark.parametrize(
    ("dtype", "size"), [("U16", 6), ("U32", 12), ("U64", 24), ("C64", 24), ("F8_E4M3", 3)]
)
def test_a_safetensors_file_is_read_beside_an_array_of_another_type(dtype: str, size: int) -> None:
    entries = {
        "step": {"dtype": dtype, "shape": [3], "data_offsets": [0, size]},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [size, size + 16]},
    }
    header = json.dumps(entries).encode()
    data = pack("<Q", len(header)) + header + bytes(size) + VALUES.tobytes()
    _assert_stepped_over(data, f"safetensors {dtype}")


def _assert_stepped_over(data: bytes, type_name: str) -> None:
    with weights_io.open_weights(BytesIO(data)) as archive:
        root: Any = archive.root
        assert root.keys() == {"w", "step"}
        assert np.array_equal(root["w"].read(), VALUES)
        assert type(root["step"]) is weights_io.Inert
        assert root["step"].type_name.startswith(type_name)


def _without_checksums(but: str = "") -> bytes:
    """As torch writes it after `set_crc32_options(False)`, but for one member's checksum."""
    members = {
        "m/data.pkl": proto(tensor()),
        "m/data/0": VALUES.tobytes(),
        "m/version": b"3\n",
    }
    return zip_file(
        Entry(name, data, crc=None if name == but else 0) for name, data in members.items()
    )


@pytest.mark.parametrize("bits", [b"}" + text("conj") + b"\x88s", b"N"], ids=["conj", "none"])
def test_a_torch_file_is_read_beside_complex_numbers_conjugated_or_not(bits: bytes) -> None:
    """As ``tensor.conj()`` is saved: with a bit that says so, and the values as they were."""
    other = tensor(of=storage(kind="ComplexFloatStorage", key="1"), extra=bits)
    body = b"}(" + text("w") + tensor() + text("z") + other + b"u"
    data = torch_zip(proto(body), {"0": VALUES.tobytes(), "1": bytes(32)})
    with weights_io.open_weights(BytesIO(data)) as archive:
        root: Any = archive.root
        assert (root["w"].read() == VALUES).all()
        assert root["z"].type_name == "torch.ComplexFloatStorage"


def test_a_torch_file_without_any_checksum_is_read_and_that_is_said() -> None:
    with weights_io.open_weights(BytesIO(_without_checksums())) as archive:
        root: Any = archive.root
        assert root.read().size == 4
        assert any("without checksums" in note for note in archive.notes)


@pytest.mark.parametrize("member", ["m/data.pkl", "m/data/0", "m/version"])
def test_one_checksum_is_enough_for_all_to_be_verified(member: str) -> None:
    with pytest.raises(weights_io.WeightsFileError, match="checksum of"):
        read_everything(_without_checksums(but=member))


def test_a_zip_with_a_comment_is_read() -> None:
    members = [Entry("m/data.pkl", proto(tensor())), Entry("m/data/0", VALUES.tobytes())]
    for comment in (b"x", b"packed by hand", bytes(0xFFFF)):
        with weights_io.open_weights(BytesIO(zip_file(members, comment=comment))) as archive:
            root: Any = archive.root
            assert root.read().size == 4


PIECES = {
    "lists of five texts": (b"](" + b"\x8c\x01a" * 5 + b"e", 1.0),
    "sets of five texts": (b"\x8f(" + b"\x8c\x01a" * 5 + b"\x90", 1.9),
    "frozen sets of five texts": (b"(" + b"\x8c\x01a" * 5 + b"\x91", 1.9),
}


def test_sets_and_new_names_are_charged_more_than_lists_as_they_take_longer() -> None:
    def work(pieces: list[bytes]) -> int:
        with charged() as budgets:
            data = torch_zip(proto(b"](" + b"".join(pieces) + b"e", 4))
            weights_io.open_weights(BytesIO(data)).close()
        return budgets[0].spent["work"]

    nothing = work([])
    each = {name: (work([piece] * 100) - nothing) / 100 for name, (piece, _) in PIECES.items()}
    for name, (_, least) in PIECES.items():
        assert each[name] >= least * each["lists of five texts"]
    known = work([b"cf\nB\n"] * 100) - nothing
    assert work([b"cf\nB%d\n" % i for i in range(100)]) - nothing >= 3 * known
