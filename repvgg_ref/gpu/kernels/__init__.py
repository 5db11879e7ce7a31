"""The CUDA kernels and the functions that launch them.

Each function takes and gives CuPy arrays, (N, H, W, C) and C-contiguous, of one storage dtype:
float32, float16, bfloat16 (`ml_dtypes.bfloat16`, or its bits as uint16) or, for tests, float64.
Statistics, coefficients and sums are float32 (float64 for float64 arrays), sums are made in a fixed
order without atomics. Nothing waits for the device; all run on the current stream; `out` is memory
to write to. Structures are passed by value as 0-d structured NumPy arrays. The `.cu` files say how
many bytes each kernel moves: that is its floor.
"""

from repvgg_ref.gpu.kernels.branches import (
    BranchCoefficients,
    BranchGradCoefficients,
    branch_coefficients,
    branch_grad_coefficients,
    branches_backward,
    branches_backward_sums,
    branches_forward,
    channel_moments,
)
from repvgg_ref.gpu.kernels.convolution import bias_relu, col2im, im2col
from repvgg_ref.gpu.kernels.loss import (
    CrossEntropy,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from repvgg_ref.gpu.kernels.pooling import scale_channels, spatial_sums, spread_over_pixels

__all__ = [
    "BranchCoefficients",
    "BranchGradCoefficients",
    "CrossEntropy",
    "bias_relu",
    "branch_coefficients",
    "branch_grad_coefficients",
    "branches_backward",
    "branches_backward_sums",
    "branches_forward",
    "channel_moments",
    "col2im",
    "im2col",
    "scale_channels",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "spatial_sums",
    "spread_over_pixels",
]
