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
from repvgg_ref.blocks.block import Branch
from repvgg_ref.blocks.fusion import FusedConv, as_convolutions, bn_scale, fuse_branches
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation

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
    se_inside : bool
        SE gates every branch's convolution, before its batch norm (not fusible).
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
    se_inside: bool = False
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

    def with_branch(self, chosen: str, change: Callable[[Branch], Branch]) -> BlockProgram:
        """The same with one branch changed."""
        return self.with_branches(lambda name, b: change(b) if name == chosen else b)


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
        name: Branch(
            None if branch.weight is None else _float64(branch.weight),
            *(_float64(vector) for vector in branch[1:] if vector is not None),
        )
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


class Workspace:
    """What evaluations of many programs on one input share: patches and branches' responses.

    Keys are the identities of the arrays and functions that went in; they are kept alive here.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[Array, Any]] = {}

    def get(self, key: tuple[Any, ...], alive: Any, make: Callable[[], Array]) -> Array:
        """The array under `key`, made once; `alive` is what the key's identities belong to."""
        if key not in self._kept:
            self._kept[key] = make(), alive
        return self._kept[key][0]


def fused_kernel(program: BlockProgram, workspace: Workspace | None = None) -> FusedConv:
    """The program's kernel (O, C/G, 3, 3) and bias, float64, with its `kernel_map` applied."""
    if program.fused is not None:
        kernel = program.fused
    elif program.offsets:
        parts = _separate(program)
        kernel = FusedConv(sum(p.weight for p in parts), sum(p.bias for p in parts))  # type: ignore[arg-type]
    elif program.branches:
        kept = workspace or Workspace()
        made = kept.get(
            ("fused", id(program.branches), program.eps),
            program.branches,
            lambda: fuse_branches(program.branches, program.eps),  # type: ignore[arg-type,return-value]
        )
        kernel = FusedConv(*made)
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
