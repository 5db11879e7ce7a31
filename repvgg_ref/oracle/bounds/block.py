"""How far a right candidate may be from the reference: per output element, certified and likely.

The reference is fed the candidate's *own* layer input, so one layer's rounding is all that differs.
Model of computation (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2):
``fl(a op b) = (a op b)(1 + d) + e`` with ``|d| <= u`` and ``|e| <= tiny``. A product that meets k
roundings errs by at most

    theta_k = (1 - u)**-k - 1                  (his lemma 3.1, without the restriction k u < 1)

of itself, whatever the order of summation (his section 4.2): among n terms a product meets at
most n - 1 additions, its own rounding, and `_OTHER` more. Three candidates are right and must pass:
branches and batch norms apart, a kernel fused in the candidate's arithmetic, one rounded
correctly. Hence, before SE and ReLU,

    |y_hat - y| <= (1 + u_store)**7 ((1 + max c_b) (theta M + u_store S + U) + C)

    M  sum over branches |t| (|W| * |x| + |mean|) + |beta|     errors of single products
    C  sum over branches c_b (|t z_b| + |t mean|)              t itself is wrong by a factor 1 + c_b
    S  what may be written to memory on the way                see `_stored`
    U  underflow                                               see `_underflow`

C and S hold *values* of branches, which cancel within, where M holds magnitudes: that is what keeps
16-bit bounds useful. M counts centre taps of branches that cancel in the fused kernel in full.

The likely bound takes rounding errors as independent with mean 0. With probability at least
``1 - 2 exp(-lam**2 / 2)`` errors ``sum a_k d_k`` are below ``lam u sqrt(sum a_k**2)`` (Hoeffding),
which serves the roundings of inputs and weights; sums in n steps err by at most
``exp(lam sqrt(n) u + n u^2 / (1 - u)) - 1`` relative to M, with n times that failure probability
(Higham & Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41,
2019, theorem 2.4). lam is chosen so that a right layer has an element outside with probability
1e-3 at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import is_fusible
from repvgg_ref.oracle.bounds.between import between_bound
from repvgg_ref.oracle.bounds.linear_part import (
    BranchValues,
    LinearPart,
    direct_energy,
    layer_kernels,
    linear_part,
    together,
)
from repvgg_ref.oracle.bounds.norm_head import norm_head_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.scale import scale_error
from repvgg_ref.oracle.bounds.squeeze_excitation import (
    Interval,
    cutting_drift,
    dense,
    gate_interval,
    likely_theta,
    pooled,
    squeeze_excitation,
    theta,
)
from repvgg_ref.oracle.bounds.winograd import applies, roundings
from repvgg_ref.oracle.programs.between import BetweenProgram
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.programs.program import Program

Algorithm = Literal[
    "direct", "winograd2", "winograd3", "winograd4", "winograd5", "winograd6", "winograd7",
    "winograd8",
]  # fmt: skip
WINOGRAD: tuple[Algorithm, ...] = get_args(Algorithm)[1:]
_OUTPUTS_PER_TILE = {"direct": 0} | {name: int(name[-1]) for name in WINOGRAD}

# Roundings that a product meets besides those of its dot product: weight times t (1), two additions
# of centre taps (2) or two of branches (2, the larger path has either), bias (1), batch norm apart
# in four steps (4).
_OTHER = 1 + 2 + 1 + 4

# Writes to memory on the longest path: the convolution, batch norm's four steps, two branch sums.
_WRITES = 7

# The bound is computed in float64 too, as sums of positive terms: relative error below n 2**-52,
# and n < 2**20 for any layer. The reference errs by (n + 8) 2**-53 of M, while the bound is at
# least n 2**-24 of M: 2**-28 of it pays for both.
_OWN_ERROR = 2.0**-28

_FAILURE = 1e-3
_TOGETHER = 1 << 22  # weights of a linear layer that are looked at at once


class Bound(NamedTuple):
    """Largest possible and largest likely error, float64 arrays of the layer output's shape."""

    certified: Array
    likely: Array


