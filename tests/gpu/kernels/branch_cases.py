"""Cases of branches.py: statistics, coefficients, both passes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.ops import REFERENCE
from tests.gpu.kernels.cases import Array, Case, Check, Data, fetch, kernels, real, stored, unit

EPS = 1e-5
DEPTH = 32  # additions in a row: rows of a thread, thread rows of a block, chunks; fewer here
# Vectors of 16 bytes in many chunks; single elements; several rows of a thread, and channel tiles
# of which the last is not full.
SHAPES = ((3, 19, 21, 16), (2, 9, 11, 10), (2, 13, 13, 280))
BRANCHES = ((True, True, True), (True, True, False), (True, False, False))


def moments(cupy: Any, dtype: Any, *, shape: tuple[int, ...], mean: float) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 1)
    arrays = [data.normal(shape, dtype, mean=mean, std=0.1 + k) for k in range(3)]
    got = fetch(gpu.channel_moments(arrays[0][0], arrays[1][0], arrays[2][0]))
    for k, (_, wide) in enumerate(arrays):
        exact_mean, exact_var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
        mean_bound, var_bound = _moment_bounds(wide, dtype)
        yield Check(f"mean of {k}", got[k, 0], exact_mean, mean_bound)
        yield Check(f"variance of {k}", got[k, 1], exact_var, var_bound)


def absent_moments(cupy: Any, dtype: Any) -> Iterator[Check]:
    gpu = kernels()

    y3, wide = Data(cupy, 2).normal(SHAPES[0], dtype)
    got = fetch(gpu.channel_moments(y3))
    yield Check("mean", got[0, 0], wide.mean((0, 1, 2)), _moment_bounds(wide, dtype)[0])
    yield Check("absent branches", got[1:], np.zeros(got[1:].shape), 0)


def forward(
    cupy: Any, dtype: Any, *, shape: tuple[int, ...], present: tuple[bool, ...], relu: bool
) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 3)
    pairs = [data.normal(shape, dtype) if there else (None, 0.0) for there in present]
    coefficients, a = data.normal((4, shape[-1]), real(dtype))
    y = gpu.branches_forward(pairs[0][0], pairs[1][0], pairs[2][0], coefficients, relu=relu)
    terms = [a[k] * pairs[k][1] for k in range(3)] + [np.broadcast_to(a[3], shape)]
    wanted = sum(terms)
    wanted = np.maximum(wanted, 0) if relu else wanted
    size = sum(np.abs(term) for term in terms)
    bound = 8 * unit(dtype) * size + stored(dtype, wanted) * 1.01  # four terms, then stored
    yield Check("y", fetch(y), wanted, bound)


def backward_sums(
    cupy: Any, dtype: Any, *, shape: tuple[int, ...], present: tuple[bool, ...], relu: bool
) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 4)
    (grad_y, g), (y, y_wide), inputs, moments = _backward_data(data, dtype, shape, present)
    g = g * (y_wide > 0) if relu else g
    sums = gpu.branches_backward_sums(
        grad_y, y if relu else None, *(array for array, _ in inputs), moments
    )
    means, got = fetch(moments)[:, 0].astype(np.float64), fetch(sums)
    terms = [g] + [g * (wide - means[k]) for k, (_, wide) in enumerate(inputs)]
    rough = [g] + [g * (np.abs(wide) + np.abs(means[k])) for k, (_, wide) in enumerate(inputs)]
    for k, (term, size) in enumerate(zip(terms, rough, strict=True)):
        there = k == 0 or present[k - 1]
        wanted = term.sum((0, 1, 2)) * there
        bound = 2 * DEPTH * unit(dtype) * np.abs(size).sum((0, 1, 2)) * there
        yield Check(f"sum {k}", got[k], wanted, bound)


def backward(
    cupy: Any, dtype: Any, *, shape: tuple[int, ...], present: tuple[bool, ...], relu: bool
) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 5)
    (grad_y, g), (y, y_wide), inputs, _ = _backward_data(data, dtype, shape, present)
    coefficients, c = data.normal((9, shape[-1]), real(dtype))
    g = g * (y_wide > 0) if relu else g
    arrays = [array for array, _ in inputs]
    grads = gpu.branches_backward(grad_y, y if relu else None, *arrays, coefficients)
    for k, (grad, (array, wide)) in enumerate(zip(grads, inputs, strict=True)):
        if array is None:
            assert grad is None
            continue
        p, q, r = c[3 * k : 3 * k + 3]
        size = np.abs(p * g) + np.abs(q * wide) + np.abs(r)
        wanted = p * g + q * wide + r
        bound = 6 * unit(dtype) * size + stored(dtype, wanted) * 1.01
        yield Check(f"grad {k}", fetch(grad), wanted, bound)


def block(cupy: Any, dtype: Any, *, present: tuple[bool, ...], mean: float) -> Iterator[Check]:
    """The whole chain against the reference's batch norm of each branch, summed."""
    gpu = kernels()

    data, shape = Data(cupy, 6), SHAPES[0]
    C, count = shape[-1], int(np.prod(shape[:-1]))
    pairs = [data.normal(shape, dtype, mean=mean) if there else (None, None) for there in present]
    vectors: list[list[tuple[Any, Any]]] = [
        [data.normal((C,), real(dtype), mean=1) if there else (None, None) for there in present]
        for _ in range(2)
    ]
    arrays = [array for array, _ in pairs]
    gammas, betas = ([vector for vector, _ in row] for row in vectors)
    moments = gpu.channel_moments(*arrays)
    folded = gpu.branch_coefficients(moments, gammas, betas, eps=EPS)
    y = gpu.branches_forward(*arrays, folded.forward, relu=True)
    exact: dict[int, Any] = {
        k: REFERENCE.batch_norm_train_forward(
            _nchw(pairs[k][1]), vectors[0][k][1], vectors[1][k][1], eps=EPS
        )
        for k in range(3)
        if present[k]
    }
    total = sum(_nhwc(out) for out, _ in exact.values())
    slack = _normalised_bound(pairs, vectors[0], dtype)
    wanted = np.maximum(total, 0)
    yield Check("y", fetch(y), wanted, slack + stored(dtype, wanted) * 1.01)

    grad_y, g = data.normal(shape, dtype)
    g = g * (fetch(y).astype(np.float64) > 0)
    sums = gpu.branches_backward_sums(grad_y, y, *arrays, moments)
    found = gpu.branch_grad_coefficients(sums, moments, folded.inv_std, gammas, count=count)
    grads = gpu.branches_backward(grad_y, y, *arrays, found.backward)
    for k, (_, cache) in exact.items():
        wanted_grads = REFERENCE.batch_norm_train_backward(_nchw(g), cache)
        bounds = _grad_bounds(pairs[k][1], g, _nhwc(cache.x_hat), vectors[0][k][1], dtype)
        wanted_x = _nhwc(wanted_grads.grad_x)
        bound = bounds[0] + stored(dtype, wanted_x) * 1.01
        yield Check(f"grad {k}", fetch(grads[k]), wanted_x, bound)
        got = fetch(found.grad_gamma)[k], fetch(found.grad_beta)
        yield Check(f"grad_gamma {k}", got[0], wanted_grads.grad_gamma, bounds[1])
        yield Check(f"grad_beta {k}", got[1], wanted_grads.grad_beta, bounds[2])


