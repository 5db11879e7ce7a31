"""The algebra of linear blocks: what a block computes, how it is trained, what it fuses to.

A RepVGG block before its ReLU (arXiv 2101.03697, section 3.3, figure 4) is the expression

    Sum(
        Chain(Conv("branch_3x3.conv", C, O, (3, 3), padding=(1, 1)), Norm("branch_3x3.bn", O)),
        Chain(Conv("branch_1x1.conv", C, O, (1, 1)), Norm("branch_1x1.bn", O)),
        Chain(Identity("branch_identity", C), Norm("branch_identity.bn", O)),
    )

Every expression has a normal form (`form`), and the paper's section is four of its rules. Equation
(3) is `Norm`: a batch norm behind a convolution scales its kernel by gamma / sqrt(var + eps) and
moves its bias. "An identity can be viewed as a 1x1 convolution with an identity matrix" is
`Identity`. "Zero-padding the 1x1 kernels to 3x3" is `Lattice`: a 1x1 kernel has its one tap at
offset (0, 0), in the middle of a 3x3 kernel's. "Adding up" is `Sum`.

The names of leaves are those of a block's arrays: ``branch_3x3.conv`` owns
``branch_3x3.conv.weight``. In evaluation, training (`forward`, `backward`) and fusion (`form`)
arrays may be floats or exact rationals; settings that have no exact form are refused with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.arrays import Array, scalar_like
from repvgg_ref.blocks.form import Form, Lattice, Pair, Term, add, compose, ungrouped
from repvgg_ref.blocks.run import (
    EVERYTHING,
    NORM_VECTORS,
    BatchStats,
    Linear,
    Reader,
    Run,
    Shapes,
    roots,
)
from repvgg_ref.blocks.wiring import chain_growth, require_groups, require_order, require_terms


@dataclass(frozen=True)
class Conv:
    """Cross-correlation (rule 1), `padding` on both sides of an axis."""

    name: str
    in_channels: int
    out_channels: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False
    starts_at_zero: bool = False

    def __post_init__(self) -> None:
        require_groups(self.name, self.groups, self.in_channels, self.out_channels)

    @property
    def settings(self) -> dict[str, Any]:
        """How an operator convolves."""
        pairs = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        # one number where both agree, as fast paths want it
        single = {name: pair[0] if pair[0] == pair[1] else pair for name, pair in pairs.items()}
        return {**single, "groups": self.groups}

    @property
    def starts(self) -> dict[str, float]:
        """The kernel, where it is zero before training."""
        return {f"{self.name}.weight": 0.0} if self.starts_at_zero else {}

    @property
    def growth(self) -> Pair:
        """Of the image, before the stride."""
        both = zip(self.padding, self.dilation, self.kernel, strict=True)
        rows, columns = (2 * p - d * (k - 1) for p, d, k in both)
        return rows, columns

    @property
    def lattice(self) -> Lattice:
        """Where the taps lie."""
        return Lattice((-self.padding[0], -self.padding[1]), self.dilation, self.kernel)

    def shapes(self) -> Shapes:
        """Kernel (O, C/G, Kh, Kw), and a bias (O,)."""
        kernel = (self.out_channels, self.in_channels // self.groups, *self.kernel)
        return {f"{self.name}.weight": kernel} | (
            {f"{self.name}.bias": kernel[:1]} if self.bias else {}
        )

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = W * x + b``."""
        bias = run.params[f"{self.name}.bias"] if self.bias else None
        weight = run.params[f"{self.name}.weight"]
        return run.ops.conv2d_forward(x, weight, bias, **self.settings)

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """As `conv2d_backward`."""
        grads = run.ops.conv2d_backward(grad_y, cache)
        run.add_grad(f"{self.name}.weight", grads.grad_weight)
        if grads.grad_bias is not None:
            run.add_grad(f"{self.name}.bias", grads.grad_bias)
        return grads.grad_x

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """K[d u - padding] = W[u]."""
        kernel = read.array(f"{self.name}.weight", rows, inputs)
        one = read.ones(len(kernel))
        bias = read.vector(f"{self.name}.bias", rows) if self.bias else 0 * one
        term = Term(kernel, one, self.lattice)
        return Form((term,), bias, abs(bias), self.stride, self.groups, 0)


