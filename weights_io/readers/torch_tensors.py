"""What both torch containers share: storages by persistent id, and tensors as views of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weights_io.budget import Budget
from weights_io.dtypes import OTHER_STORAGES, STORED, decode, kept_bytes, stored_bytes
from weights_io.errors import WeightsFileError
from weights_io.lazy import LazyArray
from weights_io.pickles.globals import refuse
from weights_io.pickles.inert import Inert, Span, Storage, StorageType, TensorView, malformed
from weights_io.pickles.strangers import Stranger
from weights_io.source import Readable
from weights_io.strided import View, check_view, read_view
from weights_io.text import sanitize


class Storages:
    """The storages that a torch pickle refers to, in order of their first mention."""

    def __init__(self, id_length: int) -> None:
        self._id_length = id_length  # 5 in a zip; 6 in a legacy stream, the last one None
        self.by_key: dict[str, Storage] = {}
        self._spellings: dict[str, str] = {}

    def persistent(self, identity: object) -> Storage | Stranger:
        """Turn ``("storage", type, key, location, count[, None])`` into a storage.

        A legacy stream has ``("module", class, file, source)`` for the first of each class of
        module: the class's name is kept, the source stays unread. A class whose source torch could
        not find, such as one of a prompt, has None for both.
        """
        parts = identity if type(identity) is tuple else ()
        if self._id_length == 6 and len(parts) == 4 and parts[0] == "module":
            kind, *texts = parts[1:]
            if isinstance(kind, Stranger) and all(map(_is_text_or_none, texts)):
                return kind
        for part in parts:  # a storage of no known type
            if isinstance(part, Stranger) and not _is_other(part):
                refuse(part.module, part.name)
        if type(identity) is not tuple or len(identity) != self._id_length:
            raise malformed("a persistent id is no torch storage")
        tag, kind, key, location, count, *view = identity
        kind = StorageType(kind.name) if isinstance(kind, Stranger) else kind
        if tag != "storage" or not isinstance(kind, StorageType) or type(key) is not str:
            raise malformed("a persistent id is no torch storage")
        if (
            type(location) is not str
            or type(count) is not int
            or count < 0
            or view not in ([], [None])
        ):
            raise malformed("a torch storage has a location, size or view that it cannot have")
        storage = self.by_key.get(key)  # first: a long key that is recalled is not folded again
        if storage is None:
            if self._spellings.setdefault(key.casefold(), key) != key:
                raise malformed(f"storage {sanitize(key)} and another differ by case only")
            storage = self.by_key[key] = Storage(key, kind.dtype, count)
        if (storage.dtype, storage.count) != (kind.dtype, count):
            raise malformed(f"storage {sanitize(key)} has two types or sizes")
        return storage


class TensorResolver:
    """Makes lazy arrays of tensors, once their storages can be found."""

    def __init__(
        self, find: Callable[[Storage], Readable], budget: Budget, *, big_endian: bool = False
    ) -> None:
        self._find, self._budget = find, budget
        order: Literal["<", ">"] = ">" if big_endian else "<"
        self._stored = {name: dtype.newbyteorder(order) for name, dtype in STORED.items()}

    def __call__(self, tensor: TensorView) -> LazyArray | Inert:
        """Check a tensor against its storage and return it unread; of another type, that it is."""
        storage = tensor.storage
        if storage.dtype in OTHER_STORAGES:
            return Inert(f"torch.{storage.dtype}", None, is_listed=False)
        stored = self._stored[storage.dtype]
        count = self._budget.admit(tensor.shape, kept_bytes(storage.dtype), "a tensor")
        view = View(tensor.offset, tensor.shape, tensor.strides)
        extent = check_view(view, storage.count, count, stored.itemsize, self._budget.limits)
        if tensor.negate and storage.dtype == "bool":
            raise malformed("a negated tensor of type bool")
        record = self._find(storage)
        # All between the first and the last element is read, and inflated all there is.
        whole = record.cost(extent * stored.itemsize)
        self._budget.charge_reading(max(0, whole - count * stored.itemsize), "a tensor")
        if storage.dtype == "bfloat16" or not view.is_contiguous:
            self._budget.charge_copy(extent * stored.itemsize, "a tensor")

        def read() -> NDArray[Any]:
            values = decode(read_view(record, view, stored), storage.dtype)
            return np.negative(values, out=values) if tensor.negate else values

        return LazyArray(tensor.shape, storage.dtype, read)


def _is_other(kind: Stranger) -> bool:
    return kind.module in ("torch", "torch.storage") and kind.name in OTHER_STORAGES


def check_record_size(storage: Storage, size: int) -> None:
    """Raise unless a record of `size` bytes is just what a storage needs."""
    wanted = storage.count * stored_bytes(storage.dtype)
    if size != wanted:
        raise WeightsFileError(
            f"storage {sanitize(storage.key)} has the wrong size",
            got=f"{size} bytes",
            wanted=f"{wanted} bytes ({storage.count} x {storage.dtype})",
            advice="the file is damaged: copy or download it again",
        )


def _is_text_or_none(value: object) -> bool:
    return (
        value is None
        or type(value) is str
        or (isinstance(value, Span) and value.encoding == "text")
    )
