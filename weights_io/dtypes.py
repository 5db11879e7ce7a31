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


def decode(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Turn an array of a stored type, either byte order, into a native one.

    The result may share memory with `stored`.
    """
    if not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    if dtype == "bfloat16":
        # A bfloat16 is the upper half of the float32 of the same value.
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "bool":
        return stored.astype(np.bool_)
    return stored
