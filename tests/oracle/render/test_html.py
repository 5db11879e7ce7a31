"""The page's content, and that nothing in a report can be more than text."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from repvgg_ref.oracle.render import render_html
from repvgg_ref.oracle.report import Report
from tests.oracle.render.reports import REPORTS, agreeing, disagreeing, hostile, unjudged

VOID = {"meta", "img", "br", "link", "input", "hr"}
RESOURCES = ("src", "href", "xlink:href", "data", "action", "poster", "srcset")


class Page(HTMLParser):
    """Elements, attributes and text; complains of tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(params=list(REPORTS))
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]


def test_it_is_well_formed_has_no_script_and_asks_for_nothing(report: Report) -> None:
    html = render_html(report)
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "form", "link", "base"} & set(page.tags)
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    fetched = [value for _, name, value in page.attributes if name in RESOURCES]
    assert all(value.startswith("data:image/png;base64,") for value in fetched)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {"#hatch"}
    policies = [value for _, name, value in page.attributes if name == "content"]
    assert any(value.startswith("default-src 'none'") for value in policies)


def test_it_can_be_written_as_utf_8_and_holds_no_control_characters(report: Report) -> None:
    html = render_html(report)
    html.encode("utf-8")
    assert all(letter.isprintable() or letter == "\n" for letter in html.replace("\u00a0", " "))


def test_a_hostile_report_is_the_same_page_but_for_its_text() -> None:
    tags = Page(render_html(hostile())).tags
    assert tags.count("h1") == 1
    assert tags.count("style") == 1
    assert "{{ 7 * 7 }}" in Page(render_html(hostile())).text
    assert "49" not in Page(render_html(hostile())).text.replace("49 %", "")


def test_a_disagreement_says_what_where_and_what_to_do() -> None:
    text = Page(render_html(disagreeing())).text
    for said in (
        "Disagrees",
        "first bad layer stage2.1",
        "stage2.1: error 0.00042, 42 times its bound",
        "eps-value in stage2.1",
        "0.0009999851 ± 7.7e-09",
        "> 99.9 % of the difference",
        "practically certain",
        "eps-everywhere , eps-of-keras",
        "set eps of every batch norm to the reference's",
        "mend stage2.1 first",
        "identity-missing in every layer",
        "12 outputs are NaN or infinite",
        "The residual of stage2.1",
        "channel 7, image 1: 15 values not finite",
        "NaN or infinite ( 16 values )",
        "matched by position",
    ):
        assert re.sub(r"\s", "", said) in re.sub(r"\s", "", text), said


def test_every_layer_is_in_the_table_and_in_the_drawing() -> None:
    page = Page(render_html(disagreeing()))
    for layer in disagreeing().layers:
        assert sum(word.strip() == layer.name for word in page.words) >= 2, layer.name
    assert page.tags.count("title") == 1 + len(disagreeing().layers)


def test_the_verdict_is_told_by_words_and_by_a_shape_of_its_own() -> None:
    shapes = {}
    for report in (agreeing(), disagreeing(), unjudged()):
        html = render_html(report)
        assert f'<body class="{report.verdict}">' in html
        (icon,) = re.findall(r'<svg class="icon".*?</svg>', html, re.DOTALL)
        shapes[icon] = report.verdict
    assert len(shapes) == 3


def test_what_cannot_be_judged_is_said_not_to_be_a_pass() -> None:
    page = Page(render_html(unjudged()))
    assert "Cannot judge" in page.text
    assert "This is not a pass" in page.text
    assert "the candidate failed" in page.text
    assert "table" not in page.tags


def test_a_weight_files_page_explains_the_bound_on_taps() -> None:
    report = agreeing()
    static = Report("agree", "", report.model, "a.npz", "weights", report.layers)
    assert "every tap of every fused kernel" in Page(render_html(static)).text
    assert "Higham" in Page(render_html(report)).text


def test_the_footer_says_what_made_it_and_when() -> None:
    now = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
    text = Page(render_html(agreeing(), now=now)).text
    assert "2024-02-29 12:30 UTC" in text
    assert re.search(r"repvgg-ref \d+\.\d+", text)
    assert "model RepVGG-A0" in text
    assert "precision fp32" in text
