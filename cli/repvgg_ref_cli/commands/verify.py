"""`repvgg-ref verify`: is this port right, which layer is wrong, which bug is it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli.console import can_draw, console
from repvgg_ref_cli.failures import DISAGREES
from repvgg_ref_cli.options import (
    INPUT,
    Output,
    assumed_line,
    block_option,
    checkpoint_option,
    debug_option,
    eps_option,
    geometry_options,
    json_option,
    note,
    print_json,
    refuse_options,
)
from repvgg_ref_cli.piped import FileOrName, destination, is_dash, refuse_two_on_stdout

if TYPE_CHECKING:
    from repvgg_ref.oracle.report import Report

# As in `repvgg_ref.oracle.bounds.precision`, which is too heavy to import for --help.
_PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16", "fp16-acc16")

# Options that say nothing of a file of blocks.
_OF_A_NETWORK = ("inputs", "strides", "dilations", "block", "precision")


@click.command(short_help="Say whether a port is right, which layer is wrong, and which bug it is.")
@checkpoint_option("reference", "--reference", help="What is right; best in train form.")
@click.option(
    "--candidate",
    required=True,
    type=FileOrName("candidate"),
    metavar="CAND",
    help="A weights file, .onnx, dump of outputs, module:callable, or exec:COMMAND.",
)
@click.option(
    "--inputs",
    type=INPUT,
    help="The batch: .npy, .npz, Polygraphy JSON or a picture. [made so that bugs show]",
)
@eps_option
@geometry_options
@block_option
@click.option(
    "--precision",
    type=click.Choice(_PRECISIONS),
    default="auto",
    show_default=True,
    help="What the candidate is held to.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that a candidate which is run may take.",
)
@click.option(
    "--report", "page", type=Output("html"), help="Write the report as one HTML page; - is stdout."
)
@click.option("--junit", type=Output("xml"), help="Write the report as JUnit XML; - is stdout.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    reference: Path,
    candidate: str | Path,
    inputs: Path | None,
    eps: float | None,
    strides: Any,
    dilations: Any,
    block: str,
    precision: str,
    timeout: float,
    page: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Judge the port CAND against the reference, layer by layer.

    \b
    CAND is one of
      a weights file (.pth .npz .safetensors)   its fused kernels are checked, nothing is run
      an .onnx file                             run in ONNX Runtime, every layer tapped
      outputs: .npy, .npz, a folder of them, an ONNX test_data_set folder, Polygraphy JSON
      module:callable or file.py:callable       images (N, C, H, W) in, logits or a dict out
      "exec:COMMAND {input} {output}"           any program that reads and writes .npy

    Every layer is computed in float64 from the candidate's own input and held against a bound that
    correct arithmetic cannot exceed. One of the files may be -, which is stdin.

    Exit codes: 0 agrees, 1 disagrees, 2 cannot be judged.
    """  # noqa: D301 - \b is click's
    import repvgg_ref
    from repvgg_ref.oracle.families.kind import kind_of
    from repvgg_ref.oracle.golden.folder import is_golden
    from repvgg_ref.oracle.integers.question import is_about_integers
    from repvgg_ref.oracle.verification import require_no_inputs, verify
    from repvgg_ref_cli.batches import read_batch

    on_stdout = _on_stdout(page, junit, as_json=as_json)
    started = time.monotonic()
    with _progress(candidate) as progress:
        if is_about_integers(reference, candidate):
            refuse_options(ctx, ["precision"], "integers are compared bit for bit")
            given = {"eps": eps, "block": block, "strides": strides, "dilations": dilations}
            report = _integers(reference, candidate, inputs, given, timeout, progress)
        elif (kind := kind_of(reference) if _is_weights(candidate) else "other") == "blocks":
            from repvgg_ref.oracle.families.family import judge_family

            refuse_options(ctx, _OF_A_NETWORK, "of a file of blocks nothing is run")
            report = judge_family(reference, Path(candidate), eps=eps)
        elif kind == "network":
            from repvgg_ref.oracle.families.graph_file import judge_graph_file

            refuse_options(ctx, _OF_A_NETWORK, "the file's weights are compared, nothing is run")
            report = judge_graph_file(reference, Path(candidate), eps=eps)
        elif is_golden(reference):
            require_no_inputs(inputs)
            report = verify(reference, candidate, precision=precision, timeout=timeout)
        else:
            model = repvgg_ref.load(
                reference, eps=eps, block=block, strides=strides, dilations=dilations
            )
            report = verify(
                model,
                candidate,
                inputs=None if inputs is None else read_batch(inputs, model),
                precision=precision,
                timeout=timeout,
                progress=progress,
            )
    _write(report, page, junit, time.monotonic() - started)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report, stderr=on_stdout)
    for message in assumed_line(report.assumed):
        note(message)
    for path in (page, junit):
        if path is not None and not is_dash(path):
            note(f"wrote {path}")
    if report.verdict == "disagree":
        ctx.exit(DISAGREES)
    if report.verdict == "cannot-judge":
        _refuse(report)


