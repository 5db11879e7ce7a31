"""Wrong integer ports: dumps with bugs of the library and with strange ones, and wrong files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.files.integer_onnx import STYLES, write_integer_onnx
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.integers.bugs import bugs_of
from repvgg_ref.oracle.integers.front import verify_integers
from repvgg_ref.oracle.integers.judge import judge_numbers
from repvgg_ref.oracle.integers.program import IntegerProgram, Sheet
from repvgg_ref.oracle.integers.weights import judge_integers
from tests.oracle.test_integers import dump, site_of


class Case(NamedTuple):
    """A trained network, its integers, and numbers to run them on."""

    name: str
    model: Model
    network: IntegerNetwork
    x: Any


class Tally:
    """Counts, and what went wrong in words."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.missed: list[str] = []

    def add(self, report: Any, layer: str, names: set[str], what: str) -> None:
        """One wrong port; `names` are those that tell its bug, none for a strange one."""
        known = {f.bug for f in report.diagnosis} - {"unknown"}
        told = {f.bug for f in report.diagnosis} | {
            o for f in report.diagnosis for o in f.equivalents
        }
        flags = {
            "caught": report.verdict == "disagree",
            "placed": report.first_bad_layer == layer,
        }
        flags |= {"named": bool(names & told)} if names else {"no name made up": not known}
        self.count["planted"] += 1
        for flag, holds in flags.items():
            self.count[flag] += holds
            if not holds:
                self.missed.append(f"{what}, {layer}: not {flag} ({', '.join(sorted(told))})")

    def found(self) -> dict[str, Any]:
        """For the results."""
        return {**self.count, "missed": self.missed}


def listed_in_dumps(cases: list[Case]) -> dict[str, Any]:
    """Every bug of the library in every layer."""
    tally = Tally()
    for case in cases:
        for layer in case.network.layers:
            site = site_of(case.network, layer.name, case.x)
            plain = Sheet(site.x).numbers(site.program)
            programs = [
                (mutant.bug.name, mutant.variant.program)
                for mutant in planted(bugs_of(layer), replace(site, y_hat=None), layer.name)
            ]
            order = np.roll(np.arange(plain.shape[1]), 1)
            programs.append(("channels-permuted", _finish(site.program, order=order)))
            for bug, program in programs:
                y = Sheet(site.x).numbers(program)
                if y.shape != plain.shape or (y == plain).all():
                    continue
                tally.add(_of_dump(case, layer.name, program), layer.name, {bug}, case.name)
    return tally.found()


def _of_dump(case: Case, name: str, program: IntegerProgram) -> Any:
    numbers = dump(case.network, case.x, {name: program})
    return judge_numbers(case.network, numbers, reference="reference", candidate="candidate")


def _finish(program: IntegerProgram, **changes: Any) -> IntegerProgram:
    return replace(program, finish=replace(program.finish, **changes))


def _sums(program: IntegerProgram, **changes: Any) -> IntegerProgram:
    return replace(program, sums=replace(program.sums, **changes))


def _weight(program: IntegerProgram, change: Callable[[Any], Any]) -> IntegerProgram:
    return _sums(program, weight=change(program.sums.weight.copy()))


def _put(place: Any, value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[place] = value(array[place]) if callable(value) else value
        return array

    return change


def _narrow(change: Callable[[Any], Any]) -> Callable[[IntegerProgram], IntegerProgram]:
    return lambda p: _sums(p, narrow=change)


def _turned(p: IntegerProgram) -> IntegerProgram:
    return _weight(p, lambda w: np.rot90(w, axes=(2, 3)))


def _swapped(p: IntegerProgram) -> IntegerProgram:
    return _weight(p, lambda w: np.roll(w, 1, axis=1))


def _coarse(p: IntegerProgram) -> IntegerProgram:
    scaling = p.finish.scaling
    return _finish(p, scaling=replace(scaling, multiplier=scaling.multiplier >> 24 << 24))


_QUARTER = "kernel turned by 90 degrees"
_TOLD = {_QUARTER: {"kernel-flipped"}}  # and transposed: both together
# Programs that are in no library of bugs.
STRANGE_PROGRAMS: dict[str, Callable[[IntegerProgram], IntegerProgram]] = {
    "one tap off by nine": lambda p: _weight(p, _put((1, 0, 0, 0), lambda v: v + 9)),
    "one tap's sign": lambda p: _weight(p, _put((1, 0, -1, -1), lambda v: -v)),
    "a row of taps lost": lambda p: _weight(p, _put((slice(None), slice(None), 0), 0)),
    "an input channel lost": lambda p: _weight(p, _put((slice(None), 0), 0)),
    "input channels exchanged": _swapped,
    _QUARTER: _turned,
    "weights of 6 bits": lambda p: _weight(p, lambda w: w >> 2 << 2),
    "one channel's bias off": lambda p: _sums(
        p, bias=_put(2, lambda v: v + 2000)(p.sums.bias.copy())
    ),
    "biases exchanged": lambda p: _sums(p, bias=np.roll(p.sums.bias, 1)),
    "padding of 7": lambda p: _sums(p, padded=7),
    "accumulators of 14 bits": _narrow(lambda s: ((s + 2**13) & (2**14 - 1)) - 2**13),
    "accumulators drop their last bits": _narrow(lambda s: s >> 7 << 7),
    "multipliers of 7 bits": _coarse,
    "zero point one more": lambda p: _finish(p, added=p.finish.added + 1),
    "clipped at 100": lambda p: _finish(p, high=100),
    "clipped from 20 up": lambda p: _finish(p, low=max(p.finish.low, 20)),
}


def _mirrored(y: Any) -> Any:
    return y[..., ::-1]


# What is done to a layer's right numbers.
STRANGE_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "mirrored": _mirrored,
    "the last bit turned": lambda y: y ^ 1,
    "the first image in all": lambda y: np.repeat(y[:1], len(y), axis=0),
    "one column late": lambda y: np.roll(y, 1, axis=-1),
    "a last row of other rows": lambda y: np.concatenate([y[..., :-1, :], y[..., :1, :]], axis=-2),
    "the even numbers only": lambda y: y & ~np.asarray(1, y.dtype),
}


