"""The loader: threads decode and transform pictures ahead of the step that consumes them.

Decoders release the interpreter's lock, so threads suffice. What a batch holds depends on
(seed, epoch, step) only, never on how many threads or ranks there are or which was faster.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.dense import LabelError, is_dense
from repvgg_ref.data.order import epoch_order, rank_slice, stream
from repvgg_ref.data.skipped import named
from repvgg_ref.data.source import DataError, Source
from repvgg_ref.data.transforms import Transform
from repvgg_ref.errors import ReportedError

MOST_SKIPPED = 0.01  # part of the data set that may be unreadable,
FEWEST_LIMIT = 10  # but so many pictures may be in any case
_MOST_A_TASK = 16  # pictures


class Batch(NamedTuple):
    """Some pictures of a step, as bytes: standardise them where the network runs.

    `images` (N, S, S, C) uint8, `labels` (N,) int64, or (N, S, S) uint8 of a dense source,
    `indices` (N,) int64: which pictures of the source these are.
    """

    images: Array
    labels: Array
    indices: Array


class Loader:
    """Batches of a source, the same for the same (seed, epoch, step).

    Parameters
    ----------
    source : Source
    transform : Transform
        From `training_transform` or `evaluation_transform`.
    batch_size : int
        Of the global batch, all ranks together.
    seed : int
    threads : int
        That decode, beside the caller's own.
    rank, ranks : int
        This process and how many there are; rank r gets the r-th contiguous part of each global
        batch.
    shuffle : bool
    drop_last : bool
        True: every batch is full, and in place of a picture that cannot be read stands the next
        one of the source that can. False: every readable picture comes exactly once, and batches
        may be shorter, even empty.
    ahead : int
        Batches made ahead of the one that is consumed.

    Attributes
    ----------
    steps : int
        Batches an epoch, equal on all ranks.

    Raises
    ------
    DataError
        If no batch can be made so. While iterating: if more than 1 % (and more than 10) of the
        pictures cannot be read, or one meets an error that is no fault of its own.
    """

    def __init__(
        self,
        source: Source,
        *,
        transform: Transform,
        batch_size: int,
        seed: int = 0,
        threads: int = 1,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        ahead: int = 2,
    ) -> None:
        _require_possible(source, batch_size, threads, rank, ranks, drop_last)
        self.source, self.transform, self.batch_size = source, transform, batch_size
        self.seed, self.threads, self.rank, self.ranks = seed, threads, rank, ranks
        self.shuffle, self.drop_last, self.ahead = shuffle, drop_last, ahead
        count = len(source)
        self.steps = count // batch_size if drop_last else -(-count // batch_size)
        self._unreadable = _Unreadable(source)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of every picture that could not be read so far, by index."""
        return self._unreadable.listed()

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from `first_step` on.

        Closing the iterator, or an error, cancels what is under way and ends the threads.
        """
        order = epoch_order(len(self.source), seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        with ThreadPoolExecutor(self.threads, "repvgg-data") as pool:
            pending: deque[_Pending] = deque()
            try:
                for step in range(first_step, self.steps):
                    pending.append(_Pending(self, pool, epoch, self._indices(order, step)))
                    if len(pending) > self.ahead:
                        yield pending.popleft().batch()
                while pending:
                    yield pending.popleft().batch()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _indices(self, order: Array, step: int) -> Array:
        whole: Array = order[step * self.batch_size : (step + 1) * self.batch_size]
        return whole[rank_slice(len(whole), rank=self.rank, ranks=self.ranks)]

    def load(self, index: int, epoch: int) -> tuple[int, Array] | None:
        """Index and pixels of picture `index`, or of the one that stands in for it, if any."""
        count = len(self.source)
        for tried in range(count if self.drop_last else 1):
            instead = (index + tried) % count
            if instead in self._unreadable:
                continue
            try:
                picture = self.source.picture(instead)
                rng = stream(self.seed, epoch, index + 1)
                return instead, self.transform(picture, rng)
            except LabelError:
                raise
            except (ReportedError, OSError) as error:
                self._unreadable.add(instead, error)
            except Exception as error:
                raise DataError(
                    f"{self.source.name(instead)}: unexpected {type(error).__name__}", got=error
                ) from error
        if self.drop_last:
            raise DataError("no picture of the data set can be read", got=self.skipped[0])
        return None


class _Pending:
    """A batch under way: its arrays, and the tasks that fill them."""

    def __init__(
        self, loader: Loader, pool: ThreadPoolExecutor, epoch: int, indices: Array
    ) -> None:
        size, channels = loader.transform.size, loader.source.channels
        self._loader, self._indices = loader, indices.copy()
        self._dense = is_dense(loader.source)  # the labels are one more band
        shape = len(indices), size, size, channels + self._dense
        self._images = np.empty(shape, np.uint8)
        # So small that every thread has a part in every batch, so large that handing on is cheap.
        part = max(1, min(_MOST_A_TASK, len(indices) // (2 * loader.threads)))
        self._tasks: list[Future[None]] = [
            pool.submit(self._fill, range(len(indices))[start : start + part], epoch)
            for start in range(0, len(indices), part)
        ]

    def _fill(self, places: range, epoch: int) -> None:
        for place in places:
            loaded = self._loader.load(int(self._indices[place]), epoch)
            if loaded is None:
                self._indices[place] = -1
            else:
                self._indices[place], self._images[place] = loaded

    def batch(self) -> Batch:
        """The batch when it is complete; an error of a task is raised here."""
        for task in self._tasks:
            task.result()
        images, indices = self._images, self._indices
        if (indices < 0).any():
            images, indices = images[indices >= 0], indices[indices >= 0]
        if self._dense:
            pixels, labels = np.ascontiguousarray(images[..., :-1]), images[..., -1].copy()
            return Batch(pixels, labels, indices)
        return Batch(images, self._loader.source.labels[indices], indices)


class _Unreadable:
    """The pictures that could not be read, and how many there may be."""

    def __init__(self, source: Source) -> None:
        self._source, self._limit = source, max(FEWEST_LIMIT, int(MOST_SKIPPED * len(source)))
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def add(self, index: int, error: Exception) -> None:
        with self._lock:
            self._reasons[index] = str(error)
            many = len(self._reasons) > self._limit
        if many:
            raise DataError(
                "too many pictures cannot be read",
                got=f"{len(self._reasons)} of {len(self._source)}, "
                f"the last: {named(self._source.name(index), str(error))}",
                wanted=f"at most {self._limit}",
            )

    def listed(self) -> list[tuple[str, str]]:
        with self._lock:
            return [(self._source.name(i), self._reasons[i]) for i in sorted(self._reasons)]


def _require_possible(
    source: Source, batch_size: int, threads: int, rank: int, ranks: int, drop_last: bool
) -> None:
    if threads < 1 or batch_size < 1 or not 0 <= rank < ranks:
        raise DataError(
            "no batch can be made so",
            got=f"batch_size {batch_size}, threads {threads}, rank {rank} of {ranks}",
            wanted="at least 1 image, 1 thread, and rank below ranks",
        )
    if drop_last and batch_size % ranks:
        raise DataError(
            "the batch cannot be shared out evenly",
            got=f"{batch_size} images for {ranks} ranks",
            wanted=f"a multiple of {ranks}",
        )
    if len(source) < (batch_size if drop_last else 1):
        raise DataError(
            "the data set is smaller than one batch",
            got=f"{len(source)} images, batch {batch_size}",
            advice="take a smaller batch",
        )
