"""The trained form and the fused form of a network, on real images: a training run is also a proof.

*Block by block.* Each block gets the trained form's own input and is evaluated both ways in
float64, the fused kernel as it will be written. They may differ by the rounding of the fused taps
and by float64's own error (the certified bound of `blocks.selfcheck`, here at every pixel):

    |y_fused - y_branches| <= u (|W| * |x| + |b|) + 2 n u64 (magnitudes of all terms)

*End to end.* In the backend's arithmetic the two forms' logits differ by what both round, layer by
layer. A certified bound of that is useless after twenty layers, so the tolerance is propagated:
every block's output is moved by ``sqrt(n) u (magnitudes)`` with random signs, in float64, which is
the probable size of a rounded sum's error (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, theorem
2.4), and an image's logits may differ by `SAFETY` times what the largest of `DRAWS` moves does.
What rounding does to one image says nothing of another, which may be a thousand times brighter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import activate
from repvgg_ref.blocks.catalogue import expression, fused_conv, part_of
from repvgg_ref.blocks.run import evaluate, magnitudes
from repvgg_ref.blocks.selfcheck import BlockCheck, SelfCheckError, worst
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.graph import walk
from repvgg_ref.models.layers import Block, Pass
from repvgg_ref.models.network import Model
from repvgg_ref.ops import Ops

SAFETY = 8.0
DRAWS = 4  # one might by chance move two logits very little
_U64 = 2.0**-53


class Agreement(NamedTuple):
    """The block closest to its bound, and what each image's logits may differ by, shape (N,)."""

    block: BlockCheck
    tolerances: Array


def check_agreement(
    trained: Model, fused: Model, x: Array, *, ops: Ops, roundoff: float, seed: int = 0
) -> Agreement:
    """Compare the two forms' blocks on `x`.

    Parameters
    ----------
    trained, fused : Model
        With arrays on the host.
    x : array, shape (N, C, H, W)
        A few real images.
    ops : Ops
        A table that computes in float64 as it should, on the host.
    roundoff : float
        Of the arithmetic in which the two forms' logits will be compared: 2^-24 for float32.

    Raises
    ------
    SelfCheckError
        If some block differs by more than rounding.
    """
    wide = {n: np.asarray(a, np.float64) for n, a in trained.params.items()}
    run, checks = Pass(wide, ops, trained.eps), list[BlockCheck]()
    rng = np.random.default_rng(seed)
    nodes = [
        replace(node, op=_Compared(node.op.spec, fused, roundoff, rng, checks))
        if isinstance(node.op, Block)
        else node
        for node in trained.arch.evaluated
    ]
    images = np.asarray(x, np.float64)
    for visit in walk(nodes, np.concatenate([images] * (1 + DRAWS)), lambda node: run):
        logits = visit.y
    closest = worst(checks)
    if not closest.ok:
        raise SelfCheckError(
            f"{closest.layer}: the fused convolution differs from its branches on real images",
            got=f"{closest.max_error:.3g}",
            wanted=f"at most {closest.bound:.3g}",
            advice="this is a bug in repvgg-ref: please report it",
        )
    right, *moved = np.split(logits, 1 + DRAWS)
    return Agreement(closest, SAFETY * _apart(right, moved))


def _apart(right: Array, moved: list[Array]) -> Array:
    """How far the farthest move takes a logit of each image, or of one of its pixels, (N,)."""
    flat = [np.abs(z - right).reshape(len(z), -1) for z in moved]
    found: Array = np.max([z.max(axis=1) for z in flat], axis=0)
    return found


@dataclass(frozen=True)
class _Compared(Block):
    """A block both ways, on a batch of images and `DRAWS` copies, moved by what rounds so far."""

    fused: Model
    roundoff: float
    rng: np.random.Generator
    checks: list[BlockCheck]

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, None]:
        """Of the images and the copies; the check of the images goes to `checks`."""
        spec, ops = self.spec, run.ops
        z, shaken = np.split(x[0], [len(x[0]) // (1 + DRAWS)])
        both = _evaluate(spec, run.params, self.fused, z, ops, run.eps)
        self.checks.append(_check(spec, self.fused, both))
        parts = part_of(spec, run.params)
        moved = evaluate(expression(spec), parts, shaken, ops=ops, eps=run.eps)
        count = self.fused.params[f"{spec.name}.fused.weight"][0].size + 16
        slack = math.sqrt(count) * self.roundoff * (both.written + both.terms)
        moved += np.concatenate([slack] * DRAWS) * self.rng.choice((-1.0, 1.0), moved.shape)
        before = np.concatenate([both.branches, moved])
        return activate(spec, run.params, before, ops=ops)[0], None


class _Both(NamedTuple):
    """A block's sum before its activation, both ways, and the magnitudes that entered it."""

    branches: Array
    fused: Array
    terms: Array
    written: Array


def _evaluate(
    spec: BlockSpec, params: Mapping[str, Array], fused: Model, z: Array, ops: Ops, eps: float
) -> _Both:
    weight = fused.params[f"{spec.name}.fused.weight"].astype(np.float64)
    bias = fused.params[f"{spec.name}.fused.bias"].astype(np.float64)
    settings = fused_conv(spec).settings
    got, _ = ops.conv2d_forward(z, weight, bias, **settings)
    written, _ = ops.conv2d_forward(np.abs(z), np.abs(weight), np.abs(bias), **settings)
    parts = part_of(spec, params)
    terms = evaluate(expression(spec), magnitudes(parts), np.abs(z), ops=ops, eps=eps) + written
    return _Both(evaluate(expression(spec), parts, z, ops=ops, eps=eps), got, terms, written)


def _check(spec: BlockSpec, fused: Model, both: _Both) -> BlockCheck:
    """At the element that used most of its bound."""
    kind = np.finfo(fused.params[f"{spec.name}.fused.weight"].dtype)
    count = fused.params[f"{spec.name}.fused.weight"][0].size + 16
    bound = float(kind.eps) / 2 * both.written + 2 * count * _U64 * both.terms
    bound += count * float(kind.smallest_subnormal)
    error = np.abs(both.fused - both.branches)
    if error.size == 0:
        raise ShapeError(f"{spec.name}: no image to compare the two forms on")
    at = np.unravel_index(np.argmax(error / bound), error.shape)  # argmax returns a NaN if any
    return BlockCheck(spec.name, float(error[at]), float(bound[at]))
