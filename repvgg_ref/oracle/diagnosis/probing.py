"""Further calls of a candidate, on images chosen to separate the hypotheses that are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Candidate, CandidateFailure
from repvgg_ref.oracle.diagnosis.alternatives import Alternative, Chain, alternatives
from repvgg_ref.oracle.diagnosis.look import Look, Match
from repvgg_ref.oracle.power import Place
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs

_CHEAP = (64, 48)  # what the whole library is tried on, where the candidate takes it
_MANY = (32, 24)  # the same for more than `_FEW` of them
_FEW = 4
_LOGITS = 48  # numbers wanted at least: few of them say little
_MOST_IMAGES = 16
_APART = 30.0  # deviations between two predictions that a probe is to separate


def logits_of(port: Candidate, x: Array) -> Array:
    """The logits that a candidate gives for other images.

    Raises
    ------
    CandidateFailure
        If it gives none.
    """
    layers = port.run(port.images(x)).layers
    if "linear" not in layers:
        raise CandidateFailure(f"{port.name}: gave no logits")
    return layers["linear"]


@dataclass
class Again:
    """The candidate, to be asked for more logits; None where it cannot or does not answer."""

    call: Callable[[Array], Array] | None

    def logits(self, x: Array, shape: tuple[int, ...]) -> Array | None:
        """Logits (N, classes) of the images `x`, all finite."""
        if self.call is None:
            return None
        try:
            y = np.asarray(self.call(x), float)
        except CandidateFailure:
            return None
        return y if y.shape == shape and np.isfinite(y).all() else None


@dataclass
class Probing:
    """What has been looked at so far.

    Attributes
    ----------
    looks : list of Look
        The first one is at the given images.
    """

    first: Look
    precision: Precision
    again: Again
    looks: list[Look] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.looks = [self.first]

    @property
    def all_right(self) -> bool:
        """Whether rounding explains every answer so far."""
        return all(look.is_right for look in self.looks)

    def cheap(self) -> Look:
        """Images on which the whole library is tried: small ones, enough of them.

        A candidate that takes its own extent only, or answers otherwise for another, is left with
        the given images.
        """
        given = self.first.chain
        classes = given.logits.shape[1]
        count = min(_MOST_IMAGES, max(2, -(-_LOGITS // classes)))
        pixels = given.images * int(np.prod(given.inputs[given.names[0]].shape[2:]))
        enough = given.logits.size >= _LOGITS
        if self.again.call is None or (enough and pixels <= 3 * int(np.prod(_CHEAP))):
            return self.first
        look = self._look(self._images(count, *(_CHEAP if count <= _FEW else _MANY), seed=0))
        if look is None or look.is_right != self.first.is_right:
            return self.first
        self.looks.append(look)
        return look

    def surviving(self, matches: Sequence[Match]) -> list[Match]:
        """Those that still match after a probe chosen to tell them apart."""
        left = list(matches)
        if len(left) < 2 or self.again.call is None:
            return left
        for chain in self._pool():
            made = {
                each.place: each
                for each in alternatives(
                    chain,
                    self.precision.number_format,
                    wanted=[Place.of(m.mutant) for m in left],
                )
            }
            if not self._separates(chain, list(made.values())):
                continue
            look = self._answer(chain)
            if look is None:
                continue
            self.looks.append(look)
            kept = []
            for match in left:
                there = made.get(Place.of(match.mutant))
                held = None if there is None else look.sharpened(look.matches([there])[0])
                if held is None or look.reproduces(held) or held.size < 5 * held.left:
                    kept.append(match)
            left = kept or left
            if len(left) < 2:
                break
        return left

    def revealed(self, smallest: dict[Place, float]) -> dict[Place, float]:
        """The same after probes chosen to show bugs that could hide."""
        for chain in self._pool() if self.again.call is not None else ():
            hidden = [place for place, size in smallest.items() if not size <= 1]
            if not hidden:
                break
            found = list(alternatives(chain, self.precision.number_format, wanted=hidden))
            look = self._answer(chain)
            if look is None or not look.is_right:
                continue
            self.looks.append(look)
            for place, size in look.smallest(found).items():
                smallest[place] = min(smallest[place], size)
        return smallest

    def _separates(self, chain: Chain, made: Sequence[Alternative]) -> bool:
        """Whether predictions differ on these images by more than rounding."""
        look = Look.at(chain, chain.logits, self.precision)
        sizes = [
            look.noise.kappa(one.change - other.change)
            for i, one in enumerate(made)
            for other in made[:i]
        ]
        return max(sizes, default=0.0) > _APART

    def _answer(self, chain: Chain) -> Look | None:
        y = self.again.logits(chain.inputs[chain.names[0]].astype(np.float32), chain.logits.shape)
        return None if y is None else Look.at(chain, y, self.precision)

    def _look(self, x: Array) -> Look | None:
        return self._answer(self.first.chain.on(x))

    def _images(self, count: int, height: int, width: int, seed: int) -> Array:
        arch = self.first.chain.programs.model.arch
        return distinguishing_inputs(arch, batch=count, height=height, width=width, seed=seed)

    def _pool(self) -> Iterator[Chain]:
        """Other images of an extent that the candidate has taken."""
        n, _, h, w = self.looks[-1].chain.inputs[self.first.chain.names[0]].shape
        base = self._images(n, h, w, seed=1)
        mask = np.random.default_rng(2).random(base.shape) < 0.02
        for x in (base / 16, base * 16, base * mask * 8):
            yield self.first.chain.on(x.astype(np.float32))
