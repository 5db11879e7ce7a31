"""A pickled block whose modules say what a test wants them to, opcode by opcode."""

from __future__ import annotations

from collections.abc import Mapping
from struct import pack

import numpy as np

from tests.weights_io.forge import integer, integers, proto, storage, tensor, torch_zip
from tests.weights_io.module_files import CONV, NORM, module, parameter

CHANNELS = 4
_NUMBERS = 1 << 10
# Enough different, positive numbers for all arrays, which are views of one storage.
STORED = np.linspace(0.1, 2, _NUMBERS, dtype=np.float32).tobytes()
Said = Mapping[str, bytes | None]
NOTHING: Said = {}


def array(*shape: int, first: int = 0) -> bytes:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tensor(shape, strides, offset=first, of=storage(_NUMBERS))


def number(value: float) -> bytes:
    return b"G" + pack(">d", value)


def pair(first: int, second: int | None = None) -> bytes:
    return integers((first, first if second is None else second))


def _with(known: dict[str, bytes], said: Said) -> dict[str, bytes]:
    """The settings that are known, those that are said in their place; None takes one away."""
    return {k: v for k, v in ({**known, **said}).items() if v is not None}


def conv(k: int, said: Said, *, first: int = 0) -> bytes:
    known = {
        "in_channels": integer(CHANNELS), "out_channels": integer(CHANNELS),
        "kernel_size": pair(k), "stride": pair(1), "padding": pair(k // 2), "dilation": pair(1),
        "transposed": b"\x89", "groups": integer(1), "padding_mode": b"X\x05\0\0\0zeros",
    }  # fmt: skip
    weight = parameter(array(CHANNELS, CHANNELS, k, k, first=first))
    return module({"weight": weight}, more=_with(known, said), cls=CONV)


def norm(said: Said, *, first: int = 0) -> bytes:
    known = {"eps": number(1e-3), "momentum": number(0.1), "num_features": integer(CHANNELS)}
    vectors = [array(CHANNELS, first=first + CHANNELS * i) for i in range(4)]
    return module(
        {"weight": parameter(vectors[0]), "bias": parameter(vectors[1])},
        {"running_mean": vectors[2], "running_var": vectors[3]},
        more=_with(known, said),
        cls=NORM,
    )


def block(
    *, wide: Said = NOTHING, point: Said = NOTHING, norms: Said = NOTHING, last: Said | None = None,
    own: Said = NOTHING,
) -> bytes:  # fmt: skip
    """RT-DETR's block: 3x3 and 1x1, a batch norm each; the 1x1's says `last` if that is given."""
    branches = {
        "conv1": {"conv": conv(3, wide, first=7), "norm": norm(norms, first=200)},
        "conv2": {
            "conv": conv(1, point, first=300),
            "norm": norm(norms if last is None else last, first=400),
        },
    }
    children = {name: module(modules=parts) for name, parts in branches.items()}
    return module(modules=children, more={k: v for k, v in own.items() if v is not None})


def file_of(body: bytes) -> bytes:
    return torch_zip(proto(body), {"0": STORED})
