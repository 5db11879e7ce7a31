"""Which PSPNet is this? Told by its backbone, by the widths of its heads, and by what is said.

Its fast form has the same arrays: only dilations part the two, which no file of arrays can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.found import Found
from repvgg_ref.files.identify import UNSAID, Shape, form_of, identify, required_shape
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.geometry import Geometry, geometry_of, with_geometry
from repvgg_ref.models.graph import Graph
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import OFFICIAL, OFFICIAL_PSPNET, published_names
from repvgg_ref.models.pspnet import AUX_HEAD, FAST, PREFIX, pspnet
from repvgg_ref.models.registry import find_name

_STEM, _PYRAMID, _CLASSES = "layer0.", "ppm.features.", "cls."
_IMAGENET = 1000  # classes of the classifier that a backbone is told by


def is_pspnet(names: Mapping[str, object]) -> bool:
    """Whether names are those of a PSPNet on a RepVGG, more or fewer."""
    return all(
        any(name.startswith(start) for name in names) for start in (_STEM, _PYRAMID, _CLASSES)
    )


def identify_pspnet(
    shapes: Mapping[str, Shape], model: str = "auto", said: Geometry = UNSAID
) -> Found:
    """The network that has arrays of these names and shapes, or the closest one.

    Its canonical names are those of the arrays that it has; others are left out.

    Raises
    ------
    CheckpointError
        If a kernel is missing that says what the network is, or it is not the `model` asked for.
    """
    asked = find_name(model) if model not in ("auto", "custom") else None
    chain, form = _backbone(shapes)
    classes = required_shape(shapes, "cls.4.weight", 4)[0]
    widths = {"head": required_shape(shapes, "cls.0.weight", 4)[0], "aux_head": AUX_HEAD}
    if "aux.0.weight" in shapes:
        widths["aux_head"] = required_shape(shapes, "aux.0.weight", 4)[0]
    fits = [
        pspnet(chain, fast=fast, num_classes=classes, **widths)
        for fast in (False, True)
        if asked in (None, PREFIX + chain.name + (FAST if fast else ""))
    ]
    if not fits:
        raise CheckpointError(
            f"the shapes are not those of {asked or model}",
            got=PREFIX + chain.name,
            advice="leave --model auto to see what the file holds",
        )
    alike = (graph for graph in fits if geometry_of(graph) == geometry_of(graph) | _of(graph, said))
    network = with_geometry(next(alike, fits[0]), said)
    theirs = {name: ours for ours, name in published_names(network, form).items()}
    return Found(network, form, {n: theirs[n] for n in shapes if n in theirs}, OFFICIAL_PSPNET)


def _of(graph: Graph, said: Geometry) -> Geometry:
    """What is said of blocks that there are; of others `with_geometry` complains."""
    known = {spec.name for spec in graph.blocks}
    return Geometry(
        {n: s for n, s in said.strides.items() if n in known},
        {n: d for n, d in said.dilations.items() if n in known},
    )


def _backbone(shapes: Mapping[str, Shape]) -> tuple[Architecture, Form]:
    """The chain whose stages these are, as if it had kept its classifier."""
    stages = {
        "stage" + name.removeprefix("layer"): shape
        for name, shape in shapes.items()
        if name.startswith("layer")
    }
    parsed = OFFICIAL.parse(stages)
    canonical = {ours: stages[theirs] for theirs, ours in parsed.items()}
    said = form_of(canonical)
    if said not in ("train", "deploy"):
        raise CheckpointError(
            "the backbone of this PSPNet is neither trained nor fused",
            got=f"{len(canonical)} arrays, form {said}",
            wanted="branches (rbr_dense, rbr_1x1, ...) or fused kernels (rbr_reparam)",
        )
    form: Form = "train" if said == "train" else "deploy"
    features = required_shape(shapes, "ppm.features.0.1.weight", 4)[1]
    head = {"linear.weight": (_IMAGENET, features), "linear.bias": (_IMAGENET,)}
    return replace(identify(canonical | head, form), aux_heads=()), form