def coefficients(cupy: Any, dtype: Any) -> Iterator[Check]:
    gpu = kernels()

    data, C, u = Data(cupy, 7), 150, unit(dtype)
    moments, m = data.put(data.rng.uniform(0.1, 2, (3, 2, C)).astype(real(dtype)))
    gammas, betas = ([data.normal((C,), real(dtype)) for _ in range(3)] for _ in range(2))
    found = gpu.branch_coefficients(
        moments, [gammas[0][0], None, gammas[2][0]], [betas[0][0], None, betas[2][0]], eps=EPS
    )
    inv_std = (m[:, 1] + EPS) ** -0.5 * np.array([[1], [0], [1]])
    scale = inv_std * np.stack([gamma for _, gamma in gammas])
    terms = [betas[k][1] - scale[k] * m[k, 0] for k in (0, 2)]
    shift_size = sum(np.abs(betas[k][1]) + np.abs(scale[k] * m[k, 0]) for k in (0, 2))
    got = fetch(found.forward)
    yield Check("inv_std", fetch(found.inv_std), inv_std, 4 * u * inv_std)
    yield Check("scale", got[:3], scale, 6 * u * np.abs(scale))
    yield Check("shift", got[3], sum(terms), 12 * u * shift_size)


def grad_coefficients(cupy: Any, dtype: Any) -> Iterator[Check]:
    gpu = kernels()

    data, C, u, count = Data(cupy, 8), 150, unit(dtype), 77
    sums, s = data.normal((4, C), real(dtype), std=30)
    moments, m = data.normal((3, 2, C), real(dtype))
    inv_std, inverse = data.put(data.rng.uniform(0.5, 2, (3, C)).astype(real(dtype)))
    gammas = [data.normal((C,), real(dtype)) for _ in range(3)]
    found = gpu.branch_grad_coefficients(
        sums, moments, inv_std, [gammas[0][0], gammas[1][0], None], count=count
    )
    grad_gamma = inverse * s[1:] * np.array([[1], [1], [0]])
    p = inverse * np.stack([gammas[0][1], gammas[1][1], np.zeros(C)])
    q = -p * inverse * grad_gamma / count
    r = -p * s[0] / count - q * m[:, 0]
    wanted = np.stack([p, q, r], axis=1).reshape(9, C)
    size = np.stack([p, q, np.abs(p * s[0] / count) + np.abs(q * m[:, 0])], axis=1).reshape(9, C)
    yield Check("grad_gamma", fetch(found.grad_gamma), grad_gamma, 2 * u * np.abs(grad_gamma))
    yield Check("grad_beta", fetch(found.grad_beta), s[0], 0)
    yield Check("backward", fetch(found.backward), wanted, 12 * u * np.abs(size))


