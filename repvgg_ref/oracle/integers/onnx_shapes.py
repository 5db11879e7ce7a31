"""How a tensor lies, and which reshaping leaves every number in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import setting

SHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
_IMAGE = frozenset({2, 3})  # rows and columns


@dataclass(frozen=True)
class Shape:
    """An "image" (N, C, H, W), "pooled" (N, C, 1, 1), or "flat" (N, C); N where it is known."""

    kind: Literal["image", "pooled", "flat"]
    batch: int | None = None

    @property
    def axes(self) -> int:
        """How many there are."""
        return 2 if self.kind == "flat" else 4

    def of(self, kind: Literal["image", "pooled", "flat"]) -> Shape:
        """The same batch."""
        return Shape(kind, self.batch)


def reshaped(
    node: Any, shape: Shape, channels: int, axes: list[int] | None, target: Array | None
) -> Shape | None:
    """How the output of a node of `SHAPING` lies; None if it is not known to move nothing.

    `axes` are those that the node states, `target` is the shape that a Reshape asks for.
    """
    if node.op_type in ("Identity", "Dropout"):
        return shape
    if shape.kind == "image":
        return None
    if node.op_type == "Flatten":
        return shape.of("flat") if setting(node, "axis", 1) % shape.axes == 1 else None
    if node.op_type == "Squeeze":
        squeezed = axes is not None and {axis % 4 for axis in axes} == _IMAGE
        return shape.of("flat") if squeezed and shape.kind == "pooled" else None
    if node.op_type == "Unsqueeze":
        added = axes is not None and {axis % 4 for axis in axes} == _IMAGE
        return shape.of("pooled") if added and shape.kind == "flat" else None
    if target is None or target.ndim != 1 or setting(node, "allowzero", 0):
        return None
    wanted = [int(n) for n in target]
    if len(wanted) == 4 and wanted[2:] == [1, 1]:
        kind: Literal["pooled", "flat"] = "pooled"
    elif len(wanted) == 2:
        kind = "flat"
    else:
        return None
    images, classes = wanted[:2]
    same_images = images == 0 or images == (shape.batch or 0)
    same_classes = classes in (0, channels)
    is_same = (same_images and (same_classes or classes == -1)) or (images == -1 and same_classes)
    return shape.of(kind) if is_same else None
