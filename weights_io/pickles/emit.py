"""Writing the few pickles that torch files need: protocol 2, no memo, no surprises."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import pack

from weights_io.strided import contiguous_strides
from weights_io.writers.specs import ArraySpec

_PROTO = b"\x80\x02"
_STOP = b"."
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_NONE, _TRUE, _FALSE = b"N", b"\x88", b"\x89"

_STORAGES = {
    "float32": b"FloatStorage",
    "float64": b"DoubleStorage",
    "float16": b"HalfStorage",
    "bfloat16": b"BFloat16Storage",
    "int64": b"LongStorage",
    "int32": b"IntStorage",
    "int16": b"ShortStorage",
    "int8": b"CharStorage",
    "uint8": b"ByteStorage",
    "bool": b"BoolStorage",
}


def plain(value: object) -> bytes:
    """Return the pickle of a bool, an int, text, or a list or dict of such."""
    return _PROTO + _plain(value) + _STOP


def state_dict(specs: Sequence[ArraySpec], *, legacy: bool = False) -> bytes:
    """Return the pickle of an OrderedDict of tensors, tensor i being all of storage i."""
    items = b"".join(
        _text(spec.name) + _tensor(spec, str(key), legacy=legacy) for key, spec in enumerate(specs)
    )
    return _PROTO + _ORDERED_DICT + b"(" + items + b"u" + _STOP


def _tensor(spec: ArraySpec, key: str, *, legacy: bool) -> bytes:
    storage_class = b"ctorch\n" + _STORAGES[spec.dtype] + b"\n"
    identity = [_text("storage"), storage_class, _text(key), _text("cpu"), _integer(spec.count)]
    if legacy:
        identity.append(_NONE)
    arguments = [
        _tuple(identity) + b"Q",
        _integer(0),
        _tuple(map(_integer, spec.shape)),
        _tuple(map(_integer, contiguous_strides(spec.shape))),
        _FALSE,  # requires_grad
        _ORDERED_DICT,  # hooks
    ]
    return _REBUILD + _tuple(arguments) + b"R"


def _plain(value: object) -> bytes:
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_plain, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_plain(part) for pair in value.items() for part in pair) + b"u"
    raise TypeError(f"no pickle for {type(value).__name__}")


def _tuple(items: Iterable[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
