"""Fusing every block of a file in its place: one is read, fused, checked and written at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.family import FAMILY
from repvgg_ref.blocks.fusion import FusedConv, fuse_linear
from repvgg_ref.blocks.selfcheck import BlockCheck, check_linear, worst
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.checkpoint import open_checkpoint
from repvgg_ref.files.deployed import already_fused
from repvgg_ref.files.modules import AUTO, Blocks, FoundBlock, blocks_of, holds_blocks
from repvgg_ref.files.spares import Spares
from repvgg_ref.files.wrappers import WhichWeights, listed, no_such_weights, select
from weights_io import LazyArray
from weights_io.writers.write import Container

_THREADS = min(4, os.cpu_count() or 1)
_FLOATS = ("float16", "float32", "float64")
_MOST_NEAR = 3
_SMALL = 1 << 16  # bytes of an array
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModulesConversion:
    """What was done to a file of blocks: each block, and how many arrays stayed as they were."""

    container: str
    family: str
    blocks: tuple[FoundBlock, ...]
    untouched: int
    tensors: int
    out: Path
    format: str
    self_check: BlockCheck | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Made:
    """Arrays to be written under their keys, and how the block's check went."""

    arrays: tuple[tuple[str, Array], ...]
    check: BlockCheck | None = None


def convert_modules(
    path: Path,
    out: Path,
    kind: str,
    *,
    family: str = AUTO,
    eps: float | None = None,
    weights: WhichWeights = "model",
    progress: Progress | None = None,
    archive: weights_io.Archive | None = None,
) -> ModulesConversion:
    """Fuse every block of the family in the file at `path` and write all arrays to `out`.

    Parameters
    ----------
    kind : {"npz", "safetensors", "pth"}
    family, eps
        As for `files.modules.blocks_of`.
    archive
        As for `convert`.

    Raises
    ------
    CheckpointError
        If there is no block; the nearest kind and what it lacks are named.
    NotFusibleError
        If a block holds NaN or infinity, or a fused value exceeds its type.
    SelfCheckError
        If a fused block differs from its branches by more than rounding. Nothing is written.
    """
    if kind == "onnx":
        raise CheckpointError(
            "a file of blocks has no graph to write as ONNX",
            got="format onnx",
            wanted="npz, safetensors or pth",
        )
    notes: list[str] = []
    with nullcontext(archive) if archive else weights_io.open_weights(path) as archive:
        notes += archive.notes
        arrays, asked, entries = select(archive, weights, notes)
        if asked != "model":
            raise no_such_weights(asked, entries)
        blocks = blocks_of(arrays, family=family, eps=eps)
        require_blocks(path, blocks, arrays, archive.metadata)
        plan = _plan(arrays, blocks)
        checks: list[BlockCheck] = []
        spares = Spares(_THREADS)
        made = _watched(_made(plan, arrays, spares), len(blocks.found), checks, progress, spares)
        container: Container = "torch-zip" if kind == "pth" else kind  # type: ignore[assignment]
        weights_io.write_weights(
            out,
            _specs(plan, arrays),
            made,
            container=container,
            metadata=archive.metadata | {"form": "modules", "family": blocks.family},
        )
        owned = {key for block in blocks.found for key in block.owned}
        notes += blocks.notes
        if mixed := [block.fused for block in blocks.found if block.is_fused]:
            notes.append(
                f"{len(mixed)} blocks hold branches beside their fused convolution, which is "
                f"kept: {listed(mixed)}"
            )
        return ModulesConversion(
            archive.container,
            blocks.family,
            tuple(blocks.found),
            len(arrays) - len(owned),
            sum(len(names) for names, _ in _names(plan)),
            out,
            kind,
            worst(checks) if checks else None,
            tuple(notes),
        )


def require_blocks(
    path: Path, blocks: Blocks, arrays: Mapping[str, LazyArray], metadata: Mapping[str, Any]
) -> None:
    """Raise `CheckpointError` if nothing was recognised, with what came nearest."""
    if blocks.found:
        return
    fused = already_fused(path, arrays, metadata)
    if fused is not None and not blocks.near:  # nothing beside them is nearly a block
        raise fused
    near = "; ".join(blocks.near[:_MOST_NEAR])
    raise CheckpointError(
        f"{path.name} holds no re-parameterisable block of a known kind",
        got=f"{len(arrays)} arrays: {listed(list(arrays))}",
        wanted=", ".join(FAMILY),
        advice=f"nearest: {near}" if near else None,
    )


_Step = FoundBlock | str  # a block to fuse, or a key to copy


