"""Which network is it? From names and shapes alone; no array is needed for any of this."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from typing import Any, get_args

import pytest

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.dialects import MEGENGINE, MMPRETRAIN, TIMM, recognise
from repvgg_ref.files.graphs import identify_graph
from repvgg_ref.files.identify import closest_official, form_of, identify
from repvgg_ref.models.architectures import NAMES, Architecture, architecture, plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import OFFICIAL, PLUS, Dialect
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.registry import network

FORMS = get_args(Form)


def _order_of_se(arch: Network) -> Any:
    return "after_relu" if arch.blocks[0].se == "after_relu" else "before_relu"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_every_official_model_is_recognised_from_its_shapes(name: str, form: Form) -> None:
    arch = architecture(name)
    found = identify(param_shapes(arch, form), form, se=_order_of_se(arch))
    assert found.name == name
    assert found.blocks == arch.blocks
    assert found.aux_heads == (arch.aux_heads if form == "train" else ())
    assert form_of(param_shapes(arch, form)) == form


@pytest.mark.parametrize("form", FORMS)
def test_official_shapes_differ_pairwise(form: Form) -> None:
    """So a name never depends on the order in which models are tried."""
    shapes = {name: param_shapes(architecture(name), form) for name in NAMES}
    assert not [(a, b) for a, b in combinations(NAMES, 2) if shapes[a] == shapes[b]]


@pytest.mark.parametrize("name", ["RepVGG-A0", "RepVGG-A1", "RepVGG-B0"])
def test_equal_widths_at_stride_two_have_no_identity(name: str) -> None:
    first = identify(param_shapes(architecture(name), "deploy"), "deploy").block("stage1.0")
    assert first.in_channels == first.out_channels
    assert (first.stride, first.can_add_input) == (2, False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "arch",
    [
        # Holocron's "repvgg_a0" begins every stage with one block more.
        plain_architecture(
            depths=(3, 5, 15, 2), channels=(48, 48, 96, 192, 1280), num_classes=1000
        ),
        architecture("RepVGG-A0", num_classes=10),
        architecture("RepVGG-A0", in_channels=1),
        plain_architecture(
            depths=(2, 4, 14, 1), channels=(48, 48, 96, 192, 1024), num_classes=1000
        ),
        plain_architecture(depths=(1,), channels=(1, 1), num_classes=1, in_channels=1),
        plain_architecture(depths=(), channels=(7,), num_classes=2),
        plain_architecture(depths=(3, 2), channels=(8, 8, 16), groups=8, num_classes=2),
    ],
    ids=["holocron", "ten classes", "grey", "narrow end", "one channel", "stem only", "grouped"],
)
def test_whatever_is_not_official_is_custom(arch: Network, form: Form) -> None:
    found = identify(param_shapes(arch, form), form)
    assert found.name == "custom"
    assert (found.blocks, found.num_classes) == (arch.blocks, arch.num_classes)


def test_the_closest_official_model_is_a_hint_not_a_name() -> None:
    assert closest_official(architecture("RepVGG-B1g2", num_classes=10)) == "RepVGG-B1g2"
    assert closest_official(architecture("RepVGG-A0", in_channels=1)) == "RepVGG-A0"
    holocron = plain_architecture(
        depths=(3, 5, 15, 2), channels=(48, 48, 96, 192, 1280), num_classes=1000
    )
    assert closest_official(holocron) is None


@pytest.mark.parametrize("form", FORMS)
def test_an_official_name_may_be_asked_for_with_other_classes(form: Form) -> None:
    arch = architecture("RepVGG-A1", num_classes=10)
    assert identify(param_shapes(arch, form), form, model="RepVGG-A1") == arch
    with pytest.raises(CheckpointError, match="the shapes are not those of RepVGG-A0"):
        identify(param_shapes(arch, form), form, model="RepVGG-A0")


def _without(branch: str, arch: Architecture) -> Architecture:
    def strip(block: BlockSpec) -> BlockSpec:
        if branch == "1x1":
            return replace(block, kind="identity-only")
        return replace(block, kind="1x1-only")

    return replace(arch, name="custom", blocks=tuple(map(strip, arch.blocks)))


@pytest.mark.parametrize("branch", ["1x1", "identity"])
def test_ablations_are_told_from_their_keys(branch: str) -> None:
    """Table 6 of the paper; "custom" gives them no official name."""
    arch = _without(branch, architecture("RepVGG-B0"))
    shapes = param_shapes(arch, "train")
    assert identify(shapes, "train", model="custom") == arch
    assert identify(shapes, "train") == replace(arch, name="RepVGG-B0")
    lost = next(name for name in shapes if name == "stage4.0.branch_3x3.bn.beta")
    found = identify({n: shape for n, shape in shapes.items() if n != lost}, "train", block="auto")
    assert found.blocks[0].kind == "repvgg"  # a damaged file, whose absent branch is missing


# Only RepVGGplus has auxiliary heads, and only its own code base has names for them.
SPOKEN = [
    *product(("RepVGG-A0", "RepVGG-B1g4", "RepVGG-D2se"), (OFFICIAL, TIMM, MMPRETRAIN, MEGENGINE)),
    ("RepVGGplus-L2pse", PLUS),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "dialect"), SPOKEN, ids=lambda x: getattr(x, "name", x))
def test_every_dialect_is_read_as_it_is_written(name: str, dialect: Dialect, form: Form) -> None:
    written = dialect.names(param_shapes(architecture(name), form))
    assert len(set(written.values())) == len(written)
    found = recognise(written.values())
    assert found is not None
    assert found == (dialect, {theirs: ours for ours, theirs in written.items()})


def test_names_of_nothing_known_are_not_recognised() -> None:
    assert recognise(["conv1.weight", "fc.bias", "head.fc.weight", "linear.bias"]) is None
    assert recognise([]) is None


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("ResNet-18", {}),
        ("ResNet-50", {"num_classes": 7, "in_channels": 1}),
        ("VGG-16", {"num_classes": 10, "size": 64}),
    ],
)
def test_networks_that_are_no_chain_are_told_from_their_names_and_shapes(
    name: str, asked: dict[str, Any], form: Form
) -> None:
    arch = network(name, **asked)
    shapes = param_shapes(arch, form)
    for model in ("auto", name.lower()):
        found = identify_graph(shapes, model)
        assert found is not None
        assert (found.network, found.form) == (arch, form)
    assert identify_graph(shapes, model="RepVGG-A0") is None
    head = f"{arch.head.name}.weight"
    assert identify_graph(shapes | {head: (0, *shapes[head][1:])}) is None
    shapes.popitem()
    assert identify_graph(shapes) is None


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_a_chain_of_another_family_may_be_asked_for_by_name(form: Form) -> None:
    arch = network("MobileOne-S0")
    found = identify(param_shapes(arch, form), form, model="mobileone-s0", block="mobileone")
    assert found.name == "MobileOne-S0"
    assert found.blocks == arch.blocks