def block_bound(
    program: BlockProgram,
    x: Array,
    y: Array,
    precision: Precision,
    *,
    algorithm: Algorithm = "direct",
) -> Bound:
    """Bound the error of one block for the candidate's own input; see the module's equations.

    Parameters
    ----------
    program : BlockProgram
        A right one: convolution with zeros around, branches or a fused kernel, SE, ReLU. A deploy
        reference presumes a candidate with these very weights, rounded to its format at most.
    x : (N, C, H, W) array
        What the candidate's block was given.
    y : (N, O, Ho, Wo) array
        The reference's output for it.
    precision : Precision
    algorithm : {"direct", "winograd2", ..3, ..4, ..5, ..6, ..7, ..8}
        How the candidate convolves, F(m x m, 3 x 3). Direct wherever that does not apply: with
        dilation, and with stride 2 but for m of 2, 4 and 7.

    Returns
    -------
    Bound
        Positive everywhere; beyond any number (1e150 times the output) where `precision` cannot
        represent the batch norm's statistics. NaN in `x` gives NaN, which no error is below.

    Raises
    ------
    ValueError
        If `program` is a mutant (a map, an offset, a ReLU inside), or `y` has another batch size.
    """
    if len(y) != len(x):
        raise ValueError(f"y has {len(y)} images, x has {len(x)}")
    bound = block_output(program, x, precision, algorithm=algorithm)[1]
    return Bound(*(each.reshape(y.shape) for each in bound))


def block_output(
    program: BlockProgram, x: Array, precision: Precision, *, algorithm: Algorithm = "direct"
) -> tuple[Array, Bound]:
    """The reference's output of one block, (N, O, Ho, Wo), and its bound; see `block_bound`."""
    _require_right(program)
    m = _OUTPUTS_PER_TILE[algorithm]
    if program.size != (3, 3) or not applies(m, program.stride, program.dilation):
        m = 0
    kernels, size = layer_kernels(program), program.output_size(*x.shape[2:])
    shape = (len(x), len(kernels.weight), *size)
    lam = _lambda(terms=kernels.weight[0].size, outputs=int(np.prod(shape)))
    x = np.asarray(x, np.float64)
    found: tuple[list[Array], ...] = ([], [], [])
    # Winograd's tiles, and the means of squeeze-and-excitation, are of one image.
    alone = m or program.se is not None
    for images in np.split(x, len(x)) if alone else together(program, kernels, x):
        part = linear_part(program, kernels, images, m)
        terms = kernels.weight[0].size
        if m:
            terms = roundings(m, program.stride, kernels.weight.shape[1])
        before = Interval(part.value, *_before_activation(part, terms, precision, m, lam))
        for listed, each in zip(found, _activate(program, before, precision, lam), strict=True):
            listed.append(each.reshape(len(each), len(images), -1).transpose(1, 0, 2))
    y, certified, likely = (np.concatenate(listed).reshape(shape) for listed in found)
    return y, _finished(certified, likely, precision)


def likely_gate_error(program: BlockProgram, x: Array, precision: Precision) -> Array:
    """Likely error of squeeze-and-excitation's factor, relative to it: (N, O).

    The convolutions are summed directly; see `block_bound` for the arguments.
    """
    assert program.se is not None
    kernels = layer_kernels(program)
    terms = kernels.weight[0].size
    height, width = program.output_size(*x.shape[2:])
    lam = _lambda(terms=terms, outputs=len(x) * len(kernels.weight) * height * width)
    found = []
    for image in np.asarray(x, np.float64):
        part = linear_part(program, kernels, image[None], 0)
        z = Interval(part.value, *_before_activation(part, terms, precision, 0, lam))
        gate = gate_interval(z if program.activation.startswith("se") else z.relu(), program.se,
                             precision, lam)  # fmt: skip
        found.append(gate.likely / np.maximum(gate.value, 1e-300))
    return np.stack(found)


def layer_bound(program: Program, x: Array, y: Array, precision: Precision) -> Bound:
    """Bound the error of any layer for the candidate's own input, direct summation assumed."""
    if isinstance(program, BetweenProgram):
        certified = between_bound(program, x, y, precision)
        return _finished(certified, certified, precision)
    if isinstance(program, HeadProgram) and program.norm is not None:
        certified = norm_head_bound(program.norm, x, y, precision)
        return _finished(certified, certified, precision)
    if isinstance(program, HeadProgram):
        return head_bound(program.weight, program.bias, x, y, precision)
    assert isinstance(program, BlockProgram)
    return block_bound(program, x, y, precision)


