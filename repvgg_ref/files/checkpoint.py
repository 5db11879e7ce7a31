"""Model <-> named arrays in a file, of any container and dialect that is known.

A checkpoint is a container (zip, pickle stream, safetensors, npz) around a wrapper (``state_dict``,
``model``, ``ema`` or nothing) around prefixed names (``module.``) in a dialect. Each layer is found
by its content; what cannot be explained is an error that lists it, never a partial load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import weights_io
from repvgg_ref.blocks.catalogue import KINDS, RESIDUAL_REORG, require_block
from repvgg_ref.errors import CheckpointError, ReportedError
from repvgg_ref.files.attachments import without_attachments
from repvgg_ref.files.deployed import foreign
from repvgg_ref.files.dialects import plain_shape, recognise
from repvgg_ref.files.found import Found
from repvgg_ref.files.graphs import identify_graph
from repvgg_ref.files.heads import find_head, fold_head
from repvgg_ref.files.identify import (
    UNSAID,
    MissingArrayError,
    Shape,
    fitting_kinds,
    form_of,
    identify,
    looks_the_same,
)
from repvgg_ref.files.lazy_params import is_counter
from repvgg_ref.files.metadata import describe, is_ours, read_geometry
from repvgg_ref.files.onnx import OPSET, write_onnx
from repvgg_ref.files.opened import Checkpoint
from repvgg_ref.files.prefixes import take_network
from repvgg_ref.files.recorded import records_of
from repvgg_ref.files.reorganised import identify_reorganised, is_reorganised
from repvgg_ref.files.told_networks import require_as_told, told_geometry, told_graph
from repvgg_ref.files.unfolded_heads import fold_heads
from repvgg_ref.files.wrappers import WhichWeights, listed, one_of_shards, select
from repvgg_ref.models.arguments import file_path, floating_dtype
from repvgg_ref.models.geometry import Geometry, geometry_of, said_geometry, with_geometry
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import official_names, require_params
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.models.parameters import param_shapes
from weights_io.writers.write import Container

CONTAINERS: Mapping[str, Container] = {
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".pth": "torch-zip",
    ".pt": "torch-zip",
}
ONNX = ".onnx"


def load(
    path: str | Path,
    model: str = "auto",
    eps: float | None = None,
    dtype: Any = None,
    weights: WhichWeights = "model",
    block: str = "auto",
    strides: Mapping[str, int] | None = None,
    dilations: Mapping[str, int] | None = None,
) -> Model:
    """Read a checkpoint of any supported container and dialect, without PyTorch.

    Parameters
    ----------
    path : str or Path
    model : str
        "auto", "custom", or an official name that the shapes must have.
    eps : float, optional
        Batch norm's eps. Default 1e-5, or what `save` wrote into the file; torch checkpoints do
        not say it. Official, timm: 1e-5. Keras ports, YOLOv6: 1e-3.
    dtype : numpy dtype, optional
        Of real numbers; default float32, or float64 for what is stored so.
    weights : str
        Which of a training checkpoint's sets to take: "model", "ema", or the name of an entry, or
        of the prefix of one of several networks.
    block : str
        "auto" tells the kind of block from the keys; else a name in `blocks.catalogue.KINDS`.
    strides, dilations : mapping, optional
        Of blocks that are not as in the official network: ``{"stage4.0": 1}``. What neither this
        nor the file says is taken as there, and stands in `Model.assumed`.

    Raises
    ------
    WeightsFileError
        If the file is broken or hostile, or of a kind that is not read.
    CheckpointError
        If its arrays are not exactly a RepVGG: missing and unexpected names are listed.
    ReportedError
        If `path` is no path, or another argument is none of its values.
    """
    dtype = None if dtype is None else floating_dtype(dtype, "load")
    said = said_geometry(strides, dilations)
    with open_checkpoint(path, model=model, weights=weights, block=block, said=said) as checkpoint:
        arch = require_complete(checkpoint)
        form: Form = "deploy" if checkpoint.form == "deploy" else "train"
        return Model(
            arch,
            form,
            dict(checkpoint.params(dtype, eps=eps)),
            checkpoint.eps(eps),
            notes=checkpoint.notes,
            about=checkpoint.about(),
            assumed=checkpoint.assumed(eps),
        )


def save(
    model: Model,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
) -> None:
    """Write `model` under the official names; the suffix says how.

    ``.npz``, ``.safetensors`` and ``.pth`` keep the form it has; ``.onnx`` holds the deploy form,
    into which a model in train form is fused, in operators of version `opset` (default 17).

    Raises
    ------
    ReportedError
        If `model` or `path` is of another type.
    CheckpointError
        If the suffix is none of these, or is not ``.onnx`` and there is an `opset`.
    """
    if not isinstance(model, Model):
        raise ReportedError("save takes a Model", got=type(model).__name__, wanted="load or build")
    require_params(model.arch, model.form, model.params)
    path = file_path(path)
    container = None if path.suffix.lower() == ONNX else container_for(path)
    stored = fuse(model) if container is None and model.form == "train" else model
    told = describe(model.arch, stored.form, model.eps, model.about, model.assumed)
    told |= dict(metadata or {})
    if container is None:
        write_onnx(path, model.arch, stored.params, metadata=told, opset=opset or OPSET)
        return
    if opset is not None:
        raise CheckpointError("only an ONNX file has an opset", got=path.name, wanted="x.onnx")
    weights_io.save_weights(
        path,
        model.state_dict(),
        container=container,
        metadata=told,
    )


def container_for(path: Path) -> Container:
    """The container that a file name's suffix asks for."""
    if path.suffix.lower() not in CONTAINERS:
        raise CheckpointError(
            "the suffix of the output says nothing about its format",
            got=repr(path.name),
            wanted="one of " + ", ".join((*CONTAINERS, ONNX)),
        )
    return CONTAINERS[path.suffix.lower()]


