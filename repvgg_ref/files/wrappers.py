"""What is wrapped around the weights in a file: entries of a training checkpoint, prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import weights_io
from repvgg_ref.errors import CheckpointError
from weights_io import LazyArray

WhichWeights = Literal["model", "ema"]

# Wrappers met in the wild, newest trainer first; the EMA keys are the official one's and timm's.
_MODEL_KEYS = ("model", "state_dict", "net", "params")
_EMA_KEYS = ("ema", "state_dict_ema", "model_ema", "ema_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 12


def select(root: Any, weights: WhichWeights, notes: list[str]) -> dict[str, LazyArray]:
    """The mapping of arrays that was asked for, out of whatever wraps it."""
    if not isinstance(root, dict):
        raise CheckpointError(
            "the file holds no mapping of named arrays", got=type(root).__name__, wanted="a dict"
        )
    wrapped = {key: root[key] for key in (*_MODEL_KEYS, *_EMA_KEYS) if _holds_arrays(root.get(key))}
    if not wrapped:
        if weights == "ema":
            raise _no_ema(root)
        return _arrays_of(root)
    models = [key for key in _MODEL_KEYS if key in wrapped]
    emas = [key for key in _EMA_KEYS if key in wrapped]
    if weights == "ema" and not emas:
        raise _no_ema(root)
    taken = emas[0] if weights == "ema" or not models else models[0]
    notes.append(f"weights taken from the entry '{taken}'")
    if others := [key for key in wrapped if key != taken]:
        advice = "; --weights ema takes the average" if emas and taken not in emas else ""
        notes.append("also in the file, not taken: " + ", ".join(others) + advice)
    inner = wrapped[taken]
    nested = next((inner[k] for k in _MODEL_KEYS if _holds_arrays(inner.get(k))), inner)
    return _arrays_of(nested)


def _no_ema(root: Mapping[Any, Any]) -> CheckpointError:
    return CheckpointError(
        "there is no EMA entry in this file",
        got="entries " + listed([weights_io.sanitize(str(key)) for key in root]),
        wanted="one of " + ", ".join(_EMA_KEYS),
        advice="use --weights model",
    )


def _holds_arrays(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    return any(isinstance(v, LazyArray) or _holds_arrays(v) for v in entry.values())


def _arrays_of(mapping: Mapping[Any, Any]) -> dict[str, LazyArray]:
    odd = [
        key for key, v in mapping.items() if not (isinstance(key, str) and isinstance(v, LazyArray))
    ]
    arrays = {key: v for key, v in mapping.items() if isinstance(v, LazyArray)}
    if odd and arrays:
        raise CheckpointError(
            "some entries among the weights are no arrays",
            got=listed([weights_io.sanitize(str(key)) for key in odd]),
            wanted="names with arrays only",
        )
    return arrays


def without_prefix(arrays: dict[str, LazyArray], notes: list[str]) -> dict[str, LazyArray]:
    """Take ``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile) off, if on every name."""
    for prefix in _PREFIXES * 2:
        if arrays and all(name.startswith(prefix) for name in arrays):
            notes.append(f"prefix '{prefix}' removed from every name")
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def listed(names: list[str]) -> str:
    """A short list for one line: names made printable, the tail counted."""
    shown = ", ".join(weights_io.sanitize(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return (shown or "none") + (f", ... {more} more" if more > 0 else "")
