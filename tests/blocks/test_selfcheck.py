"""`convert`'s self-check is itself checked: it fails every planted bug and no correct block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of
from repvgg_ref.blocks.fusion import FusedConv, fuse_block, fuse_linear
from repvgg_ref.blocks.linear import Chain, Conv
from repvgg_ref.blocks.selfcheck import BlockCheck, check_block, check_linear, worst
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import NotFusibleError
from tests.blocks.exact_blocks import block_shapes
from tests.blocks.planted_bugs import BUGS, EPS, fuse_with
from tests.random_networks import random_block

BLOCKS = (
    BlockSpec("stem", 3, 8, stride=2),
    BlockSpec("plain", 16, 16, stride=1),
    BlockSpec("grouped", 32, 32, stride=1, groups=4),
    BlockSpec("down", 16, 24, stride=2, groups=2),
    BlockSpec("no identity though it could", 12, 12, stride=2),
    BlockSpec("wide", 512, 64, stride=1),
    BlockSpec("3x3 only", 6, 6, stride=1, kind="plain"),
)


def _case(spec: BlockSpec, seed: int) -> tuple[dict[str, Array], dict[str, Branch]]:
    params = random_block(block_shapes(spec), seed)
    wide = {name: np.asarray(array, np.float64) for name, array in params.items()}
    return params, branches_of(spec, wide, 1e-5)


def _as_float32(fused: FusedConv) -> FusedConv:
    return FusedConv(fused.weight.astype(np.float32), fused.bias.astype(np.float32))


@pytest.mark.parametrize("spec", BLOCKS, ids=lambda spec: spec.name)
def test_the_unmutated_rules_pass(spec: BlockSpec) -> None:
    """Else the mutation score below would mean nothing."""
    params, branches = _case(spec, 1)
    assert check_block(spec, params, _as_float32(fuse_with(branches)), eps=EPS).ok


def test_every_planted_bug_is_caught() -> None:
    caught: dict[str, list[str]] = {bug: [] for bug in BUGS}
    missed: dict[str, list[str]] = {bug: [] for bug in BUGS}
    for spec in BLOCKS:
        params, branches = _case(spec, seed=2)
        for name, bug in BUGS.items():
            fused = bug(spec, branches)
            if fused is not None:
                ok = check_block(spec, params, _as_float32(fused), eps=EPS).ok
                (missed if ok else caught)[name].append(spec.name)
    killed, alive = (sum(map(len, found.values())) for found in (caught, missed))
    print(f"\nself-check: {len(BUGS)} planted bugs, {killed} of {killed + alive} mutants caught")
    assert not alive, {name: where for name, where in missed.items() if where}
    assert all(caught.values()), "a bug applies to none of the blocks"


def _ill_conditioned(params: dict[str, Array], rng: np.random.Generator) -> None:
    """Variances over twelve orders, large means, gammas that nearly cancel, dead channels."""
    for name, array in params.items():
        if name.endswith("running_var"):
            array[:] = 10.0 ** rng.uniform(-9, 3, array.shape)
            array[rng.random(array.shape) < 0.1] = 0
        elif name.endswith("running_mean"):
            array *= (10.0 ** rng.uniform(-3, 3, array.shape)).astype(np.float32)
        elif name.endswith("gamma"):
            array *= (10.0 ** rng.uniform(-6, 2, array.shape)).astype(np.float32)
            array[rng.random(array.shape) < 0.1] = 0
    if "block.branch_1x1.conv.weight" in params and rng.random() < 0.5:
        centre = params["block.branch_3x3.conv.weight"][:, :, 1:2, 1:2]
        params["block.branch_1x1.conv.weight"] = -centre * np.float32(1 + 1e-6)
        for field in ("gamma", "running_var"):
            params[f"block.branch_1x1.bn.{field}"] = params[f"block.branch_3x3.bn.{field}"].copy()


def _random_spec(rng: np.random.Generator) -> BlockSpec:
    groups = int(rng.choice([1, 1, 2, 4]))
    entry = groups * int(rng.integers(1, 65))
    stride = int(rng.integers(1, 3))
    out = entry if rng.random() < 0.5 else groups * int(rng.integers(1, 33))
    return BlockSpec(
        "block",
        entry,
        out,
        stride,
        groups=groups,
        kind="repvgg" if rng.random() < 0.9 else "identity-only",
    )


def _correct_block(seed: int, dtype: Any) -> BlockCheck | None:
    """The check of a fusion by the package; None if `dtype` cannot hold the fused values."""
    rng = np.random.default_rng(seed)
    spec = _random_spec(rng)
    params = random_block(block_shapes(spec), seed)
    if seed % 2:
        _ill_conditioned(params, rng)
    try:
        fused = fuse_block(spec, params, eps=EPS, dtype=dtype)
    except NotFusibleError:
        assert dtype == np.float16, "float32 and float64 have room for all of these"
        return None
    return check_block(spec, params, fused, eps=EPS)


@pytest.mark.few
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_correct_block_fails(dtype: Any, part: int) -> None:
    seeds = range(50 * part, 50 * part + 50)
    checks = [check for seed in seeds if (check := _correct_block(seed, dtype)) is not None]
    assert len(checks) >= 20
    closest = worst(checks)
    print(
        f"\nself-check, {np.dtype(dtype)}: {len(checks)} correct blocks use at most "
        f"{closest.used:.0%} of the bound"
    )
    assert closest.ok


def test_nan_never_passes() -> None:
    spec = BLOCKS[0]
    params, branches = _case(spec, 3)
    fused = _as_float32(fuse_with(branches))
    fused.bias[3] = np.nan
    check = check_block(spec, params, fused, eps=EPS)
    assert not check.ok
    assert not worst([check, BlockCheck("other", 0.0, 1.0)]).ok
    assert not worst([BlockCheck("other", 9.0, 1.0), check]).ok


def test_inputs_are_left_as_they_are() -> None:
    spec = BLOCKS[2]
    params, _ = _case(spec, 4)
    for array in params.values():
        array.flags.writeable = False
    fused = fuse_block(spec, params, eps=EPS)
    fused.weight.flags.writeable = fused.bias.flags.writeable = False
    assert check_block(spec, params, fused, eps=EPS).ok


def test_a_stride_counts_for_all_that_follow_it() -> None:
    """Strides 2 and 3 before others: one tap of the fused kernel off, and it is seen."""
    rng = np.random.default_rng(5)
    chain = Chain(
        Conv("a", 2, 3, (2, 2), (2, 3), (0, 0)),
        Conv("b", 3, 3, (2, 1), (1, 1), (0, 0), bias=True),
        Conv("c", 3, 2, (3, 2), (1, 2), (0, 0)),
    )
    params = {name: rng.normal(size=shape) for name, shape in chain.shapes().items()}
    # rows: 1 + (2 - 1) + 2 (2 - 1) + 2 (3 - 1); columns: 1 + (2 - 1) + 3 (2 - 1)
    whole = Conv("fused", 2, 2, (8, 5), (2, 6), (0, 0), bias=True)
    fused = fuse_linear("fused", chain, whole, params, eps=0.0, dtype=np.float32)
    assert check_linear("fused", chain, whole, params, fused, eps=0.0).ok
    for at in np.ndindex(fused.weight.shape):
        off = fused.weight.copy()
        off[at] += np.float32(1e-3)
        wrong = FusedConv(off, fused.bias)
        assert not check_linear("fused", chain, whole, params, wrong, eps=0.0).ok, at