@contextmanager
def open_checkpoint(
    path: str | Path,
    *,
    model: str = "auto",
    weights: WhichWeights = "model",
    block: str = "auto",
    said: Geometry = UNSAID,
    archive: weights_io.Archive | None = None,
) -> Iterator[Checkpoint]:
    """Open a file, or take its open `archive`, and understand its names and shapes, no array read.

    What is wrong with the network is recorded in the `Checkpoint` for `inspect` to show;
    `require_complete` turns it into an error.
    """
    path = file_path(path)
    if not isinstance(weights, str):
        raise ReportedError(
            "there are no such weights",
            got=repr(weights),
            wanted="model, ema, or the name of an entry",
        )
    if block != "auto":
        require_block(block)
    with nullcontext(archive) if archive else weights_io.open_weights(path) as archive:
        notes: list[str] = [*archive.notes]
        arrays, beside = take_network(select(archive, weights, notes), notes)
        arrays = without_attachments(arrays, notes)
        checkpoint = Checkpoint(path, archive.container, archive.metadata, arrays, notes)
        checkpoint.beside = beside
        try:
            stated = read_geometry(archive.metadata)
            notes += stated.overruled_by(said)
            checkpoint.said = stated | said
            _understand(checkpoint, model, block)
            notes += _overruled(checkpoint, block)
            if checkpoint.arch is not None and records_of(checkpoint.arrays):
                require_as_told(checkpoint.arch, checkpoint.ours, said)
        except MissingArrayError as error:
            missing = _theirs(checkpoint, error.name)
            checkpoint.problem = MissingArrayError(missing, error.held, checkpoint.unexpected)
            checkpoint.missing = [missing]
        except CheckpointError as error:
            checkpoint.problem = error
        whole = not (checkpoint.problem or checkpoint.missing) and checkpoint.arch
        if not (whole and whole.num_classes):
            checkpoint.problem = one_of_shards(path.name, len(arrays)) or checkpoint.problem
        yield checkpoint


def _overruled(checkpoint: Checkpoint, block: str) -> list[str]:
    """Where the asked kind of block is another than our metadata says, a line."""
    said = checkpoint.metadata.get("block") if is_ours(checkpoint.metadata) else None
    if checkpoint.form != "train" or said not in KINDS or block in ("auto", said):
        return []
    return [f"the file's metadata says {said} blocks; {block} is taken, as you say"]


