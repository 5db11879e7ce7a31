"""A pytest plugin: the fixture `repvgg_oracle` makes a port's check one line of its own tests.

    def test_port(repvgg_oracle):
        repvgg_oracle("RepVGG-A0-train.pth", my_callable).raise_if_bad()

It is a front end like the command, and stands here for a second reason: pytest imports it in every
run, and `import repvgg_ref` loads NumPy. Nothing of that is imported before the fixture is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.models.network import Model
    from repvgg_ref_cli.port_report import PortReport

_OPTION = "--repvgg-report"
_LONGEST_NAME = 120


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--repvgg-report``."""
    parser.getgroup("repvgg-ref").addoption(
        _OPTION,
        metavar="DIR",
        default=None,
        help="write an HTML page on every port that repvgg_oracle does not find to agree",
    )


@pytest.fixture
def repvgg_oracle(request: pytest.FixtureRequest) -> Iterator[Oracle]:
    """``repvgg_oracle(reference, candidate, ...)`` -> a report; call its ``raise_if_bad()``."""
    folder = request.config.getoption(_OPTION)
    oracle = Oracle(None if folder is None else Path(folder), request.node.nodeid)
    yield oracle
    if dropped := oracle.dropped():
        pytest.fail(f"{dropped}\n\nand the test did not ask: call raise_if_bad()", pytrace=False)


class Oracle:
    """Verifies ports for one test and remembers which reports the test looked at."""

    def __init__(self, folder: Path | None, test: str) -> None:
        self._folder, self._test = folder, test
        self._reports: list[PortReport] = []

    def __call__(
        self,
        reference: Model | str | Path,
        candidate: str | Path | Callable[..., Any] | Mapping[str, Array] | Array,
        *,
        inputs: Array | None = None,
        eps: float | None = None,
        precision: str = "auto",
        timeout: float = 300.0,
    ) -> PortReport:
        """Judge a port; the parameters are those of `repvgg_ref.oracle.verification.verify`.

        A report that is bad and whose `raise_if_bad` is never called fails the test at its end.
        """
        from repvgg_ref.oracle.verification import verify
        from repvgg_ref_cli.port_report import port_report, write_page

        found = verify(
            reference, candidate, inputs=inputs, eps=eps, precision=precision, timeout=timeout
        )
        page = None
        if self._folder is not None and found.verdict != "agree":
            page = write_page(found, self._folder, self._page_name())
        report = port_report(found, page)
        self._reports.append(report)
        return report

    def dropped(self) -> str:
        """What is to be said of a bad report that nobody asked, or the empty string."""
        return next((r.message() for r in self._reports if r.is_bad and not r.asked), "")

    def _page_name(self) -> str:
        """A file name made of the test's."""
        name = re.sub(r"[^\w.-]+", "-", self._test)[-_LONGEST_NAME:].strip("-.")
        number = len(self._reports)
        return f"{name}{f'-{number + 1}' if number else ''}.html"
