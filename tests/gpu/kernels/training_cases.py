"""Cases of the loss and of the optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.ops import REFERENCE
from repvgg_ref.train.sgd import Factors, sgd_step
from tests.gpu.kernels.cases import Case, Check, Data, fetch, kernels, real, stored, unit

EXP = 8  # units: exp and log are good to 2, their arguments lose a few more


def cross_entropy(
    cupy: Any, dtype: Any, *, classes: int, soft: bool, smoothing: float
) -> Iterator[Check]:
    gpu = kernels()

    data, N = Data(cupy, 31), 3
    logits, wide = data.normal((N, classes), dtype, std=4)
    if soft:
        drawn = 1.25 * data.rng.dirichlet(np.ones(classes), N)  # targets need not add up to 1
        labels, targets = data.put(drawn.astype(real(dtype)))
    else:
        labels, _ = data.put(data.rng.integers(0, classes, N))
        targets = fetch(labels)
    found = gpu.softmax_cross_entropy_forward(logits, labels, label_smoothing=smoothing)
    loss, cache = REFERENCE.softmax_cross_entropy_forward(wide, targets, label_smoothing=smoothing)
    p, q, u = cache.probabilities, cache.targets, unit(dtype)
    # A log-probability: the rounding of its terms, and of a sum of `classes` exponentials.
    spread = wide.max(axis=1, keepdims=True) - wide + 1 + np.log(classes)
    of_log = u * (EXP * spread + classes)
    losses = -(q * np.log(p)).sum(axis=1)
    in_loss = (q * (of_log + classes * u * np.abs(np.log(p)))).sum(axis=1)
    yield Check("losses", fetch(found.losses), losses, 2 * in_loss)
    yield Check("mean loss", fetch(found.losses).mean(), loss, 2 * in_loss.max())
    yield Check("probabilities", fetch(found.probabilities), p, 2 * p * (of_log + 4 * u))
    yield Check("no bad label", fetch(found.bad_label), np.zeros(1), 0)
    grad = gpu.softmax_cross_entropy_backward(
        found.probabilities, labels, label_smoothing=smoothing, scale=1 / N, dtype=dtype
    )
    wanted = REFERENCE.softmax_cross_entropy_backward(cache)
    bound = (2 * p * (of_log + classes * u) + 8 * u * (p + q)) / N + stored(dtype, wanted) * 1.01
    yield Check("grad_logits", fetch(grad), wanted, bound)


def bad_labels(cupy: Any, dtype: Any) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 32)
    logits, _ = data.normal((4, 5), dtype)
    labels, _ = data.put(np.array([0, 5, 4, -1]))
    found = gpu.softmax_cross_entropy_forward(logits, labels, label_smoothing=0.1)
    yield Check("flag", fetch(found.bad_label), np.ones(1), 0)
    nan = np.isnan(fetch(found.losses)).astype(float)
    yield Check("NaN losses", nan, np.array([0.0, 1, 0, 1]), 0)
    grad = gpu.softmax_cross_entropy_backward(
        found.probabilities, labels, label_smoothing=0.1, scale=1.0, dtype=dtype
    )
    nan = np.isnan(fetch(grad).astype(np.float64)).astype(float)
    yield Check("NaN gradients", nan, np.array([[0.0], [1], [0], [1]]) * np.ones(5), 0)


def sgd(
    cupy: Any, dtype: Any, *, tensors: int, nesterov: bool, mixed: bool, scaled: bool
) -> Iterator[Check]:
    gpu = kernels()

    data, wide = Data(cupy, 33), real(dtype)
    shapes = [((3, k % 7 + 1, 41) if k % 2 else (k + 1,)) for k in range(tensors)]
    params, velocities = ([data.normal(s, wide) for s in shapes] for _ in range(2))
    grads = [data.normal(s, dtype if mixed and k % 2 else wide) for k, s in enumerate(shapes)]
    copies = [cupy.empty(s, dtype) if k % 3 else None for k, s in enumerate(shapes)]
    lr_factors = [1.0 + k % 3 for k in range(tensors)]
    decay_factors = [float(k % 2) for k in range(tensors)]
    factor = 0.125 if scaled else 1.0
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 1e-2}
    gpu.sgd_update(
        *([array for array, _ in pairs] for pairs in (params, grads, velocities)),
        lr=0.1,
        **settings,
        lr_factors=lr_factors,
        decay_factors=decay_factors,
        copies=copies if mixed else None,
        grad_factor=cupy.asarray(np.array([factor], wide)) if scaled else factor,
    )
    exact = sgd_step(
        *(
            {
                str(k): (factor if pairs is grads else 1.0) * host
                for k, (_, host) in enumerate(pairs)
            }
            for pairs in (params, grads, velocities)
        ),
        lr=0.1,
        **settings,
        factors=lambda name: Factors(lr_factors[int(name)], decay_factors[int(name)]),
    )
    u = unit(dtype)
    for k in range(tensors):
        w, g, v = (np.abs(pairs[k][1]) for pairs in (params, grads, velocities))
        bound = 12 * u * (w + g + v)
        new = fetch(params[k][0])
        yield Check(f"param {k}", new, exact.params[str(k)], bound)
        yield Check(f"velocity {k}", fetch(velocities[k][0]), exact.velocities[str(k)], bound)
        copy = copies[k]
        if mixed and copy is not None:
            yield Check(f"copy {k}", fetch(copy), new.astype(dtype).astype(np.float64), 0)


def skipped_sgd(cupy: Any, dtype: Any) -> Iterator[Check]:
    """A gradient that is not finite changes nothing, and nobody asks the host."""
    gpu = kernels()

    data, wide = Data(cupy, 34), real(dtype)
    for value, factor in ((np.inf, 0.0), (np.nan, 0.0), (1.0, 1.0)):
        param, w = data.normal((300,), wide)
        velocity, _ = data.put(np.zeros(300, wide))
        grad, g = data.put(np.array([*np.ones(299), value], dtype))
        flag = gpu.find_nonfinite([cupy.zeros(7, wide), grad])
        yield Check(f"flag of {value}", fetch(flag), np.array([1 - factor]), 0)
        gpu.sgd_update(
            *([param], [grad], [velocity]),
            lr=0.5,
            momentum=0.9,
            nesterov=False,
            weight_decay=0.0,
            skip=flag,
        )
        wanted = w - 0.5 * g if factor else w
        yield Check(f"param at {value}", fetch(param), wanted, 2 * unit(dtype) * (np.abs(w) + 1))


def ema(cupy: Any, dtype: Any) -> Iterator[Check]:
    gpu = kernels()

    data, wide = Data(cupy, 35), real(dtype)
    averages, values = ([data.normal((k * 9 + 1,), wide) for k in range(60)] for _ in range(2))
    gpu.ema_update([a for a, _ in averages], [v for v, _ in values], decay=0.99)
    for (average, a), (_, v) in zip(averages, values, strict=True):
        bound = 6 * unit(dtype) * (np.abs(a) + np.abs(v))
        yield Check("average", fetch(average), 0.99 * a + 0.01 * v, bound)


CASES: dict[str, Case] = {
    "bad labels": bad_labels,
    "skipped SGD": skipped_sgd,
    "EMA": ema,
    "SGD": partial(sgd, tensors=3, nesterov=False, mixed=False, scaled=False),
    "Nesterov of many tensors": partial(sgd, tensors=60, nesterov=True, mixed=True, scaled=True),
}
for _classes in (10, 300):
    for _soft in (False, True):
        CASES[f"cross entropy of {_classes} {'soft' if _soft else 'labels'}"] = partial(
            cross_entropy, classes=_classes, soft=_soft, smoothing=0.0 if _classes == 10 else 0.1
        )
