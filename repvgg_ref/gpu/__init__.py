"""Fast operators on a CUDA device: the table `cupy_ops`, by CuPy, NHWC inside.

Importing this room loads no CuPy; asking for a table does, and says what is missing.
"""

from __future__ import annotations

from repvgg_ref.gpu.math_mode import MATH_MODES, Math
from repvgg_ref.gpu.probe import Cudnn, Device, find_cudnn, require_device

__all__ = [
    "MATH_MODES",
    "Cudnn",
    "Device",
    "Math",
    "find_cudnn",
    "require_device",
]
