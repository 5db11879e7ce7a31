"""One cause in all layers is one finding.

A bug stands in all layers if it was found in several and could be in every other block where it
would show: the blocks that were not diagnosed, or that are right, are asked about this bug alone.
The classifier need not have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repvgg_ref.oracle.bugs import LAYER_BUGS, Mutant, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.diagnosis.evidence import DO_NOT_FIT, Evidence
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.report import EVERYWHERE, Finding

_ALIKE = 0.01  # relative: one number fitted in two layers
_ERRORS = 6.0  # or so many standard errors
_A_BIT = 1.0  # relative: what errs at random, in as many bits
_NUMBER = re.compile(r"[-+.e\d]+")
_ALSO, _SHOWN = " (also in ", 8
_OF_ANOTHER = "layers-swapped"  # two layers that have it have two causes, and all of them many
_FITTED = {bug.name for bug in LAYER_BUGS if bug.continuous}
_CHOSEN = {bug.name for bug in LAYER_BUGS if "{parameter" in bug.says} - _FITTED

FoundIn = Mapping[str, Sequence[Finding]]


@dataclass(frozen=True)
class Layers:
    """The layers that findings are of.

    Attributes
    ----------
    names : sequence of str
        All that were compared, in the network's order.
    bad : sequence of str
        Those that are not right; not all need to have been diagnosed.
    evidence : callable
        What a layer shows; None if bugs cannot be tried on it.
    estimated : frozenset of str
        Findings that are no bugs of the library but were estimated.
    alike : callable
        The places of the same operation as one that is hidden before a layer; none if unknown.
    """

    names: Sequence[str]
    bad: Sequence[str]
    evidence: Callable[[str], Evidence | None]
    estimated: frozenset[str] = frozenset()
    alike: Callable[[str], Collection[str]] = lambda place: ()

    def count(self, finding: Finding, found_in: FoundIn) -> int:
        """In how many layers a finding is shown to stand, if it stands in all; else 0."""
        if finding.bug == _OF_ANOTHER:
            return 0
        own = {n: f for n, each in found_in.items() if (f := _of(each, finding.bug)) is not None}
        is_fitted = finding.bug in _FITTED | self.estimated
        if len(own) < 2 or not all(_alike(finding, each, is_fitted) for each in own.values()):
            return 0
        if hidden := [f.layer for n, f in own.items() if f.layer not in (None, n) and not f.also]:
            places = {place for n, f in own.items() for place in (f.layer or n, *f.also)}
            able = self.alike(str(hidden[0]))
            return len(places) if able and places.issuperset(able) else 0
        left = [name for name in self.names if name not in own and name != "linear"]
        if finding.bug in self.estimated:
            asked = [name in self.bad and name not in found_in for name in left]
            return len(own) if all(asked) else 0
        shown = len(own) + sum(len(each.also) for each in own.values())
        for name in left:
            stands = self._stands(finding, name)
            if stands is False or (stands is None and name in self.bad):
                return 0  # what is wrong there is something else
            shown += bool(stands)
        return shown

    def _stands(self, finding: Finding, name: str) -> bool | None:
        """Whether a bug of the library is in a layer; None if it would not show there."""
        evidence = self.evidence(name)
        if evidence is None:
            return False
        trials = [t for m in _mutants(evidence, finding) if (t := _tried(evidence, m)) is not None]
        trials += [t for t in evidence.hidden_trials(finding.bug) if _is_same(finding, t)]
        if not trials:
            return None
        fitting = [trial for trial in trials if trial.within and trial.is_admissible]
        if not fitting:
            return False
        return True if any(trial.is_significant for trial in fitting) else None


def merged(found_in: FoundIn, layers: Layers) -> list[Finding]:
    """Each bug once: in "all" layers, or where it is first, saying in which other layers it is.

    What was another explanation in some layer, and less likely, is none once one cause explains
    all of them.
    """
    first: dict[str, Finding] = {}
    for found in found_in.values():
        for finding in found:
            first.setdefault(finding.bug, finding)
    everywhere = {
        bug: replace(
            finding,
            layer=EVERYWHERE,
            says=f"{_said(finding)} (in all {count} layers that show it)",
            also=(),
        )
        for bug, finding in first.items()
        if (count := layers.count(finding, found_in))
    }
    kept = {
        name: [f for f in found if f.bug in everywhere or not _is_beaten(f, found, everywhere)]
        for name, found in found_in.items()
    }
    joined: list[Finding] = []
    for bug in first:
        where = [name for name, found in kept.items() if any(f.bug == bug for f in found)]
        if bug in everywhere:
            joined.append(everywhere[bug])
        elif where:
            joined += _joined([(n, next(f for f in kept[n] if f.bug == bug)) for n in where])
    return joined


def _joined(found: list[tuple[str, Finding]]) -> list[Finding]:
    """One bug in some layers: once for all that have it alike."""
    groups: dict[str, list[tuple[str, Finding]]] = {}
    for name, finding in found:
        groups.setdefault(_kind(finding), []).append((name, finding))
    return [
        _also(group[0][1], [each for n, f in group[1:] for each in (f.layer or n, *f.also)])
        for group in groups.values()
    ]


def _kind(finding: Finding) -> str:
    """What a bug with a fitted number says besides, of which norms, say; else its choice.

    Dilated by 2 and dilated by 4 are two causes, although they have one name.
    """
    if finding.bug in _FITTED:
        return _NUMBER.sub("", _said(finding))
    return _said(finding) if finding.bug in _CHOSEN | {_OF_ANOTHER} else ""


def _said(finding: Finding) -> str:
    """What is said of a bug but for the layers that it is in."""
    return finding.says.rsplit(_ALSO, 1)[0] if finding.also else finding.says


def _is_same(finding: Finding, trial: Trial) -> bool:
    """Whether a trial is of the bug in the setting that was found."""
    return _alike(finding, trial.finding(1.0), finding.bug in _FITTED)


def _also(finding: Finding, others: Sequence[str]) -> Finding:
    """Say in which other layers a bug is."""
    if not others:
        return finding
    others = [*finding.also, *others]
    also = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    return replace(finding, says=f"{_said(finding)}{_ALSO}{also})", also=())


def _of(found: Sequence[Finding], bug: str) -> Finding | None:
    """The finding that says so, or that cannot be told from it."""
    by_name = (f for f in found if f.bug == bug)
    return next(by_name, next((f for f in found if bug in f.equivalents), None))


def _is_beaten(finding: Finding, found: Sequence[Finding], everywhere: Mapping[str, Any]) -> bool:
    """Whether a cause in all layers explains this layer as well or better."""
    cause = next((f for bug in everywhere if (f := _of(found, bug)) is not None), None)
    return cause is not None and (cause is finding or finding.confidence < cause.confidence)


def _alike(first: Finding, second: Finding, is_fitted: bool) -> bool:
    """Whether two layers have the same: the same words, or one number to within its errors."""
    if first.bug != second.bug or _said(first) == _said(second):
        return True  # of another bug that predicts the same here nothing more is known
    if not is_fitted or first.estimate is None or second.estimate is None:
        return False
    if _kind(first) != _kind(second):
        return False
    room = _ERRORS * max(each.standard_error or 0.0 for each in (first, second))
    share = _A_BIT if first.bug.endswith("-rounded") else _ALIKE
    return abs(first.estimate - second.estimate) <= max(share * abs(first.estimate), room)


def _mutants(evidence: Evidence, finding: Finding) -> Iterator[Mutant[Any]]:
    """The bug in this layer, in the setting that it has elsewhere if there is one."""
    site = evidence.site
    bugs = [bug for bug in bugs_for(site.program) if bug.name == finding.bug]
    made = list(planted(bugs, site, evidence.layer, precision=evidence.precision))
    if finding.bug not in _FITTED:
        same = [mutant for mutant in made if _said(finding).endswith(mutant.says)]
        yield from same or (m for m in made if m.variant.parameter is None)
        return
    same = [mutant for mutant in made if mutant.variant.detail in finding.says]
    for mutant in sorted(same, key=lambda mutant: -len(mutant.variant.detail))[:1]:
        at, value = mutant.variant.at, finding.estimate
        assert at is not None
        assert value is not None
        variant = mutant.variant._replace(program=at(value), parameter=value)
        yield replace(mutant, variant=variant)


def _tried(evidence: Evidence, mutant: Mutant[Any]) -> Trial | None:
    try:
        return evidence.trial(mutant)
    except DO_NOT_FIT:
        return None
