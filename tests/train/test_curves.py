"""The curves: what they show of a log, and that a training does without them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.errors import MissingExtraError
from repvgg_ref.train.curves import _figure, write_curves
from repvgg_ref.train.events import Finished, Noted
from tests.train.small_training import run, small_job


def records(steps: int, *, epochs: int = 2, loss: float = 2.0) -> list[dict[str, Any]]:
    """A log whose loss falls as 1/step; both forms of the network score the same."""
    found: list[dict[str, Any]] = [
        {"event": "step", "step": n, "loss": loss / n, "top1": n / steps, "lr": 0.1 / n}
        for n in range(1, steps + 1)
    ]
    for epoch in range(1, epochs + 1):
        score = {"loss": 1.0 / epoch, "top1": 0.5 * epoch / epochs, "top5": 1.0}
        step = steps * epoch // epochs
        found.append(
            {"event": "evaluation", "step": step, "epoch": epoch, "trained": score, "fused": score}
        )
    return found


def figure(log: list[dict[str, Any]]) -> Any:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    steps, tests = ([r for r in log if r["event"] == kind] for kind in ("step", "evaluation"))
    return _figure(steps, tests, "title")


def drawn(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> x and y of every line."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }


def test_every_axis_is_named_and_the_lines_are_the_logs() -> None:
    made = figure(records(50))
    loss, top1, rate = made.axes
    names = [axes.get_ylabel() for axes in made.axes]
    assert names == ["loss", "top-1 accuracy, %", "learning rate"]
    assert rate.get_xlabel() == "step"
    steps = list(range(1, 51))
    assert drawn(loss)["training, each step"] == (steps, [2.0 / n for n in steps])
    assert drawn(top1)["training, each step"][1] == pytest.approx([2 * n for n in steps])
    assert list(drawn(rate).values()) == [(steps, [0.1 / n for n in steps])]
    assert drawn(loss)["test, trained form: 0.5 at the end"] == ([25, 50], [1.0, 0.5])
    assert drawn(top1)["test, fused form: 50.00 at the end"] == ([25, 50], [25.0, 50.0])


def test_lines_that_coincide_can_be_told_apart() -> None:
    """The two forms score the same: the one below is broad and pale, the one above thin."""
    for axes in figure(records(50)).axes[:2]:
        _, trained, fused = axes.lines
        assert list(trained.get_ydata()) == list(fused.get_ydata())
        assert trained.get_zorder() < fused.get_zorder()
        assert trained.get_linewidth() >= 4 * fused.get_linewidth()
        assert trained.get_color() != fused.get_color()
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert {line.get_label() for line in axes.lines} <= set(labels)


def test_a_second_axis_counts_epochs() -> None:
    (above,) = figure(records(50)).axes[0].child_axes
    assert above.get_xlabel() == "epoch"
    forward, _ = above._functions
    assert [forward(step) for step in (0, 25, 50)] == [0, 1, 2]


def test_a_long_training_is_drawn_as_means_and_their_range() -> None:
    loss = figure(records(1000)).axes[0]
    x, y = drawn(loss)["training, mean of 7 steps"]
    assert len(x) == 143
    assert (x[0], x[-1]) == (7, 1000)
    assert y[0] == pytest.approx(np.mean([2.0 / n for n in range(1, 8)]))
    band = loss.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((2.0 / 1000, 2.0))


@pytest.mark.parametrize(("loss", "scale"), [(2.0, "linear"), (0.0, "linear"), (2000.0, "log")])
def test_a_loss_that_falls_far_is_on_a_logarithmic_scale(loss: float, scale: str) -> None:
    assert figure(records(20, loss=loss)).axes[0].get_yscale() == scale


def test_the_files_are_one_drawing_whatever_the_title(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    title = r"<digits> & $\frac{$ co"
    svg, png = write_curves(tmp_path, records(50), title=title)
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    texts = {text.text for text in root.findall(".//{*}text")}
    assert {title, "loss", "step", "epoch", "top-1 accuracy, %", "learning rate"} <= texts
    points = float(root.attrib["width"][:-2]), float(root.attrib["height"][:-2])
    with Image.open(png) as image:
        assert image.width / image.height == pytest.approx(points[0] / points[1], rel=1e-3)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    before = svg.read_bytes()
    assert write_curves(tmp_path, records(50), title=title) == [svg, png]
    assert svg.read_bytes() == before


def test_without_two_steps_or_evaluations(tmp_path: Path) -> None:
    assert write_curves(tmp_path, records(1)[:1], title="t") == []
    assert [len(axes.lines) for axes in figure(records(5, epochs=0)).axes] == [1, 1, 1]


def test_a_training_draws_its_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    *_, done = run(small_job(tmp_path))
    assert isinstance(done, Finished)
    assert [path.name for path in done.files[-3:-1]] == ["curves.svg", "curves.png"]
    assert all(path.exists() for path in done.files)


def test_without_matplotlib_the_extra_is_named_and_the_training_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"repvgg-ref\[plots\]"):
        write_curves(tmp_path, records(5), title="t")
    *_, note, done = run(small_job(tmp_path))
    assert isinstance(done, Finished)
    assert isinstance(note, Noted)
    assert note.message.startswith("the curves were not drawn: they need matplotlib")
    names = {path.name for path in done.files}
    assert names == {"train.pth", "deploy.npz", "deploy.pth", "result.json"}


def test_a_drawing_that_fails_fails_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("repvgg_ref.train.curves._figure", broken)
    *_, note, done = run(small_job(tmp_path))
    assert isinstance(done, Finished)
    assert isinstance(note, Noted)
    assert "no font" in note.message
    assert not list(tmp_path.glob("curves*"))
