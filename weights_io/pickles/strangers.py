"""Classes that no list has: their objects are stepped over, too, or walked if they are modules.

A training checkpoint holds whatever its trainer kept: a scheduler, a loss, a configuration of its
own class. Nothing is imported or called for any of them, so a class that nobody knows costs no more
than one that is listed: its objects are dead records of which the name is kept. One that holds what
a torch module holds keeps that, unread, until its arrays are asked for (`records`, `modules`).

Refused, wherever they stand, are all other names: those of Python's own library that are not
listed, and everything that is not spelled as a class. A function is there to be called, and
exploits are made of functions; people are better told of one than given the weights beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sys import stdlib_module_names

from weights_io.pickles.foreign import ForeignType

# Modules that Python had once, or has on another system.
_FORMER = frozenset(
    {"__builtin__", "__builtins__", "asynchat", "asyncore", "cgi", "cgitb", "commands", "copy_reg"}
    | {"cPickle", "crypt", "dl", "distutils", "exceptions", "imp", "imputil", "ihooks", "lib2to3"}
    | {"mailcap", "new", "nis", "nt", "ntpath", "os2", "pipes", "popen2", "posix", "posixpath"}
    | {
        "pty",
        "rexec",
        "sitecustomize",
        "smtpd",
        "spwd",
        "telnetlib",
        "uu",
        "usercustomize",
        "winreg",
    }
)
_WORK, _LETTERS = 22, 8  # of a class; so many letters of its name are one unit more
_BYTES, _LETTER_BYTES = 500, 8  # the name, and its parts, of letters of up to four bytes
_LIBRARY = (frozenset(stdlib_module_names) | _FORMER) - {"__main__"}


@dataclass(frozen=True, slots=True)
class Stranger(ForeignType):
    """A class, or what is in one, that is in no list and is none of Python's own."""

    module: str
    name: str

    @property
    def is_listed(self) -> bool:
        """It is not."""
        return False


class Strangers:
    """The unlisted classes of one pickle, each made once: their names may be long, and recalled."""

    def __init__(self, spend: Callable[[int, int], None]) -> None:
        self._spend = spend
        self._known: dict[tuple[str, str], Stranger] = {}

    def find(self, module: str, name: str) -> Stranger | None:
        """What stands for an unlisted name, charged when it is new; None if it refuses the file."""
        known = self._known.get((module, name))
        if known is None:
            letters = len(module) + len(name)
            self._spend(_WORK + letters // _LETTERS, _BYTES + _LETTER_BYTES * letters)
            known = stranger(module, name)
            if known is not None:
                self._known[module, name] = known
        return known


def stranger(module: str, name: str) -> Stranger | None:
    """What stands for an unlisted name; None if it refuses the file."""
    if not module or module.partition(".")[0] in _LIBRARY or not _is_class(name):
        return None
    return Stranger(f"{module}.{name}", module, name)


def _is_class(name: str) -> bool:
    """Whether `name` is spelled as a class's, or as that of something in a class."""
    parts = name.split(".")
    return parts[0].lstrip("_")[:1].isupper() and all(part.isidentifier() for part in parts)