def strange_in_dumps(cases: list[Case]) -> dict[str, Any]:
    """Bugs that are in no library: caught and placed; a name that is given all the same is told.

    In every third layer, since two bugs at once are tried for each: some seconds.
    """
    tally = Tally()
    for case in cases:
        for layer in case.network.layers[::3]:
            site = site_of(case.network, layer.name, case.x)
            plain = Sheet(site.x).numbers(site.program)
            for what, change in STRANGE_PROGRAMS.items():
                if layer.kind == "pool" and "weight" in what:
                    continue
                try:
                    program = change(site.program)
                    y = Sheet(site.x).numbers(program)
                except (IndexError, ValueError):  # the layer has nothing of the kind
                    continue
                if y.shape == plain.shape and (y != plain).any():
                    report = _of_dump(case, layer.name, program)
                    tally.add(report, layer.name, _TOLD.get(what, set()), f"{case.name}: {what}")
            for what, turn in STRANGE_NUMBERS.items():
                if layer.kind != "conv" and what != "the last bit turned":
                    continue
                if (turn(plain) == plain).all():
                    continue
                report = _turned_numbers(case, layer.name, turn)
                tally.add(report, layer.name, set(), f"{case.name}: {what}")
    return tally.found()


def _turned_numbers(case: Case, name: str, turn: Callable[[Any], Any]) -> Any:
    numbers, x = {"input": case.x}, case.x
    for layer in case.network.layers:
        x = layer.forward(x, case.network.rounding)
        numbers[layer.name] = x = turn(x) if layer.name == name else x
    return judge_numbers(case.network, numbers, reference="reference", candidate="candidate")


Change = Callable[[IntegerLayer], IntegerLayer | None]


def _scaled(change: Callable[[Any], Any]) -> Change:
    def made(layer: IntegerLayer) -> IntegerLayer | None:
        scale = change(np.array(layer.weight_scale))
        return replace(layer, weight_scale=np.asarray(scale, np.float32))

    return made


def _each(change: Callable[[Any], Any]) -> Change:
    """Of layers with a scale for each channel."""

    def made(layer: IntegerLayer) -> IntegerLayer | None:
        scale = layer.weight_scale
        return _scaled(change)(layer) if scale is not None and np.ndim(scale) else None

    return made


def _kernel(change: Callable[[Any], Any]) -> Change:
    def made(layer: IntegerLayer) -> IntegerLayer | None:
        weight = np.asarray(layer.weight)
        if weight.ndim < 4:
            return None
        return replace(layer, weight=np.ascontiguousarray(change(weight)))

    return made


def _weights(change: Callable[[Any], Any]) -> Change:
    return lambda layer: replace(layer, weight=change(np.array(layer.weight)))


def _bias(change: Callable[[Any, IntegerLayer], Any]) -> Change:
    return lambda layer: replace(
        layer, bias=np.asarray(change(np.array(layer.bias), layer), np.int32)
    )


