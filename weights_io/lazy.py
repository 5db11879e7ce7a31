"""An array that stays in its file until it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from numpy.typing import NDArray

from weights_io.dtypes import STORED
from weights_io.errors import LimitError
from weights_io.modules import ModuleRecord


class LazyArray:
    """An array in an open weights file: its shape and type now, its values on `read`.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        One of float16, bfloat16, float32, float64, int64, int32, int16, int8, uint8, bool.
    module : ModuleRecord or None
        The module that holds it, in a pickled whole; None in a file of arrays alone.
    """

    __slots__ = ("_read", "dtype", "module", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        read: Callable[[], NDArray[Any]],
        module: ModuleRecord | None = None,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._read = read
        self.module = module

    def of(self, module: ModuleRecord) -> LazyArray:
        """The same array, as `module` holds it."""
        return LazyArray(self.shape, self.dtype, self._read, module)

    @property
    def nbytes(self) -> int:
        """Size in bytes, in the file's own type."""
        return prod(self.shape) * STORED[self.dtype].itemsize

    def read(self) -> NDArray[Any]:
        """Read the values from the file, verify their checksum and return a fresh array.

        Returns
        -------
        ndarray
            Of `shape`, native, C-contiguous and writable; bfloat16 comes as float32, exactly.

        Raises
        ------
        WeightsFileError
            When the checksum is wrong or the file has been closed or has become shorter.
        """
        try:
            return self._read()
        except MemoryError:
            raise LimitError(
                "not enough memory for one array", got=f"{self.nbytes} bytes"
            ) from None

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"
