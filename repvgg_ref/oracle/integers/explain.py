"""Which bug is it: programs that give exactly the candidate's numbers, one bug or two.

Arithmetic is exact, so an explanation leaves nothing. Bugs are tried on the channels that are
wrong; where others are right, the bug is said to sit in those channels alone. Few numbers fit by
chance: a name is given only where they tell more bits than the choice among what is tried takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import lgamma, log
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.wrappers import listed
from repvgg_ref.oracle.bugs.base import Mutant, planted
from repvgg_ref.oracle.integers.bugs import IntegerSite, bugs_of
from repvgg_ref.oracle.integers.program import IntegerProgram, Sheet
from repvgg_ref.oracle.report import Finding

_SHOWN = 8  # channels
FEW = 2  # numbers: that these are alike, or rounded as a scheme does, is no sign
_PIXELS = 12
_TRIED = 6.0  # bits that choosing one bug takes: some 50 variants are tried
_SURE = 7.0  # bits beyond the choice: by chance it fits in one case of a hundred


@dataclass
class Asked:
    """A bad layer: as it should be, the candidate's own input, and what it gave."""

    name: str
    program: IntegerProgram
    x: Array
    y_hat: Array

    @property
    def site(self) -> IntegerSite:
        """Where bugs are tried."""
        return IntegerSite(self.program, self.x, self.y_hat)


class Explanation(NamedTuple):
    """Bugs that, planted together, give the candidate's numbers in `channels` (None: in all)."""

    mutants: tuple[Mutant[IntegerProgram], ...]
    channels: Array | None

    @property
    def freedom(self) -> float:
        """Bits of the choice: of bugs, and of the channels that alone have them."""
        places = self.channels
        which = 0.0 if places is None else float(places.sum() * np.log2(places.size))
        return _TRIED * len(self.mutants) + which

    @property
    def name(self) -> str:
        """The bugs' names."""
        return " and ".join(mutant.bug.name for mutant in self.mutants)


def _bits(right: Array, y_hat: Array, channels: Array | None) -> float:
    """What the numbers of `channels` tell: which are wrong, and by how much.

    One that is d off is one of 2 d + 1; k of n are wrong in n! / (k! (n - k)!) ways.
    """
    if right.shape != y_hat.shape:
        return np.inf
    apart = np.abs(right.astype(np.int64) - y_hat.astype(np.int64))
    apart = apart if channels is None else apart[:, channels]
    n, k = apart.size, int((apart > 0).sum())
    ways = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return float(np.log2(2 * apart + 1).sum()) + ways / log(2)


def explained(asked: Asked) -> list[Finding]:
    """What the layer does differently: known bugs, or what was measured of an unknown one."""
    sheet = Sheet(asked.x)
    right = sheet.numbers(asked.program)
    if right.shape != asked.y_hat.shape:
        bad = np.ones(asked.y_hat.shape[1], bool)
    else:
        bad = (right != asked.y_hat).any(axis=(0, 2, 3))
    found = list(_singles(asked, sheet, bad))
    if not any(each.channels is None for each in found) and _is_stuck(right, asked.y_hat, bad):
        return [_stuck(asked, bad, found)]
    if not found and _bits(right, asked.y_hat, None) > 2 * _TRIED + _SURE:
        found = list(_pairs(asked, bad))
    sure = [each for each in found if _is_shown(each, right, asked.y_hat)]
    if not sure:
        return [_unknown(asked, sheet, right, bad, found)]
    # All are exact: the fewest bugs in the most channels come first. What fits too is as good a
    # cause, though by itself it would not be shown: a choice read off the numbers costs none here.
    first = next((each for each in sure if each.channels is None), sure[0])
    names = list(dict.fromkeys(each.name for each in (*sure, *found)))
    others = tuple(name for name in names if name != first.name)
    where = _where(first.channels)
    return [
        Finding(
            mutant.bug.name,
            asked.name,
            mutant.variant.parameter,
            1.0 / len(names),
            1.0,
            says=mutant.says + where,
            advice=mutant.bug.advice,
            equivalents=others,
        )
        for mutant in first.mutants
    ]


