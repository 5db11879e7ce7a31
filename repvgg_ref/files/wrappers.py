"""Which mapping of named arrays a file's weights are, among a training checkpoint's entries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import weights_io
from repvgg_ref.errors import CheckpointError, did_you_mean
from weights_io import Inert, LazyArray, PickledModule, RefusedGlobalError

WhichWeights = str
"""``"model"``, ``"ema"``, or the name of an entry or prefix of the file (``"student"``)."""

# Entries met in the wild, newest trainer first; what is called otherwise is found by what it holds.
_MODEL_KEYS = (
    *("model", "state_dict", "net", "params"),
    *("model_state_dict", "model_state", "net_state_dict", "weights"),
)
_EMA_KEYS = ("ema", "state_dict_ema", "model_ema", "ema_state_dict")
_EMA_WORD = re.compile(r"(?:^|[._-])(?:ema|swa|averaged?)(?:$|[._-]|\d)", re.IGNORECASE)
# What torch hangs beside the arrays of a module, empty for every layer of ours.
_NO_ARRAY = "_extra_state"
_PADDLE = "StructuredToParameterName@@"
_SHARD = re.compile(r"\d{5}-of-\d{5}")
_SHOWN = 12
_MOST_PLACES = 1000  # of arrays that are counted where none is a network's
_CONTAINERS = (dict, list, tuple)
_PARTS = (LazyArray, PickledModule, *_CONTAINERS)  # all else holds no arrays


def is_average(name: str) -> bool:
    """Whether an entry or prefix of this name holds a running average of the weights."""
    return name in _EMA_KEYS or _EMA_WORD.search(name) is not None


class Selected(NamedTuple):
    """The arrays of an entry, and what no entry has answered of what was asked: then a prefix may.

    `asked` is "model" if nothing is left to find; `entries` are those of the file that hold arrays.
    """

    arrays: dict[str, LazyArray]
    asked: WhichWeights
    entries: list[str]


def select(archive: weights_io.Archive, weights: WhichWeights, notes: list[str]) -> Selected:
    """The mapping of arrays that was asked for, out of whatever wraps it.

    An archive is searched once, however often it is asked.

    Raises
    ------
    CheckpointError
        If there is no mapping of arrays, or several that could be meant.
    RefusedGlobalError
        If an object of a class that nobody knows, and that is no module, stands where the arrays
        should be.
    """
    root: Any = archive.root
    known = _SEARCHED.setdefault(archive, _Holders())
    if isinstance(root, dict) and _PADDLE in root:
        raise CheckpointError(
            "this is a PaddlePaddle checkpoint (.pdparams), whose names and layouts are others",
            wanted="a checkpoint of PyTorch or MegEngine",
            advice="convert the PyTorch weights, or save the arrays under official names as .npz",
        )
    holder, asked = root, weights
    while (entry := _entry(holder, asked, known)) is not None:
        taken, asked = entry
        _note(taken, holder, known.entries(holder), notes, first=holder is root)
        holder = known.parts(holder)[taken]
    if isinstance(holder, PickledModule):
        return Selected(_arrays_of_module(holder, notes), asked, known.entries(root))
    arrays = _arrays_of(holder) if isinstance(holder, dict) else {}
    if not arrays:
        _require_none(root, known)
    return Selected(arrays, asked, known.entries(root))


def _require_none(root: Any, known: _Holders) -> None:
    """Raise the error that tells what a file without named weights holds instead."""
    places = list(islice(_places(root, "", known, set()), _MOST_PLACES))
    if places:
        count = "1 array" if len(places) == 1 else f"{len(places)} arrays"
        more = " or more" if len(places) == _MOST_PLACES else ""
        raise CheckpointError(
            "no array of the file is called as a network's are, in no entry of it",
            got=f"{count}{more}: {listed(places)}",
            wanted="names of layers and their parts, with dots between them",
        )
    if not isinstance(root, dict):
        raise CheckpointError(
            "the file holds no mapping of named arrays", got=type(root).__name__, wanted="a dict"
        )


def _places(value: Any, place: str, known: _Holders, seen: set[int]) -> Iterator[str]:
    """Where arrays stand below `value`, as far as names that `--weights` would know tell it.

    A container that stands in several places is looked into once: there may be 2**n paths to it.
    """
    if isinstance(value, LazyArray):
        yield place or "the file itself"
    elif id(value) not in seen:
        seen.add(id(value))
        for name, each in known.parts(value).items():
            yield from _places(each, f"{place}.{name}" if place else name, known, seen)


def _spelled(key: Any) -> str:
    """The name that `--weights` knows a part by, of which `key` is the key or the place.

    A number is its digits; another key that is no text is its type and its place in the dict.
    """
    return f"{key.type_name}#{key.value}" if isinstance(key, Inert) else str(key)


_NOTHING, _NAMELESS, _MODULES, _ARRAYS = range(4)


class _Holders:
    """What of a tree holds arrays, each container looked at once however often it is shared.

    What holds none costs little and gets no name, since a megabyte can hold a million plain values.
    A module is taken for a holder unseen: what is in it is walked where it is needed.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._parts: dict[int, dict[str, Any]] = {}

    def entries(self, holder: Any) -> list[str]:
        """The names of what stands in `holder` and holds weights."""
        return [name for name, part in self.parts(holder).items() if self.held(part) >= _MODULES]

    def parts(self, holder: Any) -> dict[str, Any]:
        """What holds arrays in a dict, list or tuple, under the name that `--weights` knows it by.

        Where text and a number are spelled alike, it is the text's.
        """
        key = id(holder)
        if key not in self._parts:
            self._parts[key] = self._named(holder) if isinstance(holder, _CONTAINERS) else {}
        return self._parts[key]

    def held(self, part: object) -> int:
        """The best that stands in it: named arrays, else whole modules, else arrays, or nothing."""
        if isinstance(part, PickledModule):
            return _MODULES
        if not isinstance(part, _CONTAINERS):
            return _NAMELESS if isinstance(part, LazyArray) else _NOTHING
        key = id(part)
        if key not in self._known:
            self._known[key] = _NOTHING  # while it is looked into: it may hold itself
            self._known[key] = _ARRAYS if _holds_named(part) else self._best_in(_values(part))
        return self._known[key]

    def _best_in(self, values: Iterable[Any]) -> int:
        return max(map(self.held, values)) if _is_among(_PARTS, values) else _NOTHING

    def _named(self, holder: Any) -> dict[str, Any]:
        if self.held(holder) == _NOTHING:
            return {}
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
        parts = [(key, value) for key, value in pairs if self.held(value) != _NOTHING]
        others = {_spelled(key): value for key, value in parts if not isinstance(key, str)}
        return others | {key: value for key, value in parts if isinstance(key, str)}


