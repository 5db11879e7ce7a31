"""The table `NUMPY`: the reference's functions under NHWC, the costly ones replaced.

An element-wise reference operator already is as fast as NumPy gets, and NumPy keeps the memory
order of its operands; so those are wrapped: a transposed view goes in, a transposed view comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.recognise import is_plain
from repvgg_ref.cpu.budget import Memory
from repvgg_ref.cpu.convolution.conv2d import conv2d_backward, conv2d_forward, conv_bias_relu
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.cpu.graph import GraphEngine, is_known
from repvgg_ref.cpu.planar import PlanarEngine, is_planar
from repvgg_ref.cpu.training.batch_norm import batch_norm_train_backward, batch_norm_train_forward
from repvgg_ref.cpu.training.expression import recognise
from repvgg_ref.cpu.workers.pool import default_of, in_session
from repvgg_ref.ops import REFERENCE, Ops, channels_last


def _in_nhwc(operator: Callable[..., Any]) -> Callable[..., Any]:
    """`operator` of NCHW arrays as one of NHWC arrays; caches and vectors pass as they are."""

    def wrapped(x: Array, *rest: Any, **settings: Any) -> Any:
        found = operator(_to_nchw(x), *rest, **settings)
        if isinstance(found, tuple):
            first, *others = found
            whole = (_to_nhwc(first), *others)
            return type(found)(*whole) if hasattr(found, "_fields") else whole
        return _to_nhwc(found)

    return wrapped


def _to_nchw(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def _to_nhwc(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


def fused_network(
    network: Any,
    params: Mapping[str, Array],
    dtype: Any,
    *,
    algorithm: str,
    threads: int | None,
    memory: Memory | None = None,
) -> Engine | PlanarEngine | GraphEngine | None:
    """`Ops.recognise_network`: plain chains, chains with depthwise layers, known graphs."""
    how: Any = {"dtype": dtype, "algorithm": algorithm, "threads": threads, "memory": memory}
    if network.is_chain and all(is_plain(spec) for spec in network.blocks):
        return Engine(network.blocks, params, **how)
    if is_planar(network):
        return PlanarEngine(network, params, **how)
    return GraphEngine(network, params, **how) if is_known(network) else None


NUMPY = Ops(
    name="numpy",
    layout="NHWC",
    conv2d_forward=conv2d_forward,
    conv2d_backward=conv2d_backward,
    batch_norm_train_forward=batch_norm_train_forward,
    batch_norm_train_backward=batch_norm_train_backward,
    batch_norm_eval_forward=_in_nhwc(REFERENCE.batch_norm_eval_forward),
    batch_norm_eval_backward=_in_nhwc(REFERENCE.batch_norm_eval_backward),
    update_running_stats=REFERENCE.update_running_stats,
    relu_forward=REFERENCE.relu_forward,
    relu_backward=REFERENCE.relu_backward,
    sigmoid_forward=REFERENCE.sigmoid_forward,
    sigmoid_backward=REFERENCE.sigmoid_backward,
    silu_forward=REFERENCE.silu_forward,
    silu_backward=REFERENCE.silu_backward,
    gelu_forward=REFERENCE.gelu_forward,
    gelu_backward=REFERENCE.gelu_backward,
    squeeze_excitation_forward=_in_nhwc(REFERENCE.squeeze_excitation_forward),
    squeeze_excitation_backward=_in_nhwc(REFERENCE.squeeze_excitation_backward),
    global_avg_pool_forward=_in_nhwc(REFERENCE.global_avg_pool_forward),
    global_avg_pool_backward=_in_nhwc(REFERENCE.global_avg_pool_backward),
    max_pool_forward=_in_nhwc(REFERENCE.max_pool_forward),
    max_pool_backward=_in_nhwc(REFERENCE.max_pool_backward),
    linear_forward=in_session(REFERENCE.linear_forward),
    linear_backward=in_session(REFERENCE.linear_backward),
    softmax_cross_entropy_forward=REFERENCE.softmax_cross_entropy_forward,
    softmax_cross_entropy_backward=REFERENCE.softmax_cross_entropy_backward,
    bilinear_resize_forward=in_session(channels_last.resize_forward),
    bilinear_resize_backward=in_session(channels_last.resize_backward),
    adaptive_avg_pool_forward=in_session(channels_last.pool_forward),
    adaptive_avg_pool_backward=in_session(channels_last.pool_backward),
    channel_dropout_forward=channels_last.dropout_forward,
    channel_dropout_backward=channels_last.dropout_backward,
    concat_forward=channels_last.joined_forward,
    concat_backward=channels_last.joined_backward,
    pixel_cross_entropy_forward=channels_last.checked_pixel_loss_forward,
    pixel_cross_entropy_backward=channels_last.pixel_loss_backward,
    fused_conv_bias_relu=conv_bias_relu,
    recognise_block=recognise,
    recognise_network=fused_network,
    on_threads=default_of,
)