def _plan(arrays: Mapping[str, LazyArray], blocks: Blocks) -> list[_Step]:
    """What to write, in the file's order: a block where its first array stood."""
    first = {block.owned[0]: block for block in blocks.found}
    owned = {key for block in blocks.found for key in block.owned}
    plan: list[_Step] = []
    for key in arrays:
        if key in first and not first[key].is_fused:
            plan.append(first[key])
        elif key not in owned:
            plan.append(key)
    return plan


def _names(plan: list[_Step]) -> Iterator[tuple[tuple[str, ...], _Step]]:
    """The keys that each step writes."""
    for step in plan:
        if isinstance(step, str):
            yield (step,), step
        else:
            start = f"{step.fused}." if step.fused else ""
            yield (f"{start}weight", f"{start}bias"), step


def _specs(plan: list[_Step], arrays: Mapping[str, LazyArray]) -> list[weights_io.ArraySpec]:
    specs = []
    for names, step in _names(plan):
        if isinstance(step, str):
            specs.append(weights_io.ArraySpec(step, arrays[step].shape, arrays[step].dtype))
            continue
        dtype = _dtype(step, arrays)
        for name, shape in zip(names, step.conv.shapes().values(), strict=True):
            specs.append(weights_io.ArraySpec(name, shape, dtype))
    return specs


def _dtype(block: FoundBlock, arrays: Mapping[str, LazyArray]) -> str:
    """Of the fused arrays: the kernels', float32 for a type that nothing is rounded to here."""
    kernel = next(key for leaf, key in block.names.items() if leaf.endswith(".weight"))
    stored = arrays[kernel].dtype
    return stored if stored in _FLOATS else "float32"


def _made(plan: list[_Step], arrays: Mapping[str, LazyArray], spares: Spares) -> Iterator[_Made]:
    """Every step in order, computed by threads that run a few ahead; small copies when it is due.

    To hand a small array to a thread takes longer than to read it.
    """
    ahead: deque[Future[_Made] | str] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for step in plan:
                while len(ahead) > _THREADS:
                    yield _result(ahead.popleft(), arrays, spares)
                if isinstance(step, str) and arrays[step].nbytes < _SMALL:
                    ahead.append(step)
                else:
                    ahead.append(pool.submit(_do, step, arrays, spares))
            while ahead:
                yield _result(ahead.popleft(), arrays, spares)
        finally:
            for waiting in ahead:
                if not isinstance(waiting, str):
                    waiting.cancel()


def _result(waiting: Future[_Made] | str, arrays: Mapping[str, LazyArray], spares: Spares) -> _Made:
    return _do(waiting, arrays, spares) if isinstance(waiting, str) else waiting.result()


def _do(step: _Step, arrays: Mapping[str, LazyArray], spares: Spares) -> _Made:
    if isinstance(step, str):
        return _Made(((step, arrays[step].read()),))
    dtype = np.dtype(_dtype(step, arrays))
    fused, check = fuse_found(step, arrays, dtype, empty=spares.empty)
    (names, _), *_ = _names([step])
    return _Made(tuple(zip(names, fused, strict=True)), check)


def fuse_found(
    block: FoundBlock,
    arrays: Mapping[str, LazyArray],
    dtype: Any,
    *,
    empty: Callable[[tuple[int, ...], Any], Array] = np.empty,
) -> tuple[FusedConv, BlockCheck]:
    """A block of a file, fused and checked against its branches; `empty` makes the two arrays."""
    parts = {leaf: arrays[key].read() for leaf, key in block.names.items()}
    name = block.prefix.rstrip(".") or block.member.name
    how: Any = {"eps": block.eps, "dtype": dtype, "empty": empty}
    fused = fuse_linear(name, block.linear, block.conv, parts, **how)
    return fused, check_linear(name, block.linear, block.conv, parts, fused, eps=block.eps)


def _watched(
    made: Iterator[_Made],
    total: int,
    checks: list[BlockCheck],
    progress: Progress | None,
    spares: Spares,
) -> Iterator[Array]:
    """The arrays, stopping at the first block that fails its check.

    Whoever asks for the next one has written the one before.
    """
    done = 0
    for part in made:
        if part.check is not None:
            checks.append(part.check)
            part.check.raise_if_bad()
            done += 1
            if progress is not None:
                progress(part.check.layer, done, total)
        for _, array in part.arrays:
            yield array
            if part.check is not None:
                spares.take_back(array)


def holds_modules(
    path: Path, weights: WhichWeights = "model", archive: weights_io.Archive | None = None
) -> bool:
    """Whether a file that is no RepVGG by any known names holds blocks of the family.

    Also those that cannot be fused: `convert_modules` says why, and what they lack.

    Raises
    ------
    WeightsFileError
        If the file is broken or hostile, or of a kind that is not read.
    """
    try:
        with open_checkpoint(path, weights=weights, archive=archive) as checkpoint:
            return not checkpoint.is_network and holds_blocks(checkpoint.arrays)
    except CheckpointError:
        return False
