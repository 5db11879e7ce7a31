"""What is said of outputs of which no error can be measured: NaN, infinity, another size."""

from __future__ import annotations

from repvgg_ref.oracle.report import Finding


def not_finite(name: str, share: float, *, overflow: bool) -> Finding:
    """The finding that NaN or infinity among the outputs is."""
    bug = "fp16-overflow" if overflow else "not-finite"
    says = f"{share:.1%} of the outputs are NaN or infinite" + (
        ", where the right value exceeds float16's range" if overflow else ""
    )
    advice = (
        "scale the activations, or run this layer in float32"
        if overflow
        else "look for a division by zero, a root of a negative variance, or memory never written"
    )
    return Finding(bug, name, share, 1.0 if overflow else 0.5, share, says, advice)


def wrong_shape(name: str, note: str) -> Finding:
    """The finding that an output of another size is, where no bug explains it."""
    return Finding(
        "wrong-shape",
        name,
        None,
        1.0,
        0.0,
        note,
        "check stride, padding, dilation and the number of channels or classes",
    )
