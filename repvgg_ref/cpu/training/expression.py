"""Any block of the catalogue in training: its sums by `branches`, one step after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, Real
from repvgg_ref.blocks.constructors import FormulaConv
from repvgg_ref.blocks.linear import Identity
from repvgg_ref.blocks.run import BatchStats, Run
from repvgg_ref.cpu.training import passes, steps
from repvgg_ref.cpu.training.branches import (
    BranchesCache,
    Gradients,
    branches_backward,
    branches_forward,
)
from repvgg_ref.cpu.training.convolutions import (
    Convolution,
    Geometry,
    convolution_of,
    convolve,
    input_gradient,
    is_line,
    weight_gradient,
)
from repvgg_ref.cpu.training.parts import Branch, Kept
from repvgg_ref.cpu.training.terms import Mix, Term, conv_of, geometry_of, mix_of
from repvgg_ref.cpu.workers.pool import in_session
from repvgg_ref.ops import REFERENCE, BranchesForward

_SIMPLE = replace(REFERENCE, layout="NHWC")  # for borders, averages and formulas


class MixCache(NamedTuple):
    """What the way back through a `Mix` needs."""

    summed: BranchesCache
    inner: tuple[TermCache, ...]


class TermCache(NamedTuple):
    """Of a term's steps, and of the convolution behind them."""

    steps: tuple[Any, ...]
    conv: Convolution | None


