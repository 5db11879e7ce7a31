"""Weights and batch-norm statistics chosen so that every known bug shows in every layer.

An untrained network (mean 0, variance 1, beta 0) hides an ignored mean, a dropped eps, swapped
batch norms and more; a random one lets activations die out or explode over 28 layers. Here every
layer is set up on what the layers before it really give: per channel a variance from 1e-4 (eps
matters) to 10, a mean apart from the batch's, a slope that gives the channel a scale between 0.6
and 6 (so a ReLU6 shows), and a beta that leaves a good half of its values above zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.repvgg import Branch, branch_names, train_block_forward
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.network import DEFAULT_EPS, Model
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.programs.block import DENSE, EXTENT, IDENTITY, POINTWISE
from repvgg_ref.oracle.programs.inputs import golden_inputs


@dataclass(frozen=True)
class Statistics:
    """How batch norms are made to differ.

    Attributes
    ----------
    variances : (smallest, largest)
        Of the channels in front of batch norm, spread evenly on a logarithmic scale.
    apart : (smallest, largest)
        Distance of the running mean from the batch's, in the batch's deviations.
    ratio : float
        The batch's variance is at most this times the running one, or one over it.
    """

    variances: tuple[float, float] = (1e-4, 10.0)
    apart: tuple[float, float] = (0.3, 0.8)
    ratio: float = 2.0


INFERENCE = Statistics()
# Gradients of a kernel are inverse to the deviation it gives: for training a narrower range, or
# one step of one learning rate would turn some channels round and leave others alone. And what
# is set up on running statistics (SE's gates) must hold with the batch's, too.
TRAINING = Statistics((0.01, 5.0), (0.03, 0.08), 1.1)

_SHARE = {DENSE: (0.7, 1.0), POINTWISE: (0.5, 0.8), IDENTITY: (0.4, 0.7)}
_STEPS_SEEN = 1000  # what num_batches_tracked says; no evaluation reads it


def distinguishing_model(
    arch: Architecture,
    seed: int = 0,
    *,
    x: Array | None = None,
    eps: float = DEFAULT_EPS,
    statistics: Statistics = INFERENCE,
) -> Model:
    """A model of `arch` that hides no known bug, float32, train form.

    Parameters
    ----------
    arch : Architecture
    seed : int
    x : array, shape (N, in_channels, H, W), optional
        The batch on which the activations get their scale; default `golden_inputs`.
    eps : float
        Batch norm's.
    statistics : Statistics
        `INFERENCE`, or `TRAINING` for a model that is to take training steps.

    Returns
    -------
    Model
    """
    rng = np.random.default_rng(seed)
    batch = golden_inputs(arch, seed=seed) if x is None else x
    y = batch.astype(np.float64)
    params: dict[str, Array] = {}
    for spec in arch.blocks:
        mine = distinguishing_block(spec, y, rng, eps, statistics)
        params |= mine
        y, _ = train_block_forward(spec, _widened(mine), y, ops=REFERENCE, eps=eps, training=False)
    params |= _head(arch, y, rng) | _aux_heads(arch, rng)
    return Model(arch, "train", {name: params[name] for name in param_shapes(arch, "train")}, eps)


def weak_statistics(model: Model) -> list[str]:
    """Why this model's own numbers hide bugs, in sentences; empty for a good reference."""
    if model.form != "train":
        return []
    of = {
        field: [array for name, array in model.params.items() if name.endswith(f".{field}")]
        for field in ("running_mean", "running_var", "gamma", "beta")
    }
    start = {"running_mean": 0, "running_var": 1, "gamma": 1, "beta": 0}
    return [
        f"{field} is {value} in {count} of {len(of[field])} batch norms: bugs in it cannot show"
        for field, value in start.items()
        if (count := sum(bool((array == value).all()) for array in of[field]))
    ]


def distinguishing_block(
    spec: BlockSpec,
    x: Array,
    rng: np.random.Generator,
    eps: float,
    statistics: Statistics = INFERENCE,
) -> dict[str, Array]:
    """The arrays of one block, canonical names, for the input `x` that it will get."""
    channels = spec.out_channels
    scale = rng.permutation(np.geomspace(0.6, 6.0, channels))
    branches: dict[str, Branch] = {}
    total = np.zeros(())
    for name in branch_names(spec):
        branches[name], part = _branch(spec, name, x, scale, rng, eps, statistics)
        total = total + part
    # The last thing chosen is the first branch's beta: it puts the sum's mean where it shows most.
    wanted = rng.uniform(-0.2, 0.8, channels) * total.std(axis=(0, 2, 3))
    first, branch = next(iter(branches.items()))
    branches[first] = branch._replace(beta=branch.beta + wanted - total.mean(axis=(0, 2, 3)))
    params = {}
    for name, branch in branches.items():
        if branch.weight is not None:
            params[f"{spec.name}.{name}.conv.weight"] = branch.weight
        for field in ("gamma", "beta", "running_mean", "running_var"):
            params[f"{spec.name}.{name}.bn.{field}"] = getattr(branch, field)
        params[f"{spec.name}.{name}.bn.num_batches_tracked"] = np.array(_STEPS_SEEN, np.int64)
    shifted = total + (wanted - total.mean(axis=(0, 2, 3)))[:, None, None]
    return _narrowed(params | _squeeze(spec, shifted, rng))


