"""Blocks in training: those that the kernels know, and those that are composed from primitives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.blocks.block import (
    BlockCache,
    train_block_backward,
    train_block_forward,
    train_block_parameter_grads,
)
from repvgg_ref.blocks.catalogue import (
    KINDS,
    Kind,
    conv,
    conv_bn,
    expression,
    identity,
    identity_bn,
)
from repvgg_ref.blocks.constructors import Bias, Concat, Scale, Slice
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.recognise import ROLES, BranchPasses
from repvgg_ref.blocks.run import Linear
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import BackendError
from repvgg_ref.ops import REFERENCE, BranchArrays, Ops
from tests.gpu.conftest import UnderTest
from tests.gpu.fake_cupy import LEDGER
from tests.gpu.test_operators import nchw, nhwc, table
from tests.models import test_fused_branches as in_few_lines
from tests.ops.exact import assert_within

EPS = 1e-3
BLOCK = BlockSpec("block", 4, 4, 1, groups=2)


def passes_of(ops: Ops, linear: Linear) -> BranchPasses:
    """The table's own passes, which it must have."""
    found = ops.recognise_block(linear)
    assert isinstance(found, BranchPasses)
    return found


@pytest.mark.parametrize(
    "roles",
    [(*ROLES, "branch_1x3"), ("dense", "another"), ("identity",), ()],
    ids=["one more", "another name", "nothing dense", "nothing"],
)
def test_roles_that_the_kernels_do_not_know_are_refused(
    roles: tuple[str, ...], device: UnderTest
) -> None:
    """A branch that was left out of the sum would be the worst of bugs: nothing would say so."""
    ops = table("fp32")
    vector = ops.from_host(np.ones(3, np.float32))
    branch = BranchArrays(ops.from_host(np.ones((3, 3, 1, 1), np.float32)), vector, vector)
    x = ops.from_host(np.ones((2, 4, 4, 3), np.float32))
    passes = passes_of(ops, expression(BLOCK))
    LEDGER.clear()
    with pytest.raises(BackendError, match="do not know such a block") as caught:
        passes.forward_pass(
            x, dict.fromkeys(roles, branch), stride=1, dilation=1, groups=1, eps=EPS, relu=True
        )
    assert all(role in str(caught.value) for role in roles)
    assert not LEDGER.launches


@pytest.mark.parametrize("roles", [ROLES[:1], ROLES[:2], ROLES[::2], ROLES[::-1]])
@pytest.mark.parametrize("relu", [False, True])
def test_branches_in_any_order_are_all_in_the_sum_and_its_gradients(
    roles: tuple[str, ...], relu: bool, device: UnderTest
) -> None:
    ops, rng = table("fp32"), np.random.default_rng(0)
    shapes = dict(zip(ROLES, ((4, 2, 3, 3), (4, 2, 1, 1), None), strict=True))
    branches = {
        role: BranchArrays(
            None if (shape := shapes[role]) is None else rng.normal(size=shape),
            *rng.normal(size=(2, 4)),
        )
        for role in roles
    }
    x, grad_y = rng.normal(size=(2, 3, 4, 5, 6))
    settings: dict[str, Any] = {"stride": 1, "dilation": 1, "groups": 2, "eps": EPS, "relu": relu}
    wanted = in_few_lines.forward(x, branches, **settings)
    exact_x, exact = in_few_lines.backward(grad_y, wanted.cache)
    there = {
        role: BranchArrays(
            None if weight is None else ops.from_host(weight), *map(ops.from_host, vectors)
        )
        for role, (weight, *vectors) in branches.items()
    }
    passes = passes_of(ops, expression(BLOCK))
    got = passes.forward_pass(nhwc(ops, x), there, **settings)
    assert_within(nchw(got.y), wanted.y, 1e-9)
    assert got.stats.keys() == wanted.stats.keys()
    grad_x, grads = passes.backward_pass(nhwc(ops, grad_y), got.cache)
    assert_within(nchw(grad_x), exact_x, 1e-7)
    without_x = passes.parameter_pass(nhwc(ops, grad_y), got.cache)
    assert grads.keys() == without_x.keys() == exact.keys()
    for role in roles:
        assert_within(to_numpy(got.stats[role].mean), wanted.stats[role].mean, 1e-9)
        assert_within(to_numpy(got.stats[role].var), wanted.stats[role].var, 1e-9)
        for ours, again, theirs in zip(grads[role], without_x[role], exact[role], strict=True):
            assert (ours is None) == (again is None) == (theirs is None)
            if ours is not None and again is not None and theirs is not None:
                assert_within(to_numpy(ours), theirs, 1e-7)
                assert_within(to_numpy(again), theirs, 1e-7)


