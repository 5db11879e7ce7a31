"""Weights and batch-norm statistics chosen so that every known bug shows in every layer.

An untrained network (mean 0, variance 1, beta 0) hides an ignored mean, a dropped eps, swapped
batch norms and more; a random one lets activations die out or explode over 28 layers. Here every
layer is set up on what the layers before it really give: per channel a variance from 1e-4 (eps
matters) to 10, a mean apart from the batch's, a slope that gives the channel a scale between 0.6
and 6 (so a ReLU6 shows), and a beta that leaves a good half of its values above zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.constructors import Relu
from repvgg_ref.blocks.linear import Chain, Identity, Norm, Sum
from repvgg_ref.blocks.run import evaluate
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.gated import Gate
from repvgg_ref.models.graph import INPUT, Network, Node
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Block, Linear, Pass
from repvgg_ref.models.network import DEFAULT_EPS, Model
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.programs.inputs import golden_inputs
from repvgg_ref.oracle.programs.layers import require_layers


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

_SHARES = ((0.7, 1.0), (0.5, 0.8), (0.4, 0.7))  # of the first branch, the second, and others
_STEPS_SEEN = 1000  # what num_batches_tracked says; no evaluation reads it


def distinguishing_model(
    arch: Network,
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
    require_layers(arch)
    rng = np.random.default_rng(seed)
    batch = golden_inputs(arch, seed=seed) if x is None else x
    if arch.is_dense:
        params = _of_nodes(arch, batch.astype(np.float64), rng, eps, statistics)
        return Model(
            arch, "train", {name: params[name] for name in param_shapes(arch, "train")}, eps
        )
    known, params = {INPUT: batch.astype(np.float64)}, dict[str, Array]()
    for node in arch.evaluated:
        xs = [known[name] for name in node.inputs]
        mine: dict[str, Array] = {}
        if isinstance(node.op, Block):
            mine = distinguishing_block(node.op.spec, xs[0], rng, eps, statistics)
        elif isinstance(node.op, Linear):
            mine = _linear(node, node.op, xs[0], _Drawing(rng, eps, statistics))
        else:
            mine = _between(node, xs[0], rng)
        params |= mine
        run = Pass(_widened(mine), REFERENCE, eps)
        known[node.name] = node.op.forward(node.name, xs, run)[0]
    params |= _aux_heads(arch, rng)
    return Model(arch, "train", {name: params[name] for name in param_shapes(arch, "train")}, eps)


def _of_nodes(
    arch: Network, x: Array, rng: np.random.Generator, eps: float, statistics: Statistics
) -> dict[str, Array]:
    """The arrays of a network of nodes, auxiliary heads included, for the images `x`."""
    params: dict[str, Array] = {}
    outputs = {INPUT: x}
    for node in arch.nodes:
        xs = [outputs[name] for name in node.inputs]
        mine: dict[str, Array] = {}
        if isinstance(node.op, Block):
            mine = distinguishing_block(node.op.spec, xs[0], rng, eps, statistics)
            params |= mine
        run = Pass(_widened(mine), REFERENCE, eps)
        outputs[node.name] = node.op.forward(node.name, xs, run)[0]
    return params


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
    linear, channels = expression(spec), spec.out_channels
    scale = rng.permutation(np.geomspace(0.6, 6.0, channels))
    drawing = _Drawing(rng, eps, statistics)
    total = drawing.draw(linear, x, scale, _SHARES[0])
    # The last thing chosen is the first norm's beta: it puts the sum's mean where it shows most.
    wanted = rng.uniform(-0.2, 0.8, channels) * total.std(axis=(0, 2, 3))
    shift = wanted - total.mean(axis=(0, 2, 3))
    if (beta := _first_beta(linear)) is not None:
        drawing.params[beta] = drawing.params[beta] + shift
        total = total + shift[:, None, None]
    params = {f"{spec.name}.{part}": drawing.params[part] for part in linear.shapes()}
    return _narrowed(params | _squeeze(spec, total, rng))


@dataclass
class _Drawing:
    """Arrays of an expression, drawn part by part on what each part gets."""

    rng: np.random.Generator
    eps: float
    statistics: Statistics
    params: dict[str, Array] = field(default_factory=dict)

    def draw(self, linear: Any, x: Array, scale: Array, share: tuple[float, float]) -> Array:
        """Draw `linear`; its output (N, O, Ho, Wo), whose deviation is `scale` times a `share`."""
        if isinstance(linear, Sum):
            shares = [share, *_SHARES[1:]] if share == _SHARES[0] else [share]
            outputs = [
                self.draw(part, x, scale, shares[min(place, len(shares) - 1)])
                for place, part in enumerate(linear.parts)
            ]
            return np.asarray(sum(outputs[1:], start=outputs[0]))
        if isinstance(linear, Chain) and isinstance(linear.parts[-1], Norm):
            return self._norm(linear, x, scale, share)
        if isinstance(linear, Chain) and len(linear.parts) == 1:
            return self.draw(linear.parts[0], x, scale, share)
        if isinstance(linear, Chain) and isinstance(linear.parts[-1], Relu):
            return np.maximum(self.draw(Chain(*linear.parts[:-1]), x, scale, share), 0)
        if isinstance(linear, Chain):
            return self._chain(linear, x, scale, share)
        return self._leaf(linear, x, scale)

    def _chain(self, linear: Chain, x: Array, scale: Array, share: tuple[float, float]) -> Array:
        """One thing behind others, which give outputs of one size; a border may lie between."""
        *before, last = linear.parts
        *before, pad = before if hasattr(before[-1], "width") else [*before, None]
        first = Chain(*before)
        y = self.draw(first, x, np.ones(first.out_channels), (1.0, 1.0))
        if pad is not None:
            y = evaluate(pad, self.params, y, ops=REFERENCE, eps=self.eps)
        return self.draw(last, y, scale, share)

    def _norm(self, linear: Chain, x: Array, scale: Array, share: tuple[float, float]) -> Array:
        """A batch norm, and what is before it."""
        *before, norm = linear.parts
        rng, channels = self.rng, norm.channels
        var = rng.permutation(np.geomspace(*self.statistics.variances, channels))
        ratio = self.statistics.ratio ** rng.uniform(-1, 1, channels)
        z = self.draw(Chain(*before), x, np.sqrt(var * ratio), (1.0, 1.0))
        spread = np.maximum(z.std(axis=(0, 2, 3)), 1e-6)
        sign = rng.choice([-1, 1, 1, 1], channels)
        slope = sign * scale * rng.uniform(*share, channels) / spread
        apart = rng.choice([-1, 1], channels) * rng.uniform(*self.statistics.apart, channels)
        beta = rng.normal(0, 0.3, channels) * scale
        mean = z.mean(axis=(0, 2, 3)) + apart * spread
        vectors = {"gamma": slope * np.sqrt(var + self.eps), "beta": beta}
        vectors |= {"running_mean": mean, "running_var": var}
        vectors["num_batches_tracked"] = np.array(_STEPS_SEEN, np.int64)
        self.params |= {f"{norm.name}.{part}": array for part, array in vectors.items()}
        return np.asarray((z - mean[:, None, None]) * slope[:, None, None] + beta[:, None, None])

    def _leaf(self, leaf: Any, x: Array, scale: Array) -> Array:
        """Kernels whose output has the deviations `scale`; what has no kernel stays as it is."""
        shapes = leaf.shapes()
        self.params |= {part: self.rng.normal(size=shape) for part, shape in shapes.items()}
        z = evaluate(leaf, self.params, x, ops=REFERENCE, eps=self.eps)
        if not shapes:
            return z
        factor = scale / np.sqrt(np.maximum(z.var(axis=(0, 2, 3)), 1e-12))
        for part, shape in shapes.items():
            self.params[part] = self.params[part] * factor.reshape(-1, *(1,) * (len(shape) - 1))
        return np.asarray(z * factor[:, None, None])


def _first_beta(linear: Any) -> str | None:
    """The beta that moves the whole output, if a norm is last in the expression's first part."""
    if isinstance(linear, Norm):
        return f"{linear.name}.beta"
    if isinstance(linear, Chain):
        return _first_beta(linear.parts[-1])
    return _first_beta(linear.parts[0]) if isinstance(linear, Sum) else None


