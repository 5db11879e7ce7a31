"""Holding BLAS to one thread, where the parallelism is ours or the products are small.

OpenBLAS threads spin while they wait. On small products, or beside other work, they make NumPy
several times slower than one thread is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np

S = TypeVar("S")
T = TypeVar("T")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Let every BLAS library in the process use one thread within the block."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


@contextmanager
def pool_for_estimates() -> Iterator[ThreadPoolExecutor]:
    """Threads, each with BLAS on one thread, for estimates of a port's outputs.

    A port's outputs may be anything, and squares of 1e35 beside a variance of 0 overflow: infinity
    and NaN lose every comparison that matters, so nobody is warned of them, here or in the threads.
    """
    quiet = partial(np.seterr, all="ignore")
    with (
        single_threaded_blas(),
        np.errstate(all="ignore"),
        ThreadPoolExecutor(os.cpu_count(), initializer=quiet) as pool,
    ):
        yield pool


def in_threads(ask: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """``[ask(item) for item in items]``, several at once."""
    with pool_for_estimates() as pool:
        return list(pool.map(ask, items))
