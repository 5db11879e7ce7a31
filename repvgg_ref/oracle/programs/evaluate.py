"""Running a program: one layer of a port, in float64, at the pixels that are wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import bn_scale
from repvgg_ref.oracle.programs.program import (
    BlockProgram,
    Pixels,
    Workspace,
    fused_kernel,
    output_size,
)


def evaluate(
    program: BlockProgram,
    x: Array,
    pixels: Pixels | None = None,
    workspace: Workspace | None = None,
) -> Array:
    """Run the program in float64.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    pixels : (rows, columns), optional
        Output pixels wanted. All are computed where SE or an output map needs them all.
    workspace : Workspace, optional
        For many programs on the same `x` and `pixels`.

    Returns
    -------
    array, shape (N, O, P) at `pixels`, or (N, O, Ho * Wo)
    """
    x = np.asarray(x, np.float64)
    if not program.branches and program.fused is None:
        return _skipped(program, x, pixels)
    size = output_size(program, *x.shape[2:])
    needs_all = program.se is not None or program.output_map is not None
    wanted = all_pixels(*size) if pixels is None or needs_all else pixels
    z = _before_activation(program, x, wanted, size, workspace or Workspace())
    y = _activate(program, z, size if needs_all else None)
    if program.output_map is not None:
        y = program.output_map(y.reshape(*y.shape[:2], *size)).reshape(y.shape)
    if pixels is not None and needs_all:
        return y[:, :, pixels[0] * size[1] + pixels[1]]
    return y


def _before_activation(
    program: BlockProgram, x: Array, pixels: Pixels, size: tuple[int, int], workspace: Workspace
) -> Array:
    """The sum of the branches, (N, O, P); a new array. `size` is the whole output's."""
    geometry = (
        id(program.input_map),
        program.stride,
        program.dilation,
        program.pads,
        program.pad_mode,
        len(pixels[0]),
    )

    def patches() -> Array:
        seen = x if program.input_map is None else np.asarray(program.input_map(x), np.float64)
        return gather(program, seen, *pixels)

    def product(name: str, weight: Array) -> Array:
        """One branch's convolution: its response to these patches, made once."""
        offset = program.offsets.get(name, (0, 0))
        return workspace.get(
            ("response", id(weight), offset, program.groups, *geometry),
            (weight, program.input_map),
            lambda: _product(program.groups, window(offset, weight), weight),
        )

    def window(offset: tuple[int, int], weight: Array) -> Array:
        found = workspace.get(("patches", *geometry), program.input_map, patches)
        if weight.shape[2] == 3:
            return found
        row, column = 1 + offset[0], 1 + offset[1]
        return found[..., row : row + 1, column : column + 1]

    if program.fused is not None or program.kernel_map is not None:
        kernel = fused_kernel(program, workspace)
        z = _product(program.groups, window((0, 0), kernel.weight), kernel.weight)
        return np.asarray(z + kernel.bias[:, None])
    parts = []
    for name, branch in program.branches.items():
        assert branch.weight is not None
        t = bn_scale(branch, program.eps)
        shift = branch.beta - branch.running_mean * t
        z = product(name, branch.weight)
        if program.se_inside:
            z = z * _gate(program, z.reshape(*z.shape[:2], *size))
        parts.append(t[:, None] * z + shift[:, None])
    if program.relu_inside:
        parts = [np.maximum(part, 0) for part in parts]
    return np.asarray(sum(parts))


def all_pixels(height: int, width: int) -> Pixels:
    """Every output pixel, row by row."""
    rows, columns = np.divmod(np.arange(height * width), width)
    return rows, columns


