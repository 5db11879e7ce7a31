"""Concatenation of channels."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import ShapeError, require_equal


class ConcatCache(NamedTuple):
    """How many channels each part has."""

    channels: tuple[int, ...]


def concat_forward(*parts: Array) -> tuple[Array, ConcatCache]:
    """Put the channels of the parts behind each other (PSPNet, arXiv 1612.01105, Figure 3).

    Parameters
    ----------
    *parts : (N, C_k, H, W) arrays of one dtype, floating or exact

    Returns
    -------
    y : (N, sum of C_k, H, W) array
    cache : for `concat_backward`

    Raises
    ------
    ShapeError
        If there is no part, or one has not four axes, or other images or pixels than the first.
    """
    if not parts:
        raise ShapeError("concat: there must be a part", got="none", wanted="one or more arrays")
    for number, part in enumerate(parts):
        require_equal("concat", f"parts[{number}].ndim", part.ndim, "len((N, C, H, W))", 4)
        got, wanted = ((*each.shape[:1], *each.shape[2:]) for each in (part, parts[0]))
        require_equal("concat", f"(N, H, W) of parts[{number}]", got, "that of parts[0]", wanted)
    y: Array = array_module(parts[0]).concatenate(parts, axis=1)
    return y, ConcatCache(tuple(part.shape[1] for part in parts))


def concat_backward(grad_y: Array, cache: ConcatCache) -> tuple[Array, ...]:
    """Gradients with respect to the parts: each gets its own channels.

    Parameters
    ----------
    grad_y : (N, sum of C_k, H, W) array, dtype of ``y``
    cache : from `concat_forward`

    Returns
    -------
    tuple of (N, C_k, H, W) arrays, dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the channels of ``y``.
    """
    ends = tuple(accumulate(cache.channels))
    require_equal("concat", "grad_y.shape[1]", grad_y.shape[1], "channels of y", ends[-1])
    starts = (0, *ends[:-1])
    return tuple(grad_y[:, start:end].copy() for start, end in zip(starts, ends, strict=True))
