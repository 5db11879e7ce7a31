"""Files that are given for weights by mistake: told by their first bytes, or else by their name."""

from __future__ import annotations

from typing import NamedTuple

from weights_io.errors import WeightsFileError
from weights_io.text import sanitize

UNPACK = "unpack it first"
TRAINED = "convert the training checkpoint instead"
DOWNLOAD = "download the file itself; a link to a page about it was followed"
GIVE = "give the weights file"


class _Kind(NamedTuple):
    at: int  # where in the file
    magic: bytes
    what: str
    advice: str


_MAGIC: tuple[_Kind, ...] = (
    _Kind(0, b"\x1f\x8b", "a gzip file", UNPACK),
    _Kind(0, b"BZh", "a bzip2 file", UNPACK),
    _Kind(0, b"\xfd7zXZ\x00", "an xz file", UNPACK),
    _Kind(0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    _Kind(0, b"\x28\xb5\x2f\xfd", "a Zstandard file", UNPACK),
    _Kind(0, b"\x04\x22\x4d\x18", "an LZ4 file", UNPACK),
    _Kind(0, b"Rar!", "a RAR archive", UNPACK),
    _Kind(0, b"PK\x05\x06", "an empty zip archive", "copy or download the file again"),
    _Kind(
        257,
        b"ustar",
        "a tar archive (torch 0.1 saved those)",
        "unpack it, or load it in torch and save it again",
    ),
    _Kind(0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5, Keras)", TRAINED),
    _Kind(4, b"TFL3", "a TensorFlow Lite model", TRAINED),
    _Kind(0, b"GGUF", "a GGUF model", TRAINED),
    _Kind(0, b"RKNN", "an RKNN model", TRAINED),
    _Kind(0, b"ftrt", "a TensorRT engine", TRAINED),
    _Kind(0, b"ptrt", "a TensorRT engine", TRAINED),
    _Kind(0, b"7767517\n", "an ncnn network (.param)", TRAINED),
    _Kind(0, b"7767517\r\n", "an ncnn network (.param)", TRAINED),
    _Kind(0, b"\x85\xdd\x76\x00", "a binary ncnn network (.param.bin)", TRAINED),
    _Kind(0, b"\x93NUMPY", "a single .npy array", "save all arrays with numpy.savez"),
    _Kind(0, b"\x89PNG", "a PNG image", GIVE),
    _Kind(0, b"\xff\xd8\xff", "a JPEG image", GIVE),
    _Kind(0, b"%PDF", "a PDF document", DOWNLOAD),
    _Kind(0, b"\x7fELF", "a program or library", GIVE),
    _Kind(
        0,
        b"version https://git-lfs.github.com",
        "a Git LFS pointer, not the file itself",
        "run: git lfs pull",
    ),
)
# What has no first bytes of its own; asked only where the bytes say nothing.
_SUFFIXES: dict[str, tuple[str, str]] = {
    ".xml": ("XML", GIVE),
    ".bin": (
        "bare weights without names, as of OpenVINO or ncnn",
        "convert the training checkpoint they were exported from",
    ),
    ".param": ("an ncnn network (.param)", TRAINED),
    ".engine": ("a TensorRT engine", TRAINED),
    ".plan": ("a TensorRT engine", TRAINED),
    ".trt": ("a TensorRT engine", TRAINED),
    ".mnn": ("an MNN model", TRAINED),
    ".mlmodel": ("a Core ML model", TRAINED),
    ".caffemodel": ("a Caffe model", TRAINED),
    ".prototxt": ("a Caffe network, which holds no weights", TRAINED),
    ".pb": ("a TensorFlow graph", TRAINED),
    ".pdiparams": ("PaddlePaddle's bare weights", TRAINED),
    ".pdmodel": ("a PaddlePaddle network", TRAINED),
    ".onnx": ("an ONNX model", TRAINED),
    ".h5": ("an HDF5 file (.h5, Keras), though a damaged one", TRAINED),
    ".hdf5": ("an HDF5 file (.h5, Keras), though a damaged one", TRAINED),
}
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--", b"<net ")
_OPENVINO = b"<net "
_SHOWN_TEXT = 40


def unreadable(name: str, head: bytes) -> WeightsFileError:
    """Return the error that says what a file with these first bytes is instead of weights."""
    for at, magic, what, advice in _MAGIC:
        if head.startswith(magic, at):
            return _no_weights(f"{name}: this is {what}", advice)
    if (markup := head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()).startswith(_MARKUP):
        if _OPENVINO in markup:
            return _no_weights(f"{name}: this is an OpenVINO network (.xml)", TRAINED)
        return _no_weights(f"{name}: this is a web page or XML", DOWNLOAD)
    if head[:1] in (b"(", b"c", b"]", b"}") and (b"\n" in head or head.endswith(b".")):
        return WeightsFileError(
            f"{name}: this looks like a pickle of protocol 0 or 1",
            wanted="protocol 2 to 5",
            advice="re-save the weights alone: torch.save(model.state_dict(), path)",
        )
    what, advice = _SUFFIXES.get(_suffix(name), ("", ""))
    if what:
        return _no_weights(f"{name}: this looks like {what}", advice)
    if head[0] == 0x08 and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):
        return _no_weights(f"{name}: this looks like an ONNX model", TRAINED)
    return WeightsFileError(
        f"{name}: not a weights file" + (" but text" if _is_text(head) else ""),
        got=_beginning(head),
        wanted="torch (zip or legacy), pickle of arrays, npz or safetensors",
    )


def _no_weights(what: str, advice: str) -> WeightsFileError:
    return WeightsFileError(f"{what}, no weights file", advice=advice)


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def _is_text(head: bytes) -> bool:
    return all(byte >= 0x20 or byte in b"\t\r\n" for byte in head) and head.isascii()


def _beginning(head: bytes) -> str:
    if _is_text(head):
        return f"text that begins {sanitize(head[:_SHOWN_TEXT].decode())!r}"
    return f"first bytes {sanitize(head[:16].hex(' '))}"
