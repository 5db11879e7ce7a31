"""Files of blocks in deploy form: nothing is left to fuse in them, which is told, not guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repvgg_ref.blocks.family import FAMILY
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.wrappers import listed
from weights_io import LazyArray, sanitize

USUAL = frozenset({"", "conv", "conv3x3"})
"""Deploy names that convolutions of other networks have, too."""
_WANTED = "a training checkpoint; there is nothing to do"


def already_fused(
    path: Path, arrays: Mapping[str, LazyArray], metadata: Mapping[str, Any]
) -> CheckpointError | None:
    """The error that says that a file's blocks are in deploy form; None if nothing shows that.

    It shows in metadata of ours, in the published name of a fused convolution, or in convolutions
    with biases in a file that has no batch norm.
    """
    if metadata.get("form") == "modules" and "family" in metadata:
        kinds = sanitize(str(metadata["family"]))
        return _error(path, "its blocks are fused already", f"{kinds}, written by repvgg-ref")
    if named := _named(arrays):
        return _error(path, "its blocks are fused already", listed(named))
    biased = _biased(arrays)
    if biased and not any(key.endswith("running_var") for key in arrays):
        got = f"{len(biased)} convolutions with a bias, no batch norm: {listed(biased)}"
        return _error(path, "it has no branch or batch norm that is left to fuse", got)
    return None


def perhaps_fused(arrays: Mapping[str, LazyArray]) -> str | None:
    """What to add of a file with convolutions that look fused beside batch norms; None for others.

    ``PREFIX.conv`` with a bias, and no batch norm behind PREFIX, is what several kinds leave.
    """
    normed = {key.rpartition(".")[0].rpartition(".")[0] for key in arrays if "running_var" in key}
    found = [
        key for key in _biased(arrays, "conv.weight") if key[: -len(".conv.weight")] not in normed
    ]
    if not found:
        return None
    return (
        f"{listed(found)}: with a bias and no batch norm beside them, as fused blocks of some kinds"
        " are; no key tells these from other convolutions"
    )


def _biased(arrays: Mapping[str, LazyArray], end: str = "weight") -> list[str]:
    return [
        key
        for key, array in arrays.items()
        if key.endswith(end)
        and len(array.shape) == 4
        and f"{key.removesuffix('weight')}bias" in arrays
    ]


def _named(arrays: Mapping[str, LazyArray]) -> list[str]:
    """The kernels, with their biases, that are called as fused convolutions alone are."""
    owners = {one.fused for one in FAMILY.values()} - USUAL
    return [
        key for key in _biased(arrays) if key.removesuffix(".weight").rpartition(".")[2] in owners
    ]


def _error(path: Path, what: str, got: str) -> CheckpointError:
    return CheckpointError(f"{path.name}: {what}", got=got, wanted=_WANTED)


def foreign(
    path: Path, arrays: Mapping[str, LazyArray], metadata: Mapping[str, Any]
) -> CheckpointError:
    """The most helpful thing to say about a file that is no RepVGG classifier."""
    names = list(arrays)
    if fused := already_fused(path, arrays, metadata):
        return fused
    if any(".rbr_dense." in name or ".rbr_reparam." in name for name in names):
        what = "RepVGG blocks found, but not a RepVGG classifier (a detector such as YOLOv6/7?)"
    else:
        what = f"{path.name} holds no RepVGG in any known dialect"
    return CheckpointError(
        what,
        got=f"{len(names)} arrays: {listed(names)}" if names else "no arrays",
        wanted="official, plus, timm, mmpretrain or MegEngine names",
        advice=perhaps_fused(arrays),
    )
