"""What a linear module of torch computes, seen from outside."""

from __future__ import annotations

from typing import Any

import torch


def response(module: Any, channels: int, reach: int) -> tuple[Any, Any]:
    """Kernel and bias of a linear module, by impulses in float64."""
    size = 2 * reach + 1
    zero = torch.zeros(1, channels, 2 * size + 1, 2 * size + 1, dtype=torch.float64)
    with torch.no_grad():
        rest = module(zero)
        bias = rest[0, :, size, size]
        kernel = torch.zeros(len(bias), channels, size, size, dtype=torch.float64)
        for c in range(channels):
            x = zero.clone()
            x[0, c, size, size] = 1
            y = (module(x) - rest)[0]
            for i in range(size):
                for j in range(size):
                    kernel[:, c, i, j] = y[:, size + reach - i, size + reach - j]
    return kernel, bias
