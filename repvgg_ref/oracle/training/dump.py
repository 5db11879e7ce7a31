"""A stranger's training dump: a file or mapping of arrays under the bundle's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.dumps import read_npz
from repvgg_ref.oracle.candidates.values import to_value
from weights_io import sanitize

KINDS = ("batch_mean", "batch_var", "grad", "stat", "after")
_ALIASES = {"grads": "grad", "gradient": "grad", "gradients": "grad", "stats": "stat"}
_ALIASES |= {"running": "stat", "weights_after": "after", "final": "after"}
KEPT = "kept/"  # which channels a dropout keeps: part of the input
_OWN = ("input", "labels")  # what came with the bundle may be dumped along
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class TrainingDump:
    """Arrays under the bundle's names, float64 or integer, as their author gave them.

    `precision` is "fp64" if there is a number that float32 cannot hold, "fp16" or "bf16" if the
    arrays say so.
    """

    arrays: Mapping[str, Array]
    precision: str
    unknown: tuple[str, ...]

    __repr__ = one_line


def is_training_dump(names: Iterable[str], known: Iterable[str]) -> bool:
    """Whether these are the names of a training dump rather than of layer outputs."""
    wanted = {name for name in known if name not in ("logits",)}
    return any(bundle_name(name, wanted) is not None for name in names)


def bundle_name(given: str, known: Iterable[str]) -> str | None:
    """The bundle's name for `given`: ``grad/x``, ``grad.x``, ``grads:module.x`` and ``x.grad``."""
    wanted = known if isinstance(known, set | frozenset | Mapping) else set(known)
    if given in wanted:
        return given
    kind, name = _split(given)
    kind = _ALIASES.get(kind, kind)
    for prefix in ("", *_PREFIXES):
        tried = f"{kind}/{name.removeprefix(prefix)}"
        if tried in wanted:
            return tried
    return None


def _split(given: str) -> tuple[str, str]:
    if given.endswith(".grad"):
        return "grad", given.removesuffix(".grad")
    at = min((i for s in "/:." if (i := given.find(s)) > 0), default=-1)
    return (given[:at], given[at + 1 :]) if at > 0 else ("", given)


def read_training_dump(dump: str | Path | Mapping[str, Any], known: Iterable[str]) -> TrainingDump:
    """Read and name the arrays of a dump.

    Raises
    ------
    CandidateFailure
        If there is no such file, if it is no file of arrays, or if two arrays mean the same.
    """
    wanted = set(known)
    given = _arrays(dump)
    arrays: dict[str, Array] = {}
    unknown: list[str] = []
    kinds: set[str] = set()
    for name, tensor in given.items():
        ours = bundle_name(str(name), wanted)
        if ours is None:
            if name not in _OWN and not str(name).startswith(KEPT):
                unknown.append(sanitize(str(name)))
            continue
        if ours in arrays:
            raise CandidateFailure(f"two arrays are both {ours}", got=sanitize(str(name)))
        array = _numbers(tensor, str(name))
        if array.dtype.kind == "f":
            kinds.add(array.dtype.name if array.dtype != np.float64 else _width(array))
        arrays[ours] = array
    precision = next((p for p in ("float16", "bfloat16") if p in kinds), None)
    short = {"float16": "fp16", "bfloat16": "bf16"}.get(precision or "", "")
    return TrainingDump(arrays, short or ("fp64" if "float64" in kinds else "fp32"), tuple(unknown))


def _arrays(dump: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(dump, Mapping):
        return dump
    path = Path(dump)
    if not path.is_file():
        raise CandidateFailure(
            f"{sanitize(str(path))}: no such file",
            wanted="an .npz with the names of the bundle's train_step.npz",
        )
    return read_npz(path).arrays


def _numbers(tensor: Any, name: str) -> Array:
    """The array; a 0-d loss is as good as one of shape (1,)."""
    if isinstance(tensor, float | int):
        return np.asarray(tensor, np.float64)
    if isinstance(tensor, np.ndarray | np.generic) and np.asarray(tensor).ndim == 0:
        return np.asarray(tensor)
    if getattr(tensor, "ndim", None) == 0:
        return to_value(tensor.reshape(1), name).array.reshape(())
    return to_value(tensor, name).array


def _width(array: Array) -> str:
    """float64 only if a value needs it."""
    finite = array[np.isfinite(array)]
    with np.errstate(over="ignore"):
        return "float32" if np.array_equal(finite.astype(np.float32), finite) else "float64"
