"""Write the museum's guide, ``README.md`` beside this file: each story and what the oracle says.

python -m tests.museum.guide
"""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path
from types import ModuleType

from repvgg_ref.oracle import Report
from repvgg_ref.oracle.render.words import place
from tests.museum.exhibit import Exhibit

HERE = Path(__file__).parent
_ENTRANCE = """\
# The museum of port bugs

Real bugs of well-known implementations, rebuilt here in a few lines of torch or NumPy that know
nothing of the oracle's hypotheses, on small networks. Each room is a test:
`pytest tests/museum` asks the oracle for the right name and the right first layer.
Below each story stands what the oracle really said (made by `python -m tests.museum.guide`), with
every layer's output at hand and then with nothing but logits.
"""


def rooms() -> list[ModuleType]:
    """The exhibits' modules in order."""
    names = sorted(path.stem for path in HERE.glob("test_[0-9][0-9]_*.py"))
    return [importlib.import_module(f"tests.museum.{name}") for name in names]


def page(room: ModuleType) -> str:
    """One room: title, story, and what the oracle says of each exhibit."""
    title, _, story = (room.__doc__ or "").partition("\n")
    parts = [f"## {title}", f"[`{Path(str(room.__file__)).name}`]({Path(str(room.__file__)).name})"]
    parts.append(story.strip())
    for exhibit in room.exhibits() if hasattr(room, "exhibits") else ():
        parts.append(f"**{exhibit.title}**\n\n```text\n{_said(exhibit)}\n```")
    return "\n\n".join(parts) + "\n"


def _said(exhibit: Exhibit) -> str:
    reports = {"layers": exhibit.seen_by_layers(), "logits": exhibit.seen_by_logits()}
    return "\n".join(_lines(kind, report) for kind, report in reports.items())


def _lines(kind: str, report: Report) -> str:
    bad = sum(not layer.ok for layer in report.layers)
    head = f"with {kind} only: {report.verdict}"
    if kind == "layers":
        head = f"with every layer: {report.verdict}, first bad layer {report.first_bad_layer}"
        head += f" ({bad} of {len(report.layers)} bad), held to {report.precision}"
    lines = [head]
    for finding in report.diagnosis[:2]:
        where = place(finding)
        also = f" (same here: {', '.join(finding.equivalents)})" if finding.equivalents else ""
        measured = "" if finding.estimate is None else f"estimate {finding.estimate:.5g}, "
        lines.append(
            f"    {finding.bug}, {where}: {measured}explains {finding.explains:.4%},"
            f" confidence {finding.confidence:.2f}{also}"
        )
        lines += textwrap.wrap(
            finding.says, 92, initial_indent="      ", subsequent_indent="      "
        )
    if not report.diagnosis:
        lines += textwrap.wrap(report.reason, 92, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def main() -> None:
    """Walk through all rooms and write the guide."""
    pages = [page(room) for room in rooms()]
    (HERE / "README.md").write_text("\n".join([_ENTRANCE, *pages]))


if __name__ == "__main__":
    main()
