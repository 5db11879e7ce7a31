"""A headless Chromium, if there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_QUIET = (
    "--headless",
    "--no-sandbox",  # tests may run as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)
DARK = "--blink-settings=preferredColorScheme=0"


class Browser:
    """Shows pages and tells what became of them; every call starts from nothing."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def dom(self, html: str) -> str:
        """The document after it was loaded, as HTML."""
        return self._run(html, "--dump-dom", "--virtual-time-budget=3000")

    def picture(self, html: str, width: int, height: int, *more: str) -> Path:
        """A screenshot."""
        path = self._folder / "shot.png"
        path.unlink(missing_ok=True)
        self._run(html, f"--screenshot={path}", f"--window-size={width},{height}", *more)
        return path

    def _run(self, html: str, *options: str) -> str:
        page = self._folder / "page.html"
        page.write_text(html, encoding="utf-8")
        profile = f"--user-data-dir={self._folder / 'profile'}"
        done = subprocess.run(
            [self._program, *_QUIET, profile, *options, page.as_uri()],
            capture_output=True,
            timeout=120,
            check=True,
        )
        return done.stdout.decode("utf-8")


def find_browser(folder: Path) -> Browser:
    """Chromium with its profile in `folder`, or the test is skipped."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return Browser(program, folder)
