"""Runs `.cu` text on the CPU: compiled by g++ with `device.h`, called as a CuPy `RawKernel` is.

``compile(code, options).get_function(name)(grid, block, args)`` runs a kernel on NumPy arrays and
returns when it is done. Arguments are checked as no GPU would: a pointer's array must have its
element size and kind and be contiguous, a scalar must have exactly its C type. A structure is
passed by value, as a 0-d structured array.

`thread_order(seed)` draws another order of blocks and threads: a race gives other results.
With ``REPVGG_EMULATOR_SANITIZE=1`` in the environment (`SANITIZE`) kernels are built with address
and undefined-behaviour sanitizers; libasan must then be preloaded, as in test_sanitized.py.
"""

from tests.gpu.emulator.build import SANITIZE, why_missing
from tests.gpu.emulator.kernel import Kernel, LaunchError, Module, compile, thread_order

__all__ = ["SANITIZE", "Kernel", "LaunchError", "Module", "compile", "thread_order", "why_missing"]
