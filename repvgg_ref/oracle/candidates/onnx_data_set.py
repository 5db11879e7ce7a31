"""An ONNX ``test_data_set_*`` folder: input_0.pb and output_0.pb, ..., one TensorProto each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.packages import first_line, require
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.dumps import Dump
from repvgg_ref.oracle.candidates.names import LayerNames
from repvgg_ref.oracle.candidates.npy_files import read_bytes
from weights_io import sanitize

_FILE = re.compile(r"(?P<kind>input|output)_(?P<index>\d{1,5})\.pb")
_MOST_BYTES = 2**31 - 1  # protobuf's own limit


def data_set_folder(folder: Path) -> tuple[Path, list[str]] | None:
    """The data set that `folder` is, or the first one in it; None if there is none."""
    if any(_FILE.fullmatch(path.name) for path in folder.iterdir()):
        return folder, []
    inner = sorted(
        (path for path in folder.glob("test_data_set_*") if path.is_dir()),
        key=lambda path: (len(path.name), path.name),
    )
    if not inner:
        return None
    others = f", of {len(inner)}" if len(inner) > 1 else ""
    return inner[0], [f"taken: {sanitize(inner[0].name)}{others}"]


def read_data_set(folder: Path, arch: Network, notes: list[str]) -> Dump:
    """The tensors of a data set, outputs under their own names or matched by their order.

    Raises
    ------
    CandidateFailure
        If a file is no TensorProto, if there is not exactly one input or no output, or if the
        outputs are neither named after layers nor one a layer.
    MissingExtraError
        If the onnx package is not installed.
    """
    files = sorted(
        (match["kind"], int(match["index"]), path)
        for path in folder.iterdir()
        if (match := _FILE.fullmatch(path.name))
    )
    inputs = [read_tensor(path)[1] for kind, _, path in files if kind == "input"]
    outputs = [read_tensor(path) for kind, _, path in files if kind == "output"]
    if len(inputs) > 1 or not outputs:
        raise CandidateFailure(
            f"{sanitize(folder.name)}: not a data set of this network",
            got=f"{len(inputs)} inputs, {len(outputs)} outputs",
            wanted="input_0.pb, and output_0.pb for the logits or one output a layer",
        )
    arrays, notes = _named(outputs, arch, notes)
    return Dump({"input": inputs[0], **arrays} if inputs else arrays, notes=tuple(notes))


def read_tensor(path: Path) -> tuple[str, Array]:
    """Name and values of the TensorProto in `path`."""
    onnx, numpy_helper = require("onnx"), require("onnx.numpy_helper")
    data = read_bytes(path, _MOST_BYTES)
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(data)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CandidateFailure(
                f"{sanitize(path.name)}: its values are in another file", wanted="them in this one"
            )
        array: Any = numpy_helper.to_array(tensor)
    except CandidateFailure:
        raise
    except Exception as error:  # protobuf, NumPy and onnx each have their own
        raise CandidateFailure(
            f"{sanitize(path.name)}: no readable TensorProto", got=first_line(error)
        ) from None
    return tensor.name, np.asarray(array)


def _named(
    outputs: list[tuple[str, Array]], arch: Network, notes: list[str]
) -> tuple[dict[str, Array], list[str]]:
    names = LayerNames(arch)
    known = [names.layer(name) for name, _ in outputs]
    distinct = len({name for name, _ in outputs}) == len(outputs)
    if distinct and (all(known) or any(layer not in (None, "linear") for layer in known)):
        return dict(outputs), notes  # an unknown one among them is reported by its name
    if len(outputs) == 1:
        return {"linear": outputs[0][1]}, [*notes, "the only output, taken for the logits"]
    if len(outputs) == len(arch.layer_names):
        arrays = dict(zip(arch.layer_names, (array for _, array in outputs), strict=True))
        return arrays, [*notes, "outputs matched to the layers by position"]
    raise names.unknown_names([name for name, _ in outputs], "test_data_set")
