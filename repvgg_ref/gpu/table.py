"""The table of operators on the device."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import cupy

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.recognise import is_plain, three_branch_passes
from repvgg_ref.gpu import branches, layers
from repvgg_ref.gpu.chain import Chain
from repvgg_ref.gpu.conv2d import Convolutions
from repvgg_ref.gpu.math_mode import Math
from repvgg_ref.gpu.memory import advises_on_memory
from repvgg_ref.ops import REFERENCE, Ops


@functools.cache
def make_table(math: Math, *, deterministic: bool) -> Ops:
    """One table for each arithmetic; its cuDNN graphs are kept with it."""
    convolutions = Convolutions(math, deterministic=deterministic)
    fused = branches.FusedBranches(convolutions)
    head = layers.Head(math)
    return Ops(
        name=f"cupy-{math}",
        layout="NHWC",
        conv2d_forward=advises_on_memory(convolutions.forward),
        conv2d_backward=advises_on_memory(convolutions.backward),
        batch_norm_train_forward=branches.batch_norm_train_forward,
        batch_norm_train_backward=branches.batch_norm_train_backward,
        batch_norm_eval_forward=branches.batch_norm_eval_forward,
        batch_norm_eval_backward=branches.batch_norm_eval_backward,
        update_running_stats=layers.update_running_stats,
        relu_forward=layers.relu_forward,
        relu_backward=layers.relu_backward,
        sigmoid_forward=REFERENCE.sigmoid_forward,
        sigmoid_backward=REFERENCE.sigmoid_backward,
        silu_forward=REFERENCE.silu_forward,
        silu_backward=REFERENCE.silu_backward,
        gelu_forward=REFERENCE.gelu_forward,
        gelu_backward=REFERENCE.gelu_backward,
        squeeze_excitation_forward=head.squeeze_excitation_forward,
        squeeze_excitation_backward=head.squeeze_excitation_backward,
        global_avg_pool_forward=layers.global_avg_pool_forward,
        global_avg_pool_backward=layers.global_avg_pool_backward,
        max_pool_forward=layers.max_pool_forward,
        max_pool_backward=layers.max_pool_backward,
        linear_forward=head.linear_forward,
        linear_backward=head.linear_backward,
        softmax_cross_entropy_forward=layers.softmax_cross_entropy_forward,
        softmax_cross_entropy_backward=layers.softmax_cross_entropy_backward,
        fused_conv_bias_relu=advises_on_memory(convolutions.bias_relu),
        recognise_block=three_branch_passes(
            advises_on_memory(fused.forward),
            advises_on_memory(fused.backward),
            advises_on_memory(fused.parameter_grads),
        ),
        from_host=advises_on_memory(cupy.asarray),
        on_device=True,
        recognise_network=functools.partial(_chain, convolutions, head),
    )


def _chain(
    convolutions: Convolutions,
    head: layers.Head,
    network: Any,
    params: Mapping[str, Array],
    dtype: Any,
    **how: Any,
) -> Chain | None:
    """`Ops.recognise_network`: plain chains of convolutions; `how` is for other tables."""
    if not (network.is_chain and all(is_plain(spec) for spec in network.blocks)):
        return None
    return Chain(network.blocks, params, convolutions=convolutions, head=head)
