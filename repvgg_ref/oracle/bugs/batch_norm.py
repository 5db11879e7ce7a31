"""Batch norm done differently. Every such bug is a branch with other numbers in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch
from repvgg_ref.oracle.bugs.base import BlockSite, BlockVariants, Variant, bug
from repvgg_ref.oracle.programs.block import BlockProgram

_EPS_TRIED = (1e-2, 2e-3, 1e-3, 1e-4, 1e-6, 1e-7, 1e-8, 1e-12)


def rescaled(branch: Branch, eps: float, scale: object) -> Branch:
    """The branch whose scale ``gamma / sqrt(var + eps)`` is `scale` instead."""
    return branch._replace(gamma=scale * np.sqrt(branch.running_var + eps))


def with_eps(program: BlockProgram, eps: float) -> BlockProgram:
    """The program with another eps inside the root, in norms inside branches, too."""
    if program.at_eps is not None:
        program = replace(program, branches=program.at_eps(eps))
    return with_norms(
        program,
        lambda _, b: rescaled(
            b, program.eps, b.gamma / np.sqrt(np.maximum(b.running_var + eps, 1e-300))
        ),
    )


def with_norms(program: BlockProgram, change: Callable[[str, Branch], Branch]) -> BlockProgram:
    """The program with every branch changed that has a batch norm."""
    return program.with_branches(lambda name, b: change(name, b) if b.has_norm else b)


@bug(
    "eps-value",
    says="batch norm adds eps = {parameter:.3g} where the reference adds another",
    advice="set eps of every batch norm to the reference's (official code: 1e-5), or give --eps",
    continuous=True,
)
def eps_value(site: BlockSite) -> BlockVariants:
    for eps in _EPS_TRIED if site.program.norms else ():
        if abs(eps / site.program.eps - 1) > 1e-3:
            yield Variant(with_eps(site.program, eps), eps, at=partial(with_eps, site.program))


@bug(
    "eps-outside-root",
    says="eps is added to the standard deviation: gamma / (sqrt(var) + eps)",
    advice="add eps to the variance, inside the square root",
)
def eps_outside_root(site: BlockSite) -> BlockVariants:
    eps = site.program.eps
    if site.program.norms:
        yield Variant(
            with_norms(
                site.program,
                lambda _, b: rescaled(b, eps, b.gamma / (np.sqrt(b.running_var) + eps)),
            )
        )


@bug(
    "eps-dropped",
    says="eps is left out: gamma / sqrt(var)",
    advice="add eps to the variance before the square root",
)
def eps_dropped(site: BlockSite) -> BlockVariants:
    normed = [b for b in site.program.branches.values() if b.has_norm]
    if normed and all((b.running_var > 0).all() for b in normed):
        yield Variant(with_eps(site.program, 0.0), 0.0)


@bug(
    "var-used-as-std",
    says="the variance is used where its square root belongs: gamma / (var + eps)",
    advice="take the square root of var + eps",
)
def var_used_as_std(site: BlockSite) -> BlockVariants:
    eps = site.program.eps
    yield from _each_or_all(site, lambda b: rescaled(b, eps, b.gamma / (b.running_var + eps)))


@bug(
    "mean-ignored",
    says="the running mean is not subtracted ({detail})",
    advice="the fused bias is beta - mean * gamma / sqrt(var + eps)",
)
def mean_ignored(site: BlockSite) -> BlockVariants:
    yield from _each_or_all(site, lambda b: b._replace(running_mean=0 * b.running_mean))


@bug(
    "mean-sign",
    says="the running mean is added instead of subtracted ({detail})",
    advice="the fused bias is beta MINUS mean * gamma / sqrt(var + eps)",
)
def mean_sign(site: BlockSite) -> BlockVariants:
    yield from _each_or_all(site, lambda b: b._replace(running_mean=-b.running_mean))


@bug(
    "beta-ignored",
    says="batch norm's beta is left out ({detail})",
    advice="add beta (`bn.bias`) to the fused bias",
)
def beta_ignored(site: BlockSite) -> BlockVariants:
    yield from _each_or_all(site, lambda b: b._replace(beta=0 * b.beta))


@bug(
    "gamma-ignored",
    says="batch norm's gamma is left out ({detail})",
    advice="scale by gamma (`bn.weight`), also in the bias",
)
def gamma_ignored(site: BlockSite) -> BlockVariants:
    yield from _each_or_all(site, lambda b: b._replace(gamma=np.ones_like(b.gamma)))


@bug(
    "mean-not-scaled",
    says="the running mean is subtracted without its scale gamma / sqrt(var + eps) ({detail})",
    advice="the fused bias is beta - mean * gamma / sqrt(var + eps)",
)
def mean_not_scaled(site: BlockSite) -> BlockVariants:
    eps = site.program.eps
    yield from _each_or_all(
        site,
        lambda b: b._replace(beta=b.beta - b.running_mean + b.running_mean * b.scale(eps)),
    )


@bug(
    "bn-of-branches-swapped",
    says="two branches use each other's batch norm ({detail})",
    advice="check which batch norm belongs to which branch in the key mapping",
)
def bn_of_branches_swapped(site: BlockSite) -> BlockVariants:
    names = site.program.norms
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            pair = {first: second, second: first}
            yield Variant(
                site.program.with_branches(partial(_bn_of_another, site.program.branches, pair)),
                detail=f"{first} and {second}",
            )


def _bn_of_another(
    branches: Mapping[str, Branch], pair: Mapping[str, str], name: str, branch: Branch
) -> Branch:
    return branches[pair.get(name, name)]._replace(weight=branch.weight)


@bug(
    "stale-statistics",
    says="running statistics are the initial ones, mean 0 and variance 1 ({detail})",
    advice="load running_mean and running_var: buffers, which parameter-only copies leave out",
)
def stale_statistics(site: BlockSite) -> BlockVariants:
    yield from _each_or_all(
        site,
        lambda b: b._replace(
            running_mean=0 * b.running_mean, running_var=np.ones_like(b.running_var)
        ),
    )


@bug(
    "default-batch-norm",
    says="batch norm does nothing: gamma 1, beta 0, mean 0, variance 1 ({detail})",
    advice="the batch norm's weights were not loaded",
)
def default_batch_norm(site: BlockSite) -> BlockVariants:
    yield from _each_or_all(
        site,
        lambda b: Branch(
            b.weight,
            np.ones_like(b.gamma),
            0 * b.beta,
            0 * b.running_mean,
            np.ones_like(b.running_var),
        ),
    )


@bug(
    "train-mode-batch-norm",
    says="batch norm normalises by the batch's own statistics: the port runs in training mode",
    advice="call model.eval() (or training=False) before comparing or exporting",
)
def train_mode_batch_norm(site: BlockSite) -> BlockVariants:
    if site.program.norms:
        responses = site.program.responses(site.x)
        seen: dict[str, tuple[Array, Array]] = {}
        for first, *others in site.program.branches_of_norms:
            z = sum((responses[name] for name in others), start=responses[first])
            mean, var = z.mean(axis=(0, 2)), z.var(axis=(0, 2))
            seen |= {first: (mean, var)} | dict.fromkeys(others, (0 * mean, var))
        yield Variant(
            with_norms(
                site.program,
                lambda name, b: b._replace(running_mean=seen[name][0], running_var=seen[name][1]),
            )
        )


def _each_or_all(site: BlockSite, change: Callable[[Branch], Branch]) -> BlockVariants:
    """A change in every branch, then in each one alone."""
    names = site.program.norms
    if names:
        yield Variant(with_norms(site.program, lambda _, b: change(b)), detail="every branch")
    for chosen in names if len(names) > 1 else ():
        yield Variant(site.program.with_branch(chosen, change), detail=chosen)
