"""Cases of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.ops import REFERENCE
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


CASES: dict[str, Case] = {
    "bad labels": bad_labels,
}
for _classes in (10, 300):
    for _soft in (False, True):
        CASES[f"cross entropy of {_classes} {'soft' if _soft else 'labels'}"] = partial(
            cross_entropy, classes=_classes, soft=_soft, smoothing=0.0 if _classes == 10 else 0.1
        )
