"""What an ONNX file says without being run: its kernels, its clips, its borders, its dropout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import FileEvidence
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_chain import Chain
from repvgg_ref.oracle.candidates.onnx_reading import OVERFLOW, Clamp, Opaque, Reading, unread
from repvgg_ref.oracle.candidates.onnx_rules import reader
from repvgg_ref.oracle.candidates.onnx_taps import Taps
from repvgg_ref.oracle.candidates.onnx_walk import Tap
from repvgg_ref.oracle.report import Finding
from weights_io import sanitize

_CHOOSING = frozenset({"If", "Loop", "Scan", "Where"})
_NARROW = frozenset({"float16", "bfloat16"})


def file_evidence(chain: Chain, taps: Taps, arch: Network) -> FileEvidence:
    """Read every matched block of the graph, and its classifier."""
    start = taps.entrance.start or Tap(chain.entrance.name, taps.entrance.perm)
    seen, suspects = SeenBlocks(chain), list(_altered(taps))
    for name, tap in taps.blocks.items():
        spec = arch.block(name)
        seen.look(spec, _read(chain, start, tap, spec.in_channels))
        start = tap
    kernels, unread_layers = seen.kernels, seen.unread
    if taps.ending is not None and len(taps.blocks) == len(arch.blocks):
        reading = _read(chain, start, taps.ending.logits, arch.features)
        kernel = None if reading is None else classifier_of(reading)
        if kernel is None:
            unread_layers.append("linear" + _why(reading))
            suspects += _pooled_otherwise(reading)
        else:
            kernels["linear"] = kernel
    return seen.evidence([*seen.findings, *_left_on(chain, taps)], suspects)


class SeenBlocks:
    """What the blocks of a graph turned out to be, one after another."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.kernels: dict[str, FusedConv] = {}
        self.computed: set[str] = set()
        self.findings: list[Finding] = []
        self.unread: list[str] = []

    def look(self, spec: BlockSpec, reading: Reading | None) -> None:
        """Take in what was read of the block `spec`, if anything was."""
        kernel = None if reading is None else kernel_of(reading, fused_conv(spec))
        if reading is not None:
            self.findings += _clips(reading, spec)
            self.findings += _border(reading, spec, self.chain)
        fits = kernel is not None and kernel.weight.shape[1] * spec.groups == spec.in_channels
        if kernel is None or reading is None or not fits:
            self.unread.append(spec.name + _why(reading))
            return
        self.kernels[spec.name] = kernel
        if not is_stored(reading, fused_conv(spec)):
            self.computed.add(spec.name)

    def evidence(
        self, findings: Sequence[Finding], suspects: Sequence[Finding] = ()
    ) -> FileEvidence:
        """All of it, with what else was found in the file."""
        notes = (f"the file's weights were not read, only run: {listed(self.unread)}",)
        doubts, computed = tuple(_conditions(self.chain)), frozenset(self.computed)
        return FileEvidence(
            self.kernels,
            tuple(findings),
            tuple(suspects),
            doubts,
            notes if self.unread else (),
            computed,
        )


def kernel_of(reading: Reading, conv: Conv) -> FusedConv | None:
    """The kernel of a block on the taps of `conv`, as it is stored or computed from what is stored.

    None if an operator was not understood, if it has other taps or another stride, if it is held
    in bfloat16, or was computed from parts in float16: what they were before is not known.
    """
    form = reading.form
    understood = not any(isinstance(each, Opaque) for each in reading.after)
    if not understood or reading.pooled or any(reading.border) or "bfloat16" in reading.stored:
        return None
    if len(form.bias) > conv.out_channels:  # a blocked layout holds whole blocks
        form = form.part(slice(0, conv.out_channels), slice(None))
    if form.stride != conv.stride or len(form.bias) != conv.out_channels:
        return None
    lattice = conv.lattice
    if is_stored(reading, conv):
        kernel = _narrowed(form.terms[0].kernel, reading)
        # a sum of two biases is theirs to float32's rounding only, as the runtime forms it
        return FusedConv(kernel, form.bias.astype(np.promote_types(kernel.dtype, np.float32)))
    if reading.stored & _NARROW:
        return None
    outside = [at for at in form.lattice.offsets() if lattice.tap(at) is None]
    if any(form.at(at).any() for at in outside):
        return None
    taps = np.stack([form.at(at) for at in lattice.offsets()], axis=-1)
    grouped = _grouped(taps, form.groups, conv.groups)
    if grouped is None:
        return None
    weight = grouped.reshape(*grouped.shape[:2], *lattice.size).astype(np.float32)
    return FusedConv(weight, form.bias.astype(np.float32))


def is_stored(reading: Reading, conv: Conv) -> bool:
    """Whether the file holds the kernel as it is, and only a bias may have to be computed."""
    form, term = reading.form, reading.form.terms[0]
    alone = len(form.terms) == 1 and bool((term.scale == 1).all())
    return alone and form.groups == conv.groups and term.lattice == conv.lattice


def _narrowed(kernel: Array, reading: Reading) -> Array:
    """A kernel in the type that the file holds it in, if that is float16."""
    return kernel.astype(np.float16) if reading.stored == {"float16"} else kernel


