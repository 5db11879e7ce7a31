"""Golden vectors of an integer network: numbers that must come out bit for bit, and their score.

The folder holds the network and its numbers as npz; ``local.npz`` with an input of the whole range
for each layer alone (``NAME.input``) and what it gives; a layer made to tell rounding schemes apart
(`probe`) with its own numbers; and for who has neither Python nor a reader of npz the same as raw
``.bin`` files (little endian, C order) and C headers. ``manifest.json`` says what is what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.integer_npz import write_network
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import SCHEMES
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.golden.folder import FORMAT, MANIFEST, VERSION, atomic_folder, sha256
from repvgg_ref.oracle.integers.bugs import IntegerSite, bugs_of
from repvgg_ref.oracle.integers.probe import rounding_probe, separated
from repvgg_ref.oracle.integers.program import Sheet, as_images, program_of
from repvgg_ref.oracle.integers.question import KIND
from repvgg_ref.version import __version__
from weights_io import save_weights

NETWORK, VECTORS, LOCAL = "network.npz", "vectors.npz", "local.npz"
PROBE, RAW = "rounding", "raw"
_IMAGES, _SIDE, _LOCAL_SIDE = 3, 32, 12


@dataclass(frozen=True)
class Score:
    """Which planted bugs the vectors notice, and which schemes they tell apart.

    `survivors` are (layer, bug, detail) that change no number; `alike` are groups of schemes that
    the network's own vectors cannot tell apart; the probe's vectors tell all apart.
    """

    planted: int
    survivors: tuple[tuple[str, str, str], ...]
    alike: tuple[tuple[str, ...], ...]
    probe_alike: tuple[tuple[str, ...], ...]

    @property
    def killed(self) -> int:
        """How many are noticed."""
        return self.planted - len(self.survivors)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {
            "planted": self.planted,
            "killed": self.killed,
            "survivors": [
                {"layer": layer, "bug": bug, "detail": detail}
                for layer, bug, detail in self.survivors
            ],
            "schemes_alike": [list(names) for names in self.alike],
            "schemes_alike_on_the_probe": [list(names) for names in self.probe_alike],
        }


@dataclass(frozen=True)
class IntegerGolden:
    """What was written where."""

    out: Path
    rounding: str
    layers: tuple[str, ...]
    score: Score

    def to_json(self) -> dict[str, Any]:
        """What ``repvgg-ref golden --json`` prints."""
        return {
            "out": str(self.out),
            "kind": KIND,
            "rounding": self.rounding,
            "layers": list(self.layers),
            "score": self.score.to_json(),
        }


def write_integer_golden(
    network: IntegerNetwork, out: Path, *, name: str, inputs: Array | None = None
) -> IntegerGolden:
    """Write the bundle to the folder `out`, whole or not at all.

    Parameters
    ----------
    network : IntegerNetwork
        With a rounding of its own: vectors need one.
    inputs : (N, C, H, W) array, optional
        Numbers, or real images; by default numbers of the whole range, and all at its ends.

    Raises
    ------
    ReportedError
        If the network leaves its rounding open, or something else is at `out`.
    """
    x = network.entered(_images(network) if inputs is None else inputs)
    vectors = {"input": x} | network.forward(x)
    probe, probe_x = rounding_probe(network.rounding)
    probe_vectors = {"input": probe_x} | probe.forward(probe_x)
    alone = _alone(network, x)
    score = _score(network, x, alone)
    which = {"kind": KIND, "model": name}
    with atomic_folder(out, which) as folder:
        save_weights(folder / LOCAL, _local(network, alone), container="npz")
        _write(folder, network, vectors, "network")
        (folder / PROBE).mkdir()
        _write(folder / PROBE, probe, probe_vectors, "rounding")
        manifest = _manifest(folder, network, score) | which
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    names = tuple(layer.name for layer in network.layers)
    return IntegerGolden(Path(out), network.rounding, names, score)


def _images(network: IntegerNetwork) -> Array:
    """Random numbers of the whole range, a picture of its ends, and one of the zero point."""
    first = network.layers[0].input
    limits = np.iinfo(first.dtype)
    shape = (network.in_channels, _SIDE, _SIDE)
    rng = np.random.default_rng(0)
    ends = rng.choice(np.array([limits.min, limits.max]), shape)
    wide = rng.integers(limits.min, limits.max + 1, (_IMAGES - 1, *shape))
    return np.concatenate([wide, ends[None]]).astype(first.dtype)


def _alone(network: IntegerNetwork, x: Array) -> dict[str, Array]:
    """For each layer an input of the whole range, which its place in the network may never give."""
    rng = np.random.default_rng(1)
    found: dict[str, Array] = {}
    for step in network.walk(x[:1]):
        limits = np.iinfo(step.layer.input.dtype)
        shape = (_IMAGES, step.x.shape[1], *(min(n, _LOCAL_SIDE) for n in step.x.shape[2:]))
        numbers = rng.integers(limits.min, limits.max + 1, shape)
        numbers[0] = rng.choice([limits.min, limits.max], shape[1:])
        numbers[1] = limits.max
        found[step.layer.name] = numbers.astype(step.layer.input.dtype)
    return found


def _local(network: IntegerNetwork, alone: Mapping[str, Array]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for layer in network.layers:
        found[f"{layer.name}.input"] = alone[layer.name]
        found[layer.name] = layer.forward(alone[layer.name], network.rounding)
    return found


def _score(network: IntegerNetwork, x: Array, alone: Mapping[str, Array]) -> Score:
    count, survivors = 0, []
    for step in network.walk(x):
        seen = [_noticed(step.layer, network, each) for each in (step.x, alone[step.layer.name])]
        count += len(seen[0])
        survivors += [
            (step.layer.name, *which)
            for which in seen[0]
            if not any(each.get(which) for each in seen)
        ]
    probe, probe_x = rounding_probe(network.rounding)
    groups = [
        tuple(tuple(each) for each in separated(n, numbers) if len(each) > 1)
        for n, numbers in ((network, x), (probe, probe_x))
    ]
    return Score(count, tuple(survivors), *groups)


def _noticed(layer: IntegerLayer, network: IntegerNetwork, x: Array) -> dict[tuple[str, str], bool]:
    """(bug, detail) -> whether the layer's numbers on `x` notice it.

    Other schemes are left out: they are counted by the groups that are alike.
    """
    inside = as_images(x)
    program = program_of(layer, network.rounding, inside.shape[1:])
    sheet = Sheet(inside)
    right = sheet.numbers(program)
    return {
        (mutant.bug.name, mutant.variant.label): not np.array_equal(
            sheet.numbers(mutant.variant.program), right
        )
        for mutant in planted(bugs_of(layer), IntegerSite(program, inside), layer.name)
        if mutant.bug.name != "other-rounding"
    }


def _write(folder: Path, network: IntegerNetwork, vectors: Mapping[str, Array], title: str) -> None:
    """Network and numbers, as npz, as raw numbers and as a C header."""
    write_network(folder / NETWORK, network)
    save_weights(folder / VECTORS, vectors, container="npz")
    (folder / RAW).mkdir()
    arrays = dict(vectors) | _parameters(network, vectors["input"])
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        (folder / RAW / f"{name}.bin").write_bytes(little.tobytes())
    header = _header(network, arrays, title)
    (folder / f"{title}.h").write_text(header, encoding="ascii")


def _parameters(network: IntegerNetwork, x: Array) -> dict[str, Array]:
    """Weights, biases, scales and multipliers by ``LAYER.part``, a pool's for images as `x`."""
    found: dict[str, Array] = {}
    for step in network.walk(x[:1]):
        layer = step.layer
        held = layer.scaling(int(np.prod(step.x.shape[2:])))
        parts = {
            "weight": layer.weight,
            "bias": layer.bias,
            "weight_scale": layer.weight_scale,
            "input_scale": layer.input.scale,
            "output_scale": layer.output.scale,
            "multiplier": held.multiplier.astype(np.int32),
            "shift": held.shift.astype(np.int8),
            "scale": np.asarray(held.single, np.float32),
        }
        found |= {f"{layer.name}.{key}": part for key, part in parts.items() if part is not None}
    return found


