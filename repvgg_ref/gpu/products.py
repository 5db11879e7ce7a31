"""Matrix products in a stated arithmetic: two dimensions, one dtype, cuBLAS underneath.

CuPy's products beyond two dimensions upcast float16, break on bfloat16 and ignore the choice of
TF32, as does `einsum`; so this is the only product that the GPU room uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cupy
import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.gpu.math_mode import Math


def matmul(a: Array, b: Array, *, math: Math, out: Array | None = None) -> Array:
    """``a @ b``, (m, k) @ (k, n); 16-bit operands are summed in float32.

    float32 operands are rounded to TF32 unless `math` is "fp32".
    """
    with _tf32(a.dtype == np.float32 and math != "fp32"):
        product: Array = cupy.matmul(a, b, out=out)
    return product


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """The choice is one for the whole process: set it for one product, and set it back."""
    choice = cupy._core._routines_linalg  # CuPy's public switch is an environment variable
    before = choice.get_compute_type(np.float32)
    wanted = choice.COMPUTE_TYPE_TF32 if allowed else choice.COMPUTE_TYPE_DEFAULT
    choice.set_compute_type(np.float32, wanted)
    try:
        yield
    finally:
        choice.set_compute_type(np.float32, before)
