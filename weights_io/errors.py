"""What `weights_io` raises: one line that says what, got, wanted and what to do."""

from __future__ import annotations


class ReportedError(Exception):
    """An error that is told to the user in one line, never as a traceback.

    Parameters
    ----------
    what : str
        The thing that cannot be done, in one sentence.
    got, wanted : object, optional
        What was found and what was needed instead.
    advice : str, optional
        What the user can do about it.
    """

    def __init__(
        self, what: str, *, got: object = None, wanted: object = None, advice: str | None = None
    ) -> None:
        self.what, self.got, self.wanted, self.advice = what, got, wanted, advice
        details = [
            None if got is None else f"got {got}",
            None if wanted is None else f"wanted {wanted}",
            advice,
        ]
        shown = " ; ".join(detail for detail in details if detail)
        super().__init__(f"{what} ({shown})" if shown else what)


class WeightsFileError(ReportedError):
    """A weights file that is broken, hostile, or of a kind that is not read."""


class RefusedGlobalError(WeightsFileError):
    """A pickle that names something outside the reader's table: it would run code elsewhere."""


class LimitError(WeightsFileError):
    """A file that asks for more than `Limits` allows."""