def require_complete(checkpoint: Checkpoint) -> Network:
    """The architecture, or the error that says why this file is not exactly one network."""
    if checkpoint.problem is not None:
        raise checkpoint.problem
    if checkpoint.missing or checkpoint.unexpected:
        advice = "nothing was loaded; see `repvgg-ref inspect`"
        if checkpoint.fits:
            advice = f"with --block {' or '.join(checkpoint.fits)} it is exactly one"
        raise CheckpointError(
            f"{checkpoint.path.name} is not exactly a {_name(checkpoint)}",
            got=f"{len(checkpoint.missing)} missing: {listed(checkpoint.missing)}"
            f" ; {len(checkpoint.unexpected)} unexpected: {listed(checkpoint.unexpected)}",
            advice=advice,
        )
    assert checkpoint.arch is not None
    return checkpoint.arch


def _name(checkpoint: Checkpoint) -> str:
    name = checkpoint.arch.name if checkpoint.arch else "RepVGG"
    return f"{name} in {checkpoint.form} form"


def _understand(checkpoint: Checkpoint, model: str, block: str) -> None:
    """Fill in dialect, form, architecture, and what is missing or unexpected."""
    if is_reorganised(checkpoint.arrays) or block == RESIDUAL_REORG:
        _understand_reorganised(checkpoint, model, block)
        return
    recognised = recognise(checkpoint.arrays)
    if recognised is None:
        _understand_graph(checkpoint, model)
        return
    dialect, canonical = recognised
    checkpoint.dialect, checkpoint.canonical = dialect, canonical
    find_head(checkpoint.arrays, checkpoint.beside, canonical, checkpoint.notes)
    checkpoint.form = form_of(dict.fromkeys(canonical.values()))
    _take_told(checkpoint, told_geometry(checkpoint.ours))
    checkpoint.unexpected = [name for name in checkpoint.arrays if name not in canonical]
    if checkpoint.form not in ("train", "deploy"):
        raise CheckpointError(
            f"{checkpoint.path.name} mixes fused kernels with training branches"
            if checkpoint.form == "mixed"
            else f"{checkpoint.path.name} holds neither branches nor fused kernels",
            got=f"{len(canonical)} arrays in the {dialect.name} dialect",
            wanted="a train form or a deploy form, not both",
        )
    shapes = {
        ours: plain_shape(ours, checkpoint.arrays[theirs].shape, dialect)
        for theirs, ours in canonical.items()
    }
    form: Form = "train" if checkpoint.form == "train" else "deploy"
    kind = _kind_of(checkpoint) if block == "auto" else block
    arch = identify(
        shapes,
        form,
        se="after_relu" if dialect.se == "after_relu" else "before_relu",
        model=model,
        block=kind,
        said=checkpoint.said,
    )
    checkpoint.arch = arch
    if kind == "auto" and (other := looks_the_same(arch.blocks[0].kind)):
        checkpoint.notes.append(other)
    wanted = param_shapes(arch, form)
    theirs_of = dialect.names(wanted)
    checkpoint.missing = [
        theirs_of[name] for name in wanted if name not in shapes and not is_counter(name)
    ]
    checkpoint.unexpected += [theirs for theirs, ours in canonical.items() if ours not in wanted]
    is_whole = not (checkpoint.missing or checkpoint.unexpected)
    if form == "train" and not is_whole and len(canonical) == len(checkpoint.arrays):
        checkpoint.fits = fitting_kinds(arch, shapes)
    _require_shapes(checkpoint, shapes, wanted)


def _understand_graph(checkpoint: Checkpoint, model: str) -> None:
    """The same for a network whose blocks are in no stage."""
    fold_heads(checkpoint)
    shapes = {name: array.shape for name, array in checkpoint.arrays.items()}
    found = identify_graph(shapes, model, checkpoint.said, form=checkpoint.metadata.get("form"))
    if found is None:
        raise foreign(checkpoint.path, checkpoint.arrays, checkpoint.metadata)
    if found.form == "deploy" and not found.network.is_dense:
        found = _with_folded_head(checkpoint, found)
        shapes = {name: array.shape for name, array in checkpoint.arrays.items()}
    _take(checkpoint, found, shapes)
    if found.network.is_dense and model != "auto":  # its name says its dilations
        checkpoint.said = geometry_of(found.network) | checkpoint.said


