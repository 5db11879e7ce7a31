"""What an ONNX file of a PSPNet says without being run: kernels, steps, and how it resizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.models.dense import Concat
from repvgg_ref.models.graph import Network
from repvgg_ref.models.pspnet import BINS
from repvgg_ref.oracle.candidates.base import FileEvidence
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_chain import CONVOLUTIONS, Chain, has_taps
from repvgg_ref.oracle.candidates.onnx_evidence import SeenBlocks, certain, left_on
from repvgg_ref.oracle.candidates.onnx_pyramid import Part, Pyramid
from repvgg_ref.oracle.candidates.onnx_reading import Reading, unread
from repvgg_ref.oracle.candidates.onnx_rules import reader
from repvgg_ref.oracle.report import Finding
from weights_io import sanitize

_ONE_BIN = f"ppm.{BINS.index(1)}.resize"  # of one pixel every resizing makes the same
_HOW = "coordinate_transformation_mode"
_USUAL = (("mode", "nearest"), (_HOW, "half_pixel"))  # where ONNX is told nothing


def pyramid_evidence(chain: Chain, pyramid: Pyramid, arch: Network) -> FileEvidence:
    """Read every block that was found, and the attributes of what stands between them."""
    seen, findings = SeenBlocks(chain), list[Finding]()
    blocks = {spec.name: spec for spec in arch.blocks}
    for name, part in pyramid.parts.items():
        findings += left_on(part.nodes, name, chain)
        if (spec := blocks.get(name)) is not None:
            seen.look(spec, _read(chain, part, spec.in_channels))
            findings += _steps(spec, part, chain)
    for name, nodes in pyramid.resizes.items():
        for node in nodes:
            findings += _resizing(name, node)
    joined = next(node.name for node in arch.evaluated if isinstance(node.op, Concat))
    if pyramid.missing:
        bug = "pyramid-part-twice" if pyramid.is_doubled else "pyramid-part-missing"
        says = f"the graph does not join {listed(pyramid.missing)}"
        says += ", and another part twice" if pyramid.is_doubled else ""
        findings.append(certain(bug, joined, says, "join the feature map and bins 1, 2, 3, 6"))
    return seen.evidence([*seen.findings, *findings])


def _read(chain: Chain, part: Part, channels: int) -> Reading | None:
    read = reader(chain.constants, {part.start.tensor: unread(channels, part.start.axes)})
    read.read(part.nodes)
    return read.found.get(part.tensor)


def _steps(spec: BlockSpec, part: Part, chain: Chain) -> Iterator[Finding]:
    """Another stride or dilation than the block's."""
    if spec.kernel == 1:
        return
    for node in part.nodes:
        if node.op_type not in CONVOLUTIONS or not has_taps(node, chain.constants):
            continue
        stride, dilation = (
            int([*setting(node, what, ()), 1][0]) for what in ("strides", "dilations")
        )
        if (stride, dilation) == (spec.stride, spec.dilation):
            continue
        place = sanitize(node.name) or node.op_type
        if stride != spec.stride and dilation != spec.dilation:
            bug, value = "not-dilated", None
        elif stride != spec.stride:
            bug, value = "stride-moved", float(stride)
        else:
            bug, value = _of_dilation(dilation, spec.dilation), float(dilation)
        says = (
            f"node {place} has stride {stride} and dilation {dilation}, where"
            f" {spec.stride} and {spec.dilation} belong"
        )
        yield certain(bug, spec.name, says, "export the network as it was trained", value)
        return


def _of_dilation(got: int, wanted: int) -> str:
    if wanted == 1:
        return "dilation-added"
    return "dilation-ignored" if got == 1 else "dilation-other"


def _resizing(layer: str, node: Any) -> Iterator[Finding]:
    """Another interpolation than linear with aligned corners."""
    if layer == _ONE_BIN:
        return
    place = sanitize(node.name) or node.op_type
    mode, how = (sanitize(setting(node, what, usual)) for what, usual in _USUAL)
    if node.op_type == "Upsample" and not node.domain:  # ONNX's before there was Resize
        how = "asymmetric"
    if mode == "nearest":
        says = f"node {place} takes the nearest pixel (mode {mode})"
        yield certain("nearest-pixel", layer, says, "bilinear interpolation belongs there")
    elif mode == "cubic":
        says = f"node {place} interpolates with cubics (mode {mode})"
        yield certain("resize-cubic", layer, says, "bilinear interpolation belongs there")
    elif how != "align_corners":
        says = f"node {place} resizes without aligning the corners ({_HOW} {how})"
        yield certain("corners-not-aligned", layer, says, f"{_HOW}=align_corners")
