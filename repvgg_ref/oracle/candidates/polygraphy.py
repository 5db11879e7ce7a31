"""Outputs saved by NVIDIA's Polygraphy (``polygraphy run --save-outputs``), without Polygraphy.

The JSON holds ``{"lst": [[runner, [{"outputs": {tensor: entry}}, ...]], ...]}``; an entry is
``{"values": array}`` or the array itself. An array is ``{"array": ...}`` with a .npy file in
base64, or ``{"tensor": ...}`` with what `torch.save` wrote; neither reader runs anything.
Seen in Polygraphy 0.53 and the sources since 0.20.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.dumps import Dump
from repvgg_ref.oracle.candidates.names import LayerNames, is_input, listed
from repvgg_ref.oracle.candidates.npy_files import read_json, read_npy_stream, read_text
from weights_io import sanitize

_MOST_BYTES = 2 << 30


def read_outputs(path: Path, arch: Network, runner: str | None = None) -> Dump:
    """The outputs of one runner's first iteration.

    Parameters
    ----------
    path : Path
        The JSON file.
    arch : Architecture
        The reference's.
    runner : str, optional
        Which runner; default the first.

    Raises
    ------
    CandidateFailure
        If it is no such file, or if its tensors cannot be told to be layers.
    """
    where = sanitize(path.name)
    runs = _runs(read_json(read_text(path, _MOST_BYTES), where), where)
    names = [name for name, _ in runs]
    if runner is not None and runner not in names:
        raise CandidateFailure(
            f"{where}: no such runner", got=sanitize(runner), wanted=listed(names)
        )
    chosen, iterations = runs[names.index(runner) if runner is not None else 0]
    notes = [f"runner {sanitize(chosen)}"]
    if len(runs) > 1:
        notes.append(f"other runners in the file: {listed(n for n in names if n != chosen)}")
    if len(iterations) > 1:
        notes.append(f"the first of {len(iterations)} iterations")
    tensors = _outputs(iterations, where)
    return _matched({name: _array(v, name) for name, v in tensors.items()}, arch, where, notes)


def read_inputs(path: Path, in_channels: int, notes: list[str] | None = None) -> Array:
    """The batch of images in what ``polygraphy run --save-inputs`` or ``--save-outputs`` wrote.

    It is the only tensor of the first iteration, the one that is called like an input, or the
    only one with four axes and as many channels as images have. `notes` is told what was left out.

    Raises
    ------
    CandidateFailure
        If it is no such file, or if it cannot be told which tensor is the batch.
    """
    where = sanitize(path.name)
    tensors, count = _first_feed(read_json(read_text(path, _MOST_BYTES), where), where)
    if notes is not None and count > 1:
        notes.append(f"{where}: the first of {count} iterations")
    arrays = {name: _array(entry, name) for name, entry in tensors.items()}
    chosen = list(arrays) if len(arrays) == 1 else [n for n in arrays if is_input(n)]
    if len(chosen) != 1:
        chosen = [n for n, a in arrays.items() if a.ndim == 4 and a.shape[1] == in_channels]
    if len(chosen) != 1:
        raise CandidateFailure(
            f"{where}: which tensor is the batch?",
            got=listed(arrays),
            wanted="one tensor, or one called input",
        )
    return arrays[chosen[0]]


def _first_feed(root: Any, where: str) -> tuple[dict[str, Any], int]:
    """Tensor -> entry of the first iteration, and how many there are.

    They stand in a list of feeds, in one feed, or in runs with outputs.
    """
    while isinstance(root, dict) and isinstance(root.get("lst"), list):
        root = root["lst"]
    if isinstance(root, list) and root and isinstance(root[0], list):
        iterations = _runs({"lst": root}, where)[0][1]
        return _outputs(iterations, where), len(iterations)
    count = len(root) if isinstance(root, list) else 1
    feed = root[0] if isinstance(root, list) and root else root
    if isinstance(feed, dict) and "outputs" in feed:
        return _outputs([feed], where), count
    if isinstance(feed, dict) and isinstance(feed.get("dct"), dict):
        feed = feed["dct"]
    if isinstance(feed, dict) and ("array" in feed or "values" in feed):  # a tensor without a name
        feed = {"input": feed}
    tensors = {k: v for k, v in feed.items() if _is_tensor(k)} if isinstance(feed, dict) else {}
    if not tensors:
        raise CandidateFailure(
            f"{where}: no inputs of Polygraphy",
            wanted="what `polygraphy run --save-inputs` writes, or an .npy or .npz file",
        )
    return tensors, count


def _is_tensor(key: str) -> bool:
    return not key.startswith(("polygraphy_class", "polygraphy_serialized", "__poly"))


def _runs(root: Any, where: str) -> list[tuple[str, list[Any]]]:
    """(runner, iterations) pairs; a lone iteration counts as a run."""
    if isinstance(root, dict) and "outputs" in root:
        root = {"lst": [[str(root.get("runner_name", "runner")), [root]]]}
    table = root.get("lst") if isinstance(root, dict) else None
    well_formed = isinstance(table, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], list) for pair in table
    )
    if not well_formed or not table:
        raise CandidateFailure(
            f"{where}: no outputs of Polygraphy",
            wanted="what `polygraphy run --save-outputs` writes",
        )
    return [(str(runner), iterations) for runner, iterations in table]


def _outputs(iterations: list[Any], where: str) -> dict[str, Any]:
    first = iterations[0] if iterations else None
    outputs = first.get("outputs") if isinstance(first, dict) else None
    if isinstance(outputs, dict) and isinstance(outputs.get("dct"), dict):
        outputs = outputs["dct"]
    if not isinstance(outputs, dict) or not outputs:
        raise CandidateFailure(f"{where}: the runner left no outputs", got=type(outputs).__name__)
    return {k: v for k, v in outputs.items() if _is_tensor(k)}


def _array(entry: Any, name: str) -> Array:
    shown = sanitize(name)
    if isinstance(entry, dict) and "values" in entry:
        entry = entry["values"]
    data = entry.get("array", entry.get("tensor")) if isinstance(entry, dict) else None
    if not isinstance(data, str):
        raise CandidateFailure(f"{shown}: no array in Polygraphy's form", got=sanitize(entry))
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raw = data.encode("latin-1", "replace")  # versions before 0.26
    if raw.startswith(b"\x93NUMPY"):
        return read_npy_stream(io.BytesIO(raw), len(raw), name)
    try:
        with weights_io.open_weights(io.BytesIO(raw)) as archive:
            root: Any = archive.root
            if isinstance(root, dict) and len(root) == 1:  # an .npz of one array
                root = next(iter(root.values()))
            if isinstance(root, weights_io.LazyArray):
                return root.read()
    except weights_io.WeightsFileError as error:
        raise CandidateFailure(f"{shown}: no readable array", got=error.what) from None
    raise CandidateFailure(f"{shown}: no single array", got=type(root).__name__)


def _matched(arrays: dict[str, Array], arch: Network, where: str, notes: list[str]) -> Dump:
    """Tensors that are layers: by name, else by their order if that fits."""
    names = LayerNames(arch)
    entrance, layers = names.find(arrays)
    if not set(layers) - {"linear"}:
        if by_order := _by_order(arrays, arch):
            return Dump(by_order, notes=(*notes, "tensors matched to the layers by their order"))
        if len(arrays) == 1 and not layers:
            layers = {"linear": next(iter(arrays))}
            notes.append("the only output, taken for the logits")
    if not layers:
        raise names.unknown_names(arrays, where)
    kept = {layer: arrays[name] for layer, name in layers.items()}
    if entrance is not None:
        kept["input"] = arrays[entrance]
    if len(kept) < len(arrays):
        notes.append(f"{len(arrays) - len(kept)} tensors that are no layer's output left out")
    return Dump(kept, notes=tuple(notes))


def _by_order(arrays: Mapping[str, Array], arch: Network) -> dict[str, Array]:
    """One image tensor a block in network order, or one activation a block; else nothing."""
    activations = [name for name in arrays if "relu" in name.lower()]
    logits = [array for array in arrays.values() if array.ndim == 2]
    for names in (list(arrays), activations):
        images = [arrays[name] for name in names if arrays[name].ndim == 4]
        if len(images) == len(arch.blocks) and _chain_fits(images, arch):
            layers = dict(zip(arch.layer_names, images, strict=False))
            return layers | ({"linear": logits[-1]} if logits else {})
    return {}


def _chain_fits(images: list[Array], arch: Network) -> bool:
    """Whether the channels follow the network's, in either layout."""
    return any(
        all(a.shape[axis] == b.out_channels for a, b in zip(images, arch.blocks, strict=True))
        for axis in (1, 3)
    )
