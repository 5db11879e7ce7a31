"""A block as somebody's port computes it, right or wrong: the thing that bugs mutate.

`BlockProgram` says everything a port can do differently: the branches' numbers, what happens to
the fused kernel afterwards, where the kernel's taps land on the image, which border it sees, and
in which order the activation functions come. A bug is a function from program to program, so that
two bugs at once are a composition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, fuse_branches, window
from repvgg_ref.blocks.catalogue import linear_expression
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.blocks.unfuse import leaf_name, leaves
from repvgg_ref.oracle.programs.activation import ACTIVATIONS, SqueezeExcitationParams, gate
from repvgg_ref.oracle.programs.program import Pixels, Workspace

PadMode = Literal["zeros", "reflect", "edge", "none"]
Offset = tuple[int, int]

# The branches that bugs speak of by name.
DENSE, POINTWISE, IDENTITY = "branch_3x3", "branch_1x1", "branch_identity"


@dataclass(frozen=True)
class BlockProgram:
    """What one block of a port does, in the order in which it does it.

    Attributes
    ----------
    input_map : callable
        Applied to the block's input (N, C, H, W) first: a permutation, a rounding, a rescaling.
    branches : mapping
        float64 branches; empty if only the fused kernel is known (a deploy reference).
    at_eps : callable or None
        The branches where every norm has another eps, if some have norms inside.
    fused : FusedConv or None
        The kernel instead of `branches`, in a deploy reference; with neither the block is skipped.
    kernel_map : callable
        Applied to the fused kernel and bias: a transposition, a quantisation.
    size : (int, int)
        Rows and columns of taps that an output sees.
    pads : (top, left, bottom, right)
        Pixels of border; `pad_mode` says what they hold.
    offsets : mapping
        Branch -> (rows, columns) by which its kernel is displaced: the 1x1 on another tap.
    relu_inside, se_inside : bool
        ReLU after, or SE before the batch norm of, every branch (not fusible).
    activation : "se-relu", "relu-se", "relu", "se", "none", or with another activation
    se_pool, se_gate
        As `activation.gate` takes them.
    output_map : callable
        Applied to the block's output last.
    parts : mapping
        The block's arrays by part name, float64, where branches have norms or sums inside.
    lacks : frozenset of str
        What is left out inside branches (`inner.inner_terms`).
    """

    spec: BlockSpec
    branches: Mapping[str, Branch]
    eps: float
    fused: FusedConv | None = None
    at_eps: Callable[[float], Mapping[str, Branch]] | None = None
    se: SqueezeExcitationParams | None = None
    input_map: Callable[[Array], Array] | None = None
    kernel_map: Callable[[FusedConv], FusedConv] | None = None
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    size: tuple[int, int] = (3, 3)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    pad_mode: PadMode = "zeros"
    offsets: Mapping[str, Offset] = field(default_factory=dict)
    relu_inside: bool = False
    se_inside: bool = False
    activation: str = "relu"
    se_pool: Any = (2, 3)
    se_gate: str = "sigmoid"
    output_map: Callable[[Array], Array] | None = None
    parts: Mapping[str, Array] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The block's."""
        return self.spec.name

    @property
    def is_skipped(self) -> bool:
        """Whether the output is the input."""
        return not self.branches and self.fused is None

    def with_input(self, change: Callable[[Array], Array]) -> BlockProgram:
        """The same after `change` of the input; an earlier map stays and comes second."""
        then = self.input_map
        return replace(self, input_map=change if then is None else lambda x: then(change(x)))

    def with_kernel(self, change: Callable[[FusedConv], FusedConv]) -> BlockProgram:
        """The same with `change` after whatever is done to the fused kernel already."""
        first = self.kernel_map
        return replace(self, kernel_map=change if first is None else lambda k: change(first(k)))

    @property
    def norms(self) -> tuple[str, ...]:
        """The branches that have a batch norm."""
        return tuple(name for name, branch in self.branches.items() if branch.has_norm)

    @property
    def branches_of_norms(self) -> dict[str, tuple[str, ...]]:
        """The branches of each batch norm; of several, the first has its mean and beta."""
        behind: dict[str, list[str]] = {}
        norms = self.norms
        for name, norm in _norms_behind(self.spec):
            if name in norms:
                behind.setdefault(norm, []).append(name)
        return {norm: tuple(names) for norm, names in behind.items()}

    def with_branches(self, change: Callable[[str, Branch], Branch]) -> BlockProgram:
        """The same with every branch changed."""
        return replace(self, branches={n: change(n, b) for n, b in self.branches.items()})

    def with_branch(self, chosen: str, change: Callable[[Branch], Branch]) -> BlockProgram:
        """The same with one branch changed."""
        return self.with_branches(lambda name, b: change(b) if name == chosen else b)

    def without(self, branch: str) -> BlockProgram:
        """The same with one branch removed."""
        return replace(self, branches={n: b for n, b in self.branches.items() if n != branch})

    def of_channels(self, rows: slice) -> BlockProgram:
        """The same with some output channels only, for whoever asks for the kernel alone."""
        fused = self.fused
        return replace(
            self.with_branches(lambda _, branch: branch.arrays(lambda array: array[rows])),
            fused=fused and FusedConv(fused.weight[rows], fused.bias[rows]),
        )

    def has_own_norm(self, branch: str) -> bool:
        """Whether the branch's batch norm is no other's, so that it comes and goes with it."""
        return (branch,) in self.branches_of_norms.values()

    def output_size(self, height: int, width: int) -> tuple[int, ...]:
        """Height and width of the output; less than 1 if the kernel does not fit."""
        if self.is_skipped:
            return height, width
        top, left, bottom, right = (0, 0, 0, 0) if self.pad_mode == "none" else self.pads
        high, wide = ((n - 1) * self.dilation for n in self.size)
        return (
            (height + top + bottom - high - 1) // self.stride + 1,
            (width + left + right - wide - 1) // self.stride + 1,
        )

    def as_one_convolution(self) -> BlockProgram:
        """The same with the fused kernel for its branches; a program that cannot is returned."""
        if self.relu_inside or self.se_inside or self.is_skipped:
            return self
        kernel = self.fused_kernel()
        return replace(self, branches={}, offsets={}, fused=kernel, kernel_map=None)

    def fused_kernel(self, workspace: Workspace | None = None) -> FusedConv:
        """Kernel (O, C/G, Kh, Kw) and bias, float64, with `kernel_map` applied."""
        if self.fused is not None:
            kernel = self.fused
        elif self.offsets:
            kernel = self._sum_of_displaced()
        else:
            kernel = (
                self._sum
                if workspace is None
                else workspace.get(
                    ("fused", id(self.branches), self.eps), self.branches, lambda: self._sum
                )
            )
        return kernel if self.kernel_map is None else self.kernel_map(kernel)

    @cached_property
    def _sum(self) -> FusedConv:
        """A sum whose largest branch is missing is smaller than the block's kernel."""
        fused = fuse_branches(self.branches, self.eps)
        return fused._replace(weight=self.widened(fused.weight))

    def _sum_of_displaced(self) -> FusedConv:
        weight, bias = np.zeros(()), np.zeros(())
        for name, branch in self.branches.items():
            weight = weight + self.widened(branch.kernel(self.eps), self.offset(name))
            bias = bias + branch.bias(self.eps)
        return FusedConv(weight, bias)

    def widened(self, weight: Array, offset: Offset = (0, 0)) -> Array:
        """A kernel on all taps, with zeros around it."""
        wide = np.zeros((*weight.shape[:2], *self.size))
        wide[:, :, *window(weight.shape[2:], self.size, offset)] = weight
        return wide

    def room(self, branch: str) -> Offset:
        """By how many taps a branch's kernel can be displaced within the block's, either way."""
        own = self.branches[branch].weight.shape[2:]
        return (self.size[0] - own[0]) // 2, (self.size[1] - own[1]) // 2

    def offset(self, branch: str) -> Offset:
        """By how much a branch's kernel is displaced."""
        return self.offsets.get(branch, (0, 0))

    def evaluate(
        self, x: Array, pixels: Pixels | None = None, workspace: Workspace | None = None
    ) -> Array:
        """The output (N, O, P), float64. All is computed where SE or an output map needs it all."""
        x = np.asarray(x, np.float64)
        height, width = self.output_size(*x.shape[2:])
        needs_all = self.is_skipped or self.se is not None or self.output_map is not None
        wanted = None if needs_all else pixels

        def as_image(y: Array) -> Array:
            return y.reshape(*y.shape[:2], height, width)

        if self.is_skipped:
            y = x.reshape(*x.shape[:2], -1)
        else:
            y = self._before_activation(x, wanted, as_image, workspace or Workspace())
        for step in self.activation.split("-"):
            if step == "se" and self.se is not None:
                y = y * self._gate(as_image(y))
            elif step in ACTIVATIONS:
                y = ACTIVATIONS[step](y)
        if self.output_map is not None:
            y = self.output_map(as_image(y)).reshape(y.shape)
        return y[:, :, pixels[0] * width + pixels[1]] if pixels is not None and needs_all else y

    def evaluate_linear(self, x: Array) -> Array:
        """What stands in front of SE and activation, (N, O, Ho, Wo), float64."""
        bare = replace(self, activation="none", output_map=None, se=None)
        return bare.evaluate(x).reshape(len(x), -1, *self.output_size(*x.shape[2:]))

    def _gate(self, y: Array) -> Array:
        assert self.se is not None
        return gate(self.se, y, self.se_pool, self.se_gate)

    def _before_activation(
        self,
        x: Array,
        pixels: Pixels | None,
        as_image: Callable[[Array], Array],
        workspace: Workspace,
    ) -> Array:
        """The sum of the branches, (N, O, P), at all pixels without `pixels`; a new array."""
        geometry = (
            id(self.input_map),
            self.stride,
            self.dilation,
            self.pads,
            self.pad_mode,
            None if pixels is None else len(pixels[0]),
        )

        def columns() -> Array:
            seen = x if self.input_map is None else np.asarray(self.input_map(x), np.float64)
            if pixels is None:
                return self._windows(seen)
            return self.gather(seen, *pixels).transpose(2, 3, 4, 0, 1)

        def product(weight: Array, offset: Offset) -> Array:
            found = workspace.get(("columns", *geometry), self.input_map, columns)
            seen = window(weight.shape[2:], self.size, offset)
            return _product(self.groups, found[:, *seen], weight)

        if self.fused is not None or self.kernel_map is not None:
            kernel = self.fused_kernel(workspace)
            return np.asarray(product(kernel.weight, (0, 0)) + kernel.bias[:, None])
        parts = []
        for name, branch in self.branches.items():
            weight, offset = branch.weight, self.offset(name)
            t, shift = branch.scale(self.eps), branch.bias(self.eps)
            z = workspace.get(
                ("response", id(weight), offset, self.groups, *geometry),
                (weight, self.input_map),
                partial(product, weight, offset),
            )
            if self.se_inside:
                z = z * self._gate(as_image(z))
            parts.append(t[:, None] * z + shift[:, None])
        if self.relu_inside:
            parts = [np.maximum(part, 0) for part in parts]
        return np.asarray(sum(parts))

    def gather(self, x: Array, rows: Array, columns: Array) -> Array:
        """The patches that output pixels see: (N, P, C, Kh, Kw)."""
        padded = self._padded(x)
        down, across = (np.arange(n) * self.dilation for n in self.size)
        r = rows[:, None, None] * self.stride + down[:, None]  # (P, Kh, 1)
        c = columns[:, None, None] * self.stride + across[None, :]  # (P, 1, Kw)
        return np.moveaxis(padded[:, :, r, c], 1, 2)  # (N, C, P, Kh, Kw) -> (N, P, C, Kh, Kw)

    def _windows(self, x: Array) -> Array:
        """The patches that all output pixels see: (C, Kh, Kw, N, P)."""
        n, c = x.shape[:2]
        height, width = self.output_size(*x.shape[2:])
        padded = self._padded(x).transpose(1, 0, 2, 3)
        found = np.empty((c, *self.size, n, height, width), x.dtype)
        down, across = (slice(0, (m - 1) * self.stride + 1, self.stride) for m in (height, width))
        for i, j in np.ndindex(*self.size):
            from_tap = padded[:, :, i * self.dilation :, j * self.dilation :]
            found[:, i, j] = from_tap[:, :, down, across]
        return found.reshape(c, *self.size, n, height * width)

    def _padded(self, x: Array) -> Array:
        """The input with its border."""
        if self.pad_mode == "none":
            return x
        top, left, bottom, right = self.pads
        if self.pad_mode != "zeros":
            mode: Any = self.pad_mode
            return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode=mode)
        height, width = x.shape[2:]
        padded = np.zeros((*x.shape[:2], top + height + bottom, left + width + right), x.dtype)
        padded[:, :, top : top + height, left : left + width] = x
        return padded

    def responses(self, x: Array) -> dict[str, Array]:
        """Each branch before its batch norm, on every pixel of `x`: (N, O, P)."""
        found = self._windows(x)
        return {
            name: _product(
                self.groups, found[:, *window(branch.weight.shape[2:], self.size)], branch.weight
            )
            for name, branch in self.branches.items()
        }


@lru_cache(maxsize=1024)
def _norms_behind(spec: BlockSpec) -> tuple[tuple[str, str], ...]:
    """Branches, each with the batch norm behind it; those without one are left out."""
    found = leaves(linear_expression(spec))
    return tuple((leaf_name(leaf), norm) for leaf, norm in found if norm is not None)


def _product(groups: int, patches: Array, weight: Array) -> Array:
    """``z[n, o, p] = sum over c, i, j of W[o, c, i, j] * patch[g*C/G + c, i, j, n, p]``."""
    n, p = patches.shape[-2:]
    outputs = weight.shape[0]
    columns = patches.reshape(groups, -1, n * p)  # (G, K, N*P)
    rows = weight.reshape(groups, outputs // groups, -1)  # (G, O/G, K)
    y = (rows @ columns).reshape(outputs, n, p)  # (G, O/G, N*P) -> (O, N, P)
    return np.ascontiguousarray(y.transpose(1, 0, 2))