def _branch(
    spec: BlockSpec,
    name: str,
    x: Array,
    scale: Array,
    rng: np.random.Generator,
    eps: float,
    statistics: Statistics,
) -> tuple[Branch, Array]:
    """One branch, and its output (N, O, Ho, Wo) for `x`."""
    channels = spec.out_channels
    var = rng.permutation(np.geomspace(*statistics.variances, channels))
    ratio = statistics.ratio ** rng.uniform(-1, 1, channels)
    weight, z = _kernel(spec, name, x, var * ratio, rng)
    spread = np.maximum(z.std(axis=(0, 2, 3)), 1e-6)
    sign = rng.choice([-1, 1, 1, 1], channels)
    slope = sign * scale * rng.uniform(*_SHARE[name], channels) / spread
    apart = rng.choice([-1, 1], channels) * rng.uniform(*statistics.apart, channels)
    branch = Branch(
        weight,
        gamma=slope * np.sqrt(var + eps),
        beta=rng.normal(0, 0.3, channels) * scale,
        running_mean=z.mean(axis=(0, 2, 3)) + apart * spread,
        running_var=var,
    )
    centred = z - branch.running_mean[:, None, None]
    return branch, centred * slope[:, None, None] + branch.beta[:, None, None]


def _kernel(
    spec: BlockSpec, name: str, x: Array, variance: Array, rng: np.random.Generator
) -> tuple[Array | None, Array]:
    """A kernel whose output on `x` has the given variances, and that output; None for identity."""
    if name == IDENTITY:
        return None, x
    extent = EXTENT if name == DENSE else 1
    shape = (spec.out_channels, spec.in_channels // spec.groups, extent, extent)
    weight = rng.normal(size=shape)
    z, _ = REFERENCE.conv2d_forward(
        x,
        weight,
        None,
        stride=spec.stride,
        padding=extent // 2 * spec.dilation,
        dilation=spec.dilation,
        groups=spec.groups,
    )
    factor = np.sqrt(variance / np.maximum(z.var(axis=(0, 2, 3)), 1e-12))
    return weight * factor[:, None, None, None], z * factor[:, None, None]


def _squeeze(spec: BlockSpec, total: Array, rng: np.random.Generator) -> dict[str, Array]:
    """SE whose hidden units are off for some images and on for others, with gates all over."""
    if spec.se == "none":
        return {}
    seen = total if spec.se == "before_relu" else np.maximum(total, 0)
    pooled = seen.mean(axis=(2, 3))  # (N, C)
    down = rng.normal(size=(spec.se_channels, spec.out_channels))
    hidden = pooled @ down.T  # (N, Cm) = (N, C) @ (C, Cm)
    down /= np.maximum(hidden.std(), 1e-6)
    hidden = pooled @ down.T
    middle = (hidden.max(axis=0) + hidden.min(axis=0)) / 2
    if len(hidden) == 1:  # one image cannot be on both sides: half of the units are off
        middle = middle + np.where(np.arange(spec.se_channels) % 2, 0.5, -0.5)
    active = np.maximum(hidden - middle, 0)
    up = rng.normal(size=(spec.out_channels, spec.se_channels))
    up *= 1.5 / np.maximum((active @ up.T).std(), 1e-6)
    return {
        f"{spec.name}.se.down.weight": down[:, :, None, None],
        f"{spec.name}.se.down.bias": -middle,
        f"{spec.name}.se.up.weight": up[:, :, None, None],
        f"{spec.name}.se.up.bias": rng.normal(0.5, 0.7, spec.out_channels),
    }


def _head(arch: Architecture, y: Array, rng: np.random.Generator) -> dict[str, Array]:
    """A linear layer with logits of order one, of both signs."""
    features = y.mean(axis=(2, 3))
    weight = rng.normal(size=(arch.num_classes, arch.features))
    weight /= np.maximum((features @ weight.T).std(), 1e-6)
    bias = rng.normal(0, 0.5, arch.num_classes)
    return _narrowed({"linear.weight": weight, "linear.bias": bias})


def _aux_heads(arch: Architecture, rng: np.random.Generator) -> dict[str, Array]:
    """Auxiliary heads, which no evaluation reads; distinct in training all the same."""
    shapes = param_shapes(arch, "train")
    heads = tuple(f"{head.name}." for head in arch.aux_heads)
    drawn = {name: _drawn(name, shapes[name], rng) for name in shapes if name.startswith(heads)}
    return _narrowed(drawn if heads else {})


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if name.endswith(".num_batches_tracked"):
        return np.array(_STEPS_SEEN, np.int64)
    if name.endswith((".gamma", ".running_var")):
        return rng.uniform(0.5, 2.0, shape)
    if len(shape) == 1:
        return rng.normal(0, 0.5, shape)
    return rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)


def _narrowed(params: dict[str, Array]) -> dict[str, Array]:
    return {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in params.items()}


def _widened(params: dict[str, Array]) -> dict[str, Array]:
    return {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in params.items()}
