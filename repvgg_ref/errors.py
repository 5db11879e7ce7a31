"""The package's errors; all derive from `ReportedError` and carry what, got and wanted."""

from __future__ import annotations

from weights_io.errors import ReportedError, WeightsFileError

__all__ = [
    "BackendError",
    "CheckpointError",
    "InexactError",
    "MissingExtraError",
    "NotFusibleError",
    "ReportedError",
    "ShapeError",
    "WeightsFileError",
    "require_equal",
]


class ShapeError(ReportedError):
    """Arrays whose shapes do not fit together."""


class InexactError(ReportedError):
    """A rational computation that has no rational result (an irrational square root)."""


class CheckpointError(ReportedError):
    """Named arrays that are not the network they are said to be."""


class NotFusibleError(ReportedError):
    """A training-time structure that no single convolution equals."""


class BackendError(ReportedError):
    """A backend that cannot be used here."""


class MissingExtraError(ReportedError):
    """An optional dependency that is not installed."""


def require_equal(operator: str, left: str, got: object, right: str, wanted: object) -> None:
    """Raise `ShapeError` unless ``got == wanted``, naming both sides of the broken equation."""
    if got != wanted:
        raise ShapeError(
            f"{operator}: {left} (={got}) must equal {right} (={wanted})", got=got, wanted=wanted
        )
