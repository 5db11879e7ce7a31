"""Right ports in every arithmetic in use: a fused network layer by layer, roundings emulated.

`run` gives the layer outputs of a port; `ARITHMETICS` maps a name to how it convolves. Emulations
round where the real thing does, at the precision of the format; sums of a block are NumPy's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.exact.cook_toom import cook_toom
from repvgg_ref.oracle.bugs.base import round_to_bits
from repvgg_ref.oracle.programs.activation import gate
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs

F = np.float32
Dot = Callable[[Array, Array], Array]
Rounding = Callable[[Array], Array]
Convolved = tuple[Array, Array]  # sums of products (N, O, H, W), and what is to be added
Convolve = Callable[[BlockProgram, Array, Array, Array], Convolved]
ROOT = 2**0.5


def both(*numbers: float) -> tuple[float, ...]:
    return tuple(s * n for n in numbers for s in (1, -1))


INF = float("inf")
POINTS: dict[str, tuple[Any, ...]] = {
    "F2": (0, *both(1), INF),
    "F3": (0, *both(1), 2, INF),
    "F4": (0, *both(1, 2), INF),
    "F4-root": (0, *both(ROOT / 2, ROOT), INF),
    "F4-half": (0, *both(1, 0.5), INF),
    "F4-5/8": (0, *both(5 / 8, 3 / 2), INF),
    "F5": (0, *both(5 / 8, 5 / 4, 3)),
    "F6": (0, *both(1, 2, 1 / 2), INF),
    "F6-7/4": (0, *both(1 / 2, 1, 7 / 4), INF),
    "F7": (0, *both(1 / 2, 7 / 8, 3 / 2, 4)),
    "F8": (0, *both(1, 2, 1 / 2, 3 / 2), INF),
}


def toward(x: Array, how: str) -> Array:
    """float64 -> float32 values, rounded toward zero or up."""
    near = np.asarray(x, np.float64).astype(F).astype(np.float64)
    if how == "zero":
        wrong = np.abs(near) > np.abs(x)
        return np.where(wrong, np.nextafter(near.astype(F), F(0)).astype(np.float64), near)
    wrong = near < x
    return np.where(wrong, np.nextafter(near.astype(F), F(np.inf)).astype(np.float64), near)


def columns_of(program: BlockProgram, x: Array) -> tuple[Array, tuple[int, ...]]:
    """(G, K, N * P) patches, and the output's size."""
    size = program.output_size(*x.shape[2:])
    rows, across = np.divmod(np.arange(size[0] * size[1]), size[1])
    taps = program.gather(x, rows, across)
    n, p = taps.shape[:2]
    return np.ascontiguousarray(taps.reshape(n * p, program.groups, -1).transpose(1, 2, 0)), size


def shaped(y: Array, images: int, size: tuple[int, ...]) -> Array:
    return y.reshape(y.shape[0], images, *size).transpose(1, 0, 2, 3)


def dotted(dot: Dot) -> Convolve:
    """A convolution by ``dot(w (O/G, K), x (K, P)) -> (O/G, P)`` of the fused, rounded kernel."""

    def convolve(program: BlockProgram, x: Array, weight: Array, bias: Array) -> Convolved:
        columns, size = columns_of(program, x)
        w = weight.reshape(program.groups, -1, columns.shape[1])
        y = np.concatenate([dot(a, b) for a, b in zip(w, columns, strict=True)])
        return shaped(y, len(x), size), bias[:, None, None]

    return convolve


def blocked(w: Array, x: Array) -> Array:
    return (w.astype(F) @ x.astype(F)).astype(float)


def split(w: Array, x: Array, parts: int = 7) -> Array:
    edges = np.linspace(0, w.shape[1], parts + 1).astype(int)
    total: Any = np.zeros((len(w), x.shape[1]), F)
    for a, b in itertools.pairwise(edges):
        total = total + w[:, a:b].astype(F) @ np.ascontiguousarray(x[a:b]).astype(F)
    return np.asarray(total, float)


