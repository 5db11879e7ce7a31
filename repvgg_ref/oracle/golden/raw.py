"""Golden vectors as raw numbers, for who has neither Python nor a reader of npz or JSON.

The folder ``raw`` holds one file an array, little endian, C order, no header. ``index.txt`` says
what they are, a line each, in words that `fscanf` can read:

    array input DTYPE RANK EXTENT... FILE
    layer NAME conv KH KW SH SW PH PW DH DW GROUPS SE RELU
    layer NAME linear FEATURES CLASSES
    layer NAME adaptive-avg-pool ROWS COLUMNS
    layer NAME bilinear-aligned second | FACTOR
    layer NAME concat
    layer NAME identity
    inputs NAME...

Layers stand in network order, each followed by its ``weight`` lines (kernel and bias, then those of
squeeze-and-excitation), its ``array`` line (the exact output) and its ``bound`` lines, all with the
words of the first line above. Kernel, stride, padding and dilation are those of the one fused
convolution; SE is ``none``, ``before_relu`` or ``after_relu``, RELU 0 or 1; ``linear`` works on
the mean over height and width. Where not each layer is fed by the one before it, a line ``inputs``
names who feeds it; ``bilinear-aligned`` resizes with aligned corners, to the size of the second
input or to (H - 1) FACTOR + 1. The bound ``stage0/fp32`` has the shape of the array ``stage0``, or
one number a channel.

``manifest.json`` says the same as dumps are described: `verify` reads a folder of a port's files
beside such a manifest. ``SHA256SUMS`` is for ``sha256sum -c``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.models.dense import AdaptiveAvgPool, ChannelDropout, Concat, ResizeAs, Zoom
from repvgg_ref.models.graph import Network, Node
from repvgg_ref.models.layers import Block
from repvgg_ref.models.names import official_names
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.golden.folder import MANIFEST, sha256

RAW, INDEX, SUMS = "raw", "index.txt", "SHA256SUMS"


def write_raw(
    folder: Path, model: Model, outputs: Mapping[str, Array], bounds: Mapping[str, Array]
) -> None:
    """Write everything below `folder`, which must not be there yet.

    Parameters
    ----------
    model : Model
        In either form; its fused weights are written.
    outputs : mapping
        ``input`` and every layer's exact output.
    bounds : mapping
        ``<layer>/<precision>`` -> certified bound.
    """
    deploy = fuse(model) if model.form == "train" else model
    tables = {
        "weights": _written(folder, "weights", deploy.state_dict()),
        "arrays": _written(folder, "", outputs),
        "bounds": _written(folder, "bounds", bounds),
    }
    lines = _index(deploy, tables)
    (folder / INDEX).write_text("\n".join(lines) + "\n", encoding="ascii")
    described: dict[str, Any] = {"model": model.name, "layout": "NCHW", "endianness": "little"}
    text = json.dumps(described | tables, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}" for path in files]
    (folder / SUMS).write_text("\n".join(sums) + "\n", encoding="ascii")


def _written(root: Path, below: str, arrays: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """Write each array into a file of its own; name -> its description."""
    (root / below).mkdir(parents=True, exist_ok=True)
    table = {}
    for name, array in arrays.items():
        path = root / below / f"{name.replace('/', '.')}.bin"
        path.write_bytes(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        table[name] = {
            "file": path.relative_to(root).as_posix(),
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "sha256": sha256(path),
        }
    return table


def _index(deploy: Model, tables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The lines of the index, layer by layer."""

    def line(table: str, name: str) -> str:
        entry = tables[table][name]
        shape = " ".join(map(str, (len(entry["shape"]), *entry["shape"])))
        return f"{table.removesuffix('s')} {name} {entry['dtype']} {shape} {entry['file']}"

    official = official_names(deploy.arch, "deploy")
    yield line("arrays", "input")
    for node in deploy.arch.evaluated:
        layer = node.name
        if layer not in deploy.arch.layer_names:
            continue
        yield f"layer {layer} {_does(node, deploy.arch)}"
        if deploy.arch.is_dense:
            yield f"inputs {' '.join(node.inputs)}"
        for part in node.op.shapes("deploy"):
            yield line("weights", official[f"{layer}.{part}"])
        yield line("arrays", layer)
        for name in tables["bounds"]:
            if name.startswith(f"{layer}/"):
                yield line("bounds", name)


def _does(node: Node, arch: Network) -> str:
    """What a port must compute there."""
    op = node.op
    if isinstance(op, Block):
        spec, conv = op.spec, fused_conv(op.spec)
        pairs = " ".join(map(str, (*conv.kernel, *conv.stride, *conv.padding, *conv.dilation)))
        return f"conv {pairs} {conv.groups} {spec.se} {int(spec.activation == 'relu')}"
    if isinstance(op, AdaptiveAvgPool):
        return f"adaptive-avg-pool {op.bins} {op.bins}"
    if isinstance(op, ResizeAs | Zoom):  # to the second input's size; by a factor, corners aligned
        return f"bilinear-aligned {op.factor if isinstance(op, Zoom) else 'second'}"
    if isinstance(op, Concat | ChannelDropout):
        return "concat" if isinstance(op, Concat) else "identity"
    return f"linear {arch.features} {arch.num_classes}"
