"""The named arrays of a network: which there are, their shapes, and how they start.

Canonical names are ours (``stage1.0.branch_3x3.bn.gamma``); `files.dialects` translates them
to the names other code bases use.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.repvgg import branch_names
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture, AuxHeadSpec

Form = Literal["train", "deploy"]
Shapes = dict[str, tuple[int, ...]]

_BN_VECTORS = ("gamma", "beta", "running_mean", "running_var")


def param_shapes(arch: Architecture, form: Form) -> Shapes:
    """Every array of `arch` in the given form: canonical name -> shape, in network order.

    The train form counts each batch norm's ``num_batches_tracked``, a 0-d int64 as in torch.
    """
    shapes: Shapes = {}
    for block in arch.blocks:
        shapes |= _train_shapes(block) if form == "train" else _fused_shapes(block)
        shapes |= _se_shapes(block)
    if form == "train":
        for head in arch.aux_heads:
            shapes |= _aux_shapes(head, arch.num_classes)
    shapes["linear.weight"] = (arch.num_classes, arch.features)
    shapes["linear.bias"] = (arch.num_classes,)
    return shapes


def is_trainable(name: str) -> bool:
    """Whether gradients exist for this array: false for batch norm's running state."""
    return not name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def initial_params(arch: Architecture, *, seed: int, dtype: Any = np.float32) -> dict[str, Array]:
    """Start values of the train form, distributed as the official code leaves them to torch.

    Kernels, linear weights and all biases of layers are uniform in +-1/sqrt(fan_in) (torch's
    ``kaiming_uniform_(a=sqrt(5))``); gamma 1, beta 0, running mean 0, running variance 1.
    Values differ from torch's for the same seed: the generator is NumPy's PCG64.
    """
    rng = np.random.default_rng(seed)
    shapes = param_shapes(arch, "train")
    return {name: _initial(name, shapes, rng, dtype) for name in shapes}


def _initial(name: str, shapes: Shapes, rng: np.random.Generator, dtype: Any) -> Array:
    shape, field = shapes[name], name.rsplit(".", 1)[1]
    if field == "num_batches_tracked":
        return np.zeros((), np.int64)
    if field in ("gamma", "running_var"):
        return np.ones(shape, dtype)
    if field in ("beta", "running_mean"):
        return np.zeros(shape, dtype)
    # A bias has no fan-in of its own: it takes its layer's.
    fan_in = np.prod(shapes[name.removesuffix("bias").removesuffix("weight") + "weight"][1:])
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(dtype)


def _train_shapes(block: BlockSpec) -> Shapes:
    shapes: Shapes = {}
    for branch in branch_names(block):
        if branch != "branch_identity":
            extent = 3 if branch == "branch_3x3" else 1
            kernel = (block.out_channels, block.in_channels // block.groups, extent, extent)
            shapes[f"{block.name}.{branch}.conv.weight"] = kernel
        shapes |= _bn_shapes(f"{block.name}.{branch}.bn", block.out_channels)
    return shapes


def _fused_shapes(block: BlockSpec) -> Shapes:
    kernel = (block.out_channels, block.in_channels // block.groups, 3, 3)
    return {f"{block.name}.fused.weight": kernel, f"{block.name}.fused.bias": kernel[:1]}


def _se_shapes(block: BlockSpec) -> Shapes:
    if block.se == "none":
        return {}
    wide, narrow = block.out_channels, block.se_channels
    return {
        f"{block.name}.se.down.weight": (narrow, wide, 1, 1),
        f"{block.name}.se.down.bias": (narrow,),
        f"{block.name}.se.up.weight": (wide, narrow, 1, 1),
        f"{block.name}.se.up.bias": (wide,),
    }


def _aux_shapes(head: AuxHeadSpec, num_classes: int) -> Shapes:
    wide = head.channels
    return {
        f"{head.name}.conv.weight": (wide, wide, 3, 3),
        **_bn_shapes(f"{head.name}.bn", wide),
        f"{head.name}.linear.weight": (num_classes, wide),
        f"{head.name}.linear.bias": (num_classes,),
    }


def _bn_shapes(prefix: str, channels: int) -> Shapes:
    vectors = {f"{prefix}.{field}": (channels,) for field in _BN_VECTORS}
    return vectors | {f"{prefix}.num_batches_tracked": ()}
