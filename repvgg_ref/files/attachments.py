"""What other tools leave among a network's arrays: profilers' counters and pruning masks."""

from __future__ import annotations

import re

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.wrappers import listed
from weights_io import LazyArray

Arrays = dict[str, LazyArray]

# thop's and ptflops' counts, and the steps that an averaged model has been through.
_COUNTERS = ("total_ops", "total_params", "n_averaged", "num_updates")
# Modules that hold a loss's class weights or what a metric has counted, and no layer of a network.
_NO_LAYER = re.compile(
    r"(?:criterion|loss(?:_\w+)?|metrics?|accuracy)"
    r"|(?:train|val|valid|validation|test)_?(?:acc|loss|metric|f1|auroc|auc|top|confmat)\w*"
)
_LONGEST = 100  # characters of a module's name
_ORIGINAL, _MASK = "_orig", "_mask"


def without_attachments(arrays: Arrays, notes: list[str]) -> Arrays:
    """Leave counters and losses out, and multiply pruned weights by their masks; `notes` say so."""
    ignored = [name for name in arrays if _is_ignored(name)]
    if ignored:
        notes.append(
            f"{len(ignored)} arrays of profilers, losses or metrics ignored: {listed(ignored)}"
        )
        arrays = {name: array for name, array in arrays.items() if not _is_ignored(name)}
    return _unmasked(arrays, notes)


def _is_ignored(name: str) -> bool:
    first, _, _ = name.partition(".")
    is_module = first != name and len(first) < _LONGEST
    return name.rpartition(".")[2] in _COUNTERS or (
        is_module and _NO_LAYER.fullmatch(first) is not None
    )


def _unmasked(arrays: Arrays, notes: list[str]) -> Arrays:
    """``weight`` of each pair ``weight_orig``, ``weight_mask``: torch prunes by their product."""
    beside = [
        name
        for name in arrays
        if name.endswith(_MASK)
        and name.removesuffix(_MASK) in arrays
        and arrays[name].shape == arrays[name.removesuffix(_MASK)].shape
    ]
    if beside:
        notes.append(f"{len(beside)} masks ignored, beside arrays that stand for themselves")
        left_out = set(beside)
        arrays = {name: array for name, array in arrays.items() if name not in left_out}
    pairs = {
        name: name.removesuffix(_ORIGINAL)
        for name in arrays
        if name.endswith(_ORIGINAL)
        and name.removesuffix(_ORIGINAL) + _MASK in arrays
        and name.removesuffix(_ORIGINAL) not in arrays
    }
    if not pairs:
        return arrays
    notes.append(
        f"{len(pairs)} arrays are pruned: weight_orig times weight_mask is taken, as torch does"
    )
    masks = {plain + _MASK for plain in pairs.values()}
    return {
        pairs.get(name, name): _product(name, array, arrays[pairs[name] + _MASK])
        if name in pairs
        else array
        for name, array in arrays.items()
        if name not in masks
    }


def _product(name: str, original: LazyArray, mask: LazyArray) -> LazyArray:
    if mask.shape != original.shape:
        raise CheckpointError(
            "a pruning mask has another shape than its array",
            got=f"{mask.shape} for {listed([name])}",
            wanted=str(original.shape),
        )

    def read() -> Array:
        values = original.read()
        product: Array = np.multiply(values, mask.read(), dtype=values.dtype)
        return product

    return LazyArray(original.shape, original.dtype, read, original.module)