def chain(w: Array, x: Array) -> Array:
    total = np.zeros((len(w), x.shape[1]), F)
    w, x = w.astype(F), x.astype(F)
    for k in range(w.shape[1]):
        total += w[:, k, None] * x[k]
    return total.astype(float)


def fma(w: Array, x: Array) -> Array:
    total = np.zeros((len(w), x.shape[1]), F)
    for k in range(w.shape[1]):
        total = (total + w[:, k, None] * x[k]).astype(F)
    return total.astype(float)


def exact(w: Array, x: Array) -> Array:
    return w @ x


def chopped(w: Array, x: Array, step: int = 1) -> Array:
    total = np.zeros((len(w), x.shape[1]))
    for k in range(0, w.shape[1], step):
        total = toward(total + w[:, k : k + step] @ x[k : k + step], "zero")
    return total


def directed(w: Array, x: Array, how: str, backward: bool = False) -> Array:
    """Every partial sum rounded up or down, in either order."""
    total = np.zeros((len(w), x.shape[1]))
    sign = 1 if how == "up" else -1
    for k in range(w.shape[1])[:: -1 if backward else 1]:
        total = sign * toward(sign * (total + w[:, k, None] * x[k]), "up")
    return total


def half_sums(w: Array, x: Array) -> Array:
    total = np.zeros((len(w), x.shape[1]), np.float16)
    for k in range(w.shape[1]):
        total += (w[:, k, None] * x[k]).astype(np.float16)
    return total.astype(float)


def parts3(v: Array, bits: int) -> tuple[Array, Array, Array]:
    a = round_to_bits(v, bits)
    b = round_to_bits(v - a, bits)
    return a, b, round_to_bits(v - a - b, bits)


def bf16x3(w: Array, x: Array) -> Array:
    (a, b, c), (d, e, f) = parts3(w, 8), parts3(x, 8)
    pairs = ((c, d), (a, f), (b, e), (b, d), (a, e), (a, d))  # the smallest products first
    return np.asarray(sum(blocked(p, q) for p, q in pairs))


def tf32x3(w: Array, x: Array) -> Array:
    a, b, _ = parts3(w, 11)
    d, e, _ = parts3(x, 11)
    return (blocked(b, d) + blocked(a, e) + blocked(a, d)).astype(F).astype(float)


def strassen(w: Array, x: Array) -> Array:
    if w.shape[0] % 2 or w.shape[1] % 2 or x.shape[1] % 2:
        return blocked(w, x)
    w, x = w.astype(F), x.astype(F)
    i, k, j = w.shape[0] // 2, w.shape[1] // 2, x.shape[1] // 2
    a, b, c, d = w[:i, :k], w[:i, k:], w[i:, :k], w[i:, k:]
    e, f, g, h = x[:k, :j], x[:k, j:], x[k:, :j], x[k:, j:]
    m1, m2, m3, m4 = (a + d) @ (e + h), (c + d) @ e, a @ (f - h), d @ (g - e)
    m5, m6, m7 = (a + b) @ h, (c - a) @ (e + f), (b - d) @ (g + h)
    return np.block([[m1 + m4 - m5 + m7, m3 + m5], [m2 + m4, m1 - m2 + m3 + m6]]).astype(float)


