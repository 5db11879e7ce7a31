"""A model's layers as programs: how the reference computes each, in float64."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, require_finite
from repvgg_ref.blocks.branches import Branch, branches_of
from repvgg_ref.blocks.catalogue import is_fusible, part_of, reach
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.run import NORM_VECTORS
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.gated import Add, Gate
from repvgg_ref.models.graph import Network, Node
from repvgg_ref.models.layers import AddRelu, Block, Flatten, GlobalAvgPool, Linear, MaxPool
from repvgg_ref.models.names import official_names, require_params
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams
from repvgg_ref.oracle.programs.between import (
    BETWEEN,
    BetweenProgram,
    gate_program,
    gelu_program,
    sum_program,
)
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadNorm, HeadProgram
from repvgg_ref.oracle.programs.inner import inner_norms, inner_terms

_MOST_KEPT = 1 << 24  # parameters: with what is fused from them 256 MB
_ACTIVATION: dict[SqueezeExcitation, str] = {
    "none": "relu",
    "before_relu": "se-relu",
    "after_relu": "relu-se",
}


def block_program(model: Model, spec: BlockSpec) -> BlockProgram:
    """How the reference computes the block `spec`."""
    branches = branches_of(spec, model.params, model.eps) if model.form == "train" else {}
    return correct_program(spec, model.params, model.eps, branches)


def head_program(model: Model) -> HeadProgram:
    """How the reference computes its logits."""
    return linear_program(model, model.arch.head)


def linear_program(model: Model, node: Node) -> HeadProgram:
    """How the reference computes a linear layer."""
    params, name, relu = model.params, node.name, isinstance(node.op, Linear) and node.op.relu
    weight, bias = (_float64(params[f"{name}.{part}"]) for part in ("weight", "bias"))
    if f"{name}.bn.gamma" not in params:
        return HeadProgram(weight, bias, name=name, relu=relu)
    gamma, beta, mean, var = (_float64(params[f"{name}.bn.{part}"]) for part in NORM_VECTORS)
    norm = HeadNorm(gamma, beta, mean, var, model.eps, weight, bias)
    return HeadProgram(*norm.folded(), norm=norm, name=name, relu=relu)


def between_program(model: Model, node: Node) -> BetweenProgram:
    """How the reference computes what stands between two blocks."""
    if isinstance(node.op, Gate):
        return gate_program(node.name, node.op, _gate_params(node.name, model.params))
    if isinstance(node.op, Add):
        return sum_program(node.name, node.op)
    return gelu_program(node.name)


def _with_programs(arch: Network) -> tuple[str, ...]:
    """The layers that have a program: all, or the blocks and the linear layers."""
    if has_programs(arch):
        return arch.layer_names
    return tuple(node.name for node in arch.evaluated if isinstance(node.op, Block | Linear))


def correct_program(
    spec: BlockSpec, params: Mapping[str, Array], eps: float, branches: Mapping[str, Branch]
) -> BlockProgram:
    """The block as it should be; `branches` is empty for a deploy reference."""
    fused = None
    if not branches:
        fused = FusedConv(
            *(_float64(params[f"{spec.name}.fused.{part}"]) for part in ("weight", "bias"))
        )
    exact = _exact(branches)
    computed = any(branch.before is not None for branch in branches.values())
    conv = reach(spec)
    composed = branches and (inner_norms(spec) or inner_terms(spec))
    parts = part_of(spec, params) if composed else {}
    return BlockProgram(
        spec=spec,
        branches=exact,
        eps=eps,
        at_eps=(lambda other: _exact(branches_of(spec, params, other))) if computed else None,
        fused=fused,
        se=_se_params(spec, params),
        stride=spec.stride,
        dilation=spec.dilation,
        groups=conv.groups,
        size=conv.kernel,
        pads=(*conv.padding, *conv.padding),
        relu_inside=not is_fusible(spec),
        activation=_ACTIVATION[spec.se] if spec.activation == "relu" else "none",
        parts={name: _float64(array) for name, array in parts.items()},
    )


def _exact(branches: Mapping[str, Branch]) -> dict[str, Branch]:
    return {name: branch.arrays(_float64) for name, branch in branches.items()}


JUDGED = (Block, AddRelu, Flatten, GlobalAvgPool, Linear, MaxPool)
"""What a network that is no chain and has no programs between blocks may be made of."""


def has_programs(arch: Network) -> bool:
    """Whether every layer has a program: those of chains, and of RepViT."""
    for node in arch.evaluated:
        known = isinstance(node.op, (Block, Linear, GlobalAvgPool, *BETWEEN))
        of_silu = isinstance(node.op, Gate) and not node.op.relu
        if not known or of_silu or isinstance(node.op, Linear) != (node.name == "linear"):
            return False
    return not arch.is_dense


def require_steps(arch: Network) -> None:
    """Refuse a network of whose training steps nothing is known: with gates or GELU.

    Raises
    ------
    ReportedError
        If it is such a network.
    """
    if has_programs(arch) and not arch.is_chain:
        raise ReportedError(
            "no train-step bundle of this network: its training steps are not judged yet",
            got=arch.name,
            wanted="blocks, residual sums, pools, linear layers, pyramids of PSPNet",
            advice="without --train-step the bundle holds all of evaluation; loss_and_grads gives"
            " loss, gradients and statistics of a step, and verify-op judges single operators'"
            " gradients",
        )


def require_reference(model: Model) -> None:
    """Refuse a model that nothing can be held against, before its faults are a candidate's.

    Raises
    ------
    ShapeError
        If an array is missing or has another shape.
    ReportedError
        If one holds NaN or infinity, or a variance that has no root.
    """
    require_params(model.arch, model.form, model.params)
    names = official_names(model.arch, model.form)
    for name, array in model.params.items():
        key = f"{names.get(name, name)} of the reference"
        require_finite(array, f"{key} holds NaN or infinity")
        if name.endswith(".running_var") and array.size and array.min() < 0:
            raise ReportedError(
                f"{key} is negative, so its root does not exist",
                got=f"{float(array.min()):g}",
                wanted="variances of at least 0",
                advice="the file is damaged, or is no batch norm's state",
            )


def require_layers(arch: Network) -> None:
    """Refuse a network of which there is a layer that is not known here.

    Raises
    ------
    ReportedError
        If it is such a network, or has no classifier.
    """
    if not arch.num_classes:
        raise ReportedError(
            "a backbone without its head cannot be judged yet",
            got=f"{len(arch.blocks)} blocks and no linear layer",
            wanted="a network with its classifier",
            advice="give a checkpoint that holds its head, too",
        )
    if arch.is_dense or has_programs(arch):
        return
    others = {type(n.op).__name__.lower() for n in arch.evaluated if not isinstance(n.op, JUDGED)}
    if others:
        listed = ", ".join(sorted(others))
        raise _cannot(
            arch,
            "the layers of this network cannot be judged one by one yet",
            f", in which there are layers {listed}",
        )


def _cannot(arch: Network, what: str, more: str = "") -> ReportedError:
    return ReportedError(
        what,
        got=arch.name + more,
        wanted="blocks, residual sums, pools and linear layers",
        advice="`verify` judges files of its weights, `eval` how well it classifies",
    )


class Programs(Mapping[str, Any]):
    """Every layer's correct program by its name, built when asked for; of a dense network, blocks'.

    Of a network that is no chain: the blocks' and the linear layers'.
    A small network's are kept; of a large one, since float64 is large, each thread's last.
    """

    def __init__(self, model: Model) -> None:
        require_layers(model.arch)
        self.model, self._names = model, _with_programs(model.arch)
        self._nodes = {node.name: node for node in model.arch.evaluated}
        is_small = sum(array.size for array in model.params.values()) <= _MOST_KEPT
        self._made: dict[str, Any] | None = {} if is_small else None
        self._kept = threading.local()  # each thread is at its own layer

    def __getitem__(self, name: str) -> Any:
        if self._made is not None:
            if name not in self._made:
                self._made.setdefault(name, self._program(name))
            return self._made[name]
        last = getattr(self._kept, "last", None)
        if last is None or last.name != name:
            last = self._kept.last = self._program(name)
        return last

    def input_of(self, name: str, known: Mapping[str, Array]) -> Array | None:
        """The input of a layer, float64; None if it is not known.

        Parameters
        ----------
        known : mapping
            `INPUT` and layers -> arrays. What two layers feed gets both, side by side as channels;
            what features (N, C) feed gets them as images of one pixel.
        """
        given = [known.get(source) for source in self.sources(name)]
        found = [np.asarray(array, np.float64) for array in given if array is not None]
        if len(found) < len(given) or len({array.shape for array in found}) > 1:
            return None
        x = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        return x[:, :, None, None] if x.ndim == 2 else x

    def sources(self, name: str) -> tuple[str, ...]:
        """The layers that feed a layer: of a classifier behind a mean that whose mean it gets."""
        inputs = self._nodes[name].inputs
        before = self._nodes.get(inputs[0])
        is_pooled = before is not None and isinstance(before.op, GlobalAvgPool)
        return before.inputs if before is not None and is_pooled else inputs

    def last_read(self, name: str) -> tuple[str, ...]:
        """The layers that no layer after `name` reads, of those that feed it."""
        names = list(self)
        later = {s for after in names[names.index(name) + 1 :] for s in self.sources(after)}
        return tuple(source for source in self.sources(name) if source not in later)

    def _program(self, name: str) -> Any:
        node = self._nodes[name]
        if isinstance(node.op, Linear):
            found = linear_program(self.model, node)
            return replace(found, flattened=self._flattened(node.inputs[0]))
        if isinstance(node.op, Block):
            return block_program(self.model, node.op.spec)
        return between_program(self.model, node)

    def _flattened(self, name: str) -> int:
        """The channels of the map that `name` makes features of; 0 if they are not known."""
        if name not in self._nodes or not isinstance(self._nodes[name].op, Flatten):
            return 0
        at = self._nodes[self._nodes[name].inputs[0]]
        while isinstance(at.op, AddRelu | MaxPool):
            at = self._nodes[at.inputs[0]]
        return at.op.spec.out_channels if isinstance(at.op, Block) else 0

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def alike(self, name: str) -> tuple[str, ...]:
        """Other blocks of the same shape, which a port could take for this one."""
        return tuple(other for other in self._like.get(name, ()) if other != name)

    @cached_property
    def _like(self) -> dict[str, list[str]]:
        """Block -> all blocks of its shape."""
        of_shape: dict[BlockSpec, list[str]] = {}
        for spec in self.model.arch.blocks:
            of_shape.setdefault(replace(spec, name=""), []).append(spec.name)
        return {name: names for names in of_shape.values() for name in names}


def _se_params(spec: BlockSpec, params: Mapping[str, Array]) -> SqueezeExcitationParams | None:
    return None if spec.se == "none" else _gate_params(f"{spec.name}.se", params)


def _gate_params(owner: str, params: Mapping[str, Array]) -> SqueezeExcitationParams:
    down, down_bias, up, up_bias = (
        _float64(params[f"{owner}.{part}"])
        for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return SqueezeExcitationParams(down[:, :, 0, 0], down_bias, up[:, :, 0, 0], up_bias)


def _float64(array: Array) -> Array:
    return np.asarray(array).astype(np.float64, copy=False)
