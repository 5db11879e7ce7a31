"""Every operator that can be judged, as data.

A forward pass is called with its inputs, a backward pass with the gradient of its output first and
then with the inputs of the forward pass; settings have torch's names and meanings. To add one, say
here what it computes, step by step, in the words of `rounding` and `norms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError, did_you_mean
from repvgg_ref.oracle.operators.block import (
    block_backward,
    block_forward,
    block_program,
    norm_program,
)
from repvgg_ref.oracle.operators.convolution import (
    conv_backward,
    conv_bias_relu_backward,
    conv_forward,
    conv_program,
)
from repvgg_ref.oracle.operators.norms import (
    batch_statistics,
    given_statistics,
    normalised,
    normalised_backward,
    running,
)
from repvgg_ref.oracle.operators.operator import Arrays, Expected, Operator, Settings
from repvgg_ref.oracle.operators.rounding import Rounding, dot, exact, read, rectified, total
from repvgg_ref.oracle.programs.head import HeadProgram

_CONV: Settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_NORM: Settings = {"training": False, "momentum": 0.1, "eps": 1e-5}
_BLOCK: Settings = {"stride": 1, "groups": 1, "eps": 1e-5}


def _conv_bias_relu(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    return {"y": rectified(conv_forward(arrays, settings, r)["y"])}


def _linear(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    x, weight, bias = (exact(arrays[name]) for name in ("x", "weight", "bias"))
    # (N, O) = (N, C) @ (C, O)
    return {"y": dot(lambda a, b: a @ b.T, x, weight, r, start=bias.value)}


def _linear_backward(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    grad, x, weight = (exact(arrays[name]) for name in ("grad_y", "x", "weight"))
    return {
        "grad_x": dot(lambda g, w: g @ w, grad, weight, r),  # (N, C) = (N, O) @ (O, C)
        "grad_weight": dot(lambda g, a: g.T @ a, grad, x, r),  # (O, C) = (O, N) @ (N, C)
        "grad_bias": total(grad, (0,), r),
    }


def _linear_program(arrays: Arrays, settings: Settings) -> Any:
    weight, bias = _vectors(arrays, "weight", "bias")
    return HeadProgram(weight, bias, name="y")


def _batch_norm(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    x = read(arrays["x"], r)
    gamma, beta, mean, var = _vectors(arrays, "gamma", "beta", "running_mean", "running_var")
    eps, momentum = settings["eps"], settings["momentum"]
    if not settings["training"]:
        return {"y": normalised(x, given_statistics(mean, var, eps, r), gamma, beta, r)}
    seen = batch_statistics(x, eps, r)
    n = x.value[:, 0].size
    return {
        "y": normalised(x, seen, gamma, beta, r),
        "running_mean": running(mean, seen.mean, momentum, 1.0, r),
        "running_var": running(var, seen.var, momentum, n / max(n - 1, 1), r),
    }


def _batch_norm_backward(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    x, grad = read(arrays["x"], r), read(arrays["grad_y"], r)
    gamma, mean, var = _vectors(arrays, "gamma", "running_mean", "running_var")
    training, eps = settings["training"], settings["eps"]
    seen = batch_statistics(x, eps, r) if training else given_statistics(mean, var, eps, r)
    grads = normalised_backward(grad, x, seen, gamma, r, training=training)
    return {"grad_x": grads.x, "grad_gamma": grads.gamma, "grad_beta": grads.beta}


def _vectors(arrays: Arrays, *names: str) -> list[Array]:
    return [np.asarray(arrays[name], np.float64) for name in names]


_NORM_ARRAYS = ("x", "gamma", "beta", "running_mean", "running_var")

OPERATORS: Mapping[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator(
            "conv2d",
            ("x", "weight", "bias"),
            _CONV,
            ("y",),
            conv_forward,
            lambda a, s: conv_program(a, s, "none"),
            optional=("bias",),
        ),
        Operator(
            "conv2d-backward",
            ("grad_y", "x", "weight"),
            _CONV,
            ("grad_x", "grad_weight", "grad_bias"),
            conv_backward,
        ),
        Operator(
            "conv_bias_relu",
            ("x", "weight", "bias"),
            _CONV,
            ("y",),
            _conv_bias_relu,
            lambda a, s: conv_program(a, s, "relu"),
        ),
        Operator(
            "conv_bias_relu-backward",
            ("grad_y", "x", "weight", "bias"),
            _CONV,
            ("grad_x", "grad_weight", "grad_bias"),
            conv_bias_relu_backward,
        ),
        Operator("linear", ("x", "weight", "bias"), {}, ("y",), _linear, _linear_program),
        Operator(
            "linear-backward",
            ("grad_y", "x", "weight"),
            {},
            ("grad_x", "grad_weight", "grad_bias"),
            _linear_backward,
        ),
        Operator(
            "batch_norm",
            _NORM_ARRAYS,
            _NORM,
            ("y", "running_mean", "running_var"),
            _batch_norm,
            norm_program,
        ),
        Operator(
            "batch_norm-backward",
            ("grad_y", "x", "gamma", "running_mean", "running_var"),
            {"training": True, "eps": 1e-5},
            ("grad_x", "grad_gamma", "grad_beta"),
            _batch_norm_backward,
        ),
        Operator(
            "repvgg_block",
            ("x", "params"),
            _BLOCK,
            ("y",),
            block_forward,
            block_program,
            bundle="params",
        ),
        Operator(
            "repvgg_block-backward",
            ("grad_y", "x", "params"),
            _BLOCK,
            ("grad_x",),
            block_backward,
            bundle="params",
        ),
    )
}


def operator_called(name: str) -> Operator:
    """The operator of that name.

    Raises
    ------
    ReportedError
        If there is none.
    """
    if name not in OPERATORS:
        raise ReportedError(
            "there is no such operator",
            got=name,
            wanted=", ".join(OPERATORS),
            advice=did_you_mean(name, OPERATORS),
        )
    return OPERATORS[name]
