"""Operators as they are wrongly computed: right ones with one thing changed, in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from repvgg_ref.arrays import Array
from tests.peers.right_convolutions import tensors
from tests.peers.right_operators import (
    fused_block,
    linear_loops,
    numpy_norm,
    numpy_norm_backward,
    torch_block,
    torch_block_backward,
)
from tests.peers.wrong_convolutions import (
    Wrong,
    changed,
    conv,
    f32,
    kept,
    noisy,
    nth,
    wrong_conv_backward,
    wrong_convolutions,
    wrong_rectified,
)


def wrong_operators() -> Iterator[Wrong]:
    """Every wrong port."""
    for name, port, bugs in wrong_convolutions():
        yield Wrong("conv2d", name, port, bugs)
    yield from wrong_rectified()
    yield from wrong_conv_backward()
    yield from _wrong_linear()
    yield from _wrong_norms()
    yield from _wrong_norm_backward()
    yield from _wrong_blocks()


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
