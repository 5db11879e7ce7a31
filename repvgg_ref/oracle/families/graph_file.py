"""The fused file of a network that is no chain, against its training file: block by block, no run.

Every block, a convolution and its batch norm included, is held as a block of the family is; what
stands between them is not run, and copied arrays must be the same. Equal networks whose layers
differ in the order or scale of channels are told from wrong ones (`oracle.symmetry.branching`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import weights_io
from repvgg_ref.blocks.catalogue import expression, one_conv
from repvgg_ref.blocks.member import Member
from repvgg_ref.blocks.run import Linear
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.checkpoint import load, open_checkpoint
from repvgg_ref.files.modules import FoundBlock
from repvgg_ref.files.opened import Checkpoint
from repvgg_ref.files.wrappers import select
from repvgg_ref.models.about import Assumed
from repvgg_ref.models.graph import Node
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Block
from repvgg_ref.models.names import official_names
from repvgg_ref.oracle.families.family import NOT_TESTED, compared, name_of
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.symmetry.branching import reconsidered
from repvgg_ref.oracle.weights.copies import is_counter
from weights_io import LazyArray, sanitize

_COUNTER = ".num_batches_tracked"


def judge_graph_file(reference: Path, candidate: Path, *, eps: float | None = None) -> Report:
    """Judge the fused file `candidate` against the training file `reference`, a "network".

    Raises
    ------
    ReportedError
        If a file cannot be opened.
    """
    with open_checkpoint(reference) as trained, weights_io.open_weights(candidate) as port:
        assert trained.arch is not None
        title = f"{sanitize(reference.name)} ({trained.arch.name})"
        notes = (NOT_TESTED, *trained.notes)
        assumed = Assumed(eps=trained.assumed(eps).eps)
        report = Report(
            "agree", "", title, sanitize(candidate.name), "weights", notes=notes, assumed=assumed
        )
        try:
            theirs = select(port, "model", []).arrays
            every = dict(_blocks(trained, trained.eps(eps)))
            blocks = [block for block in every.values() if not _is_as_trained(block, theirs)]
            ours = _in_shape(trained.arrays, {k: s for b in blocks for k, s in _shapes(b).items()})
            wanted = {f"{b.fused}.weight": b.conv.shapes()["fused.weight"] for b in blocks}
            theirs = _in_shape(theirs, wanted)
            found = compared(blocks, ours, theirs, report)
            if found.verdict != "disagree":
                return found

            def again(changed: Mapping[str, LazyArray], roundings: Mapping[str, int]) -> Report:
                return compared(blocks, ours, {**theirs, **changed}, report, roundings)

            called = {node: name_of(block) for node, block in every.items()}
            return reconsidered(found, load(reference, eps=eps), called, theirs, again)
        except ReportedError as error:
            return replace(report, verdict="cannot-judge", reason=str(error))


def _is_as_trained(block: FoundBlock, theirs: Mapping[str, LazyArray]) -> bool:
    """Whether a file left a block unfused: then its arrays are copies."""
    kept = all(key in theirs or is_counter(key) for key in block.owned)
    fused = f"{block.fused}.weight"
    return kept and (fused in block.owned or fused not in theirs)


def _blocks(trained: Checkpoint, eps: float) -> Iterator[tuple[str, FoundBlock]]:
    """Every part of the network that becomes one convolution: its node, and a block of a file."""
    assert trained.arch is not None
    keys = {ours: theirs for theirs, ours in trained.canonical.items()}
    fused = official_names(trained.arch, "deploy")
    for node in trained.arch.evaluated:
        if (linear := _linear(node)) is None:
            continue
        start = "fused." if isinstance(node.op, Block) else ""
        owner = fused[f"{node.name}.{start}weight"].rpartition(".")[0]
        kind = node.op.spec.kind if isinstance(node.op, Block) else "norm-linear"
        names = {
            leaf: keys[f"{node.name}.{leaf.removeprefix('linear.') if not start else leaf}"]
            for leaf in linear.shapes()
            if not leaf.endswith(_COUNTER)
        }
        owned = tuple(key for ours, key in keys.items() if ours.startswith(f"{node.name}."))
        member = Member(kind, "", lambda parts: None, "", (eps,), "", "")
        conv = one_conv(linear, node.name)
        yield node.name, FoundBlock(f"{owner}.", member, linear, conv, names, owned, eps)


def _linear(node: Node) -> Linear | None:
    if isinstance(node.op, Block):
        return expression(node.op.spec)
    return node.op.linear if isinstance(node.op, NormLinear) else None


def _shapes(block: FoundBlock) -> dict[str, tuple[int, ...]]:
    """What the expression takes its arrays to be, by key."""
    return {key: block.linear.shapes()[leaf] for leaf, key in block.names.items()}


def _in_shape(
    arrays: Mapping[str, LazyArray], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, LazyArray]:
    """The arrays, matrices as the 1x1 kernels that they are where these are wanted."""

    def kernel(array: LazyArray) -> LazyArray:
        shape = (*array.shape, 1, 1)
        return LazyArray(shape, array.dtype, lambda: array.read().reshape(shape))

    return {
        key: kernel(array) if wanted.get(key) == (*array.shape, 1, 1) else array
        for key, array in arrays.items()
    }
