"""Which layer does a name mean? Ours, the official code's, timm's, mmpretrain's, or a number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.gated import is_gated
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Block, Linear
from repvgg_ref.oracle.candidates.base import CandidateFailure
from weights_io import sanitize

_INPUTS = frozenset(
    {"input", "inputs", "x", "image", "images", "data", "input.0", "input0", "input.1"}
)
_LOGITS = (
    "linear",
    "logits",
    "output",
    "output.0",
    "outputs",
    "fc",
    "head.fc",
    "head",
    "classifier",
    "main",
)
_WRAPPERS = ("module.", "model.", "net.", "network.", "orig.mod.", "repvgg.", "backbone.")
# What exporters append to a module's name; torch.onnx: "_output_0".
_ENDINGS = (".output.0", ".output", ".outputs", ".out", ".0.npy", ".npy")
# torch.onnx names a tensor after the module that made it; the block's last one is the activation.
_LAST_MODULE = {
    "none": (".nonlinearity.relu", ".relu", ".act.relu", ".gemm"),
    "before_relu": (".nonlinearity.relu", ".relu", ".act.relu", ".gemm"),
    "after_relu": (".post.se.mul", ".mul", ".gemm"),
}
_STAGE = re.compile(r"stage(\d+)(?:\.(\d+))?")
_SHOWN = 8


class Named(NamedTuple):
    """Names sorted out: the input's (if any), layer -> name, and what nobody knows."""

    input: str | None
    layers: dict[str, str]
    unknown: list[str]
    notes: list[str]


class ToldNames:
    """Which layer a module's name means, by names that are given: see `LayerNames.told`."""

    def __init__(
        self,
        aliases: Mapping[str, str],
        tails: Iterable[str],
        unheard: Iterable[str] = (),
        heard: Mapping[str, str] | None = None,
    ) -> None:
        self._layer_of, self._tails = aliases, tuple(tails)
        self._unheard, self._heard = frozenset(unheard), dict(heard or {})

    def layer(self, name: str) -> str | None:
        """The layer called `name`, numbers aside."""
        key = _key(name)
        for ending in ("", *_ENDINGS):
            for module in ("", *self._tails) if key.endswith(ending) else ():
                shorter = key.removesuffix(ending)
                if shorter.endswith(module):
                    bare = _unwrapped(shorter.removesuffix(module), self._layer_of)
                    if bare in self._layer_of:
                        return self._layer_of[bare]
        return None

    def module(self, name: str) -> str | None:
        """The layer that a submodule of this name gives.

        Of a network that is no chain a convolution's own output is none: its norm comes after it.
        Nor is the head's, which the network returns. `heard` are the modules that give such a
        layer, as the network says, and, where modules are numbered, the ReLUs behind convolutions.
        """
        key = _unwrapped(_key(name), self._heard)
        if key in self._heard:
            return self._heard[key]
        layer = self.layer(name)
        return None if layer in self._unheard else layer


class LayerNames(ToldNames):
    """The names that `arch`'s layers go by in the code bases we know."""

    def __init__(self, arch: Network) -> None:
        super().__init__(
            _aliases(arch),
            _LAST_MODULE[arch.blocks[0].se],
            unheard=_unheard(arch),
            heard={} if arch.is_chain or is_gated(arch) else _heard(arch),
        )
        self.layers = arch.layer_names
        self._auxiliary = {head.name for head in arch.aux_heads}

    @property
    def told(self) -> dict[str, Any]:
        """What `ToldNames` is made of in another process, as JSON has it."""
        return {
            "aliases": dict(self._layer_of),
            "tails": list(self._tails),
            "unheard": list(self._unheard),
            "heard": dict(self._heard),
        }

    def find(self, names: Iterable[str]) -> tuple[str | None, dict[str, str]]:
        """The input and the layers among a graph's tensors, numbers and all others left alone.

        Of two tensors that mean the same layer the later one is its output.
        """
        known = list(names)
        entrance = next(filter(is_input, known), None)
        found = {self.layer(name): name for name in known if name != entrance}
        return entrance, {layer: found[layer] for layer in self.layers if layer in found}

    def sort(self, names: Iterable[str]) -> Named:
        """Sort out the names of one dump.

        Raises
        ------
        CandidateFailure
            If two of them mean the same layer.
        """
        known = list(names)
        entrance = next(filter(is_input, known), None)
        rest = [name for name in known if name != entrance and name not in self._auxiliary]
        numbers = {name: int(name) for name in rest if re.fullmatch(r"\d{1,4}", name)}
        first, notes = self._first_number(list(numbers.values()))
        layers: dict[str, str] = {}
        unknown = []
        for name in rest:
            index = numbers.get(name, -1) - first
            layer = self.layers[index] if 0 <= index < len(self.layers) else self.layer(name)
            if layer is None:
                unknown.append(name)
            elif layer in layers:
                raise CandidateFailure(
                    f"two arrays are both the output of {layer}",
                    got=f"{sanitize(layers[layer])} and {sanitize(name)}",
                    wanted="one array a layer",
                )
            else:
                layers[layer] = name
        ordered = {layer: layers[layer] for layer in self.layers if layer in layers}
        return Named(entrance, ordered, unknown, notes)

    def _first_number(self, numbers: list[int]) -> tuple[int, list[str]]:
        """Do they count from 0 or from 1? From 1 only if the last number shows it."""
        if not numbers:
            return 0, []
        first = 1 if 0 not in numbers and max(numbers) == len(self.layers) else 0
        return first, [f"numbers taken as positions, stage0 = {first}"]

    def unknown_names(self, unknown: Iterable[str], where: str) -> CandidateFailure:
        """The error that lists names nobody knows, and those that would be understood."""
        return CandidateFailure(
            f"{where}: names that mean no layer of this network",
            got=listed(unknown),
            wanted=f"{listed(self.layers)}, or input; official, timm and mmpretrain names and "
            "numbers are understood too",
            advice="rename the arrays, or leave out what is no layer output",
        )


