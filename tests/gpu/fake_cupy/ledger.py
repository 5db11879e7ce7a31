"""What the fake device counts: moments when the host waits, copies to it, kernel launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class DeviceSynchronized(RuntimeError):  # noqa: N818 - CuPy's own name
    """As `cupyx.DeviceSynchronized`: the host waited where it must not."""


class Ledger:
    """Counts of one run; `syncs` names what made the host wait, ``{"float()": 2}``.

    While a stream captures, `record` keeps what it is given instead of running it.
    """

    def __init__(self) -> None:
        self.syncs: Counter[str] = Counter()
        self.uploads = 0
        self.launches: Counter[str] = Counter()
        self.capturing: list[Callable[[], object]] | None = None
        self.memory_limit: int | None = None
        self.may_wait = True

    def clear(self) -> None:
        """Forget the counts."""
        self.syncs.clear()
        self.launches.clear()
        self.uploads = 0

    def wait(self, why: str) -> None:
        """The host waits for the device."""
        if self.capturing is not None:
            raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {why} while a stream captures")
        if not self.may_wait:
            raise DeviceSynchronized(why)
        self.syncs[why] += 1

    def launch(self, name: str, work: Callable[[], object], *, capturable: bool = True) -> None:
        """Run `work` on the device; or record it, if a stream captures and it has fixed outputs."""
        self.launches[name] += 1
        if self.capturing is None:
            work()
        elif capturable:
            self.capturing.append(work)
        else:
            raise RuntimeError(
                f"cudaErrorStreamCaptureUnsupported: {name} cannot be recorded in a CUDA graph here"
            )


LEDGER = Ledger()
