"""Which tensor of an ONNX graph is which layer's output: by position in the chain, not by name.

Between two cuts with a convolution in them lies what belongs to the first: batch norm, SE, ReLU. So
a block's output is the cut in front of the next block's convolution, or in front of what only
carries it there (a cast, a transposition, a border of zeros); the last block's is the cut in front
of the global pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_chain import (
    POOLS,
    REDUCTIONS,
    Chain,
    Step,
    attribute,
    block_convolutions,
    is_gate,
    weight_dims,
)

Perm = tuple[int, ...]

_STRAIGHT: Perm = (0, 1, 2, 3)
_NHWC_TO_NCHW: Perm = (0, 3, 1, 2)
_AVERAGED: dict[Perm, Perm] = {(2, 3): _STRAIGHT, (1, 2): _NHWC_TO_NCHW}
# They change no value, or only its rounding, and add no more than a border. Quantisation is not
# among them: it clips, and quantisers leave the ReLU out where it does the same.
_CARRIERS = frozenset({"Pad", "Cast", "Identity", "Transpose", "Dropout"})
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FLATTENERS = frozenset({"Flatten", "Reshape", "Squeeze"})
_PRODUCTS = frozenset(
    {"Gemm", "MatMul", "FusedGemm", "FusedMatMul", "QLinearMatMul", "MatMulInteger", "QGemm"}
)
_HEAD_ENDS = POOLS | REDUCTIONS | _FLATTENERS | _PRODUCTS
# After the last product they still belong to the linear layer; softmax and the like do not.
_AFFINE = (
    _FLATTENERS
    | {"Add", "Sub", "Mul", "Div", "BatchNormalization", "QuantizeLinear", "DequantizeLinear"}
    | _CARRIERS - {"Pad"}
)


@dataclass(frozen=True)
class Tap:
    """A tensor to read, and the transposition that makes it NCHW."""

    tensor: str
    perm: Perm | None = None


@dataclass(frozen=True)
class Taps:
    """What to read from a graph.

    Attributes
    ----------
    layers : dict of layer name -> Tap
    entrance : Perm or None
        Transposition that makes the graph's input NCHW; None if it could not be followed.
    notes : tuple of str
    problem : str or None
        The graph has not as many blocks as the network.
    """

    layers: dict[str, Tap]
    entrance: Perm | None
    notes: tuple[str, ...]
    problem: str | None


def find_taps(chain: Chain, arch: Network) -> Taps:
    """Match the graph's blocks to those of `arch`, in order."""
    steps, notes = chain.steps, []
    mains = block_convolutions(chain, pointwise=has_pointwise(arch))
    depths = [_depth(step, own) for step, own in zip(steps, mains, strict=True)]
    blocks = [i for i, depth in enumerate(depths) if depth]
    knotted = next((k for k, i in enumerate(blocks) if depths[i] > 1), None)
    outputs = [_tap_before(steps, blocks[k + 1], blocks[k]) for k in range(len(blocks) - 1)]
    if blocks:
        outputs.append(_last_block(chain, blocks[-1]))
    wanted, problem = len(arch.blocks), None
    matched = wanted
    if knotted is not None:
        matched = min(knotted, _fitting(chain, mains, blocks, arch))
        notes.append(f"blocks after the {matched}. are not separated in the graph: not compared")
    elif blocks and len(blocks) != wanted:
        matched = _fitting(chain, mains, blocks, arch)
        problem = f"the graph has {len(blocks)} convolution blocks, {arch.name} has {wanted}"
    elif not blocks:
        notes.append("no convolution was recognised in the graph: only logits are compared")
    layers = dict(zip(arch.layer_names[:matched], outputs, strict=False))
    linear, left_out = _linear(chain, blocks[-1] if blocks else -1)
    if linear is not None:
        layers["linear"] = Tap(linear)
    if left_out:
        notes.append(f"not part of the network, left out at the end: {listed(left_out)}")
    entrance, before = _entrance(chain, blocks[0] if blocks else len(steps))
    notes += before
    return Taps(layers, entrance, tuple(notes), problem)


def has_pointwise(arch: Network) -> bool:
    """Whether some block of the fused network is a 1x1 convolution."""
    return any(fused_conv(spec).kernel == (1, 1) for spec in arch.blocks)


def _depth(step: Step, mains: list[Any]) -> int:
    """How many of the block convolutions `mains` follow one another within a step."""
    depth: dict[str, int] = {}
    for node in step.nodes:  # in topological order
        behind = max((depth.get(tensor, 0) for tensor in node.input), default=0)
        here = behind + any(node is main for main in mains)
        depth |= dict.fromkeys(node.output, here)
    return depth.get(step.tensor, 0)


