"""Fast operators on a CUDA device: the table `cupy_ops`, by CuPy, NHWC inside.

Importing this room loads no CuPy; asking for a table does, and says what is missing.

Reading order: `math_mode.py`, `kernels/` (the CUDA text and its launchers), `conv2d.py` (which of
`cudnn_conv.py` and `gemm_conv.py` convolves), `branches.py` (the block), `table.py`, `chain.py`
(the fused network).
"""

from __future__ import annotations

from repvgg_ref.gpu.math_mode import MATH_MODES, Math, activation_dtype, math_of
from repvgg_ref.gpu.probe import (
    Cudnn,
    Device,
    NoCudnnWarning,
    find_cudnn,
    has_device,
    installed_cupys,
    require_device,
    several_cupys,
)
from repvgg_ref.ops import Ops

__all__ = [
    "MATH_MODES",
    "Cudnn",
    "Device",
    "Math",
    "NoCudnnWarning",
    "cupy_ops",
    "find_cudnn",
    "has_device",
    "installed_cupys",
    "math_of",
    "require_device",
    "several_cupys",
]


def cupy_ops(math: Math = "fp32", *, deterministic: bool = False) -> Ops:
    """The operators on the current CUDA device.

    Weights, batch statistics and gradients of weights are float32 in every arithmetic; activations
    and kernels are stored in `math`'s dtype. float64 arrays are computed in float64 under "fp32".
    No operator waits for the device.

    Parameters
    ----------
    math : {"fp32", "tf32", "bf16", "fp16"}
        See `gpu.math_mode`.
    deterministic : bool
        The same input gives the same bits, run after run, on the same device and libraries.

    Raises
    ------
    BackendError
        If there is no such arithmetic, or no CuPy, driver, device or CUDA library; the message
        has the command that mends it.
    MissingExtraError
        For "bf16" without ml_dtypes.
    """
    activation_dtype(math)
    require_device()
    from repvgg_ref.gpu.table import make_table

    return make_table(math, deterministic=deterministic)
