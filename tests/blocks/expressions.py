"""Expressions for tests: the paper's block, its relatives, and one of every constructor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.average import Average, avg_pool
from repvgg_ref.blocks.constructors import (
    Bias,
    Concat,
    FormulaConv,
    Pad,
    Scale,
    Slice,
)
from repvgg_ref.blocks.family import FAMILY
from repvgg_ref.blocks.formulas import Dirac
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.parts import Parts
from repvgg_ref.blocks.priors import Factor
from repvgg_ref.blocks.run import Linear, Reader, Run
from repvgg_ref.blocks.sided import Quotient, SameSize, SidedConv
from repvgg_ref.ops import REFERENCE
from tests.blocks.exact_blocks import EPS, exact_array

C = 4


def conv_bn(name: str, kernel: tuple[int, int], *, groups: int = 1, stride: int = 1) -> Chain:
    padding = kernel[0] // 2, kernel[1] // 2
    conv = Conv(f"{name}.conv", C, C, kernel, (stride, stride), padding, groups=groups)
    return Chain(conv, Norm(f"{name}.bn", C))


def paper(stride: int = 1, groups: int = 1) -> Linear:
    parts = [conv_bn("k", (3, 3), stride=stride, groups=groups)]
    parts.append(conv_bn("p", (1, 1), stride=stride, groups=groups))
    if stride == 1:
        parts.append(Chain(Identity("i", C, groups), Norm("i.bn", C)))
    return Sum(*parts)


def asymmetric() -> Linear:
    return Sum(conv_bn("s", (3, 3)), conv_bn("v", (3, 1)), conv_bn("h", (1, 3)))


def post_addition() -> Linear:
    convs = Conv("a", C, C, (3, 3), padding=(1, 1)), Conv("b", C, C, (1, 1))
    return Chain(Sum(*convs, Identity("i", C)), Norm("bn", C))


def diverse(groups: int = 1) -> Linear:
    """A diverse-branch block: padded batch norms before an average and before a 3x3 kernel."""
    first = Norm("avg.bn1", C)
    average = Chain(
        Conv("avg.conv", C, C, (1, 1), groups=groups),
        first,
        Pad((1, 1), first),
        avg_pool(C, (3, 3), (1, 1), (0, 0)),
        Norm("avg.bn2", C),
    )
    before = Norm("seq.bn1", C)
    sequence = Chain(
        Sum(Conv("seq.conv1", C, C, (1, 1), groups=groups), Identity("seq.i", C, groups)),
        before,
        Pad((1, 1), before),
        Conv("seq.conv2", C, C, (3, 3), groups=groups),
        Norm("seq.bn2", C),
    )
    return Sum(conv_bn("k", (3, 3), groups=groups), average, sequence)


def scaled() -> Linear:
    """Four branches, a learned factor on one, then one number for all (PP-LCNet's kind)."""
    small = Chain(conv_bn("p", (1, 1)), Scale("alpha", (1,)))
    whole = Sum(conv_bn("k0", (3, 3)), conv_bn("k1", (3, 3)), small)
    return Chain(whole, Scale("lab.scale", (1,)), Bias("lab.bias", (1,)), Scale("gamma", (C,)))


def dilated() -> Linear:
    """A large kernel and small dilated ones."""
    wide = Conv("w", C, C, (5, 5), padding=(2, 2), groups=C)
    sparse = Conv("d", C, C, (3, 3), padding=(2, 2), dilation=(2, 2), groups=C)
    return Sum(Chain(wide, Norm("w.bn", C)), Chain(sparse, Norm("d.bn", C)))


def side_by_side() -> Linear:
    """Channels cut apart and put together again."""
    half = C // 2
    left = Chain(Slice(C, 0, half), Conv("l", half, 3, (3, 3), padding=(1, 1)), Bias("lb", (3,)))
    right = Conv("r", C, 1, (1, 1), bias=True)
    return Concat(left, right)


def strided_chain() -> Linear:
    """A convolution without padding behind one with stride: nothing is read outside."""
    return Chain(
        Conv("a", C, C, (3, 3), (2, 2), (1, 1)), Conv("b", C, C, (2, 2), bias=True), Norm("bn", C)
    )


def several_groups() -> Linear:
    return Sum(Conv("a", C, C, (1, 1), groups=C), Conv("b", C, C, (1, 1), groups=2))


def averaged() -> Linear:
    return Sum(
        FormulaConv(Conv("", C, C, (1, 1), groups=C), Average(C, (1, 1))), Identity("i", C, C)
    )


def computed(groups: int = 1, stride: int = 1) -> Linear:
    """A kernel from a formula, behind it a batch norm."""
    plain = Conv("k", C, C, (3, 3), (stride, stride), (1, 1), groups=groups)
    return Chain(FormulaConv(plain, Dirac(plain)), Norm("bn", C))


def norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    """As a file has them."""
    ends = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{end}": (channels,) for end in ends}


def member_of(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> Linear:
    """A block of the family, from shapes under the names of its file."""
    one = FAMILY[kind]
    found = one.build(Parts({one.leaf(end): shape for end, shape in shapes.items()}))
    assert found is not None
    return found


def mixed(channels: int = C, k: int = 3) -> Linear:
    """FastViT's mixer: a branch is subtracted."""
    shapes: dict[str, tuple[int, ...]] = {"layer_scale": (channels, 1, 1)}
    for name, size in (("mixer.rbr_conv.0", k), ("mixer.rbr_scale", 1)):
        shapes[f"{name}.conv.weight"] = (channels, 1, size, size)
        shapes |= norm_shapes(f"{name}.bn", channels)
    for name in ("mixer.rbr_skip", "norm.rbr_skip"):
        shapes |= norm_shapes(name, channels)
    return member_of("repmixer", shapes)


def online(groups: int = 1, inputs: int = C, out: int = C, k: int = 3) -> Linear:
    """OREPA's block: stored priors, a separable kernel, factors that are rows of one array."""
    per, middle = inputs // groups, inputs
    shapes: dict[str, tuple[int, ...]] = {
        "weight_orepa_origin": (out, per, k, k),
        "weight_orepa_avg_conv": (out, per, 1, 1),
        "weight_orepa_avg_avg": (k, k),
        "weight_orepa_pfir_conv": (out, per, 1, 1),
        "weight_orepa_prior": (out, k, k),
        "weight_orepa_1x1_kxk_idconv1": (middle, per, 1, 1),
        "id_tensor": (middle, per, 1, 1),
        "weight_orepa_1x1_kxk_conv2": (out, middle // groups, k, k),
        "weight_orepa_1x1": (out, per, 1, 1),
        "weight_orepa_gconv_dw": (8 * inputs, 1, k, k),
        "weight_orepa_gconv_pw": (out, 8 * per, 1, 1),
        "vector": (6, out),
    }
    return member_of("orepa", shapes | norm_shapes("bn", out))


def bordered(inputs: int = C, out: int = C) -> Linear:
    """ECBSR's block: a border of the bias before it."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv3x3.weight": (out, inputs, 3, 3),
        "conv3x3.bias": (out,),
    }
    for at, middle in (("3x3", 2 * out), ("sbx", out), ("sby", out), ("lpl", out)):
        shapes |= {
            f"conv1x1_{at}.k0": (middle, inputs, 1, 1),
            f"conv1x1_{at}.b0": (middle,),
        }
        if at == "3x3":
            shapes |= {f"conv1x1_{at}.k1": (out, middle, 3, 3), f"conv1x1_{at}.b1": (out,)}
        else:
            shapes |= {
                f"conv1x1_{at}.scale": (out, 1, 1, 1),
                f"conv1x1_{at}.bias": (out,),
                f"conv1x1_{at}.mask": (out, 1, 3, 3),
            }
    return member_of("ecbsr", shapes)


def exactly(array: Array) -> Array:
    """The exact values of floats."""
    return np.array([Fraction(float(v)) for v in array.flat], object).reshape(array.shape)


def of_magnitudes(linear: Any) -> Any:
    """The expression with every number that no array holds replaced by its magnitude."""
    if isinstance(linear, Sum | Chain):
        return type(linear)(*(of_magnitudes(part) for part in linear.parts))
    return Factor(abs(linear.number)) if isinstance(linear, Factor) else linear


def one_sided() -> Linear:
    """TensorFlow's SAME of stride 2 beside a 1x1, divided by what is drawn as variances are."""
    wide = SidedConv("w", C, C, (3, 3), (2, 2), (0, 0), ends=(1, 1), groups=2)
    point = SidedConv("p", C, C, (1, 1), (2, 2), (0, 0), ends=(-1, -1), bias=True)
    both = Sum(
        Chain(wide, Norm("w.bn", C)),
        Chain(point, Quotient("divisor.running_var", (C,))),
    )
    return Chain(both, Quotient("window.running_var", (1,)))


def cut_to_size() -> Linear:
    """A 3x3 without padding, and what is left of the input, which fits by its size alone."""
    cut = SidedConv("one", C, C, (1, 1), padding=(-1, -1), ends=(-1, -1), groups=C)
    even = SidedConv("two", C, C, (2, 1), padding=(-1, 0), ends=(0, -2), groups=C)
    return SameSize(Conv("k", C, C, (3, 3)), cut, even)


EXPRESSIONS: dict[str, Callable[[], Linear]] = {
    "paper": paper,
    "paper, stride 2": lambda: paper(stride=2),
    "paper, two groups": lambda: paper(groups=2),
    "asymmetric": asymmetric,
    "post-addition": post_addition,
    "diverse": diverse,
    "diverse, two groups": lambda: diverse(groups=2),
    "scaled": scaled,
    "dilated": dilated,
    "side by side": side_by_side,
    "strided chain": strided_chain,
    "several groups": several_groups,
    "averaged": averaged,
    "computed": computed,
    "computed, two groups": lambda: computed(groups=2),
    "mixed": mixed,
    "online": online,
    "online, two groups": lambda: online(groups=2),
    "bordered": bordered,
    "one-sided": one_sided,
    "cut to size": cut_to_size,
}


def exact_params(linear: Linear, seed: int = 0) -> dict[str, Array]:
    """Rationals whose batch norms have rational roots."""
    rng = np.random.default_rng(seed)
    return {
        name: exact_array(name, shape, rng)
        for name, shape in linear.shapes().items()
        if not name.endswith("num_batches_tracked")
    }


def float_params(linear: Linear, seed: int = 0, dtype: Any = np.float64) -> dict[str, Array]:
    """The same spread of numbers in floats."""
    exact = exact_params(linear, seed)
    rng = np.random.default_rng(seed)
    found = {}
    for name, array in exact.items():
        values = array.astype(np.float64)
        noise = 1 + rng.uniform(-0.01, 0.01, values.shape)
        found[name] = np.asarray(values * noise, dtype)
    return found


def fused_by_hand(linear: Linear, params: Mapping[str, Array], x: Array, eps: Any) -> Array:
    """The normal form applied as its definition reads: a sum over offsets of shifted inputs."""
    exact = x.dtype == object
    form = linear.form(Reader(params, eps, exact), slice(None))
    H, W = x.shape[2:]
    probe, _ = linear.forward(x, _run(params, x, eps))
    out = np.zeros(probe.shape, x.dtype) + form.bias[:, None, None]
    groups, per_out = form.groups, len(form.bias) // form.groups
    for offset in form.lattice.offsets():
        taps = form.at(offset)  # (O, C/G)
        for h in range(probe.shape[2]):
            for w in range(probe.shape[3]):
                r, c = h * form.stride[0] + offset[0], w * form.stride[1] + offset[1]
                if not (0 <= r < H and 0 <= c < W):
                    continue
                for g in range(groups):
                    rows = slice(g * per_out, (g + 1) * per_out)
                    inputs = slice(g * taps.shape[1], (g + 1) * taps.shape[1])
                    out[:, rows, h, w] += x[:, inputs, r, c] @ taps[rows].T
    return out


def _run(params: Mapping[str, Array], x: Array, eps: Any) -> Run:
    return Run(params, REFERENCE, eps, training=False)


__all__ = ["EPS", "EXPRESSIONS", "Fraction", "exact_params", "float_params", "fused_by_hand"]
