"""Many tensors in few launches: SGD, moving average, and the finite check of loss scaling.

The addresses of up to 56 tensors travel by value in a launch's parameters (a structure of 3.6 KB;
4 KB is the limit of every CUDA version), so no table is copied to the device and no step waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.gpu.kernels.launch import IO_NAMES, THREADS, launch, real_dtype, require_arrays

_FILE = "optimiser.cu"
_MOST_TENSORS = 56
_MOST_BLOCKS = 256  # of one tensor
_TENSOR = np.dtype(
    [
        ("arrays", np.uint64, 4),
        ("size", np.int64),
        ("narrow", np.int64),
        ("factors", np.float64, 2),
    ]
)
_TABLE = np.dtype([("tensors", _TENSOR, _MOST_TENSORS)])


def sgd_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    velocities: Sequence[Array],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    lr_factors: Sequence[float] | None = None,
    decay_factors: Sequence[float] | None = None,
    copies: Sequence[Array | None] | None = None,
    grad_factor: float | Array = 1.0,
    skip: Array | None = None,
) -> None:
    """One step of SGD on all of `params` and `velocities`, in place; `repvgg_ref.train.sgd`'s.

    ``d = grad_factor * grad + weight_decay * decay_factor * param``, ``v = momentum * v + d``,
    ``param -= lr * lr_factor * (d + momentum * v if nesterov else v)``.

    Parameters
    ----------
    params, velocities : float32 (float64) arrays of any shapes; zeros before the first step
    grads : arrays of the shapes of `params`; float32, or all others one 16-bit dtype
    lr_factors, decay_factors : a float for each tensor; None: 1
    copies : arrays of the 16-bit dtype, or None: where the new weights are also written, rounded
    grad_factor : float, or (1,) array on the device: 1 / loss scale
    skip : (1,) int32 array, or None: if it is not 0 nothing changes; from `find_nonfinite`

    Raises
    ------
    ShapeError
        If the lists or shapes do not fit together.
    """
    count = len(params)
    copied: Sequence[Array | None] = [None] * count if copies is None else copies
    lrs = [1.0] * count if lr_factors is None else lr_factors
    decays = [1.0] * count if decay_factors is None else decay_factors
    _require_lengths("sgd_update", count, grads=grads, velocities=velocities, copies=copied)
    _require_lengths("sgd_update", count, lr_factors=lrs, decay_factors=decays)
    if not count:
        return
    real = params[0].dtype
    io = _narrow_dtype("sgd_update", real, [*grads, *copied])
    _require_like("sgd_update", params, real, params=params, velocities=velocities)
    _require_like("sgd_update", params, None, grads=grads)
    _require_like("sgd_update", params, io, copies=copied)
    import cupy

    on_device = isinstance(grad_factor, cupy.ndarray)
    if on_device:
        require_arrays("sgd_update", (1,), real, grad_factor=grad_factor)
    require_arrays("sgd_update", (1,), np.int32, skip=skip)
    rows = [
        ((p, g, v, c), p.size, g.dtype != real, (lr * float(a), weight_decay * float(b)))
        for p, g, v, c, a, b in zip(params, grads, velocities, copied, lrs, decays, strict=True)
    ]
    scalars = (
        np.float64(momentum),
        np.int32(nesterov),
        np.float64(1.0 if on_device else grad_factor),
        grad_factor if on_device else None,
        skip,
    )
    _launch_tables("sgd_update", io, rows, scalars)


def ema_update(averages: Sequence[Array], values: Sequence[Array], *, decay: float) -> None:
    """``average = decay * average + (1 - decay) * value`` for many float32 (float64) tensors."""
    _require_lengths("ema_update", len(averages), values=values)
    if not averages:
        return
    real = averages[0].dtype
    _require_like("ema_update", averages, real, averages=averages, values=values)
    rows = [
        ((a, v, None, None), a.size, False, (0.0, 0.0))
        for a, v in zip(averages, values, strict=True)
    ]
    _launch_tables("ema_update", real, rows, (np.float64(decay),))


def find_nonfinite(arrays: Sequence[Array], *, out: Array | None = None) -> Array:
    """A (1,) int32 array on the device: 1 if any element is infinite or NaN, else 0.

    Parameters
    ----------
    arrays : arrays of float32, or all others one 16-bit dtype (or all float64)
    out : (1,) int32 array, set to 0 first
    """
    import cupy

    flag: Any = cupy.zeros((1,), np.int32) if out is None else out
    require_arrays("find_nonfinite", (1,), np.int32, out=flag)
    if out is not None:
        flag.fill(0)
    if not arrays:
        return flag  # type: ignore[no-any-return]
    wide = [a.dtype for a in arrays if a.dtype.itemsize > 2]
    real = wide[0] if wide else real_dtype(arrays[0].dtype)
    io = _narrow_dtype("find_nonfinite", real, arrays)
    _require_like("find_nonfinite", arrays, None, arrays=arrays)
    rows = [((a, None, None, None), a.size, a.dtype != real, (0.0, 0.0)) for a in arrays]
    _launch_tables("find_nonfinite", io, rows, (flag,))
    return flag  # type: ignore[no-any-return]


Row = tuple[tuple[Array | None, ...], int, bool, tuple[float, float]]


def _launch_tables(name: str, io: Any, rows: Sequence[Row], scalars: tuple[Any, ...]) -> None:
    for part in _parts([row for row in rows if row[1]]):
        table = np.zeros((), _TABLE)
        for entry, (arrays, size, narrow, factors) in zip(table["tensors"], part, strict=False):
            entry["arrays"] = [0 if a is None else a.data.ptr for a in arrays]  # type: ignore[attr-defined]
            entry["size"], entry["narrow"], entry["factors"] = size, narrow, factors
        longest = max(row[1] for row in part)
        blocks = min(-(-longest // (4 * THREADS)), _MOST_BLOCKS)
        launch(_FILE, name, io, (blocks, len(part)), (THREADS,), (table, *scalars))


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _MOST_TENSORS):
        yield rows[start : start + _MOST_TENSORS]


def _require_lengths(operator: str, count: int, **lists: Sequence[Any]) -> None:
    for name, values in lists.items():
        if len(values) != count:
            raise ShapeError(f"{operator}: len({name}) (={len(values)}) must be {count}")


def _require_like(
    operator: str, like: Sequence[Array], dtype: Any, **lists: Sequence[Array | None]
) -> None:
    for name, values in lists.items():
        for index, (model, value) in enumerate(zip(like, values, strict=True)):
            if value is not None:
                wanted = value.dtype if dtype is None else dtype
                require_arrays(operator, model.shape, wanted, **{f"{name}[{index}]": value})


def _narrow_dtype(operator: str, real: Any, arrays: Sequence[Array | None]) -> Any:
    """The one 16-bit dtype among `arrays`, or `real` if there is none."""
    found = {a.dtype for a in arrays if a is not None} - {real}
    if len(found) > 1 or any(d.name not in IO_NAMES or d.itemsize != 2 for d in found):
        raise ShapeError(
            f"{operator}: beside {real} there may be one 16-bit dtype",
            got=sorted(str(dtype) for dtype in found),
            wanted="float16 or bfloat16",
        )
    return found.pop() if found else real
