"""Trainers' objects beside the weights: their names are known, their content is stepped over.

Each pair (module, name) stands here exactly as a pickle spells it, and each is harmless: nothing
of it is imported, called or looked into. What a pickle hands to such an object (arguments, state,
items) is read, so that a name hidden in it is still refused, and then let go. What stands in no
list is `strangers`' affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ForeignType:
    """A class, or a function that makes an object, of which only the name is kept."""

    type_name: str


class Foreign:
    """An object of such a class: it takes whatever a pickle gives it, and keeps none of it."""

    __slots__ = ("made_by",)

    def __init__(self, made_by: ForeignType) -> None:
        self.made_by = made_by

    @property
    def type_name(self) -> str:
        """Of its class."""
        return self.made_by.type_name

    def build(self, state: object) -> None:
        """Let the state go."""

    def take_items(self) -> None:
        """Let the items of a dict or list go."""


class OddKey:
    """A dict's key that is neither text nor an integer; equal to itself alone."""

    __slots__ = ("type_name",)

    def __init__(self, key: Any) -> None:
        known = isinstance(key, ForeignType | Foreign)
        self.type_name = key.type_name if known else type(key).__name__


_PYTHON = {
    "collections": ("Counter", "deque"),
    "copy_reg": ("_reconstructor",),
    "copyreg": ("_reconstructor",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "functools": ("partial",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "random": ("Random",),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
    "uuid": ("UUID",),
}
_BUILTINS = (
    *(
        "Ellipsis",
        "NotImplemented",
        "bytearray",
        "complex",
        "frozenset",
        "object",
        "range",
        "slice",
    ),
    *("long", "unicode", "xrange"),  # Python 2's
)

_NUMPY = {
    "numpy.random._pickle": (
        "__bit_generator_ctor",
        "__generator_ctor",
        "__randomstate_ctor",
    ),
    "numpy.random": ("__RandomState_ctor",),
    "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
    "numpy.random._mt19937": ("MT19937",),
    "numpy.random._pcg64": ("PCG64", "PCG64DXSM"),
    "numpy.random._philox": ("Philox",),
    "numpy.random._sfc64": ("SFC64",),
    "numpy": (
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
        *("float16", "float32", "float64", "bool", "bool_", "str_"),
    ),
}

_TORCH = {
    "torch": ("Tensor",),
    "torch.nn.parameter": ("Buffer", "Parameter"),
    "torch.serialization": ("_get_layout",),
}

_CALLBACKS = {
    "model_checkpoint": "ModelCheckpoint",
    "early_stopping": "EarlyStopping",
    "lr_monitor": "LearningRateMonitor",
    "stochastic_weight_avg": "StochasticWeightAveraging",
    "timer": "Timer",
}
_LIGHTNING = {
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.pytorch.utilities.parsing": ("AttributeDict",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    # before 1.5 a callback's state stood under its class
    **{f"pytorch_lightning.callbacks.{m}": (name,) for m, name in _CALLBACKS.items()},
}

# protocol 4 spells a method with a dot, protocol 2 asks `getattr` for it: see `globals`
HISTORY = ("mmengine.logging.history_buffer", "HistoryBuffer")
HISTORY_METHODS = ("current", "max", "mean", "min")
_OPENMMLAB = {
    HISTORY[0]: (HISTORY[1], *(f"{HISTORY[1]}.{method}" for method in HISTORY_METHODS)),
    "mmengine.logging.message_hub": ("MessageHub",),
    "mmengine.config.config": ("Config", "ConfigDict"),
    "mmcv.utils.config": ("Config", "ConfigDict"),
}

_CONFIGURATIONS = {
    "addict.addict": ("Dict",),
    "box.box": ("Box",),
    "box.box_list": ("BoxList",),
    "detectron2.config.config": ("CfgNode",),
    "easydict": ("EasyDict",),
    "fvcore.common.config": ("CfgNode",),
    "ml_collections.config_dict.config_dict": ("ConfigDict", "FieldReference"),
    "munch": ("Munch",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": (
        *("AnyNode", "BooleanNode", "BytesNode", "FloatNode"),
        *("IntegerNode", "PathNode", "StringNode"),
    ),
}


def foreign_globals() -> Iterator[tuple[tuple[str, str], ForeignType]]:
    """Yield every pair (module, name) of a trainer's object with what stands for it."""
    tables = (_PYTHON, _NUMPY, _TORCH, _LIGHTNING, _OPENMMLAB, _CONFIGURATIONS)
    for table in tables:
        for module, names in table.items():
            for name in names:
                yield (module, name), ForeignType(f"{module}.{name}")
    for module in ("builtins", "__builtin__"):  # protocol 2 spells it as Python 2 did
        for name in _BUILTINS:
            yield (module, name), ForeignType(f"builtins.{name}")
