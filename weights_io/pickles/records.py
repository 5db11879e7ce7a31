"""Dead records of unlisted classes, which keep what a torch module is made of.

A module is told by what it holds, never by its class: its state is a dict with `_parameters`,
`_buffers` and `_modules`. That dict is kept, unread, and walked only where the module's arrays are
asked for (`modules`). Of every other object nothing is kept.
"""

from __future__ import annotations

from typing import Any

from weights_io.pickles.foreign import Foreign
from weights_io.pickles.inert import malformed
from weights_io.pickles.strangers import Stranger

PARTS = ("_parameters", "_buffers", "_modules")


class Record(Foreign):
    """An object that a pickle makes of an unlisted class without arguments, as it makes modules.

    Attributes
    ----------
    state : dict or None
        A module's attributes; None if it is no module.
    size : int
        How many they were when it got them: a pickle may add to the dict later, which no longer
        changes the object, and which no writer does.
    """

    __slots__ = ("_is_built", "size", "state")
    made_by: Stranger

    def __init__(self, made_by: Stranger) -> None:
        super().__init__(made_by)
        self.state: dict[Any, Any] | None = None
        self.size = 0
        self._is_built = False

    def take_items(self) -> None:
        """Let items go; those of a module would be submodules of a list or dict of torch's."""
        if self.state is not None:
            raise malformed(f"a {self.type_name}, which is a module, gets items")
        self._is_built = True

    def build(self, state: object) -> None:
        """Keep a module's state. A second state would change the first, which no writer does."""
        is_module = type(state) is dict and all(part in state for part in PARTS)
        if self._is_built and (is_module or self.state is not None):
            raise malformed(f"a {self.type_name} gets its attributes twice")
        self._is_built = True
        if is_module:
            assert isinstance(state, dict)
            self.state, self.size = state, len(state)


class Method(Foreign):
    """A method of a record, by its name: what trainers put in the place of `forward`."""

    __slots__ = ()