def winograd(program: BlockProgram, x: Array, weight: Array, bias: Array, points: str) -> Convolved:
    """F(m x m, 3 x 3) in float32, transforms too; direct where it does not apply."""
    if program.stride != 1 or program.size != (3, 3) or program.dilation != 1:
        return dotted(blocked)(program, x, weight, bias)
    a, b, g = (np.array(rows, dtype=float).astype(F) for rows in cook_toom(POINTS[points]))
    tile, m = a.shape
    n, c, height, width = x.shape
    rows, across = -(-height // m), -(-width // m)
    d = np.zeros((n, c, rows * m + 2, across * m + 2), F)
    d[:, :, 1 : height + 1, 1 : width + 1] = x
    windows = np.lib.stride_tricks.sliding_window_view(d, (tile, tile), axis=(2, 3))[:, :, ::m, ::m]
    v = b.T @ np.ascontiguousarray(windows) @ b  # (N, C, rows, across, tile, tile)
    u = g @ weight.astype(F) @ g.T
    gs = program.groups
    u = u.reshape(gs, len(weight) // gs, -1, tile, tile).transpose(3, 4, 0, 1, 2)
    v = v.reshape(n, gs, c // gs, rows, across, tile, tile).transpose(5, 6, 1, 2, 0, 3, 4)
    v = v.reshape(tile, tile, gs, c // gs, -1)
    z = np.ascontiguousarray(u) @ np.ascontiguousarray(v)  # (t, t, G, O/G, T)
    y = a.T @ np.ascontiguousarray(z.transpose(2, 3, 4, 0, 1)) @ a
    y = y.reshape(len(weight), n, rows, across, m, m).transpose(1, 0, 2, 4, 3, 5)
    y = y.reshape(n, len(weight), rows * m, across * m)[:, :, :height, :width]
    return y.astype(float), bias[:, None, None]


def fft(program: BlockProgram, x: Array, weight: Array, bias: Array) -> Convolved:
    import scipy.fft

    if program.stride != 1 or program.dilation != 1:
        return dotted(blocked)(program, x, weight, bias)
    n, c, height, width = x.shape
    shape = (height + 2, width + 2)
    fx = scipy.fft.rfft2(x.astype(F), shape, axes=(2, 3))
    kh, kw = weight.shape[2:]
    fw = scipy.fft.rfft2(weight[:, :, ::-1, ::-1].astype(F), shape, axes=(2, 3))
    g = program.groups
    fx = fx.reshape(n, g, c // g, *fx.shape[2:])
    fw = fw.reshape(g, -1, c // g, *fw.shape[2:])
    fy = np.einsum("ngchw,gochw->ngohw", fx, fw).reshape(n, len(weight), *fx.shape[3:])
    y = scipy.fft.irfft2(fy, shape, axes=(2, 3))[:, :, kh // 2 : kh // 2 + height]
    return y[..., kw // 2 : kw // 2 + width].astype(float), bias[:, None, None]


def single(x: Array) -> Array:
    return np.asarray(x, F).astype(float)


def half(x: Array) -> Array:
    return np.asarray(x, np.float16).astype(float)


bf16: Rounding = partial(round_to_bits, bits=8)
tf32: Rounding = partial(round_to_bits, bits=11)
tf32_cut: Rounding = partial(round_to_bits, bits=11, truncate=True)


STORED: dict[str, Rounding] = {"fp16": half, "fp16-acc16": half, "bf16": bf16}
READ: dict[str, Rounding] = {"tf32": tf32, "tf32-cut": tf32_cut, "fp16": half, "bf16": bf16}


def apart(program: BlockProgram, x: Array) -> Array:
    """Branches and batch norms each in float32."""
    total: Any = 0
    for name, branch in program.branches.items():
        alone = replace(program, branches={name: branch}, activation="none", se=None)
        one = (
            replace(
                alone,
                branches={
                    name: branch._replace(
                        gamma=None, beta=None, running_mean=None, running_var=None
                    )
                },
            )
            if branch.has_norm
            else alone
        )
        y, _ = dotted(blocked)(program, x, one.widened(single(branch.weight)), np.zeros(1))
        y = y.astype(F)
        if branch.has_norm:
            scale = branch.gamma.astype(F) / np.sqrt((branch.running_var + program.eps).astype(F))
            y = (y - branch.running_mean.astype(F)[:, None, None]) * scale[:, None, None]
            y = y + branch.beta.astype(F)[:, None, None]
        total = total + y
    return np.asarray(total, F).astype(float)


def fused_single(program: BlockProgram, order: int) -> tuple[Array, Array]:
    """Kernel and bias fused in float32, in one of two orders."""
    weight: Any = F(0)
    bias: Any = F(0)
    for branch in program.branches.values():
        w = branch.weight.astype(F)
        std = np.sqrt((branch.running_var + program.eps).astype(F))
        gamma = branch.gamma.astype(F)
        if order:
            k = (w * gamma[:, None, None, None]) / std[:, None, None, None]
        else:
            k = w * (gamma / std)[:, None, None, None]
        weight = weight + program.widened(k).astype(F)
        bias = bias + (branch.beta.astype(F) - branch.running_mean.astype(F) * gamma / std)
    return weight.astype(float), bias.astype(float)


def layer(program: BlockProgram, x: Array, name: str) -> Array:
    """One right layer in arithmetic `name`."""
    store = STORED.get(name, single)
    read = READ.get(name, single)
    seen = x
    if name == "apart" and program.branches:
        z = apart(program, x)
    else:
        weight, bias = program.fused_kernel()
        if name.startswith("fused-") and program.branches:
            weight, bias = fused_single(program, int(name[-1]))
        weight, bias = read(weight), single(bias)
        if name in ("weights-zero", "both-zero"):
            weight = toward(program.fused_kernel()[0], "zero")
        if name == "both-up":
            weight = toward(program.fused_kernel()[0], "up")
        seen = read(x)
        dots: dict[str, Dot] = {
            "split": split,
            "chain": chain,
            "fma": fma,
            "exact": exact,
            "outputs-zero": exact,
            "weights-zero": exact,
            "both-zero": exact,
            "both-up": exact,
            "chop-1": chopped,
            "chop-4": partial(chopped, step=4),
            "sums-up": partial(directed, how="up"),
            "sums-up-backward": partial(directed, how="up", backward=True),
            "sums-down": partial(directed, how="down"),
            "sums-down-backward": partial(directed, how="down", backward=True),
            "fp16-acc16": half_sums,
            "bf16x3": bf16x3,
            "3xtf32": tf32x3,
            "strassen": strassen,
        }
        if name in POINTS:
            y, b = winograd(program, seen, weight, bias, name)
        elif name == "fft":
            y, b = fft(program, seen, weight, bias)
        else:
            y, b = dotted(dots.get(name, blocked))(program, seen, weight, bias)
        z = y + b
        if name in ("outputs-zero", "both-zero"):
            z = toward(z, "zero")
        elif name == "both-up":
            z = toward(z, "up")
        elif name == "flushed":
            z = np.where(np.abs(single(z)) < 2.0**-126, 0, single(z))
        else:
            z = store(single(z)) if name != "exact" else single(z)
    for step in program.activation.split("-"):
        if step == "relu":
            z = np.maximum(z, 0)
        elif step == "se" and program.se is not None:
            g = store(gate(program.se, z, (2, 3), "sigmoid"))
            z = store(z * g[..., None])
    return z


ARITHMETICS = (
    "blocked",
    "split",
    "chain",
    "fma",
    "exact",
    "apart",
    "fused-0",
    "fused-1",
    "outputs-zero",
    "weights-zero",
    "both-zero",
    "both-up",
    "chop-1",
    "chop-4",
    "bf16x3",
    "3xtf32",
    "strassen",
    "fft",
    "flushed",
    *POINTS,
    "tf32",
    "tf32-cut",
    "fp16",
    "bf16",
    "fp16-acc16",
)

Fault = Callable[[BlockProgram, Array, Array], Array]


def run(
    programs: Programs, x: Array, name: str, faults: dict[str, Fault] | None = None
) -> dict[str, Array]:
    """Layer outputs of a port; `faults`: layer -> ``(program, input, right output) -> output``."""
    outputs: dict[str, Array] = {}
    x = single(x)
    for at, program in programs.items():
        if at == "linear":
            pooled = single(x.mean(axis=(2, 3)))
            y = single(single(pooled @ program.weight.T) + program.bias)
        else:
            y = layer(program, x, name)
        if faults and at in faults:
            y = single(faults[at](program, x, y))
        outputs[at] = y
        x = y
    return outputs