def _tap_before(steps: Sequence[Step], consumer: int, producer: int) -> Tap:
    """What reaches the convolution in step `consumer`, taken before it is merely carried there.

    A convolution reads NCHW; following the transpositions on the way tells the tap's own layout.
    """
    last, perm = _walk_back(steps, consumer - 1, producer, _STRAIGHT)
    return Tap(steps[last].tensor, perm)


def _walk_back(
    steps: Sequence[Step],
    last: int,
    producer: int,
    perm: Perm | None,
    carriers: frozenset[str] = _CARRIERS,
) -> tuple[int, Perm | None]:
    """The step, `producer` at the earliest, from which all later ones to `last` only carry."""
    while last > producer and steps[last].single in carriers:
        if steps[last].single == "Transpose":
            perm = _composed(_transposition(steps[last].nodes[0]), perm)
        last -= 1
    return last, perm


def _composed(first: Perm | None, second: Perm | None) -> Perm | None:
    """The one transposition that is `first` and then `second`."""
    if first is None or second is None or len(first) != len(second):
        return None
    return tuple(first[axis] for axis in second)


def _transposition(node: Any) -> Perm | None:
    perm = attribute(node, "perm")
    axes: Perm = tuple(perm.ints) if perm is not None else _STRAIGHT[::-1]
    return axes if sorted(axes) == list(_STRAIGHT) else None


def _last_block(chain: Chain, producer: int) -> Tap:
    """The tensor in front of the global pool."""
    steps = chain.steps
    end = producer + 1
    while end < len(steps) and steps[end].single not in _HEAD_ENDS:
        end += 1
    perm: Perm | None = None
    if end < len(steps) and steps[end].single in POOLS:
        perm = _STRAIGHT
    elif end < len(steps) and steps[end].single in REDUCTIONS:
        axes = _axes(steps[end].nodes[0], chain)
        perm = _AVERAGED.get(axes)
    elif end == len(steps):
        end = producer + 1 + _activation_length(steps[producer + 1 :])
    last, perm = _walk_back(steps, end - 1, producer, perm)
    return Tap(steps[last].tensor, perm)


def _activation_length(steps: Sequence[Step]) -> int:
    """Steps of a graph without pool and head that are still the block's: up to the last ReLU."""
    last = [i for i, step in enumerate(steps) if step.single in ("Relu", "Clip", "Max", "Mul")]
    return last[-1] + 1 if last else 0


def _axes(node: Any, chain: Chain) -> tuple[int, ...]:
    """The axes a reduction averages over, counted from the front."""
    said = attribute(node, "axes")
    if said is not None:
        axes = list(said.ints)
    else:
        tensor = chain.constants.tensor(node.input[1]) if len(node.input) > 1 else None
        if tensor is None:
            return ()
        from onnx import numpy_helper

        axes = [int(axis) for axis in numpy_helper.to_array(tensor).reshape(-1)[:8]]
    return tuple(sorted(axis % 4 for axis in axes))


def _linear(chain: Chain, last_block: int) -> tuple[str | None, list[str]]:
    """The logits' tensor, and the operators behind it that are no part of the network."""
    tail = chain.steps[last_block + 1 :]
    products = [
        i
        for i, step in enumerate(tail)
        if any(n.op_type in _PRODUCTS or n.op_type in ("Conv", "QLinearConv") for n in step.nodes)
        and not is_gate(step)
    ]
    if not products:
        return None, []
    end = products[-1]
    while end + 1 < len(tail) and tail[end + 1].single in _AFFINE:
        end += 1
    return tail[end].tensor, [node.op_type for step in tail[end + 1 :] for node in step.nodes]


def _entrance(chain: Chain, first: int) -> tuple[Perm | None, list[str]]:
    """The input's layout, followed from the first convolution, and what happens in between."""
    last, perm = _walk_back(chain.steps, first - 1, -1, _STRAIGHT, _CARRIERS | _QUANTISERS)
    if last < 0:
        return perm, []
    if first == len(chain.steps):  # no block was found at all
        return None, []
    done = [node.op_type for step in chain.steps[: last + 1] for node in step.nodes]
    return None, [f"the graph changes its input before the first block: {listed(done)}"]


def _fitting(chain: Chain, mains: Sequence[list[Any]], blocks: Sequence[int], arch: Network) -> int:
    """How many blocks from the front have the network's widths and strides."""
    for k, (i, spec) in enumerate(zip(blocks, arch.blocks, strict=False)):
        dims = weight_dims(mains[i][0], chain.constants)
        strides = attribute(mains[i][0], "strides")
        stride = strides.ints[0] if strides is not None and strides.ints else 1
        if len(mains[i]) == 1 and (
            stride != spec.stride or (dims is not None and dims[0] != spec.out_channels)
        ):
            return k
    return min(len(blocks), len(arch.blocks))
