"""What is said of taps of a weight file that no bug of the library explains."""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.diagnosis.ranking import Observation
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.weights.conversion import Odd

FEW = 0.2  # of a kernel's taps: more are no damage but a method
_SHOWN = 6


def altered(layer: str, seen: Observation, odd: Odd, unit: float) -> Finding:
    """A few numbers that the conversion, which the rest of the file shows, does not give.

    `unit` is the unit roundoff of biases.
    """
    channels = np.flatnonzero(odd.by_channel)
    count, biases = int(odd.by_channel.sum()), int(odd.bias.sum())
    parts = (_counted(count - biases, "tap", "taps"), _counted(biases, "bias", "biases"))
    what, one = " and ".join(filter(None, parts)), count == 1
    first = np.argwhere(odd.taps)
    place = f" (the first is [{', '.join(map(str, first[0]))}])" if len(first) else ""
    return Finding(
        "taps-altered",
        layer,
        _largest(seen, odd, unit),
        1.0,
        1.0,
        f"{what}, in output channel{'s' * (len(channels) > 1)} {_listed(channels)},"
        f" {'differs' if one else 'differ'} from what the raw weights and the channel's scale"
        f" give{place}",
        "convert again; a damaged or edited file, or weights fused in mixed precision",
    )


def _largest(seen: Observation, odd: Odd, unit: float) -> float | None:
    """The largest error among some numbers: of taps beside the right one, of biases their terms."""
    wrong = np.concatenate([odd.taps.reshape(len(odd.bias), -1), odd.bias[:, None]], axis=1)
    size = np.abs(seen.y[0])
    size[:, -1] = seen.likely[0, :, -1] / unit  # the sum of its terms' magnitudes
    wrong &= (size > 0) & np.isfinite(seen.y_hat[0])
    if not wrong.any():
        return None  # all of them should be 0, or are no numbers
    errors = (seen.y_hat[0] - seen.y[0])[wrong] / size[wrong]
    return float(errors[np.abs(errors).argmax()])


def unknown(layer: str, seen: Observation) -> Finding:
    """How many numbers are beyond their bound."""
    bad = ~(np.abs(seen.y_hat - seen.y) <= seen.certified)
    taps, channels = int(bad.sum()), int(bad.any(axis=(0, 2)).sum())
    bias_only = bool(bad[..., -1].any() and not bad[..., :-1].any())
    says = f"{taps} taps in {channels} of {bad.shape[1]} channels are beyond their bound"
    lost = int((~np.isfinite(seen.y_hat)).sum())
    says += f", {lost} of them NaN or infinite" if lost else ""
    return Finding(
        "unknown",
        layer,
        None,
        0.0,
        0.0,
        says + (", all of them biases" if bias_only else ""),
        "the bug is not in the library: compare the taps named here",
    )


def _counted(count: int, one: str, many: str) -> str:
    """`one tap`, `3 taps`, or nothing."""
    return "" if not count else f"one {one}" if count == 1 else f"{count} {many}"


def _listed(channels: Array) -> str:
    return ", ".join(map(str, channels[:_SHOWN])) + (", ..." if len(channels) > _SHOWN else "")
