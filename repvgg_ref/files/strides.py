"""What the names of a block's arrays prove of its stride; what they do not is taken by position.

A block that adds its input has stride 1 and equal widths. A block that does not may have any
stride: forks set it to 1 after the network was built, and no branch comes by that.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.geometry import Geometry, geometry_of, usual_stride
from repvgg_ref.models.graph import Network

_COUNTER = ".num_batches_tracked"


def assumed_geometry(network: Network, form: str, said: Geometry) -> Geometry:
    """What of the network's geometry was neither `said` nor proved by arrays of this form."""
    known = geometry_of(network)
    wide = {spec.name for spec in network.blocks if spec.kernel > 1}
    proved = {spec.name for spec in network.blocks if form == "train" and _proves_stride(spec)}
    return Geometry(
        {n: s for n, s in known.strides.items() if n not in said.strides and n not in proved},
        {n: d for n, d in known.dilations.items() if n not in said.dilations and n in wide},
    )


def _proves_stride(spec: BlockSpec) -> bool:
    """Whether the block has arrays that no stride but 1 leaves it."""
    return spec.stride == 1 and part_names(spec) != part_names(replace(spec, stride=2))


def part_names(spec: BlockSpec, *, counted: bool = False) -> frozenset[str]:
    """The names of the block's arrays, batch norm's counters only if `counted`."""
    return _part_names(replace(spec, name=""), counted)  # of hundreds of blocks few are different


@lru_cache(maxsize=1024)
def _part_names(spec: BlockSpec, counted: bool) -> frozenset[str]:
    return frozenset(n for n in expression(spec).shapes() if counted or not n.endswith(_COUNTER))


def with_input(spec: BlockSpec, held: set[str], counted: bool, said: Geometry) -> BlockSpec:
    """The block that adds its input, or does not, as its arrays say; the first of a stage only.

    Adding it proves stride 1. Without it the block may have had a stride when it was built.
    """
    if usual_stride(spec.name) == 1:
        return spec
    said_so = spec.name in said.strides
    other = replace(spec, adds_input=False) if said_so else replace(spec, stride=1)
    fits = [each for each in (spec, other) if part_names(each, counted=counted) == held]
    return fits[0] if fits else spec


def require_stride(spec: BlockSpec, held: set[str], counted: bool) -> None:
    """Refuse a stride that was said of a block whose arrays prove another."""
    straight = replace(spec, stride=1)
    if part_names(spec, counted=counted) != held == part_names(straight, counted=counted):
        raise CheckpointError(
            f"{spec.name} adds its input, so its stride is 1 and its widths are equal",
            got=f"stride {spec.stride}",
            wanted="stride 1, as the arrays of its identity branch prove",
            advice=f"leave {spec.name} out of --strides",
        )
