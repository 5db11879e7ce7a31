"""A block as somebody's port computes it, right or wrong: the thing that hypotheses mutate.

`BlockProgram` says everything a port can do differently: the branches' numbers, what happens to
the fused kernel afterwards, where the kernel's taps land on the image, which border it sees, and
in which order the activation functions come. A right program is `correct_program`; a bug is a
function from program to program, so that two bugs at once are a composition. `evaluate` runs one
in float64, at chosen output pixels only where that is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.repvgg import Branch
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.fusion import FusedConv, as_convolutions, bn_scale, fuse_branches

PadMode = Literal["zeros", "reflect", "edge", "none"]
Pixels = tuple[Array, Array]


class SqueezeExcitationParams(NamedTuple):
    """Weights (Cm, C), (C, Cm) and biases of an SE block, float64."""

    down_weight: Array
    down_bias: Array
    up_weight: Array
    up_bias: Array


@dataclass(frozen=True)
class BlockProgram:
    """What one layer of a port does, in the order in which it does it.

    Attributes
    ----------
    input_map : callable
        Applied to the layer's input (N, C, H, W) first: a permutation, a rounding, a rescaling.
    branches : mapping
        float64 branches; empty if only the fused kernel is known (a deploy reference).
    fused : FusedConv or None
        The kernel instead of `branches`, in a deploy reference.
    kernel_map : callable
        Applied to the fused kernel and bias: a transposition, a quantisation.
    stride, dilation, groups : int
    pads : (top, left, bottom, right)
        Pixels of border; `pad_mode` says what they hold.
    offsets : mapping
        Branch -> (rows, columns) by which its kernel is displaced: the 1x1 on another tap.
    relu_inside : bool
        ReLU in every branch before the sum (not fusible).
    activation : "se-relu", "relu-se", "relu", "se", "none", or with another activation
    se_pool : axes that squeeze averages over, or "max", "sum", "square"
    se_gate : "sigmoid", "hard-sigmoid", or "no-relu" between the two layers
    output_map : callable
        Applied to the layer's output last.
    """

    spec: BlockSpec
    branches: Mapping[str, Branch]
    eps: float
    fused: FusedConv | None = None
    se: SqueezeExcitationParams | None = None
    input_map: Callable[[Array], Array] | None = None
    kernel_map: Callable[[FusedConv], FusedConv] | None = None
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    pad_mode: PadMode = "zeros"
    offsets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    relu_inside: bool = False
    activation: str = "relu"
    se_pool: Any = (2, 3)
    se_gate: str = "sigmoid"
    output_map: Callable[[Array], Array] | None = None

    def with_input(self, change: Callable[[Array], Array]) -> BlockProgram:
        """The same after `change` of the input; an earlier map stays and comes second."""
        then = self.input_map
        return replace(self, input_map=change if then is None else lambda x: then(change(x)))

    def with_kernel(self, change: Callable[[FusedConv], FusedConv]) -> BlockProgram:
        """The same with `change` after whatever is done to the fused kernel already."""
        first = self.kernel_map
        return replace(self, kernel_map=change if first is None else lambda k: change(first(k)))

    def with_branches(self, change: Callable[[str, Branch], Branch | None]) -> BlockProgram:
        """The same with every branch changed; None removes a branch."""
        changed = {name: change(name, branch) for name, branch in self.branches.items()}
        return replace(self, branches={n: b for n, b in changed.items() if b is not None})


def correct_program(
    spec: BlockSpec, params: Mapping[str, Array], eps: float, branches: Mapping[str, Branch]
) -> BlockProgram:
    """The layer as it should be; `branches` is empty for a deploy reference."""
    fused = None
    if not branches:
        fused = FusedConv(
            _float64(params[f"{spec.name}.fused.weight"]),
            _float64(params[f"{spec.name}.fused.bias"]),
        )
    exact = {
        name: Branch(*(None if f is None else _float64(f) for f in branch))
        for name, branch in branches.items()
    }
    return BlockProgram(
        spec=spec,
        branches=as_convolutions(spec, exact) if exact else {},
        eps=eps,
        fused=fused,
        se=_se_params(spec, params),
        stride=spec.stride,
        dilation=spec.dilation,
        groups=spec.groups,
        pads=(spec.dilation,) * 4,
        activation=_ACTIVATION[spec.se],
    )


_ACTIVATION: dict[SqueezeExcitation, str] = {
    "none": "relu",
    "before_relu": "se-relu",
    "after_relu": "relu-se",
}


def fused_kernel(program: BlockProgram) -> FusedConv:
    """The program's kernel (O, C/G, 3, 3) and bias, float64, with its `kernel_map` applied."""
    if program.fused is not None:
        kernel = program.fused
    elif program.branches:
        kernel = _fuse_displaced(program)
    else:
        raise ValueError("a program needs branches or a fused kernel")
    return kernel if program.kernel_map is None else program.kernel_map(kernel)


