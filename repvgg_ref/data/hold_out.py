"""Something apart to evaluate on: pictures held out of a set, and those that stand in two."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from repvgg_ref.data.source import DataError, Part, Source

ONE_IN = 10
# To find pictures that stand in two parts, so many may be asked for their size, and so much read.
_MOST_PICTURES, _MOST_BYTES = 200_000, 2**28


class HeldOut(NamedTuple):
    """A data set in two parts, a fingerprint of which is which, and words for people."""

    training: Part
    test: Part
    fingerprint: str
    says: str


def hold_out(source: Source) -> HeldOut:
    """One in `ONE_IN` pictures of every class, at least one of a class that has two.

    Those with the smallest SHA-256 of their keys (``class/picture``): it depends on nothing but
    the names, so every run on every machine holds out the same.

    Raises
    ------
    DataError
        If no class has two pictures.
    """
    hashes = [hashlib.sha256(source.key(i).encode()).digest() for i in range(len(source))]
    held: list[int] = []
    for label in np.unique(source.labels):
        places = sorted(np.flatnonzero(source.labels == label).tolist(), key=hashes.__getitem__)
        held += places[: max(1, round(len(places) / ONE_IN)) if len(places) > 1 else 0]
    if not held:
        raise DataError(
            "there is nothing apart to evaluate on, and too little to hold some of it out",
            got=f"{len(source)} pictures, none or one a class",
            wanted="folders train and val, or two pictures a class",
        )
    test = np.zeros(len(source), bool)
    test[held] = True
    digest = hashlib.sha256(b"".join(hashes[i] for i in np.flatnonzero(test)))
    return HeldOut(
        Part(source, np.flatnonzero(~test)),
        Part(source, np.flatnonzero(test)),
        digest.hexdigest()[:16],
        f"nothing apart to evaluate on: {len(held)} of {len(source)} pictures are held out of the "
        f"training, about one in {ONE_IN} of every class by a hash of their names",
    )


def in_both(training: Source, test: Source) -> list[tuple[str, str]]:
    """Names of pictures stored in the same bytes in both parts: to train on, to evaluate on.

    Of a large set only some of `test` is looked at, or none if even that would take long.
    """
    if len(training) > _MOST_PICTURES:
        return []
    sizes = defaultdict[int, list[int]](list)
    for index in range(len(training)):
        sizes[_size(training, index)].append(index)
    alike = {i: size for i in range(len(test)) if (size := _size(test, i)) and size in sizes}
    while alike and _bytes(alike, sizes) > _MOST_BYTES:
        alike = dict(list(alike.items())[1::2])
    digests = {
        _digest(training, index): index for size in set(alike.values()) for index in sizes[size]
    }
    digests.pop(None, None)
    found = [(digests.get(_digest(test, i)), i) for i in alike]
    return [(training.name(first), test.name(i)) for first, i in found if first is not None]


def says_both(both: list[tuple[str, str]]) -> str:
    """Of pictures that are `in_both`."""
    trained, tested = both[0]
    return (
        f"{len(both)} pictures to evaluate on are also trained on, such as {tested} = {trained}: "
        "the accuracy is better than it would be on new ones"
    )


def _bytes(alike: dict[int, int], sizes: dict[int, list[int]]) -> int:
    once = sum(size * len(sizes[size]) for size in set(alike.values()))
    return once + sum(alike.values())


def _size(source: Source, index: int) -> int:
    """Bytes of a picture; 0 if it cannot be read, which the loader tells."""
    try:
        return source.stored_size(index)
    except OSError:
        return 0


def _digest(source: Source, index: int) -> bytes | None:
    try:
        return hashlib.sha256(source.stored(index)).digest()
    except OSError:
        return None