def head_bound(weight: Array, bias: Array, x: Array, logits: Array, precision: Precision) -> Bound:
    """Bound the error of the logits, ``weight @ mean of x over H and W + bias``.

    Of a hidden layer, whose features are images of one pixel, as well: a ReLU enlarges no error.

    Parameters
    ----------
    weight, bias : (classes, C), (classes,) arrays
    x : (N, C, H, W) array
        The candidate's own input of the layer.
    logits : (N, classes) array
        The reference's for it.

    Returns
    -------
    Bound
    """
    lam = _lambda(terms=weight.shape[1], outputs=logits.size)
    found = []
    for image in np.asarray(x, np.float64):
        flat = image.reshape(len(image), -1)  # (C, H, W) -> (C, H * W)
        exact = Interval(flat, np.zeros_like(flat), np.zeros_like(flat))
        features = pooled(exact, precision, lam)
        found += [dense(features, *part, precision, lam) for part in _parts(weight, bias)]
    return _finished(
        np.concatenate([after.certified for after in found]).reshape(logits.shape),
        np.concatenate([after.likely for after in found]).reshape(logits.shape),
        precision,
    )


def _parts(weight: Array, bias: Array) -> Iterator[tuple[Array, Array]]:
    """A matrix a few rows at a time: VGG's first takes 0.8 GB, and so do its magnitudes."""
    rows = max(1, _TOGETHER // weight.shape[1])
    for first in range(0, len(weight), rows):
        yield weight[first : first + rows], bias[first : first + rows]


def product_energy(program: BlockProgram, x: Array) -> Array:
    """``sqrt(sum (w x)^2)`` of every output before its activation, (N, O, Ho * Wo), float64."""
    kernels = layer_kernels(program)
    return np.stack([direct_energy(program, kernels, i[None]) for i in np.asarray(x, np.float64)])


def _before_activation(
    part: LinearPart, terms: int, p: Precision, m: int, lam: float
) -> tuple[Array, Array]:
    """Both bounds of the convolutions' sum, (O, P): the module's equation and its likely form.

    Winograd on 16-bit data may write its transforms to memory after each of their two passes, so
    there inputs are rounded 3 times, weights 2 (the kernel is transformed once, before), products
    3; otherwise once each and not at all.
    """
    reads, kernels, writes = (3, 2, 3) if m else (1, 1, 0)
    steps = terms + _OTHER + _more(part) + part.roundings
    relative = (
        (1 + theta(p.u_input, reads))
        * (1 + theta(p.u_weight, kernels))
        * (1 + theta(p.u_store, writes))
        * (1 + theta(p.u_accumulate, steps))
    ) - 1
    scale_errors = [scale_error(b.gamma, b.spread, b.t, p) for b in part.branches]
    coherent = sum(
        (c[:, None] * _sizes(b) for c, b in zip(scale_errors, part.branches, strict=True)),
        start=_inner_scale_error(p) * _hidden(part),
    )
    widest = 1 + np.maximum.reduce(scale_errors)[:, None] if scale_errors else np.ones((1, 1))
    beside = p.u_store * _stored(part) + (1 + relative) * _underflow(part, steps, p, m)
    grows = (1 + p.u_store) ** (_WRITES + _more(part))
    certified = grows * (widest * (relative * part.magnitude + beside) + coherent)

    once = float(np.sqrt(reads * p.u_input**2 + kernels * p.u_weight**2 + writes * p.u_store**2))
    random = lam * once * part.energy
    random = random + likely_theta(p.u_accumulate, steps, lam) * part.magnitude
    drift = cutting_drift(p) * np.abs(part.value)
    likely = grows * (widest * (random + drift + beside) + coherent)
    return certified, np.minimum(likely, certified)


def _more(part: LinearPart) -> int:
    """Additions of branches, and writes of their sums, beyond those of three."""
    return max(0, len(part.branches) - 3)


def _inner_scale_error(p: Precision) -> float:
    """What c is for a batch norm inside a branch, its variance taken to be far from underflow."""
    r = p.u_store * (2 + p.u_store)
    return float((1 - r) ** -0.5 * (1 + theta(p.u_store, 4)) * (1 + theta(p.u_accumulate, 6)) - 1)


def _hidden(part: LinearPart) -> Array:
    """The magnitudes inside branches whose kernels are computed, (O, P)."""
    found = [b.hidden for b in part.branches if b.hidden is not None]
    return np.asarray(sum(found, start=np.zeros_like(part.value)))


def _sizes(branch: BranchValues) -> Array:
    """``|t z| + |t mean|``, (O, P)."""
    return np.asarray(np.abs(branch.scaled) + np.abs(branch.t * branch.mean)[:, None])


def _stored(part: LinearPart) -> Array:
    """Sum of the magnitudes of all values that may be written to memory, scaled to the output.

    Fused: the convolution ``V - b`` and V. Apart: z, then either ``z - mean``, times
    ``1/sqrt(..)``, times gamma, plus beta, or ``z alpha``, ``mean alpha``, ``beta - mean alpha``
    and their sum. Scaled by t these are at most 4 times ``|t z| + |t mean|``, and ``|beta|``, and
    the branch's value v; then sums of the v, at most ``sum |v|``, and V. The fused are no larger.
    A branch with another convolution and norm inside writes theirs, too.
    """
    value = np.abs(part.value)
    if not part.branches:
        return np.asarray(2 * value + part.bias_magnitude[:, None])
    total: Array = value + 5 * _hidden(part)
    for b in part.branches:
        v = np.abs(b.scaled + (b.beta - b.t * b.mean)[:, None])
        total = total + 4 * _sizes(b) + np.abs(b.beta)[:, None] + 2 * v
    return total


def _underflow(part: LinearPart, steps: int, p: Precision, m: int) -> Array:
    """Sum of all absolute errors by underflow, scaled to the output, (O, P).

    Inputs, and weights, fused (1) or apart (t), as they are read and, in Winograd's algorithm, as
    the passes of a transform leave them: dot products of ``m + 2`` terms. A term of a dot product
    underflows once: where a product has, its sum cannot. Written: the sum of products, z apart;
    mean before t acts (where either has underflowed, ``z - mean`` cannot); the quotient before
    gamma does, up to 5 a branch after that, and `_WRITES` of the whole.
    """
    spread = part.underflow
    apart = np.reshape(sum(np.abs(b.t) for b in part.branches) + np.ones(1), (-1, 1))
    read = p.tiny + (m + 2 if m else 0) * p.tiny_accumulate
    written = sum(np.abs(b.t) + np.abs(b.gamma) + 5 for b in part.branches) + _WRITES + _more(part)
    return np.asarray(
        read * (spread.inputs + apart * (spread.weights + read * spread.both))
        + (p.tiny + steps * p.tiny_accumulate) * apart * spread.products
        + p.tiny * np.reshape(written, (-1, 1))
    )


def _activate(program: BlockProgram, z: Interval, p: Precision, lam: float) -> Interval:
    """SE and ReLU in the program's order."""
    for step in program.activation.split("-"):
        if step == "relu":
            z = z.relu()
        elif step == "se" and program.se is not None:
            z = squeeze_excitation(z, program.se, p, lam)
    return z


def _lambda(terms: int, outputs: int) -> float:
    """The lam for which ``2 (terms + 2) outputs exp(-lam**2 / 2)`` is 1e-3."""
    return float(np.sqrt(2 * np.log(2 * (terms + 2) * outputs / _FAILURE)))


def _finished(certified: Array, likely: Array, p: Precision) -> Bound:
    """Add what computing the bounds costs, and one underflow, so that no bound is 0."""
    return Bound(*(b * (1 + _OWN_ERROR) + p.tiny for b in (certified, likely)))


def _require_right(program: BlockProgram) -> None:
    maps = (program.input_map, program.kernel_map, program.output_map)
    inside = program.relu_inside and is_fusible(program.spec)
    if any(m is not None for m in maps) or program.offsets or inside:
        raise ValueError(f"{program.spec.name}: bounds are for the right program, not a mutant")
    if program.pad_mode != "zeros":
        raise ValueError(
            f"{program.spec.name}: bounds are for zeros around, not {program.pad_mode}"
        )
    if not set(program.activation.split("-")) <= {"relu", "se", "none"}:
        raise ValueError(f"{program.spec.name}: there is no bound for {program.activation}")
