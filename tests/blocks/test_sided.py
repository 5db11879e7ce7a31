"""Constructors of other libraries' graphs, beyond what `test_algebra` asks of every constructor."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import fuse_exactly, fuse_linear
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.run import Run, evaluate
from repvgg_ref.blocks.selfcheck import check_linear
from repvgg_ref.blocks.sided import Quotient, SameSize, SidedConv
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.exact.rounding import nearest
from repvgg_ref.ops import REFERENCE
from tests.gradcheck import assert_gradients
from tests.ops.exact import assert_exact, rationals


def test_every_end_has_its_own_padding() -> None:
    """By hand: an image of zeros with the input somewhere in it, then no padding."""
    conv = SidedConv("k", 2, 2, (2, 3), padding=(1, 0), ends=(0, -2))
    x, weight = (
        rationals(np.random.default_rng(0), 1, 2, 4, 7),
        rationals(np.random.default_rng(1), 2, 2, 2, 3),
    )
    framed = np.zeros((1, 2, 5, 5), object)
    framed[:, :, 1:, :] = x[:, :, :, :5]
    want = evaluate(Conv("k", 2, 2, (2, 3)), {"k.weight": weight}, framed, ops=REFERENCE, eps=0)
    got = evaluate(conv, {"k.weight": weight}, x, ops=REFERENCE, eps=0)
    assert_exact(got, want)
    assert got.shape[2:] == tuple(n + g for n, g in zip((4, 7), conv.growth, strict=True))
    assert conv.reads_outside
    assert not SidedConv("k", 2, 2, (1, 1), padding=(-1, 0), ends=(0, -3)).reads_outside


@pytest.mark.parametrize("shape", [(3,), ()])
def test_gradients_of_a_quotient(shape: tuple[int, ...]) -> None:
    part = Quotient("v", shape)
    rng = np.random.default_rng(0)

    def forward(x: Array, v: Array) -> tuple[Array, Any]:
        run = Run({"v": v}, REFERENCE, 0.0, training=False)
        y, cache = part.forward(x, run)
        return y, (cache, run)

    def backward(grad_y: Array, kept: Any) -> tuple[Array, ...]:
        cache, run = kept
        return part.backward(grad_y, cache, run), run.grads["v"]

    x, v = rng.standard_normal((2, 3, 4, 4)), np.asarray(2 + rng.random(shape))
    assert_gradients(forward, backward, x, v, seed=1)


def test_a_norms_own_eps_is_the_one_that_counts() -> None:
    linear = Chain(Identity("i", 1), Norm("bn", 1, Fraction(1, 4)))
    params = {f"bn.{part}": np.array([Fraction(n)]) for part, n in
              (("gamma", 3), ("beta", 5), ("running_mean", 7), ("running_var", 2))}  # fmt: skip
    x = rationals(np.random.default_rng(0), 1, 1, 2, 2)
    want = (x - 7) * 2 + 5  # 3 / sqrt(2 + 1/4) is 2
    for eps in (Fraction(0), Fraction(2)):
        assert_exact(evaluate(linear, params, x, ops=REFERENCE, eps=eps), want)
        assert fuse_exactly(linear, params, eps).weight.item() == 2
        assert fuse_exactly(linear, params, eps).bias.item() == -9


def test_a_quotient_is_the_exact_one_rounded_once() -> None:
    """A third of a float32 is no double; an average of nine pixels, beside a 3x3 kernel."""
    rng = np.random.default_rng(0)
    conv = Conv("k", 4, 4, (3, 3), padding=(1, 1), groups=4)
    ones = SidedConv("a", 4, 4, (3, 3), (1, 1), (1, 1), groups=4, ends=(1, 1))
    linear = Sum(conv, Chain(ones, Quotient("n", ())), Chain(conv, Quotient("v", (4,))))
    params = {
        "k.weight": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "a.weight": np.ones((4, 1, 3, 3), np.float32),
        "n": np.full((), 9.0),
        "v": rng.normal(size=4).astype(np.float32),
    }
    whole = Conv("fused", 4, 4, (3, 3), padding=(1, 1), groups=4, bias=True)
    fused = fuse_linear("block", linear, whole, params, eps=0.0, dtype=np.float32)
    for at, got in np.ndenumerate(fused.weight):
        k, v = (Fraction(float(each)) for each in (params["k.weight"][at], params["v"][at[0]]))
        assert got == nearest(k + Fraction(1, 9) + k / v, np.float32)
    assert check_linear("block", linear, whole, params, fused, eps=0.0).ok
    wrong = fused._replace(weight=fused.weight * np.float32(1 + 1e-5))
    assert not check_linear("block", linear, whole, params, wrong, eps=0.0).ok


def test_terms_of_another_growth_need_somebodys_word() -> None:
    terms = Conv("k", 2, 2, (3, 3)), Identity("i", 2)
    with pytest.raises(NotFusibleError, match="outputs of one size: their growth differs"):
        Sum(*terms)
    assert SameSize(*terms).growth == (-2, -2)
