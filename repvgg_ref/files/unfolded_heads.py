"""PSPNets whose backbone is fused while their heads keep their batch norms: the official files.

The official code fuses what can `switch_to_deploy`, RepVGG's blocks: its file in deploy form holds
``rbr_reparam`` kernels, and pyramid, head and auxiliary head as they were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.selfcheck import check_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.files.identify import Shape, required_shape
from repvgg_ref.files.opened import Checkpoint
from repvgg_ref.files.pspnets import is_pspnet
from repvgg_ref.models.arguments import working_dtype
from repvgg_ref.models.baselines import Layer, conv_bn
from repvgg_ref.models.graph import Network, Node
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import official_names
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.pspnet import BINS
from weights_io import LazyArray

_BACKBONE, _AUXILIARY = "stage", "aux."
_FUSED, _BRANCHES = ".rbr_reparam.", ".rbr_dense."
_NORMS = {f"ppm.features.{n}.1": f"ppm.features.{n}.2" for n in range(len(BINS))} | {
    "cls.0": "cls.1"
}
_FIELDS = {
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
}


def _has_unfolded_heads(names: Mapping[str, object]) -> bool:
    """Whether they are those of a PSPNet, fused but for heads as they are trained."""
    is_fused = any(_FUSED in name for name in names) and not any(_BRANCHES in n for n in names)
    trained = any(n.startswith(_AUXILIARY) or n.endswith(".running_var") for n in names)
    return is_fused and trained and is_pspnet(names)


def fold_heads(checkpoint: Checkpoint) -> None:
    """Have heads that are not fused, though the backbone is, folded when they are read.

    The auxiliary head, which only trains, is left out.

    Raises
    ------
    CheckpointError
        If a batch norm lacks an array.
    """
    if not _has_unfolded_heads(checkpoint.arrays):
        return
    arrays = {n: a for n, a in checkpoint.arrays.items() if not n.startswith(_AUXILIARY)}
    if len(arrays) < len(checkpoint.arrays):
        checkpoint.notes.append("the auxiliary head, which only trains, is left out")
    folded = [conv for conv, norm in _NORMS.items() if f"{norm}.running_var" in arrays]
    for conv in folded:
        _fold(arrays, conv, checkpoint.eps_in_use)
    if folded:
        checkpoint.notes.append("the backbone is fused; its heads kept their batch norms: folded")
    checkpoint.arrays, checkpoint.norms_left = arrays, bool(folded)


def _fold(arrays: dict[str, LazyArray], conv: str, eps: Callable[[], float]) -> None:
    """Put a convolution with a bias in the place of one and its norm."""
    shapes, norm = {name: array.shape for name, array in arrays.items()}, _NORMS[conv]
    spec, weight = _spec(conv, shapes), arrays[f"{conv}.weight"]
    parts = {f"{conv}.conv.weight": weight}
    for ours, theirs in _FIELDS.items():
        required_shape(shapes, f"{norm}.{theirs}", 1)
        parts[f"{conv}.bn.{ours}"] = arrays.pop(f"{norm}.{theirs}")
    arrays.pop(f"{norm}.num_batches_tracked", None)
    for field, shape in (("weight", weight.shape), ("bias", weight.shape[:1])):
        read = partial(_folded, spec, parts, eps, field)
        arrays[f"{conv}.{field}"] = LazyArray(shape, weight.dtype, read)


def _spec(conv: str, shapes: Mapping[str, Shape]) -> BlockSpec:
    outputs, inputs, kernel, _ = required_shape(shapes, f"{conv}.weight", 4)
    return conv_bn(conv, inputs, Layer(kernel, outputs), "relu")


def _folded(
    spec: BlockSpec, parts: Mapping[str, LazyArray], eps: Callable[[], float], field: str
) -> Array:
    """The kernel or the bias, each tap rounded once, and checked."""
    arrays = {name: part.read() for name, part in parts.items()}
    dtype = working_dtype(arrays[f"{spec.name}.conv.weight"].dtype)
    fused = fuse_block(spec, arrays, eps=eps(), dtype=dtype)
    check_block(spec, arrays, fused, eps=eps()).raise_if_bad()
    return np.asarray(getattr(fused, field))


def kept_as_trained(network: Network) -> list[Node]:
    """The nodes that the official code does not fuse: pyramid and heads, the auxiliary one last."""
    nodes = [node for node in network.nodes if not node.name.startswith(_BACKBONE)]
    return sorted(nodes, key=lambda node: node.training_only)


def deploy_layout(network: Network, kept: Sequence[Node]) -> dict[str, tuple[str, Shape]]:
    """Canonical name -> official name and shape of the arrays that are written, in their order.

    Those of the fused form, but for nodes that are `kept` as they were trained.
    """
    trained = {
        f"{node.name}.{part}": shape
        for node in kept
        for part, shape in node.op.shapes("train").items()
    }
    replaced = {f"{node.name}.{part}" for node in kept for part in node.op.shapes("deploy")}
    fused = {n: s for n, s in param_shapes(network, "deploy").items() if n not in replaced}
    found = dict[str, tuple[str, Shape]]()
    forms: tuple[tuple[Form, Mapping[str, Shape]], ...] = (("deploy", fused), ("train", trained))
    for form, shapes in forms:
        names = official_names(network, form)
        found |= {name: (names[name], shape) for name, shape in shapes.items()}
    return found
