"""What the paper says of speeds, held against speeds that were measured here.

Source: abstract, sections 3.1 and 4.1 of arXiv 2101.03697; the factors are those of Table 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

Holds = Literal["yes", "direction", "no"]


class Claim(NamedTuple):
    """`faster` runs so many times (`paper`) as fast as `slower`."""

    faster: str
    slower: str
    paper: float
    says: str


CLAIMS = (
    Claim("RepVGG-A0", "ResNet-18", 1.33, "RepVGG-A0 is 33 % faster than ResNet-18"),
    Claim("RepVGG-A1", "ResNet-34", 1.64, "RepVGG-A1 is 64 % faster than ResNet-34"),
    Claim("RepVGG-A2", "ResNet-50", 1.83, "RepVGG-A2 is 83 % faster than ResNet-50"),
    Claim("RepVGG-B1g4", "ResNet-101", 2.01, "RepVGG-B1g4 is 101 % faster than ResNet-101"),
    Claim("RepVGG-B1g2", "ResNet-152", 2.66, "RepVGG-B1g2 is 2.66 times as fast as ResNet-152"),
    Claim(
        "VGG-16",
        "EfficientNet-B3",
        1.8,
        "VGG-16 has 8.4 times the FLOPs of EfficientNet-B3 and runs 1.8 times as fast",
    ),
)
DENSITY = Claim(
    "3x3", "1x1, 5x5, 7x7", 4.0, "a 3x3 convolution does 4 times the FLOPs a second of others"
)


class Judged(NamedTuple):
    """A claim and its factor here; `holds`: "yes", "direction" (faster, but by less), or "no"."""

    says: str
    faster: str
    slower: str
    paper: float
    here: float
    holds: Holds


def judged(seconds: Mapping[str, Sequence[float]], density: Mapping[int, float]) -> list[Judged]:
    """Every claim that can be judged.

    Parameters
    ----------
    seconds : mapping
        Network -> seconds of a batch in each round; factors are the median of the rounds'.
    density : mapping
        Side of the kernel -> effective FLOPs a second.
    """
    found = [
        _judged(claim, median(b / a for a, b in zip(*times, strict=True)))
        for claim in CLAIMS
        if {claim.faster, claim.slower} <= seconds.keys()
        for times in [(seconds[claim.faster], seconds[claim.slower])]
    ]
    if density:
        best = max(speed for kernel, speed in density.items() if kernel != 3)
        found.append(_judged(DENSITY, density[3] / best))
    return found


def _judged(claim: Claim, here: float) -> Judged:
    holds: Holds = "yes" if here >= claim.paper else "direction" if here > 1 else "no"
    return Judged(claim.says, claim.faster, claim.slower, claim.paper, here, holds)
