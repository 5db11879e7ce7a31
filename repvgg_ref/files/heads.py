"""The classifier of a fork: one matrix on the features, whatever it is called; or none at all.

Or one that kept its batch norm where all blocks were fused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.wrappers import listed
from repvgg_ref.models.graph import Node
from repvgg_ref.models.heads import NormLinear
from weights_io import LazyArray, sanitize

HEAD, BIAS = "linear.weight", "linear.bias"
_WEIGHT = ".weight"
_BLOCK = re.compile(r"stage(\d+)(?:\.(\d+))?\.")
# A loss may hold a matrix of the same shape (margin losses do).
_LOSS = re.compile(r"(?:^|[._])(?:loss|criterion|metric|arcface|cosface)", re.IGNORECASE)


def find_head(
    arrays: dict[str, LazyArray],
    beside: Mapping[str, LazyArray],
    canonical: MutableMapping[str, str],
    notes: list[str],
) -> None:
    """Add the head of another name to `canonical`, and its arrays to `arrays` if they lie beside.

    Only a matrix (classes, features) without a rival is taken, as ``fc.weight``, in a Sequential
    ``classifier.1.weight`` or as a convolution 1x1. What else may work on the features is left
    unread among the arrays, so that it is noticed.

    Raises
    ------
    CheckpointError
        If two matrices could be the head.
    """
    if {HEAD, BIAS} & set(canonical.values()):
        return
    features = _features(arrays, canonical)
    unread = {**beside, **{name: a for name, a in arrays.items() if name not in canonical}}
    found = [name for name, array in unread.items() if _is_head(name, array, features)]
    if len(found) > 1:
        raise CheckpointError(
            "the network's head has no name that is known, and several matrices could be it",
            got=listed(found),
            wanted=f"one of shape (classes, {features})",
            advice="rename it to linear.weight and linear.bias",
        )
    if not found:
        if unread.keys() <= beside.keys():
            notes.append("there is no head: a backbone, whose output is the mean of its features")
        return
    module = found[0].removesuffix(_WEIGHT)
    notes.append(f"the head is called '{sanitize(module)}' here")
    arrays[found[0]] = _matrix(unread[found[0]])
    canonical[found[0]] = HEAD
    if (bias := f"{module}.bias") in unread:
        arrays[bias], canonical[bias] = unread[bias], BIAS
    else:
        _without_bias(arrays, canonical, notes)
    if found[0] in beside:  # then no more than losses and metrics may lie there with it
        arrays |= {n: a for n, a in beside.items() if _counts(n, a) and n not in arrays}


def fold_head(
    arrays: Mapping[str, LazyArray],
    canonical: Mapping[str, str],
    head: Node,
    eps: Callable[[], float],
) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """`arrays` and `canonical` of a deploy form, whose head's batch norm is taken into its matrix.

    As they are, where the head has none. `eps` is asked when they are read.
    """
    of_head = {ours: n for n, ours in canonical.items() if ours.startswith(f"{head.name}.")}
    weight, bias = f"{head.name}.weight", f"{head.name}.bias"
    if of_head.keys() <= {weight, bias} or not isinstance(head.op, NormLinear):
        return dict(arrays), dict(canonical)
    op, stored = head.op, arrays[of_head[weight]]
    kind = "float32" if stored.dtype == "bfloat16" else stored.dtype

    def read(name: str) -> Array:
        params = {ours: arrays[theirs].read() for ours, theirs in of_head.items()}
        return op.folded(head.name, params, eps=eps(), dtype=np.dtype(kind))[name]

    made = {
        of_head[name]: LazyArray(shape, kind, partial(read, name))
        for name, shape in ((weight, stored.shape), (bias, stored.shape[:1]))
    }
    gone = set(of_head.values())
    return (
        {n: a for n, a in arrays.items() if n not in gone} | made,
        {n: ours for n, ours in canonical.items() if n not in gone or n in made},
    )


def _without_bias(
    arrays: dict[str, LazyArray], canonical: MutableMapping[str, str], notes: list[str]
) -> None:
    """A head of another name and of a matrix alone: its bias is zero.

    A file of official names without ``linear.bias`` is damaged.
    """
    head = next(theirs for theirs, ours in canonical.items() if ours == HEAD)
    classes, dtype = arrays[head].shape[0], arrays[head].dtype
    kind = "float32" if dtype == "bfloat16" else dtype
    bias = head.removesuffix(_WEIGHT) + ".bias"
    if bias not in arrays and arrays[head].shape:
        arrays[bias] = LazyArray((classes,), kind, lambda: np.zeros(classes, kind))
        canonical[bias] = BIAS
        notes.append("the head has no bias: zeros stand for it")


def _features(arrays: Mapping[str, LazyArray], canonical: Mapping[str, str]) -> int:
    """Output channels of the last block: the length that most of its vectors have."""
    last: tuple[int, int] = (-1, -1)
    vectors: Counter[int] = Counter()
    for name, ours in canonical.items():
        match, shape = _BLOCK.match(ours), arrays[name].shape
        if match is None or ".se." in ours or max(shape, default=0) != _size(shape):
            continue
        place = (int(match[1]), int(match[2] or 0))
        if place > last:
            last, vectors = place, Counter()
        if place == last and shape != (1,) and shape:
            vectors[_size(shape)] += 1
    return vectors.most_common(1)[0][0] if vectors else 0


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _is_head(name: str, array: LazyArray, features: int) -> bool:
    shape = array.shape
    fits = len(shape) in (2, 4) and shape[1] == features and shape[2:] in ((), (1, 1))
    return fits and name.endswith(_WEIGHT) and _LOSS.search(name) is None


def _counts(name: str, array: LazyArray) -> bool:
    """Whether it may be a part of the network: neither a loss nor what a metric counts."""
    return "float" in array.dtype and _LOSS.search(name) is None


def _matrix(array: LazyArray) -> LazyArray:
    """A convolution 1x1 as the matrix that it is."""
    shape = array.shape[:2]
    return LazyArray(shape, array.dtype, lambda: array.read().reshape(shape), array.module)
