"""How many FLOPs a second convolutions of several kernels do: the paper's Table 1, in small.

The paper has 2048 channels of 56 x 56 pixels and a batch of 32; a processor gets fewer channels.
FLOPs are those of the direct form, so that Winograd's savings show as density (section 3.1).
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.graph import INPUT, Graph, Node
from repvgg_ref.models.layers import Block, GlobalAvgPool, Linear
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.models.parameters import initial_params

KERNELS = (1, 3, 5, 7)
CHANNELS, SIDE = 128, 56


def measured_density(*, rounds: int, threads: int) -> dict[int, float]:
    """Kernel -> effective GFLOP/s (two a multiply-accumulate), the median of the rounds.

    The first run of each packs its weights and is not counted; kernels take turns in a round.
    """
    x = np.random.default_rng(0).standard_normal((1, CHANNELS, SIDE, SIDE), np.float32)
    models = {kernel: fuse(_alone(kernel)) for kernel in KERNELS}
    seconds: dict[int, list[float]] = {kernel: [] for kernel in KERNELS}
    for _ in range(rounds + 1):
        for kernel, model in models.items():
            began = time.perf_counter()
            model.forward(x, backend="numpy", threads=threads)
            seconds[kernel].append(time.perf_counter() - began)
    flops = 2 * SIDE**2 * CHANNELS**2
    return {k: flops * k * k / median(times[1:]) / 1e9 for k, times in seconds.items()}


def _alone(kernel: int) -> Model:
    """One convolution with bias and ReLU; a mean and one logit behind it cost next to nothing."""
    spec = BlockSpec("conv", CHANNELS, CHANNELS, 1, kind="conv-bias", kernel=kernel)
    nodes = (
        Node("conv", Block(spec), (INPUT,)),
        Node("pool", GlobalAvgPool(), ("conv",)),
        Node("linear", Linear(CHANNELS, 1), ("pool",)),
    )
    arch = Graph(f"{kernel}x{kernel}", nodes)
    return Model(arch, "train", initial_params(arch, seed=0))