def _is_shown(each: Explanation, right: Array, y_hat: Array) -> bool:
    """Whether the wrong numbers tell more than the choice takes; a scheme of a few is no news."""
    if each.name == "other-rounding" and (right != y_hat).sum() <= FEW:
        return False
    return _bits(right, y_hat, each.channels) > each.freedom + _SURE


def _is_stuck(right: Array, y_hat: Array, bad: Array) -> bool:
    """Whether some channels, all that are wrong, hold one number each: it explains itself.

    Not a number or two: each of them stands there for itself.
    """
    there = y_hat[:, bad]
    return (
        right.shape == y_hat.shape
        and there[:, 0].size > FEW
        and not bad.all()
        and bool((there == there[:1, :, :1, :1]).all())
        and bool((right[:, bad] != right[:1, bad, :1, :1]).any(axis=(0, 2, 3)).all())
    )


def _stuck(asked: Asked, bad: Array, others: list[Explanation]) -> Finding:
    """`others` are bugs that give the same numbers."""
    names = tuple(dict.fromkeys(each.name for each in others))
    values = sorted({int(v) for v in asked.y_hat[0, bad, 0, 0]})
    shown = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
    return Finding(
        "channel-stuck",
        asked.name,
        None,
        1.0 / (1 + len(names)),
        1.0,
        says=f"one number ({shown}) stands everywhere{_where(bad)}",
        advice="are these channels written at all? Look at the loop over output channels",
        equivalents=names,
    )


def _singles(asked: Asked, sheet: Sheet, bad: Array) -> Iterator[Explanation]:
    for mutant in planted(bugs_of(asked.program.layer), asked.site, asked.name):
        channels = _explains(mutant.variant.program, sheet, asked.y_hat, bad)
        if channels is None or (mutant.bug.name == "other-rounding" and not channels.all()):
            continue  # no device rounds otherwise in single channels: few numbers look so by chance
        yield Explanation((mutant,), None if channels.all() else channels)


def _explains(program: IntegerProgram, sheet: Sheet, y_hat: Array, bad: Array) -> Array | None:
    """The channels that `program` gives as the candidate does, if all bad ones are among them.

    All of them where it explains all; the bad ones alone where the others are right without it.
    """
    y = sheet.numbers(program)
    if y.shape != y_hat.shape:
        return None
    wrong = (y != y_hat).any(axis=(0, 2, 3))
    if (wrong & bad).any():
        return None
    return bad if wrong.any() else np.ones_like(bad)


def _pairs(asked: Asked, bad: Array) -> Iterator[Explanation]:
    """Two bugs at once, first on a corner of the input, then on all of it."""
    corner = _corner(asked)
    small, whole = Sheet(corner.x), Sheet(asked.x)
    for one in planted(bugs_of(asked.program.layer), corner.site, asked.name):
        site = replace(corner.site, program=one.variant.program)
        for two in planted(bugs_of(asked.program.layer), site, asked.name):
            if one.bug.name >= two.bug.name:  # each pair once
                continue
            if _agrees(two.variant.program, small, corner.y_hat, bad):
                yield from _in_full(asked, whole, bad, one, two)


