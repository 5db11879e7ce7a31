"""The handwritten digits that the package ships, as a data set."""

from __future__ import annotations

from repvgg_ref.data.digits import INK, MEAN, STD, UPSCALE, load_digits
from repvgg_ref.data.source import ArraySource, Standardise

# Ink is stored eightfold, 0 ... 128: exact in the end (a power of two), and finer steps for
# whatever interpolates.
_LEVELS = 8


def digits_source(split: str) -> ArraySource:
    """The 1437 digits to train on ("train"), or the 360 that no training has seen ("val").

    Each pixel is four wide and high: (32, 32, 1). Standardised they are `digits.to_input`'s.
    """
    digits = load_digits().train if split == "train" else load_digits().test
    # (N, 8, 8) -> (N, 32, 32, 1)
    images = (digits.images * _LEVELS).repeat(UPSCALE, axis=1).repeat(UPSCALE, axis=2)[..., None]
    return ArraySource(
        images,
        digits.labels,
        classes=tuple("0123456789"),
        standardise=Standardise(1 / (INK * _LEVELS), (MEAN,), (STD,)),
        title=f"digits/{split}",
    )