def _is_among(kinds: tuple[type, ...], values: Iterable[Any]) -> bool:
    """Whether one of the values is of one of these types: no step of Python's for each value."""
    return any(issubclass(kind, kinds) for kind in set(map(type, values)))


_SEARCHED: WeakKeyDictionary[weights_io.Archive, _Holders] = WeakKeyDictionary()


def _values(holder: Any) -> Iterable[Any]:
    return holder.values() if isinstance(holder, dict) else holder


def _holds_named(entry: Any) -> bool:
    """Whether arrays of layers stand in it: an optimiser's have no dots in their names."""
    if not isinstance(entry, dict) or not _is_among((LazyArray,), entry.values()):
        return False
    return any(
        isinstance(value, LazyArray) and isinstance(name, str) and "." in name.strip(".")
        for name, value in entry.items()
    )


def _entry(holder: Any, asked: WhichWeights, known: _Holders) -> tuple[str, WhichWeights] | None:
    """The entry of `holder` to go into and what is asked of it; None if the arrays are here."""
    entries = known.entries(holder)
    for key in sorted(entries, key=len, reverse=True):
        if asked not in ("model", "ema") and (asked == key or asked.startswith(key + ".")):
            return key, asked[len(key) + 1 :] or "model"
    if not entries or (_holds_named(holder) and not set(entries) & {*_MODEL_KEYS, *_EMA_KEYS}):
        return None
    parts = known.parts(holder)
    arrays = {key for key in entries if known.held(parts[key]) == _ARRAYS}
    averages = [key for key in entries if is_average(key)]
    averaged = set(averages)
    models = [key for key in entries if key not in averaged]
    if asked == "ema" and averages:
        return _best(averages, _EMA_KEYS, arrays, asked), "model"
    return _best(models or averages, _MODEL_KEYS, arrays, asked), asked


def _best(entries: list[str], usual: tuple[str, ...], arrays: set[str], asked: WhichWeights) -> str:
    """The entry of the usual name, or the only one; arrays alone before whole modules.

    Beside arrays a module may be anything: a loss, a part of the network, what it was made of.
    """
    named = [key for key in usual if key in entries]
    named = [key for key in named if key in arrays] or named
    entries = [key for key in entries if key in arrays] or entries
    if not named and len(entries) > 1:
        unmet = "" if asked in ("model", "ema") else f", and none is called '{asked}'"
        guess = did_you_mean(asked, entries) if unmet else None
        raise CheckpointError(
            f"several entries of the file hold weights{unmet}",
            got=listed(entries),
            wanted="one of them",
            advice=guess or f"name it: --weights {weights_io.sanitize(entries[0])}",
        )
    return (named or entries)[0]