@dataclass(frozen=True)
class Identity:
    """The input itself, as a convolution of `groups` groups (rule 2)."""

    name: str
    channels: int
    groups: int = 1

    in_channels = out_channels = property(lambda self: self.channels)
    stride, growth = (1, 1), (0, 0)
    lattice = Lattice((0, 0), (1, 1), (1, 1))

    def __post_init__(self) -> None:
        require_groups(self.name, self.groups, self.channels)

    def shapes(self) -> Shapes:
        """Nothing."""
        return {}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = x``."""
        return x, None

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """``grad_x = grad_y``."""
        return grad_y

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """``K[i, i % (C/G)] = 1``."""
        at = np.arange(self.channels)[rows]
        per_group, one = self.channels // self.groups, read.ones(len(at))
        kernel = np.zeros((len(at), per_group, 1, 1), one.dtype)
        kernel[np.arange(len(at)), at % per_group, 0, 0] = one
        term = Term(kernel[:, inputs], one, Lattice((0, 0), (1, 1), (1, 1)))
        return Form((term,), 0 * one, 0 * one, (1, 1), self.groups, 0)


@dataclass(frozen=True)
class Norm:
    """Batch norm (rule 6; Ioffe & Szegedy, arXiv 1502.03167); it follows something in a `Chain`.

    `eps` is its own, where it is known of this one; None is that of the pass or of the fusion.
    """

    name: str
    channels: int
    eps: Any = None

    def eps_in(self, run: Run | Reader) -> Any:
        """What is added to the variance."""
        return run.eps if self.eps is None else self.eps

    def shapes(self) -> Shapes:
        """Four vectors (C,), and the counter of training steps."""
        vectors = {f"{self.name}.{part}": (self.channels,) for part in NORM_VECTORS}
        return vectors | {f"{self.name}.num_batches_tracked": ()}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """By the batch's statistics in training, else by the running ones."""
        gamma, beta, mean, var = (run.params[f"{self.name}.{part}"] for part in NORM_VECTORS)
        if not run.training:
            eps = self.eps_in(run)
            return run.ops.batch_norm_eval_forward(x, gamma, beta, mean, var, eps=eps)
        y, cache = run.ops.batch_norm_train_forward(x, gamma, beta, eps=self.eps_in(run))
        pixels = x.size // len(cache.mean)  # N * Ho * Wo, whatever the table's layout
        run.stats[self.name] = BatchStats(cache.mean, cache.var, pixels)
        return y, cache

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """As `batch_norm_train_backward`, or `batch_norm_eval_backward`."""
        ops = run.ops
        way = ops.batch_norm_train_backward if run.training else ops.batch_norm_eval_backward
        grads = way(grad_y, cache)
        run.add_grad(f"{self.name}.gamma", grads.grad_gamma)
        run.add_grad(f"{self.name}.beta", grads.grad_beta)
        return grads.grad_x

    def after(self, form: Form, read: Reader, rows: slice) -> Form:
        """Equation (3): t = gamma / sqrt(var + eps) scales, beta - mean t is added."""
        gamma, beta, mean, var = (read.vector(f"{self.name}.{p}", rows) for p in NORM_VECTORS)
        t = gamma / roots(var + scalar_like(self.eps_in(read), var))
        # Four roundings: the sum (half of one after the root), root, quotient, product.
        scaled = form.scaled(t, roundings=4)
        return scaled.shifted(beta - mean * t, abs(beta) + abs(mean * t))


