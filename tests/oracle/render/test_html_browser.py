"""The page in headless Chromium: nothing runs, it shows, it is dark at night, it fits a phone."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.render import render_html
from tests.oracle.render.browser import DARK, Browser, find_browser
from tests.oracle.render.reports import MARKER, REPORTS, hostile
from tests.oracle.render.test_html import Page

POLICY = re.compile(r"<meta http-equiv=.*?>")
LIGHT_GROUND, DARK_GROUND = (251, 251, 249), (20, 23, 26)
PHONE = 360


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return find_browser(tmp_path_factory.mktemp("browser"))


def test_the_marker_would_be_seen_if_a_script_ran(browser: Browser) -> None:
    title = f"<title>before</title><script>document.title='{MARKER}'</script>"
    assert f"<title>{MARKER}</title>" in browser.dom(title)


@pytest.mark.parametrize("guarded", [True, False])
def test_no_script_of_a_hostile_report_runs(browser: Browser, guarded: bool) -> None:
    page = render_html(hostile())
    if not guarded:  # escaping alone must do, whatever a browser makes of the policy
        page, count = POLICY.subn("", page)
        assert count == 1
    dom = browser.dom(page)
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert title[1].startswith("Disagrees: &lt;script&gt;")
    shown = Page(dom)
    assert "script" not in shown.tags
    assert [name for _, name, _ in shown.attributes if name.startswith("on")] == []
    sources = [value for _, name, value in shown.attributes if name == "src"]
    assert all(value.startswith("data:image/png") for value in sources)


def pixels(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "options", "ground", "bar"),
    [
        ("agree", (), LIGHT_GROUND, (11, 110, 79)),
        ("disagree", (), LIGHT_GROUND, (179, 48, 10)),
        ("cannot-judge", (), LIGHT_GROUND, (138, 97, 0)),
        ("disagree", (DARK,), DARK_GROUND, (255, 138, 92)),
    ],
)
def test_it_shows_in_the_verdicts_colour_in_light_and_in_dark(
    browser: Browser, name: str, options: tuple[str, ...], ground: object, bar: object
) -> None:
    shot = pixels(browser.picture(render_html(REPORTS[name]), 1000, 1400, *options))
    assert tuple(shot[2, 2]) == ground
    assert tuple(shot[90, 44]) == bar  # at the verdict's left edge
    assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 100
    used_rows = (shot != np.array(ground)).any(axis=(1, 2))
    assert used_rows.mean() > 0.3


def test_a_phone_need_not_scroll_sideways(browser: Browser) -> None:
    frames = "".join(
        f'<iframe width="{PHONE}" height="640" style="border:0" '
        f'srcdoc="{html.escape(render_html(report))}"></iframe>'
        for report in REPORTS.values()
    )
    dom = browser.dom(
        f"{frames}<script>onload = () => document.title = [...document.querySelectorAll('iframe')]"
        ".map(frame => frame.contentDocument.documentElement.scrollWidth).join(' ')</script>"
    )
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    assert dict(zip(REPORTS, map(int, found[1].split()), strict=True)) == dict.fromkeys(
        REPORTS, PHONE
    )
