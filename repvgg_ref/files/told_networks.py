"""A network whose file holds its modules: what they say of it, and whether that is this network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from repvgg_ref.blocks.catalogue import expression, fused_conv
from repvgg_ref.blocks.linear import Conv, Sum
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.identify import block_of
from repvgg_ref.files.recorded import (
    SUMMED,
    cannot,
    eps_of,
    geometry_of,
    records_of,
    require_in_order,
    require_known,
    require_neutral,
    require_own_container,
    require_unaltered,
)
from repvgg_ref.models.geometry import Geometry
from repvgg_ref.models.graph import Network
from weights_io import LazyArray, ModuleRecord, sanitize

Arrays = Mapping[str, LazyArray]
_NAMED = ("nonlinearity", "act", "relu", "activation")  # what blocks call what follows their sum
_GATES = ("attn", "se", "post_se")  # and what gates it
_RELU = "ReLU"
_LEVELS = 2  # from a branch, or a convolution, up to its block


def told_geometry(canonical: Arrays) -> Geometry:
    """The strides and dilations of a chain's blocks, as the modules of their kernels say.

    Parameters
    ----------
    canonical : mapping
        Arrays under our names; those of no module say nothing.

    Raises
    ------
    CheckpointError
        If a module says what such a kernel cannot have, or strides of rows and columns differ.
    """
    widest: dict[str, str] = {}
    for name, array in canonical.items():
        block = block_of(name)
        if block is None or array.module is None or len(array.shape) != 4 or ".se." in name:
            continue
        if block not in widest or array.shape[2:] > canonical[widest[block]].shape[2:]:
            widest[block] = name
    return _geometry(canonical, widest)


def told_graph(canonical: Arrays, network: Network) -> Geometry:
    """The same for the blocks of a network that is known."""
    widest = {}
    for spec in network.blocks:
        names = [f"{spec.name}.{conv.name}.weight" for conv in _convs(spec, canonical)]
        held = [n for n in names if n in canonical and canonical[n].module is not None]
        if held:
            widest[spec.name] = max(held, key=lambda name: canonical[name].shape[2:])
    return _geometry(canonical, widest)


def _geometry(canonical: Arrays, widest: Mapping[str, str]) -> Geometry:
    strides, dilations = {}, {}
    for block, name in widest.items():
        record = canonical[name].module
        assert record is not None
        said = geometry_of(record, canonical[name].shape, centred=False)
        if len({*said.stride}) > 1 or len({*said.dilation}) > 1:
            got = f"stride {said.stride}, dilation {said.dilation}"
            raise cannot(record, "rows and columns differ", got, "one number for both")
        strides[block] = said.stride[0]
        if max(canonical[name].shape[2:]) > 1:
            dilations[block] = said.dilation[0]
    return Geometry(strides, dilations)


def told_eps(canonical: Arrays) -> float | None:
    """The eps of all batch norms of a network; None if no module says it.

    Raises
    ------
    CheckpointError
        If they have different ones, which no network here can have.
    """
    said: dict[float | None, str] = {}
    for name, array in canonical.items():
        if array.module is not None and name.endswith(".running_var"):
            said.setdefault(eps_of(array.module), array.module.path)
    if len(said) > 1:
        raise CheckpointError(
            "the batch norms of this network have different eps, and a network here has one",
            got=", ".join(f"{eps} in {sanitize(path)}" for eps, path in list(said.items())[:4]),
            wanted="one eps",
            advice="convert --family KIND fuses block by block, each with its own; --eps takes one",
        )
    return next(iter(said), None)


def require_as_told(network: Network, canonical: Arrays, said: Geometry) -> None:
    """Raise `CheckpointError` unless the modules are those of `network`.

    Each kernel must have the stride, padding, dilation and groups that it has there (but for what
    a user has `said`), no module may be altered, and what follows a block must be its ReLU.
    """
    records = records_of(canonical)
    for name, found in records.items():
        require_unaltered(found)
        require_known(found, name)
        for child in found.children.values():
            require_neutral(child)
    inside = {id(found) for found in records.values()}
    for found in _above(records.values()):
        require_unaltered(found)
        require_own_container(found)
    for spec in network.blocks:
        names = (f"{spec.name}.{leaf}" for leaf in expression(spec).shapes())
        require_in_order(records[name] for name in names if name in records)
        for conv in _convs(spec, canonical):
            name = f"{spec.name}.{conv.name}.weight"
            if name in records:
                _require_same(spec, conv, records[name], canonical[name].shape, said)
                _require_surroundings(spec, records[name], inside)


def _above(records: Iterable[ModuleRecord]) -> list[ModuleRecord]:
    """What holds these modules, up to the whole."""
    met: dict[int, ModuleRecord] = {}
    for found in records:
        above = found.parent
        while above is not None and id(above) not in met:
            met[id(above)] = above
            above = above.parent
    return list(met.values())


def _convs(spec: BlockSpec, held: Mapping[str, Any]) -> list[Conv]:
    """The convolutions of a block, in the form in which it is there."""
    fused = f"{spec.name}.fused.weight" in held
    return [fused_conv(spec)] if fused else list(_leaves(expression(spec)))


def _leaves(linear: Any) -> Iterator[Conv]:
    if isinstance(linear, Conv):
        yield linear
    for part in getattr(linear, "parts", ()):
        yield from _leaves(part)


def _require_same(
    spec: BlockSpec, conv: Conv, record: ModuleRecord, shape: tuple[int, ...], said: Geometry
) -> None:
    told = geometry_of(record, shape, centred=False)
    wanted = {"groups": conv.groups, "padding": conv.padding}
    if spec.name not in said.strides:
        wanted["stride"] = conv.stride
    if conv.kernel != (1, 1):
        wanted["dilation"] = conv.dilation
    if spec.name in said.dilations:
        del wanted["padding"], wanted["dilation"]
    for what, value in wanted.items():
        if (got := getattr(told, what)) != value:
            raise cannot(record, f"its {what} is not {sanitize(spec.name)}'s", got, value)


def _require_surroundings(spec: BlockSpec, record: ModuleRecord, inside: set[int]) -> None:
    """No activation in a branch, and the block's own behind its sum, where modules say it."""
    above = record.parent
    if above is not None and _is_branch(spec, above, inside):
        for child in above.children.values():
            if id(child) not in inside:
                require_neutral(child)
        above = above.parent
        if above is not None and above.type_name == SUMMED:
            _require_members(above, inside)
            above = above.parent
        if above is not None:
            _require_members(above, inside, (*_NAMED, *_GATES))
    wanted = _RELU if spec.activation == "relu" else "Identity"
    for _ in range(_LEVELS):
        if above is None:
            return
        for name in _NAMED:
            kind = above.children[name].type_name if name in above.children else _RELU
            if kind.rpartition(".")[2] not in (wanted, _RELU):
                raise cannot(above, f"its {name} is no {wanted}", kind, wanted)
        above = above.parent


def _require_members(block: ModuleRecord, inside: set[int], behind: tuple[str, ...] = ()) -> None:
    """No part beside the branches but what stands `behind` their sum; no gate without arrays."""
    for name, child in block.children.items():
        if _holds(child, inside) or (name in _NAMED and name in behind):
            continue
        if name not in behind:
            raise cannot(child, "no such block has such a part", child.type_name, "None")
        require_neutral(child)


def _holds(module: ModuleRecord, inside: set[int]) -> bool:
    """Whether it is one of the modules `inside`, or holds one."""
    return id(module) in inside or any(_holds(c, inside) for c in module.children.values())


def _is_branch(spec: BlockSpec, module: ModuleRecord, inside: set[int]) -> bool:
    """Whether it holds one of several convolutions and its batch norm: it is no whole block."""
    held = [child for child in module.children.values() if id(child) in inside]
    return len(held) == 2 and isinstance(expression(spec), Sum)
