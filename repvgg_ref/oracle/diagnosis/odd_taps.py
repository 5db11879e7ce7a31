"""What is said of taps of a weight file that no bug of the library explains."""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.diagnosis.ranking import Observation
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.weights.conversion import Odd

FEW = 0.2  # of a kernel's taps: more are no damage but a method
_SHOWN = 6
_MOST = 0.5  # of a channel's taps err where the channel is scaled


def altered(layer: str, odd: Odd) -> Finding:
    """A few numbers that the conversion, which the rest of the file shows, does not give."""
    channels = np.flatnonzero(odd.by_channel)
    count, biases = int(odd.by_channel.sum()), int(odd.bias.sum())
    parts = (_counted(count - biases, "tap", "taps"), _counted(biases, "bias", "biases"))
    what, one = " and ".join(filter(None, parts)), count == 1
    first = np.argwhere(odd.taps)
    place = f" (the first is [{', '.join(map(str, first[0]))}])" if len(first) else ""
    return Finding(
        "taps-altered",
        layer,
        float(count),
        1.0,
        1.0,
        f"{what}, in output channel{'s' * (len(channels) > 1)} {_listed(channels)},"
        f" {'differs' if one else 'differ'} from what the raw weights and the channel's scale"
        f" give{place}",
        "convert again; a damaged or edited file, or weights fused in mixed precision",
    )


def scaled(layer: str, y: Array, y_hat: Array, room: Array) -> Finding | None:
    """Channels of which every tap is the same factor off, if that is all that is wrong.

    Parameters
    ----------
    y, y_hat, room : arrays (O, K + 1)
        Taps and bias of each channel: the reference's, the candidate's, how far they may be apart.
    """
    bad = np.flatnonzero((np.abs(y_hat - y) > room).any(axis=1))
    if not len(bad):
        return None
    taps, taps_hat = y[bad, :-1], y_hat[bad, :-1]  # the bias need not be scaled with them
    factors = (taps_hat * taps).sum(axis=1) / np.maximum((taps**2).sum(axis=1), 1e-300)
    with_bias = np.abs(y_hat[bad] - factors[:, None] * y[bad])
    whole = (np.abs(y_hat[bad] - y[bad]) > room[bad] / 16).mean(axis=1) > _MOST
    within = with_bias <= room[bad] * (1 + np.abs(factors[:, None]))
    if not (within[:, :-1].all() and (factors > 0).all() and whole.all()):
        return None
    bias = "" if within.all() else ", its bias not"
    shown = ", ".join(f"{o} by {f:.7g}" for o, f in zip(bad[:_SHOWN], factors, strict=False))
    return Finding(
        "channel-scaled",
        layer,
        float(factors[0] - 1),
        1.0,
        1.0,
        f"output channels are scaled: {shown}{bias}",
        "compare gamma, running_var and eps of these channels; fold every scale into both layers",
    )


def unknown(layer: str, seen: Observation) -> Finding:
    """How many numbers are beyond their bound."""
    bad = np.abs(seen.residual) > seen.certified
    taps, channels = int(bad.sum()), int(bad.any(axis=(0, 2)).sum())
    bias_only = bool(bad[..., -1].any() and not bad[..., :-1].any())
    says = f"{taps} taps in {channels} of {bad.shape[1]} channels are beyond their bound"
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
