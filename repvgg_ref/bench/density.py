"""How many FLOPs a second convolutions of several kernels do: the paper's Table 1, in small.

The paper has 2048 channels of 56 x 56 pixels and a batch of 32; a processor gets fewer channels.
FLOPs are those of the direct form, so that Winograd's savings show as density (section 3.1).
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from repvgg_ref.cpu import NUMPY

KERNELS = (1, 3, 5, 7)
CHANNELS, SIDE = 128, 56


def measured_density(*, rounds: int, threads: int) -> dict[int, float]:
    """Kernel -> effective GFLOP/s (two a multiply-accumulate), the median of the rounds.

    The first run of each packs weights and is not counted; kernels take turns in a round.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, SIDE, SIDE, CHANNELS), np.float32)
    weights = {k: rng.standard_normal((CHANNELS, CHANNELS, k, k), np.float32) for k in KERNELS}
    bias = np.zeros(CHANNELS, np.float32)
    seconds: dict[int, list[float]] = {kernel: [] for kernel in KERNELS}
    with NUMPY.on_threads(threads):
        for _ in range(rounds + 1):
            for kernel, weight in weights.items():
                began = time.perf_counter()
                NUMPY.conv_bias_relu_forward(
                    x, weight, bias, stride=1, padding=kernel // 2, dilation=1, groups=1
                )
                seconds[kernel].append(time.perf_counter() - began)
    flops = 2 * SIDE**2 * CHANNELS**2
    return {k: flops * k * k / median(times[1:]) / 1e9 for k, times in seconds.items()}