def _is_weights(candidate: str | Path) -> bool:
    suffixes = (".pth", ".pt", ".npz", ".safetensors", ".bin", ".ckpt")
    return Path(candidate).suffix.lower() in suffixes and Path(candidate).is_file()


def _integers(
    reference: Path,
    candidate: str | Path,
    inputs: Path | None,
    given: dict[str, Any],
    timeout: float,
    progress: Any,
) -> Report:
    """Integer networks: numbers bit for bit, or integers against a checkpoint."""
    import repvgg_ref
    from repvgg_ref.oracle.candidates.npy_files import read_npy
    from repvgg_ref.oracle.integers.front import verify_integers
    from repvgg_ref.oracle.integers.question import is_about_integers

    chosen: Any = reference
    if not is_about_integers(reference, None):
        chosen = repvgg_ref.load(reference, **given)
    x = None if inputs is None else read_npy(inputs)
    return verify_integers(chosen, candidate, inputs=x, timeout=timeout, progress=progress)


@contextmanager
def _progress(candidate: str | Path) -> Iterator[Callable[[str, int, int], None] | None]:
    """On a terminal: a bar that pulses while the candidate runs, then counts layers."""
    if not can_draw(sys.stderr):
        yield None
        return
    from rich.markup import escape
    from rich.progress import Progress

    from weights_io import sanitize

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"running {escape(sanitize(str(candidate)))}", total=None)

        def compared(layer: str, done: int, total: int) -> None:
            bar.update(task, description=f"comparing {layer}", completed=done, total=total)

        yield compared


def _write(report: Report, page: Path | None, junit: Path | None, seconds: float) -> None:
    if page is None and junit is None:
        return
    from repvgg_ref.oracle.render import render_html, render_junit
    from weights_io import atomic_path

    if page is not None:
        with destination(page, "page.html") as target, atomic_path(target) as path:
            path.write_text(render_html(report), encoding="utf-8")
    if junit is not None:
        with destination(junit, "junit.xml") as target, atomic_path(target) as path:
            path.write_bytes(render_junit(report, seconds=seconds))


def _on_stdout(page: Path | None, junit: Path | None, *, as_json: bool) -> bool:
    """Whether a page goes to stdout, which then has room for nothing else."""
    refuse_two_on_stdout(page, as_json=as_json, option="--report")
    refuse_two_on_stdout(junit, as_json=as_json, option="--junit")
    if is_dash(page) and is_dash(junit):
        raise click.UsageError("--report - and --junit - would both write to stdout; drop one")
    return is_dash(page) or is_dash(junit)


def _show(report: Report, *, stderr: bool) -> None:
    from repvgg_ref_cli.terminal import render_terminal

    console(stderr=stderr).print(render_terminal(report))


def _refuse(report: Report) -> None:
    """Exit code 2, by the one line that goes with it."""
    from repvgg_ref.errors import ReportedError

    whose = "" if report.reason.startswith(report.candidate) else f"{report.candidate}: "
    raise ReportedError(f"cannot judge: {whose}{report.reason}")
