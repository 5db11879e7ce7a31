"""Dilations mixed up: what ports of a PSPNet make of stages that keep their size.

Sources of the wrong ways: the two forms of the paper (section 4.3), and torchvision's
``replace_stride_with_dilation``, whose first block of a stage has the dilation of the one before.
"""

from __future__ import annotations

from collections.abc import Iterator

from repvgg_ref.models.geometry import Geometry
from repvgg_ref.models.graph import Network
from repvgg_ref.models.pspnet import FAST_BLOCKS

Steps = dict[str, int]


IGNORED, OTHER = "dilation-ignored", "dilation-other"


def mixed_up(network: Network) -> Iterator[tuple[str, str, Geometry]]:
    """Bug, what to say of it, other dilations; each set of them once, none the right one."""
    stages: dict[str, Steps] = {}
    for spec in network.blocks:
        stages.setdefault(spec.name.partition(".")[0], {})[spec.name] = spec.dilation
    right = {name: step for steps in stages.values() for name, step in steps.items()}
    told = [right]
    for says, steps in _ways(stages):
        found = right | steps
        if found not in told:
            told.append(found)
            other = Geometry({}, {n: d for n, d in found.items() if d != right[n]})
            bug = IGNORED if set(other.dilations.values()) == {1} else OTHER
            yield bug, says, other


def _ways(stages: dict[str, Steps]) -> Iterator[tuple[str, Steps]]:
    wide = {stage: max(steps.values()) for stage, steps in stages.items()}
    dilated = {stage: steps for stage, steps in stages.items() if wide[stage] > 1}
    yield (
        "the dilations are ignored",
        {name: 1 for steps in dilated.values() for name in steps},
    )
    for stage, steps in dilated.items():
        yield f"the dilation of {stage} is ignored", dict.fromkeys(steps, 1)
    for stage, steps in dilated.items():
        every = dict.fromkeys(steps, wide[stage])
        yield f"all of {stage} is dilated, as in the form that is not fast", every
        spared = list(steps)[:-FAST_BLOCKS]
        fast = every | dict.fromkeys(spared, 1)
        yield (
            f"only the last {FAST_BLOCKS} blocks of {stage} are dilated, as in the fast form",
            fast,
        )
    yield "the first block of a stage has the dilation of the stage before", _late(stages, wide)
    for stage, steps in dilated.items():
        for other in dilated:
            if other != stage:
                says = f"{stage} has the dilation of {other}, {wide[other]}"
                yield says, _scaled(steps, wide[other])
    if len(dilated) == 2:
        (one, first), (two, second) = dilated.items()
        exchanged = _scaled(first, wide[two]) | _scaled(second, wide[one])
        yield f"the dilations of {one} and {two} are exchanged", exchanged


def _scaled(steps: Steps, dilation: int) -> Steps:
    """Another dilation where there is one."""
    return {name: dilation if step > 1 else step for name, step in steps.items()}


def _late(stages: dict[str, Steps], wide: dict[str, int]) -> Steps:
    found: Steps = {}
    before = 1
    for stage, steps in stages.items():
        if wide[stage] > 1:
            found[next(iter(steps))] = before
        before = wide[stage]
    return found
