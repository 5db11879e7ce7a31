"""What real files do that a reader must get right: views, types, byte orders, laziness, paths."""

from __future__ import annotations

import os
import pickle
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import weights_io
from tests.weights_io.forge import (
    ORDERED,
    Entry,
    entry,
    npy,
    npz,
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
from tests.weights_io.refusal import assert_refused, read_everything

COUNTING = np.arange(12, dtype=np.float32)


def read_one(data: bytes, name: str = "w") -> NDArray[Any]:
    with weights_io.open_weights(BytesIO(data)) as archive:
        assert isinstance(archive.root, dict)
        array: NDArray[Any] = archive.root[name].read()
    assert array.flags.c_contiguous
    assert array.flags.writeable
    return array


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    """A shape, strides, an offset, and a storage just large enough."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    strides = tuple(draw(st.integers(0, 9)) for _ in shape)
    offset = draw(st.integers(0, 9))
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    extent = 0 if 0 in shape else last + 1
    return shape, strides, offset, offset + extent + draw(st.integers(0, 3))


@settings(deadline=None)  # a shared machine can stall on a file
@given(view=views(), legacy=st.booleans(), seed=st.integers(0, 1 << 32))
def test_any_view_reads_as_numpy_strides_it(
    view: tuple[tuple[int, ...], tuple[int, ...], int, int], legacy: bool, seed: int
) -> None:
    shape, strides, offset, count = view
    values = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    pkl = state_dict({"w": tensor(shape, strides, offset=offset, of=storage(count, legacy=legacy))})
    raw = values.tobytes()
    data = torch_legacy(pkl, records=[(count, raw)]) if legacy else torch_zip(pkl, {"0": raw})
    steps = tuple(4 * step for step in strides)
    wanted = np.lib.stride_tricks.as_strided(values[offset:], shape, steps)
    if 0 in shape:
        wanted = np.zeros(shape, np.float32)
    np.testing.assert_array_equal(read_one(data), wanted, strict=True)


def test_a_shared_storage_is_read_in_parts_and_checked_once() -> None:
    of = storage(12)
    pkl = state_dict({"a": tensor([4], of=of), "w": tensor([3], [2], offset=5, of=of)})
    good = torch_zip(pkl, {"0": COUNTING.tobytes()})
    np.testing.assert_array_equal(read_one(good), [5, 7, 9])
    raw = bytearray(good)
    raw[good.index(COUNTING.tobytes()) + 47] ^= 1  # the last byte, which neither tensor uses
    for name in ("a", "w"):
        with pytest.raises(weights_io.WeightsFileError, match="checksum"):
            read_one(bytes(raw), name)


@pytest.mark.parametrize("negate", [True, False])
def test_the_lazy_negation_of_torch_is_honoured(negate: bool) -> None:
    bit = b"\x88" if negate else b"\x89"
    pkl = state_dict({"w": tensor([12], of=storage(12), extra=b"}" + text("neg") + bit + b"s")})
    read = read_one(torch_zip(pkl, {"0": COUNTING.tobytes()}))
    np.testing.assert_array_equal(read, -COUNTING if negate else COUNTING)


def test_a_negated_bool_is_refused() -> None:
    extra = b"}" + text("neg") + b"\x88s"
    pkl = state_dict({"w": tensor([4], of=storage(4, kind="BoolStorage"), extra=extra)})
    assert_refused(torch_zip(pkl, {"0": bytes(4)}), "negated tensor of type bool")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("Float", "f4"),
        ("Double", "f8"),
        ("Half", "f2"),
        ("Long", "i8"),
        ("Int", "i4"),
        ("Short", "i2"),
    ],
)
def test_a_big_endian_torch_zip_is_read_right(kind: str, code: str) -> None:
    wanted = np.array([1, -2, 3], code)
    pkl = state_dict({"w": tensor([3], of=storage(3, kind=f"{kind}Storage"))})
    raw = wanted.astype(f">{code}").tobytes()
    entries = [Entry("m/data.pkl", pkl), Entry("m/byteorder", b"big"), Entry("m/data/0", raw)]
    np.testing.assert_array_equal(read_one(zip_file(entries)), wanted, strict=True)


def test_a_big_endian_bfloat16_is_read_right() -> None:
    pkl = state_dict({"w": tensor([2], of=storage(2, kind="BFloat16Storage"))})
    entries = [
        Entry("m/data.pkl", pkl),
        Entry("m/byteorder", b"big"),
        Entry("m/data/0", b"\x3f\x80\xc0\x00"),
    ]
    np.testing.assert_array_equal(
        read_one(zip_file(entries)), np.array([1, -2], np.float32), strict=True
    )


@pytest.mark.parametrize(
    "make", [torch_zip, lambda pkl, data: safetensors({"w": entry([4], [0, 4], "BOOL")}, data["0"])]
)
def test_a_bool_byte_other_than_one_is_true(make: Any) -> None:
    pkl = state_dict({"w": tensor([4], of=storage(4, kind="BoolStorage"))})
    read = read_one(make(pkl, {"0": b"\x00\x01\x02\xff"}))
    assert read.tolist() == [False, True, True, True]
    assert read.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_a_repacked_torch_zip_with_folders_is_read() -> None:
    """macOS unpacks a .pth by itself; people pack it again, deflated and with folder entries."""
    pkl = state_dict({"w": tensor([12], of=storage(12))})
    entries = [
        Entry("m/", b""),
        Entry("m/data.pkl", pkl, deflate=True),
        Entry("m/data/", b""),
        Entry("m/data/0", COUNTING.tobytes(), deflate=True),
        Entry("m/version", b"3\n"),
    ]
    np.testing.assert_array_equal(read_one(zip_file(entries)), COUNTING)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("deflate", [True, False])
def test_npy_headers_of_every_version_are_read(version: int, deflate: bool) -> None:
    raw = npy(COUNTING.tobytes(), shape="(3, 4)", fortran="True", version=version)
    data = zip_file([Entry("w.npy", raw, deflate=deflate)])
    np.testing.assert_array_equal(read_one(data), COUNTING.reshape(4, 3).T, strict=True)


@pytest.mark.parametrize("descr", ["'>f8'", '"<f8"', "'=f8'", "'f8'"])
def test_npy_byte_orders_and_quotes_are_read(descr: str) -> None:
    order = ">" if ">" in descr else "<"
    raw = npy(np.array([1.5, -2.0], f"{order}f8").tobytes(), descr=descr, shape="(2,)")
    np.testing.assert_array_equal(read_one(npz({"w": raw})), [1.5, -2.0], strict=True)


@pytest.mark.parametrize("compressed", [True, False])
def test_what_numpy_writes_is_read(tmp_path: Path, compressed: bool) -> None:
    arrays = {"w": COUNTING, "f": np.asfortranarray(COUNTING.reshape(3, 4)), "n": np.array(True)}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
    with weights_io.open_weights(tmp_path / "w.npz") as archive:
        assert isinstance(archive.root, dict)
        for name, wanted in arrays.items():
            np.testing.assert_array_equal(archive.root[name].read(), wanted, strict=True)


@pytest.mark.parametrize("size", [640, 896, 1152, 1408])
def test_a_safetensors_header_size_that_spells_a_pickle_is_read(size: int) -> None:
    """640 is 0x280: such a file starts with the bytes of a pickle of protocol 2."""
    header = b'{"w":{"dtype":"F32","shape":[12],"data_offsets":[0,48]}}'.ljust(size)
    data = safetensors(header, COUNTING.tobytes())
    assert data[0] == 0x80
    np.testing.assert_array_equal(read_one(data), COUNTING)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_is_read_in_every_protocol(protocol: int) -> None:
    rng = np.random.default_rng(0)
    arrays: OrderedDict[str, NDArray[Any]] = OrderedDict(
        large=rng.normal(size=(300, 70)).astype(np.float32),
        fortran=np.asfortranarray(rng.normal(size=(3, 4))),
        big=np.arange(5, dtype=">i4"),
        half=rng.normal(size=7).astype(np.float16),
        empty=np.zeros((0, 3)),
        scalar_array=np.array(2.5),
        flags=np.array([True, False]),
    )
    data = pickle.dumps({"state": arrays, "step": np.int64(9), "loss": np.float32(0.5)}, protocol)
    with weights_io.open_weights(BytesIO(data)) as archive:
        assert archive.container == "pickle"
        root: Any = archive.root
        assert (root["step"], root["loss"]) == (9, 0.5)
        for name, wanted in arrays.items():
            got = root["state"][name].read()
            np.testing.assert_array_equal(
                got, wanted.astype(wanted.dtype.newbyteorder("=")), strict=True
            )
            assert got.flags.writeable
            assert got.flags.c_contiguous


def test_inert_stand_ins_of_a_training_checkpoint() -> None:
    fields = ("__immutable__", "__deprecated_keys__", "__renamed_keys__", "__new_allowed__")
    keeping = b"}(" + b"".join(text(field) + b"\x89" for field in fields) + b"u"
    config = b"cyacs.config\nCfgNode\n)\x81" + text("lr") + b"G?\xb9\x99\x99\x99\x99\x99\x9as"
    data = torch_zip(
        state_dict(
            {
                "config": config + keeping + b"b",
                "args": b"cargparse\nNamespace\n)\x81}" + text("wd") + b"Nsb",
                "seen": b"c__builtin__\nset\n](" + text("a") + text("b") + b"e\x85R",
                "device": b"ctorch\ndevice\n" + text("cuda") + b"K\x01\x86R",
                "kind": b"ctorch\nbfloat16\n",
                "size": b"ctorch\nSize\nK\x02K\x03\x86\x85R",
                "state": b"ccollections\ndefaultdict\nc__builtin__\ndict\n\x85RK\x00}s",
                "long": text("x" * 5000),
                "metadata": ORDERED + b"}" + text("_metadata") + ORDERED + b"sb",
            }
        )
    )
    assert read_everything(data) == {
        "config": weights_io.Inert("yacs.config.CfgNode", {"lr": 0.1}),
        "args": weights_io.Inert("argparse.Namespace", {"wd": None}),
        "seen": {"a", "b"},
        "device": weights_io.Inert("torch.device", "cuda:1"),
        "kind": weights_io.Inert("torch.dtype", "bfloat16"),
        "size": (2, 3),
        "state": {0: {}},
        "long": "x" * 5000,
        "metadata": {},
    }


def test_the_tree_is_of_plain_types_only() -> None:
    root: Any = read_everything(torch_zip(state_dict({"a": ORDERED, "w": tensor()})))
    assert type(root) is dict
    assert type(root["a"]) is dict


def test_a_tensor_under_two_names_is_one() -> None:
    body = ORDERED + b"(" + text("a") + tensor() + b"q\x09" + text("b") + b"h\x09u"
    with weights_io.open_weights(BytesIO(torch_zip(proto(body)))) as archive:
        root: Any = archive.root
        assert root["a"] is root["b"]


def test_arrays_can_be_read_by_many_threads(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.full(5000, i, np.float32) for i in range(40)}
    weights_io.save_weights(tmp_path / "w", arrays, container="torch-zip")
    with weights_io.open_weights(tmp_path / "w") as archive, ThreadPoolExecutor(8) as pool:
        root: Any = archive.root
        for i, got in enumerate(pool.map(lambda lazy: lazy.read(), root.values())):
            np.testing.assert_array_equal(got, arrays[f"w{i}"])


def test_reading_from_a_closed_archive_is_reported(tmp_path: Path) -> None:
    weights_io.save_weights(tmp_path / "w", {"w": COUNTING}, container="npz")
    with weights_io.open_weights(tmp_path / "w") as archive:
        lazy = archive.root["w"]  # type: ignore[index]
    with pytest.raises(weights_io.WeightsFileError, match="cannot be read"):
        lazy.read()


def test_a_file_that_shrinks_while_it_is_open_is_reported(tmp_path: Path) -> None:
    weights_io.save_weights(tmp_path / "w", {"w": COUNTING}, container="safetensors")
    with weights_io.open_weights(tmp_path / "w") as archive:
        os.truncate(tmp_path / "w", 100)
        with pytest.raises(weights_io.WeightsFileError, match="ends too early"):
            archive.root["w"].read()  # type: ignore[index]


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"nothing")
    for _ in range(3):  # an open file would raise a ResourceWarning, which is an error here
        with pytest.raises(weights_io.WeightsFileError):
            weights_io.open_weights(path)


@pytest.mark.parametrize("name", ["missing.pth", ".", "nul\0", "\x1b[2J"])
def test_a_path_that_is_no_file_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(weights_io.WeightsFileError) as caught:
        weights_io.open_weights(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            weights_io.open_weights(tmp_path / "fifo")
        except weights_io.WeightsFileError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert len(errors) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.touch(mode=0)
    with pytest.raises(weights_io.WeightsFileError, match="Permission denied"):
        weights_io.open_weights(path)


def test_sanitize_leaves_nothing_that_moves_a_terminal() -> None:
    evil = "a\x1b[2J\r\n\u202e\u200b\ud800\x9b31m"
    assert weights_io.sanitize(evil) == r"a\x1b[2J\r\n\u202e\u200b\ud800\x9b31m"
    assert len(weights_io.sanitize("x" * 10_000)) == 120
    assert weights_io.sanitize("größe") == "größe"
