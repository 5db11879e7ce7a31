"""Which arrays decay and which learn faster: what an official parameter name says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.train.sgd import Factors


def decay_kernels(name: str) -> Factors:
    """The paper's rule (section 4.1): weight decay on kernels of convolutions and linear layers.

    The identity branch is a bare batch norm, so its ``weight`` is a gamma and no kernel.
    """
    owner, _, field = name.rpartition(".")
    is_norm = owner.rpartition(".")[2] in _NORMS
    return Factors(decay=float(field == "weight" and not is_norm))


_NORMS = {"bn"} | {
    theirs.rpartition(".")[2]
    for each in KINDS.values()
    for ours, theirs in each.keys.items()
    if ours.rpartition(".")[2] == "bn"
}
"""What batch norms are called in the published code of some block."""


def official_first(name: str) -> Factors:
    """The first official trainer's rule: biases learn twice as fast; they and "bn" do not decay.

    It goes by the words in the official name, so gamma of the identity branch *is* decayed. Factors
    that other blocks have beside weights and biases it does not know: they do not decay.
    """
    return Factors(
        lr=2.0 if "bias" in name else 1.0,
        decay=float(name.endswith("weight") and "bn" not in name),
    )


def segmentation(name: str) -> Factors:
    """PSPNet's rule: everything decays; what stands behind the backbone learns ten times as fast.

    As the published code of PSPNet has it (paper, section 4.3, follows it).
    """
    return Factors(lr=10.0 if name.partition(".")[0] in _NEW_MODULES else 1.0, decay=1.0)


_NEW_MODULES = ("ppm", "cls", "aux")

DECAY_RULES: Mapping[str, Callable[[str], Factors]] = {
    "kernels": decay_kernels,
    "official-first": official_first,
    "segmentation": segmentation,
}


def factors_of(name: str, *, rule: str, custom_l2: bool = False) -> Factors:
    """What multiplies learning rate and decay of the parameter called `name`.

    Parameters
    ----------
    rule : str
        A key of `DECAY_RULES`.
    custom_l2 : bool
        The penalty of `custom_l2` is added to the loss, in place of the decay of the kernels that
        it is made of: those of the 3x3 and 1x1 branches.
    """
    factors = DECAY_RULES[rule](name)
    replaced = custom_l2 and name.endswith(("rbr_dense.conv.weight", "rbr_1x1.conv.weight"))
    return factors._replace(decay=0.0) if replaced else factors
