"""The documentation's pages: Markdown files beside this one, with figures in `figures`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
_FIGURE = re.compile(r"^!\[(?P<says>[^\]]*)\]\((?P<file>figures/[\w.-]+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """One page; `text` is for terminals, which cannot draw: it says where each figure lies."""

    name: str
    title: str
    path: Path
    text: str

    def to_json(self) -> dict[str, str]:
        """What the list of pages says of it."""
        return {"name": self.name, "title": self.title, "path": str(self.path)}


def names() -> list[str]:
    """The names of all pages."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def read_page(name: str) -> Page:
    """The page called `name`; its first line is its title."""
    path = FOLDER / f"{name}.md"
    source = path.read_text(encoding="utf-8")
    text = _FIGURE.sub(lambda found: f"*Figure: {found['says']}: {FOLDER / found['file']}*", source)
    return Page(name, source.partition("\n")[0].removeprefix("# "), path, text)