def _note(taken: str, holder: Any, entries: list[str], notes: list[str], *, first: bool) -> None:
    shown = weights_io.sanitize(taken)
    if isinstance(holder, dict):
        start = f"weights taken from the entry '{shown}'" if first else f"and its entry '{shown}'"
    else:
        start = (
            f"weights taken from place {shown} of the file's list"
            if first
            else (f"and place {shown} of its list")
        )
    notes.append(start)
    if others := [key for key in entries if key != taken]:
        averaged = any(map(is_average, others)) and not is_average(taken)
        advice = "; --weights ema takes the average" if averaged else ""
        notes.append(f"also in the file, not taken: {listed(others)}{advice}")


def no_such_weights(asked: WhichWeights, found: list[str]) -> CheckpointError:
    """What is said where nothing in the file is called as was asked."""
    guess = None if asked == "ema" else did_you_mean(asked, found)
    what = "EMA entry" if asked == "ema" else f"entry '{weights_io.sanitize(asked)}' of weights"
    return CheckpointError(
        f"there is no {what} in this file",
        got=listed(found) if found else "one set of weights",
        wanted="an entry such as " + ", ".join(_EMA_KEYS) if asked == "ema" else None,
        advice=guess or "use --weights model",
    )


def one_of_shards(file: str, count: int) -> CheckpointError | None:
    """What is said of a file that holds no whole network, if it is called as a shard is."""
    if _SHARD.search(file) is None:
        return None
    return CheckpointError(
        f"{weights_io.sanitize(file)} is one of several shards, with a part of the arrays",
        got=f"{count} arrays",
        wanted="the index beside it (a file ending in .index.json), or their folder",
    )


def _arrays_of_module(module: PickledModule, notes: list[str]) -> dict[str, LazyArray]:
    """What the state dict of a module would hold; it is walked here, and its class never asked."""
    arrays = module.arrays()
    shown = weights_io.sanitize(module.type_name)
    if not arrays:
        raise CheckpointError(
            "the module in this file has no arrays",
            got=f"a pickled {shown}",
            wanted="a network's module or state dict",
        )
    notes.append(f"a whole module, {shown}, read as data: its class was neither imported nor asked")
    return arrays


def _arrays_of(mapping: Mapping[Any, Any]) -> dict[str, LazyArray]:
    if not _is_among((LazyArray,), mapping.values()):
        _refuse_strangers(mapping)
        return {}
    arrays = {key: v for key, v in mapping.items() if isinstance(v, LazyArray)}
    odd = [
        key
        for key, v in mapping.items()
        if not (isinstance(key, str) and (key in arrays or key.endswith(_NO_ARRAY)))
    ]
    if odd:
        _refuse_strangers(mapping)
        raise CheckpointError(
            "some entries among the weights are no arrays, or of a type that no weights have",
            got=listed([_with_type(key, mapping[key]) for key in odd[: _SHOWN + 1]], len(odd)),
            wanted="names with arrays only",
        )
    return arrays


def _with_type(key: Any, value: Any) -> str:
    name = _spelled(key)
    return f"{name} ({value.type_name})" if isinstance(value, Inert) else name


def _refuse_strangers(mapping: Mapping[Any, Any]) -> None:
    """Raise if an object of an unknown class is among weights, or in their place."""
    if not _is_among((PickledModule, Inert), mapping.values()):
        return
    for key, value in mapping.items():
        is_module = isinstance(value, PickledModule)
        if is_module or (isinstance(value, Inert) and not value.is_listed):
            is_class = value.type_name == "type"
            name = value.value if is_class and not is_module else value.type_name
            named, entry = weights_io.sanitize(name), weights_io.sanitize(key)
            raise RefusedGlobalError(
                f"refused global {named} (in the entry {entry}): only arrays are read, and nothing "
                "that a file names is imported",
                advice="if this is a whole model, re-save the weights alone where its code is: "
                "torch.save(model.state_dict(), path)",
            )


def listed(names: list[str], count: int | None = None) -> str:
    """A short list for one line: names made printable, the tail counted (of `count`, if given)."""
    shown = ", ".join(weights_io.sanitize(name) for name in names[:_SHOWN])
    more = (len(names) if count is None else count) - _SHOWN
    return (shown or "none") + (f", ... {more} more" if more > 0 else "")
