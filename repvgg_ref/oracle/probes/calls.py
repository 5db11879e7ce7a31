"""Making the further calls, one after the other, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Candidate, CandidateFailure, Outputs
from repvgg_ref.oracle.probes.first_call import FirstCall
from repvgg_ref.oracle.probes.plan import (
    Probe,
    batches,
    contents,
    same_again,
    same_at_last,
    shapes,
)
from repvgg_ref.oracle.probes.screen import Deviation
from repvgg_ref.oracle.report import ProbeReport

_LEAST_SECONDS = 5.0  # for all further calls together; three times the first call's if that is more


@dataclass(frozen=True)
class Made:
    """A probe that was called: its outputs, or why there are none and whether that is an error.

    `deviation` says where the outputs are wrong, `told` what the port says has entered the network
    where that is not the probe's batch.
    """

    probe: Probe
    outputs: Outputs | None = None
    refusal: str = ""
    is_wrong: bool = False
    deviation: Deviation | None = None
    told: Array | None = None

    @property
    def x(self) -> Array:
        """The batch that entered the network."""
        return self.probe.x if self.told is None else self.told

    def with_outputs(self, change: Callable[[Outputs], Outputs]) -> Made:
        """The same with other outputs, if there are any."""
        return self if self.outputs is None else replace(self, outputs=change(self.outputs))

    @property
    def report(self) -> ProbeReport:
        """It as part of the report."""
        if self.outputs is None and not self.is_wrong:
            return ProbeReport(self.probe.call, None, self.refusal)
        says = self.deviation.says if self.deviation is not None else self.refusal
        return ProbeReport(self.probe.call, not self.is_wrong, says)


def deadline(first: FirstCall) -> float:
    """When no further call is begun, on the monotonic clock."""
    return time.monotonic() + max(_LEAST_SECONDS, 3 * first.seconds)


def calls_in_turn(
    port: Candidate,
    first: FirstCall,
    probes: Iterable[Probe],
    until: float,
    before: Sequence[Made] = (),
) -> list[Made]:
    """Make the calls in turn, after those `before`; what a port refuses is no error."""
    made = [*before]
    for probe in probes:
        made.append(_believed(_call(port, first, probe, until), port, first, made))
    return made[len(before) :]


def further_calls(
    arch: Network, port: Candidate, first: FirstCall, precision: Precision
) -> list[Made]:
    """The whole plan after a right first call."""
    until, x = deadline(first), np.asarray(first.x, np.float32)
    made = calls_in_turn(port, first, [same_again(x), *batches(arch, x), *shapes(arch, x)], until)
    taken = [m.probe for m in made if m.outputs is not None]
    batch, _, *size = next((p.x.shape for p in taken if p.kind == "odd-size"), x.shape)
    others = [*contents(arch, (batch, size[0], size[1]), precision), same_at_last(x)]
    return [*made, *calls_in_turn(port, first, others, until, made)]


def _call(port: Candidate, first: FirstCall, probe: Probe, until: float) -> Made:
    if probe.needs_floats and port.takes_integers:
        return Made(probe, refusal="not judged: the port takes bytes")
    left = until - time.monotonic()
    if left <= 0:
        return Made(probe, refusal="not called: the calls before took too long")
    try:
        outputs = port.run_again(_fed(port, first, probe), left)
    except CandidateFailure as failure:
        why = str(failure.got or failure.what)
        return Made(probe, refusal=why, is_wrong=failure.verdict == "disagree")
    return Made(probe, outputs, told=outputs.x)


def _fed(port: Candidate, first: FirstCall, probe: Probe) -> Array:
    """What to call the port with; the first call's images again are those very numbers."""
    if probe.like_first is None or first.fed is None:
        return port.images(probe.x)
    return np.asarray(first.fed, np.float32)[list(probe.like_first)]


def _believed(made: Made, port: Candidate, first: FirstCall, before: Sequence[Made]) -> Made:
    """The call; what the port says has entered the network only if it may be believed.

    That is of ports which made their own of the first batch, too, and not of what such a port has
    kept from a call of other images.
    """
    x = made.told
    if x is None:
        return made
    makes_its_own = port.takes_integers or first.is_normalised
    others = [m.x for m in before if not np.array_equal(m.probe.x, made.probe.x)]
    if made.probe.like_first is None:
        others.append(first.x)
    is_kept = any(np.array_equal(x, other) for other in others)
    fits = x.shape == made.probe.x.shape
    return made if makes_its_own and fits and not is_kept else replace(made, told=None)
