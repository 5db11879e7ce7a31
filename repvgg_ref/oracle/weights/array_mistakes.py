"""What fusers do to single arrays of a block: ignored, taken for another, turned, exchanged.

Batch norms have the mistakes that the library of bugs names (`oracle.bugs.batch_norm`), and kernels
those of `oracle.bugs.geometry`, by the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.run import NORM_VECTORS

WRONG_EPS = (1e-5, 1e-3, 1e-6, 0.0)

Leaves = dict[str, Array]
Vectors = dict[str, Array]  # of one norm, by the names of `NORM_VECTORS`
Wrong = tuple[str, str, Leaves]  # a bug's name, what it says, and the arrays that have it
_END = ".running_var"  # of every norm, and of nothing else


def _var_as_std(norm: Vectors, eps: float) -> Vectors:
    return norm | {"running_var": (norm["running_var"] + eps) ** 2 - eps}


def _eps_outside(norm: Vectors, eps: float) -> Vectors:
    return norm | {"running_var": (np.sqrt(norm["running_var"]) + eps) ** 2 - eps}


def _mean_unscaled(norm: Vectors, eps: float) -> Vectors:
    mean = norm["running_mean"]
    return norm | {"beta": norm["beta"] - mean, "running_mean": np.zeros_like(mean)}


def _taken_for(**values: float) -> Callable[[Vectors, float], Vectors]:
    """The vectors called so hold one value; a variance so much with its eps."""

    def change(norm: Vectors, eps: float) -> Vectors:
        less = {"running_var": eps}
        return norm | {
            name: np.full_like(norm[name], value - less.get(name, 0.0))
            for name, value in values.items()
        }

    return change


_OF_NORMS: tuple[tuple[str, str, Callable[[Vectors, float], Vectors]], ...] = (
    ("mean-ignored", "the running mean is not subtracted", _taken_for(running_mean=0)),
    (
        "mean-sign",
        "the running mean is added",
        lambda norm, _: norm | {"running_mean": -norm["running_mean"]},
    ),
    ("mean-not-scaled", "the running mean is subtracted without its scale", _mean_unscaled),
    ("beta-ignored", "beta is left out", _taken_for(beta=0)),
    ("gamma-ignored", "gamma is left out", _taken_for(gamma=1)),
    ("variance-ignored", "the running variance is left out", _taken_for(running_var=1)),
    (
        "variance-ignored",
        "the running variance is taken for 1",
        lambda norm, _: norm | {"running_var": np.ones_like(norm["running_var"])},
    ),
    ("var-used-as-std", "the variance is used where its root belongs", _var_as_std),
    ("eps-outside-root", "eps is added to the standard deviation", _eps_outside),
    (
        "stale-statistics",
        "mean 0 and variance 1 are taken for its statistics",
        _taken_for(running_mean=0, running_var=1),
    ),
    (
        "default-batch-norm",
        "it does nothing",
        _taken_for(gamma=1, beta=0, running_mean=0, running_var=1),
    ),
    ("leaf-zeroed", "gamma is zero", _taken_for(gamma=0)),
    ("leaf-zeroed", "the running variance is zero", lambda norm, eps: _zero_variance(norm)),
    *(
        (
            "leaves-exchanged",
            f"{one} and {two} are exchanged",
            lambda norm, _, one=one, two=two: norm | {one: norm[two], two: norm[one]},
        )
        for one, two in combinations(NORM_VECTORS, 2)
    ),
)


_RARE_OF_NORMS: tuple[tuple[str, str, Callable[[Vectors, float], Vectors]], ...] = (
    ("gamma-sign", "gamma has the other sign", lambda norm, _: norm | {"gamma": -norm["gamma"]}),
    ("beta-sign", "beta is subtracted", lambda norm, _: norm | {"beta": -norm["beta"]}),
    ("leaf-ignored", "beta is taken for 1", _taken_for(beta=1)),
    ("leaf-ignored", "the running mean is taken for 1", _taken_for(running_mean=1)),
)
_OF_ANY: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("leaf-zeroed", "is zero", np.zeros_like),
    ("leaf-ignored", "is one", np.ones_like),
)


def _in_and_out(kernel: Array) -> Array:
    return kernel.swapaxes(0, 1)


def _height_and_width(kernel: Array) -> Array:
    return kernel.swapaxes(-2, -1)


def _flipped(kernel: Array) -> Array:
    return kernel[..., ::-1, ::-1]


_AXES = _in_and_out, _height_and_width, _flipped
_TURNED: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("leaf-negated", "has the other sign", np.negative),
    ("kernel-in-out-swapped", "has inputs and outputs exchanged", _in_and_out),
    ("kernel-height-width-swapped", "has height and width exchanged", _height_and_width),
    ("kernel-flipped", "is flipped both ways", _flipped),
)


def _zero_variance(norm: Vectors) -> Vectors:
    return norm | {"running_var": np.zeros_like(norm["running_var"])}


class Arrays:
    """A block's arrays, of which some are changed.

    Parameters
    ----------
    parts : mapping
        The leaves of the expression -> their arrays.
    keys : mapping
        The leaves -> what the file calls them.
    eps : float
        Of its norms.
    """

    def __init__(self, parts: Mapping[str, Array], keys: Mapping[str, str], eps: float) -> None:
        self._eps = eps
        self._norms = [leaf.removesuffix(_END) for leaf in parts if leaf.endswith(_END)]
        self._wide = {leaf: np.asarray(array, np.float64) for leaf, array in parts.items()}
        inside = {f"{norm}.{v}": (v, norm) for norm in self._norms for v in NORM_VECTORS}
        self._others = [k for k, array in self._wide.items() if k not in inside and array.size]
        self._names = {leaf: keys.get(leaf, leaf) for leaf in parts}
        for norm in self._norms:
            self._names[norm] = self._names[norm + _END].removesuffix(_END)
        for leaf, (vector, norm) in inside.items():
            self._names[leaf] = f"{vector} of {self._names[norm]}"

    def mistakes(self) -> Iterator[Wrong]:
        """One array ignored, or taken for another of its kind; then the likely exchanges."""
        yield from self._of_norms(_OF_NORMS)
        for one, two in combinations(self._norms, 2):
            yield from self._of_two_norms(one, two)
        yield from self._of_others(_OF_ANY)
        yield from self._exchanged(self._others)

    def rare_mistakes(self) -> Iterator[Wrong]:
        """A sign, ones, one norm's eps, one kernel turned round, any two arrays of one shape."""
        yield from self._of_norms(_RARE_OF_NORMS)
        for norm in self._norms if len(self._norms) > 1 else []:
            for other in WRONG_EPS:
                variance = {norm + _END: self._wide[norm + _END] + (other - self._eps)}
                says = f"{self._names[norm]}: eps is {other:g}, not {self._eps:g}"
                yield "eps-value", says, self._wide | variance
        yield from self._of_others(_TURNED)
        yield from self._exchanged([each for each in self._wide if each in self._names])

    def _of_norms(self, table: Iterable[tuple[str, str, Any]]) -> Iterator[Wrong]:
        """Of all norms, and of each."""
        norms = self._norms
        for bug, says, change in table:
            for chosen in ([norms] if len(norms) > 1 else []) + [[norm] for norm in norms]:
                changed = dict(self._wide)
                for norm in chosen:
                    changed |= _renamed(norm, change(_vectors(self._wide, norm), self._eps))
                where = "every batch norm" if len(chosen) > 1 else self._names[chosen[0]]
                yield bug, f"{where}: {says}", changed

    def _of_two_norms(self, one: str, two: str) -> Iterator[Wrong]:
        """Exchanged, or one vector of both."""
        first, second = _vectors(self._wide, one), _vectors(self._wide, two)
        if first["gamma"].shape != second["gamma"].shape:
            return
        both = f"{self._names[one]} and {self._names[two]} are exchanged"
        changed = self._wide | _renamed(one, second) | _renamed(two, first)
        yield "bn-of-branches-swapped", both, changed
        for name in NORM_VECTORS:
            changed = self._wide | {f"{one}.{name}": second[name], f"{two}.{name}": first[name]}
            yield "leaves-exchanged", f"{name} of {both}", changed

    def _of_others(self, table: Iterable[tuple[str, str, Any]]) -> Iterator[Wrong]:
        """Of each array that is no norm's."""
        for bug, says, change in table:
            for leaf in self._others:
                array = self._wide[leaf]
                changed = change(array) if array.ndim > 1 or change not in _AXES else array
                if changed.shape == array.shape and not np.array_equal(changed, array):
                    yield bug, f"{self._names[leaf]} {says}", self._wide | {leaf: changed}

    def _exchanged(self, leaves: list[str]) -> Iterator[Wrong]:
        """Any two of one shape."""
        for one, two in combinations(leaves, 2):
            first, second = self._wide[one], self._wide[two]
            if first.shape == second.shape and first.size:
                bug = "kernels-exchanged" if first.ndim > 2 else "leaves-exchanged"
                says = f"{self._names[one]} and {self._names[two]} are exchanged"
                yield bug, says, self._wide | {one: second, two: first}


def _vectors(parts: Leaves, norm: str) -> Vectors:
    return {name: parts[f"{norm}.{name}"] for name in NORM_VECTORS}


def _renamed(norm: str, vectors: Vectors) -> Vectors:
    return {f"{norm}.{name}": array for name, array in vectors.items()}
