"""Our reader and writer against the safetensors library."""

from __future__ import annotations

from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest

import weights_io
from tests.weights_io.test_hostile_archives import HEADERS

safetensors = pytest.importorskip("safetensors")
numpy_api = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.peers

DTYPES = ["float16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]

# What we refuse and the library reads: a type we have no use for, and fields no version defines.
OURS_ALONE = {"a dtype that is unknown", "a field too many"}


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made = {dtype: rng.integers(0, 100, (3, 5)).astype(dtype) for dtype in DTYPES}
    return made | {"scalar": np.array(1.5), "empty": np.zeros((2, 0), np.float32)}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    wanted = arrays()
    numpy_api.save_file(wanted, tmp_path / "w", metadata={"format": "np"})
    with weights_io.open_weights(tmp_path / "w") as archive:
        root: Any = archive.root
        assert archive.metadata == {"format": "np"}
        assert set(root) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(root[name].read(), array, strict=True)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    wanted = arrays()
    weights_io.save_weights(
        tmp_path / "w", wanted, container="safetensors", metadata={"eps": "1e-5"}
    )
    loaded = numpy_api.load_file(tmp_path / "w")
    assert set(loaded) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)
    with safetensors.safe_open(tmp_path / "w", "np") as file:
        assert file.metadata() == {"eps": "1e-5"}


def test_the_library_reads_our_bfloat16(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch_api = pytest.importorskip("safetensors.torch")
    wanted = np.array([1, -2.5, np.inf], np.float32)
    spec = weights_io.ArraySpec("w", (3,), "bfloat16")
    weights_io.write_weights(tmp_path / "w", [spec], [wanted], container="safetensors")
    loaded = torch_api.load_file(tmp_path / "w")["w"]
    assert loaded.dtype == torch.bfloat16
    np.testing.assert_array_equal(loaded.float().numpy(), wanted)


@pytest.mark.parametrize("case", [case for case in HEADERS if case not in OURS_ALONE])
def test_the_library_refuses_the_lies_that_we_refuse(case: str) -> None:
    data, _ = HEADERS[case]
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)


def test_both_read_a_header_padded_with_spaces() -> None:
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   '
    data = pack("<Q", len(header)) + header + b"\x07"
    assert safetensors.deserialize(data)[0][0] == "w"
