"""What callers hand over, checked before anything is computed: images, types, counts, eps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from math import inf, prod
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.blocks.catalogue import norms
from repvgg_ref.errors import BackendError, CheckpointError, ReportedError, ShapeError
from repvgg_ref.models.graph import Network, extents
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Block, Flatten, Linear

NO_HEAD = (
    "a network without its head is not built: forward(x, layers=True) gives the last block's output"
)
_FLOATS = "float16, float32 or float64 (or bfloat16, once ml_dtypes is imported)"
_LARGEST_SIDE = 1024  # pixels, of a network that takes one size


def as_array(value: Any, what: str) -> Array:
    """`value` as an array: NumPy's and CuPy's as they are, a tensor of another library in NumPy.

    Raises
    ------
    ReportedError
        If it is a list, a number or anything else without a type and a shape of its own, or a
        tensor that is not in host memory.
    """
    if _is_masked(value) and np.any(value.mask):
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


def _is_masked(value: Any) -> bool:
    """Whether `value` is one of `numpy.ma`'s, which nobody has before that is imported."""
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    return masked is not None and isinstance(value, masked)


def image_batch(network: Network, x: Any) -> Array:
    """`x` as images for `network`, (N, in_channels, H, W), real or exact numbers.

    Raises
    ------
    ShapeError
        If it has another shape; a single image and NHWC are named for what they are. Of a dense
        network also if height or width is not 8k + 1, of one whose first linear layer takes every
        pixel (VGG-16) if they are not what it was built for.
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
    if network.is_dense:
        require_reduced(network, images.shape[2], images.shape[3])
    require_side(network, images.shape[2], images.shape[3])
    if not is_floating(images.dtype) and images.dtype != np.object_:
        raise ReportedError(
            f"{network.name}: the input must hold real numbers",
            got=images.dtype,
            wanted=f"{_FLOATS}, scaled and standardised as in training",
            advice="x.astype(numpy.float32) / 255, then minus the mean, over the deviation",
        )
    return images


def require_reduced(network: Network, height: int, width: int) -> None:
    """Raise `ShapeError` unless a dense network's images of this size are ``8 k + 1`` a side."""
    step: int = getattr(network, "reduction", 0)
    if step and (height < 1 or width < 1 or (height - 1) % step or (width - 1) % step):
        fits = (f"{max(0, -(-(n - 1) // step)) * step + 1}" for n in (height, width))
        raise ShapeError(
            f"{network.name}: height and width of images must be {step}k + 1",
            got=f"{height} x {width}",
            wanted=f"such as {' x '.join(fits)}",
            advice="pad the pictures; predict and eval do so",
        )


def fixed_side(network: Network) -> int | None:
    """Height and width of the images of a network whose linear layer takes every pixel.

    None where images may be of any size. Pools drop what does not fill a window, so that some
    larger ones pass, too: this is the smallest.
    """
    flat = _flattened(network)
    if flat is None:
        return None
    fits = (side for side in range(1, _LARGEST_SIDE) if _features(network, side, side) == flat[1])
    return next(fits, None)


def require_side(network: Network, height: int, width: int) -> None:
    """Raise `ShapeError` unless a network whose linear layer takes every pixel gets so many."""
    flat = _flattened(network)
    if flat is not None and _features(network, height, width) != flat[1]:
        side = fixed_side(network)
        raise ShapeError(
            f"{network.name}: its first linear layer takes every pixel, so images have one size",
            got=f"{height} x {width}",
            wanted=f"{side} x {side}",
            advice="resize the images, as predict and eval do without --size",
        )


def _flattened(network: Network) -> tuple[str, int] | None:
    """The node that makes features of all pixels, and how many its linear layer takes."""
    flat = next((node.name for node in network.evaluated if isinstance(node.op, Flatten)), None)
    if flat is None:
        return None
    after = next(node.op for node in network.evaluated if node.inputs == (flat,))
    return (flat, after.features) if isinstance(after, Linear) else None


def _features(network: Network, height: int, width: int) -> int:
    flat = _flattened(network)
    assert flat is not None
    return extents(network, height, width)[flat[0]][0]


def training_batch(network: Network, x: Any) -> Array:
    """`image_batch` of images that a training step can take.

    Raises
    ------
    ShapeError
        See `image_batch` and `require_statistics`.
    """
    images = image_batch(network, x)
    require_statistics(network, len(images), *images.shape[2:])
    return images


def require_statistics(network: Network, images: int, height: int, width: int) -> None:
    """Refuse a batch of which some batch norm sees one value a channel: it has no variance.

    Raises
    ------
    ShapeError
        If there is such a layer: behind a pyramid's mean of all pixels there is one an image.
    """
    sizes = extents(network, height, width)
    for node in network.nodes:
        normalised = isinstance(node.op, NormLinear) or (
            isinstance(node.op, Block) and bool(norms(node.op.spec))
        )
        if normalised and images * prod(sizes[node.name][1:]) == 1:
            raise ShapeError(
                "training: a batch norm sees one value a channel, which has no variance",
                got=f"1 image, of which {node.name} makes 1 pixel",
                wanted="2 images or more that are normalised together",
            )


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


def require_network(name: Any) -> None:
    """Raise `ReportedError` unless it is a network, or text that may name one."""
    if not isinstance(name, str | Network):
        raise ReportedError(
            "this is no network",
            got=type(name).__name__,
            wanted="a name of list_models(), or an Architecture",
        )


def require_own(arch: Network, asked: Mapping[str, Any]) -> Network:
    """The network; `ReportedError` if it is asked for what it does not have."""
    own = {
        "num_classes": arch.num_classes,
        "in_channels": arch.in_channels,
        "block": " and ".join(arch.kinds),
    }
    others = [what for what, value in asked.items() if value != own[what]]
    if others:
        raise ReportedError(
            "a network of your own is built as it is",
            got=", ".join(f"{what}={asked[what]!r}" for what in others),
            wanted=", ".join(f"{what}={own[what]!r}" for what in others),
            advice="say it where the network is made: architecture, plain_architecture",
        )
    return arch


def require_seed(seed: Any) -> None:
    """Raise `ReportedError` unless `seed` is a whole number from 0 on."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ReportedError("this is no seed", got=repr(seed), wanted="a whole number from 0 on")


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
