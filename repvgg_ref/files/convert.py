"""The main job: a training-time checkpoint in, the exactly fused model out, one block at a time.

Blocks are read, fused, checked and written independently of each other, so memory holds a few
blocks and never the network, and threads work ahead of the writer.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from math import prod
from mmap import mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np

import weights_io
from repvgg_ref.arrays import Array, require_finite
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.selfcheck import BlockCheck, check_block, worst
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError, NotFusibleError
from repvgg_ref.files.checkpoint import open_checkpoint, require_complete
from repvgg_ref.files.identify import Shape
from repvgg_ref.files.lazy_params import LazyParams, is_counter
from repvgg_ref.files.lint import activation_findings
from repvgg_ref.files.metadata import describe, read_eps
from repvgg_ref.files.onnx import OPSET, write_onnx
from repvgg_ref.files.suffixes import require_suffix
from repvgg_ref.files.unfolded_heads import deploy_layout, kept_as_trained
from repvgg_ref.files.wrappers import WhichWeights
from repvgg_ref.models.about import Assumed
from repvgg_ref.models.arguments import floating_dtype, working_dtype
from repvgg_ref.models.geometry import Geometry, geometry_of, said_geometry
from repvgg_ref.models.graph import Network, Node
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Block, Form
from weights_io.writers.write import Container

Format = Literal["npz", "safetensors", "pth", "onnx"]
FORMATS: tuple[Format, ...] = ("npz", "safetensors", "pth", "onnx")
_SUFFIXES: Mapping[str, Format] = {f".{kind}": kind for kind in FORMATS} | {".pt": "pth"}

# Called with the layer just done, how many are done, and how many there are.
Progress = Callable[[str, int, int], None]

_THREADS = min(4, os.cpu_count() or 1)
# Taps of the blocks that are computed or wait to be written; a larger block is alone.
_TAPS_AHEAD = 1 << 24


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. `self_check` is None for a file that was fused already."""

    model: str
    dialect: str
    container: str
    form: str
    tensors: int
    out: Path
    format: Format
    self_check: BlockCheck | None
    notes: tuple[str, ...]
    eps: float
    dtype: str
    opset: int | None
    assumed: Assumed = field(default_factory=Assumed)
    geometry: Geometry = field(default_factory=Geometry)


@dataclass(frozen=True)
class _Part:
    """The written arrays of one block, or of the head, how its check went, what may go wrong."""

    layer: str
    arrays: dict[str, Array]
    check: BlockCheck | None
    risks: tuple[str, ...] = ()


