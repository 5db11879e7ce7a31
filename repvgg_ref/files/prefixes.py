"""The network among the arrays of a mapping: what its names begin with, and what lies beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.dialects import recognise
from repvgg_ref.files.graphs import identify_graph
from repvgg_ref.files.wrappers import Selected, is_average, listed, no_such_weights
from weights_io import LazyArray, sanitize

Arrays = dict[str, LazyArray]

# Where a dialect's name of a stage may begin. mmpretrain's begins with "backbone.".
_STAGE = re.compile(r"(?:^|(?<=\.))(?=(?:backbone\.)?(?:stem|stage\d|stages\.\d|stage_\d))")
# Wrappers that torch puts in front of a part of a network.
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_MOST_PREFIXES = 8  # that are tried, the commonest first
_MOST_IN_A_NAME = 4
_LONGEST = 200  # characters
_GRAPH_DEPTH = 4
_BARE = "(none)"  # how the prefix of a network without one is listed, and asked for
# A prefix under which less than this share of the largest network is read holds no network.
_LEAST_SHARE = 0.25


class Found(NamedTuple):
    """A network's arrays without their prefix, and all others under their whole names."""

    arrays: Arrays
    beside: Arrays


def take_network(selected: Selected, notes: list[str]) -> Found:
    """Take the prefix off the network's names, such as ``module.`` or ``model._orig_mod.``.

    Raises
    ------
    CheckpointError
        If several prefixes could be meant, or none is called as was asked.
    """
    arrays = _without_inner(selected.arrays, notes)
    networks = _networks(arrays)
    prefix = _choice(networks, selected)
    others = tuple(other for other in networks if other != prefix)
    if prefix:
        beside = {name: array for name, array in arrays.items() if not name.startswith(prefix)}
    else:  # nothing tells the network's names from a stranger's, but another network's prefix
        beside = {n: a for n, a in arrays.items() if others and n.startswith(others)}
    inside = {n.removeprefix(prefix): a for n, a in arrays.items() if n not in beside}
    if prefix:
        where = f"from {len(inside)} of {len(arrays)} names" if beside else "from every name"
        notes.append(f"prefix '{sanitize(prefix)}' removed {where}")
    strangers = [name for name in beside if not (others and name.startswith(others))]
    if strangers:
        notes.append(f"beside the network, not taken: {listed(strangers)}")
    if others:
        notes.append(f"also in the file, not taken: the network behind {listed(list(others))}")
    return Found(inside, beside)


def _without_inner(arrays: Arrays, notes: list[str]) -> Arrays:
    """Take out what torch.compile, FSDP and checkpointing put before parts of a network.

    At the start of a name it is a prefix, which tells the network from what lies beside it.
    """
    for word in _INNER:
        short = {name: _without(name, word) for name in arrays if word in name}
        changed = {old: new for old, new in short.items() if old != new}
        if changed and len({*changed.values()} | (arrays.keys() - changed)) == len(arrays):
            arrays = {changed.get(name, name): array for name, array in arrays.items()}
            notes.append(f"'{word}.' removed from {len(changed)} names")
    return arrays


def _without(name: str, word: str) -> str:
    first, *rest = name.split(".")
    return ".".join([first, *(part for part in rest if part != word)])


def _networks(arrays: Arrays) -> list[str]:
    """The prefixes that a network stands behind, the one of most arrays first."""
    counts = Counter(prefix for name in arrays for prefix in _prefixes(name))
    if set(counts) == {""}:
        return [""]
    read: dict[str, set[str]] = {}
    for prefix, _ in counts.most_common(_MOST_PREFIXES):
        names = [n.removeprefix(prefix) for n in arrays if n.startswith(prefix)]
        recognised = recognise(names)
        if recognised is not None:
            read[prefix] = {prefix + name for name in recognised[1]}
    found: list[str] = []
    for prefix in sorted(read, key=lambda prefix: -len(read[prefix])):
        large = not found or len(read[prefix]) >= _LEAST_SHARE * len(read[found[0]])
        # "backbone." can be read as a part of mmpretrain's names, too
        if large and all(read[prefix].isdisjoint(read[other]) for other in found):
            found.append(prefix)
    return found or [_graph_prefix(arrays)]


def _prefixes(name: str) -> Iterable[str]:
    for count, match in enumerate(_STAGE.finditer(name)):
        if count == _MOST_IN_A_NAME or match.start() > _LONGEST:
            return
        yield name[: match.start()]


def _graph_prefix(arrays: Arrays) -> str:
    """The prefix of a network without stages: what most of its names begin with, step by step."""
    prefix, names = "", list(arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    for _ in range(_GRAPH_DEPTH):
        counts = Counter(name[len(prefix) :].partition(".")[0] for name in names)
        word, count = counts.most_common(1)[0] if counts else ("", 0)
        if 2 * count <= len(arrays):  # no network is mostly outside its prefix
            break
        if prefix and identify_graph({n.removeprefix(prefix): shapes[n] for n in names}):
            return prefix
        prefix += word + "."
        names = [name for name in names if name.startswith(prefix)]
    found = prefix and identify_graph({n.removeprefix(prefix): shapes[n] for n in names})
    return prefix if found else ""


def _choice(prefixes: list[str], selected: Selected) -> str:
    """The one prefix that is meant."""
    asked = selected.asked
    if asked == "ema":
        fitting = [prefix for prefix in prefixes if is_average(prefix)]
    elif asked == "model":
        fitting = [prefix for prefix in prefixes if not is_average(prefix)] or prefixes
    else:
        word = asked.rstrip(".")  # as it is typed, or as it is listed
        names = {p: p.rstrip(".") or _BARE for p in prefixes}
        fitting = [p for p, name in names.items() if word == name or word in name.split(".")]
    shown = [prefix.rstrip(".") for prefix in prefixes if prefix]
    if not fitting:
        raise no_such_weights(asked, selected.entries + shown)
    if len(fitting) > 1:
        raise CheckpointError(
            "several networks stand side by side in the file",
            got="the prefixes " + listed([prefix or _BARE for prefix in prefixes]),
            wanted="one of them",
            advice=f"name it: --weights {sanitize(shown[0])}",
        )
    return fitting[0]
