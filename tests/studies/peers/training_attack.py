# mypy: allow-subclassing-any, allow-untyped-calls, disable-error-code="no-any-return"
"""Ports of a training step that nothing was tuned on: 26 wrong ones and 10 right ones.

They were written from the documentation alone, after the library and the estimation were done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from tests.peers.torch_repvgg import TorchBlock
from tests.peers.torch_training import Port, _norm_with, _set, _sgd, batch_norms
from tests.studies.peers.training_plants import (
    Plant,
    _before_step,
    _decaying,
    _gradients,
    _kernels,
    _only,
    _rates,
    _weighed,
)
from tests.studies.peers.training_right import RightPort, _convolving, _own_loss, in_torch
from tests.studies.peers.training_wrong import Wrong, _named

STEM, INNER = "stage0.rbr_dense.conv.weight", "stage1.1.rbr_dense.conv.weight"


def _after_step(change: Callable[[Any, int], None]) -> Plant:
    """Something done to the network after each optimizer step; it gets the step's number."""

    def plant(port: Port) -> None:
        make = port.optimizer

        def optimizer(network: Any, recipe: Any) -> Any:
            made, count = make(network, recipe), [0]
            step = made.step

            def stepped(closure: Any = None) -> Any:
                step(closure)
                with torch.no_grad():
                    change(made, count[0])
                count[0] += 1

            made.step = stepped
            return made

        port.optimizer = optimizer

    return plant


def _branch_times(branch: str, factor: float) -> Plant:
    """One branch's gradient, its arrays' included, times a factor."""

    def plant(port: Port) -> None:
        for block in port.network.modules():
            if isinstance(block, TorchBlock) and hasattr(block, branch):
                getattr(block, branch).register_forward_hook(
                    lambda module, inputs, y: factor * y - (factor - 1) * y.detach()
                )

    return plant


def _decayed_statistics(port: Port) -> None:
    def change(optimizer: Any, count: int) -> None:
        for bn in batch_norms(port.network):
            bn.running_mean *= 1 - 1e-3
            bn.running_var *= 1 - 1e-3

    _after_step(change)(port)


