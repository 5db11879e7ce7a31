"""Which network that is no chain of stages is this? Told by the names and shapes of its arrays.

Networks of one family have the same names (ResNet-50, ResNeXt-50), and only shapes part them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from typing import NamedTuple

from repvgg_ref.files.found import Found
from repvgg_ref.files.identify import UNSAID, Shape
from repvgg_ref.files.pspnets import identify_pspnet, is_pspnet
from repvgg_ref.models.baselines import torchvision_geometry
from repvgg_ref.models.geometry import Geometry, with_geometry
from repvgg_ref.models.graph import Network, Node
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Flatten, Form
from repvgg_ref.models.names import CANONICAL, TORCHVISION, published_names
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.registry import MAKERS, find_name, graphs, usual

_MATRIX = 2  # axes
_COUNTER = ".num_batches_tracked"
_SIZES = (224, *range(32, 1025, 32))
"""Sides of images that a network for one size is tried with: what it halves five times."""


def identify_graph(
    shapes: Mapping[str, Shape],
    model: str = "auto",
    said: Geometry = UNSAID,
    *,
    form: str | None = None,
) -> Found | None:
    """The network that has arrays of these names, in our words or those of published code.

    `model` is "auto" or a name that must be met, `form` what our metadata says, which decides where
    both forms have the same arrays. Of several the one whose shapes are right, else the first: its
    sizes of single arrays may differ. Batch norm's counters may be missing; of a PSPNet, told by
    `pspnets.identify_pspnet`, anything may. A deploy form may have kept the batch norm of its head.
    """
    if is_pspnet(shapes):
        return identify_pspnet(shapes, model, said)
    if not any(len(shape) == _MATRIX for shape in shapes.values()):
        return None  # every network ends in a linear layer; to build them all takes a while
    held = frozenset(name for name in shapes if not name.endswith(_COUNTER))
    first: Found | None = None
    for name, its_form, *how in _named_so(held, model, form):
        names, published = _names(name, its_form, *how), how[0]
        if not shapes.keys() <= names.keys():  # counters of no batch norm
            continue
        canonical = {theirs: names[theirs] for theirs in shapes}
        found = _sized(name, its_form, {ours: shapes[t] for t, ours in canonical.items()})
        if found is None:
            continue
        its = torchvision_geometry(found.network) if published else UNSAID
        network = with_geometry(found.network, its | said)
        known = Found(network, its_form, canonical, TORCHVISION if published else CANONICAL)
        if found.fits:
            return known
        first = first or known
    return first


def _named_so(
    held: frozenset[str], model: str, form: str | None
) -> Iterator[tuple[str, Form, bool, bool]]:
    """Name, form, whether the names are the published ones, and whether the head is not fused."""
    forms: tuple[Form, ...] = ("deploy", "train") if form == "deploy" else ("train", "deploy")
    for name in graphs():
        if model != "auto" and find_name(model) != name:
            continue
        for its_form in forms:
            for how in product((True, False), _heads(name, its_form)):
                if held and held == _held_names(name, its_form, *how):
                    yield name, its_form, *how


def _heads(name: str, form: Form) -> tuple[bool, ...]:
    """Whether the head of a form may be as it was trained."""
    return (
        (False, True) if form == "deploy" and isinstance(_head(name).op, NormLinear) else (False,)
    )


class _Sized(NamedTuple):
    network: Network
    fits: bool


def _sized(name: str, form: Form, shapes: Mapping[str, Shape]) -> _Sized | None:
    """The network called `name` for the classes, channels and size that the shapes say."""
    published = usual(name)
    entry, head = next(iter(param_shapes(published, form))), f"{published.head.name}.weight"
    ends = {"num_classes": shapes[head][:1], "in_channels": shapes[entry][1:2]}
    given = {key: end[0] for key, end in ends.items() if end}
    if not all(given.values()):  # a network of no channels, or no classes
        return None
    for size in _SIZES:
        found = MAKERS[name](**given, size=size)
        wanted = param_shapes(found, form)
        if all(shapes.get(n, s) == s for n, s in wanted.items()):
            return _Sized(found, True)
        if not any(isinstance(node.op, Flatten) for node in found.nodes):
            break  # it takes images of any size
    return _Sized(MAKERS[name](**given), False)


def _head(name: str) -> Node:
    return usual(name).head


@cache
def _names(name: str, form: Form, published: bool, kept_head: bool = False) -> dict[str, str]:
    """Their name -> ours."""
    if kept_head:
        of_head = f"{_head(name).name}."
        trained, fused = _names(name, "train", published), _names(name, form, published)
        return {n: ours for n, ours in fused.items() if not ours.startswith(of_head)} | {
            n: ours for n, ours in trained.items() if ours.startswith(of_head)
        }
    network = usual(name)
    if published:
        return {theirs: ours for ours, theirs in published_names(network, form).items()}
    return {each: each for each in param_shapes(network, form)}


@cache
def _held_names(name: str, form: Form, published: bool, kept_head: bool) -> frozenset[str]:
    names = _names(name, form, published, kept_head)
    return frozenset(n for n in names if not n.endswith(_COUNTER))
