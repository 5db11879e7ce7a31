"""A benchmark document for a terminal, as a rich renderable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from repvgg_ref.bench.picture import heading, label
from repvgg_ref_cli.console import Fitting

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_MEGA = 1e6


def render(made: Mapping[str, Any]) -> RenderableType:
    """What was timed, the tables, and what to know about the figures."""
    from rich.console import Group
    from rich.text import Text

    machine = made["machine"]
    parts: list[RenderableType] = [
        Text(heading(made), style="bold"),
        Text(
            f"{machine['processor']}, {machine['cores']} cores, {machine['blas']}, "
            f"{_others(made['others'])} by others",
            style="dim",
        ),
    ]
    if pinned := machine.get("blas_pinned"):
        parts.append(
            Text(
                f"OPENBLAS_CORETYPE={pinned} is set: NumPy may run slower kernels than this "
                "processor has; unset it for speed"
            )
        )
    parts += {
        "table4": _table4,
        "conversion": _conversion,
        "training": _race,
        "inference": _race,
    }[made["kind"]](made)
    for skipped in made.get("skipped", []):
        mend = f"; {skipped['mend']}" if skipped["mend"] else ""
        parts.append(Text(f"not timed: {skipped['name']}: {skipped['reason']}{mend}"))
    return Group(*parts)


def _others(share: float | None) -> str:
    return "use unknown" if share is None else f"used {100 * share:.0f} %"


def _race(made: Mapping[str, Any]) -> list[RenderableType]:
    table = _table(
        "each at its fastest", "ms", "images/s", "GFLOP/s", "over ours", "quartiles", "CPU"
    )
    for one in made["contenders"]:
        ratio = one["ratio"]
        table.add_row(
            label(one),
            f"{1e3 * one['median_seconds']:.1f}",
            f"{one['images_per_second']:.1f}",
            f"{one['gflops']:.0f}",
            f"{ratio['median']:.2f}",
            f"{ratio['low']:.2f}..{ratio['high']:.2f}",
            f"{one['cpu_ratio']['median']:.2f}",
        )
    worst = max(one["error"] for one in made["contenders"])
    table.caption = (
        "over ours: their time over ours in the same round, median (above 1: ours is faster); CPU: "
        f"the same in processor time. All outputs within {worst:.1g} of the largest."
    )
    parts: list[RenderableType] = [Fitting(table), _memory(made)]
    if made["layers"]:
        parts.append(_layers(made["layers"]))
    return parts


def _memory(made: Mapping[str, Any]) -> RenderableType:
    """Peak while running, beyond the bare framework, beside what theory asks for."""
    table = _table("memory, MB", "peak", "theory", "weights", "activations", "packed", "scratch")
    for one in made["contenders"]:
        memory = one["memory"]
        keys = ("peak", "theory", "weights", "activations", "packed", "scratch")
        cells = [f"{memory[key] / _MEGA:.1f}" if key in memory else "" for key in keys]
        table.add_row(label(one), *cells)
    table.caption = (
        "peak of running, beyond the bare framework. Theory: weights, and what lives while the "
        "largest layer is computed (paper, section 3.1). Packed: weights as Winograd wants them."
    )
    return Fitting(table)


def _layers(layers: Mapping[str, Any]) -> RenderableType:
    ceiling = layers["ceiling_gflops"]
    table = _table("layer", "shape", "method", "ms", "time %", "GFLOP/s", "done", "peak %")
    for row in layers["rows"]:
        stride = f"/{row['stride']}" if row["stride"] > 1 else ""
        groups = f" g{row['groups']}" if row["groups"] > 1 else ""
        table.add_row(
            row["layer"],
            f"{row['channels']}->{'x'.join(map(str, row['output']))}{stride}{groups}",
            _method(row["algorithm"], row["stride"]),
            f"{1e3 * row['seconds']:.2f}",
            f"{100 * row['share']:.1f}",
            f"{row['gflops']:.0f}",
            f"{row['done_gflops']:.0f}",
            f"{100 * row['done_gflops'] / ceiling:.0f}",
        )
    rest = layers["rest_seconds"]
    table.add_row(
        "pool, linear", "", "", f"{1e3 * rest:.2f}", f"{100 * rest / layers['seconds']:.1f}"
    )
    table.caption = (
        f"{layers['images']} images; peak {ceiling:.0f} GFLOP/s: the best matrix product of this "
        "run. GFLOP/s as if in direct form; done: products that the algorithm does, the rest is "
        "transforms, gathering, memory, Python."
    )
    return Fitting(table)


def _method(algorithm: str, stride: int) -> str:
    """``winograd4`` as F(4,3); with stride 2, where even rows meet two taps, as F(4,2)."""
    m = algorithm.removeprefix("winograd")
    return algorithm if m == algorithm else f"F({m},{3 if stride == 1 else 2})"


def _conversion(made: Mapping[str, Any]) -> list[RenderableType]:
    table = _table("whole process", "s", "over ours", "quartiles", "peak MB", "difference")
    for one in made["contenders"]:
        ratio = one["ratio"]
        table.add_row(
            one["name"],
            f"{one['median_seconds']:.2f}",
            f"{ratio['median']:.2f}",
            f"{ratio['low']:.2f}..{ratio['high']:.2f}",
            f"{one['memory']['peak'] / _MEGA:.0f}",
            f"{one['error']:.1g}",
        )
    return [Fitting(table)]


def _table4(made: Mapping[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    table = _table("network", "images/s here", "in the paper", "GFLOP/s here")
    for row in made["rows"]:
        table.add_row(
            row["name"],
            f"{row['images_per_second']:.2f}",
            str(row["paper_images_per_second"] or ""),
            f"{row['gflops']:.0f}",
        )
    claims = _table("the paper says", "factor there", "here", "holds here")
    for claim in made["claims"]:
        holds = "less" if claim["holds"] == "direction" else claim["holds"]
        claims.add_row(claim["says"], f"{claim['paper']:.2f}", f"{claim['here']:.2f}", holds)
    parts: list[RenderableType] = [Fitting(table), Fitting(claims)]
    parts.append(Text(f"rank correlation {made['rank_correlation']:.3f}"))
    for first, second in made["exchanged"]:
        parts.append(Text(f"other order here: {second} is faster than {first}"))
    return parts


def _table(*titles: str) -> Table:
    """A left column of names, right columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column(titles[0], no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    return table
