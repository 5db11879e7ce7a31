"""What fusion keeps and forgets, proved in rationals and counted by the rank of its derivative."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import DTypeLike

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.blocks.unfuse import branches_from_fused, what_is_lost
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.architectures import Architecture, architecture
from repvgg_ref.models.cost import cost
from repvgg_ref.models.graph import Network
from repvgg_ref.models.parameters import initial_params, param_shapes
from tests.blocks.exact_blocks import fused_exactly
from tests.ops.exact import assert_exact, rationals

SPECS = [
    BlockSpec("stage0", 3, 4, stride=2),
    BlockSpec("stage1.0", 4, 4, stride=2),
    BlockSpec("stage1.1", 4, 4, stride=1),
    BlockSpec("stage1.1", 4, 4, stride=1, groups=2),
    BlockSpec("stage1.1", 4, 6, stride=1, kind="plain"),
]


def kernel_shape(spec: BlockSpec) -> tuple[int, ...]:
    return (spec.out_channels, spec.in_channels // spec.groups, 3, 3)


def only(spec: BlockSpec) -> Network:
    return Architecture("custom", (spec,), num_classes=2)


def random_exact_block(spec: BlockSpec, eps: Fraction, seed: int) -> dict[str, Array]:
    """Rational arrays whose var + eps are perfect squares, so that fusion stays rational."""
    rng = np.random.default_rng(seed)
    wanted = param_shapes(only(spec), "train")
    params = {name: rationals(rng, *shape) for name, shape in wanted.items()}
    for name in params:
        if name.endswith("running_var"):
            roots = [Fraction(int(n), 3) for n in rng.integers(1, 9, params[name].size)]
            params[name] = np.array([root * root - eps for root in roots], dtype=object)
    return params


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("eps", [Fraction(1, 100_000), Fraction(1e-5), Fraction(7, 2)])
def test_rebuilt_branches_fuse_to_the_same_rationals(spec: BlockSpec, eps: Fraction) -> None:
    rng = np.random.default_rng(3)
    weight = rationals(rng, *kernel_shape(spec))
    bias = rationals(rng, spec.out_channels)
    fused = fused_exactly(spec, branches_from_fused(spec, weight, bias, eps=eps), eps)
    assert_exact(fused.weight, weight)
    assert_exact(fused.bias, bias)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_rebuilt_branches_fuse_to_the_same_bits(
    spec: BlockSpec, dtype: DTypeLike, eps: float
) -> None:
    rng = np.random.default_rng(4)
    magnitude: Array = np.exp2(rng.integers(-10, 4, kernel_shape(spec)))
    weight: Array = (magnitude * rng.standard_normal(kernel_shape(spec))).astype(dtype)
    weight.flat[:4] = [1, 2, -0.5, np.finfo(dtype).smallest_subnormal]  # binade edges
    bias: Array = rng.standard_normal(spec.out_channels).astype(dtype)
    params = branches_from_fused(spec, weight, bias, eps=eps)
    fused = fuse_block(spec, params, eps=eps, dtype=dtype)
    assert fused.weight.tobytes() == weight.tobytes()
    assert fused.bias.tobytes() == bias.tobytes()


def test_off_centre_ratios_within_a_channel_are_those_of_the_3x3_kernel() -> None:
    spec, eps = SPECS[2], Fraction(1, 100_000)
    params = random_exact_block(spec, eps, seed=5)
    kernel = params["stage1.1.branch_3x3.conv.weight"]
    weight = fused_exactly(spec, params, eps).weight
    off = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
    for o in range(spec.out_channels):
        ours = [weight[o, c, *tap] for c in range(spec.in_channels) for tap in off]
        theirs = [kernel[o, c, *tap] for c in range(spec.in_channels) for tap in off]
        pairs = list(zip(ours, theirs, strict=True))
        assert all(a * q == b * p for a, p in pairs for b, q in pairs)


def test_another_split_of_centre_and_bias_fuses_the_same() -> None:
    spec, eps = SPECS[2], Fraction(1, 100_000)
    params = random_exact_block(spec, eps, seed=6)
    other = branches_from_fused(spec, *fused_exactly(spec, params, eps), eps=eps)
    before, after = fused_exactly(spec, params, eps), fused_exactly(spec, other, eps)
    assert_exact(after.weight, before.weight)
    assert_exact(after.bias, before.bias)
    split = "stage1.1.branch_1x1.conv.weight"
    assert (params[split] != other[split]).any(), "two different blocks, one fused form"


@pytest.mark.few(2)
@pytest.mark.parametrize("spec", SPECS)
def test_counts_are_the_rank_and_nullity_of_the_derivative_of_fusion(spec: BlockSpec) -> None:
    (lost,) = what_is_lost([spec])
    jacobian = derivative_of_fusion(spec)
    rank = int(np.linalg.matrix_rank(jacobian, tol=1e-4))
    assert rank == jacobian.shape[0] == lost.told
    assert jacobian.shape[1] - rank == lost.free


def derivative_of_fusion(spec: BlockSpec, step: float = 1e-5) -> Array:
    """Central differences: one row a fused number, one column a number of the branches."""
    rng = np.random.default_rng(7)
    params = {
        name: rng.uniform(0.5, 2, array.shape)
        for name, array in initial_params(only(spec), seed=0, dtype=np.float64).items()
        if name.startswith(spec.name) and array.ndim
    }

    def fused() -> Array:
        weight, bias = fused_exactly(spec, params, 1e-5)
        return np.concatenate([weight.ravel(), bias])

    columns = []
    for array in params.values():
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            high = fused()
            array[index] = kept - step
            columns.append((high - fused()) / (2 * step))
            array[index] = kept
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("name", ["RepVGG-A0", "RepVGG-B1g4"])
def test_told_numbers_are_the_deploy_parameters(name: str) -> None:
    arch = architecture(name)
    head = (arch.features + 1) * arch.num_classes
    counts, whole = what_is_lost(arch.blocks), cost(arch)
    running = sum(2 * 2 * b.out_channels for b in arch.blocks) + sum(
        2 * b.out_channels for b in arch.blocks if b.can_add_input
    )
    assert sum(block.told for block in counts) + head == whole.params_deploy
    everything = sum(block.told + block.free for block in counts) + head
    assert everything == whole.params_train + running


def test_a_kernel_of_the_wrong_shape_is_named() -> None:
    weight = np.zeros((4, 4, 3, 3))
    with pytest.raises(ShapeError, match=r"stage0: weight.shape"):
        branches_from_fused(SPECS[0], weight, np.zeros(4), eps=1e-5)