def _header(network: IntegerNetwork, arrays: Mapping[str, Array], title: str) -> str:
    """Shapes, settings and file names as C constants; numbers themselves for small arrays."""
    lines = [
        f"/* {title}: golden vectors by repvgg-ref {__version__}, rounding {network.rounding}.",
        "   y = clip(zero_point + round(M * accumulator)); padding holds the input's zero point;",
        "   M = multiplier * 2^-(31 + shift), or scale in float32: input_scale * weight_scale /",
        "   output_scale, of a pool input_scale / (output_scale * pixels), pixels of these images.",
        "   Arrays: C order, little endian, raw/NAME.bin. */",
        "#include <stdint.h>",
        "",
    ]
    for layer in network.layers:
        name = _c_name(layer.name)
        settings = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
            "relu": int(layer.relu),
            "input_zero_point": int(layer.input.zero_point),
            "output_zero_point": int(layer.output.zero_point),
        }
        lines.append(f"/* {layer.name}: {layer.kind} */")
        lines += [f"#define {name}_{key} {value}" for key, value in settings.items()]
    for name, array in arrays.items():
        c_type = f"{array.dtype.name}_t" if array.dtype.kind in "iu" else "float"
        extents = ", ".join(map(str, array.shape)) or "1"
        lines.append(f"/* {name}: {c_type} ({extents}), raw/{name}.bin */")
        lines.append(f"#define {_c_name(name)}_size {array.size}")
        if array.ndim <= 1:
            numbers = ", ".join(map(_c_number, array.reshape(-1).tolist()))
            lines.append(f"static const {c_type} {_c_name(name)}[] = {{{numbers}}};")
    return "\n".join(lines) + "\n"


def _c_number(number: float) -> str:
    """An integer as it is, a float exactly: C99's hexadecimal form."""
    return f"{number.hex()}f" if isinstance(number, float) else str(number)


def _c_name(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)


def _manifest(folder: Path, network: IntegerNetwork, score: Score) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "form": network.rounding,
        "written_by": f"repvgg-ref {__version__}",
        "rounding": network.rounding,
        "network": NETWORK,
        "vectors": VECTORS,
        "local": LOCAL,
        "probe": f"{PROBE}/",
        "layers": [layer.name for layer in network.layers],
        "schemes": list(SCHEMES),
        "how_to_compare": "every number must be equal: feed each layer its input of local.npz, or "
        "run the network on the input of vectors.npz, dump your layers under the same names and "
        "run `repvgg-ref verify --reference THIS_FOLDER --candidate YOURS.npz`",
        "score": score.to_json(),
        "files": {path.relative_to(folder).as_posix(): {"sha256": sha256(path)} for path in files},
    }
