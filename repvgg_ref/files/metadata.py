"""What we write beside the arrays of a file, and read again: all that they cannot say.

A table of texts, as safetensors and ONNX have it; what is no text in it is JSON. Files that others
wrote are asked for ``eps`` and ``block`` only: their other words may mean anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.about import About, Assumed
from repvgg_ref.models.geometry import Geometry, geometry_of
from repvgg_ref.models.graph import Network
from repvgg_ref.version import __version__

WRITER, _OURS = "writer", "repvgg-ref"


def describe(
    network: Network, form: str, eps: float | None, about: About, assumed: Assumed
) -> dict[str, str]:
    """The metadata of a file that holds `network`; None as eps where it is not known.

    What was only assumed is in it, and marked: no file turns an assumption into a fact.
    """
    geometry = geometry_of(network)
    described = {
        WRITER: f"{_OURS} {__version__}",
        "model": network.name,
        "form": form,
        "block": network.blocks[0].kind,
        "strides": json.dumps(geometry.strides),
        "dilations": json.dumps(geometry.dilations),
    }
    if eps is not None:
        described["eps"] = repr(eps)
    if assumed:
        marked = {name: list(value) for name, value in assumed.steps.items()}
        described["assumed"] = json.dumps(marked | {"eps": assumed.eps is not None})
    for name in _FIELDS:
        if (value := getattr(about, name)) is not None:
            described[name] = json.dumps(value, ensure_ascii=False)
    return described


def read_eps(metadata: Mapping[str, str]) -> float | None:
    """What the metadata says of batch norm's eps.

    Raises
    ------
    CheckpointError
        If it is none.
    """
    said = metadata.get("eps")
    try:
        eps = None if said is None else float(said)
    except ValueError:
        eps = -1.0
    if eps is not None and not 0 <= eps < math.inf:
        raise _unreadable("eps", said, "a number of at least 0")
    return eps


def read_geometry(metadata: Mapping[str, str]) -> Geometry:
    """The strides and dilations that a file of ours knows; empty for another's."""
    marked = _read(metadata, "assumed", _marks) or {}
    known = (
        {
            block: step
            for block, step in (_read(metadata, what, _steps) or {}).items()
            if block not in marked.get(what, ())
        }
        for what in ("strides", "dilations")
    )
    return Geometry(*known)


def assumed_eps(metadata: Mapping[str, str]) -> bool:
    """Whether a file of ours says that its eps was only assumed."""
    return bool((_read(metadata, "assumed", _marks) or {}).get("eps"))


def read_about(metadata: Mapping[str, str], network: Network) -> About:
    """What a file of ours says of classes and pictures.

    Raises
    ------
    CheckpointError
        If it is not of the network: so many classes, so many channels.
    """
    about = About(**{name: _read(metadata, name, take) for name, take in _FIELDS.items()})
    counts = {
        "classes": network.num_classes,
        "mean": network.in_channels,
        "std": network.in_channels,
    }
    for name, count in counts.items():
        value = getattr(about, name)
        if value is not None and len(value) != count:
            raise _unreadable(name, f"{len(value)} of them", f"{count}, as the network has")
    return about


def _read(metadata: Mapping[str, str], name: str, take: Callable[[Any], Any]) -> Any:
    """An entry of metadata that we wrote, or None."""
    if name not in metadata or not metadata.get(WRITER, "").startswith(_OURS):
        return None
    try:
        return take(json.loads(metadata[name]))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _unreadable(name, metadata[name][:60], "what repvgg-ref writes") from None


def _unreadable(name: str, got: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"the file's metadata holds no {name}", got=repr(got), wanted=wanted)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_must(text, str) for text in _must(value, list))


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(number) for number in _must(value, list))


def _number(value: Any) -> float:
    if not math.isfinite(number := float(_must(value, float | int))):
        raise ValueError
    return number


def _size(value: Any) -> tuple[int, int]:
    height, width = (_must(pixels, int) for pixels in _must(value, list))
    return height, width


def _steps(value: Any) -> dict[str, int]:
    return {name: _must(step, int) for name, step in _must(value, dict).items()}


def _marks(value: Any) -> Mapping[str, Any]:
    marked = _must(value, dict)
    for what in ("strides", "dilations"):
        _texts(marked.get(what, []))
    return dict(marked)


def _must(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value


_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "classes": _texts,
    "input_size": _size,
    "mean": _numbers,
    "std": _numbers,
    "crop_ratio": _number,
}
