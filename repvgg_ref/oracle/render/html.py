"""A report as one HTML page: no script, no external resource, every inserted text escaped."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from repvgg_ref.oracle.render.chart import ROW, TOP, chart
from repvgg_ref.oracle.render.heatmap import residual_pictures, tap_pictures
from repvgg_ref.oracle.render.words import (
    LOOKS,
    count,
    estimate,
    next_steps,
    number,
    percent,
    place,
    remarks,
    state,
    sureness,
    used,
    visible,
)
from repvgg_ref.oracle.report import Report
from repvgg_ref.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

_PAGE = "report.html.j2"


def render_html(report: Report, *, now: datetime | None = None) -> str:
    """The page: verdict, diagnosis, what to try next, error over bound drawn, residual, table.

    Parameters
    ----------
    report : Report
        Names in it may be hostile: nothing of it reaches the page unescaped.
    now : datetime, optional
        When it was verified; default now. Shown as UTC.
    """
    bad = sum(not layer.ok for layer in report.layers)
    return (
        _environment()
        .get_template(_PAGE)
        .render(
            report=report,
            look=LOOKS[report.verdict],
            bad=bad,
            chart=chart(report) if report.layers else None,
            row=ROW,
            top=TOP,
            residual=residual_pictures(report.residual),
            taps=tap_pictures(report.diagnosis),
            steps=next_steps(report),
            remarks=remarks(report),
            is_static=report.precision == "weights",
            made=_made(now),
        )
    )


def _made(now: datetime | None) -> dict[str, str]:
    """The page's footer."""
    return {
        "repvgg-ref": __version__,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "date": (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("repvgg_ref.oracle.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words: dict[str, Any] = {
        "count": count,
        "estimate": estimate,
        "number": number,
        "percent": percent,
        "place": place,
        "state": state,
        "sureness": sureness,
        "used": used,
        "visible": visible,
    }
    environment.filters.update(words)
    return environment
