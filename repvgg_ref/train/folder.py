"""A training's folder: claimed by one process, its states saved and restored, its results written.

Of several ranks only the first writes; all of them read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.cpu.workers.pool import default_threads
from repvgg_ref.files.checkpoint import save as save_model
from repvgg_ref.files.convert import convert
from repvgg_ref.files.metadata import describe
from repvgg_ref.models.about import Assumed
from repvgg_ref.models.network import DEFAULT_EPS
from repvgg_ref.train.divergence import DivergenceError
from repvgg_ref.train.log import NAME as LOG
from repvgg_ref.train.loss_scale import LossScale
from repvgg_ref.train.result import NAME as RESULT
from repvgg_ref.train.state import (
    StateError,
    Stored,
    forget_older,
    last_good,
    make_way,
    read_newest,
    steps_in,
    sweep,
    write_state,
)
from repvgg_ref.train.update import State, Updater, on_host
from repvgg_ref.version import __version__
from weights_io import claim

_LOCK = "lock"
_WEIGHT_FILES = ("train.pth", "train-ema.pth", "deploy.npz", "deploy.pth")
_OUTPUTS = (LOG, RESULT, *_WEIGHT_FILES, "curves.svg", "curves.png")
_WEIGHTS, _VELOCITY, _RUNNING, _EMA = "weights/", "velocity/", "running/", "ema/"


class Folder:
    """`path` for one training; a context manager that claims it and lets it go.

    Parameters
    ----------
    writes : bool
        Whether this is the rank that writes.
    identity : mapping
        What must not change between a state and its continuation: recipe, seed, data, ranks.
    """

    def __init__(self, path: Path, updater: Updater, identity: Mapping[str, Any], *, writes: bool):
        self.path, self._updater, self._identity = path, updater, dict(identity)
        self._writes = writes
        self._lock: IO[bytes] | None = None
        self._newest = -1

    def __enter__(self) -> Folder:
        if self._writes:
            self._claim()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # nothing was written to it
                self._lock.close()

    def require_unused(self) -> None:
        """Refuse a folder that holds a training already."""
        if self._writes and (steps_in(self.path) or (self.path / LOG).exists()):
            raise StateError(
                "this folder holds a training already",
                got=str(self.path),
                advice="continue it with --resume, or choose another --out",
            )

    def restore(self, *, accept_changes: bool) -> tuple[State | None, list[str]]:
        """The newest whole state on the device, and what people should know about it.

        Raises
        ------
        StateError
            If every state is damaged, or the training is not the one that was begun here.
        """
        stored, notes = read_newest(self.path)
        if stored is None:
            if notes:
                raise StateError(f"no state in {self.path} can be used", got="; ".join(notes))
            return None, [f"nothing to resume in {self.path}: starting at step 0"]
        unsaid = {"block": "repvgg", "eps": DEFAULT_EPS}  # by states of 0.1.0
        before = unsaid | stored.facts["identity"]
        changes = _changes(before, self._identity)
        if changes and not accept_changes:
            raise StateError(
                "this is not the training that was begun here",
                got=f"step {stored.step} with " + "; ".join(changes),
                advice="start it as it was, or say --accept-changes",
            )
        notes += [f"changed since step {stored.step}: {change}" for change in changes]
        notes.append(f"resumed at step {stored.step}")
        if (before := stored.facts["threads"]) != default_threads():
            notes.append(
                f"{default_threads()} threads instead of {before}: sums may round otherwise"
            )
        self._newest = stored.step
        if self._writes:
            forget_older(self.path, stored.step)
        return self._on_device(stored), notes

    def save(self, state: State) -> Path | None:
        """Write `state`, and the weights under official names; None if it is there already.

        Raises
        ------
        DivergenceError
            If a weight is not finite: the last good state is kept instead.
        StateError
            If it cannot be written.
        """
        if not self._writes or state.step == self._newest:
            return None
        arrays = self._arrays(state)
        bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise DivergenceError(
                f"the training diverged: {bad[0]} is not finite after step {state.step}",
                got=f"{len(bad)} such arrays",
                advice=last_good(self.path),
            )
        facts = {
            "identity": self._identity,
            "version": __version__,
            "threads": default_threads(),
            "loss_scale": list(state.scale),
            "metadata": self._metadata(),
        }
        path = write_state(self.path, state.step, arrays, facts)
        self._newest = state.step
        self.save_weights(state)
        return path

    def _metadata(self) -> dict[str, str]:
        """What the files of weights say of the network, for whoever reads a state by itself."""
        updater = self._updater
        return describe(updater.arch, "train", updater.eps, updater.about, Assumed())

    def save_weights(self, state: State) -> list[Path]:
        """``train.pth``, and ``train-ema.pth`` if there are averages: the official names."""
        paths = []
        for name, averaged in (("train", False), ("train-ema", True)):
            if averaged and state.ema is None:
                continue
            model = self._updater.model(state, averaged=averaged)
            paths.append(self.path / f"{name}.pth")
            save_model(on_host(model), paths[-1])
        return paths

    def export(self, state: State) -> list[Path]:
        """The results: weights, and their fused form as npz and as the official code's file.

        A network that cannot be fused has its weights alone.
        """
        weights = self.save_weights(state)
        if not self._updater.arch.is_fusible:
            return weights
        block = self._updater.arch.kinds[0]
        deployed = [self.path / "deploy.npz", self.path / "deploy.pth"]
        for path in deployed:
            convert(weights[-1], path, eps=self._updater.eps, block=block)
        return weights + deployed

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = weights_io.open_regular(self.path / _LOCK, create=True)
        except OSError as error:
            raise self._unwritable(error) from None
        if not claim(self._lock):
            self._lock.close()
            raise StateError(
                "another process is training in this folder",
                got=str(self.path),
                advice="wait for it, or choose another --out",
            )
        try:
            make_way(self.path, _OUTPUTS)
        except BaseException as error:
            self._lock.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from None
            raise
        sweep(self.path)

    def _unwritable(self, error: OSError) -> StateError:
        return StateError(
            f"{self.path} cannot be written to", got=error.strerror, advice="choose another --out"
        )

    def _arrays(self, state: State) -> dict[str, Array]:
        layouts = self._updater.trainable, self._updater.statistics
        split = layouts[0].size
        vectors = [
            (_WEIGHTS, layouts[0], state.weights),
            (_VELOCITY, layouts[0], state.velocity),
            (_RUNNING, layouts[1], state.running),
        ]
        if state.ema is not None:
            vectors += [
                (_EMA, layouts[0], state.ema[:split]),
                (_EMA, layouts[1], state.ema[split:]),
            ]
        arrays = {
            prefix + name: array
            for prefix, layout, vector in vectors
            for name, array in layout.unpack(to_numpy(vector)).items()
        }
        return arrays | {_RUNNING + name: count for name, count in state.counters.items()}

    def _on_device(self, stored: Stored) -> State:
        def part(prefix: str) -> dict[str, Array]:
            named = stored.arrays.items()
            return {n.removeprefix(prefix): a for n, a in named if n.startswith(prefix)}

        return self._updater.restored(
            stored.step,
            part(_WEIGHTS),
            part(_VELOCITY),
            part(_RUNNING),
            part(_EMA),
            LossScale(*stored.facts["loss_scale"]),
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, named: ``lr 0.1 -> 0.05``."""
    return [
        f"{name} {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
