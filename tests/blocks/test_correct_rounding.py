"""Every fused tap is the exact value correctly rounded: small blocks, all taps, hard numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Context, Decimal
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import KINDS, expression, is_fusible
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.run import Reader
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.exact.rounding import Ratios, nearest, nearest_of, root, round_once
from repvgg_ref.exact.twofold import round_sum, twofold
from tests.blocks.exact_blocks import Case, block_shapes
from tests.blocks.witness import Witness, exceptions, is_nearest
from tests.examples import examples
from tests.random_networks import random_block

EPS = 1e-5
BLOCK = Case(1, 2, 1, has_1x1=True, has_identity=True, width=3).spec
Params = dict[str, Array]


def _block(seed: int, spec: BlockSpec = BLOCK) -> Params:
    return random_block(block_shapes(spec), seed)


def _assert_correct(
    params: Params, *, dtype: Any = np.float32, eps: float = EPS, spec: BlockSpec = BLOCK
) -> None:
    fused = fuse_block(spec, params, eps=eps, dtype=dtype)
    found = exceptions(fused.weight, fused.bias, Witness(params, spec.name, spec.groups, eps))
    assert not found, f"{len(found)} values are not correctly rounded, the first: {found[0]}"


def _ordinary(params: Params, rng: np.random.Generator) -> None:
    pass


def _tiny(params: Params, rng: np.random.Generator) -> None:
    """Products fall among float32's subnormals, and below them."""
    params["stage0.branch_3x3.bn.gamma"] *= np.float32(1e-38)
    params["stage0.branch_1x1.bn.gamma"] *= np.float32(3e-39)
    params["stage0.branch_identity.bn.gamma"] *= np.float32(1e-44)
    for branch in ("branch_3x3", "branch_1x1", "branch_identity"):
        params[f"stage0.{branch}.bn.beta"] *= np.float32(1e-40)
        params[f"stage0.{branch}.bn.running_mean"] *= np.float32(1e-3)


def _spread(params: Params, rng: np.random.Generator) -> None:
    """Gammas and variances over sixty orders of magnitude."""
    for name, array in params.items():
        if name.endswith("running_var"):
            array[:] = 10.0 ** rng.uniform(-30, 30, array.shape)
        elif name.endswith("gamma"):
            array *= (10.0 ** rng.uniform(-12, 12, array.shape)).astype(np.float32)


def _cancelling(params: Params, rng: np.random.Generator) -> None:
    """On the centre the 1x1 branch takes back what the 3x3 branch gives, but for a few bits."""
    for field in ("gamma", "running_var", "running_mean", "beta"):
        params[f"stage0.branch_1x1.bn.{field}"] = params[f"stage0.branch_3x3.bn.{field}"].copy()
    params["stage0.branch_1x1.bn.running_mean"] *= np.float32(-1)
    params["stage0.branch_1x1.bn.beta"] *= np.float32(-1)
    centre = params["stage0.branch_3x3.conv.weight"][:, :, 1:2, 1:2]
    off = rng.choice([0, 1, -1, 5], centre.shape) * np.spacing(centre)
    params["stage0.branch_1x1.conv.weight"] = -(centre + off).astype(np.float32)
    params["stage0.branch_identity.bn.gamma"] *= np.float32(1e-9)


def _zero_variance(params: Params, rng: np.random.Generator) -> None:
    """Dead channels: only eps stands under the root."""
    for name, array in params.items():
        if name.endswith("running_var"):
            array[::2] = 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("make", [_ordinary, _tiny, _spread, _cancelling, _zero_variance])
@examples(12)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_tap_of_a_block_is_correctly_rounded(
    make: Callable[[Params, np.random.Generator], None], dtype: Any, seed: int
) -> None:
    params = _block(seed)
    make(params, np.random.default_rng(seed))
    if dtype == np.float16 and make in (_spread, _zero_variance):
        params = _within_half(params)
    _assert_correct(params, dtype=dtype)


def _within_half(params: Params) -> Params:
    """Scaled so that no sum leaves float16's range (that is refused, not rounded)."""
    for branch in ("branch_3x3", "branch_1x1", "branch_identity"):
        var = params[f"stage0.{branch}.bn.running_var"].astype(np.float64)
        gamma = params[f"stage0.{branch}.bn.gamma"]
        gamma[:] = np.clip(gamma, -1, 1) * np.minimum(np.sqrt(var + EPS), 1e30)
    return params


# eps = 2^-17 and var = 1 - 2^-17 make sqrt(var + eps) exactly 1, so that t is gamma.
_UNIT_EPS, _UNIT_VAR = 2.0**-17, np.float32(1 - 2.0**-17)


def _with_unit_variance(seed: int) -> Params:
    params = _block(seed)
    for name, array in params.items():
        if name.endswith("running_var"):
            array[:] = _UNIT_VAR
    return params


