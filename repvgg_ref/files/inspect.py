"""What a weights file holds, without trusting it and without needing it to be whole.

The names and shapes come from `open_checkpoint`; the values are then read one layer at a time, so
a file of any size is inspected in the memory of its largest block. What the values are judged by
stands in `repvgg_ref.files.lint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.unfuse import what_is_lost
from repvgg_ref.errors import CheckpointError, NotFusibleError
from repvgg_ref.files import lint
from repvgg_ref.files.checkpoint import open_checkpoint
from repvgg_ref.files.identify import closest_official
from repvgg_ref.files.lint import Finding
from repvgg_ref.files.metadata import assumed_eps, is_ours, read_eps
from repvgg_ref.files.modules import Blocks, FoundBlock, blocks_of
from repvgg_ref.files.opened import Checkpoint
from repvgg_ref.files.told_networks import told_eps
from repvgg_ref.files.wrappers import WhichWeights
from repvgg_ref.models.about import About, Assumed
from repvgg_ref.models.architectures import NAMES
from repvgg_ref.models.geometry import said_geometry, unusual
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.network import DEFAULT_EPS
from repvgg_ref.models.parameters import param_shapes

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Inspection:
    """What was found; `model` and `dialect` are None where the file could not be told.

    `model` is an official name, or "custom" for a RepVGG of other widths or class counts.
    `missing` and `unexpected` are in the file's own names. `blocks` are those of the family in a
    file that is no RepVGG, whose form is then "modules"; `block` is the kind that a RepVGG in train
    form is built of, None where fusion left none.
    """

    path: Path
    container: str
    dialect: str | None
    form: str
    model: str | None
    tensors: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    findings: tuple[Finding, ...]
    assumed: Assumed = field(default_factory=Assumed)
    metadata: Mapping[str, str] = field(default_factory=dict)
    blocks: tuple[FoundBlock, ...] = ()
    block: str | None = None


def inspect_file(
    path: str | Path,
    *,
    eps: float | None = None,
    weights: WhichWeights = "model",
    block: str = "auto",
    strides: Mapping[str, int] | None = None,
    dilations: Mapping[str, int] | None = None,
) -> Inspection:
    """Look at a checkpoint of any supported container and dialect, complete or not.

    Parameters
    ----------
    path : str or Path
    eps : float, optional
        As for `load`, for the questions that depend on it (what the fused kernels look like).
    weights : {"model", "ema"}
        Which of a training checkpoint's two sets to look at.
    block, strides, dilations
        As for `load`.

    Raises
    ------
    WeightsFileError
        If the file is broken or hostile, or of a kind that is not read.
    CheckpointError
        If it holds no mapping of named arrays at all, or no EMA weights and they are asked for.
    """
    said = said_geometry(strides, dilations)
    with open_checkpoint(path, weights=weights, block=block, said=said) as checkpoint:
        try:
            held, assumed = checkpoint.eps(eps), checkpoint.assumed(eps)
        except CheckpointError:  # damaged metadata is among the findings
            held, assumed = DEFAULT_EPS, Assumed()
        blocks = _blocks(checkpoint, eps)
        if blocks.found:
            return _of_modules(checkpoint, blocks)
        return Inspection(
            path=checkpoint.path,
            container=checkpoint.container,
            dialect=checkpoint.dialect.name if checkpoint.dialect else None,
            form=checkpoint.form,
            model=checkpoint.arch.name if checkpoint.arch else None,
            tensors=len(checkpoint.arrays),
            missing=tuple(checkpoint.missing),
            unexpected=tuple(checkpoint.unexpected),
            findings=(*_notes(blocks), *_findings(checkpoint, held)),
            assumed=assumed,
            metadata=checkpoint.metadata,
            block=_kind(checkpoint),
        )


def _kind(checkpoint: Checkpoint) -> str | None:
    """What its blocks are called, where they are still there and the arrays are theirs."""
    if checkpoint.arch is None or checkpoint.form == "deploy" or checkpoint.fits:
        return None
    return " and ".join(checkpoint.arch.kinds)


def _blocks(checkpoint: Checkpoint, eps: float | None) -> Blocks:
    """What a file that is no RepVGG by any known names holds of the family."""
    if checkpoint.is_network:
        return Blocks()
    return blocks_of(checkpoint.arrays, eps=eps)


def _of_modules(checkpoint: Checkpoint, blocks: Blocks) -> Inspection:
    findings = [Finding("info", None, note) for note in checkpoint.notes]
    findings += _notes(blocks)
    for name, lazy in checkpoint.arrays.items():
        findings += lint.not_finite(None, name, lazy.read())
    return Inspection(
        path=checkpoint.path,
        container=checkpoint.container,
        dialect=None,
        form="modules",
        model=None,
        tensors=len(checkpoint.arrays),
        missing=(),
        unexpected=(),
        findings=tuple(findings),
        metadata=checkpoint.metadata,
        blocks=tuple(blocks.found),
    )


def _notes(blocks: Blocks) -> list[Finding]:
    """What is assumed of blocks, and which are left as they are."""
    return [Finding("info", None, note) for note in blocks.notes]


def _findings(checkpoint: Checkpoint, eps: float) -> Iterator[Finding]:
    """Whole file first (what it is), then layer by layer, then what the layers add up to."""
    yield from _about_the_file(checkpoint)
    if checkpoint.arch is None or checkpoint.problem is not None:
        for name, lazy in checkpoint.arrays.items():
            yield from lint.not_finite(None, name, lazy.read())
        return
    yield from _about_the_network(checkpoint, checkpoint.arch)
    summary = lint.Summary(eps, told=_is_told(checkpoint))
    theirs = {ours: name for name, ours in checkpoint.canonical.items()}
    specs = {spec.name: spec for spec in checkpoint.arch.blocks}
    for layer, arrays in _layers(checkpoint, checkpoint.arch):
        for ours, array in arrays.items():
            yield from lint.not_finite(layer, theirs[ours], array)
        if layer in specs:
            yield from lint.block_findings(specs[layer], checkpoint.form, arrays, summary)
    yield from summary.findings()


def _is_told(checkpoint: Checkpoint) -> bool:
    """Whether modules, or metadata of ours, say eps."""
    if any(array.module is not None for array in checkpoint.arrays.values()):
        return True
    try:
        return read_eps(checkpoint.metadata) is not None and not assumed_eps(checkpoint.metadata)
    except CheckpointError:  # told as an error of its own
        return False


def _layers(checkpoint: Checkpoint, arch: Network) -> Iterator[tuple[str, dict[str, Array]]]:
    """Each layer's name and the arrays of it that are there, read when its turn comes."""
    form: Form = "deploy" if checkpoint.form == "deploy" else "train"
    present = set(checkpoint.canonical.values())
    params = checkpoint.params()
    heads = tuple(head.name for head in arch.aux_heads)
    trained = tuple(node.name for node in arch.nodes if node.training_only)
    names: dict[str, list[str]] = {layer: [] for layer in (*arch.layer_names, *heads, *trained)}
    for name in param_shapes(arch, form):
        if name in present:
            names[_owner(name, names)].append(name)
    for layer, own in names.items():
        yield layer, {name: params[name] for name in own}


