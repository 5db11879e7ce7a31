"""The training drawn: loss, accuracy and learning rate over the steps; one figure, as SVG and PNG.

matplotlib draws, an optional extra. A drawing is a convenience: nothing about it fails a training.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import weights_io
from repvgg_ref.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STRETCHES = 150  # drawn of a training at most; a longer one is averaged
_DOTS = 40  # evaluations that are marked; more would be a row of pearls
_DECADES = 1.5  # a loss that falls further is drawn on a logarithmic scale
_SIZE, _DPI = (8.0, 8.5), 120  # inches, dots an inch
_BLUE, _ORANGE, _BLACK, _GREY = "#0072B2", "#D55E00", "#222222", "#666666"  # safe for colour blind
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "repvgg-ref",  # the same log gives the same bytes
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.edgecolor": "none",
}


class _Stretches(NamedTuple):
    """Steps in groups: the last step of each, and the group's mean, least and greatest value."""

    steps: list[int]
    mean: list[float]
    least: list[float]
    greatest: list[float]
    length: int


def write_curves(folder: Path, records: Sequence[dict[str, Any]], *, title: str) -> list[Path]:
    """Write ``curves.svg`` and ``curves.png`` of a log's records.

    Returns
    -------
    The files; none if the log holds no two steps.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed, or does not load.
    """
    steps = [r for r in records if r["event"] == "step"]
    tests = [r for r in records if r["event"] == "evaluation"]
    if len(steps) < 2:
        return []
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
    except ImportError as error:
        raise MissingExtraError(
            "the curves were not drawn: they need matplotlib",
            got=error,
            advice="pip install 'repvgg-ref[plots]', then the same command with --resume",
        ) from None
    paths = [folder / "curves.svg", folder / "curves.png"]
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        matplotlib.rcdefaults()  # whatever matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        figure = _figure(steps, tests, title)
        with weights_io.atomic_path(paths[0]) as temporary, temporary.open("wb") as file:
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        with weights_io.atomic_path(paths[1]) as temporary, temporary.open("wb") as file:
            figure.dpi = _DPI
            FigureCanvasAgg(figure).print_png(file)
    return paths


def _figure(steps: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    figure.subplots_adjust(left=0.1, right=0.95, bottom=0.06, top=0.9, hspace=0.08)
    figure.suptitle(title, parse_math=False)  # a recipe may be called a$b$c
    loss, top1, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
    at = [r["step"] for r in tests]
    tested = {form: [r[form] for r in tests] for form in _forms(tests)}
    _training(loss, _stretches(steps, "loss"))
    _tested(loss, at, {form: [s["loss"] for s in found] for form, found in tested.items()}, ".4g")
    _training(top1, _stretches(steps, "top1", 100))
    dense = bool(tests) and "miou" in tests[0]["trained"]
    measure = "miou" if dense else "top1"
    percent = {form: [100 * s[measure] for s in found] for form, found in tested.items()}
    _tested(top1, at, percent, ".2f")
    rate.plot(*zip(*((r["step"], r["lr"]) for r in steps), strict=True), color=_GREY, lw=1.5)
    right = "pixels right (training), mIoU (test), %" if dense else "top-1 accuracy, %"
    for axes, label in ((loss, "loss"), (top1, right), (rate, "learning rate")):
        axes.set_ylabel(label)
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step")
    rate.xaxis.set_major_formatter("{x:,.0f}")
    rate.set_xlim(0, steps[-1]["step"])
    _log_scale_if_wide(loss, [r["loss"] for r in steps] + [s["loss"] for s in tested["trained"]])
    for axes in (loss, top1):
        axes.legend(loc="best")
    _epochs_above(loss, tests)
    figure.align_ylabels()
    return figure


def _forms(tests: Sequence[dict[str, Any]]) -> list[str]:
    """The forms that were evaluated: blocks that cannot be fused have one."""
    return ["trained", *(["fused"] if all("fused" in r for r in tests) else [])]


def _training(axes: Axes, found: _Stretches) -> None:
    """The training's own values: a line, and where it is a mean the values that it is of."""
    label = (
        "training, each step" if found.length == 1 else f"training, mean of {found.length} steps"
    )
    axes.plot(found.steps, found.mean, color=_BLUE, lw=1.2, label=label)
    if found.length > 1:
        axes.fill_between(
            found.steps,
            found.least,
            found.greatest,
            color=_BLUE,
            alpha=0.15,
            lw=0,
            label="their range",
        )


def _tested(axes: Axes, at: list[int], values: dict[str, list[float]], form: str) -> None:
    """Both forms on the test images: they coincide, so one is broad and pale below the other."""
    if not at:
        return
    labels = {
        name: f"test, {name} form: {found[-1]:{form}} at the end" for name, found in values.items()
    }
    dot = len(at) <= _DOTS
    broad: dict[str, Any] = {
        "color": _ORANGE,
        "alpha": 0.4,
        "lw": 6,
        "marker": "o" * dot,
        "ms": 9,
        "zorder": 1,
    }
    narrow: dict[str, Any] = {"color": _BLACK, "lw": 1.2, "ls": "--", "marker": "." * dot, "ms": 5}
    for (name, found), how in zip(values.items(), (broad, narrow), strict=False):
        axes.plot(at, found, label=labels[name], clip_on=False, **how)


def _stretches(steps: Sequence[dict[str, Any]], field: str, times: float = 1) -> _Stretches:
    """At most `_STRETCHES` groups of neighbouring steps."""
    length = math.ceil(len(steps) / _STRETCHES)
    groups = [steps[at : at + length] for at in range(0, len(steps), length)]
    values = [[times * r[field] for r in group] for group in groups]
    return _Stretches(
        [group[-1]["step"] for group in groups],
        [sum(group) / len(group) for group in values],
        [min(group) for group in values],
        [max(group) for group in values],
        length,
    )


def _log_scale_if_wide(axes: Axes, values: list[float]) -> None:
    if min(values) > 0 and math.log10(max(values) / min(values)) > _DECADES:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def _epochs_above(axes: Axes, tests: Sequence[dict[str, Any]]) -> None:
    """A second axis that counts epochs, where an evaluation says how long one is."""
    if not tests:
        return
    length = tests[-1]["step"] / tests[-1]["epoch"]
    above = axes.secondary_xaxis("top", functions=(lambda x: x / length, lambda x: x * length))
    above.set_xlabel("epoch")
