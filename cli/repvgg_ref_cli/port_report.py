"""A `Report` for tests: it raises with the whole story and knows whether it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from repvgg_ref.oracle.render import assertion_text, render_html
from repvgg_ref.oracle.report import Report, VerificationError
from weights_io import atomic_path


@dataclass(frozen=True, kw_only=True)
class PortReport(Report):
    """What the fixture `repvgg_oracle` gives; `page` is where its HTML report was written."""

    page: Path | None = None
    _asked: list[bool] = field(default_factory=list, repr=False, compare=False)

    @property
    def is_bad(self) -> bool:
        """Whether the port was not found to agree."""
        return self.verdict != "agree"

    @property
    def asked(self) -> bool:
        """Whether the test called `raise_if_bad`."""
        return bool(self._asked)

    def message(self) -> str:
        """Verdict, first bad layer, diagnosis and advice, in some ten lines."""
        return assertion_text(self, page=None if self.page is None else str(self.page))

    def raise_if_bad(self) -> None:
        """Raise `VerificationError` with `message` unless the verdict is "agree"."""
        __tracebackhide__ = True  # pytest shows the test's line, not this one
        self._asked.append(True)
        if self.is_bad:
            raise VerificationError(self.message())


def port_report(report: Report, page: Path | None) -> PortReport:
    """`report` as one for tests."""
    values = {f.name: getattr(report, f.name) for f in fields(report)}
    return PortReport(**values, page=page)


def write_page(report: Report, folder: Path, name: str) -> Path:
    """Write the HTML page into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / name
    with atomic_path(page) as path:
        path.write_text(render_html(report), encoding="utf-8")
    return page