def _owner(name: str, layers: Mapping[str, object]) -> str:
    """The layer that an array of this name belongs to."""
    words = name.split(".")
    starts = (".".join(words[:count]) for count in range(1, len(words)))
    return next(start for start in starts if start in layers)


def _about_the_file(checkpoint: Checkpoint) -> Iterator[Finding]:
    for note in checkpoint.notes:
        yield Finding("info", None, note)
    if checkpoint.problem is not None:
        yield Finding("error", None, str(checkpoint.problem))
    if checkpoint.missing or checkpoint.unexpected:
        yield Finding(
            "error",
            None,
            f"not exactly one network: {_counted(checkpoint)}; "
            "`load` and `convert` refuse the file"
            + (f"; with --block {' or '.join(checkpoint.fits)} it is one" * bool(checkpoint.fits)),
        )
    yield from _name_against_keys(checkpoint)
    yield from _about_metadata(checkpoint)


def _counted(checkpoint: Checkpoint) -> str:
    """How many arrays are missing, as far as that is known, and how many are unexpected."""
    missing, unexpected = len(checkpoint.missing), len(checkpoint.unexpected)
    if checkpoint.problem is None:
        return f"{missing} arrays are missing, {unexpected} are unexpected"
    least = f"at least {missing} missing, " if missing else ""
    return f"it cannot be told ({least}{unexpected} unexpected)"


