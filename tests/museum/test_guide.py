"""The visitor's guide has every room, its story as it is told there, and a named bug for each."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent


def test_the_guide_tells_every_story() -> None:
    guide = (HERE / "README.md").read_text()
    for path in sorted(HERE.glob("test_[0-9][0-9]_*.py")):
        story = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert story.partition("\n")[2].strip() in guide, (
            f"run python -m tests.museum.guide: {path}"
        )


def test_the_oracle_is_quoted_as_disagreeing_with_every_exhibit() -> None:
    said = [
        line for line in (HERE / "README.md").read_text().splitlines() if "with every layer" in line
    ]
    assert len(said) >= 18
    assert all("disagree" in line for line in said)
