"""Images as the network wants them, from the bytes that were copied to the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.gpu.kernels.launch import (
    THREADS,
    empty,
    flat_grid,
    launch,
    real_dtype,
    require_arrays,
)

_FILE = "pixels.cu"


def standardise_uint8(
    pixels: Array, mean: Array, std: Array, *, scale: float, dtype: Any, out: Array | None = None
) -> Array:
    """``(pixels * scale - mean) / std``, uint8 to `dtype`.

    Parameters
    ----------
    pixels : (..., C) uint8 array, such as (N, H, W, 3)
    mean, std : (C,) arrays of float32 (float64 for float64)
    scale : float, such as 1 / 255
    dtype : of the result

    Returns
    -------
    array of the shape of `pixels`
    """
    C = pixels.shape[-1]
    require_arrays("standardise_uint8", pixels.shape, np.uint8, pixels=pixels)
    require_arrays("standardise_uint8", (C,), real_dtype(dtype), mean=mean, std=std)
    images = empty(pixels.shape, dtype, out, "standardise_uint8")
    if images.size == 0:
        return images
    width = min(4, 16 // images.itemsize)
    together = images.size % width == 0 and all(
        array.data.ptr % (width * array.itemsize) == 0  # type: ignore[attr-defined]
        for array in (pixels, images)
    )
    launch(
        _FILE,
        "standardise_uint8",
        dtype,
        flat_grid(-(-images.size // width)),
        (THREADS,),
        (
            *(pixels, mean, std, images, np.float64(scale)),
            *(np.int64(images.size), np.int32(C), np.int32(width if together else 1)),
        ),
    )
    return images
