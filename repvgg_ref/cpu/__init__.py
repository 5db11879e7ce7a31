"""The fast NumPy backend: Winograd and direct convolution in NHWC, float32 and float64.

Read `winograd` for the mathematics, `schedule` for who does what, `plan` for the fused chain.
"""

from repvgg_ref.cpu.table import NUMPY

__all__ = ["NUMPY"]
