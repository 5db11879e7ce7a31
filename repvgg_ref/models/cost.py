"""What a network costs: parameters, multiply-accumulates, Winograd multiplications, activations.

Source: Tables 4 and 5 of arXiv 2101.03697. The paper's "FLOPs" are multiply-accumulates of the
convolutions and the linear layer at 224 x 224; its "Wino MULs" (section 3.1) count 4/9 of them for
a stride-1 3x3 convolution, as F(2x2, 3x3) needs 16 multiplications where the sum has 36.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

from repvgg_ref.errors import ReportedError
from repvgg_ref.models.graph import Network, extents
from repvgg_ref.models.layers import Form
from repvgg_ref.models.parameters import is_trainable, param_shapes
from repvgg_ref.models.registry import network


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts of one network; `macs` and `wino_muls` are of the fused form, one image."""

    name: str
    params_train: int
    params_deploy: int
    macs: int
    wino_muls: Fraction


def cost(arch: Network | str, *, height: int = 224, width: int = 224) -> Cost:
    """Count `arch`, or the network of that name, at an input of ``(in_channels, height, width)``.

    Auxiliary heads count in `params_train` only: they do not exist in the fused form.

    Raises
    ------
    ReportedError
        If it is neither a network nor the name of one.
    """
    if isinstance(arch, str):
        arch = network(arch)
    if not isinstance(arch, Network):
        raise ReportedError(
            "cost counts a network",
            got=type(arch).__name__,
            wanted="a name of list_models(), or an Architecture",
            advice="of a model: cost(model.arch)",
        )
    sizes = extents(arch, height, width)
    macs = [node.op.macs(sizes[node.name]) for node in arch.evaluated]
    return Cost(
        name=arch.name,
        params_train=parameters(arch, "train"),
        params_deploy=parameters(arch, "deploy"),
        macs=sum(each.direct for each in macs),
        wino_muls=sum((each.winograd for each in macs), start=Fraction(0)),
    )


def parameters(arch: Network, form: Form) -> int:
    """Numbers that are trained, or that a fused form holds."""
    shapes = param_shapes(arch, form)
    return sum(prod(shape) for name, shape in shapes.items() if is_trainable(name))
