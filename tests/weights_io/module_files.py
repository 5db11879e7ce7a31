"""Pickled torch modules, opcode by opcode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.weights_io.forge import ORDERED, tensor, text

MODULE = b"ctorch.nn.modules.module\nModule\n"
CONV = b"ctorch.nn.modules.conv\nConv2d\n"
NORM = b"ctorch.nn.modules.batchnorm\nBatchNorm2d\n"
T = tensor()
EMPTY = b"}"
Part = bytes | Mapping[str, bytes]


def items(pairs: Mapping[str, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    """A dict of already pickled values; keys are text, or pickled too."""
    listed = [(text(k), v) for k, v in pairs.items()] if isinstance(pairs, Mapping) else pairs
    return b"}(" + b"".join(key + value for key, value in listed) + b"u"


def parameter(of: bytes = T, hooks: bytes = ORDERED) -> bytes:
    return b"ctorch._utils\n_rebuild_parameter\n(" + of + b"\x88" + hooks + b"tR"


def state(
    parameters: Part = EMPTY,
    buffers: Part = EMPTY,
    modules: Part = EMPTY,
    more: Mapping[str, bytes] | None = None,
) -> bytes:
    """A module's attributes; each part may be any pickled thing."""
    parts = {"_parameters": parameters, "_buffers": buffers, "_modules": modules}
    pickled = {k: v if isinstance(v, bytes) else items(v) for k, v in parts.items()}
    return items({"training": b"\x88", **pickled, **(more or {})})  # what is in `more` wins


def made(of: bytes, cls: bytes = MODULE, *, place: int | None = None) -> bytes:
    """An object of the class with these attributes, remembered at `place` before it gets them."""
    remembered = b"" if place is None else b"q" + bytes([place])
    return cls + b")\x81" + remembered + of + b"b"


def module(
    parameters: Part = EMPTY,
    buffers: Part = EMPTY,
    modules: Part = EMPTY,
    more: Mapping[str, bytes] | None = None,
    cls: bytes = MODULE,
) -> bytes:
    return made(state(parameters, buffers, modules, more), cls)


def around(name: str) -> tuple[bytes, bytes]:
    """What stands before and behind the only submodule of a module; no mark is open inside."""
    parts = text("_parameters") + b"}s" + text("_buffers") + b"}s" + text("_modules") + b"}"
    return MODULE + b")\x81}" + parts + text(name), b"ssb"


def nested(depth: int, inner: bytes, name: str = "c") -> bytes:
    """`inner` in a module in a module, so many times over."""
    start, end = around(name)
    return start * depth + inner + end * depth


def again(place: int) -> bytes:
    return b"h" + bytes([place])
