"""What a verdict on logits alone is worth: which bugs it excludes, and down to what size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from repvgg_ref.oracle.bugs.base import Mutant

_NAMED = 6  # bugs named in a sentence
_EVERYWHERE = "every layer"


class Place(NamedTuple):
    """A bug in one setting at one place; `layer` None: in every layer."""

    bug: str
    setting: str
    layer: str | None

    @classmethod
    def of(cls, mutant: Mutant[Any]) -> Place:
        """Where a mutant is, whatever input it was made for."""
        detail, parameter = mutant.variant.detail, mutant.variant.parameter
        number = [] if parameter is None else [f"{parameter:g}"]
        return cls(mutant.bug.name, " ".join([detail, *number]).strip(), mutant.layer)


@dataclass(frozen=True)
class Seen:
    """One known bug: in how many places it was tried, where it would have shown, how small.

    Attributes
    ----------
    smallest : float or None
        The part of the bug's own effect that would still have shown, at the place where it shows
        least among those where it does; None if nowhere.
    hidden : tuple of str
        Layers in which one of its settings could hide, "every layer" among them.
    """

    bug: str
    tried: int
    seen: int
    smallest: float | None
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Power:
    """Stated with every verdict on logits alone.

    Attributes
    ----------
    kappa, allowed : float
        Measured error of the logits and what agrees, in deviations of unit rounding.
    freedom : float
        Independent numbers among the logits' rounding errors.
    bugs : tuple of Seen
    layers : mapping
        Layer, or "every layer" -> part of the known bugs tried there that would have shown.
    errors : mapping
        Layer -> smallest relative error that shows, whatever it is: every output channel of the
        layer wrong by its own random factor of this deviation.
    """

    kappa: float
    allowed: float
    freedom: float
    bugs: tuple[Seen, ...] = ()
    layers: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def tried(self) -> int:
        """Bugs times places."""
        return sum(bug.tried for bug in self.bugs)

    @property
    def seen(self) -> int:
        """How many of them would have shown."""
        return sum(bug.seen for bug in self.bugs)

    @property
    def share(self) -> float:
        """Part of the known bugs, each in each of its places, that would have shown."""
        return self.seen / self.tried if self.tried else 0.0

    @property
    def says(self) -> str:
        """In a sentence."""
        said = f"{self.seen} of {self.tried} known bugs, each in each layer, would have shown"
        hidden = [bug.bug for bug in self.bugs if bug.hidden]
        if hidden:
            more = ", ..." if len(hidden) > _NAMED else ""
            said += f"; in some layer these could hide: {', '.join(hidden[:_NAMED])}{more}"
        if self.errors:
            layer = max(self.errors, key=lambda name: self.errors[name])
            said += (
                "; no other error agrees that puts a random relative error of"
                f" {self.errors[layer]:.1g} on a layer's channels (least seen in {layer})"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """The report's field "power"."""
        return {
            "tried": self.tried,
            "seen": self.seen,
            "share": self.share,
            "kappa": self.kappa,
            "allowed": self.allowed,
            "freedom": self.freedom,
            "bugs": [
                {
                    "bug": bug.bug,
                    "tried": bug.tried,
                    "seen": bug.seen,
                    "smallest": bug.smallest,
                    "hidden": list(bug.hidden),
                }
                for bug in self.bugs
            ],
            "layers": dict(self.layers),
            "errors": dict(self.errors),
        }


def power_of_bugs(smallest: Mapping[Place, float]) -> tuple[Seen, ...]:
    """From the part of each bug's effect that would have shown; above 1 it can hide."""
    return tuple(
        _seen(name, {place: size for place, size in smallest.items() if place.bug == name})
        for name in dict.fromkeys(place.bug for place in smallest)
    )


def power_in_layers(smallest: Mapping[Place, float]) -> dict[str, float]:
    """Layer, or "every layer" -> part of the bugs tried there that would have shown."""
    shown: dict[str, list[bool]] = {}
    for place, size in smallest.items():
        shown.setdefault(place.layer or _EVERYWHERE, []).append(size <= 1)
    return {layer: sum(seen) / len(seen) for layer, seen in shown.items()}


def _seen(name: str, mine: Mapping[Place, float]) -> Seen:
    shown = [size for size in mine.values() if size <= 1]
    hidden = _layers(place for place, size in mine.items() if not size <= 1)
    return Seen(name, len(mine), len(shown), max(shown, default=None), hidden)


def _layers(places: Iterable[Place]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place.layer or _EVERYWHERE for place in places))
