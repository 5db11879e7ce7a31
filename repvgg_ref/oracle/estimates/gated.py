"""Factors of a gated layer's outputs, told from errors of its gates.

What multiplies all outputs of an image's channel alike is its *share*, s. Of a right port it is an
error of the gate: along the few directions in which hidden units move the gates (`Gates.moves`), by
any amount that their likely bound allows, and beside them by little. A fault is what lies beside:
for a factor of the layer ``psi = 1``, of a channel 1 there, of an image 1 there,

    coefficient = sum q s / sum q psi      q = W psi', psi' perpendicular to the moves in the norm W

with 1/W the variance of a share. ``sum q psi`` shrinks where hidden units could do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample, sums_by_image

_OF_ITSELF = 1e-3  # of a direction's power: what is left of it beside the moves, or it is none
_RANK = 1e-10  # relative: a direction in which nothing moves
_SPREAD = 1 / 0.6745  # a Gaussian's standard deviation, of its median absolute value


class Factor(NamedTuple):
    """A coefficient with its standard error, and the part of psi that no error of gates is."""

    value: float
    error: float
    part: float


class GatedFactors:
    """The shares of one layer, (N, O), and what is regressed on them."""

    def __init__(self, sample: Sample, nuisance: Nuisance, weights: Array, residual: Array) -> None:
        assert sample.gates is not None
        self.sample, self.gates, self.weights = sample, sample.gates, weights
        self.images = int(sample.images.max()) + 1
        self._conversion = nuisance.taps * nuisance.unit**2
        self.power = sums_by_image(sample.images, weights * sample.y**2).T  # (N, O)
        shares = sums_by_image(sample.images, weights * sample.y * residual).T
        shares = shares / np.where(self.power > 0, self.power, np.inf)
        self.shares = np.where(np.isfinite(shares), shares, 0.0)  # of numbers without sense
        self.own = (nuisance.unit * nuisance.gate * self.gates.rounding[: self.images]) ** 2
        self.of_gates = self._of_gates(nuisance.gate * self.gates.likely[: self.images])

    @cached_property
    def _weight(self) -> Array:
        """1 over the variance of a share, noise, conversion and its gate's own rounding; (N, O)."""
        seen = self.weights * self.sample.y
        total = np.maximum(self.power.sum(axis=0), 1e-300)
        conversion = self._conversion * self.sample.met(seen) / total**2
        return self._inverse(self.own + conversion)

    def _inverse(self, more: Array) -> Array:
        on = self.power > 0
        return np.where(on, 1 / (1 / np.where(on, self.power, 1.0) + more), 0.0)

    def _of_gates(self, most: Array) -> Array:
        """What hidden units explain of the shares beside one factor for each image, (N, O)."""
        found = np.zeros(self.shares.shape)
        for n, (w, s, moves) in enumerate(self._each(self._weight)):
            root = np.sqrt(w)[:, None]
            both = np.concatenate([np.ones((len(s), 1)), moves], axis=1)
            solved = np.linalg.lstsq(both * root, s * root[:, 0], rcond=_RANK)[0]
            found[n] = moves @ solved[1:]
        return np.clip(found, -most, most)

    def _each(self, weight: Array) -> Iterator[tuple[Array, Array, Array]]:
        return zip(weight, self.shares, self.gates.moves[: self.images], strict=True)

    @cached_property
    def _bases(self) -> list[Array]:
        """Of each image: orthonormal directions of the moves, times the root of W; (O, r)."""
        return [_basis(np.sqrt(w)[:, None] * moves) for w, _, moves in self._each(self._weight)]

    def whole(self) -> Factor | None:
        """The factor of all outputs."""
        psi = np.ones(self.shares.shape)
        root = np.sqrt(self._weight)
        q = root * self._beside_moves(root * psi)
        return self._regressed(q, psi, self._weight)

    def channels(self) -> tuple[Array, Array]:
        """Of every channel the factor and its standard error; infinite where nothing tells it."""
        w = self._weight
        hat = np.stack([(basis**2).sum(axis=1) for basis in self._bases])  # (N, O)
        power = (w * (1 - hat)).sum(axis=0)
        left = np.sqrt(w) * self._beside_moves(np.sqrt(w) * self.cleaned)
        good = power > _OF_ITSELF * w.sum(axis=0)
        size = np.where(good, power, np.inf)
        errors = np.sqrt(self._variances(w)) / size
        return left.sum(axis=0) / size, np.where(good, errors, np.inf)

    def image(self, chosen: int) -> Factor | None:
        """The factor of one image's outputs beside the others'."""
        psi = np.zeros(self.shares.shape)
        psi[chosen] = 1
        w = self._weight_of_contrasts
        root = np.sqrt(w)
        flat = (root * self._beside_channels(psi)).reshape(-1)
        q = (root.reshape(-1) * _beside(self._basis_of_contrasts, flat)).reshape(psi.shape)
        return self._regressed(q, psi, w)

    @property
    def cleaned(self) -> Array:
        """The shares less what errors of gates explain, (N, O)."""
        return self.shares - self.of_gates

    def _beside_moves(self, values: Array) -> Array:
        """Values (N, O), times the root of W, less what the moves explain of them."""
        each = zip(self._bases, values, strict=True)
        return np.stack([_beside(basis, mine) for basis, mine in each])

    @cached_property
    def _weight_of_contrasts(self) -> Array:
        """As `_weight`, without conversion: it is the same in all images."""
        w = self._inverse(self.own)
        return np.where((w > 0).sum(axis=0) > 1, w, 0.0)

    def _beside_channels(self, values: Array) -> Array:
        """Values (N, O) less each channel's mean over the images."""
        w = self._weight_of_contrasts
        total = w.sum(axis=0)
        return np.asarray(values - (w * values).sum(axis=0) / np.where(total > 0, total, np.inf))

    @cached_property
    def _basis_of_contrasts(self) -> Array:
        """As `_bases`, of all images together and beside a factor of each channel; (N O, r)."""
        w, moves = self._weight_of_contrasts, self.gates.moves[: self.images]
        columns = []
        for n in range(self.images):
            for j in np.flatnonzero(np.abs(moves[n]).max(axis=0) > 0):
                one = np.zeros(w.shape)
                one[n] = moves[n][:, j]
                columns.append((np.sqrt(w) * self._beside_channels(one)).reshape(-1))
        return _basis(np.stack(columns, axis=1)) if columns else np.zeros((w.size, 0))

    def _regressed(self, q: Array, psi: Array, weight: Array) -> Factor | None:
        size = float((q * psi).sum())
        part = size / max(float((weight * psi**2).sum()), 1e-300)
        if not part > _OF_ITSELF:
            return None
        value = float((q * self.cleaned).sum()) / size
        expected = self._scatter * float(np.sqrt(self._variances(q).sum()))
        seen = float(np.sqrt(((q * self._unexplained) ** 2).sum()))
        return Factor(value, max(expected, seen) / size, part)

    @cached_property
    def _unexplained(self) -> Array:
        """Shares less one factor for each image and what the moves explain, (N, O)."""
        w = self._weight
        total = np.maximum(w.sum(axis=1, keepdims=True), 1e-300)
        mean = (w * self.cleaned).sum(axis=1, keepdims=True) / total
        left = self._beside_moves(np.sqrt(w) * (self.cleaned - mean))
        return np.where(w > 0, left / np.sqrt(np.where(w > 0, w, 1.0)), 0.0)

    @cached_property
    def _scatter(self) -> float:
        """How many times more than expected gates differ from one another; at least 1."""
        on = self._weight > 0
        left = (np.sqrt(self._weight) * np.abs(self._unexplained))[on]
        return max(1.0, _SPREAD * float(np.median(left))) if left.size else 1.0

    def _variances(self, q: Array) -> Array:
        """Of each channel's sum of shares with coefficients q (N, O).

        Gates may round alike in all images: by the same numbers, if these are alike.
        """
        at_power = np.where(self.power > 0, q / np.where(self.power > 0, self.power, 1.0), 0.0)
        noise = (q * at_power).sum(axis=0)
        gates = (np.abs(q) * np.sqrt(self.own)).sum(axis=0) ** 2
        sample = self.sample
        seen = at_power.T[:, sample.images] * self.weights * sample.y
        return np.asarray(noise + gates + self._conversion * sample.met(seen))


def _basis(columns: Array) -> Array:
    """Orthonormal directions of what columns (A, J) span, (A, r)."""
    if not columns.shape[1] or not np.abs(columns).max() > 0:
        return columns[:, :0]
    u, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(u[:, sizes > _RANK * sizes[0]])


def _beside(basis: Array, values: Array) -> Array:
    """Values (A,) less their part along the basis."""
    return np.asarray(values - basis @ (basis.T @ values))
