"""A small file of every container, cut at every byte and with every byte damaged."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import weights_io
from tests.weights_io.refusal import read_everything

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
CONTAINERS: list[str] = ["npz", "safetensors", "torch-zip", "torch-legacy", "pickle"]


@cache
def small_file(container: weights_io.Container) -> bytes:
    if container not in ("npz", "safetensors", "torch-zip", "torch-legacy"):
        return pickle.dumps(ARRAYS, 4)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "small"
        weights_io.save_weights(path, ARRAYS, container=container)
        return path.read_bytes()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_cut_at_any_byte_is_refused(container: weights_io.Container) -> None:
    data = small_file(container)
    read_everything(data)
    for length in range(len(data)):
        with pytest.raises(weights_io.WeightsFileError) as caught:
            read_everything(data[:length])
        assert str(caught.value).isprintable(), length


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_a_file_with_any_byte_damaged_gives_our_errors_only(
    container: weights_io.Container, change: int
) -> None:
    data = bytearray(small_file(container))
    for position in range(len(data)):
        data[position] ^= change
        try:
            read_everything(bytes(data))
        except weights_io.ReportedError as error:
            assert str(error).isprintable()  # noqa: PT017 -- success is fine here as well
        data[position] ^= change


@pytest.mark.parametrize("container", ["npz", "torch-zip"])
def test_a_zip_with_damaged_data_is_never_read(container: weights_io.Container) -> None:
    data = bytearray(small_file(container))
    start = bytes(data).index(ARRAYS["a.weight"].tobytes())
    for position in range(start, start + ARRAYS["a.weight"].nbytes):
        data[position] ^= 0x10
        with pytest.raises(weights_io.WeightsFileError, match="checksum"):
            read_everything(bytes(data))
        data[position] ^= 0x10