def _grouped(taps: Array, groups: int, wanted: int) -> Array | None:
    """Taps (O, C/G, K) of `groups` groups as those of `wanted`, if what goes is zero."""
    outputs, inputs, count = taps.shape
    if groups == wanted:
        return taps
    if groups != 1:
        return None
    rows = np.arange(outputs)
    # (O, C, K) -> (O, G, C/G, K)
    apart = taps.reshape(outputs, wanted, inputs // wanted, count)
    own = apart[rows, rows // (outputs // wanted)]
    return own if np.count_nonzero(apart) == np.count_nonzero(own) else None


def classifier_of(reading: Reading) -> FusedConv | None:
    """Weight (classes, C, 1, 1) and bias, if the features are averaged and no more."""
    if not reading.pooled or not reading.is_linear or not reading.form.is_pointwise:
        return None
    if "bfloat16" in reading.stored:
        return None
    form = reading.form
    if form.groups != 1:
        return None
    term = form.terms[0]
    stored = len(form.terms) == 1 and bool((term.scale == 1).all())
    return FusedConv(_narrowed(term.kernel, reading) if stored else form.dense(), form.bias)


def _read(chain: Chain, start: Tap, end: Tap, channels: int) -> Reading | None:
    read = reader(chain.constants, {start.tensor: unread(channels, start.axes)})
    for step in chain.steps[start.step + 1 : end.step + 1]:
        read.read(step.nodes)
    return read.found.get(end.tensor)


def _why(reading: Reading | None) -> str:
    """The operator that was not understood, or the type, in brackets."""
    narrow = sorted(reading.stored & _NARROW) if reading else []
    opaque: list[Any] = [
        each for each in (reading.after if reading else ()) if isinstance(each, Opaque)
    ]
    why = opaque or narrow
    return f" ({why[0]})" if why else ""


def _clips(reading: Reading, spec: BlockSpec) -> Iterator[Finding]:
    """An activation that is linear up to some number only."""
    if any(isinstance(each, Opaque) for each in reading.after):
        return
    for each in reading.after:
        if isinstance(each, Clamp) and (each.low, min(each.high, OVERFLOW)) != (0.0, OVERFLOW):
            yield certain(
                "other-activation",
                spec.name,
                f"the activation is not ReLU but clips: {each}",
                "RepVGG uses plain ReLU",
                each.high,
            )


def _border(reading: Reading, spec: BlockSpec, chain: Chain) -> Iterator[Finding]:
    """A border that suits images of even size only, in a graph that takes any."""
    wanted = fused_conv(spec)
    same = (reading.form.stride, reading.form.lattice) == (wanted.stride, wanted.lattice)
    if same and reading.growth != wanted.growth and not _is_fixed(chain):
        yield certain(
            "padding-asymmetric",
            spec.name,
            "padding lies on one side only: images of odd size lose their last row and column",
            "pad the same on every side",
        )


def _is_fixed(chain: Chain) -> bool:
    dims = chain.entrance.type.tensor_type.shape.dim
    return len(dims) == 4 and sum(d.dim_value > 0 for d in dims[1:]) == 3


def _left_on(chain: Chain, taps: Taps) -> Iterator[Finding]:
    """Operators in training mode, in the layer where they stand."""
    for i, step in enumerate(chain.steps):
        layer = next((n for n, tap in taps.blocks.items() if i <= tap.step), "linear")
        yield from left_on(step.nodes, layer, chain)


def left_on(nodes: Iterable[Any], layer: str, chain: Chain) -> Iterator[Finding]:
    """Those of the nodes of a layer that are in training mode."""
    for node in nodes:
        place = sanitize(node.name) or node.op_type
        if node.op_type == "Dropout" and _drops(node, chain):
            says = f"dropout is left on (training_mode of node {place})"
            yield certain("dropout-left-on", layer, says, "export in evaluation mode")
        if node.op_type == "BatchNormalization" and (
            setting(node, "training_mode", 0) or sum(map(bool, node.output)) > 1
        ):
            says = f"batch norm takes the batch's own statistics (node {place})"
            yield certain("batch-norm-training", layer, says, "export in evaluation mode")


def _drops(node: Any, chain: Chain) -> bool:
    given = [*node.input, "", ""]
    training = chain.constants.value(given[2]) if given[2] else None
    ratio = chain.constants.value(given[1]) if given[1] else np.array(0.5)
    return training is not None and bool(training.any()) and (ratio is None or bool(ratio > 0))


def _conditions(chain: Chain) -> Iterator[str]:
    """Nodes that choose what to do: the other choice may never have been seen."""
    for step in chain.steps:
        for node in step.nodes:
            if node.op_type in _CHOOSING:
                yield str(Opaque(node.op_type, sanitize(node.name)))


def _pooled_otherwise(reading: Reading | None) -> Iterator[Finding]:
    """Operators in the head that are no mean."""
    odd = [str(each) for each in (reading.after if reading else ())]
    if odd:
        says = f"the features are not averaged: in the head there is {listed(odd)}"
        yield certain("head-pool", "linear", says, "average over height and width")


def _altered(taps: Taps) -> tuple[Finding, ...]:
    """Linear operators behind the classifier: to blame only if the logits are wrong."""
    if taps.ending is None or not taps.ending.linear:
        return ()
    return (output_altered(taps.ending.linear),)


def output_altered(operators: tuple[str, ...]) -> Finding:
    """Something follows the logits and makes other numbers of them."""
    says = f"the output is not the logits: behind them comes {listed(operators)}"
    return certain("head-output", "linear", says, "export the logits, before anything else")


def certain(bug: str, layer: str, says: str, advice: str, estimate: float | None = None) -> Finding:
    """What stands in the file is there, whatever the values are."""
    return Finding(bug, layer, estimate, 1.0, 1.0, says, advice)