def _with_folded_head(checkpoint: Checkpoint, found: Found) -> Found:
    """The same where the batch norm of the head was left when the blocks were fused."""
    head = found.network.head
    arrays, canonical = fold_head(checkpoint.arrays, found.canonical, head, checkpoint.eps_in_use)
    if canonical.keys() == found.canonical.keys():
        return found
    checkpoint.arrays, checkpoint.norms_left = arrays, True
    checkpoint.notes.append("the blocks are fused; the head kept its batch norm: folded")
    return found._replace(canonical=canonical)


def _take_told(checkpoint: Checkpoint, told: Geometry) -> None:
    """Believe what the modules say of strides and dilations, but for what the user says."""
    checkpoint.notes += told.overruled_by(checkpoint.said, "its module")
    checkpoint.said = told | checkpoint.said


def _retell(checkpoint: Checkpoint, network: Network) -> None:
    """The same of a network that was known without them."""
    _take_told(checkpoint, told_graph(checkpoint.ours, network))
    if checkpoint.said != UNSAID:
        checkpoint.arch = with_geometry(network, checkpoint.said)


def _understand_reorganised(checkpoint: Checkpoint, model: str, block: str) -> None:
    """The same for a RepVGG whose layers are in residual blocks."""
    if block not in ("auto", RESIDUAL_REORG):
        raise CheckpointError(
            f"{checkpoint.path.name} has other blocks",
            got=f"keys of {RESIDUAL_REORG}",
            wanted=block,
            advice="leave --block auto",
        )
    shapes = {name: array.shape for name, array in checkpoint.arrays.items()}
    _take(checkpoint, identify_reorganised(shapes, model, checkpoint.said), shapes)


def _take(checkpoint: Checkpoint, found: Found, shapes: Mapping[str, Shape]) -> None:
    """The network that was found, and what of the file is not its."""
    checkpoint.arch, checkpoint.form, checkpoint.canonical, checkpoint.dialect = found
    official, held = official_names(found.network, found.form), set(found.canonical.values())
    checkpoint.missing = [n for o, n in official.items() if o not in held and not is_counter(n)]
    checkpoint.unexpected = [name for name in shapes if name not in found.canonical]
    ours = {found.canonical[theirs]: shapes[theirs] for theirs in found.canonical}
    _require_shapes(checkpoint, ours, param_shapes(found.network, found.form))
    _retell(checkpoint, found.network)


def _theirs(checkpoint: Checkpoint, name: str) -> str:
    """What the file would call an array of this canonical name."""
    dialect = checkpoint.dialect
    return dialect.names([*checkpoint.canonical.values(), name])[name] if dialect else name


def _kind_of(checkpoint: Checkpoint) -> str:
    """The kind of block that our metadata, the dialect or the fused key says; else "auto"."""
    dialect = checkpoint.dialect
    assert dialect is not None
    said = checkpoint.metadata.get("block") if is_ours(checkpoint.metadata) else None
    if said in KINDS and KINDS[str(said)].keys:
        return str(said)
    if dialect.name == "official-bn":
        return "plain"
    fused = next((t for t, ours in checkpoint.canonical.items() if ".fused." in ours), None)
    if fused is None or dialect.name not in ("official", "plus"):
        return "auto"
    return next((n for n, k in KINDS.items() if k.keys and f".{k.fused}." in fused), "auto")


def _require_shapes(
    checkpoint: Checkpoint, shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]
) -> None:
    theirs = {ours: name for name, ours in checkpoint.canonical.items()}
    for name, shape in shapes.items():
        if name in wanted and shape != wanted[name]:
            raise CheckpointError(
                f"{theirs[name]} has the wrong shape", got=shape, wanted=wanted[name]
            )
        dtype = checkpoint.arrays[theirs[name]].dtype
        if not is_counter(name) and "float" not in dtype:
            raise CheckpointError(
                f"{theirs[name]} does not hold real numbers", got=dtype, wanted="a float type"
            )
