"""The noise of convolution by Fourier transforms: the same all over an image.

Each output of an inverse transform is a sum over the whole image's spectrum, so its rounding is
relative to the image's energy and not to what the output sees: beyond the bound of direct summation
where an image is far darker in one place than in another. v is the mean of E**2 over an image, c
the mean of ``r**2 / (u**2 v)``: 2 to 7 for transforms of images here, at most 12. What that excuses
is small: no output may be off by more than `LARGEST` roundings of its image's energy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.noise import noise_variance
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample
from repvgg_ref.oracle.arithmetic.tiles import Algorithm, Evidence, likelihood

FFT = Algorithm(0, ())
LARGEST = 40.0  # u sqrt(v): a right transform's outputs reached 30

_MOST, _PROVED, _FEWEST = 12.0, 100.0, 64


def image_energy(energy: Array, images: Array) -> Array:
    """E**2 (O, P) averaged over each image, at every output."""
    mean = np.empty_like(energy)
    for image in np.unique(images):
        own = images == image
        mean[:, own] = energy[:, own].mean(axis=1, keepdims=True)
    return mean


def in_images(
    sample: Sample, unit: float, direct: Nuisance
) -> tuple[Algorithm, Evidence, Nuisance] | None:
    """Whether a layer errs as a Fourier transform does, better than as direct summation does."""
    on = sample.active
    if on.sum() < _FEWEST:
        return None
    v = unit**2 * image_energy(sample.energy, sample.images) + 1e-300
    residual = sample.residual
    if sample.gated:
        residual = sample.without_gate(np.where(on, 1 / v, 0.0))
    squares, mine = residual[on] ** 2, v[on]
    c = float((squares / mine).mean())
    gain = likelihood(squares, mine) - likelihood(
        squares, noise_variance(sample, unit)[on] + 1e-300
    )
    if c > _MOST or gain <= 0 or float((squares / mine).max()) > LARGEST**2:
        return None
    nuisance = replace(direct, drift=0.0).of_algorithm(sample, FFT.name, max(c, 0.2) * v)
    return FFT, Evidence(c, gain, 0.0, 0.0, int(on.sum())), nuisance


def is_proved(found: list[Evidence]) -> bool:
    """Whether some layer shows it beyond doubt."""
    return any(each.gain > _PROVED for each in found)