def gather(program: BlockProgram, x: Array, rows: Array, columns: Array) -> Array:
    """The 3x3 patches that output pixels see: (N, P, C, 3, 3)."""
    top, left, bottom, right = program.pads
    if program.pad_mode == "none":
        padded = x
    else:
        mode: Any = {"zeros": "constant", "reflect": "reflect", "edge": "edge"}[program.pad_mode]
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode=mode)
    taps = np.arange(3) * program.dilation
    r = rows[:, None, None] * program.stride + taps[:, None]  # (P, 3, 1)
    c = columns[:, None, None] * program.stride + taps[None, :]  # (P, 1, 3)
    return np.moveaxis(padded[:, :, r, c], 1, 2)  # (N, C, P, 3, 3) -> (N, P, C, 3, 3)


def _product(groups: int, patches: Array, weight: Array) -> Array:
    """``z[n, o, p] = sum over c, i, j of W[o, c, i, j] * patch[n, p, g*C/G + c, i, j]``."""
    n, p = patches.shape[:2]
    outputs = weight.shape[0]
    columns = patches.reshape(n * p, groups, -1).transpose(1, 2, 0)  # (G, K, N*P)
    rows = weight.reshape(groups, outputs // groups, -1)  # (G, O/G, K)
    y = (rows @ columns).reshape(outputs, n, p)  # (G, O/G, N*P) -> (O, N, P)
    return np.ascontiguousarray(y.transpose(1, 0, 2))


def _skipped(program: BlockProgram, x: Array, pixels: Pixels | None) -> Array:
    """A skipped layer: its input is its output."""
    y = x if program.output_map is None else program.output_map(x)
    flat = y.reshape(*y.shape[:2], -1)
    return flat if pixels is None else flat[:, :, pixels[0] * y.shape[3] + pixels[1]]


def _activate(program: BlockProgram, z: Array, size: tuple[int, int] | None) -> Array:
    """SE and ReLU on (N, C, P), in the program's order."""
    y = z
    for step in program.activation.split("-"):
        if step == "se" and program.se is not None:
            assert size is not None
            y = y * _gate(program, y.reshape(*y.shape[:2], *size))
        elif step in _ACTIVATIONS:
            y = _ACTIVATIONS[step](y)
    return y


def _sigmoid(y: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(y / 2)))


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "leaky": lambda y: np.maximum(y, 0.01 * y),
    "silu": lambda y: y * _sigmoid(y),
    "hardswish": lambda y: y * np.clip(y / 6 + 0.5, 0, 1),
    "gelu": lambda y: y * _sigmoid(1.702 * y),
}


def _gate(program: BlockProgram, y: Array) -> Array:
    """Sigmoid of the two SE layers, (N, C, 1) or (N, C, P) where the pool keeps an axis."""
    assert program.se is not None
    se, pooled = program.se, _pooled(program, y)
    hidden = np.einsum("mc,nchw->nmhw", se.down_weight, pooled) + _column(se.down_bias)
    if program.se_gate != "no-relu":
        hidden = np.maximum(hidden, 0)
    logit = np.einsum("cm,nmhw->nchw", se.up_weight, hidden) + _column(se.up_bias)
    hard = program.se_gate == "hard-sigmoid"
    gate = np.clip(logit / 6 + 0.5, 0, 1) if hard else _sigmoid(logit)
    if gate.shape[2:] == (1, 1):
        return gate.reshape(*y.shape[:2], 1)
    return np.broadcast_to(gate, y.shape).reshape(*y.shape[:2], -1)


def _pooled(program: BlockProgram, y: Array) -> Array:
    """The squeeze: (N, C, 1, 1), or with an axis left where a port forgets it."""
    if program.se_pool == "max":
        return np.asarray(y.max(axis=(2, 3), keepdims=True))
    if program.se_pool == "sum":
        return np.asarray(y.sum(axis=(2, 3), keepdims=True))
    if program.se_pool == "square":  # a W x W window, as if height were width
        side = min(y.shape[2:])
        return np.asarray(y[:, :, :side, :side].mean(axis=(2, 3), keepdims=True))
    return np.asarray(y.mean(axis=program.se_pool, keepdims=True))


def _column(vector: Array) -> Array:
    return vector[:, None, None]
