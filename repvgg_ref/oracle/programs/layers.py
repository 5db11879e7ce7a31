"""A model's layers as programs: how the reference computes each, in float64."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of
from repvgg_ref.blocks.catalogue import is_fusible, reach
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram

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
    params = model.params
    return HeadProgram(_float64(params["linear.weight"]), _float64(params["linear.bias"]))


def correct_program(
    spec: BlockSpec, params: Mapping[str, Array], eps: float, branches: Mapping[str, Branch]
) -> BlockProgram:
    """The block as it should be; `branches` is empty for a deploy reference."""
    fused = None
    if not branches:
        fused = FusedConv(
            *(_float64(params[f"{spec.name}.fused.{part}"]) for part in ("weight", "bias"))
        )
    exact = {name: branch.arrays(_float64) for name, branch in branches.items()}
    conv = reach(spec)
    return BlockProgram(
        spec=spec,
        branches=exact,
        eps=eps,
        fused=fused,
        se=_se_params(spec, params),
        stride=spec.stride,
        dilation=spec.dilation,
        groups=conv.groups,
        size=conv.kernel,
        pads=(*conv.padding, *conv.padding),
        relu_inside=not is_fusible(spec),
        activation=_ACTIVATION[spec.se] if spec.activation == "relu" else "none",
    )


def require_chain(arch: Network) -> None:
    """Refuse a network whose layers are not each fed by the one before alone.

    Raises
    ------
    ReportedError
        If it is such a network.
    """
    if not arch.num_classes:
        raise ReportedError(
            "a backbone without its head cannot be judged yet",
            got=f"{len(arch.blocks)} blocks and no linear layer",
            wanted="a chain of blocks, then the mean and a linear layer",
            advice="give a checkpoint that holds its head, too",
        )
    if not arch.is_chain:
        kinds = " and ".join(arch.kinds)
        raise ReportedError(
            "the layers of this network cannot be judged one by one yet: not each is fed by the one"
            " before it alone",
            got=f"{arch.name}, a network of {kinds} blocks",
            wanted="a chain of blocks, then the mean and a linear layer",
            advice="`verify` judges files of its weights, `eval` how well it classifies",
        )


class Programs(Mapping[str, Any]):
    """Every layer's correct program by its name, built when asked for; of a dense network, blocks'.

    A small network's are kept; of a large one, since float64 is large, each thread's last.
    """

    def __init__(self, model: Model) -> None:
        if model.arch.is_dense:
            self._names = tuple(spec.name for spec in model.arch.blocks)
        else:
            require_chain(model.arch)
            self._names = model.arch.layer_names
        self.model = model
        is_small = sum(array.size for array in model.params.values()) <= _MOST_KEPT
        self._made: dict[str, Any] | None = {} if is_small else None
        self._kept = threading.local()  # each thread is at its own layer

    def __getitem__(self, name: str) -> Any:
        if self._made is not None:
            if name not in self._made:
                self._made.setdefault(name, self._program(name))
            return self._made[name]
        last: BlockProgram | HeadProgram | None = getattr(self._kept, "last", None)
        if last is None or last.name != name:
            last = self._kept.last = self._program(name)
        return last

    def _program(self, name: str) -> BlockProgram | HeadProgram:
        if name == "linear":
            return head_program(self.model)
        return block_program(self.model, self.model.arch.block(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def alike(self, name: str) -> tuple[str, ...]:
        """Other blocks of the same shape, which a port could take for this one."""
        blocks = {spec.name: spec for spec in self.model.arch.blocks}
        return tuple(
            other
            for other, spec in blocks.items()
            if name in blocks and other != name and replace(spec, name=name) == blocks[name]
        )


def _se_params(spec: BlockSpec, params: Mapping[str, Array]) -> SqueezeExcitationParams | None:
    if spec.se == "none":
        return None
    down, down_bias, up, up_bias = (
        _float64(params[f"{spec.name}.se.{part}"])
        for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return SqueezeExcitationParams(down[:, :, 0, 0], down_bias, up[:, :, 0, 0], up_bias)


def _float64(array: Array) -> Array:
    return np.asarray(array).astype(np.float64, copy=False)
