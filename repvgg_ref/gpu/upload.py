"""Batches to the device ahead of the step that uses them: pinned memory and a stream of its own.

A copy from ordinary memory makes the host wait. Here each batch is put into one of a few pinned
buffers and copied while the device computes with the one before; events keep buffers from being
overwritten too early. The bytes are standardised on the device (`standardise`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import cupy
import cupyx
import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.gpu import kernels
from repvgg_ref.gpu.kernels.launch import real_dtype


class _Slot(NamedTuple):
    """One batch's memory on both sides; `copied` and `used` are recorded when that is done."""

    host: tuple[Array, Array]
    device: tuple[Array, Array]
    copied: Any
    used: Any


def upload(batches: Iterable[tuple[Array, Array]], *, ahead: int = 2) -> Iterator[tuple[Any, Any]]:
    """Yield each (images, labels) of `batches` on the device, `ahead` of them under way.

    Parameters
    ----------
    batches : iterable of pairs of NumPy arrays
        A shorter batch than the first gives shorter arrays.
    ahead : int
        Batches copied before they are asked for.

    Yields
    ------
    images, labels : arrays on the device
        To be used on the current stream, before the next batch is asked for.
    """
    stream = cupy.cuda.Stream(non_blocking=True)
    free: deque[_Slot] = deque()
    ready: deque[tuple[_Slot, int]] = deque()
    for number, (images, labels) in enumerate(batches):
        slot = _slot_like(images, labels) if number <= ahead else free.popleft()
        ready.append((slot, _send(slot, (images, labels), stream)))
        if len(ready) > ahead:
            yield from _hand_out(ready, free)
    while ready:
        yield from _hand_out(ready, free)


def standardise(pixels: Array, mean: Array, std: Array, *, scale: float, dtype: Any) -> Array:
    """``(pixels * scale - mean) / std`` as the network's input: (N, H, W, C) uint8 -> (N, C, H, W).

    A view: the table's `enter` turns it back without a copy.
    """
    real = real_dtype(dtype)
    mean, std = (cupy.asarray(vector, dtype=real) for vector in (mean, std))
    images = kernels.standardise_uint8(pixels, mean, std, scale=scale, dtype=dtype)
    nchw: Array = images.transpose(0, 3, 1, 2)
    return nchw


def _slot_like(images: Array, labels: Array) -> _Slot:
    arrays = (images, labels)
    return _Slot(
        (*(cupyx.empty_pinned(each.shape, each.dtype) for each in arrays),),
        (*(cupy.empty(each.shape, each.dtype) for each in arrays),),
        cupy.cuda.Event(disable_timing=True),
        cupy.cuda.Event(disable_timing=True),
    )


def _send(slot: _Slot, arrays: tuple[Array, Array], stream: Any) -> int:
    """Start copying; waits only while the device still reads the slot's last batch."""
    slot.copied.synchronize()
    count = len(arrays[0])
    stream.wait_event(slot.used)
    for array, pinned, there in zip(arrays, slot.host, slot.device, strict=True):
        np.copyto(pinned[:count], array)
        there[:count].set(pinned[:count], stream=stream)  # type: ignore[attr-defined]
    slot.copied.record(stream)
    return count


def _hand_out(ready: deque[tuple[_Slot, int]], free: deque[_Slot]) -> Iterator[tuple[Array, Array]]:
    """Give out the oldest batch; when the caller comes back, its work with it has been enqueued."""
    slot, count = ready.popleft()
    current = cupy.cuda.get_current_stream()
    current.wait_event(slot.copied)
    yield slot.device[0][:count], slot.device[1][:count]
    slot.used.record(cupy.cuda.get_current_stream())
    free.append(slot)
