"""RepVGG's block as an operator: in evaluation mode forward, in training mode backward.

The block's arrays have the official names without their block's: ``rbr_dense.conv.weight``.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of
from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.blocks.unfuse import leaf_name, leaves
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.names import OFFICIAL
from repvgg_ref.oracle.bounds.block import layer_bound
from repvgg_ref.oracle.operators.convolution import convolved, correlated, sent_back
from repvgg_ref.oracle.operators.norms import (
    Statistics,
    batch_statistics,
    normalised,
    normalised_backward,
)
from repvgg_ref.oracle.operators.operator import EXACT, Arrays, Expected, Settings
from repvgg_ref.oracle.operators.rounding import (
    Approx,
    Rounding,
    added,
    dot,
    exact,
    masked,
)
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import correct_program
from repvgg_ref.oracle.programs.program import layer_output

STEM = "stage0."  # what stands before a part's name in the official code


def block_spec(arrays: Arrays, settings: Settings) -> BlockSpec:
    """The block's shape, from its largest kernel."""
    kernels = [a for name, a in arrays.items() if name.endswith("conv.weight")]
    if not kernels:
        raise ShapeError("the block has no kernel", wanted="rbr_dense.conv.weight, ...")
    largest = max(kernels, key=lambda kernel: kernel.size)
    groups = int(settings["groups"])
    channels = largest.shape[1] * groups
    return BlockSpec("stage0", channels, len(largest), int(settings["stride"]), groups)


def canonical(arrays: Arrays) -> dict[str, str]:
    """Official name of an array -> ours."""
    return {
        theirs.removeprefix(STEM): ours
        for theirs, ours in OFFICIAL.parse(STEM + name for name in arrays).items()
    }


def block_program(arrays: Arrays, settings: Settings) -> BlockProgram:
    """The block as the oracle knows it."""
    spec = block_spec(arrays, settings)
    params = {ours: np.asarray(arrays[name]) for name, ours in canonical(arrays).items()}
    return correct_program(
        spec, params, settings["eps"], branches_of(spec, params, settings["eps"])
    )


def block_forward(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    """The block in evaluation mode, its branches apart or fused."""
    program, x = block_program(arrays, settings), np.asarray(arrays["x"], np.float64)
    y = layer_output(program, x)
    if r is EXACT:
        return {"y": exact(y)}
    bound = layer_bound(program, x, y, r.precision)
    error = bound.certified if r.lam is None else bound.likely
    return {"y": Approx(y, error, error)}


def norm_program(arrays: Arrays, settings: Settings) -> BlockProgram | None:
    """Batch norm in evaluation mode as a block that convolves with nothing; else None."""
    if settings["training"]:
        return None
    channels = arrays["x"].shape[1]
    spec = BlockSpec(
        "y", channels, channels, 1, channels, kind="plain", kernel=1, activation="none"
    )
    name = leaf_name(next(iter(leaves(expression(spec))))[0])
    vectors = (
        np.asarray(arrays[part], np.float64)
        for part in ("gamma", "beta", "running_mean", "running_var")
    )
    branch = Branch(np.ones((channels, 1, 1, 1)), *vectors)
    return correct_program(spec, {}, settings["eps"], {name: branch})


class _Forward:
    """One branch in training mode: its convolution, and the statistics of that."""

    def __init__(self, branch: Branch, x: Array, settings: Settings, r: Rounding) -> None:
        self.branch = branch
        middle = tuple(n // 2 for n in branch.weight.shape[2:])
        self.geometry = {**settings, "padding": middle, "dilation": 1}
        self.z = dot(convolved(self.geometry), exact(x), exact(branch.weight), r)
        self.seen: Statistics = batch_statistics(self.z, settings["eps"], r)

    def output(self, r: Rounding) -> Approx:
        return normalised(self.z, self.seen, self.branch.gamma, self.branch.beta, r)


def block_backward(
    arrays: Arrays,
    settings: Settings,
    r: Rounding,
    *,
    through_statistics: bool = True,
    relu: bool = True,
    left_out: str = "",
) -> Expected:
    """Gradients of x and of every trainable array, batch norms using the batch's statistics.

    The keywords are for ports that are wrong: statistics taken as constant, no ReLU, and a branch
    that sends nothing back to x.
    """
    program, x = block_program(arrays, settings), np.asarray(arrays["x"], np.float64)
    passes = {name: _Forward(branch, x, settings, r) for name, branch in program.branches.items()}
    total = added([each.output(r) for each in passes.values()], r)
    grad_y = np.asarray(arrays["grad_y"], np.float64)
    if grad_y.shape != total.value.shape:
        raise ShapeError(f"grad_y.shape (={grad_y.shape}) must equal y.shape ({total.value.shape})")
    grad = masked(exact(grad_y), total) if relu else exact(grad_y)
    ours = {name: theirs for theirs, name in canonical(arrays).items()}
    into_x, found = [], Expected()
    for name, each in passes.items():
        norm = normalised_backward(
            grad, each.z, each.seen, each.branch.gamma, r, training=through_statistics
        )
        kernel = exact(each.branch.weight)
        if name != left_out:
            into_x.append(dot(sent_back(each.geometry, x.shape), norm.x, kernel, r))
        start = f"{STEM.removesuffix('.')}.{name}"
        if weight := ours.get(f"{start}.conv.weight"):
            shape = each.branch.weight.shape
            found[f"grad_{weight}"] = dot(correlated(each.geometry, shape), norm.x, exact(x), r)
        found[f"grad_{ours[f'{start}.bn.gamma']}"] = norm.gamma
        found[f"grad_{ours[f'{start}.bn.beta']}"] = norm.beta
    return {"grad_x": added(into_x, r), **found}