def _backward_data(
    data: Data, dtype: Any, shape: tuple[int, ...], present: tuple[bool, ...]
) -> tuple[Any, Any, list[tuple[Any, Array]], Any]:
    gpu = kernels()

    inputs: list[tuple[Any, Array]] = [
        data.normal(shape, dtype, mean=3.0) if there else (None, np.zeros(shape))
        for there in present
    ]
    grad_y, y = data.normal(shape, dtype), data.normal(shape, dtype)
    return grad_y, y, inputs, gpu.channel_moments(*(array for array, _ in inputs))


def _moment_bounds(wide: Array, dtype: Any) -> tuple[Array, Array]:
    """Bounds of Welford's mean and variance: relative n u kappa for the variance, kappa =
    sqrt(1 + mean^2 / var) (Chan, Golub & LeVeque 1983, table 1); its m dependent updates, each of
    four roundings, for the mean."""
    u, largest = unit(dtype), np.abs(wide).max((0, 1, 2))
    mean_bound = 4 * DEPTH * u * largest
    var, mean = wide.var((0, 1, 2)), wide.mean((0, 1, 2))
    kappa_var = np.sqrt(var * (var + mean**2))
    return mean_bound, 4 * DEPTH * u * kappa_var + mean_bound**2


def _normalised_bound(
    pairs: list[tuple[Any, Array]], gammas: list[tuple[Any, Array]], dtype: Any
) -> Array:
    """How far a sum of a_k y_k + b may be off through its statistics and its four terms."""
    total: Any = 0.0
    for (_, wide), (_, gamma) in zip(pairs, gammas, strict=True):
        if wide is not None:
            total = total + np.abs(gamma) * (_x_hat_bound(wide, dtype) + 8 * unit(dtype))
    return total


def _x_hat_bound(wide: Array, dtype: Any) -> Array:
    """How far (y - mean) / std may be off where it is computed as y / std - mean / std."""
    mean_bound, _ = _moment_bounds(wide, dtype)
    mean, std = wide.mean((0, 1, 2)), np.sqrt(wide.var((0, 1, 2)) + EPS)
    rounding = 8 * unit(dtype) * (np.abs(wide) + np.abs(mean))
    in_scale = _scale_bound(wide, dtype) * np.abs(wide - mean)
    return (mean_bound + rounding + in_scale) / std


def _scale_bound(wide: Array, dtype: Any) -> Array:
    """Relative error of 1 / std."""
    return _moment_bounds(wide, dtype)[1] / (wide.var((0, 1, 2)) + EPS) + 4 * unit(dtype)


def _grad_bounds(
    wide: Array, g: Array, x_hat: Array, gamma: Array, dtype: Any
) -> tuple[Array, Array, Array]:
    """Bounds of grad_x, grad_gamma and grad_beta: each factor of section 3's equation, off by its
    own bound, the others as they are."""
    pixels, sums = (0, 1, 2), 4 * DEPTH * unit(dtype)
    of_x_hat = _x_hat_bound(wide, dtype)
    abs_g, product = np.abs(g), np.abs(g * x_hat).mean(pixels)
    of_product = (abs_g * of_x_hat).mean(pixels) + sums * product
    size = abs_g + abs_g.mean(pixels) + np.abs(x_hat) * product
    error = _scale_bound(wide, dtype) * size + sums * abs_g.mean(pixels)
    error = error + of_x_hat * product + np.abs(x_hat) * of_product
    scale = np.abs(gamma) / np.sqrt(wide.var(pixels) + EPS)
    count = g[..., 0].size
    return scale * error * 2, count * of_product, sums * abs_g.sum(pixels)


def _nchw(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2)


def _nhwc(x: Array) -> Array:
    return x.transpose(0, 2, 3, 1)


CASES: dict[str, Case] = {
    "absent moments": absent_moments,
    "coefficients": coefficients,
    "grad coefficients": grad_coefficients,
}
for _shape in SHAPES:
    CASES |= {
        f"moments of {_shape} around {_mean}": partial(moments, shape=_shape, mean=_mean)
        for _mean in (0.0, 1000.0)
    }
    for _case in (forward, backward_sums, backward):
        CASES[f"{_case.__name__} {_shape}"] = partial(
            _case, shape=_shape, present=BRANCHES[0], relu=True
        )
for _present in BRANCHES:
    CASES |= {
        f"{_case.__name__} of {sum(_present)} without ReLU": partial(
            _case, shape=SHAPES[0], present=_present, relu=False
        )
        for _case in (forward, backward_sums, backward)
    }
    CASES |= {
        f"block of {sum(_present)} around {_mean}": partial(block, present=_present, mean=_mean)
        for _mean in (0.5, 30.0)
    }
