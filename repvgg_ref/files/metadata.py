"""What we write beside the arrays of a file, and read again: all that they cannot say.

A table of texts, as safetensors and ONNX have it; what is no text in it is JSON. Only what we wrote
is believed: in a stranger's file the same words may mean anything (``eps`` may be an optimiser's).
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
from weights_io import sanitize

WRITER, _OURS = "writer", "repvgg-ref "
_FAR = 1e4  # beyond it no mean or deviation of pixels from 0 to 1 lies, in whatever unit
_LONGEST_NUMBER = 100  # characters
_MOST_PIXELS = 1 << 15  # a side
_BEFORE = {"model", "form"}  # version 0.1.0 did not say who wrote, but always these


def describe(
    network: Network, form: str, eps: float | None, about: About, assumed: Assumed
) -> dict[str, str]:
    """The metadata of a file that holds `network`; None as eps where it is not known.

    What was only assumed is in it, and marked: no file turns an assumption into a fact.
    """
    geometry = geometry_of(network)
    described = {
        WRITER: f"{_OURS}{__version__}",
        "model": network.name,
        "form": form,
        "block": network.kinds[0],
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


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether repvgg-ref wrote this."""
    writer = metadata.get(WRITER)
    return metadata.keys() >= _BEFORE if writer is None else writer.startswith(_OURS)


def strangers_eps(metadata: Mapping[str, str]) -> str | None:
    """What a file that others wrote calls eps, for people to decide what it is."""
    return None if is_ours(metadata) else metadata.get("eps")


def read_eps(metadata: Mapping[str, str]) -> float | None:
    """What a file of ours says of batch norm's eps.

    Raises
    ------
    CheckpointError
        If it is none.
    """
    said = metadata.get("eps") if is_ours(metadata) else None
    try:
        eps = None if said is None else float(said if len(said) <= _LONGEST_NUMBER else "long")
    except ValueError:
        eps = -1.0
    if eps is not None and not 0 <= eps < math.inf:
        raise _unreadable("eps", said, "a number of at least 0")
    return eps


def read_geometry(metadata: Mapping[str, str]) -> Geometry:
    """The strides and dilations that a file of ours knows; empty for another's."""
    said = _read(metadata, "assumed", _marks) or {}
    marked = {what: set(said.get(what, ())) for what in ("strides", "dilations")}
    known = (
        {
            block: step
            for block, step in (_read(metadata, what, _steps) or {}).items()
            if block not in marked[what]
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
    if name not in metadata or not is_ours(metadata):
        return None
    try:
        return take(json.loads(metadata[name], object_pairs_hook=_unique))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _unreadable(name, metadata[name], "what repvgg-ref writes") from None


def _unreadable(name: str, got: object, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"the file's metadata holds no {name}", got=repr(sanitize(got)), wanted=wanted
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_must(text, str) for text in _must(value, list))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(table := dict(pairs)) < len(pairs):
        raise ValueError
    return table


def _means(value: Any) -> tuple[float, ...]:
    return tuple(_number(number, -_FAR, _FAR) for number in _must(value, list))


def _deviations(value: Any) -> tuple[float, ...]:
    return tuple(_number(number, 1 / _FAR, _FAR) for number in _must(value, list))


def _ratio(value: Any) -> float:
    return _number(value, 1 / _FAR, 1.0)


def _number(value: Any, least: float, most: float) -> float:
    if not least <= (number := float(_must(value, float | int))) <= most:
        raise ValueError
    return number


def _size(value: Any) -> tuple[int, int]:
    height, width = (int(_number(_must(n, int), 1, _MOST_PIXELS)) for n in _must(value, list))
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
    "mean": _means,
    "std": _deviations,
    "crop_ratio": _ratio,
}
