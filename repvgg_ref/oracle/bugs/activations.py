"""The activation of a block: missing, another one, or in another place."""

from __future__ import annotations

from dataclasses import replace

from repvgg_ref.oracle.bugs.base import BlockSite, BlockVariants, Variant, bug


@bug(
    "relu-missing",
    says="there is no ReLU after the block",
    advice="apply ReLU to the sum of the branches",
)
def relu_missing(site: BlockSite) -> BlockVariants:
    left = "se" if "se" in site.program.activation else "none"
    yield Variant(replace(site.program, activation=left))


@bug(
    "relu-inside-branches",
    says="ReLU is applied in every branch before the sum",
    advice="sum the branches first, then apply one ReLU; branches with ReLU cannot be fused",
)
def relu_inside_branches(site: BlockSite) -> BlockVariants:
    if len(site.program.branches) > 1:
        yield Variant(replace(site.program, relu_inside=True))


@bug(
    "relu-after-sum",
    says="one ReLU follows the sum, and none is in the branches",
    advice="every branch of this block has a ReLU of its own, before the sum",
)
def relu_after_sum(site: BlockSite) -> BlockVariants:
    if site.program.relu_inside:
        yield Variant(replace(site.program, relu_inside=False))


@bug(
    "activation-added",
    says="{detail} follows the layer, which has no activation function of its own",
    advice="pass its sum on as it is",
)
def activation_added(site: BlockSite) -> BlockVariants:
    if site.program.activation == "none":
        for name in ("relu", "relu6", "leaky", "silu", "hardswish", "gelu"):
            yield Variant(replace(site.program, activation=name), detail=name)


@bug(
    "other-activation",
    says="the activation is not ReLU but {detail}",
    advice="RepVGG uses plain ReLU",
)
def other_activation(site: BlockSite) -> BlockVariants:
    for detail in ("relu6", "leaky", "silu", "hardswish", "gelu", "gelu_tanh", "gelu_quick"):
        activation = site.program.activation.replace("relu", detail)
        yield Variant(replace(site.program, activation=activation), detail=detail)