Build = Callable[[BlockSpec], Linear]


def free(name: str, spec: BlockSpec, **settings: Any) -> Chain:
    """A convolution with settings of its own, and its batch norm."""
    leaf = Conv(f"{name}.conv", spec.in_channels, spec.out_channels, **settings)
    return Chain(leaf, Norm(f"{name}.bn", spec.out_channels))


def asymmetric(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 3), conv_bn(spec, "b", 1, 3), conv_bn(spec, "c", 3, 1))


def two_points(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 3), conv_bn(spec, "b", 1), conv_bn(spec, "c", 1))


def norm_after_the_sum(spec: BlockSpec) -> Linear:
    return Chain(Sum(conv(spec, "a", 3), conv(spec, "b", 1), identity(spec)), Norm("bn", 4))


def even_kernel(spec: BlockSpec) -> Linear:
    return Sum(free("a", spec, kernel=(2, 2), padding=(1, 1), groups=2))


def stride_of_one_axis(spec: BlockSpec) -> Linear:
    return Sum(free("a", spec, padding=(1, 1), stride=(2, 1), groups=2))


def kernel_of_one_axis(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 3, 1), conv_bn(spec, "b", 1))


def groups_that_differ(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 3), free("b", spec, kernel=(1, 1), groups=4))


def dilation_of_one_axis(spec: BlockSpec) -> Linear:
    return Sum(free("a", spec, padding=(1, 2), dilation=(1, 2), groups=2))


def not_centred(spec: BlockSpec) -> Linear:
    return Sum(free("a", spec, padding=(0, 1), groups=2))


def biased(spec: BlockSpec) -> Linear:
    a = Chain(conv(spec, "a.conv", 3, bias=True), Norm("a.bn", 4))
    return Sum(a, *identity_bn(spec))


def identity_without_norm(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 3), conv_bn(spec, "b", 1), identity(spec))


def two_convolutions(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 3), Chain(conv(spec, "b", 1), *conv_bn(spec, "c", 1).parts))


def two_norms(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 3), Chain(*conv_bn(spec, "b", 1).parts, Norm("c.bn", 4)))


def nothing_dense(spec: BlockSpec) -> Linear:
    return Sum(conv_bn(spec, "a", 1), *identity_bn(spec))


def no_sum(spec: BlockSpec) -> Linear:
    return conv_bn(spec, "a", 3)


def scaled(spec: BlockSpec) -> Linear:
    layer = Chain(identity(spec), Scale("scale", (4,)), Bias("shift", (1,)))
    return Sum(conv_bn(spec, "a", 3), layer)


def side_by_side(spec: BlockSpec) -> Linear:
    halves = [
        Chain(Slice(4, start, start + 2), Conv(f"h{start}.conv", 2, 2, padding=(1, 1)))
        for start in (0, 2)
    ]
    return Sum(conv_bn(spec, "a", 3), Concat(*halves), Identity("x", 4))


STRANGERS: dict[str, Build] = {
    build.__name__: build
    for build in (
        *(asymmetric, two_points, norm_after_the_sum, even_kernel),
        *(
            stride_of_one_axis,
            kernel_of_one_axis,
            groups_that_differ,
            dilation_of_one_axis,
            not_centred,
            biased,
        ),
        *(identity_without_norm, two_convolutions, two_norms, nothing_dense, no_sum),
        *(scaled, side_by_side),
    )
}
KNOWN = ("repvgg", "plain", "identity-only", "1x1-only")
ALIKE = ("mobileone",)  # of one copy it is the paper's block
COMPOSED = [name for name, kind in KINDS.items() if kind.keys and name not in (*KNOWN, *ALIKE)]