def _corner(asked: Asked) -> Asked:
    """The upper left of one image: what pairs are first tried on."""
    side = _PIXELS * asked.program.sums.stride
    rows, columns = (min(n, side) for n in asked.x.shape[2:])
    if rows * columns == np.prod(asked.x.shape[2:]) or asked.program.flat:
        return replace(asked, x=asked.x[:1], y_hat=asked.y_hat[:1])
    x = asked.x[:1, :, :rows, :columns]
    step = asked.program.sums.stride
    return replace(asked, x=x, y_hat=asked.y_hat[:1, :, : rows // step, : columns // step])


def _agrees(program: IntegerProgram, sheet: Sheet, y_hat: Array, bad: Array) -> bool:
    """Whether bad channels agree where the corner's own edges play no part."""
    y = sheet.numbers(program)
    rows, columns = (
        max(1, min(a, b) - 3) for a, b in zip(y.shape[2:], y_hat.shape[2:], strict=True)
    )
    if y.shape[1] != y_hat.shape[1]:
        return False
    a, b = (each[:, bad, :rows, :columns] for each in (y, y_hat))
    return bool((a == b).all())


def _in_full(
    asked: Asked,
    sheet: Sheet,
    bad: Array,
    one: Mutant[IntegerProgram],
    two: Mutant[IntegerProgram],
) -> Iterator[Explanation]:
    """The same two bugs, planted where the whole input is seen."""
    for first in planted((one.bug,), asked.site, asked.name):
        if first.variant.label != one.variant.label:
            continue
        site = replace(asked.site, program=first.variant.program)
        for second in planted((two.bug,), site, asked.name):
            if second.variant.label == two.variant.label:
                channels = _explains(second.variant.program, sheet, asked.y_hat, bad)
                if channels is not None:
                    yield Explanation((first, second), None if channels.all() else channels)


def _where(channels: Array | None) -> str:
    if channels is None:
        return ""
    places = np.flatnonzero(channels)
    shown = ", ".join(map(str, places[:_SHOWN])) + (", ..." if len(places) > _SHOWN else "")
    return f", in channel{'s' * (len(places) > 1)} {shown} alone"


def _unknown(
    asked: Asked, sheet: Sheet, right: Array, bad: Array, fitting: list[Explanation]
) -> Finding:
    """What can be measured of a bug that is in no library; `fitting` may be so by chance."""
    if right.shape != asked.y_hat.shape:
        says = f"the layer gives shape {asked.y_hat.shape}, not {right.shape}"
        return Finding("unknown", asked.name, None, 0.0, 0.0, says=says)
    wrong = right != asked.y_hat
    says = (
        f"{wrong.sum()} of {wrong.size} numbers differ, by at most "
        f"{int(np.abs(right.astype(int) - asked.y_hat.astype(int)).max())}{_where(bad)}; "
        + "; ".join(_measured(asked, sheet, bad))
    )
    names = list(dict.fromkeys(each.name for each in fitting))
    if names:
        says += f"; so few may fit by chance what fits them: {listed(names)}"
    return Finding(
        "unknown",
        asked.name,
        None,
        0.0,
        0.0,
        says=says,
        advice="compare the numbers of the first of these channels by hand: accumulator, "
        "multiplier, shift, zero point, clip",
        equivalents=tuple(names),
    )


def _measured(asked: Asked, sheet: Sheet, bad: Array) -> Iterator[str]:
    """Multiplier and offset that fit the first bad channel best; where its numbers are wrong."""
    channel = int(np.flatnonzero(bad)[0])
    finish = asked.program.finish
    sums = sheet.sums(asked.program.sums)[:, channel].ravel().astype(np.float64)
    y = asked.y_hat[:, channel].ravel().astype(np.float64)
    inside = (y > finish.low) & (y < finish.high)
    if inside.sum() > 2 and np.ptp(sums[inside]) > 0:
        slope, offset = np.polyfit(sums[inside], y[inside] - finish.added, 1)
        single = finish.scaling.single
        real = float(single[channel] if single.ndim else single)
        yield f"channel {channel} fits {slope / real:.4g} times its multiplier, {offset:+.2f} LSB"
    wrong = (sheet.numbers(asked.program) != asked.y_hat).any(axis=(0, 1))
    if min(wrong.shape) > 2 and not wrong[1:-1, 1:-1].any():
        yield "only pixels at the border are wrong"
