"""What a hostile case is: a file, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.weights_io.forge import (
    proto,
    text,
    torch_zip,
)
from tests.weights_io.module_files import (
    T,
    state,
)

CANARY = "tests.weights_io.canary"
MARK = f"c{CANARY}\nMark\n".encode()  # a class; importing its module would be seen
FIRE = f"c{CANARY}\nfire\n".encode()
SYSTEM = b"cos\nsystem\n" + text("echo") + b"\x85R"
SET = b"c__builtin__\nset\n"
GETATTR = b"c__builtin__\ngetattr\n"
W = {"w": T}


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: a message that matches, or arrays of just these names."""

    data: bytes
    refused: str = ""
    names: tuple[str, ...] = ()


def refused(body: bytes, match: str, protocol: int = 2) -> Case:
    return Case(torch_zip(proto(body, protocol)), match)


def read(body: bytes, *names: str, protocol: int = 2) -> Case:
    return Case(torch_zip(proto(body, protocol)), "", names)


NAMED = r"refused global torch\.nn\.modules\.module\.Module"
S = state(W)