def output_size(program: BlockProgram, height: int, width: int) -> tuple[int, int]:
    """Height and width of the program's output; less than 1 if the kernel does not fit."""
    top, left, bottom, right = (0, 0, 0, 0) if program.pad_mode == "none" else program.pads
    reach = 2 * program.dilation
    return (
        (height + top + bottom - reach - 1) // program.stride + 1,
        (width + left + right - reach - 1) // program.stride + 1,
    )


def evaluate(program: BlockProgram, x: Array, pixels: Pixels | None = None) -> Array:
    """Run the program in float64.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    pixels : (rows, columns), optional
        Output pixels wanted. Ignored (all are computed) where SE or an output map needs them all.

    Returns
    -------
    array, shape (N, O, P) at `pixels`, or (N, O, Ho * Wo)
    """
    x = _float64(x)
    if program.input_map is not None:
        x = _float64(program.input_map(x))
    if not program.branches and program.fused is None:
        return _finish(program, x, pixels)  # the layer is skipped
    size = output_size(program, *x.shape[2:])
    needs_all = program.se is not None or program.output_map is not None
    rows, columns = all_pixels(*size) if pixels is None or needs_all else pixels
    patches = gather(program, x, rows, columns)  # (N, P, C, 3, 3)
    if program.relu_inside:
        z = sum(np.maximum(_product(program, patches, part), 0) for part in _separate(program))
    else:
        z = _product(program, patches, fused_kernel(program))
    y = _activate(program, np.asarray(z).reshape(*z.shape[:2], -1), size if needs_all else None)
    if program.output_map is not None:
        y = program.output_map(y.reshape(*y.shape[:2], *size)).reshape(y.shape)
    if pixels is not None and needs_all:
        return y[:, :, pixels[0] * size[1] + pixels[1]]
    return y


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


def _product(program: BlockProgram, patches: Array, kernel: FusedConv) -> Array:
    """``y[n, o, p] = sum over c, i, j of W[o, c, i, j] * patch[n, p, g*C/G + c, i, j] + b[o]``."""
    n, p = patches.shape[:2]
    groups, outputs = program.groups, kernel.weight.shape[0]
    columns = patches.reshape(n * p, groups, -1).transpose(1, 2, 0)  # (G, K, N*P)
    weight = kernel.weight.reshape(groups, outputs // groups, -1)  # (G, O/G, K)
    y = (weight @ columns).reshape(outputs, n, p)  # (G, O/G, N*P) -> (O, N, P)
    return np.asarray(y.transpose(1, 0, 2) + kernel.bias[:, None])


def _fuse_displaced(program: BlockProgram) -> FusedConv:
    """Fuse, with each branch's kernel moved by its offset within the 3x3 window."""
    fused = fuse_branches(program.branches, program.eps) if not program.offsets else None
    if fused is not None:
        return fused
    parts = _separate(program)
    return FusedConv(sum(p.weight for p in parts), sum(p.bias for p in parts))  # type: ignore[arg-type]


def _separate(program: BlockProgram) -> list[FusedConv]:
    """Each branch as a 3x3 convolution of its own."""
    parts = []
    for name, branch in program.branches.items():
        assert branch.weight is not None
        t = bn_scale(branch, program.eps)
        kernel = branch.weight * t[:, None, None, None]
        if kernel.shape[2] == 1:
            row, column = program.offsets.get(name, (0, 0))
            wide = np.zeros((*kernel.shape[:2], 3, 3))
            wide[:, :, 1 + row, 1 + column] = kernel[:, :, 0, 0]
            kernel = wide
        parts.append(FusedConv(kernel, branch.beta - branch.running_mean * t))
    return parts


def _finish(program: BlockProgram, x: Array, pixels: Pixels | None) -> Array:
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


def _se_params(spec: BlockSpec, params: Mapping[str, Array]) -> SqueezeExcitationParams | None:
    if spec.se == "none":
        return None
    down, down_bias, up, up_bias = (
        _float64(params[f"{spec.name}.se.{part}"])
        for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return SqueezeExcitationParams(down[:, :, 0, 0], down_bias, up[:, :, 0, 0], up_bias)


def _float64(array: Array) -> Array:
    return np.asarray(array).astype(np.float64, copy=False)
