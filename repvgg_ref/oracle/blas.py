"""Holding BLAS to one thread, where the parallelism is ours or the products are small.

OpenBLAS threads spin while they wait. On small products, or beside other work, they make NumPy
several times slower than one thread is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Let every BLAS library in the process use one thread within the block."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