@dataclass(frozen=True)
class ExpressionPasses:
    """`BlockPasses` of an expression, as `mix`."""

    mix: Mix

    @in_session
    def forward(
        self, x: Array, params: Mapping[str, Array], *, eps: Real, momentum: Real, relu: bool
    ) -> BranchesForward:
        """Output, cache, and what each norm saw."""
        run = Run(params, _SIMPLE, eps, training=True, momentum=momentum)
        mix = self.mix._replace(relu=relu)
        y, cache = _forward(mix, np.ascontiguousarray(x), run, {})
        return BranchesForward(y, (mix, cache, run), run.stats)

    @in_session
    def backward(self, grad_y: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """The gradients of x and, by part name, of the arrays."""
        mix, kept, run = cache
        own: Run = replace(run, grads={})
        grad_x = _backward(mix, grad_y, kept, own, wants_x=True)
        assert grad_x is not None
        return grad_x, own.grads

    @in_session
    def parameter_grads(self, grad_y: Array, cache: Any) -> dict[str, Array]:
        """`backward` without x."""
        mix, kept, run = cache
        own: Run = replace(run, grads={})
        _backward(mix, grad_y, kept, own, wants_x=False)
        return own.grads


def recognise(linear: Any) -> ExpressionPasses | None:
    """Passes for an expression all of whose parts are known."""
    mix = mix_of(linear)
    return None if mix is None else ExpressionPasses(mix)


def _forward(mix: Mix, x: Array, run: Run, kept: Kept) -> tuple[Array, MixCache]:
    branches: dict[str, Branch] = {}
    inner = []
    for place, term in enumerate(mix.terms):
        output, caches, conv = x, [], None
        for step in term.steps:
            output, cache = _step_forward(step, output, run, kept)
            caches.append(cache)
        geometry = geometry_of(term) if term.steps else mix.geometry
        weight = _kernel(term, geometry, output, run)
        if term.steps and weight is not None:
            conv = convolution_of(output, weight, geometry)
            output = convolve(conv)
        gamma, beta = (
            None if term.norm is None else run.params[f"{term.norm}.{part}"]
            for part in ("gamma", "beta")
        )
        given = output if term.steps else None
        branches[str(place)] = Branch(None if term.steps else weight, gamma, beta, given)
        inner.append(TermCache(tuple(caches), conv))
    found = branches_forward(x, branches, mix.geometry, eps=run.eps, relu=mix.relu, kept=kept)
    pixels = found.y.size // found.y.shape[3]
    for key, seen in found.stats.items():
        norm = mix.terms[int(key)].norm
        assert norm is not None
        run.stats[norm] = BatchStats(seen.mean, seen.var, pixels)
    return found.y, MixCache(found.cache, tuple(inner))


def _step_forward(step: Any, x: Array, run: Run, kept: Kept) -> tuple[Array, Any]:
    if isinstance(step, Mix):
        return _forward(step, x, run, kept)
    return steps.forward(step, x, run)


def _backward(
    mix: Mix, grad_y: Array, cache: MixCache, run: Run, *, wants_x: bool, into: Array | None = None
) -> Array | None:
    """Gradients of arrays to `run`; that of x, added to `into` if it is given."""
    grad_x, grads = branches_backward(grad_y, cache.summed, wants_x=wants_x, into=into)
    for place, (term, inner) in enumerate(zip(mix.terms, cache.inner, strict=True)):
        found = grads[str(place)]
        _note_norm(term, found, run)
        if not term.steps:
            if found.weight is not None:
                _note_kernels(term, found.weight, run)
            continue
        grad = found.output
        assert grad is not None
        border = 0
        if inner.conv is not None:
            _note_kernels(term, weight_gradient(grad, inner.conv), run)
            border = steps.border_of(term.steps[-1])
            grad = input_gradient(grad, steps.inside(inner.conv, border))
        count = len(term.steps) - bool(border)  # a border of constants is behind us
        grad_x = _through_steps(term, count, grad, inner, run, grad_x, wants_x=wants_x)
    return grad_x


def _through_steps(
    term: Term,
    count: int,
    grad: Array,
    inner: TermCache,
    run: Run,
    grad_x: Array | None,
    *,
    wants_x: bool,
) -> Array | None:
    """Back through the first `count` of a term's steps; what x gets is added to `grad_x`."""
    for place in reversed(range(count)):
        step, kept = term.steps[place], inner.steps[place]
        if isinstance(step, Mix) and place == 0:
            return _backward(step, grad, kept, run, wants_x=wants_x, into=grad_x)
        if isinstance(step, Mix):
            through = _backward(step, grad, kept, run, wants_x=True)
            assert through is not None
            grad = through
        else:
            grad = steps.backward(step, grad, kept, run)
    if not wants_x:
        return grad_x
    if grad_x is None:
        return grad
    passes.accumulate(grad_x, grad)
    return grad_x


def _note_norm(term: Term, found: Gradients, run: Run) -> None:
    if found.gamma is not None and found.beta is not None:
        run.add_grad(f"{term.norm}.gamma", found.gamma)
        run.add_grad(f"{term.norm}.beta", found.beta)


def _kernel(term: Term, geometry: Geometry, x: Array, run: Run) -> Array | None:
    """The sum of a term's kernels, square or a line; None if there are none but the identity."""
    convs = term.convs
    if not convs:
        return None
    side = max(max(conv.kernel) for conv in convs)
    weights = [_weight(kernel, x, run) for kernel in term.kernels]
    first = weights[0]
    if len(weights) == 1 and first is not None:
        rows, columns = first.shape[2:]
        if rows == columns or is_line((rows, columns), geometry):
            return first
    outputs, inner = convs[0].out_channels, convs[0].in_channels // convs[0].groups
    total = np.zeros((outputs, inner, side, side), x.dtype)
    for weight in weights:
        if weight is None:
            rows = np.arange(outputs)
            total[rows, rows % inner, side // 2, side // 2] += 1
        else:
            total[_middle(side, weight.shape[2:])] += weight
    return total


def _weight(kernel: Any, x: Array, run: Run) -> Array | None:
    """The kernel that is stored, or computed; None for the identity."""
    if isinstance(kernel, Identity):
        return None
    if isinstance(kernel, FormulaConv):
        return kernel.formula.weight(x, run)
    return run.params[f"{kernel.name}.weight"]


def _middle(side: int, size: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a kernel of `size` lies in a square one."""
    starts = ((side - n) // 2 for n in size)
    return (slice(None), slice(None), *(slice(a, a + n) for a, n in zip(starts, size, strict=True)))


def _note_kernels(term: Term, grad: Array, run: Run) -> None:
    """The gradient of the sum of a term's kernels, to each of them."""
    for kernel in term.kernels:
        if isinstance(kernel, Identity):
            continue
        size = conv_of(kernel).kernel
        own = grad if grad.shape[2:] == size else grad[_middle(grad.shape[2], size)]
        own = np.ascontiguousarray(own)
        if isinstance(kernel, FormulaConv):
            for name, part in kernel.formula.gradients(own, run).items():
                run.add_grad(name, part)
        else:
            run.add_grad(f"{kernel.name}.weight", own)
