"""Memory for the outputs of a graph: handed out by need, and taken back after the last use.

A chain needs two buffers (section 3.1 of arXiv 2101.03697); a shortcut, which keeps a layer's input
alive until the addition, one more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.layout import border_views, carve, interior
from repvgg_ref.models.gated import Add, Dropout, Gate
from repvgg_ref.models.graph import INPUT, Node
from repvgg_ref.models.layers import AddRelu, Extent, Flatten, GlobalAvgPool, Linear

GIVES_FEATURES = (GlobalAvgPool, Flatten, Linear, Dropout)  # (N, C); all other outputs are images


class Reading(NamedTuple):
    """What a convolution wants of its input: a border of zeros, and height and width with it."""

    border: int
    padded: tuple[int, int]


class Buffer(NamedTuple):
    """An image (N, H, W, C), `inner`, in a border of zeros, `around`; or features (N, C)."""

    inner: Array
    view: Array  # with the border
    border: int
    around: Sequence[Array]

    def read(self, border: int) -> Array:
        """The image in a border of its own, which is not wider."""
        offset = self.border - border
        return self.view[:, offset:, offset:]


def hand_out(
    nodes: Sequence[Node],
    sizes: Mapping[str, Extent],
    readings: Mapping[str, Reading],
    images: int,
    allocate: Callable[[int], Array],
) -> tuple[list[Array], dict[str, Buffer]]:
    """The memory of all images, and a buffer for every output, that of `INPUT` included.

    Parameters
    ----------
    sizes : mapping
        Channels, height and width of every output.
    readings : mapping
        What nodes want of their first input.
    allocate : callable
        Number of numbers -> (numbers,) array.
    """
    roots = _roots(nodes)
    padded, borders = _demands(nodes, sizes, readings, roots, images)
    slots, taken = _slots(nodes, roots, padded)
    memory = [allocate(numbers) for numbers in slots]
    buffers: dict[str, Buffer] = {}
    for name, root in roots.items():
        channels, height, width = sizes[name]
        if root not in padded:
            features = carve(allocate(images * channels), (images, channels))
            buffers[name] = Buffer(features, features, 0, ())
            continue
        view, border = carve(memory[taken[root]], padded[root]), borders[root]
        around = border_views(view, height, width, border) if name == root else ()
        buffers[name] = Buffer(interior(view, height, width, border), view, border, around)
    return memory, buffers


def _roots(nodes: Sequence[Node]) -> dict[str, str]:
    """Output -> the one in whose memory it lies: sums and gates lie over what only they read."""
    readers = Counter(name for node in nodes for name in node.inputs)
    roots = {INPUT: INPUT}
    for node in nodes:
        spare = [name for name in node.inputs if readers[name] == 1 and name != INPUT]
        over = isinstance(node.op, AddRelu | Add | Gate) and spare
        roots[node.name] = roots[spare[0]] if over else node.name
    return roots


def _demands(
    nodes: Sequence[Node],
    sizes: Mapping[str, Extent],
    readings: Mapping[str, Reading],
    roots: Mapping[str, str],
    images: int,
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Every image's padded shape and border, so that all who read it find their own in it."""
    features = {node.name for node in nodes if isinstance(node.op, GIVES_FEATURES)}
    borders = dict.fromkeys((root for root in roots.values() if root not in features), 0)
    wanted = [
        (roots[node.inputs[0]], readings[node.name]) for node in nodes if node.name in readings
    ]
    for source, reading in wanted:
        borders[source] = max(borders[source], reading.border)
    padded = {
        name: [size + 2 * border for size in sizes[name][1:]] for name, border in borders.items()
    }
    for source, reading in wanted:
        offset = borders[source] - reading.border
        pairs = zip(padded[source], reading.padded, strict=True)
        padded[source] = [max(size, offset + least) for size, least in pairs]
    return {name: (images, *size, sizes[name][0]) for name, size in padded.items()}, borders


def _slots(
    nodes: Sequence[Node], roots: Mapping[str, str], padded: Mapping[str, tuple[int, ...]]
) -> tuple[list[int], dict[str, int]]:
    """How many numbers each piece of memory holds, and which one an image is in.

    An image takes the piece nearest in size of those that hold nothing any more.
    """
    last_use: dict[str, int] = {}
    for place, node in enumerate(nodes):
        last_use |= {roots[name]: place for name in (node.name, *node.inputs)}
    slots: list[int] = []
    free: list[int] = []
    taken: dict[str, int] = {}
    for place, name in enumerate(roots, start=-1):  # the input comes before all nodes
        if name in padded:
            numbers = math.prod(padded[name])
            slot = min(free, key=lambda k: abs(slots[k] - numbers), default=len(slots))
            if slot == len(slots):
                slots.append(numbers)
            else:
                free.remove(slot)
                slots[slot] = max(slots[slot], numbers)
            taken[name] = slot
        free += [slot for each, slot in taken.items() if last_use[each] == place]
    return slots, taken
