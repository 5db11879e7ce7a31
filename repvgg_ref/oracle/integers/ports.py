"""A port's numbers under the network's names: of a dump, a program or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.dumps import read_npz
from repvgg_ref.oracle.candidates.manifest import read_folder
from repvgg_ref.oracle.candidates.names import LayerNames, is_input
from repvgg_ref.oracle.candidates.outside import EXEC, is_module, run_command
from repvgg_ref.oracle.candidates.values import last_line
from weights_io import sanitize

INPUT = "input"
IMAGES, SIDE = 2, 64  # of the images that a port is run on where none are given
_POOLS = frozenset({"pool", "avgpool", "avg.pool", "gap", "global.pool", "globalaveragepool"})

Numbers = tuple[dict[str, Array], list[str]]


def numbers_of(
    candidate: Any, network: IntegerNetwork, inputs: Array | None, timeout: float
) -> Numbers:
    """The candidate's numbers under the network's names, and what should be said of them.

    A dump may hold its own input; what is run gets `inputs`, or images of our own.

    Raises
    ------
    CandidateFailure
        If it cannot be read or run, or names what the network has not.
    """
    if isinstance(candidate, IntegerNetwork):
        x = images_for(network, inputs)
        return {INPUT: candidate.entered(x)} | candidate.forward(x), []
    if isinstance(candidate, Mapping):
        return _renamed(_arrays(candidate), network, inputs)
    if isinstance(candidate, str | Path):
        return _of_text(str(candidate), network, inputs, timeout)
    if callable(candidate):
        x = network.entered(images_for(network, inputs))
        return _renamed(_called(candidate, x, network), network, x)
    raise CandidateFailure(
        "this is no candidate",
        got=type(candidate).__name__,
        wanted="a path, exec:command {input} {output}, a callable or a dict of integer arrays",
    )


def images_for(
    network: IntegerNetwork,
    inputs: Array | None,
    *,
    count: int = IMAGES,
    extent: tuple[int, int] = (SIDE, SIDE),
) -> Array:
    """`inputs`, or real images whose numbers use the whole range of the first layer's input."""
    if inputs is not None:
        return inputs
    first = network.layers[0].input
    limits = np.iinfo(first.dtype)
    shape = (count, network.in_channels, *extent)
    numbers = np.random.default_rng(0).integers(limits.min, limits.max + 1, shape)
    return first.real(numbers.astype(first.dtype))


def _of_text(text: str, network: IntegerNetwork, inputs: Array | None, timeout: float) -> Numbers:
    path = Path(text)
    if path.is_dir():
        return _renamed(_arrays(read_folder(path).arrays), network, inputs)
    if text.startswith(EXEC):
        x = network.entered(images_for(network, inputs))
        command = text.removeprefix(EXEC)
        dump = run_command(sanitize(command), command, x, timeout)
        return _renamed(_arrays(dump.arrays), network, x)
    if is_module(text) and not path.exists():
        raise CandidateFailure(
            f"{sanitize(text)}: a function of integers is not called in another process",
            wanted="exec:command {input} {output}, which gets the input's integers as .npy, or a "
            "dump; in Python, the function itself",
        )
    return _renamed(dict(read_npz(path).arrays), network, inputs)


def _called(function: Callable[..., Any], x: Array, network: IntegerNetwork) -> dict[str, Array]:
    """What a function of the input's numbers returns: a dict of layers, or the last one's."""
    try:
        found = function(x.copy())
    except (Exception, SystemExit) as error:
        raise CandidateFailure("the candidate failed", got=last_line(error), refused=True) from None
    return _arrays(found if isinstance(found, Mapping) else {network.layers[-1].name: found})


def _arrays(numbers: Mapping[Any, Any]) -> dict[str, Array]:
    """Arrays of numbers, whatever library or nested lists they come from."""
    arrays = {}
    for name, given in numbers.items():
        try:
            array = np.asarray(given)
        except Exception as error:  # lists of uneven length; another library's refusals
            raise CandidateFailure(
                f"{sanitize(str(name))}: no array", got=last_line(error)
            ) from None
        if array.dtype.kind not in "iuf":
            raise CandidateFailure(
                f"{sanitize(str(name))}: holds no numbers",
                got=array.dtype,
                wanted="arrays in the activations' type",
            )
        arrays[str(name)] = array
    return arrays


def _renamed(
    numbers: dict[str, Array], network: IntegerNetwork, inputs: Array | None = None
) -> Numbers:
    """By the names that layers go by; by order where no name is known and there are as many."""
    numbers = {INPUT if is_input(name) else name: array for name, array in numbers.items()}
    if inputs is not None:
        numbers = {INPUT: _entered(numbers, network.entered(inputs))} | numbers
    names = [layer.name for layer in network.layers]
    given = [name for name in numbers if name != INPUT]
    found, unknown = _sorted_out(given, network)
    entered = {INPUT: numbers[INPUT]} if INPUT in numbers else {}
    if not found and len(given) == len(names):
        renamed = {ours: numbers[theirs] for ours, theirs in zip(names, given, strict=True)}
        return entered | renamed, ["layers are matched by their order"]
    if unknown:
        raise _names(network).unknown_names(unknown, "the dump")
    return entered | {layer: numbers[name] for layer, name in found.items()}, []


def _entered(numbers: Mapping[str, Array], entered: Array) -> Array:
    if not np.array_equal(numbers.get(INPUT, entered), entered):
        raise CandidateFailure(
            "the dump was made on another input than the one it is to be judged on",
            got=f"shape {numbers[INPUT].shape}, other numbers",
            wanted=f"shape {entered.shape}, the numbers given or those of the bundle",
            advice="run the port on that input, or judge the dump by the network alone",
        )
    return entered


def _sorted_out(given: list[str], network: IntegerNetwork) -> tuple[dict[str, str], list[str]]:
    """Layer -> its name in the dump, and names that mean none."""
    names = [layer.name for layer in network.layers]
    pools = [layer.name for layer in network.layers if layer.kind == "pool"]
    exact = {name: name for name in given if name in names}
    others = [name for name in given if name not in exact]
    sorted_names = _names(network).sort(others)
    found = dict(sorted_names.layers)
    lost = set(others) - set(found.values()) - {sorted_names.input}
    for name in sorted(lost):
        if len(pools) == 1 and pools[0] not in found and _is_pool(name):
            found[pools[0]] = name
    twice = sorted(set(found) & set(exact))
    if twice:
        raise CandidateFailure(
            f"two arrays are both the output of {twice[0]}",
            got=f"{twice[0]} and {sanitize(found[twice[0]])}",
            wanted="one array a layer",
        )
    return exact | found, sorted(lost - set(found.values()))


def _is_pool(name: str) -> bool:
    return name.lower().replace("_", ".").removesuffix(".output") in _POOLS


@dataclass(frozen=True)
class _Layer:
    name: str
    se: str = "none"


@dataclass(frozen=True)
class _Chain:
    """What `LayerNames` asks of a network."""

    layer_names: tuple[str, ...]
    blocks: tuple[_Layer, ...]
    aux_heads: tuple[()] = ()
    is_dense: bool = False
    is_chain: bool = True
    head: _Layer = _Layer("linear")


def _names(network: IntegerNetwork) -> LayerNames:
    names = tuple(layer.name for layer in network.layers)
    return LayerNames(cast(Any, _Chain(names, tuple(map(_Layer, names)))))