@pytest.fixture
def spec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BlockSpec:
    """A block of the catalogue, or a stranger that is in it for the time of the test."""
    name: str = request.param
    if name in STRANGERS:
        kind = Kind(name, "a stranger", STRANGERS[name], {}, "fused", auto=False)
        name = f"tests.gpu.{name}"
        monkeypatch.setitem(KINDS, name, kind)
    return BlockSpec("block", 4, 4, 1, groups=2, kind=name)


def drawn(spec: BlockSpec) -> dict[str, Array]:
    """Arrays under canonical names, none near its start."""
    rng = np.random.default_rng(3)
    return {
        f"block.{name}": rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)
        if not name.endswith("var")
        else rng.uniform(0.5, 2, shape)
        for name, shape in expression(spec).shapes().items()
    }


def assert_same_block(spec: BlockSpec, ops: Ops, *, training: bool) -> BlockCache:
    """y, statistics and every gradient are the reference's; gives the cache."""
    params, rng = drawn(spec), np.random.default_rng(4)
    x = rng.normal(size=(3, 4, 4, 2))
    options: dict[str, Any] = {"eps": EPS, "training": training}
    wanted, theirs = train_block_forward(spec, params, x, ops=REFERENCE, **options)
    there = {name: ops.from_host(array) for name, array in params.items()}
    got, cache = train_block_forward(spec, there, nhwc(ops, x), ops=ops, **options)
    assert_within(nchw(got), wanted, 1e-9)
    assert cache.stats.keys() == theirs.stats.keys()
    for norm, seen in theirs.stats.items():
        assert cache.stats[norm].pixels == seen.pixels
        assert_within(to_numpy(cache.stats[norm].mean), seen.mean, 1e-9)
        assert_within(to_numpy(cache.stats[norm].var), seen.var, 1e-9)
    grad_y = rng.normal(size=wanted.shape)
    exact = train_block_backward(spec, grad_y, theirs)
    found = train_block_backward(spec, nhwc(ops, grad_y), cache)
    without_x = train_block_parameter_grads(spec, nhwc(ops, grad_y), cache)
    assert_within(nchw(found.x), exact.x, 1e-7)
    assert found.params.keys() == without_x.keys() == exact.params.keys()
    for name, grad in exact.params.items():
        assert_within(to_numpy(found.params[name]), grad, 1e-7)
        assert_within(to_numpy(without_x[name]), grad, 1e-7)
    return cache


@pytest.mark.parametrize("spec", [*KNOWN, *ALIKE], indirect=True)
def test_what_the_kernels_know_is_theirs(spec: BlockSpec, device: UnderTest) -> None:
    ops = table("fp32")
    assert assert_same_block(spec, ops, training=True).passes is not None
    assert assert_same_block(spec, ops, training=False).passes is None


@pytest.mark.few
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("spec", [*COMPOSED, *STRANGERS], indirect=True)
def test_what_they_do_not_know_is_composed(
    spec: BlockSpec, training: bool, device: UnderTest
) -> None:
    ops = table("fp32")
    assert ops.recognise_block(expression(spec)) is None
    assert assert_same_block(spec, ops, training=training).passes is None


@pytest.mark.few
@pytest.mark.parametrize("math", ["bf16", "fp16"])
@pytest.mark.parametrize("spec", [*COMPOSED, *STRANGERS], indirect=True)
def test_composed_blocks_are_stored_in_sixteen_bits(
    spec: BlockSpec, math: str, device: UnderTest
) -> None:
    from repvgg_ref.gpu.math_mode import activation_dtype

    ops = table(math)
    params = {name: ops.from_host(a.astype(np.float32)) for name, a in drawn(spec).items()}
    x = np.random.default_rng(4).normal(size=(3, 4, 4, 2))
    exact, _ = train_block_forward(spec, drawn(spec), x, ops=REFERENCE, eps=EPS, training=True)
    stored = nhwc(ops, x.astype(activation_dtype(math)))  # type: ignore[arg-type]
    y, cache = train_block_forward(spec, params, stored, ops=ops, eps=EPS, training=True)
    assert_within(nchw(y), exact, 0.1)
    grads = train_block_backward(spec, y, cache)
    assert all(np.isfinite(to_numpy(grad)).all() for grad in grads.params.values())
