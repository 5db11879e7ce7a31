"""What a model says of itself beside its network: its classes, how its pictures are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from repvgg_ref.errors import shortened

_SHOWN = 5


@dataclass(frozen=True)
class About:
    """What a network was trained on. None: nobody said it.

    Attributes
    ----------
    classes : tuple of str
        Names; an index of a logit is an index into them.
    input_size : (height, width)
        Of the pictures, in pixels.
    mean, std : tuple of float
        One number a channel, of pixels from 0 (black) to 1: ``x = (pixels - mean) / std``.
    crop_ratio : float
        Side of the evaluated crop over the shorter side of the resized picture.
    """

    classes: tuple[str, ...] | None = None
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None

    def __repr__(self) -> str:
        """One line."""
        return f"<About: {self.says or 'nothing known'}>"

    @property
    def says(self) -> str:
        """What is known, in words, not too many of them; empty if nothing is."""
        said = []
        if self.classes is not None:
            shown = ", ".join(self.classes[:_SHOWN])
            more = ", ..." if len(self.classes) > _SHOWN else ""
            said.append(f"{len(self.classes)} classes ({shown}{more})")
        if self.input_size is not None:
            said.append("pictures of {} x {} pixels".format(*self.input_size))
        for name in ("mean", "std"):
            if (numbers := getattr(self, name)) is not None:
                said.append(name + " " + ", ".join(f"{number:.4g}" for number in numbers))
        return shortened("; ".join(said))


UNKNOWN = About()


@dataclass(frozen=True)
class Assumed:
    """What no one said and the file did not prove, so that the usual was taken.

    Attributes
    ----------
    eps : float or None
        Of batch norm; None if it is known, or not needed as the network is fused.
    strides, dilations : mapping
        Block -> what was taken.
    is_fused : bool
        Whether `eps` is what the kernels of a fused file were made with: no other can be taken now.
    """

    eps: float | None = None
    strides: Mapping[str, int] = field(default_factory=dict)
    dilations: Mapping[str, int] = field(default_factory=dict)
    is_fused: bool = False

    def __bool__(self) -> bool:
        """Whether anything was assumed."""
        return self.eps is not None or bool(self.strides) or bool(self.dilations)

    @property
    def steps(self) -> dict[str, dict[str, int]]:
        """Strides and dilations, under these words."""
        return {"strides": dict(self.strides), "dilations": dict(self.dilations)}

    def to_json(self) -> dict[str, object]:
        """The entry ``"assumed"`` of every command's JSON."""
        return {"eps": self.eps, **self.steps}

    def __str__(self) -> str:
        """One line for people; empty if nothing was assumed."""
        then = " when it was fused" if self.is_fused else ""
        said = [] if self.eps is None else [f"eps {self.eps:g}{then}"]
        said += [_in_words("stride", self.strides), _in_words("dilation", self.dilations)]
        return "; ".join(part for part in said if part)


def _in_words(what: str, numbers: Mapping[str, int]) -> str:
    """``stride 2 in stage0, stage1.0, else 1``."""
    groups: dict[int, list[str]] = {}
    for block, number in numbers.items():
        groups.setdefault(number, []).append(block)
    usual = groups.pop(1, None)
    parts = [f"{number} in {', '.join(blocks)}" for number, blocks in sorted(groups.items())]
    if usual is not None:
        parts.append("else 1" if parts else "1")
    return f"{what} {', '.join(parts)}" if parts else ""
