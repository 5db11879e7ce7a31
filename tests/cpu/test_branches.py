"""A sum of branches in training: against the reference and finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.training import parts, passes
from repvgg_ref.cpu.training.branches import branches_backward, branches_forward
from repvgg_ref.cpu.training.convolutions import Geometry
from repvgg_ref.cpu.training.expression import ExpressionPasses
from repvgg_ref.cpu.training.parts import Branch
from repvgg_ref.errors import ShapeError
from repvgg_ref.ops import BranchArrays
from tests.examples import examples
from tests.gradcheck import assert_gradients
from tests.models import test_fused_branches as plain


@dataclass(frozen=True)
class Case:
    """One block and its batch."""

    images: int = 3
    size: tuple[int, int] = (9, 8)
    channels: int = 6
    outputs: int = 6
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    pointwise: bool = True
    identity: bool = False
    second: bool = False
    bare: tuple[str, ...] = ()
    relu: bool = True
    offset: float = 0.0
    seed: int = 0

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.dilation, self.groups)

    @property
    def settings(self) -> dict[str, Any]:
        return {"eps": 1e-5, "relu": self.relu}

    def x(self, dtype: Any) -> Array:
        """Images NHWC, read-only."""
        rng = np.random.default_rng(self.seed)
        x = np.maximum(rng.standard_normal((self.images, *self.size, self.channels)), 0)
        return frozen((x + self.offset).astype(dtype))

    def branches(self, dtype: Any) -> dict[str, Branch]:
        rng = np.random.default_rng([self.seed, 1])
        inner = self.channels // self.groups

        def branch(kernel: int | None) -> Branch:
            vectors = rng.uniform(0.5, 2, self.outputs), rng.standard_normal(self.outputs)
            weight = None
            if kernel is not None:
                scale = np.sqrt(2 / (kernel**2 * inner))
                weight = rng.standard_normal((self.outputs, inner, kernel, kernel)) * scale
                weight = frozen(weight.astype(dtype))
            return Branch(weight, *(frozen(v.astype(dtype)) for v in vectors))

        kernels = {"branch_3x3": 3} | ({"branch_5x5": 5} if self.second else {})
        if self.pointwise:
            kernels["branch_1x1"] = 1
        found = {name: branch(kernel) for name, kernel in kernels.items()}
        found |= {"branch_identity": branch(None)} if self.identity else {}
        return {
            name: each._replace(gamma=None, beta=None) if name in self.bare else each
            for name, each in found.items()
        }


def frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def nchw(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2)


def nhwc(x: Array) -> Array:
    return frozen(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))


def wide(branches: Mapping[str, Branch]) -> dict[str, BranchArrays]:
    """The same numbers in float64, for the reference."""
    return {
        name: BranchArrays(*(None if a is None else a.astype(np.float64) for a in branch[:3]))  # type: ignore[arg-type]
        for name, branch in branches.items()
    }


def assert_is_the_reference(case: Case, dtype: Any, tolerance: float) -> None:
    """Every output and gradient within `tolerance` of its largest value; sums of float64."""
    x, branches = case.x(dtype), case.branches(dtype)
    wanted = plain.forward(
        nchw(x).astype(np.float64),
        wide(branches),
        stride=case.stride,
        dilation=case.dilation,
        groups=case.groups,
        **case.settings,
    )
    grad = np.random.default_rng(case.seed).standard_normal(wanted.y.shape)
    grad *= np.abs(wanted.cache[1]) > 1e-3  # rounding may not decide where the gradient passes
    grad = grad.astype(dtype)
    wanted_x, wanted_grads = plain.backward(grad.astype(np.float64), wanted.cache)
    got = branches_forward(x, branches, case.geometry, **case.settings)
    grad_x, grads = branches_backward(nhwc(grad), got.cache)
    again, _ = branches_backward(nhwc(grad), got.cache)
    np.testing.assert_array_equal(again, grad_x, "the backward pass changed its cache")
    nothing, alone = branches_backward(nhwc(grad), got.cache, wants_x=False)
    assert nothing is None
    before = np.ones_like(x)
    added, _ = branches_backward(nhwc(grad), got.cache, into=before)
    assert added is before
    assert grad_x is not None
    assert not np.abs(added - grad_x - 1).max() > tolerance * max(1, np.abs(grad_x).max())
    assert alone.keys() == grads.keys()
    for name, found in alone.items():
        for mine, same in zip(found[:3], grads[name][:3], strict=True):
            np.testing.assert_array_equal(mine, same)

    def close(name: str, mine: Array | None, theirs: Array | None) -> None:
        assert mine is not None, name
        assert theirs is not None, name
        assert mine.dtype == dtype, name
        assert mine.shape == theirs.shape, name
        error = np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-3)
        assert error <= tolerance, f"{name}: {error}"

    close("y", nchw(got.y), wanted.y)
    close("grad_x", nchw(grad_x), wanted_x)
    assert grads.keys() == branches.keys()
    assert got.stats.keys() == branches.keys() - set(case.bare)
    for name, branch in wanted_grads.items():
        if (mine := grads[name].weight) is not None and branch.weight is not None:
            close(f"{name} weight", mine, branch.weight)
        assert (grads[name].weight is None) == (branch.weight is None)
        if name in case.bare:
            assert grads[name].gamma is grads[name].beta is None
            continue
        close(f"{name} mean", got.stats[name].mean, wanted.stats[name].mean)
        close(f"{name} var", got.stats[name].var, wanted.stats[name].var)
        close(f"{name} gamma", grads[name].gamma, branch.gamma)
        close(f"{name} beta", grads[name].beta, branch.beta)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 3))
    channels, outputs = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 20))
    stride = draw(st.integers(1, 3))
    identity = stride == 1 and draw(st.booleans())
    return Case(
        images=draw(st.integers(1, 4)),
        size=(draw(st.integers(2, 13)), draw(st.integers(2, 13))),
        channels=channels,
        outputs=channels if identity else outputs,
        stride=stride,
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        pointwise=draw(st.booleans()),
        identity=identity,
        second=draw(st.booleans()),
        bare=tuple(
            name for name in ("branch_3x3", "branch_1x1", "branch_identity") if draw(st.booleans())
        ),
        relu=draw(st.booleans()),
        offset=draw(st.sampled_from([0.0, 10.0])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@examples(150)
@given(case=cases(), pixels=st.sampled_from([1, 20, 1000]), widest=st.sampled_from([1, 6, 112]))
def test_any_block_is_the_reference_in_float64(case: Case, pixels: int, widest: int) -> None:
    pieces = mock.patch.multiple(passes, PIECE_PIXELS=pixels, PIECE_NUMBERS=1)
    with pieces, mock.patch.object(parts, "WIDEST", widest):
        # what a norm leaves of a kernel's gradient cancels, more so where images are far from 0
        assert_is_the_reference(case, np.float64, 1e-7 if case.offset else 1e-8)


REAL = {
    "identity, F(5)": Case(8, (14, 14), 96, 96, identity=True),
    "wide": Case(2, (14, 14), 160, 160, identity=True),
    "identity, F(4)": Case(4, (28, 26), 48, 48, identity=True),
    "stride 2": Case(4, (29, 28), 48, 96, stride=2),
    "groups": Case(4, (14, 15), 64, 64, groups=4, identity=True),
    "images far from 0": Case(2, (57, 56), 3, 48, stride=2, offset=30.0),
    "no identity": Case(1, (15, 15), 32, 80),
    "only 3x3": Case(2, (28, 28), 32, 32, pointwise=False),
    "3x3 and identity": Case(2, (28, 28), 32, 32, pointwise=False, identity=True),
    "dilated": Case(2, (14, 14), 64, 64, dilation=2, identity=True),
    "no ReLU": Case(3, (14, 14), 64, 64, identity=True, relu=False),
}


@pytest.mark.parametrize("name", REAL)
def test_real_blocks_in_float32_against_float64(name: str) -> None:
    """Ten times what was seen, or less; float32 itself gives 6e-8, a 1x1 kernel on images 1e-5."""
    case = REAL[name]
    assert_is_the_reference(case, np.float32, 1e-4 if case.offset else 2e-5)


FEW = [
    Case(identity=True),
    Case(outputs=4, stride=2, groups=2),
    Case(identity=True, groups=3, dilation=2, relu=False),
    Case(channels=2, outputs=20, stride=2),
    Case(identity=True, second=True, bare=("branch_identity", "branch_1x1")),
]


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_gradients_by_finite_differences(case: Case) -> None:
    names = list(case.branches(np.float64))
    pieces = [
        (name, field, array)
        for name, branch in case.branches(np.float64).items()
        for field, array in branch._asdict().items()
        if array is not None
    ]

    def forward(x: Array, *arrays: Array) -> tuple[Array, Any]:
        parts: dict[str, dict[str, Any]] = {name: {"weight": None} for name in names}
        for (name, field, _), array in zip(pieces, arrays, strict=True):
            parts[name][field] = array
        branches = {name: Branch(**fields) for name, fields in parts.items()}
        y, cache, _ = branches_forward(x, branches, case.geometry, **case.settings)
        return y, cache

    def backward(grad_y: Array, cache: Any) -> tuple[Array, ...]:
        grad_x, grads = branches_backward(grad_y, cache)
        return grad_x, *(getattr(grads[name], field) for name, field, _ in pieces)

    arrays = [array for _, _, array in pieces]
    assert_gradients(forward, backward, case.x(np.float64), *arrays, seed=case.seed)


def test_the_table_offers_it() -> None:
    passes = NUMPY.recognise_block(expression(BlockSpec("block", 4, 4, 1)))
    assert isinstance(passes, ExpressionPasses)


def test_wrong_shapes_are_refused() -> None:
    case = Case()
    branches = case.branches(np.float32)
    with pytest.raises(ShapeError, match=r"weight\.shape"):
        branches_forward(case.x(np.float32)[..., :5], branches, case.geometry, **case.settings)
    short = branches | {"branch_1x1": branches["branch_1x1"]._replace(gamma=np.ones(5))}
    with pytest.raises(ShapeError, match=r"branch_1x1\.gamma"):
        branches_forward(case.x(np.float32), short, case.geometry, **case.settings)
    x = case.x(np.float32)
    _, cache, _ = branches_forward(x, branches, case.geometry, **case.settings)
    with pytest.raises(ShapeError, match=r"grad_y\.shape"):
        branches_backward(np.zeros((3, 9, 8, 5), np.float32), cache)