@dataclass(frozen=True, init=False)
class _Many:
    """A sum or a chain: what it owns is what its parts own."""

    parts: tuple[Any, ...]
    alike: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *parts: Any) -> None:
        object.__setattr__(self, "parts", parts)
        if self.alike:
            require_terms(parts, self.alike)
        else:
            require_order(parts)

    in_channels = property(lambda self: self.parts[0].in_channels)

    @cached_property
    def groups(self) -> int:
        """What all convolutions have in common."""
        return gcd(*(part.groups for part in self.parts if hasattr(part, "form")))

    def shapes(self) -> Shapes:
        """The arrays of all parts, in order."""
        return {name: shape for part in self.parts for name, shape in part.shapes().items()}


def added(arrays: list[Array]) -> Array:
    """Their sum, in order: a new array, or the only one."""
    total, *others = arrays
    for place, array in enumerate(others):
        if place and total.dtype == array.dtype:
            total += array  # nobody else has it
        else:
            total = total + array
    return total


class Sum(_Many):
    """The sum of expressions of one stride and output size (rule 7)."""

    alike: ClassVar[tuple[str, ...]] = ("in_channels", "stride", "growth", "out_channels")

    out_channels = property(lambda self: self.parts[0].out_channels)
    stride = property(lambda self: self.parts[0].stride)
    growth = property(lambda self: self.parts[0].growth)

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """Add the parts' outputs, in order."""
        found = [part.forward(x, run) for part in self.parts]
        return added([y for y, _ in found]), [cache for _, cache in found]

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """Each part gets the same gradient; their input gradients add up."""
        both = zip(self.parts, cache, strict=True)
        return added([part.backward(grad_y, kept, run) for part, kept in both])

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """Kernels add offset by offset."""
        if all(part.groups == self.groups for part in self.parts):
            return add([part.form(read, rows, inputs) for part in self.parts])
        whole = [part.form(read, EVERYTHING) for part in self.parts]
        return add([ungrouped(form, self.groups) for form in whole]).part(rows, inputs)


class Chain(_Many):
    """One expression after another, a convolution or the identity first (rules 6 and 8)."""

    out_channels = property(lambda self: self._linear[-1].out_channels)
    stride = property(lambda self: tuple(prod(p.stride[a] for p in self._linear) for a in (0, 1)))
    growth = property(lambda self: chain_growth(self.parts))
    _linear = property(lambda self: [part for part in self.parts if hasattr(part, "form")])

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """One part after another."""
        caches = []
        for part in self.parts:
            x, cache = part.forward(x, run)
            caches.append(cache)
        return x, caches

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """The chain rule."""
        for part, kept in zip(reversed(self.parts), reversed(cache), strict=True):
            grad_y = part.backward(grad_y, kept, run)
        return grad_y

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """A norm scales and shifts what came before; a convolution is composed with it."""
        *before, last = self.parts
        if not before:
            return last.form(read, rows, inputs)  # type: ignore[no-any-return]
        if hasattr(last, "after"):
            return last.after(Chain(*before).form(read, rows, inputs), read, rows)  # type: ignore[no-any-return]
        return _composed(before, last, read, rows, inputs)


def _composed(before: list[Any], last: Linear, read: Reader, rows: slice, inputs: slice) -> Form:
    """A convolution after others: only the groups that `rows` lie in are read (rule 8)."""
    *before, pad = before if hasattr(before[-1], "width") else [*before, None]
    chain = Chain(*before)
    groups = gcd(chain.groups, last.groups)
    start, stop, _ = rows.indices(last.out_channels)
    outputs, middle = last.out_channels // last.groups, last.in_channels // last.groups
    first, end = start // outputs, -(-stop // outputs)
    whole = end - first == 1 or start % outputs == stop % outputs == 0
    if groups == chain.groups and whole:
        middles = slice(first * middle, end * middle)
        inner, outer = chain.form(read, middles, inputs), last.form(read, rows)
        border = pad and pad.border(read, middles)
        return compose(outer, inner, border, groups=end - first)._replace(groups=groups)
    inner, outer = (ungrouped(part.form(read, EVERYTHING), groups) for part in (chain, last))
    border = pad and pad.border(read, EVERYTHING)
    return compose(outer, inner, border, groups=groups).part(rows, inputs)
