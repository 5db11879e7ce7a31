"""Operators as they are wrongly computed: right ones with one thing changed, in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from repvgg_ref.arrays import Array
from tests.peers.right_operators import (
    columns,
    fused_block,
    im2col,
    linear_loops,
    numpy_conv_backward,
    numpy_norm,
    numpy_norm_backward,
    pair,
    rectified,
    tensors,
    torch_block,
    torch_block_backward,
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
    return np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits).astype(f32)


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


def wrong_operators() -> Iterator[Wrong]:
    """Every wrong port."""
    for name, port, bugs in wrong_convolutions():
        yield Wrong("conv2d", name, port, bugs)
    yield from _wrong_rectified()
    yield from _wrong_conv_backward()
    yield from _wrong_linear()
    yield from _wrong_norms()
    yield from _wrong_norm_backward()
    yield from _wrong_blocks()


def _wrong_rectified() -> Iterator[Wrong]:
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


def _wrong_conv_backward() -> Iterator[Wrong]:
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


def _wrong_linear() -> Iterator[Wrong]:
    op = "linear"
    yield Wrong(op, "bias left out", lambda x, w, b: linear_loops(x, w, 0 * b))
    yield Wrong(op, "last feature lost", lambda x, w, b: linear_loops(x[:, :-1], w[:, :-1], b))
    yield Wrong(
        op,
        "outputs x (1 + 1e-6)",
        lambda x, w, b: linear_loops(x, w, b) * f32(1 + 1e-6),
        ("outputs-scaled",),
    )
    yield Wrong(op, "bias added by row", lambda x, w, b: x @ w.T + np.resize(b, len(x))[:, None])
    yield Wrong(op, "weights in bfloat16", lambda x, w, b: x @ kept(w, 8).T + b, ("weights-bf16",))
    back = "linear-backward"
    yield Wrong(
        back,
        "grad_weight averaged",
        lambda g, x, w: (g @ w, g.T @ x / len(x), g.sum(0)),
        ("gradient-averaged",),
    )
    yield Wrong(
        back,
        "grad_bias averaged",
        lambda g, x, w: (g @ w, g.T @ x, g.mean(0)),
        ("gradient-averaged",),
    )
    yield Wrong(
        back, "grad_x twice", lambda g, x, w: (2 * (g @ w), g.T @ x, g.sum(0)), ("gradient-times",)
    )
    yield Wrong(back, "last image lost", lambda g, x, w: (g @ w, g[:-1].T @ x[:-1], g.sum(0)))


def _wrong_norms() -> Iterator[Wrong]:
    op, right = "batch_norm", functools.partial(numpy_norm, "two passes")
    yield Wrong(
        op,
        "eps 1e-3",
        changed(right, eps=lambda e: 1e-3 if e == 1e-5 else 1e-5),
        ("eps-value", "batch-eps-value"),
    )
    yield Wrong(
        op,
        "eps left out",
        changed(right, eps=lambda e: 0.0),
        ("eps-dropped", "eps-value", "batch-eps-value"),
    )
    yield Wrong(
        op, "eps outside the root", _outside, ("eps-outside-root", "batch-eps-outside-root")
    )
    yield Wrong(
        op,
        "variance for deviation",
        _variance_for_deviation,
        ("var-used-as-std", "variance-used-as-deviation"),
    )
    yield Wrong(op, "unbiased variance", _unbiased, ("variance-unbiased",))
    yield Wrong(
        op,
        "momentum reversed",
        changed(right, momentum=lambda m: 1 - m),
        ("running-average-reversed",),
    )
    yield Wrong(
        op,
        "running variance biased",
        _running(
            2,
            lambda new, old, m, n: old + (new - old - m * 0) - m * ((new - (1 - m) * old) / m) / n,
        ),
        ("running-variance-biased",),
    )
    yield Wrong(
        op,
        "running statistics unchanged",
        _running(1, lambda new, old, m, n: old),
        ("running-average-unchanged",),
    )
    yield Wrong(
        op,
        "running mean replaced",
        _running(1, lambda new, old, m, n: (new - (1 - m) * old) / m),
        ("running-average-is-the-batch",),
    )
    yield Wrong(
        op,
        "running mean unbiased",
        _running(1, lambda new, old, m, n: new + (new - (1 - m) * old) / (n - 1)),
        ("running-mean-unbiased",),
    )
    yield Wrong(
        op,
        "beta left out",
        changed(right, lambda x, g, b, m, v: (x, g, 0 * b, m, v)),
        ("beta-ignored", "affine-ignored"),
    )
    yield Wrong(
        op,
        "gamma left out",
        changed(right, lambda x, g, b, m, v: (x, 0 * g + 1, b, m, v)),
        ("gamma-ignored", "affine-ignored"),
    )
    yield Wrong(
        op,
        "batch statistics in evaluation",
        _always_training,
        ("train-mode-batch-norm", "statistics-of-the-other-mode"),
    )
    yield Wrong(op, "instance norm", _instance, ("statistics-of-each-image",))
    yield Wrong(
        op,
        "outputs x (1 + 1e-5)",
        changed(
            right,
            after=lambda y: (
                nth(y, 0, lambda a: a * f32(1 + 1e-5))
                if isinstance(y, tuple)
                else y * f32(1 + 1e-5)
            ),
        ),
    )


def _outside(x: Array, g: Array, b: Array, m: Array, v: Array, **s: Any) -> Any:
    y = numpy_norm("two passes", x, g, b, m, v, **s)
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3))) if s["training"] else (m, v)
    on = np.s_[:, None, None]
    wrong = (x - mean[on]) / (np.sqrt(var) + f32(s["eps"]))[on] * g[on] + b[on]
    return (wrong, *y[1:]) if s["training"] else wrong


def _variance_for_deviation(x: Array, g: Array, b: Array, m: Array, v: Array, **s: Any) -> Any:
    y = numpy_norm("two passes", x, g, b, m, v, **s)
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3))) if s["training"] else (m, v)
    on = np.s_[:, None, None]
    wrong = (x - mean[on]) / (var + f32(s["eps"]))[on] * g[on] + b[on]
    return (wrong, *y[1:]) if s["training"] else wrong


def _unbiased(x: Array, g: Array, b: Array, m: Array, v: Array, **s: Any) -> Any:
    y = numpy_norm("two passes", x, g, b, m, v, **s)
    if not s["training"]:
        return y
    on = np.s_[:, None, None]
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    return ((x - mean[on]) / np.sqrt(var + f32(s["eps"]))[on] * g[on] + b[on], *y[1:])


def _running(index: int, change: Callable[..., Array]) -> Callable[..., Any]:
    """Training mode with one running average changed: of new, old, momentum and n."""

    def run(x: Array, g: Array, b: Array, m: Array, v: Array, **s: Any) -> Any:
        y = numpy_norm("two passes", x, g, b, m, v, **s)
        if not s["training"]:
            return y
        old, n = (m, v)[index - 1], x[:, 0].size
        return nth(y, index, lambda new: change(new, old, s["momentum"], n).astype(f32))

    return run


def _always_training(x: Array, g: Array, b: Array, m: Array, v: Array, **s: Any) -> Any:
    y = numpy_norm("two passes", x, g, b, m, v, **{**s, "training": True})
    return y if s["training"] else y[0]


def _instance(x: Array, g: Array, b: Array, m: Array, v: Array, **s: Any) -> Any:
    if not s["training"]:
        return numpy_norm("two passes", x, g, b, m, v, **s)
    whole = numpy_norm("two passes", x, g, b, m, v, **s)
    parts = [numpy_norm("two passes", x[i : i + 1], g, b, m, v, **s)[0] for i in range(len(x))]
    return (np.concatenate(parts), *whole[1:])


def _wrong_norm_backward() -> Iterator[Wrong]:
    op, right = "batch_norm-backward", numpy_norm_backward
    on = np.s_[:, None, None]

    def frozen(g: Array, x: Array, ga: Array, m: Array, v: Array, **s: Any) -> Any:
        y = right(g, x, ga, m, v, **s)
        var = x.var((0, 2, 3)) if s["training"] else v
        return nth(y, 0, lambda _: g * (ga / np.sqrt(var + f32(s["eps"])))[on])

    def lost(term: int) -> Callable[..., Any]:
        def run(g: Array, x: Array, ga: Array, m: Array, v: Array, **s: Any) -> Any:
            y = right(g, x, ga, m, v, **s)
            if not s["training"]:
                return y
            mean, inv = x.mean((0, 2, 3)), 1 / np.sqrt(x.var((0, 2, 3)) + f32(s["eps"]))
            n = x[:, 0].size
            parts = (y[2][on] * np.ones_like(x), ((x - mean[on]) * inv[on]) * y[1][on])
            return nth(y, 0, lambda a: a + (ga * inv / n)[on] * parts[term])

        return run

    yield Wrong(op, "statistics constant", frozen, ("statistics-constant",))
    yield Wrong(op, "mean's part missing", lost(0), ("through-mean-missing",))
    yield Wrong(op, "variance's part missing", lost(1), ("through-variance-missing",))
    no_gamma = lambda g, x, ga, m, v, **s: nth(  # noqa: E731
        right(g, x, ga, m, v, **s), 0, lambda _: right(g, x, 0 * ga + 1, m, v, **s)[0]
    )
    yield Wrong(op, "gamma missing in grad_x", no_gamma, ("gradient-without-gamma",))
    yield Wrong(
        op,
        "grad_beta averaged",
        lambda g, *a, **s: nth(right(g, *a, **s), 2, lambda y: y / f32(g[:, 0].size)),
        ("gradient-averaged",),
    )
    yield Wrong(
        op,
        "grad_gamma twice",
        lambda *a, **s: nth(right(*a, **s), 1, lambda y: 2 * y),
        ("gradient-times",),
    )
    yield Wrong(
        op,
        "grad_gamma not centred",
        lambda g, x, ga, m, v, **s: nth(
            right(g, x, ga, m, v, **s),
            1,
            lambda _: (
                (g * x).sum((0, 2, 3))
                / np.sqrt((x.var((0, 2, 3)) if s["training"] else v) + f32(s["eps"]))
            ),
        ),
        ("gradient-of-gamma",),
    )
    yield Wrong(
        op,
        "eps 1e-3",
        changed(right, eps=lambda e: 1e-3 if e == 1e-5 else 1e-5),
        ("batch-eps-value",),
    )


def _wrong_blocks() -> Iterator[Wrong]:
    op, right = "repvgg_block", functools.partial(fused_block, conv)

    def but(**changes: Callable[[Array], Array]) -> Callable[..., Any]:
        def run(x: Array, params: dict[str, Array], **s: Any) -> Any:
            wrong = dict(params)
            for key in params:
                for end, change in changes.items():
                    if key.endswith(end.replace("__", ".")):
                        wrong[key] = change(params[key])
            return right(x, wrong, **s)

        return run

    yield Wrong(
        op,
        "identity missing",
        but(rbr_identity__weight=lambda a: 0 * a, rbr_identity__bias=lambda a: 0 * a),
        ("identity-missing",),
    )
    yield Wrong(
        op,
        "1x1 missing",
        but(rbr_1x1__bn__weight=lambda a: 0 * a, rbr_1x1__bn__bias=lambda a: 0 * a),
        (
            "branch-1x1-missing",
            "branch-missing",
            "1x1-missing",
        ),
    )
    yield Wrong(op, "eps 1e-3", changed(right, eps=lambda e: 1e-3), ("eps-value",))
    yield Wrong(op, "running mean ignored", but(running_mean=lambda a: 0 * a), ("mean-ignored",))
    yield Wrong(op, "1x1 with noise 1e-4", but(rbr_1x1__conv__weight=lambda a: noisy(a, 1e-4)))
    back = "repvgg_block-backward"

    def constant(g: Array, x: Array, params: dict[str, Array], **s: Any) -> Any:
        y = torch_block_backward(g, x, params, **s)
        return {**y, "grad_x": y["grad_x"] * 1.001}

    yield Wrong(back, "grad_x x 1.001", constant)
    yield Wrong(
        back, "a branch sends nothing back", _no_identity_back, ("branch-gradient-missing",)
    )
    yield Wrong(back, "no mask", _unmasked, ("relu-gradient",))


def _no_identity_back(g: Array, x: Array, params: dict[str, Array], **s: Any) -> Any:
    p = {n: tensors(torch.float32, a)[0] for n, a in params.items()}
    trained = {n: a.requires_grad_() for n, a in p.items() if "running" not in n}
    image = tensors(torch.float32, x)[0].requires_grad_()
    y = _block_detached(image, p, **s)
    y.backward(torch.from_numpy(g))
    return {"grad_x": image.grad, **{f"grad_{n}": a.grad for n, a in trained.items()}}


def _block_detached(x: torch.Tensor, p: dict[str, torch.Tensor], **s: Any) -> torch.Tensor:
    """The block whose 1x1 branch reads a copy of x."""

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        return F.batch_norm(
            z, None, None, p[f"{name}.weight"], p[f"{name}.bias"], True, 0.1, s["eps"]
        )

    dense = F.conv2d(x, p["rbr_dense.conv.weight"], None, s["stride"], 1, 1, s["groups"])
    point = F.conv2d(x.detach(), p["rbr_1x1.conv.weight"], None, s["stride"], 0, 1, s["groups"])
    y = norm(dense, "rbr_dense.bn") + norm(point, "rbr_1x1.bn")
    return torch.relu(y + norm(x, "rbr_identity") if "rbr_identity.weight" in p else y)


def _unmasked(g: Array, x: Array, params: dict[str, Array], **s: Any) -> Any:
    """The mask comes from the gradient of a sum that was shifted to be positive."""
    p = {n: tensors(torch.float32, a)[0] for n, a in params.items()}
    trained = {n: a.requires_grad_() for n, a in p.items() if "running" not in n}
    image = tensors(torch.float32, x)[0].requires_grad_()
    with torch.no_grad():
        p["rbr_dense.bn.bias"] += 100
    torch_block(image, p, True, **s).backward(torch.from_numpy(g))
    return {"grad_x": image.grad, **{f"grad_{n}": a.grad for n, a in trained.items()}}
