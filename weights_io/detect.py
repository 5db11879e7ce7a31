"""What kind of file it is, by its first bytes, never by its name."""

from __future__ import annotations

from typing import Literal

from weights_io.errors import WeightsFileError
from weights_io.source import Source
from weights_io.text import sanitize

Kind = Literal["zip", "torch-legacy", "pickle", "safetensors"]

_HEAD_BYTES = 512
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # LONG1 of the magic number

_UNPACK = "unpack it first"
_EXPORT = "convert the training checkpoint instead"
_DOWNLOAD = "download the file itself; a link to a page about it was followed"

# offset, bytes, what it is, what to do
_REFUSED: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "a gzip file", _UNPACK),
    (0, b"BZh", "a bzip2 file", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", "copy or download the file again"),
    (
        257,
        b"ustar",
        "a tar archive (torch 0.1 saved those)",
        "unpack it, or load it in torch and save it again",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", _EXPORT),
    (4, b"TFL3", "a TensorFlow Lite model", _EXPORT),
    (0, b"GGUF", "a GGUF model", _EXPORT),
    (0, b"\x93NUMPY", "a single .npy array", "save all arrays with numpy.savez"),
    (0, b"\x89PNG", "a PNG image", "give the weights file"),
    (0, b"\xff\xd8\xff", "a JPEG image", "give the weights file"),
    (0, b"%PDF", "a PDF document", _DOWNLOAD),
    (
        0,
        b"version https://git-lfs.github.com",
        "a Git LFS pointer, not the file itself",
        "run: git lfs pull",
    ),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")


def detect(source: Source) -> Kind:
    """Return the kind of a weights file, or say what it is instead.

    Raises
    ------
    WeightsFileError
        When the file is empty or is recognised as, or taken for, anything else.
    """
    if not source.size:
        raise WeightsFileError(f"{source.name}: is empty", advice="copy or download it again")
    head = source.read(0, min(_HEAD_BYTES, source.size))
    if _is_safetensors(head):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80":
        # The magic number stands behind PROTO, or behind PROTO and FRAME.
        is_legacy = any(head.startswith(_LEGACY_MAGIC, at) for at in (2, 11))
        return "torch-legacy" if is_legacy else "pickle"
    raise _unreadable(source.name, head)


def _is_safetensors(head: bytes) -> bool:
    """Comes first: a header of 640 bytes makes the file start like a pickle of protocol 2."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def _unreadable(name: str, head: bytes) -> WeightsFileError:
    for at, magic, kind, advice in _REFUSED:
        if head.startswith(magic, at):
            return WeightsFileError(f"{name}: this is {kind}, no weights file", advice=advice)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_MARKUP):
        return WeightsFileError(
            f"{name}: this is a web page or XML, no weights file", advice=_DOWNLOAD
        )
    if head[0] == 0x08 and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):
        return WeightsFileError(
            f"{name}: this looks like an ONNX model, no weights file", advice=_EXPORT
        )
    if head[:1] in (b"(", b"c", b"]", b"}") and (b"\n" in head or head.endswith(b".")):
        return WeightsFileError(
            f"{name}: this looks like a pickle of protocol 0 or 1",
            wanted="protocol 2 to 5",
            advice="re-save the weights alone: torch.save(model.state_dict(), path)",
        )
    return WeightsFileError(
        f"{name}: not a weights file",
        got=f"first bytes {sanitize(head[:16].hex(' '))}",
        wanted="torch (zip or legacy), pickle of arrays, npz or safetensors",
    )