def _squeeze(spec: BlockSpec, total: Array, rng: np.random.Generator) -> dict[str, Array]:
    """The block's gate, if it has one."""
    if spec.se == "none":
        return {}
    seen = total if spec.se == "before_relu" else np.maximum(total, 0)
    return _gate(f"{spec.name}.se", seen, spec.se_channels, rng)


def _between(node: Node, x: Array, rng: np.random.Generator) -> dict[str, Array]:
    """The arrays of what stands between blocks: only gates have some."""
    if not isinstance(node.op, Gate):
        assert not node.op.shapes("train")
        return {}
    return _narrowed(_gate(node.name, x, node.op.hidden, rng))


def _gate(owner: str, seen: Array, narrow: int, rng: np.random.Generator) -> dict[str, Array]:
    """A gate whose hidden units are off for some images and on for others, with factors all over.

    `seen` (N, C, H, W) is what it scales; `narrow` channels are between its two convolutions.
    """
    channels = seen.shape[1]
    pooled = seen.mean(axis=(2, 3))  # (N, C)
    down = rng.normal(size=(narrow, channels))
    hidden = pooled @ down.T  # (N, Cm) = (N, C) @ (C, Cm)
    down /= np.maximum(hidden.std(), 1e-6)
    hidden = pooled @ down.T
    middle = (hidden.max(axis=0) + hidden.min(axis=0)) / 2
    if len(hidden) == 1:  # one image cannot be on both sides: half of the units are off
        middle = middle + np.where(np.arange(narrow) % 2, 0.5, -0.5)
    active = np.maximum(hidden - middle, 0)
    up = rng.normal(size=(channels, narrow))
    up *= 1.5 / np.maximum((active @ up.T).std(), 1e-6)
    return {
        f"{owner}.down.weight": down[:, :, None, None],
        f"{owner}.down.bias": -middle,
        f"{owner}.up.weight": up[:, :, None, None],
        f"{owner}.up.bias": rng.normal(0.5, 0.7, channels),
    }


def _linear(node: Node, op: Linear, x: Array, drawing: _Drawing) -> dict[str, Array]:
    """A linear layer with outputs of order one, of both signs; behind its batch norm, if any."""
    rng, name, norm = drawing.rng, node.name, dict[str, Array]()
    if isinstance(op, NormLinear):
        chain = Chain(Identity("x", op.features), Norm("bn", op.features))
        scale = rng.permutation(np.geomspace(0.6, 6.0, op.features))
        x = drawing.draw(chain, x[:, :, None, None], scale, _SHARES[0])[:, :, 0, 0]
        norm = {f"{name}.{part}": array for part, array in drawing.params.items()}
    weight = rng.normal(size=(op.outputs, op.features))
    weight /= np.maximum((x @ weight.T).std(), 1e-6)
    bias = rng.normal(0, 0.5, op.outputs)
    return _narrowed({**norm, f"{name}.weight": weight, f"{name}.bias": bias})


def _aux_heads(arch: Network, rng: np.random.Generator) -> dict[str, Array]:
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
