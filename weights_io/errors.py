"""What `weights_io` raises: one line that says what, got, wanted and what to do."""

from __future__ import annotations

from typing import ClassVar

from weights_io.text import shortened


class ReportedError(Exception):
    """An error that is told to the user in one line, never as a traceback.

    Whatever names and values go into it: no character of the line moves a terminal's cursor,
    changes its colours, or reorders text, and of a long part only the beginning is said.

    Parameters
    ----------
    what : str
        The thing that cannot be done, in one sentence.
    got, wanted : object, optional
        What was found and what was needed instead.
    advice : str, optional
        What the user can do about it.
    """

    _lines: ClassVar[bool] = False

    def __init__(
        self, what: str, *, got: object = None, wanted: object = None, advice: str | None = None
    ) -> None:
        self.what = "\n".join(map(shortened, what.split("\n"))) if self._lines else shortened(what)
        self.advice = advice and shortened(advice)
        self.got = shortened(got) if isinstance(got, str) else got
        self.wanted = shortened(wanted) if isinstance(wanted, str) else wanted
        details = [
            None if got is None else f"got {shortened(str(got))}",
            None if wanted is None else f"wanted {shortened(str(wanted))}",
            self.advice,
        ]
        shown = " ; ".join(detail for detail in details if detail)
        super().__init__(f"{self.what} ({shown})" if shown else self.what)


class WeightsFileError(ReportedError):
    """A weights file that is broken, hostile, or of a kind that is not read."""


class RefusedGlobalError(WeightsFileError):
    """A pickle that names something outside the reader's table: it would run code elsewhere."""


class LimitError(WeightsFileError):
    """A file that asks for more than `Limits` allows."""