def convert(
    path: str | Path,
    out: str | Path | None = None,
    *,
    model: str = "auto",
    eps: float | None = None,
    to: Format | None = None,
    weights: WhichWeights = "model",
    block: str = "auto",
    strides: Mapping[str, int] | None = None,
    dilations: Mapping[str, int] | None = None,
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    dtype: Any = None,
    opset: int | None = None,
    progress: Progress | None = None,
    archive: weights_io.Archive | None = None,
) -> Conversion:
    """Fuse the checkpoint at `path` in float64, round once, check, and write the deploy form.

    Parameters
    ----------
    path : str or Path
        Any supported container and dialect. A fused file is rewritten in the asked format.
    out : str or Path, optional
        Default ``<path>-deploy.npz`` beside it; the suffix says the format unless `to` does.
    model, eps, weights, block, strides, dilations
        As for `load`.
    to : str, optional
        "npz", "safetensors", "pth" or "onnx", where the suffix of `out` does not say it.
    batch, size : int, or (height, width) for `size`; optional
        Fixed extents of an ONNX file's input, dynamic by default; other formats have no input.
    dtype : numpy dtype, optional
        float16, float32 or float64, to which every value is rounded once. Default float32, or
        float64 for what is stored so.
    opset : int, optional
        Of an ONNX file; default `files.onnx.OPSET`.
    progress : callable, optional
        ``progress(layer, next(done), total)`` after every block.
    archive : weights_io.Archive, optional
        The file at `path`, if it is open already; it is left open.

    Raises
    ------
    WeightsFileError, CheckpointError, NotFusibleError
        If the file cannot be read, is not exactly one RepVGG, holds NaN or infinity, or a value is
        beyond the range of `dtype`.
    SuffixError
        If the name of `out` says another format than `to`.
    SelfCheckError
        If a fused block differs from its branches by more than rounding. Nothing is written.
    """
    path = Path(path)
    target, kind = target_of(path, out, to)
    if kind != "onnx" and any(each is not None for each in (batch, size, opset)):
        raise CheckpointError(
            "only an ONNX file has an input of fixed extents, and an opset",
            got=f"format {kind}",
            wanted="format onnx",
        )
    said = said_geometry(strides, dilations)
    how: Any = {
        "model": model,
        "weights": weights,
        "block": block,
        "said": said,
        "archive": archive,
    }
    with open_checkpoint(path, **how) as checkpoint:
        arch = require_complete(checkpoint)
        assert checkpoint.dialect is not None
        if checkpoint.form == "train":
            arch.require_fusible()
        params = checkpoint.params(eps=eps)
        last = [name for name in params if name.endswith("weight")][-1]
        stored = checkpoint.stored_dtype(last)
        dtype = working_dtype(stored) if dtype is None else floating_dtype(dtype, "convert")
        checks: list[BlockCheck] = []
        risks: list[str] = []
        assumed, eps = checkpoint.assumed(eps), checkpoint.eps(eps)
        # Official code fuses a PSPNet's backbone alone, and loads such a file only.
        is_official = kind == "pth" and arch.is_dense and checkpoint.form == "train"
        kept = kept_as_trained(arch) if is_official else []
        layout = deploy_layout(arch, kept)
        made = _parts(arch, checkpoint.form, params, eps, dtype, kept)
        parts = _watched(made, arch, checks, risks, progress)
        # With what eps a fused file was fused, only the file can say.
        fused_with = eps if checkpoint.form == "train" else read_eps(checkpoint.metadata)
        metadata = describe(arch, "deploy", fused_with, checkpoint.about(), assumed)
        inputs = {"batch": batch, "size": size} | ({} if opset is None else {"opset": opset})
        _write(target, kind, arch, layout, parts, dtype, metadata | {"source": path.name}, inputs)
        return Conversion(
            model=arch.name,
            dialect=checkpoint.dialect.name,
            container=checkpoint.container,
            form=checkpoint.form,
            tensors=len(layout),
            out=target,
            format=kind,
            self_check=worst(checks) if checks else None,
            notes=(*checkpoint.notes, *risks),
            eps=eps,
            assumed=assumed,
            geometry=geometry_of(arch),
            dtype=dtype.name,
            opset=(opset or OPSET) if kind == "onnx" else None,
        )


def target_of(path: Path, out: str | Path | None, to: Format | None) -> tuple[Path, Format]:
    """Where to write and in which format."""
    if out is None:
        kind = to or "npz"
        path = path if path.name.strip(".") else path.resolve()  # a folder can be called "."
        return path.with_name(f"{path.stem}-deploy.{kind}"), kind
    target = Path(out)
    chosen = to or _SUFFIXES.get(target.suffix.lower())
    if chosen is None:
        raise CheckpointError(
            "the suffix of the output says nothing about its format",
            got=repr(target.name),
            wanted="a name ending in " + ", ".join(f".{kind}" for kind in FORMATS),
            advice="or name the format with --to",
        )
    require_suffix(target, chosen)
    if target.exists() and path.exists() and target.samefile(path):
        raise CheckpointError(
            "the output would overwrite the input", got=str(target), wanted="another --out"
        )
    if not target.parent.is_dir():
        raise CheckpointError(
            "the output's folder does not exist",
            got=str(target.parent),
            wanted="an existing folder",
        )
    return target, chosen


