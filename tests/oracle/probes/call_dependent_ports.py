"""Ports whose answer depends on the call: right on the first batch the oracle makes, wrong later.

Each takes the right network, as images (N, C, H, W) -> {layer: output}, and gives a port.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Port = Callable[[Any], dict[str, Any]]


def spoilt(outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs with a block, and the logits after it, a little too large: by no one factor."""
    return outputs | {n: outputs[n] + 0.01 * abs(outputs[n]).max() for n in ("stage1.0", "linear")}


def wrong_if(condition: Callable[[Any], Any]) -> Callable[[Port], Port]:
    """A port that spoils a layer whenever `condition` holds of the batch."""

    def make(net: Port) -> Port:
        return lambda x: spoilt(net(x)) if condition(x) else net(x)

    return make


def keeps_the_first_result(net: Port) -> Port:
    kept: list[Any] = []

    def port(x: Any) -> Any:
        kept.append(net(x)) if not kept else None
        return {name: _fitted(array, len(x)) for name, array in kept[0].items()}

    return port


def _fitted(array: Any, images: int) -> Any:
    return np.resize(array, (images, *array.shape[1:]))


def keeps_the_first_pool(net: Port) -> Port:
    """The mean in front of the head is that of the first call."""
    kept: list[Any] = []

    def port(x: Any) -> Any:
        outputs = net(x)
        kept.append(outputs["linear"])
        return outputs | {"linear": _fitted(kept[0], len(x))}

    return port


def adds_to_its_buffer(net: Port) -> Port:
    """Buffers by shape that are not cleared: the second call of a shape is added to the first."""
    buffers: dict[Any, Any] = {}

    def port(x: Any) -> Any:
        outputs = net(x)
        key = x.shape
        buffers[key] = outputs["linear"] + buffers.get(key, 0)
        return outputs | {"linear": buffers[key]}

    return port


def caches_by_shape(net: Port) -> Port:
    seen: dict[Any, Any] = {}

    def port(x: Any) -> Any:
        if x.shape not in seen:
            seen[x.shape] = net(x)
        return seen[x.shape]

    return port


def second_call_is_wrong(net: Port) -> Port:
    calls: list[int] = []

    def port(x: Any) -> Any:
        calls.append(1)
        return spoilt(net(x)) if len(calls) == 2 else net(x)

    return port


def tires(net: Port) -> Port:
    """Wrong from the ninth call on."""
    calls: list[int] = []

    def port(x: Any) -> Any:
        calls.append(1)
        return spoilt(net(x)) if len(calls) > 8 else net(x)

    return port


def running_statistics(net: Port) -> Port:
    """A momentum of the outputs' scale leaks from call to call."""
    scale = [1.0]

    def port(x: Any) -> Any:
        outputs = net(x)
        wrong = outputs | {"linear": outputs["linear"] * np.float32(scale[0])}
        scale[0] = 0.9 * scale[0] + 0.1 * 1.01
        return wrong

    return port


def floors_odd_sizes(net: Port) -> Port:
    """(n) // 2 rows where (n + 1) // 2 are right."""

    def port(x: Any) -> Any:
        height, width = x.shape[2:]
        return net(x[:, :, : height - height % 2, : width - width % 2])

    return port


def cuts_at_128(net: Port) -> Port:
    return lambda x: net(x[:, :, :128, :128])


def last_tile_left_out(net: Port) -> Port:
    """Pixels beyond 64 of the first layer are not written (images of more than 128 pixels)."""

    def port(x: Any) -> Any:
        outputs = net(x)
        first = outputs["stage0"].copy()
        first[:, :, 64:] = 0
        return outputs | {"stage0": first}

    return port


def writes_its_input(net: Port) -> Port:
    def port(x: Any) -> Any:
        outputs = net(x)
        x -= x.mean()
        return outputs

    return port


def one_image_only(net: Port) -> Port:
    """From the third image on, images get the second one's result."""

    def port(x: Any) -> Any:
        outputs = net(x)
        return {name: a[np.minimum(np.arange(len(a)), 1)] for name, a in outputs.items()}

    return port


def clips_at_20(net: Port) -> Port:
    return lambda x: net(np.clip(x, -20, 20))


def flushes_small(net: Port) -> Port:
    return lambda x: net(np.where(np.abs(x).max() < 0.05, np.float32(0), x))


def standardises_flat_images(net: Port) -> Port:
    """Divides by each image's deviation where that is below a threshold."""

    def port(x: Any) -> Any:
        deviation = x.std(axis=(1, 2, 3), keepdims=True)
        return net(np.where(deviation < 0.2, x * np.float32(1.5), x))

    return port


# Name -> (port, what it may be called).
PORTS: dict[str, tuple[Callable[[Port], Port], set[str]]] = {
    "keeps-the-first-result": (keeps_the_first_result, {"state-between-calls"}),
    "keeps-the-first-pool": (keeps_the_first_pool, {"state-between-calls"}),
    "adds-to-its-buffer": (adds_to_its_buffer, {"state-between-calls"}),
    "caches-by-shape": (caches_by_shape, {"cached-by-shape"}),
    "second-call-wrong": (second_call_is_wrong, {"state-between-calls"}),
    "tires": (tires, {"state-between-calls"}),
    "running-statistics": (running_statistics, {"state-between-calls"}),
    "square-only-wrong": (wrong_if(lambda x: x.shape[2] == x.shape[3]), {"square-image"}),
    "floors-odd-sizes": (floors_odd_sizes, {"odd-size"}),
    "cuts-at-128": (cuts_at_128, {"large-size"}),
    "last-tile-left-out": (last_tile_left_out, {"large-size"}),
    "above-128-high": (wrong_if(lambda x: x.shape[2] >= 128), {"large-size"}),
    "above-128-both": (wrong_if(lambda x: min(x.shape[2:]) > 128), {"large-size"}),
    "writes-its-input": (writes_its_input, {"input-modified"}),
    "two-images-at-most": (one_image_only, {"batch-dependent"}),
    "batch-one-wrong": (wrong_if(lambda x: len(x) == 1), {"batch-dependent"}),
    "tiny-wrong": (wrong_if(lambda x: min(x.shape[2:]) < 8), {"tiny-size"}),
    "clips": (clips_at_20, {"scale-dependent"}),
    "flushes": (flushes_small, {"scale-dependent"}),
    "negative-wrong": (wrong_if(lambda x: x.max() <= 0), {"sign-dependent"}),
    "constant-wrong": (wrong_if(lambda x: np.ptp(x[0, 0]) == 0), {"constant-image"}),
    "flat-images": (standardises_flat_images, {"depends-on-call", "scale-dependent"}),
}
