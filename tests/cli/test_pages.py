"""The pages of the documentation: shown, true, and shipped."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pty
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import pytest
from repvgg_ref_cli.pages import FOLDER, names, read_page

import repvgg_ref
from repvgg_ref.data.digits import MODEL_PATH
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.published import PUBLISHED
from repvgg_ref.models.registry import network
from tests.cli.runner import ROOT, environment, invoke
from tests.studies.pages.block_figures import blocks
from tests.studies.pages.figures import DRAWN

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def programs(name: str) -> Iterator[tuple[str, str]]:
    """Each block of Python in a page, and what is shown to be printed by it."""
    blocks = BLOCK.findall(read_page(name).text)
    for (language, code), (following, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            yield code, shown if following == "text" else ""


@pytest.mark.parametrize(("name", "least"), [("afternoon", 10), ("branches", 4)])
def test_a_page_s_programs_print_what_it_shows(name: str, least: int) -> None:
    space: dict[str, Any] = {}
    for code, shown in programs(name):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{name}.md", "exec"), space)
        assert printed.getvalue() == shown, code
    assert len(list(programs(name))) >= least


def test_the_figures_are_what_their_program_draws() -> None:
    for name, draw in (DRAWN | {"blocks": blocks}).items():
        assert (FOLDER / "figures" / f"{name}.svg").read_text(encoding="utf-8") == draw(), name
    layers = repvgg_ref.load(MODEL_PATH).arch.layer_names
    measured = ET.parse(FOLDER / "figures" / "bug.svg").getroot()
    words = {element.text for element in measured.iter() if element.tag.endswith("text")}
    assert set(layers) <= words


def linked(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]


@pytest.mark.parametrize("name", names())
def test_pages_have_a_title_and_no_broken_link(name: str) -> None:
    page = read_page(name)
    source = page.path.read_text(encoding="utf-8")
    assert source.startswith(f"# {page.title}\n")
    assert [link for link in linked(source) if not (FOLDER / link).exists()] == []
    assert "](figures/" not in page.text  # a terminal is told where they lie


def test_the_list_names_every_page_and_json_holds_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = invoke(capsys, "docs")
    assert (shown.code, shown.err) == (0, "")
    width = max(map(len, names()))
    assert all(f"{name:<{width}}  {read_page(name).title}\n" in shown.out for name in names())
    assert [page["name"] for page in invoke(capsys, "docs", "--json").json()["pages"]] == names()
    page = invoke(capsys, "docs", "formats", "--json").json()
    assert page["text"] == read_page("formats").text
    assert "afternoon" in invoke(capsys, "docs", "formatz").error_line()


def test_a_page_is_markdown_where_it_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys, "docs", "afternoon")
    assert shown.out == read_page("afternoon").text
    assert str(FOLDER / "figures" / "branches.svg") in shown.out


@pytest.mark.parametrize(("term", "laid_out"), [("xterm", True), ("dumb", False)])
def test_a_page_is_laid_out_and_paged_on_a_terminal(term: str, laid_out: bool) -> None:
    """In a terminal 72 columns wide; the pager is a program that marks what goes through it."""
    program = [sys.executable, "-m", "repvgg_ref_cli", "docs", "formats"]
    pager = f"{sys.executable} -c \"print(open(0).read().replace('npz', 'NPZ'))\""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", 0) as screen:
        run = subprocess.Popen(
            program,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=environment() | {"TERM": term, "COLUMNS": "72", "PAGER": pager},
        )
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end, on Linux
            while chunk := screen.read(1 << 16):
                seen += chunk
        assert run.wait(60) == 0
    text = seen.decode().replace("\r\n", "\n")
    assert ("NPZ" in text) == laid_out
    assert ("## npy and npz" in text) != laid_out
    if laid_out:
        assert max(map(len, text.splitlines())) <= 72


def test_the_sizes_of_official_files_are_counted() -> None:
    rows = re.findall(
        r"^\| (RepVGG-\w+) \| (\d+) \| ([\d,]+) \|$", read_page("weights").text, re.MULTILINE
    )
    assert len(rows) == 14
    for name, arrays, total in rows:
        shapes = param_shapes(network(name), "train")
        sizes = {n: 8 if n.endswith("num_batches_tracked") else 4 for n in shapes}
        assert int(arrays) == len(shapes)
        assert int(total.replace(",", "")) == sum(
            sizes[n] * math.prod(shape) for n, shape in shapes.items()
        )


def test_the_accuracies_are_those_that_eval_states() -> None:
    table = read_page("weights").text.split("| model | top-1, paper |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (RepVGG-\w+)[^|]*\|([^|]*)\|([^|]*)\|$", table, re.MULTILINE)
    found = {
        name: [float(cell.strip(" %")) if "%" in cell else None for cell in cells]
        for name, *cells in rows
    }
    assert found == {
        name: [each.paper, None if each.timm is None else round(each.timm, 2)]
        for name, each in PUBLISHED.items()
    }
