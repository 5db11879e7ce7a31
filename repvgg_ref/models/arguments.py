"""What callers hand over, checked before anything is computed: images, types, counts, eps."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import BackendError, CheckpointError, ReportedError, ShapeError
from repvgg_ref.models.graph import Network

NO_HEAD = (
    "a network without its head is not built: forward(x, layers=True) gives the last block's output"
)
_FLOATS = "float16, float32 or float64 (or bfloat16, once ml_dtypes is imported)"


def as_array(value: Any, what: str) -> Array:
    """`value` as an array: NumPy's and CuPy's as they are, a tensor of another library in NumPy.

    Raises
    ------
    ReportedError
        If it is a list, a number or anything else without a type and a shape of its own, or a
        tensor that is not in host memory.
    """
    if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
        raise ReportedError(
            f"{what}: a masked array",
            got=f"{int(np.sum(value.mask))} of {value.size} numbers masked",
            wanted="an array without a mask, which nothing here would heed",
            advice="x.filled(0), or whatever stands for what is missing",
        )
    if isinstance(value, np.ndarray | np.generic) or array_module(value) is not np:
        own: Array = value
        return own
    if not (hasattr(value, "__array__") and hasattr(value, "shape") and hasattr(value, "dtype")):
        raise ReportedError(
            f"{what}: not an array",
            got=type(value).__name__,
            wanted="a NumPy array",
            advice="numpy.asarray(..., numpy.float32) makes one",
        )
    if hasattr(value, "detach"):  # a torch tensor that requires a gradient gives no array
        value = value.detach()
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ReportedError(
            f"{what}: cannot be read as a NumPy array",
            got=f"{type(value).__name__}, {str(error).splitlines()[0] if str(error) else 'no'}",
            wanted="an array in host memory, of a type that NumPy has",
            advice="for a tensor: x.float().cpu().numpy()",
        ) from None


def image_batch(network: Network, x: Any) -> Array:
    """`x` as images for `network`, (N, in_channels, H, W), real or exact numbers.

    Raises
    ------
    ShapeError
        If it has another shape; a single image and NHWC are named for what they are.
    ReportedError
        If it is no array, or holds integers, which nobody has scaled yet.
    """
    images = as_array(x, f"{network.name}: the input")
    channels = network.in_channels
    if images.ndim != 4 or images.shape[1] != channels:
        raise ShapeError(
            f"{network.name}: the input must be a batch of images",
            got=f"shape {tuple(images.shape)}",
            wanted=f"(N, {channels}, H, W)",
            advice=arrangement(tuple(images.shape), channels),
        )
    if not is_floating(images.dtype) and images.dtype != np.object_:
        raise ReportedError(
            f"{network.name}: the input must hold real numbers",
            got=images.dtype,
            wanted=f"{_FLOATS}, scaled and standardised as in training",
            advice="x.astype(numpy.float32) / 255, then minus the mean, over the deviation",
        )
    return images


def label_array(labels: Any) -> Array:
    """Class labels or soft targets as an array; sequences of numbers are taken too.

    Raises
    ------
    ReportedError
        If they are no array, and no sequence that makes one.
    """
    if isinstance(labels, list | tuple | range):
        try:
            return np.asarray(labels)
        except ValueError:  # of lists of several lengths
            raise ReportedError(
                "labels: not an array", got="a ragged sequence", wanted="one number an image"
            ) from None
    return as_array(labels, "labels")


def arrangement(shape: tuple[int, ...], channels: int) -> str | None:
    """How images of another shape become a batch, if that can be guessed."""
    if len(shape) == 4 and shape[3] == channels:
        return "these look like NHWC: x.transpose(0, 3, 1, 2)"
    if len(shape) == 3 and shape[0] == channels:
        return "one image: x[None]"
    if len(shape) == 3 and shape[2] == channels:
        return "one image in HWC: x.transpose(2, 0, 1)[None]"
    if len(shape) == 2 and channels == 1:
        return "one image without its channel: x[None, None]"
    if len(shape) == 3 and channels == 1:
        return "images without their channel: x[:, None]"
    return None


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether a NumPy dtype is of real numbers of at most 64 bits, or bfloat16."""
    return (dtype.kind == "f" and dtype.itemsize <= 8) or dtype.name == "bfloat16"


def floating_dtype(dtype: Any, what: str) -> np.dtype[Any]:
    """`dtype` as a NumPy dtype that weights can have.

    Raises
    ------
    ReportedError
        If it is none that NumPy knows, or none of real numbers.
    """
    found: np.dtype[Any] | None = None
    with suppress(TypeError):
        found = np.dtype(dtype)
    if found is None or not is_floating(found):
        raise ReportedError(
            f"{what}: weights cannot have this dtype", got=str(dtype), wanted=_FLOATS
        )
    return found


def working_dtype(stored: Any) -> Any:
    """What weights stored as `stored` (a dtype or its name) are worked with: float64 or float32."""
    return np.dtype(np.float64 if str(stored) == "float64" else np.float32)


def checked_eps(eps: Any) -> Any:
    """Batch norm's eps, if it is a finite number of at least 0; `ReportedError` if not."""
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 <= float(eps) < inf:
        raise ReportedError(
            "eps of batch norm is out of range",
            got=repr(eps),
            wanted="a number of at least 0, usually 1e-5",
        )
    return eps


def require_counts(*, advice: str | None = None, **counts: Any) -> None:
    """Raise `ShapeError` unless each of `counts` is a whole number of at least 1."""
    for name, count in counts.items():
        for each in count if isinstance(count, list | tuple) else (count,):
            if isinstance(each, bool) or not isinstance(each, int | np.integer) or each < 1:
                raise ShapeError(
                    f"{name}: there must be at least one",
                    got=repr(count),
                    wanted="a whole number of at least 1",
                    advice=advice,
                )


def require_threads(threads: int | None) -> None:
    """Raise `BackendError` unless `threads` is None or a positive number."""
    if threads is not None and (not isinstance(threads, int | np.integer) or threads < 1):
        raise BackendError(
            "there must be threads to compute with", got=repr(threads), wanted=">= 1"
        )


def file_path(path: Any) -> Path:
    """`path` as a `Path`; `ReportedError` if it is neither that nor a string."""
    if not isinstance(path, str | PathLike):
        raise ReportedError(
            "this is no path of a file",
            got=type(path).__name__,
            wanted="a string or a Path",
            advice="arrays in memory: build(name).load_state_dict(arrays)",
        )
    return Path(path)


def require_head(network: Network, what: str) -> None:
    """Refuse, by name, what a backbone cannot do."""
    if not network.num_classes:
        raise CheckpointError(
            f"{what} needs a classifier, and this is a backbone without its head",
            got=f"{network.features} features",
            wanted="arrays called linear.weight and linear.bias",
            advice="load a checkpoint that holds its head, too",
        )
