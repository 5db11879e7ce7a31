"""How good a network is, in one form or in both; and with both, whether they say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.selfcheck import BlockCheck, SelfCheckError
from repvgg_ref.data.source import DataError
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.ops import Ops
from repvgg_ref.train.accuracy import Score, Tally, tally
from repvgg_ref.train.agreement import check_agreement
from repvgg_ref.train.comm import Comm
from repvgg_ref.train.pixels import PixelScore, PixelTally, pixel_tally

_PROOF_IMAGES = 2  # furthest apart, and furthest beside the size of their logits

# Images as the network takes them, where it runs, and their labels on the host.
Labelled = tuple[Array, Array]


class Comparison(NamedTuple):
    """The trained form beside the fused one.

    The few images that the forms are furthest apart on, in themselves and beside the size of their
    logits, are held each against what rounding explains on that very image.

    Attributes
    ----------
    same_class : int
        Images that both forms put into the same class; of a dense network, in all pixels.
    largest : float
        Largest difference of a logit between the forms, on all images.
    difference, tolerance : float
        The same on the image that used most of what rounding explains on it, and that.
    closest : BlockCheck
        The block that used most of its certified bound.
    """

    same_class: int
    largest: float
    difference: float
    tolerance: float
    closest: BlockCheck

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference; false for NaN."""
        return self.difference <= self.tolerance


class Counted(NamedTuple):
    """What `count` found: a tally for each form, and with two forms their comparison."""

    tallies: dict[str, Tally | PixelTally]
    comparison: Comparison | None


class Evaluation(NamedTuple):
    """Both forms on the images of all ranks; the comparison is of this rank's.

    Of a network that cannot be fused there is the trained form alone.
    """

    images: int
    trained: Score | PixelScore
    fused: Score | PixelScore | None
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        """Scores and difference, as the log and the command have them."""
        if self.fused is None or self.comparison is None:
            return {"trained": self.trained._asdict()}
        return {
            "trained": self.trained._asdict(),
            "fused": self.fused._asdict(),
            "difference": self.comparison.difference,
            "largest_difference": self.comparison.largest,
            "tolerance": self.comparison.tolerance,
        }


@np.errstate(
    over="ignore", invalid="ignore", divide="ignore"
)  # a NaN fails the comparison of the two forms
def count(
    forms: Sequence[Model],
    batches: Iterable[Labelled],
    *,
    forward: Callable[[Model, Array], Array],
    roundoff: float,
) -> Counted:
    """Count how often each of `forms` is right.

    Parameters
    ----------
    forms : sequence of Model
        One, or a network in train form and its fusion; arrays on the host.
    forward : callable
        Model and images -> logits.
    roundoff : float
        Of the arithmetic that `forward` computes in: 2^-24 for float32.

    Raises
    ------
    DataError
        If there is no image.
    SelfCheckError
        If some block's two forms differ by more than rounding.
    """
    dense = forms[0].arch.is_dense
    none = PixelTally.empty(forms[0].arch.num_classes) if dense else Tally()
    counted = pixel_tally if dense else tally
    tallies: dict[str, Any] = {model.form: none for model in forms}
    furthest = Furthest()
    for x, labels in batches:
        if not len(labels):  # the last batch may have fewer images than there are ranks
            continue
        logits = {model.form: to_numpy(forward(model, x)) for model in forms}
        for form, values in logits.items():
            tallies[form] |= counted(values, labels)
        if len(forms) == 2:
            furthest.see(x, *logits.values())
    if not any(each.images for each in tallies.values()):
        raise DataError("there is no image to evaluate on")
    if len(forms) == 1:
        return Counted(tallies, None)
    trained, fused = forms
    return Counted(tallies, furthest.compare(trained, fused, roundoff=roundoff))


def evaluate(
    trained: Model, batches: Iterable[Labelled], *, ops: Ops, comm: Comm, roundoff: float
) -> Evaluation:
    """Evaluate `trained` and its fusion on this rank's batches, and prove that they agree.

    Raises
    ------
    SelfCheckError
        If the two forms differ by more than rounding explains.
    DataError
        If this rank has no image.
    """
    forms = (trained, fuse(trained)) if trained.arch.is_fusible else (trained,)
    tallies, comparison = count(
        forms, batches, forward=lambda model, x: model.forward(x, backend=ops), roundoff=roundoff
    )
    if comparison is not None and not comparison.ok:
        raise SelfCheckError(
            "the trained and the fused form give different logits",
            got=f"{comparison.difference:.3g}",
            wanted=f"at most {comparison.tolerance:.3g}, which rounding explains",
            advice="this is a bug in repvgg-ref: please report it",
        )
    kind = next(iter(tallies.values()))
    own = np.array([each.vector() for each in tallies.values()], np.float64)  # (2, numbers of one)
    everybody = to_numpy(comm.sum(ops.from_host(own.ravel()))).reshape(own.shape)
    first, *fused = (kind.of_vector(numbers) for numbers in everybody.tolist())
    second = fused[0].score if fused else None
    return Evaluation(int(first.images), first.score, second, comparison)


class Furthest:
    """The few images that two forms are furthest apart on, as they are seen."""

    def __init__(self) -> None:
        self._same_class = self._seen = 0
        self._largest = 0.0
        # For each measure: its value, the number of the image, how far apart, and the image.
        self._kept: list[list[tuple[float, int, float, Array]]] = [[], []]

    def see(self, x: Array, first: Array, second: Array) -> None:
        """Look at the logits that the two forms give for `x`."""
        same = first.argmax(axis=1) == second.argmax(axis=1)  # (N,), or (N, H, W)
        self._same_class += int(same.reshape(len(x), -1).all(axis=1).sum())
        # (N,) <- (N, classes), or (N, classes, H, W)
        apart = np.abs(first - second).reshape(len(x), -1).max(axis=1)
        self._largest = float(np.maximum(self._largest, apart.max()))  # a NaN stays
        sizes = np.abs(first).reshape(len(x), -1).max(axis=1)
        count = 1 if first.ndim == 4 else _PROOF_IMAGES
        for kept, measure in zip(self._kept, (apart, apart / sizes), strict=True):
            for i in np.argsort(measure)[-count:]:
                image = to_numpy(x[int(i)]).copy()
                kept.append((float(measure[i]), self._seen + int(i), float(apart[i]), image))
            kept.sort(key=lambda each: (each[0] != each[0], each[0]))  # a NaN is the largest
            del kept[:-count]
        self._seen += len(x)

    def compare(self, trained: Model, fused: Model, *, roundoff: float) -> Comparison:
        """What the forms may differ by on those images, beside what they do."""
        chosen = {number: (apart, image) for kept in self._kept for _, number, apart, image in kept}
        agreement = check_agreement(
            trained,
            fused,
            np.stack([image for _, image in chosen.values()]),
            ops=backend_ops("numpy", np.float64),
            roundoff=roundoff,
        )
        apart = np.array([each for each, _ in chosen.values()])
        tightest = int(np.argmax(apart / agreement.tolerances))  # a NaN if there is one
        return Comparison(
            self._same_class,
            self._largest,
            float(apart[tightest]),
            float(agreement.tolerances[tightest]),
            agreement.block,
        )