def _heard(arch: Network) -> dict[str, str]:
    """The modules that the nodes name, and the ReLUs behind numbered ones that have none."""
    found = {_key(module): layer for layer, module in arch.modules.items()}
    for node in arch.evaluated:
        key = next((key for part, key in node.keys if part in ("conv", "")), "")
        start, _, number = key.rpartition(".")
        if isinstance(node.op, Linear):
            with_relu = node.op.relu
        else:  # behind others a batch norm comes first
            with_relu = isinstance(node.op, Block) and node.op.spec.kind == "conv-bias"
        if with_relu and start and number.isdigit() and "." not in start:
            found[f"{start}.{int(number) + 1}"] = node.name
    return found


def _unheard(arch: Network) -> set[str]:
    """Layers whose modules' own outputs are none: see `ToldNames.module`."""
    wired = not (arch.is_chain or is_gated(arch))
    return {arch.head.name} | {spec.name for spec in arch.blocks if wired and is_bare(spec)}


def is_bare(spec: BlockSpec) -> bool:
    """Whether modules of such names are convolutions, not blocks."""
    return spec.kind in ("conv-bn", "conv-bias")


def is_input(name: str) -> bool:
    """Whether a tensor of this name is the network's input."""
    return _key(name) in _INPUTS


def listed(names: Iterable[str]) -> str:
    """At most eight names, safe to print, and how many more there are."""
    known = [sanitize(name) or "''" for name in names]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more


def _aliases(arch: Network) -> Mapping[str, str]:
    aliases: dict[str, str] = dict.fromkeys(_LOGITS, "linear")
    half = sum(block.name.startswith("stage3.") for block in arch.blocks) // 2
    for block in arch.blocks:
        place = _STAGE.fullmatch(block.name)
        stage, index = place.groups() if place else ("", "")
        if place is None:  # a part of a residual block, or a layer of somebody's own name
            forms = [_key(block.name)]
        elif not index:
            forms = ["stage0", "stage.0", "stage0.0", "stem", "stage0.nonlinearity"]
        else:
            s, i = int(stage), int(index)
            forms = [
                f"stage{s}.{i}",
                f"stage.{s}.{i}",  # mmpretrain
                f"stages.{s - 1}.{i}",  # timm
                f"stage{s}.blocks.{i}",  # RepVGGplus
                f"stage{s}.stage{s}.{i}",  # torch.onnx: /stage1/stage1.0/...
                f"stages.{s - 1}.stages.{s - 1}.{i}",
            ]
            if s == 3:
                forms.append(
                    f"stage3.first.blocks.{i}" if i < half else f"stage3.second.blocks.{i - half}"
                )
        aliases |= dict.fromkeys(forms, block.name)
    keys = {_key(name): name for name in arch.layer_names}
    if not (arch.is_dense or arch.is_chain or is_gated(arch)):
        modules = {key.removesuffix(".add"): name for key, name in keys.items()}
        return {**aliases, **modules, **keys, **dict.fromkeys(_LOGITS, arch.head.name)}
    if arch.is_dense:
        stages = {n.replace("stage", "layer"): n for n in keys.values() if n[:5] == "stage"}
        return {**aliases, **keys, **stages, **dict.fromkeys(_LOGITS, arch.head.name)}
    if not arch.is_chain:
        aliases |= {_key(name): name for name in arch.layer_names}
        aliases |= {_key(module): name for name, module in arch.modules.items()}
    return aliases


def _key(name: str) -> str:
    """Lower case, every run of punctuation one dot, TensorFlow's ``:0`` taken off."""
    return re.sub(r"[^a-z0-9]+", ".", re.sub(r":\d$", "", name.lower())).strip(".")


def _unwrapped(key: str, known: Mapping[str, str]) -> str:
    """`key` without what wrappers put in front, as far as that is needed."""
    changed = True
    while key not in known and changed:
        changed = False
        for wrapper in _WRAPPERS:
            if key.startswith(wrapper):
                key, changed = key.removeprefix(wrapper), True
    return key