def _permuted(layer: IntegerLayer) -> IntegerLayer:
    order = np.roll(np.arange(len(layer.bias) // layer.groups), 1)  # type: ignore[arg-type]
    order = np.concatenate([order + g * len(order) for g in range(layer.groups)])
    scale = layer.weight_scale
    if isinstance(scale, np.ndarray) and scale.ndim:
        scale = scale[order]
    return replace(layer, weight=layer.weight[order], bias=layer.bias[order], weight_scale=scale)  # type: ignore[index]


def _strided(layer: IntegerLayer) -> IntegerLayer | None:
    return replace(layer, stride=3 - layer.stride) if layer.kind == "conv" else None


def _unpadded(layer: IntegerLayer) -> IntegerLayer | None:
    return replace(layer, padding=0) if layer.padding else None


def _off(array: Any) -> Any:
    place = tuple(n // 2 for n in array.shape)
    array[place] += 9 if array[place] < 100 else -9
    return array


SCALES = {"neighbours-scale", "weight-scale"}
LISTED: dict[str, tuple[Change, set[str]]] = {
    "the next channel's scale": (_each(_put(1, lambda v: v * 0 + 1)), SCALES),
    "scales rolled": (_each(lambda s: np.roll(s, 1)), {"neighbours-scale"}),
    "one scale for all": (_each(lambda s: np.full_like(s, s.max())), SCALES),
    "shift off in a channel": (_each(_put(1, lambda v: v * 2)), SCALES),
    "shift off": (_scaled(lambda s: s * 2), SCALES),
    "bias dropped": (_bias(lambda b, layer: b * 0), {"bias-dropped"}),
    "bias in other units": (
        _bias(lambda b, layer: np.rint(b * float(layer.input.scale))),
        {"bias-scale"},
    ),
    "bias subtracted": (_bias(lambda b, layer: -b), {"bias-sign"}),
    "kernel flipped": (_kernel(lambda w: w[..., ::-1, ::-1]), {"kernel-flipped"}),
    "kernel transposed": (_kernel(lambda w: w.swapaxes(2, 3)), {"kernel-transposed"}),
    "channels permuted": (_permuted, {"channels-permuted"}),
    "weights three more": (
        _weights(lambda w: np.clip(w, -100, 100) + np.int8(3)),
        {"weight-zero-point", "unknown"},
    ),
    "stride": (_strided, {"stride"}),
    "padding": (_unpadded, {"padding"}),
    "one weight off": (_weights(_off), {"unknown"}),
    "one bias off": (_bias(lambda b, layer: _put(1, b[1] + 9)(b)), {"unknown", "bias-scale"}),
}
LISTED["the next channel's scale"] = (
    _each(lambda s: np.concatenate([s[:1], s[2:3], s[2:]])),
    SCALES,
)


def in_files(cases: list[Case], folder: Path) -> dict[str, Any]:
    """Wrong integers held against the checkpoint: in memory; every fourth in ONNX files, too."""
    tallies = {kind: Tally() for kind in ("npz", *STYLES)}
    for case in cases:
        for at, (layer, what, names, network) in enumerate(wrong_networks(case)):
            title = f"{case.name}: {what}"
            report: Any = judge_integers(case.model, network, candidate="candidate")
            tallies["npz"].add(report, layer, names, title)
            for style in STYLES if at % 4 == 0 else ():
                path = folder / "wrong.onnx"
                write_integer_onnx(path, network, style=style)  # type: ignore[arg-type]
                report = verify_integers(case.model, path)
                tallies[style].add(report, layer, names, title)
    return {kind: tally.found() for kind, tally in tallies.items()}


def wrong_networks(case: Case) -> Iterator[tuple[str, str, set[str], IntegerNetwork]]:
    """(layer, what, names, network) with one layer changed."""
    for place, layer in enumerate(case.network.layers):
        if layer.kind == "pool":
            continue
        for what, (change, names) in LISTED.items():
            made = change(layer)
            if made is None or _is_same(made, layer):
                continue
            layers = list(case.network.layers)
            layers[place] = made
            yield layer.name, what, names, replace(case.network, layers=tuple(layers))


def _is_same(a: IntegerLayer, b: IntegerLayer) -> bool:
    settings = (a.stride, a.padding) == (b.stride, b.padding)
    return settings and all(
        np.array_equal(getattr(a, part), getattr(b, part))
        for part in ("weight", "bias", "weight_scale")
    )


def run_files(cases: list[Case], folder: Path) -> dict[str, Any]:
    """Wrong files run in ONNX Runtime against the right network, a few of each case.

    Those of int8: products of uint8 and int8 saturate on machines without VNNI.
    """
    tally = Tally()
    for case in cases:
        if case.x.dtype == np.uint8:
            continue
        wanted = ("bias dropped", "kernel flipped", "shift off")
        some = [each for each in wrong_networks(case) if each[1] in wanted]
        for at, (layer, what, _, network) in enumerate(some[:: max(1, len(some) // 2)]):
            path = folder / "run.onnx"
            write_integer_onnx(path, network, style=STYLES[at % 2])  # type: ignore[arg-type]
            x = case.network.layers[0].input.real(case.x)
            report: Any = verify_integers(case.network, path, inputs=x)
            names = {"bias-dropped", "kernel-flipped", "shift-off"}
            tally.add(report, layer, names, f"{case.name}: {what} ({STYLES[at % 2]})")
    return tally.found()
