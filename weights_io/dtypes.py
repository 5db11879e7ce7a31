"""The element types that weights come in, and how their bytes become NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# NumPy has no bfloat16: its two bytes are carried as an unsigned integer.
STORED: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("u1"),  # a byte other than 0 and 1 is no NumPy bool: see `decode`
}

# torch's storages of types that weights never come in, and the bytes of an element: stepped over.
OTHER_STORAGES: dict[str, int] = {
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "QInt32Storage": 4,
    "QInt8Storage": 1,
    "QUInt2x4Storage": 1,
    "QUInt4x2Storage": 1,
    "QUInt8Storage": 1,
    "UntypedStorage": 1,
}

# The other names that torch has for types of elements.
OTHER_TYPES = (
    *("complex32", "complex64", "complex128", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float4_e2m1fn_x2", "qint8", "qint32", "quint8", "quint4x2", "quint2x4"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)),
)

# Other types of safetensors, and the bits of an element: stepped over.
OTHER_SAFETENSORS: dict[str, int] = {
    "U16": 16,
    "U32": 32,
    "U64": 64,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}

# NumPy's own codes, without the byte order, as .npy headers and pickles spell them.
FROM_NUMPY_CODE: dict[str, str] = {
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "i8": "int64",
    "i4": "int32",
    "i2": "int16",
    "i1": "int8",
    "u1": "uint8",
    "b1": "bool",
}
TO_NUMPY_CODE: dict[str, str] = {name: code for code, name in FROM_NUMPY_CODE.items()}


def stored_bytes(dtype: str) -> int:
    """The bytes of one stored element."""
    return OTHER_STORAGES[dtype] if dtype in OTHER_STORAGES else STORED[dtype].itemsize


def kept_bytes(dtype: str) -> int:
    """The bytes of one element once it is read: those of bfloat16 become twice as many."""
    return 4 if dtype == "bfloat16" else stored_bytes(dtype)


def decode(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Turn a fresh array of a stored type, either byte order, into a native one.

    It is done in the memory of `stored`, whose values are lost, but for bfloat16, which needs more.
    """
    if not stored.dtype.isnative:
        stored = stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
    if dtype == "bfloat16":
        # A bfloat16 is the upper half of the float32 of the same value.
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "bool":
        truth: NDArray[np.bool_] = stored.view(np.bool_)
        np.not_equal(stored, 0, out=truth)
        return truth
    return stored