def _half_batch_update(port: Port) -> None:
    """The update takes the gradients of the first image, before those of the others are there."""
    kept: list[Any] = []
    loss = port.loss

    def noted(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
        kept[:] = [x, labels, smoothing]
        return loss(network, x, labels, smoothing)

    def before(network: Any) -> None:
        x, labels, smoothing = kept
        momenta = [bn.momentum for bn in batch_norms(network)]
        for bn in batch_norms(network):
            bn.momentum = 0.0
        first = functional.cross_entropy(network(x)[:1], labels[:1], label_smoothing=smoothing)
        grads = torch.autograd.grad(first / len(x), list(network.parameters()))
        for p, grad in zip(network.parameters(), grads, strict=True):
            p.grad = grad
        for bn, momentum in zip(batch_norms(network), momenta, strict=True):
            bn.momentum = momentum

    port.loss, port.before_step = noted, before


def _first_images_statistics(x: Any, bn: Any) -> Any:
    mean = x[:1].mean(dim=(0, 2, 3), keepdim=True)
    var = ((x[:1] - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + bn.eps)


def _swapped_in_one_layer(network: Any) -> None:
    bn = network.get_submodule("stage1.1.rbr_dense.bn")
    bn.weight.grad, bn.bias.grad = bn.bias.grad, bn.weight.grad


def _reset(optimizer: Any, count: int) -> None:
    for state in optimizer.state.values():
        state["momentum_buffer"] = torch.zeros_like(state["momentum_buffer"])


def _labels_up(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    return network.loss(x, (labels + 1) % network.linear.out_features, smoothing)


def _clipped_to(share: float) -> Plant:
    """Clipped to a share of the gradients' own norm in each step."""

    def before(network: Any) -> None:
        grads = [p.grad for p in network.parameters()]
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        torch.nn.utils.clip_grad_norm_(network.parameters(), share * float(norm.detach()))

    return _set(before_step=before)


def _adamw(network: Any, recipe: Any) -> Any:
    return torch.optim.AdamW(network.parameters(), lr=recipe.lrs[0], weight_decay=1e-2)


def _warmup(network: Any, recipe: Any) -> Any:
    """The first step at rate zero, each other one at the rate of the step before."""
    made, count = _sgd(network, recipe), [0]
    step = made.step

    def late(closure: Any = None) -> Any:
        for group in made.param_groups:
            group["lr"] = (0.0, *recipe.lrs)[count[0]]
        count[0] += 1
        return step(closure)

    made.step = late
    return made


def _early(network: Any, recipe: Any) -> Any:
    """Each step at the rate of the next one."""
    made, count = _sgd(network, recipe), [0]
    step = made.step

    def early(closure: Any = None) -> Any:
        for group in made.param_groups:
            group["lr"] = (*recipe.lrs[1:], recipe.lrs[-1])[count[0]]
        count[0] += 1
        return step(closure)

    made.step = early
    return made


def _penalised(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    """Weight decay as a term of the loss, and the optimizer's as well."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    return network.loss(x, labels, smoothing) + 1e-3 * sum((p**2).sum() for p in kernels)


class _OldNesterov(torch.optim.SGD):
    """Looks ahead with the velocity of the step before."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    d = p.grad + group["weight_decay"] * p
                    old = self.state[p].get("v", torch.zeros_like(p))
                    self.state[p]["v"] = group["momentum"] * old + d
                    p -= group["lr"] * (d + group["momentum"] * old * group["momentum"])


def _old_nesterov(network: Any, recipe: Any) -> Any:
    return _OldNesterov(_sgd(network, recipe).param_groups, lr=recipe.lrs[0])


def _centred(name: str, grad: Any) -> Any:
    return grad - grad.mean(dim=(1, 2, 3), keepdim=True) if grad.ndim == 4 else grad


def _averaged_weights(port: Port) -> None:
    """The weights go a tenth of the way back after each step (an average dumped for them)."""
    start = [p.detach().clone() for p in port.network.parameters()]

    def change(optimizer: Any, count: int) -> None:
        for p, first in zip(port.network.parameters(), start, strict=True):
            p.lerp_(first, 0.1)

    _after_step(change)(port)


def _max_pool(port: Port) -> None:
    port.network.gap = torch.nn.AdaptiveMaxPool2d(1)


def _no_relu(port: Port) -> None:
    block = port.network.get_submodule("stage1.1")

    def forward(x: Any) -> Any:
        return sum(child(x) for name, child in block.named_children() if name.startswith("rbr_"))

    block.forward = forward


def _odd_pixels(port: Port) -> None:
    """The strided 1x1 kernel starts at the second pixel."""
    for block in port.network.modules():
        if isinstance(block, TorchBlock) and block.rbr_1x1.conv.stride == (2, 2):
            block.rbr_1x1.register_forward_pre_hook(
                lambda module, inputs: (torch.roll(inputs[0], (-1, -1), (2, 3)),)
            )


def _sign(name: str, grad: Any) -> Any:
    return torch.sign(grad) * grad.abs().mean()


def _transposed(name: str, grad: Any) -> Any:
    square = grad.ndim == 4 and grad.shape[0] == grad.shape[1] and grad.shape[2] == 3
    return grad.transpose(0, 1).contiguous() if square else grad


WRONG = {
    "1x1 branch's gradient doubled": _named(
        _branch_times("rbr_1x1", 2.0), "grad/", "branch-gradient-scaled"
    ),
    "identity's gradient halved": _named(
        _branch_times("rbr_identity", 0.5), "grad/", "branch-gradient-scaled"
    ),
    "decay of running statistics": Wrong(_decayed_statistics, ("after/",)),
    "update before the gradient is complete": Wrong(_half_batch_update, ("after/",)),
    "statistics of the first image": Wrong(_norm_with(_first_images_statistics), ("batch_",)),
    "gamma and beta swapped in one layer": Wrong(  # in one branch of the layer
        _set(after_backward=_swapped_in_one_layer), ("grad/stage1.1.rbr_dense.bn",)
    ),
    "velocity reset": _named(_after_step(_reset), "after/", "momentum-missing", "momentum-value"),
    "gradients in float16": Wrong(_gradients(lambda n, g: g.half().float()), ("grad/",)),
    "loss over N + 1": _named(_weighed(2 / 3), "loss", "loss-scaled", value=2 / 3),
    "labels shifted": _named(_set(loss=_labels_up), "loss", "labels-shifted"),
    "clipped to half": _named(_clipped_to(0.5), "after/", "gradients-clipped",
                              "learning-rate-factor"),
    "AdamW": _named(_set(optimizer=_adamw), "after/", "other-optimizer"),
    "warmup late by one": _named(_set(optimizer=_warmup), "after/", "learning-rates"),
    "warmup early by one": _named(_set(optimizer=_early), "after/", "learning-rates"),
    "decay in the loss": Wrong(_set(loss=_penalised), ("loss",)),
    "gradients over two micro-batches again": _named(
        _set(backward=lambda loss: (loss / 2).backward()), "grad/",
        "loss-gradient-averaged-twice", "gradients-scaled",
    ),
    "nesterov of the old velocity": Wrong(_set(optimizer=_old_nesterov), ("after/",)),
    "decay of the wrong sign": _named(
        _decaying(lambda n, r: -_kernels(n, r)), "after/", "weight-decay-factor", value=-1.0
    ),
    "head learns ten times as fast": Wrong(
        _decaying(_kernels, lambda n: 10.0 if "linear" in n else 1.0), ("after/linear",)
    ),
    "maximum in place of the average": Wrong(_max_pool, ("logits",)),
    "a ReLU left out": Wrong(_no_relu, ("batch_mean/stage2.0",)),
    "gradients transposed": Wrong(_gradients(_transposed), ("grad/",)),
    "gradients centred": Wrong(_before_step(_centred), ("after/",)),
    "weights averaged": Wrong(_averaged_weights, ("after/",)),
    "head's bias not trained": Wrong(
        _before_step(_only("linear.bias", lambda g: 0 * g)), ("after/linear.bias",)
    ),
    "1x1 kernel at odd pixels": Wrong(_odd_pixels, ("batch_mean/", "batch_")),
    "signs of gradients": Wrong(_before_step(_sign), ("after/",)),
    "rates x 0.9": _named(_rates(0.9), "after/", "learning-rate-factor", value=0.9),
    "rates x 1.01": _named(_rates(1.01), "after/", "learning-rate-factor", value=1.01),
    "rates x 2": _named(_rates(2.0), "after/", "learning-rate-factor", value=2.0),
}  # fmt: skip


# ------------------------------------------------------------------------------- right ones


def _scale_and_shift(x: Any, bn: Any) -> Any:
    """x scale + shift, as fused kernels write it."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scale = 1 / torch.sqrt(var + bn.eps)
    return x * scale + (-mean * scale)


def _double_norm(x: Any, bn: Any) -> Any:
    wide = x.double()
    mean = wide.mean(dim=(0, 2, 3), keepdim=True)
    var = ((wide - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return ((wide - mean) / torch.sqrt(var + bn.eps)).float()


def _merged(x: Any, bn: Any) -> Any:
    """Statistics image by image, merged (Chan)."""
    means = x.mean(dim=(2, 3), keepdim=True)
    mean = means.mean(dim=0, keepdim=True)
    var = ((x - means) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    var = var + ((means - mean) ** 2).mean(dim=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + bn.eps)


def _reversed_branches(port: Port) -> None:
    for block in port.network.modules():
        if isinstance(block, TorchBlock):

            def forward(x: Any, block: Any = block) -> Any:
                names = [n for n, _ in block.named_children() if n.startswith("rbr_")]
                total = sum(getattr(block, n)(x) for n in reversed(names))
                return block.post_se(torch.relu(block.se(total)))

            setattr(block, "forward", forward)  # noqa: B010


class _RowsThenColumns(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def _pooled(port: Port) -> None:
    port.network.gap = _RowsThenColumns()


def _soft_targets(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    outputs = network.outputs(x)
    classes = outputs["main"].shape[1]
    target = functional.one_hot(labels, classes).to(x.dtype) * (1 - smoothing) + smoothing / classes
    main = functional.cross_entropy(outputs.pop("main"), target)
    return main + sum(0.1 * functional.cross_entropy(aux, target) for aux in outputs.values())


class _Rescaled(torch.optim.SGD):
    """Velocities hold the rate, and are rescaled when it changes: correct."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    d, lr = p.grad + group["weight_decay"] * p, group["lr"]
                    v, old = self.state[p].get("v", (torch.zeros_like(p), lr))
                    v = group["momentum"] * (lr / old) * v + lr * d
                    self.state[p]["v"] = v, lr
                    p -= v


def _rescaled(network: Any, recipe: Any) -> Any:
    return _Rescaled(_sgd(network, recipe).param_groups, lr=recipe.lrs[0])


def _split_in_four(x: Any, w: Any, stride: Any, pad: Any, dilation: Any, groups: int) -> Any:
    if groups > 1 or w.shape[1] < 4:
        return functional.conv2d(x, w, None, stride, pad, dilation, groups)
    parts = zip(x.chunk(4, dim=1), w.chunk(4, dim=1), strict=True)
    sums = [functional.conv2d(a, b, None, stride, pad, dilation) for a, b in parts]
    return sum(sums[1:], start=sums[0])


RIGHT: dict[str, RightPort] = {
    "scale and shift": in_torch(_norm_with(_scale_and_shift)),
    "norms in double": in_torch(_norm_with(_double_norm)),
    "statistics merged": in_torch(_norm_with(_merged)),
    "branches reversed": in_torch(_reversed_branches),
    "pool by rows, then columns": in_torch(_pooled),
    "soft targets": in_torch(_set(loss=_soft_targets)),
    "velocities rescaled": in_torch(_set(optimizer=_rescaled)),
    "split in four": in_torch(_convolving(_split_in_four)),
    "scale and shift, reversed, split": in_torch(
        _norm_with(_scale_and_shift), _reversed_branches, _convolving(_split_in_four)
    ),
    "merged, own loss, rescaled": in_torch(
        _norm_with(_merged), _set(loss=_own_loss, optimizer=_rescaled)
    ),
}