def _odd_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Odd multiples of 2^-23 in [1, 2): full significands."""
    return (1 + (2 * rng.integers(0, 2**22, shape) + 1) * 2.0**-23).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_exact_ties_go_to_the_even_tap(seed: int) -> None:
    """Times 1.5 an odd significand needs 25 bits: every such tap below 4/3 is halfway."""
    rng = np.random.default_rng(seed)
    params = _with_unit_variance(seed)
    kernel = params["stage0.branch_3x3.conv.weight"]
    kernel[:] = _odd_integers(rng, kernel.shape)
    params["stage0.branch_3x3.bn.gamma"][:] = 1.5
    ties = (kernel.astype(np.float64) * 1.5).astype(np.float32) != kernel.astype(np.float64) * 1.5
    assert ties.mean() > 0.3
    _assert_correct(params, eps=_UNIT_EPS)


@pytest.mark.parametrize("dust", [2.0**-60, -(2.0**-60), 2.0**-100, -(2.0**-120)])
@pytest.mark.parametrize("gamma", [1.5, -1.5])
def test_a_speck_beyond_float64_decides_a_tie(dust: float, gamma: float) -> None:
    """The centre is a tie plus a 1x1 tap far below float64's last bit: its sign must decide.

    Fusing in float64 and rounding gets half of these wrong.
    """
    rng = np.random.default_rng(3)
    spec = replace(BLOCK, kind="1x1-only")
    params = {n: p for n, p in _with_unit_variance(3).items() if "identity" not in n}
    for branch, value in (("branch_3x3", gamma), ("branch_1x1", dust)):
        kernel = params[f"stage0.{branch}.conv.weight"]
        kernel[:] = _odd_integers(rng, kernel.shape)
        params[f"stage0.{branch}.bn.gamma"][:] = value
    _assert_correct(params, eps=_UNIT_EPS, spec=spec)

    kernels = [params[f"stage0.{b}.conv.weight"] for b in ("branch_3x3", "branch_1x1")]
    wide = [k.astype(np.float64) for k in kernels]
    naive = (wide[0][:, :, 1, 1] * gamma + wide[1][:, :, 0, 0] * dust).astype(np.float32)
    fused = fuse_block(spec, params, eps=_UNIT_EPS).weight[:, :, 1, 1]
    assert (naive != fused).any(), "the case is not hard: plain float64 gets it right"


@pytest.mark.parametrize("shift", [2.0**-45, -(2.0**-50), 2.0**-57, -(2.0**-60), 2.0**-68])
def test_an_eps_beyond_float64_decides_the_ties_of_products(shift: float) -> None:
    """var + eps is 1 + shift, which float64 may not hold, and every tap off the centre is a tie."""
    params = _with_unit_variance(4)
    kernel = params["stage0.branch_3x3.conv.weight"]
    kernel[:] = _odd_integers(np.random.default_rng(4), kernel.shape)
    params["stage0.branch_3x3.bn.gamma"][:] = 1.5
    _assert_correct(params, eps=_UNIT_EPS + shift)

    naive = kernel.astype(np.float64) * (1.5 / np.sqrt(_UNIT_VAR + np.float64(_UNIT_EPS + shift)))
    fused = fuse_block(BLOCK, params, eps=_UNIT_EPS + shift).weight
    off_centre = np.ones((3, 3), bool)
    off_centre[1, 1] = False
    wrong = (naive.astype(np.float32) != fused)[:, :, off_centre]
    assert wrong.any() == (abs(shift) < 2.0**-53), "where float64 suffices, and where it does not"


def test_near_ties_of_a_product_are_searched_for_and_met() -> None:
    """Of 4 million products the 200 closest to a rounding boundary, each checked in decimals."""
    rng = np.random.default_rng(11)
    kernel = rng.normal(size=(1, 2**22, 1, 1)).astype(np.float32)
    params = {n: p[:1] if p.ndim else p for n, p in _block(5).items()}
    t = np.float64(params["stage0.branch_3x3.bn.gamma"][0]) / np.sqrt(
        np.float64(params["stage0.branch_3x3.bn.running_var"][0]) + EPS
    )
    product = np.abs(kernel.astype(np.float64).ravel() * t)
    position = product.view(np.int64) & (2**29 - 1)  # the bits that float32 has not
    hardest = kernel.ravel()[np.argsort(np.abs(position - 2**28))[:200]]
    assert np.abs(np.sort(np.abs(position - 2**28))[0]) < 2**9
    spec = Case(1, 1, 1, has_1x1=False, has_identity=False, width=200).spec
    block = {n: p for n, p in params.items() if "branch_3x3" in n}
    block["stage0.branch_3x3.conv.weight"] = np.broadcast_to(
        hardest[None, :, None, None], (1, 200, 3, 3)
    ).copy()
    _assert_correct(block, spec=spec)


NESTED = (
    "qarepvgg",
    "dbb",
    "repvit",
)  # norms inside branches: `test_kinds` has their sums by ``==``


@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_fusible(replace(BLOCK, kind=kind))])
def test_float64_arrays_fuse_to_the_nearest_float64_numbers(kind: str) -> None:
    """Full significands, every kind of block; the sums in rationals, roots to 300 bits."""
    spec, rng = replace(BLOCK, kind=kind), np.random.default_rng(2)
    shapes = {f"stage0.{name}": shape for name, shape in expression(spec).shapes().items()}
    params = {
        name: array * rng.uniform(0.9, 1.1, array.shape)
        for name, array in random_block(shapes, 2).items()
    }
    fused = fuse_block(spec, params, eps=EPS, dtype=np.float64)
    parts = {n[7:]: a for n, a in params.items()}
    if kind in NESTED:
        form = expression(spec).form(Reader(parts, EPS, exact=True), slice(None))
        weight, bias = form.dense(), form.bias
    else:
        weight, bias = _in_rationals(spec, {n: _rational(a) for n, a in parts.items()})
    assert fused.weight.dtype == fused.bias.dtype == np.float64
    assert (fused.weight == weight.astype(np.float64)).all()  # a fraction's float is the nearest
    assert (fused.bias == bias.astype(np.float64)).all()


def _rational(array: Array) -> Array:
    return np.array([Fraction(float(v)) for v in array.flat], object).reshape(array.shape)


def _in_rationals(spec: BlockSpec, parts: Params) -> tuple[Array, Array]:
    """The fused kernel and bias, written from the formulas of `catalogue` and nothing else."""
    C, K = spec.out_channels, spec.kernel
    zero, one = Fraction(0), Fraction(1)
    weight, bias = np.full((C, C // spec.groups, K, K), zero), np.full(C, zero)
    kernels = {n.removesuffix(".weight"): a for n, a in parts.items() if n.endswith(".weight")}
    if spec.kind == "dirac":
        lengths = _roots([(a**2).sum() - Fraction(EPS) for a in kernels["conv"]])
        kernels["conv"] = kernels["conv"] * (parts["conv.beta"] / lengths)[:, None, None, None]
        rows = np.arange(C)
        kernels["conv"][rows, rows % (C // spec.groups), K // 2, K // 2] += parts["conv.alpha"]
    elif spec.kind not in ("plain", "1x1-only", "acb", "conv-bn", "conv-bias"):
        same = np.full((C, C // spec.groups, 1, 1), zero)
        same[np.arange(C), np.arange(C) % (C // spec.groups)] = one
        kernels["branch_skip" if spec.kind == "mobileone" else "branch_identity"] = same
    norms = {n.removesuffix(".gamma") for n in parts if n.endswith(".gamma")}
    scales = {n: parts[f"{n}.gamma"] / _roots(parts[f"{n}.running_var"]) for n in norms}
    for name, kernel in kernels.items():
        own = f"{name.removesuffix('conv').removesuffix('.')}.bn".removeprefix(".")
        scale = scales.get(own, scales.get("bn", np.full(C, one)))
        top, left = (K - kernel.shape[2]) // 2, (K - kernel.shape[3]) // 2
        under = weight[:, :, top : top + kernel.shape[2], left : left + kernel.shape[3]]
        under += kernel * scale[:, None, None, None]
        bias = bias + scale * parts.get(f"{name}.bias", np.full(C, zero))
    for name, scale in scales.items():
        bias = bias + parts[f"{name}.beta"] - parts[f"{name}.running_mean"] * scale
    return weight, bias


def _roots(variances: Iterable[Fraction]) -> Array:
    """``sqrt(var + eps)`` to 300 bits behind the point."""
    sums = [variance + Fraction(EPS) for variance in variances]
    return np.array([Fraction(isqrt(int(v * 4**300)), 2**300) for v in sums], object)


def test_float64_asks_for_exact_arithmetic_next_to_never() -> None:
    """Twice the precision leaves ties, total cancellation and the ends of the range."""
    asked: list[tuple[int, ...]] = []

    def exact(where: tuple[Array, ...]) -> Ratios:
        asked.extend(zip(*where, strict=True))
        return Ratios([0] * len(where[0]), [1] * len(where[0]))

    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 100, 1000))
    scales = [twofold([Fraction(int(n), 3**40) for n in rng.integers(1, 3**39, 100)]) for _ in x]
    round_sum(list(zip(x, scales, strict=True)), x.shape[1:], exact)
    assert not asked
    for hard in (1e305, 1e-300, 5e-324):
        round_sum([(np.full((1, 1), hard), twofold([Fraction(3, 7)]))], (1, 1), exact)
    assert len(asked) == 3
    round_sum([(np.ones((1, 1)), twofold([f])) for f in (Fraction(1, 3), Fraction(-1, 3))],
              (1, 1), exact)  # fmt: skip
    assert len(asked) == 4


def _ratio(exact: Fraction) -> Ratios:
    return Ratios([exact.numerator], [exact.denominator])


@examples(300)
@given(
    numbers=st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.fractions() | st.floats(allow_nan=False, allow_infinity=False).map(Fraction),
        ),
        max_size=4,
    )
)
def test_sums_of_any_floats_times_any_rationals_are_rounded_correctly(
    numbers: list[tuple[float, Fraction]],
) -> None:
    total = sum((Fraction(x) * t for x, t in numbers), Fraction(0))
    assume(abs(total) < Fraction(np.finfo(np.float64).max))
    products = [(np.full((1, 1), x), twofold([t])) for x, t in numbers]
    assert round_sum(products, (1, 1), lambda at: _ratio(total))[0, 0] == float(total)


@given(numerator=st.integers(1, 10**30), denominator=st.integers(1, 10**30))
def test_roots_are_exact_to_256_bits(numerator: int, denominator: int) -> None:
    value = Fraction(numerator, denominator)
    assert root(value * value) == value
    error = abs(root(value) ** 2 / value - 1)
    assert error <= Fraction(1, 2**254)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@examples(300)
@given(
    position=st.floats(0, 1),
    halves=st.integers(-3, 3),
    speck=st.sampled_from([0, 1, -1]),
)
def test_nearest_agrees_with_the_decimal_witness(
    dtype: Any, position: float, halves: int, speck: int
) -> None:
    """On numbers, halfway between them, and a speck beside both; zero and the largest included."""
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    last = int(np.finfo(dtype).max.view(bits))
    base = np.array(round(position * last), bits).view(dtype)[()]
    gap = Fraction(float(base)) - Fraction(float(np.nextafter(base, dtype(-1))))
    exact = Fraction(float(base)) + gap * halves / 2 + speck * Fraction(1, 2**300)
    digits = Context(prec=2000).divide(Decimal(exact.numerator), Decimal(exact.denominator))
    assert is_nearest(nearest(exact, dtype), digits)


def test_exact_arithmetic_is_called_only_where_float64_cannot_decide() -> None:
    asked: list[tuple[int, ...]] = []

    def exact(where: tuple[Array, ...]) -> Ratios:
        asked.extend(zip(*map(np.ndarray.tolist, where), strict=True))
        return _ratio(Fraction(1) + Fraction(1, 2**24) + Fraction(1, 2**90))

    value = np.array([1.25, 1 + 2.0**-24, 3.0])
    rounded = round_once(value, np.full(3, 2.0**-50), np.float32, exact)
    assert asked == [(1,)]
    assert rounded.tolist() == [1.25, 1 + 2.0**-23, 3.0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("kind", ["repvgg", "1x1-only", "plain"])
def test_a_block_of_ties_is_decided_at_a_cost_by_row_not_by_tap(
    kind: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tap undecided: forms in rationals are counted, the taps checked by the witness."""
    spec, eps = replace(Case(1, 1, 1, True, True, width=12).spec, kind=kind), _UNIT_EPS
    rng = np.random.default_rng(8)
    params = random_block(block_shapes(spec), 8)
    for name, array in params.items():
        if name.endswith("running_var"):
            array[:] = _UNIT_VAR
        elif name.endswith("gamma"):
            array[:] = 1.5
        elif name.endswith("conv.weight"):
            array[:] = _odd_integers(rng, array.shape)
    forms = []
    form = type(expression(spec)).form

    def counted(self: Any, read: Any, *part: slice) -> Any:
        forms.append(read.exact)
        return form(self, read, *part)

    monkeypatch.setattr(type(expression(spec)), "form", counted)
    fused = fuse_block(spec, params, eps=eps, dtype=dtype)
    assert sum(forms) <= 2
    assert not exceptions(fused.weight, fused.bias, Witness(params, spec.name, 1, eps))


def test_nearest_numbers_are_found_many_at_a_time_with_the_ends_of_the_range() -> None:
    largest = int(np.finfo(np.float32).max)
    half = 2**103
    numbers = [largest + half - 1, largest + half, -largest - half, 10**400, 0, 3, 2**25 + 3]
    found = nearest_of(Ratios(numbers, [1] * len(numbers)), np.dtype(np.float32))
    wanted = [largest, np.inf, -np.inf, np.inf, 0, 3, 2**25 + 4]
    assert found.tolist() == wanted
    with np.errstate(over="ignore"):
        assert nearest_of(Ratios([-(10**400)], [1]), np.dtype(np.float64)).tolist() == [-np.inf]
