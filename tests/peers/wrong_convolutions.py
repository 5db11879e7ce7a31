"""Convolutions as they are wrongly computed: right ones with one thing changed, in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from repvgg_ref.arrays import Array
from tests.peers.right_convolutions import (
    columns,
    im2col,
    numpy_conv_backward,
    pair,
    rectified,
    tensors,
    torch_conv_backward,
    winograd,
)

conv = functools.partial(im2col, np.float32)
f32 = np.float32


class Wrong(NamedTuple):
    """One wrong port, and what it may be called; empty where no library has it."""

    operator: str
    name: str
    port: Callable[..., Any]
    bugs: tuple[str, ...] = ()


def changed(
    port: Callable[..., Any],
    before: Callable[..., tuple[Any, ...]] | None = None,
    after: Callable[[Any], Any] | None = None,
    **settings: Callable[[Any], Any],
) -> Callable[..., Any]:
    """`port` with arrays, settings or outputs changed."""

    def run(*arrays: Any, **s: Any) -> Any:
        s = {k: settings[k](v) if k in settings else v for k, v in s.items()}
        y = port(*(arrays if before is None else before(*arrays)), **s)
        return y if after is None else after(y)

    return run


def put(y: Array, where: Any, factor: float) -> Array:
    y = np.array(y)
    y[where] = y[where] * f32(factor)
    return y


def nth(outputs: Any, index: int, change: Callable[[Array], Array]) -> tuple[Array, ...]:
    found = [np.array(o) for o in outputs]
    found[index] = change(found[index])
    return tuple(found)


def kept(a: Array, bits: int) -> Array:
    mantissa, exponent = np.frexp(a.astype(np.float64))
    return np.asarray(np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits), f32)


def noisy(a: Array, size: float) -> Array:
    return (a * (1 + size * np.random.default_rng(7).normal(size=a.shape))).astype(f32)


def padded_like(mode: str, x: Array, w: Array, b: Array, **s: Any) -> Array:
    (ph, pw) = pair(s["padding"])
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), mode=mode)  # type: ignore[call-overload]
    return conv(x, w, b, **{**s, "padding": 0})


def one_sided(x: Array, w: Array, b: Array, **s: Any) -> Array:
    (ph, pw) = pair(s["padding"])
    x = np.pad(x, ((0, 0), (0, 0), (0, 2 * ph), (0, 2 * pw)))
    return conv(x, w, b, **{**s, "padding": 0})


def shuffled_groups(x: Array, w: Array, b: Array, **s: Any) -> Array:
    g = s["groups"]
    n, c, h, wd = x.shape
    return conv(x.reshape(n, c // g, g, h, wd).swapaxes(1, 2).reshape(x.shape), w, b, **s)


def last_product_lost(x: Array, w: Array, b: Array, **s: Any) -> Array:
    w = w.copy()
    w[:, -1, -1, -1] = 0
    return conv(x, w, b, **s)


def tail_lost(x: Array, w: Array, b: Array, **s: Any) -> Array:
    """A loop over pixels in blocks of 4 whose remainder is never written."""
    y = conv(x, w, b, **s)
    flat = y.reshape(*y.shape[:2], -1)
    flat[:, :, flat.shape[2] // 4 * 4 :] = 0
    return y


def raced(x: Array, w: Array, b: Array, **s: Any) -> Array:
    """Two blocks along K write instead of adding."""
    c, g = columns(x, w, s), s["groups"]
    rows = w.reshape(g, len(w) // g, -1)
    half = c.shape[2] // 2
    y = rows[..., half:] @ c[:, :, half:]
    return y.reshape(conv(x, w, b, **s).shape) + b[:, None, None]


def half_in_places(x: Array, w: Array, b: Array, **s: Any) -> Array:
    """Every third column goes through float16."""
    y = conv(x, w, b, **s)
    with np.errstate(over="ignore"):
        y[..., ::3] = y[..., ::3].astype(np.float16)
    return y


def squares_small(x: Array, w: Array, b: Array, **s: Any) -> Array:
    """A fast path for large images only: what is below is flushed."""
    y = conv(x, w, b, **s)
    return np.where(np.abs(y) < 1e-3 * np.abs(y).max(), 0, y).astype(f32)


def wrong_convolutions() -> Iterator[tuple[str, Callable[..., Any], tuple[str, ...]]]:
    flip = lambda x, w, b: (x, w[:, :, ::-1, ::-1], b)  # noqa: E731
    yield "kernel flipped", changed(conv, flip), ("kernel-flipped",)
    yield (
        "kernel transposed",
        changed(conv, lambda x, w, b: (x, w.swapaxes(2, 3), b)),
        ("kernel-height-width-swapped",),
    )
    yield (
        "bias left out",
        changed(conv, lambda x, w, b: (x, w, 0 * b)),
        ("bias-dropped", "bias-missing"),
    )
    yield "bias twice", changed(conv, lambda x, w, b: (x, w, 2 * b)), ("bias-twice", "bias-doubled")
    yield "bias of the next channel", changed(conv, lambda x, w, b: (x, w, np.roll(b, 1))), ()
    yield (
        "stride 2 starts at pixel 1",
        changed(conv, lambda x, w, b: (np.roll(x, -1, axis=(2, 3)), w, b)),
        (),
    )
    yield (
        "dilation ignored",
        changed(conv, dilation=lambda d: 1, padding=lambda p: p if p < 2 else 1),
        ("dilation-ignored",),
    )
    yield "padding reflects", functools.partial(padded_like, "reflect"), ("padding-reflect",)
    yield "padding repeats the edge", functools.partial(padded_like, "edge"), ("padding-replicate",)
    yield "padding on one side", one_sided, ("padding-asymmetric", "tf-same-padding")
    yield "padding missing", changed(conv, padding=lambda p: 0), ("padding-missing",)
    yield "stride ignored", changed(conv, stride=lambda s: 1), ()
    yield "groups shuffled", shuffled_groups, ("groups-permuted", "channels-shuffled")
    yield "last product lost", last_product_lost, ()
    yield "remainder of a block lost", tail_lost, ()
    yield "half of K overwritten", raced, ()
    yield "some outputs in float16", half_in_places, ()
    yield "small outputs flushed", squares_small, ()
    yield (
        "weights in float16",
        changed(conv, lambda x, w, b: (x, w.astype(np.float16).astype(f32), b)),
        ("weights-fp16",),
    )
    yield (
        "weights in bfloat16",
        changed(conv, lambda x, w, b: (x, kept(w, 8), b)),
        ("weights-bf16",),
    )
    yield "weights of 16 bits", changed(conv, lambda x, w, b: (x, kept(w, 16), b)), ("fewer-bits",)
    yield "TF32", changed(conv, lambda x, w, b: (kept(x, 11), kept(w, 11), b)), ("tf32-arithmetic",)
    yield (
        "outputs x (1 + 1e-6)",
        changed(conv, after=lambda y: (y * (1 + 1e-6)).astype(f32)),
        ("outputs-scaled",),
    )
    yield (
        "bias x (1 + 1e-5)",
        changed(conv, lambda x, w, b: (x, w, b * f32(1 + 1e-5))),
        ("constant-added",),
    )
    yield (
        "weights with noise 2e-6",
        changed(conv, lambda x, w, b: (x, noisy(w, 2e-6), b)),
        ("weights-altered",),
    )
    yield (
        "last column x (1 + 1e-6)",
        changed(conv, after=lambda y: put(y, np.s_[..., -1], 1 + 1e-6)),
        ("one-place-wrong",),
    )
    yield (
        "first image x (1 + 1e-6)",
        changed(conv, after=lambda y: put(y, np.s_[0], 1 + 1e-6)),
        ("one-place-wrong",),
    )
    yield (
        "one channel x (1 + 4e-6)",
        changed(conv, after=lambda y: put(y, np.s_[:, 1], 1 + 4e-6)),
        ("channels-scaled", "one-place-wrong"),
    )
    yield "images swapped", changed(conv, after=lambda y: y[::-1]), ()
    yield "rows mirrored", changed(conv, after=lambda y: y[:, :, ::-1]), ()
    yield "channels reversed", changed(conv, lambda x, w, b: (x[:, ::-1], w, b)), ()
    yield "Winograd with a wrong constant", _winograd_wrong, ()


def _winograd_wrong(x: Array, w: Array, b: Array, **s: Any) -> Array:
    y = winograd(2, x, w, b, **s)
    if pair(s["stride"]) == (1, 1) and pair(s["dilation"]) == (1, 1):
        y = put(y, np.s_[:, :, 1::2], 1 + 1e-3)
    return y


def wrong_rectified() -> Iterator[Wrong]:
    op = "conv_bias_relu"
    yield Wrong(op, "no ReLU", conv, ("relu-missing", "activation-missing"))
    yield Wrong(op, "ReLU6", lambda *a, **s: np.clip(conv(*a, **s), 0, 6), ("other-activation",))
    yield Wrong(op, "leaky", lambda *a, **s: np.maximum(conv(*a, **s), 0.01 * conv(*a, **s)), ())

    def before(x: Array, w: Array, b: Array, **s: Any) -> Array:
        return np.maximum(conv(x, w, 0 * b, **s), 0) + b[:, None, None]

    yield Wrong(op, "ReLU before the bias", before)
    yield Wrong(op, "absolute value", lambda *a, **s: np.abs(conv(*a, **s)))
    flipped = changed(rectified(conv), lambda x, w, b: (x, w[:, :, ::-1, ::-1], b))
    yield Wrong(op, "kernel flipped", flipped, ("kernel-flipped",))
    small = changed(rectified(conv), after=lambda y: (y * (1 + 1e-6)).astype(f32))
    yield Wrong(op, "outputs x (1 + 1e-6)", small, ("outputs-scaled",))


def wrong_conv_backward() -> Iterator[Wrong]:
    op, right = "conv2d-backward", numpy_conv_backward

    def only(index: int, other: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arrays: Array, **s: Any) -> tuple[Array, ...]:
            return nth(right(*arrays, **s), index, lambda _: np.array(other(*arrays, **s)[index]))

        return run

    def with_weight(change: Callable[[Array], Array]) -> Callable[..., Any]:
        return only(0, lambda g, x, w, **s: right(g, x, np.ascontiguousarray(change(w)), **s))

    def out(index: int, change: Callable[[Array], Array]) -> Callable[..., Any]:
        return lambda *a, **s: nth(right(*a, **s), index, change)

    def first_image(g: Array, x: Array, w: Array, **s: Any) -> Any:
        return right(g[:1], x[:1], w, **s)

    def last_image(g: Array, x: Array, w: Array, **s: Any) -> Any:
        return right(g[-1:], x[-1:], w, **s)

    yield Wrong(
        op,
        "kernel not rotated",
        with_weight(lambda w: w[:, :, ::-1, ::-1]),
        ("gradient-kernel-not-rotated",),
    )
    yield Wrong(
        op, "kernel transposed", with_weight(lambda w: w.swapaxes(2, 3)), ("gradient-axes-swapped",)
    )
    yield Wrong(
        op, "grad_weight rotated", out(1, lambda g: g[:, :, ::-1, ::-1]), ("gradient-rotated",)
    )
    yield Wrong(
        op, "grad_weight transposed", out(1, lambda g: g.swapaxes(2, 3)), ("gradient-axes-swapped",)
    )
    yield Wrong(
        op,
        "grad_weight averaged",
        lambda g, *a, **s: nth(right(g, *a, **s), 1, lambda y: y / len(g)),
        ("gradient-averaged",),
    )
    yield Wrong(
        op,
        "grad_bias averaged over images",
        lambda g, *a, **s: nth(right(g, *a, **s), 2, lambda y: y / len(g)),
        ("gradient-averaged",),
    )
    yield Wrong(
        op,
        "grad_bias averaged over all",
        lambda g, *a, **s: nth(right(g, *a, **s), 2, lambda y: y / g[:, 0].size),
        ("gradient-averaged",),
    )
    yield Wrong(
        op, "grad_weight of the first image", only(1, first_image), ("gradient-of-one-image",)
    )
    yield Wrong(op, "grad_bias of the last image", only(2, last_image), ("gradient-of-one-image",))
    yield Wrong(op, "grad_bias 0", out(2, lambda g: 0 * g), ("gradient-times",))
    yield Wrong(op, "grad_weight twice", out(1, lambda g: 2 * g), ("gradient-times",))
    yield Wrong(op, "grad_x of the other sign", out(0, lambda g: -g), ("gradient-times",))
    yield Wrong(
        op,
        "grad_x one pixel off",
        out(0, lambda g: np.pad(g, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]),
        ("gradient-displaced",),
    )
    yield Wrong(
        op,
        "grad_x without its last row",
        out(0, lambda g: put(g, np.s_[:, :, -1], 0)),
        ("gradient-border-missing",),
    )
    yield Wrong(
        op,
        "grad_x x (1 + 1e-6)",
        out(0, lambda g: (g * (1 + 1e-6)).astype(f32)),
        ("outputs-scaled",),
    )
    yield Wrong(
        op,
        "grad_weight: one channel x (1 + 4e-6)",
        out(1, lambda g: put(g, 3, 1 + 4e-6)),
        ("one-place-wrong", "channels-scaled"),
    )
    yield Wrong(
        op, "groups reversed in grad_x", with_weight_groups(right), ("gradient-groups-permuted",)
    )
    yield Wrong(
        op,
        "weights in float16 in grad_x",
        with_weight(lambda w: w.astype(np.float16).astype(f32)),
        ("fewer-bits",),
    )
    yield Wrong(
        op, "dilation ignored in grad_weight", _undilated(right), ("gradient-dilation-ignored",)
    )
    relu = "conv_bias_relu-backward"
    backward = functools.partial(torch_conv_backward, torch.float32)
    yield Wrong(relu, "no mask", lambda g, x, w, b, **s: right(g, x, w, **s), ("relu-gradient",))
    yield Wrong(
        relu,
        "mask before the bias",
        lambda g, x, w, b, **s: backward(g, x, w, 0 * b, **s),
        ("relu-gradient",),
    )
    yield Wrong(
        relu,
        "gradient rectified",
        lambda g, x, w, b, **s: right(np.maximum(g, 0), x, w, **s),
        ("relu-gradient",),
    )
    yield Wrong(
        relu,
        "grad_bias without the mask",
        lambda g, x, w, b, **s: nth(
            [t.numpy() for t in backward(g, x, w, b, **s)], 2, lambda _: g.sum((0, 2, 3))
        ),
        ("relu-gradient",),
    )
    yield Wrong(relu, "leaky by 0.01", _leaky_backward)


def with_weight_groups(right: Callable[..., Any]) -> Callable[..., Any]:
    def run(g: Array, x: Array, w: Array, **s: Any) -> Any:
        turned = np.concatenate(np.split(w, s["groups"])[::-1])
        return nth(right(g, x, w, **s), 0, lambda _: right(g, x, turned, **s)[0])

    return run


def _undilated(right: Callable[..., Any]) -> Callable[..., Any]:
    def run(g: Array, x: Array, w: Array, **s: Any) -> Any:
        y = right(g, x, w, **s)
        d, p = s["dilation"], s["padding"]
        if d == 1 or p < d - 1:
            return y
        return nth(y, 1, lambda _: right(g, x, w, **{**s, "dilation": 1, "padding": p - d + 1})[1])

    return run


def _leaky_backward(g: Array, x: Array, w: Array, b: Array, **s: Any) -> list[Any]:
    leaves = [t.requires_grad_() for t in tensors(torch.float32, x, w, b)]
    F.leaky_relu(F.conv2d(*leaves, **s), 0.01).backward(torch.from_numpy(g))
    return [leaf.grad for leaf in leaves]
