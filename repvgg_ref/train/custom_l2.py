"""The first official trainer's L2 on equivalent kernels, in place of the branches' own decay.

With ``t_k = gamma_k / sqrt(running_var_k + eps)``, taken as constants, a block adds

    L2 = sum K3^2 - sum K3[:, :, 1, 1]^2 + sum (K3[:, :, 1, 1] t3 + K1 t1)^2 / (t3^2 + t1^2)

and the loss ``weight_decay / 2 * sum of L2``: the centre tap decays as the branches use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.recognise import Branch, three_branches
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.graph import Network


class CustomL2(NamedTuple):
    """The penalty ``weight_decay / 2 * sum of L2``, and its gradients by canonical name."""

    loss: Any
    grads: dict[str, Array]


def custom_l2(
    arch: Network, params: Mapping[str, Array], *, eps: float, weight_decay: float
) -> CustomL2:
    """Penalty and gradients at `params` (canonical names, running variances included)."""
    loss: Any = 0
    grads: dict[str, Array] = {}
    for spec, dense, thin in _penalised(arch):
        k3, k1 = (params[f"{spec.name}.{b.conv}.weight"] for b in (dense, thin))
        t3, t1 = (_scale(params, f"{spec.name}.{b.norm}", eps) for b in (dense, thin))
        centre, point = k3[:, :, 1, 1], k1[:, :, 0, 0]  # (O, C/G) each
        norm = t3 * t3 + t1 * t1
        equivalent = centre * t3 + point * t1
        loss = loss + (k3 * k3).sum() - (centre * centre).sum() + (equivalent**2 / norm).sum()
        grad_k3 = weight_decay * k3
        grad_k3[:, :, 1, 1] = weight_decay * equivalent * t3 / norm
        grads[f"{spec.name}.{dense.conv}.weight"] = grad_k3
        grad_k1 = weight_decay * equivalent * t1 / norm
        grads[f"{spec.name}.{thin.conv}.weight"] = grad_k1[:, :, None, None]
    return CustomL2(weight_decay / 2 * loss, grads)


def penalised_kernels(arch: Network) -> frozenset[str]:
    """The kernels that the penalty is made of, by canonical name; all others decay as usual.

    Only blocks with a 3x3 and a 1x1 branch, a batch norm behind each and no branch without one have
    such a penalty: the official code defines it for no other.
    """
    return frozenset(
        f"{spec.name}.{branch.conv}.weight"
        for spec, *branches in _penalised(arch)
        for branch in branches
    )


def _penalised(arch: Network) -> Iterator[tuple[BlockSpec, Branch, Branch]]:
    """The blocks that have such a penalty, with their 3x3 and their 1x1 branch."""
    for spec in arch.blocks:
        found = three_branches(expression(spec))
        if found is not None and found.point is not None:
            yield spec, found.dense, found.point


def _scale(params: Mapping[str, Array], bn: str, eps: float) -> Array:
    """``gamma / sqrt(running_var + eps)``, (O, 1)."""
    gamma, var = params[f"{bn}.gamma"], params[f"{bn}.running_var"]
    scale: Array = (gamma / array_module(gamma).sqrt(var + eps))[:, None]
    return scale
