"""What people pass by mistake: each is told for what it is, with what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest

import weights_io
from tests.weights_io.refusal import assert_refused


def _tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def _npy_alone() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "one byte": (b"\x80", "cut short"),
    "zeros": (bytes(4096), "not a weights file"),
    "a torch 0.1 tar": (_tar("storages"), "tar archive"),
    "a web page": (b"\n<!DOCTYPE html><html>404</html>", "web page"),
    "an XML error": (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "web page"),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="m" version="11">', "OpenVINO"),
    "OpenVINO without a declaration": (b'<net name="m" version="11">', "OpenVINO"),
    "ncnn": (b"7767517\n3 3\nInput in0 0 1 in0\n", r"ncnn network \(\.param\)"),
    "ncnn of Windows": (b"7767517\r\n3 3\r\n", r"ncnn network \(\.param\)"),
    "binary ncnn": (b"\x85\xdd\x76\x00" + bytes(32), "ncnn"),
    "TensorRT": (b"ftrt" + bytes(32), "TensorRT engine"),
    "an older TensorRT": (b"ptrt" + bytes(32), "TensorRT engine"),
    "RKNN": (b"RKNN" + bytes(32), "RKNN"),
    "a library": (b"\x7fELF" + bytes(32), "a program or library"),
    "a refusal": (b"Invalid username or password.", "text that begins 'Invalid username"),
    "gzip": (gzip.compress(b"weights"), "gzip"),
    "bzip2": (bz2.compress(b"weights"), "bzip2"),
    "xz": (lzma.compress(b"weights"), "xz file"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(32), "7-Zip"),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(32), "Zstandard"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "a Git LFS pointer of an older kind": (b"version https://git-lfs.github.com/spec", "lfs pull"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(32), "HDF5"),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3" + bytes(32), "TensorFlow Lite"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x032.0:", "ONNX"),
    "GGUF": (b"GGUF" + bytes(32), "GGUF"),
    "a single npy": (_npy_alone(), "single .npy"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(32), "PNG"),
    "text": (b"0.1 0.2 0.3\n", "not a weights file"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_weights_file_is_named(case: str) -> None:
    data, match = FOREIGN[case]
    assert_refused(data, match)


# Bytes that say nothing; the name says what they most likely are.
BARE = bytes(range(2, 66))
NAMED = {
    "m.bin": "bare weights without names",
    "m.engine": "TensorRT engine",
    "m.plan": "TensorRT engine",
    "m.mnn": "MNN",
    "m.mlmodel": "Core ML",
    "m.caffemodel": "Caffe model",
    "m.pb": "TensorFlow",
    "m.pdiparams": "PaddlePaddle",
    "m.h5": "damaged",
    "m.pth": "not a weights file",
    "bin": "not a weights file",
}


@pytest.mark.parametrize("name", NAMED)
def test_bytes_that_say_nothing_are_named_by_their_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BARE)
    with pytest.raises(weights_io.WeightsFileError, match=NAMED[name]):
        weights_io.open_weights(tmp_path / name)


def test_a_protocol_buffer_is_told_by_its_suffix_first(tmp_path: Path) -> None:
    (tmp_path / "m.mlmodel").write_bytes(b"\x08\x04\x12\x90\x01" + bytes(64))
    with pytest.raises(weights_io.WeightsFileError, match="Core ML model"):
        weights_io.open_weights(tmp_path / "m.mlmodel")


def test_weights_of_a_misleading_name_are_read(tmp_path: Path) -> None:
    """The suffix is asked only where the bytes say nothing."""
    for suffix in (".bin", ".engine", ".h5", ".xml"):
        path = tmp_path / f"m{suffix}"
        weights_io.save_weights(path, {"w": np.ones(3, np.float32)}, container="torch-zip")
        with weights_io.open_weights(path) as archive:
            assert archive.container == "torch-zip"
