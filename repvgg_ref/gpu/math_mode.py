"""One word for the arithmetic of everything: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    fp32   float32 arrays, float32 products: matrix units that round the operands are refused
    tf32   float32 arrays, operands rounded to TF32's 10 explicit bits inside a product
    bf16   activations and kernels in bfloat16, sums in float32; the mixed precision of choice,
           since its range is float32's and no loss scale is needed (Kalamkar et al., 1905.12322)
    fp16   the same in float16; gradients below 6e-8 vanish unless the loss is scaled
           (Micikevicius et al., arXiv 1710.03740)

In mixed precision weights, batch statistics and the optimiser stay in float32.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from repvgg_ref.errors import BackendError, MissingExtraError

Math: TypeAlias = Literal["fp32", "tf32", "bf16", "fp16"]
MATH_MODES: tuple[Math, ...] = get_args(Math)


def math_of(dtype: Any) -> Math:
    """The arithmetic of images that come as `dtype`: float16 and bfloat16 are mixed precision."""
    named: dict[str, Math] = {"float16": "fp16", "bfloat16": "bf16"}
    return named.get(np.dtype(dtype).name, "fp32")


def activation_dtype(math: Math) -> np.dtype[Any]:
    """The dtype that activations and kernels have.

    Raises
    ------
    BackendError
        If there is no such arithmetic.
    MissingExtraError
        If bfloat16 is asked for without ml_dtypes, which gives NumPy and CuPy the type.
    """
    if math not in MATH_MODES:
        raise BackendError(
            "there is no such arithmetic", got=repr(math), wanted=", ".join(MATH_MODES)
        )
    if math == "fp16":
        return np.dtype(np.float16)
    return bfloat16() if math == "bf16" else np.dtype(np.float32)


def bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16; it is not NumPy's own."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtraError(
            "bfloat16 needs the package ml_dtypes",
            advice="pip install ml_dtypes, or take --math fp16",
        ) from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found
