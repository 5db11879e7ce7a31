"""Layer outputs that a port wrote down: arrays in memory, .npy, .npz and other archives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import Candidate, CandidateFailure, Outputs
from repvgg_ref.oracle.candidates.layout import LAYOUTS, to_nchw
from repvgg_ref.oracle.candidates.names import LayerNames, Named, listed
from repvgg_ref.oracle.candidates.npy_files import MOST_BYTES, read_npy
from repvgg_ref.oracle.candidates.values import SHORT, to_value
from weights_io import sanitize

_FIELDS = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
PRECISIONS = ("fp32", "fp16", "bf16", "tf32")
# A dump is no checkpoint: a dead layer is all zeros and compresses a thousandfold.
_LIMITS = weights_io.Limits(file_bytes=MOST_BYTES, total_bytes=MOST_BYTES, expansion=2000)


@dataclass(frozen=True)
class Dump:
    """Arrays under the names their author gave them, and what is said about them.

    `layouts` holds "NCHW" or "NHWC" by name, or under "" for all.
    """

    arrays: Mapping[str, Any]
    layouts: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DumpCandidate(Candidate):
    """A finished dump; running it is reading it."""

    name: str
    arch: Network
    read: Callable[[], Dump]
    brings_input: bool = False
    assume: str | None = None

    def run(self, x: Array | None) -> Outputs:
        """The dump's layers; its own input, if it has one, comes before `x`."""
        return interpret(self.read(), self.arch, where=self.name, x=x, assume=self.assume)


def dump_candidate(
    name: str, arch: Network, dump: Dump, *, assume: str | None = None
) -> DumpCandidate:
    """A candidate of arrays already in memory."""
    brings = LayerNames(arch).sort(dump.arrays).input is not None
    return DumpCandidate(name, arch, lambda: dump, brings, assume)


def interpret(
    dump: Dump,
    arch: Network,
    *,
    where: str,
    x: Array | None = None,
    assume: str | None = None,
    live: bool = False,
) -> Outputs:
    """Layer outputs out of a dump: names, element types, layout, batch.

    Parameters
    ----------
    dump : Dump
        Arrays under their author's names.
    arch : Architecture
        The reference's.
    where : str
        What the dump is called in errors.
    x : array, optional
        The input it belongs to, unless it holds one.
    assume : str, optional
        Layout where nothing decides.
    live : bool
        The port ran on `x` just now, so a lost image is its own mistake, not a mix-up of files.

    Raises
    ------
    CandidateFailure
        For an empty dump, unknown names, anything but numbers, or another batch.
    """
    names = LayerNames(arch)
    sorted_names = names.sort(dump.arrays)
    if sorted_names.unknown:
        raise names.unknown_names(sorted_names.unknown, where)
    if not sorted_names.layers:
        raise CandidateFailure(
            f"{where}: holds no layer output",
            got="nothing" if not dump.arrays else "an input only",
            wanted=f"at least one of {listed(arch.layer_names)}",
        )
    taken, precisions = _values(dump, sorted_names)
    layouts = _layouts(dump, sorted_names)
    taken, notes = _with_batch_axis(taken, arch)
    arranged = to_nchw(taken, arch, declared=layouts, assume=assume)
    own = arranged.arrays.pop("input", None)
    _require_one_batch(arranged.arrays, own if own is not None else x, where, live=live)
    return Outputs(
        layers=arranged.arrays,
        x=own,
        precision=dump.precision or (precisions.pop() if len(precisions) == 1 else None),
        notes=(*dump.notes, *sorted_names.notes, *notes, *arranged.notes),
    )


def read_npz(path: Path) -> Dump:
    """Every array of an .npz, a safetensors file or a torch archive of plain tensors."""
    try:
        with weights_io.open_weights(path, _LIMITS) as archive:
            if not isinstance(archive.root, dict):
                raise CandidateFailure(
                    f"{sanitize(path.name)}: no dict of named arrays",
                    got=type(archive.root).__name__,
                )
            found = archive.root.items()
            arrays = {k: v for k, v in found if isinstance(v, weights_io.LazyArray)}
            others = [
                f"{k} ({v.type_name})" if isinstance(v, weights_io.Inert) else str(k)
                for k, v in found
                if k not in arrays
            ]
            if others:
                raise CandidateFailure(
                    f"{sanitize(path.name)}: entries that are no arrays, or of a type not read",
                    got=listed(others),
                )
            precision = SHORT.get({v.dtype for v in arrays.values()}.pop()) if arrays else None
            loaded = {str(name): lazy.read() for name, lazy in arrays.items()}
            described = _described(archive.metadata)
    except weights_io.WeightsFileError as error:
        raise CandidateFailure(error.what, got=error.got, wanted=error.wanted) from None
    layout, declared = described
    return Dump(loaded, {"": layout} if layout else {}, declared or precision)


