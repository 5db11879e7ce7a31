"""RepVGG as ONNX graphs, right ones in unusual ways and wrong ones that look like them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.oracle.candidates.ports import network
from tests.peers.candidate_graphs import onnx_model
from tests.peers.onnx_edits import (
    appended,
    auxiliary,
    bias_apart,
    classifier_off,
    one_tap_off,
    pads,
    relu_as,
    same_lower,
    second_output,
    strides_apart,
    times_two_of_halves,
    weights_through,
)
from tests.peers.onnx_ends import (
    FIXED,
    FUSED,
    affine,
    batch_norm,
    behind,
    bgr,
    bytes_nhwc,
    class_map,
    classified,
    depthwise,
    depthwise_pool,
    dropout,
    ending,
    entered,
    flat_pool,
    generalised_mean,
    headed,
    last_channels,
    mean_of_rows,
    normalised,
    pool_by,
    products_first,
    softmax_by_hand,
    squeezed,
    turned_in_the_graph,
    window_pool,
)


@dataclass(frozen=True)
class Wrong:
    """A wrong graph, the layer where it is, and one of the names it must get."""

    make: Callable[[], Any]
    layer: str
    bugs: tuple[str, ...]


RIGHT: dict[str, Callable[[], Any]] = {
    "normalised": lambda: entered(normalised),
    "normalised by mul and add": lambda: entered(affine),
    "normalised by one number": lambda: entered(lambda g, x: g.add("Sub", x, g.constant(0.5))),
    "normalised, three branches": lambda: entered(normalised, form="bn"),
    "inverted": lambda: entered(lambda g, x: g.add("Sub", g.constant(1.0), x)),
    "batch norm first": lambda: entered(batch_norm),
    "depthwise convolution first": lambda: entered(depthwise),
    "bytes": lambda: entered(lambda g, x: g.add("Cast", x, to=1), kind=2),
    "bytes, normalised": lambda: entered(
        lambda g, x: normalised(g, g.add("Cast", x, to=1), 255), kind=2
    ),
    "bytes, channels last": lambda: entered(bytes_nhwc, kind=2, nhwc=True),
    "softmax": lambda: ending("Softmax", axis=1),
    "log-softmax": lambda: ending("LogSoftmax", axis=-1),
    "softmax by hand": lambda: behind(softmax_by_hand),
    "times one": lambda: ending("Mul", np.float32(1)),
    "all classes gathered": lambda: ending("Gather", np.arange(7), axis=1),
    "clipped to all of float32": lambda: ending(
        "Clip", np.finfo(np.float32).min, np.finfo(np.float32).max
    ),
    "clipped far beyond any logit": lambda: ending("Clip", np.float32(-1e30), np.float32(1e30)),
    "guarded against overflow, then softmax": lambda: behind(
        lambda g, x: g.add("Softmax", g.add("Min", x, g.constant(65504.0)), axis=1)
    ),
    "dropout switched off": lambda: headed(lambda g, m, x: dropout(g, m, x, on=False)),
    "half the weights, twice the product": times_two_of_halves,
    "classifier before the pool": lambda: headed(lambda g, m, x: flat_pool(g, class_map(g, m, x))),
    "products before the pool": lambda: headed(products_first),
    "pool as a depthwise convolution": lambda: headed(depthwise_pool, FIXED),
    "pool as a window": lambda: headed(window_pool, FIXED),
    "pool of one row": lambda: headed(mean_of_rows),
    "pool over the middle axes": lambda: headed(last_channels),
    "pool without its axes": lambda: headed(pool_by("ReduceMean", axes=[2, 3], keepdims=0)),
    "squeeze and matmul": lambda: headed(squeezed),
    "weight turned in the graph": lambda: headed(turned_in_the_graph),
    "stride as a pool": lambda: strides_apart("MaxPool"),
    "stride as a pool, three branches": lambda: strides_apart("MaxPool", "bn"),
    "stride as a slice": lambda: strides_apart("Slice"),
    "weights cast": lambda: weights_through("Cast", lambda a: a.astype(np.float64), to=1),
    "weights transposed": lambda: weights_through(
        "Transpose", lambda a: a.transpose(2, 3, 1, 0), perm=[3, 2, 0, 1]
    ),
    "relu as a clip": lambda: relu_as("Clip", 0.0),
    "relu as a maximum": lambda: relu_as("Max", 0.0),
    "same lower": same_lower,
    "one side padded, of even images": lambda: pads(
        onnx_model(network(), replace(FUSED, input_shape=(2, 3, 64, 64))), [1, 1, 0, 0]
    ),
    "bias apart": bias_apart,
    "an auxiliary head first": lambda: second_output(auxiliary, first=True),
    "probabilities second": lambda: second_output(appended("Softmax", axis=1)),
    "the negative second": lambda: second_output(appended("Neg")),
}

_ALTERED = ("head-output",)

WRONG: dict[str, Wrong] = (
    {
        name: Wrong(make, "linear", _ALTERED)
        for name, make in {
            "negative": lambda: ending("Neg"),
            "classes moved": lambda: ending("Gather", np.roll(np.arange(7), 1), axis=1),
            "relu": lambda: ending("Relu"),
            "clip": lambda: ending("Clip", np.float32(-1), np.float32(1)),
            "clip far off": lambda: ending("Clip", np.float32(-1000), np.float32(1000)),
            "softmax over the batch": lambda: ending("Softmax", axis=0),
            "round": lambda: ending("Round"),
            "five classes": lambda: ending("Slice", np.array([0]), np.array([5]), np.array([1])),
            "classes backwards": lambda: ending(
                "Slice", np.array([-1]), np.array([-100]), np.array([1]), np.array([-1])
            ),
            "times": lambda: ending("Mul", np.float32(1.01)),
            "plus": lambda: ending("Add", np.full(7, 0.5, np.float32)),
            "sigmoid": lambda: ending("Sigmoid"),
            "absolute": lambda: ending("Abs"),
            "softmax of the negative": lambda: behind(
                lambda g, x: g.add("Softmax", g.add("Neg", x), axis=1)
            ),
            "softmax rounded": lambda: behind(
                lambda g, x: g.add("Round", g.add("Softmax", x, axis=1))
            ),
            "cast to integers": lambda: behind(
                lambda g, x: g.add("Cast", g.add("Cast", x, to=6), to=1)
            ),
            "the negative first": lambda: second_output(appended("Neg"), first=True),
        }.items()
    }
    | {
        "dropout": Wrong(
            lambda: headed(lambda g, m, x: dropout(g, m, x, on=True)),
            "linear",
            ("dropout-left-on",),
        ),
        "pool by the maximum": Wrong(
            lambda: headed(lambda g, m, x: classified(g, m, flat_pool(g, x, "GlobalMaxPool"))),
            "linear",
            ("head-pool",),
        ),
        "generalised mean": Wrong(lambda: headed(generalised_mean), "linear", ("head-pool",)),
        "one side padded": Wrong(
            lambda: pads(onnx_model(network(), FUSED), [1, 1, 0, 0]),
            "stage0",
            ("padding-asymmetric",),
        ),
        "clip of an activation": Wrong(
            lambda: relu_as("Clip", 0.0, 600.0, only=3), "stage2.0", ("other-activation",)
        ),
        "bgr inside": Wrong(lambda: entered(bgr), "stage0", ("input-bgr",)),
        "bgr inside, normalised": Wrong(
            lambda: entered(lambda g, x: normalised(g, bgr(g, x))), "stage0", ("input-bgr",)
        ),
        "classifier's tap": Wrong(
            lambda: classifier_off(onnx_model(network(), FUSED)), "linear", ("taps-altered",)
        ),
        "class map's tap": Wrong(
            lambda: classifier_off(headed(lambda g, m, x: flat_pool(g, class_map(g, m, x)))),
            "linear",
            ("taps-altered",),
        ),
    }
    | {
        f"tap, {form}": Wrong(lambda f=form: one_tap_off(3, form=f), "stage2.0", ("taps-altered",))  # type: ignore[misc]
        for form in ("fused", "folded", "bn")
    }
)
