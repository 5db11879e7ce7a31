"""What kind of file it is, by its first bytes, never by its name."""

from __future__ import annotations

from typing import Literal

from weights_io.errors import WeightsFileError
from weights_io.foreign import unreadable
from weights_io.source import Source

Kind = Literal["zip", "torch-legacy", "pickle", "safetensors", "index"]

_HEAD_BYTES = 512
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # LONG1 of the magic number


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
    if head[:1] == b"{" and head[1:].lstrip(b" \t\r\n").startswith(b'"'):
        return "index"
    raise unreadable(source.name, head)


def _is_safetensors(head: bytes) -> bool:
    """Comes first: a header of 640 bytes makes the file start like a pickle of protocol 2."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40
