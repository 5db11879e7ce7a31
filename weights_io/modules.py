"""What a pickled module says beside its arrays: the name of its class and its plain attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weights_io.pickles.inert import Inert

_MOST_ITEMS = 8  # of a tuple
_MOST_BITS = 64
_LONGEST = 64  # letters


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ModuleRecord:
    """A module of a pickled whole, dead: nothing of its class is imported, called or known.

    Attributes
    ----------
    type_name : str
        Its class, as the pickle spells it: ``torch.nn.modules.conv.Conv2d``. A name proves nothing.
    path : str
        Where it stands in the whole: ``model.0.rbr_dense.conv``; "" is the whole itself.
    altered : str
        Why it may compute something else than its class does; "" if nothing in it says so.
    parent : ModuleRecord or None
    children : dict of str to ModuleRecord
        Its submodules by name, without those that are None.
    """

    type_name: str
    path: str
    altered: str
    parent: ModuleRecord | None
    attributes: Mapping[Any, Any]
    children: dict[str, ModuleRecord] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether it has an attribute of this name, be it None, that is no part of it.

        So is a submodule that was taken out by setting it to None.
        """
        submodules = self.attributes.get("_modules", {})
        return name in self.attributes or (name in submodules and submodules[name] is None)

    def get(self, name: str) -> object:
        """A plain attribute: a number, a truth, None, short text or a tuple of integers.

        Anything else is an `Inert` of its type's name; what is not there is None.
        """
        value = self.attributes.get(name)
        if value is None or type(value) in (bool, float) or _is_integer(value):
            return value
        if type(value) is str and len(value) <= _LONGEST:
            return value
        if type(value) is tuple and len(value) <= _MOST_ITEMS and all(map(_is_integer, value)):
            return value
        return Inert(type(value).__name__, None)

    def __repr__(self) -> str:
        return f"ModuleRecord({self.type_name!r}, {self.path!r})"


def _is_integer(value: object) -> bool:
    return type(value) is int and value.bit_length() <= _MOST_BITS
