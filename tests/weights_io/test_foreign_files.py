"""What people pass by mistake: each is told for what it is, with what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile

import numpy as np
import pytest

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
    "gzip": (gzip.compress(b"weights"), "gzip"),
    "bzip2": (bz2.compress(b"weights"), "bzip2"),
    "xz": (lzma.compress(b"weights"), "xz file"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(32), "7-Zip"),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(32), "Zstandard"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
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
