"""What a sum of branches is made of: outputs that are kept, and matrices whose outputs are not."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.conv2d import Conv2dCache, window_of
from repvgg_ref.cpu.convolution.direct import Window, pack_weight
from repvgg_ref.cpu.training import moments, passes
from repvgg_ref.cpu.training.convolutions import (
    Convolution,
    Geometry,
    convolution_of,
    convolve,
)
from repvgg_ref.cpu.training.moments import Moments
from repvgg_ref.cpu.training.passes import Grid, Inputs
from repvgg_ref.errors import require_equal

WIDEST = 112
"""C/G up to which an output that is not kept, but its products (C, C), is faster (96 to 128)."""


class Branch(NamedTuple):
    """A term of a sum: a kernel (O, C/G, K, K) of x, or its `output` (N, Ho, Wo, O); its norm.

    A branch without both is the identity; one without gamma and beta (O,) has no norm.
    """

    weight: Array | None
    gamma: Array | None = None
    beta: Array | None = None
    output: Array | None = None


class Parts(NamedTuple):
    """The branches of a sum, sorted."""

    grid: Grid
    convs: Mapping[str, Convolution]  # whose outputs are kept
    outputs: Mapping[str, Array]  # of all branches that are no matrices
    matrices: Mapping[str, Array]  # float64 (G, C/G, O/G), C as in `Inputs`
    inputs: Inputs | None  # None: there are no matrices
    of_x: Moments | None  # None: no matrix has a norm


Kept = MutableMapping[tuple[int, Window], "tuple[Inputs, Moments | None]"]
"""What several sums over one x share: by its id and the windows that they see."""


def sort_branches(
    x: Array | None, branches: Mapping[str, Branch], geometry: Geometry, kept: Kept | None
) -> Parts:
    """Compute what is to be kept of the branches."""
    convs = {
        name: convolution_of(x, branch.weight, geometry)
        for name, branch in branches.items()
        if branch.weight is not None and x is not None
    }
    inputs = _inputs(convs)
    matrices = {} if inputs is None else _matrices(branches, inputs)
    if all(branches[name].weight is None for name in matrices):
        matrices, inputs = {}, None  # the identity alone is x itself, no product
    convs = {name: conv for name, conv in convs.items() if name not in matrices}
    outputs = {
        name: _output(name, branch, convs, x)
        for name, branch in branches.items()
        if name not in matrices
    }
    if inputs is None:
        first = next(iter(outputs.values()))
        return Parts(passes.make_grid(*first.shape), convs, outputs, {}, None, None)
    normed = any(branches[name].gamma is not None for name in matrices)
    inputs, of_x = _seen(inputs, kept, normed=normed)
    return Parts(inputs.grid, convs, outputs, matrices, inputs, of_x)


def _inputs(convs: Mapping[str, Convolution]) -> Inputs | None:
    """What matrices meet: whole windows if these are no longer than the outputs, else pixels."""
    square = [conv for conv in convs.values() if isinstance(conv, Conv2dCache)]
    if not square:
        return None
    largest = max(square, key=lambda conv: conv.shape.kernel)
    shape, window = largest.shape, window_of(largest)
    if window.kernel**2 * shape.channels > min(shape.outputs, shape.groups * WIDEST):
        window = window._replace(kernel=1, dilation=1, border=0)
    channels = max(window.kernel**2 * shape.channels, shape.outputs)
    grid = passes.make_grid(shape.images, shape.height, shape.width, channels)
    return Inputs(grid, largest.x, window, None)


def _matrices(branches: Mapping[str, Branch], inputs: Inputs) -> dict[str, Array]:
    """Kernels that are matrices, and the identity, as float64 (G, K * K * C/G, O/G).

    Of wide inputs a norm's products (C, C) cost more than an output that is kept.
    """
    kernel, groups = inputs.window.kernel, inputs.window.groups
    inner = inputs.x.shape[3] // groups
    wide = kernel**2 * inner > WIDEST
    found = {}
    for name, branch in branches.items():
        if branch.output is not None or (wide and branch.gamma is not None):
            continue
        weight = branch.weight
        if weight is None:
            eye = np.broadcast_to(np.eye(inner), (groups, inner, inner))
            weight = eye.reshape(groups * inner, inner, 1, 1)
        if max(weight.shape[2:]) <= kernel:
            around = (kernel - weight.shape[2]) // 2
            if around:
                weight = np.pad(weight, [(0, 0), (0, 0), (around, around), (around, around)])
            found[name] = pack_weight(weight, groups).astype(np.float64)
    return found


def as_kernel(matrix: Array, weight: Array, window: Window) -> Array:
    """Back from (G, K * K * C/G, O/G) to the shape of `weight`, (O, C/G, k, k), k <= K."""
    outputs, inner, kernel, _ = weight.shape
    split = matrix.reshape(len(matrix), window.kernel, window.kernel, inner, -1)
    around = (window.kernel - kernel) // 2
    middle = slice(around, around + kernel)
    # (G, k, k, C/G, O/G) -> (G, O/G, C/G, k, k) -> (O, C/G, k, k)
    taps = split[:, middle, middle].transpose(0, 4, 3, 1, 2)
    return taps.reshape(outputs, inner, kernel, kernel)


def _output(name: str, branch: Branch, convs: Mapping[str, Convolution], x: Array | None) -> Array:
    """(N, Ho, Wo, O), contiguous: given, computed, or x itself."""
    if branch.output is None and branch.weight is not None:
        return convolve(convs[name])
    return np.ascontiguousarray(x if branch.output is None else branch.output)


def _seen(inputs: Inputs, kept: Kept | None, *, normed: bool) -> tuple[Inputs, Moments | None]:
    """The windows of x, and their moments if they are `normed`: from `kept`, or computed."""
    key = id(inputs.x), inputs.window
    columns, of_x = (None, None) if kept is None else kept.get(key, (None, None))
    if columns is not None:
        inputs = inputs._replace(columns=columns.columns)
    else:
        inputs = passes.gathered(inputs)
    if of_x is None and normed:
        of_x = moments.product_moments(inputs)
    if kept is not None:
        kept[key] = inputs, of_x
    return inputs, of_x


def require_vectors(branches: Mapping[str, Branch], outputs: int) -> None:
    """Raise `ShapeError` unless every norm has so many channels."""
    for name, branch in branches.items():
        for what in ("gamma", "beta"):
            vector = getattr(branch, what)
            if vector is not None:
                require_equal("branches", f"{name}.{what}.shape", vector.shape, "(O,)", (outputs,))
