"""Batch norm done differently. Every such bug is a branch with other numbers in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.blocks.branches import Branch
from repvgg_ref.blocks.run import NORM_VECTORS
from repvgg_ref.oracle.bugs.base import EPS_ADMISSIBLE, BlockSite, BlockVariants, Variant, bug
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.inner import batch_vectors, inner_norms, with_inner_norms

_EPS_TRIED = (1e-2, 2e-3, 1e-3, 1e-4, 1e-6, 1e-7, 1e-8, 1e-12)
_EPS_TRIED_OF_SOME = (1e-2, 1e-3, 1e-4, 1e-6)


def rescaled(branch: Branch, eps: float, scale: object) -> Branch:
    """The branch whose scale ``gamma / sqrt(var + eps)`` is `scale` instead."""
    return branch._replace(gamma=scale * np.sqrt(branch.running_var + eps))


def with_eps(
    program: BlockProgram, eps: float, only: Collection[str] | None = None
) -> BlockProgram:
    """The program with another eps inside the root, of all norms or of some."""
    if program.at_eps is not None and only is None:  # in norms inside branches, too
        program = replace(program, branches=program.at_eps(eps))
    return with_norms(
        program,
        lambda _, b: rescaled(
            b, program.eps, b.gamma / np.sqrt(np.maximum(b.running_var + eps, 1e-300))
        ),
        only,
    )


def with_norms(
    program: BlockProgram,
    change: Callable[[str, Branch], Branch],
    only: Collection[str] | None = None,
) -> BlockProgram:
    """The program with batch norms changed: all, or those named.

    `change` gets the name of a branch and the branch, or of a norm inside one and a bare branch.
    """
    last = {
        branch
        for norm, behind in program.branches_of_norms.items()
        if only is None or norm in only
        for branch in behind
    }
    changed = program.with_branches(lambda name, b: change(name, b) if name in last else b)
    if not any(only is None or norm in only for norm in _inner(program)):
        return changed
    return with_inner_norms(
        changed, lambda norm, b: change(norm, b) if only is None or norm in only else b
    )


def _inner(program: BlockProgram) -> tuple[str, ...]:
    return inner_norms(program.spec) if program.parts else ()


def _some(program: BlockProgram) -> Iterator[tuple[str, ...]]:
    """Norms that a port may treat otherwise than the others, where branches have norms inside."""
    inner, last = _inner(program), tuple(program.branches_of_norms)
    sets = (inner, last, *((norm,) for norm in (*inner, *last)))
    yield from dict.fromkeys(sets) if inner else ()


@bug(
    "eps-value",
    says="batch norm adds eps = {parameter:.3g} where the reference adds another{detail}",
    advice="set eps of every batch norm to the reference's (official code: 1e-5), or give --eps",
    continuous=True,
    admissible=EPS_ADMISSIBLE,
)
def eps_value(site: BlockSite) -> BlockVariants:
    program = site.program
    for eps in _EPS_TRIED if program.norms else ():
        if abs(eps / program.eps - 1) > 1e-3:
            yield Variant(with_eps(program, eps), eps, at=partial(with_eps, program))
    for only in _some(program):
        made = partial(with_eps, program, only=only)
        *first, last = only
        detail = f" (in {', '.join(first)}{' and ' * bool(first)}{last} alone)"
        for eps in _EPS_TRIED_OF_SOME:
            if abs(eps / program.eps - 1) > 1e-3:
                yield Variant(made(eps), eps, detail, at=made)


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
    program = site.program
    variances = [b.running_var for b in program.branches.values() if b.has_norm]
    variances += [program.parts[f"{norm}.running_var"] for norm in _inner(program)]
    if program.norms and all((var > 0).all() for var in variances):
        yield Variant(with_eps(program, 0.0), 0.0)


@bug(
    "var-used-as-std",
    says="the variance is used where its square root belongs: gamma / (var + eps)",
    advice="take the square root of var + eps",
)
def var_used_as_std(site: BlockSite) -> BlockVariants:
    eps = site.program.eps
    yield from _each_or_all(site, lambda b: rescaled(b, eps, b.gamma / (b.running_var + eps)))


@bug(
    "variance-ignored",
    says="the running variance is left out: gamma where gamma / sqrt(var + eps) belongs ({detail})",
    advice="divide by the square root of var + eps",
)
def variance_ignored(site: BlockSite) -> BlockVariants:
    yield from _each_or_all(site, lambda b: rescaled(b, site.program.eps, b.gamma))


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
    program = site.program
    names = [behind[0] for behind in program.branches_of_norms.values() if len(behind) == 1]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            pair = {first: second, second: first}
            yield Variant(
                program.with_branches(partial(_bn_of_another, program.branches, pair)),
                detail=f"{first} and {second}",
            )


def _bn_of_another(
    branches: Mapping[str, Branch], pair: Mapping[str, str], name: str, branch: Branch
) -> Branch:
    other = branches[pair.get(name, name)]
    return branch._replace(**{field: getattr(other, field) for field in NORM_VECTORS})


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
        lambda b: b._replace(
            gamma=np.ones_like(b.gamma),
            beta=0 * b.beta,
            running_mean=0 * b.running_mean,
            running_var=np.ones_like(b.running_var),
        ),
    )


@bug(
    "train-mode-batch-norm",
    says="batch norm normalises by the batch's own statistics: the port runs in training mode",
    advice="call model.eval() (or training=False) before comparing or exporting",
)
def train_mode_batch_norm(site: BlockSite) -> BlockVariants:
    program = site.program
    if not program.norms:
        return
    inner = batch_vectors(program, site.x)
    responses = {} if inner else program.responses(site.x)
    seen = dict(inner)
    for norm, (first, *others) in program.branches_of_norms.items():
        if not inner:
            z = sum((responses[name] for name in others), start=responses[first])
            seen[norm] = z.mean(axis=(0, 2)), z.var(axis=(0, 2))
        mean, var = seen[norm]
        seen |= {first: (mean, var)} | dict.fromkeys(others, (0 * mean, var))
    yield Variant(
        with_norms(
            program,
            lambda name, b: b._replace(running_mean=seen[name][0], running_var=seen[name][1]),
        )
    )


def _each_or_all(site: BlockSite, change: Callable[[Branch], Branch]) -> BlockVariants:
    """A change in every norm, then in all inside branches or all others, and in each one alone."""
    program, behind = site.program, site.program.branches_of_norms
    # A branch's own norm is called as the branch is.
    names = {norm: names[0] if len(names) == 1 else norm for norm, names in behind.items()}
    names |= {norm: norm for norm in _inner(program)}
    if names:
        yield Variant(with_norms(program, lambda _, b: change(b)), detail="every branch")
    for only in _some(program):
        if 1 < len(only) < len(names):
            detail = " and ".join(names[norm] for norm in only)
            yield Variant(with_norms(program, lambda _, b: change(b), only), detail=detail)
    for norm, detail in names.items() if len(names) > 1 else ():
        yield Variant(with_norms(program, lambda _, b: change(b), (norm,)), detail=detail)


@bug(
    "branch-bias-dropped",
    says="what branch {detail} adds before its last norm is left out",
    advice="a convolution before a batch norm may have a bias, and a norm inside a branch has one",
)
def branch_bias_dropped(site: BlockSite) -> BlockVariants:
    for name, branch in site.program.branches.items():
        if branch.before is not None and np.any(branch.before):
            without = branch._replace(before=None, before_size=None)
            yield Variant(site.program.with_branch(name, partial(_always, without)), detail=name)


def _always(instead: Branch, _: Branch) -> Branch:
    return instead