def _parts(
    arch: Network, form: str, params: LazyParams, eps: float, dtype: Any, kept: Sequence[Node]
) -> Iterator[_Part]:
    """Every block in order, computed by threads that run a few ahead; then what is `kept`."""
    unfused = {node.name for node in kept}
    make = _fused_part if form == "train" else _copied_part
    of_block = _names_by_block(arch, "train" if form == "train" else "deploy")
    ahead: deque[tuple[int, Future[_Part]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for spec in (spec for spec in arch.blocks if spec.name not in unfused):
                taps = prod(fused_conv(spec).shapes()["fused.weight"])
                while ahead and (
                    len(ahead) > _THREADS or taps + sum(each for each, _ in ahead) > _TAPS_AHEAD
                ):
                    yield ahead.popleft()[1].result()
                ahead.append(
                    (taps, pool.submit(make, spec, of_block[spec.name], params, eps, dtype))
                )
            while ahead:
                yield ahead.popleft()[1].result()
        finally:
            for _, future in ahead:
                future.cancel()
    for node in kept:
        names = [f"{node.name}.{part}" for part in node.op.shapes("train")]
        if names:
            arrays = {name: _rounded(params, name, params[name], dtype) for name in names}
            yield _Part(node.name, arrays, None)
    for node in arch.evaluated:
        names = [f"{node.name}.{part}" for part in node.op.shapes("deploy")]
        if isinstance(node.op, NormLinear) and form == "train":
            arrays = node.op.folded(node.name, params, eps=eps, dtype=dtype)
            check = node.op.check(node.name, params, arrays, eps=eps)
            yield _Part(node.name, arrays, check)
        elif names and not isinstance(node.op, Block):
            arrays = {name: _rounded(params, name, params[name], dtype) for name in names}
            yield _Part(node.name, arrays, None)


def _names_by_block(arch: Network, form: Form) -> dict[str, list[str]]:
    """The names of each block's arrays."""
    return {
        node.name: [f"{node.name}.{part}" for part in node.op.shapes(form)]
        for node in arch.evaluated
        if isinstance(node.op, Block)
    }


def _fused_part(
    spec: BlockSpec, names: list[str], params: LazyParams, eps: float, dtype: Any
) -> _Part:
    block = {name: params[name] for name in names}
    fused = fuse_block(spec, block, eps=eps, dtype=dtype, empty=_pages)
    check = check_block(spec, block, fused, eps=eps)
    arrays = {f"{spec.name}.fused.weight": fused.weight, f"{spec.name}.fused.bias": fused.bias}
    for name, array in block.items():
        if ".se." in name:
            arrays[name] = _rounded(params, name, array, dtype)
    risks = activation_findings(spec, block) if dtype == np.float16 else ()
    return _Part(spec.name, arrays, check, tuple(f"{spec.name}: {r.message}" for r in risks))


def _pages(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array in pages of its own, which go back to the system with it.

    What threads allocate and free by the ordinary way, the C library keeps for them.
    """
    length = prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap(-1, length), dtype).reshape(shape)


def _copied_part(
    spec: BlockSpec, names: list[str], params: LazyParams, eps: float, dtype: Any
) -> _Part:
    arrays = {name: _rounded(params, name, params[name], dtype) for name in names}
    return _Part(spec.name, arrays, None)


def _rounded(params: LazyParams, name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` as it is written; refused if it is not finite, or would not be."""
    if is_counter(name):
        return array
    require_finite(array, f"{params.key(name)} holds NaN or infinity", error=CheckpointError)
    with np.errstate(over="ignore", under="ignore"):  # looked for here
        rounded = array.astype(dtype, copy=False)
    if not np.isfinite(rounded).all():
        raise NotFusibleError(
            f"{params.key(name)}: a value exceeds the range of {dtype}",
            got=f"{np.abs(array).max():g}",
            wanted=f"at most {np.finfo(dtype).max:g}",
            advice="write a wider type",
        )
    return rounded


def _watched(
    parts: Iterator[_Part],
    arch: Network,
    checks: list[BlockCheck],
    risks: list[str],
    progress: Progress | None,
) -> Iterator[tuple[str, Array]]:
    """The arrays of `parts`, stopping at the first block that fails its check."""
    total = sum(bool(node.op.shapes("deploy")) for node in arch.evaluated)
    done = count(1)
    for part in parts:  # `enumerate` would hold a part while the next one is waited for
        if part.check is not None:
            checks.append(part.check)
            part.check.raise_if_bad()
        risks.extend(part.risks)
        yield from part.arrays.items()
        layer = part.layer
        del part
        if progress is not None:
            progress(layer, next(done), total)


def _write(
    target: Path,
    kind: Format,
    arch: Network,
    layout: Mapping[str, tuple[str, Shape]],
    arrays: Iterator[tuple[str, Array]],
    dtype: Any,
    metadata: Mapping[str, str],
    inputs: Mapping[str, Any],
) -> None:
    if kind == "onnx":
        write_onnx(target, arch, dict(arrays), metadata=metadata, **inputs)
        return
    specs = [
        weights_io.ArraySpec(official, shape, "int64" if is_counter(name) else dtype.name)
        for name, (official, shape) in layout.items()
    ]
    container: Container = "torch-zip" if kind == "pth" else kind
    weights_io.write_weights(
        target,
        specs,
        (array for _, array in arrays),
        container=container,
        metadata=metadata,
    )