def _about_metadata(checkpoint: Checkpoint) -> Iterator[Finding]:
    metadata = checkpoint.metadata
    try:
        eps = None if assumed_eps(metadata) else read_eps(metadata)
        if (told := _told_eps(checkpoint)) is not None:
            yield Finding("info", None, f"the file's modules say eps = {told:g}")
        about = checkpoint.about() if checkpoint.arch is not None else About()
    except CheckpointError as error:
        yield Finding("error", None, str(error))
        return
    said = [] if eps is None else [f"eps = {eps:g}"]
    if checkpoint.arch is not None:
        steps = unusual(checkpoint.arch).says
        told = bool({"strides", "dilations"} & metadata.keys())
        said += [f"{steps}, unlike the official networks"] if steps and told else []
    for text in filter(None, (*said, about.says)):
        yield Finding("info", None, f"the file's metadata says {text}")
    named = {"model": checkpoint.arch.name if checkpoint.arch else None, "form": checkpoint.form}
    for what, found in named.items():
        if is_ours(metadata) and metadata.get(what, found) not in (found, "custom"):
            yield Finding(
                "warning",
                None,
                f"the file's metadata says {what} {metadata[what][:40]!r}, its arrays say {found}",
            )


def _told_eps(checkpoint: Checkpoint) -> float | None:
    """What modules say of eps, where no metadata does."""
    return told_eps(checkpoint.ours) if read_eps(checkpoint.metadata) is None else None


def _name_against_keys(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Files are judged by their keys; a name that says otherwise has misled people before."""
    stem = checkpoint.path.stem.lower()
    other = {"train": "deploy", "deploy": "train"}.get(checkpoint.form)
    if other is not None and other in stem and checkpoint.form not in stem:
        yield Finding(
            "warning",
            None,
            f"the file's name says '{other}', but its arrays are the {checkpoint.form} form",
        )
    said = max((name for name in NAMES if name.lower() in stem), key=len, default=None)
    if checkpoint.arch is not None and said not in (None, checkpoint.arch.name):
        found = checkpoint.arch.name
        yield Finding("warning", None, f"the file's name says {said}, but its arrays are {found}")


def _about_the_network(checkpoint: Checkpoint, arch: Network) -> Iterator[Finding]:
    if arch.name == "custom":
        yield Finding("info", None, _custom(arch))
    stored = {array.dtype for array in checkpoint.arrays.values()}
    for dtype in sorted(stored & {"float16", "bfloat16"}):
        yield Finding(
            "info",
            None,
            f"arrays are stored as {dtype}: fusion is exact for these values, "
            "but they are rounded already",
        )
    if not arch.is_fusible:
        yield Finding("warning", None, _unfusible(arch))
    if checkpoint.form == "train":
        yield from _counters(checkpoint.canonical)
    else:
        yield Finding("info", None, _untold(arch))


def _unfusible(arch: Network) -> str:
    """Why `convert` refuses the network."""
    try:
        arch.require_fusible()
    except NotFusibleError as error:
        return f"it cannot be fused: {error.what}"
    raise AssertionError("every block of it can be fused")


def _custom(arch: Network) -> str:
    official = closest_official(arch)
    heads = f"{arch.num_classes} classes and {arch.in_channels} input channels"
    if official is not None:
        return f"the blocks are those of {official}, with {heads}"
    widths = ", ".join(str(block.out_channels) for block in arch.blocks)
    return f"no official model has these blocks: {heads}, channels {widths}"


def _counters(canonical: Mapping[str, str]) -> Iterator[Finding]:
    """Batch norm's step counters, which old torch and MegEngine do not write."""
    names = list(canonical.values())
    norms = sum(name.endswith(".running_var") for name in names)
    counted = sum(name.endswith(_COUNTER) for name in names)
    if counted < norms:
        yield Finding(
            "info",
            None,
            f"{norms - counted} of {norms} batch norms lack {_COUNTER} "
            "(torch before 0.4.1, MegEngine); it counts steps only and is taken as 0",
        )


def _untold(arch: Network) -> str:
    """What a fused file cannot say, in one sentence."""
    blocks = what_is_lost(arch.blocks)
    told, free = sum(b.told for b in blocks), sum(b.free for b in blocks)
    return (
        f"fused: {told:,} numbers tell the sum of the branches; {free:,} more that training needs "
        "cannot be told from it (how centre taps and biases split over the branches, and each "
        "batch norm's gamma, var and mean apart)"
    )
