"""`repvgg-ref quantize`: a trained RepVGG as an integer network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli.options import (
    FILE,
    assumed_line,
    block_option,
    checkpoint_option,
    debug_option,
    eps_option,
    geometry_options,
    json_option,
    note,
    print_json,
    say,
    weights_set_option,
)

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.integer.network import IntegerNetwork
    from repvgg_ref.models.network import Model

# As in `repvgg_ref.integer`, which is too heavy to import for --help.
_ROUNDINGS = (
    "float-even",
    "double",
    "single",
    "half-away",
    "floor",
    "double-up",
    "half-even",
    "toward-zero",
    "float-away",
    "dequantized",
    "any",
)
_METHODS = ("min-max", "percentile", "least-squares")
_STYLES = ("qdq", "qlinear")
_IN_FLOAT = (
    "on x86, ONNX Runtime computes the pooling and the linear layer of such a file in float unless "
    'the session says "session.qdqisint8allowed" = "1"; --activations uint8 and --style qlinear '
    "are integers everywhere"
)


@click.command(short_help="Quantise a trained RepVGG to 8-bit integers.")
@checkpoint_option("source", "--in", help="In train or deploy form; - is stdin.")
@click.option(
    "--calibrate",
    required=True,
    metavar="DIR|FILE.npy",
    help="Images: a folder of pictures, .npy, .npz, or a data set as `train --data` takes it.",
)
@click.option(
    "--out", type=FILE, required=True, help="NET.npz, or NET.onnx for ONNX Runtime (float-even)."
)
@click.option(
    "--rounding",
    type=click.Choice(_ROUNDINGS),
    default="float-even",
    show_default=True,
    metavar="NAME",
    help="How accumulators are requantised: " + ", ".join(_ROUNDINGS) + ".",
)
@click.option("--per-tensor", is_flag=True, help="One weight scale a layer, not one a channel.")
@click.option(
    "--equalize", is_flag=True, help="First even out channel ranges across layers, exactly."
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="min-max",
    show_default=True,
    help="How ranges of activations are chosen.",
)
@click.option(
    "--activations",
    type=click.Choice(["int8", "uint8"]),
    default="int8",
    show_default=True,
    help="Their type; weights are int8.",
)
@click.option(
    "--style",
    type=click.Choice(_STYLES),
    default="qdq",
    show_default=True,
    help="Of an ONNX file: quantise-dequantise pairs, or operators on integers.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=256, show_default=True, help="Images at most."
)
@block_option
@eps_option
@geometry_options
@weights_set_option
@json_option
@debug_option
def command(
    source: Path,
    calibrate: str,
    out: Path,
    rounding: str,
    per_tensor: bool,
    equalize: bool,
    method: str,
    activations: str,
    style: Any,
    limit: int,
    block: str,
    eps: float | None,
    strides: Any,
    dilations: Any,
    weights_set: Any,
    as_json: bool,
) -> None:
    """Quantise a trained RepVGG: int8 weights, 8-bit activations, int32 sums.

    Ranges of activations are measured on the images of --calibrate. The npz is the reference that
    `verify` holds devices to, bit for bit; the ONNX file gives the same bits in ONNX Runtime
    where that computes in integers.
    """
    import repvgg_ref
    from repvgg_ref.integer.equalize import equalize as equalized
    from repvgg_ref.integer.quantize import as_chain, quantize
    from repvgg_ref_cli.calibration import calibration_images

    to = _format(out)
    model = repvgg_ref.load(
        source, eps=eps, block=block, strides=strides, dilations=dilations, weights=weights_set
    )
    for message in (*model.notes, *assumed_line(model.assumed)):
        note(message)
    deploy = as_chain(model)
    images = calibration_images(calibrate, model, limit)
    chosen = equalized(deploy)[0] if equalize else deploy
    network = quantize(
        chosen,
        images,
        rounding=rounding,
        per_tensor=per_tensor,
        method=method,
        dtype=activations,
    )
    _write(network, out, to, style)
    if (to, style, activations) == ("onnx", "qdq", "int8"):
        note(_IN_FLOAT)
    found = {
        "model": model.name,
        "out": str(out),
        "format": to,
        "images": len(images),
        "rounding": rounding,
        "per_tensor": per_tensor,
        "equalized": equalize,
        "method": method,
        "activations": activations,
        "assumed": model.assumed.to_json(),
        **_compared(network, deploy, images),
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "output_scale": float(layer.output.scale),
                "output_zero_point": int(layer.output.zero_point),
            }
            for layer in network.layers
        ],
    }
    if as_json:
        print_json(found)
    else:
        _show(source, found)


def _format(out: Path) -> str:
    suffix = out.suffix.lower()
    if suffix not in (".npz", ".onnx"):
        raise click.UsageError(f"--out {out.name}: an integer network is written as .npz or .onnx")
    return suffix[1:]


def _write(network: IntegerNetwork, out: Path, to: str, style: Any) -> None:
    if to == "onnx":
        from repvgg_ref.files.integer_onnx import write_integer_onnx

        write_integer_onnx(out, network, style=style)
    else:
        from repvgg_ref.files.integer_npz import write_network

        write_network(out, network)


def _compared(network: IntegerNetwork, deploy: Model, images: Array) -> dict[str, Any]:
    """How far the integers' logits are from the network's own, on the images of calibration."""
    import numpy as np

    from repvgg_ref.integer.schemes import ANY

    some = images[:64]
    rounded = network.rounded("float-even") if network.rounding == ANY else network
    last = network.layers[-1]
    real = last.output.real(rounded.forward(some)[last.name]).astype(np.float64)
    wanted = np.asarray(deploy.forward(some), np.float64)
    noise, signal = float(((real - wanted) ** 2).sum()), float((wanted**2).sum())
    return {
        "same_class": float((real.argmax(1) == wanted.argmax(1)).mean()),
        "sqnr": 10 * float(np.log10(signal / noise)) if noise and signal else None,
    }


def _show(source: Path, found: dict[str, Any]) -> None:
    scales = "one scale a tensor" if found["per_tensor"] else "one scale a channel"
    even = ", equalised" if found["equalized"] else ""
    say(f"read   {source.name}: {found['model']}")
    say(f"ranges {found['images']} images, {found['method']}; weights {scales}{even}")
    noise = "" if found["sqnr"] is None else f", logits {found['sqnr']:.1f} dB above the noise"
    say(f"check  the float network's class for {found['same_class']:.1%} of them{noise}")
    say(f"wrote  {found['out']}: {found['format']}, rounding {found['rounding']}")