def holds_layers(path: Path, arch: Network) -> bool:
    """Whether an archive has arrays that are called like layers, and fewer called like weights."""
    try:
        with weights_io.open_weights(path, _LIMITS) as archive:
            names = [str(name) for name in archive.root] if isinstance(archive.root, dict) else []
            return len(LayerNames(arch).sort(names).layers) > count_parameters(names)
    except weights_io.WeightsFileError:
        return False  # whoever reads it will say why


def count_parameters(names: Iterable[str]) -> int:
    """How many names end as those of a layer's arrays do, and no layer's."""
    return sum(name.rpartition(".")[2] in _FIELDS for name in names)


def array_names(candidate: object) -> list[str]:
    """The names of a candidate's arrays, if it is a mapping or a file of them."""
    if isinstance(candidate, Mapping):
        return [str(name) for name in candidate]
    if not isinstance(candidate, str | Path) or not Path(candidate).is_file():
        return []
    try:
        with weights_io.open_weights(candidate) as archive:
            return [str(name) for name in archive.root] if isinstance(archive.root, dict) else []
    except weights_io.WeightsFileError:
        return []


def read_single(path: Path) -> Dump:
    """One .npy file: the logits."""
    return Dump({"linear": read_npy(path)}, notes=("a single array, taken for the logits",))


def checked_layout(layout: object, where: str) -> str:
    """`layout` if it is one we know."""
    if not isinstance(layout, str) or layout.upper() not in LAYOUTS:
        raise CandidateFailure(
            f"{where}: an unknown layout", got=sanitize(layout), wanted=" or ".join(LAYOUTS)
        )
    return layout.upper()


def checked_precision(precision: object, where: str) -> str:
    """`precision` if it is one we know."""
    if precision not in PRECISIONS:
        raise CandidateFailure(
            f"{where}: an unknown precision", got=sanitize(precision), wanted=", ".join(PRECISIONS)
        )
    return str(precision)


def _described(metadata: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Layout and precision, if an archive's metadata says so."""
    layout, precision = metadata.get("layout"), metadata.get("precision")
    return (
        checked_layout(layout, "metadata") if layout else None,
        checked_precision(precision, "metadata") if precision else None,
    )


def _values(dump: Dump, names: Named) -> tuple[dict[str, Array], set[str | None]]:
    """Layer name or "input" -> array, and the precisions that the layers' types declare."""
    wanted = dict(names.layers)
    if names.input is not None:
        wanted["input"] = names.input
    values = {layer: to_value(dump.arrays[name], name) for layer, name in wanted.items()}
    precisions = {v.precision for layer, v in values.items() if layer != "input"}
    return {layer: v.array for layer, v in values.items()}, precisions


def _layouts(dump: Dump, names: Named) -> dict[str, str]:
    wanted = dict(names.layers)
    if names.input is not None:
        wanted["input"] = names.input
    whole = dump.layouts.get("")
    said = {layer: dump.layouts.get(name, whole) for layer, name in wanted.items()}
    return {layer: layout for layer, layout in said.items() if layout is not None}


def _with_batch_axis(arrays: dict[str, Array], arch: Network) -> tuple[dict[str, Array], list[str]]:
    """Add the batch axis that a dump of a single image often lacks."""
    single = all(a.ndim == (1 if name == "linear" else 3) for name, a in arrays.items())
    if not single:
        return arrays, []
    return {n: a[None] for n, a in arrays.items()}, [
        "no batch axis: taken for a batch of one image"
    ]


def _require_one_batch(
    layers: Mapping[str, Array], x: Array | None, where: str, *, live: bool
) -> None:
    sizes = {name: a.shape[0] for name, a in layers.items()}
    wanted = x.shape[0] if x is not None and x.ndim else next(iter(sizes.values()))
    odd = [name for name, size in sizes.items() if size != wanted]
    if odd:
        raise CandidateFailure(
            f"{where}: another batch than the input's",
            got=f"{sizes[odd[0]]} images in {listed(odd)}",
            wanted=f"{wanted} images",
            advice=None if live else "give the input that was dumped, or dump it along as 'input'",
            verdict="disagree" if live else "cannot-judge",
        )
