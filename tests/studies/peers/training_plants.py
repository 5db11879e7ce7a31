# mypy: allow-subclassing-any, allow-untyped-calls, disable-error-code="no-any-return"
"""Ways to spoil the torch port of a training step: each changes a part of a `Port`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from tests.peers.torch_repvgg import TorchBlock
from tests.peers.torch_training import (
    Port,
    _loss,
    _relu,
    _set,
    _sgd,
    _statistics,
)

Plant = Callable[[Port], None]


# --------------------------------------------------------------- optimizers with other numbers


def _decaying(of: Callable[[str, Any], float], rate: Callable[[str], float] | None = None) -> Plant:
    """SGD whose decay is `of` (name, recipe), and its learning rate times `rate` (name)."""

    def plant(port: Port) -> None:
        def optimizer(network: Any, recipe: Any) -> Any:
            groups = [
                {"params": [p], "weight_decay": of(name, recipe), "name": name}
                for name, p in network.named_parameters()
            ]
            return _Rated(groups, lr=recipe.lrs[0], momentum=recipe.momentum, rate=rate)

        port.optimizer = optimizer

    return plant


class _Rated(torch.optim.SGD):
    """SGD whose groups have factors of the learning rate."""

    def __init__(self, groups: Any, rate: Any, **how: Any) -> None:
        super().__init__(groups, **how)
        self.rate = rate

    def step(self, closure: Any = None) -> Any:
        if self.rate is not None:
            for group in self.param_groups:
                group["lr"] *= self.rate(group["name"])
        return super().step(closure)


def _kernels(name: str, recipe: Any) -> float:
    norm = ".bn." in name or "identity" in name
    return recipe.weight_decay if name.endswith("weight") and not norm else 0.0


def _is_gamma(name: str) -> bool:
    return name.endswith("weight") and (".bn." in name or "identity" in name)


def _decay_times(factor: float) -> Plant:
    return _decaying(lambda name, recipe: factor * _kernels(name, recipe))


def _rates(factor: float, fall: float = 1.0) -> Plant:
    """Learning rates times `factor`, and times `fall` from step to step."""

    def plant(port: Port) -> None:
        make = port.optimizer

        def optimizer(network: Any, recipe: Any) -> Any:
            made, steps = make(network, recipe), [0]
            step = made.step

            def scaled(closure: Any = None) -> Any:
                for group in made.param_groups:
                    group["lr"] *= factor * fall ** steps[0]
                steps[0] += 1
                return step(closure)

            made.step = scaled
            return made

        port.optimizer = optimizer

    return plant


# ------------------------------------------------------------------------- losses, gradients


def _smoothing(value: float) -> Plant:
    return _set(loss=lambda network, x, labels, _: network.loss(x, labels, value))


def _weighed(factor: float) -> Plant:
    return _set(loss=lambda *how: factor * _loss(*how))


def _backward(factor: float) -> Plant:
    return _set(backward=lambda loss: (factor * loss).backward())


def _gradients(change: Callable[[str, Any], Any]) -> Plant:
    def after(network: Any) -> None:
        for name, p in network.named_parameters():
            p.grad = change(name, p.grad)

    return _set(after_backward=after)


def _before_step(change: Callable[[str, Any], Any]) -> Plant:
    """The gradients are dumped right and then spoilt."""

    def before(network: Any) -> None:
        for name, p in network.named_parameters():
            p.grad = change(name, p.grad)

    return _set(before_step=before)


def _only(at: str, change: Callable[[Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, grad: change(grad) if name == at else grad


def _one_tap(grad: Any) -> Any:
    changed = grad.clone()
    changed[0, 0, 1, 1] *= 1.01
    return changed


def _noisy(size: float) -> Callable[[Any], Any]:
    def change(grad: Any) -> Any:
        noise = torch.randn(grad.shape, generator=torch.Generator().manual_seed(0))
        return grad * (1 + size * noise)

    return change


# ------------------------------------------------------------------------------ forward passes


def _padded(mode: str) -> Plant:
    def plant(port: Port) -> None:
        for module in port.network.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                module.padding_mode = mode
                module._reversed_padding_repeated_twice = [1, 1, 1, 1]

    return plant


def _chopped(port: Port) -> None:
    """Convolutions of bfloat16 operands."""
    for module in port.network.modules():
        if isinstance(module, torch.nn.Conv2d):

            def forward(x: Any, conv: Any = module) -> Any:
                rounded = (t.bfloat16().float() for t in (x, conv.weight))
                how = conv.stride, conv.padding, conv.dilation, conv.groups
                return functional.conv2d(*rounded, conv.bias, *how)

            module.forward = forward


def _ghost(x: Any, bn: Any) -> Any:
    """Each image by its own statistics."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean(dim=(2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + bn.eps)


def _eps_outside(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x)
    return (x - mean) / (torch.sqrt(var) + bn.eps)


def _half_mean_term(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x)
    half = (mean + mean.detach()) / 2
    return (x - half) / torch.sqrt(var + bn.eps)


class _LeakyGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.clamp(x, min=0)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grad, 0.003 * grad)


def _leaking(port: Port) -> None:
    _relu(_LeakyGrad)(port)


def _dropped(port: Port) -> None:
    port.network.gap = torch.nn.Sequential(port.network.gap, torch.nn.Dropout(0.1))
    torch.manual_seed(0)


def _scaled_block(port: Port) -> None:
    """One block's output a hundred-thousandth too large."""
    block = [m for m in port.network.modules() if isinstance(m, TorchBlock)][2]
    block.register_forward_hook(lambda module, inputs, output: output * (1 + 3e-5))


def _first_image(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    logits = network(x)
    return functional.cross_entropy(logits[:1], labels[:1], label_smoothing=smoothing)


# ----------------------------------------------------------------------------- odd optimizers


class _Adam(torch.optim.Adam):
    pass


def _adam(network: Any, recipe: Any) -> Any:
    return _Adam(network.parameters(), lr=recipe.lrs[0], weight_decay=recipe.weight_decay)


class _Odd(torch.optim.SGD):
    """SGD after whose every step something is done to weights and velocities."""

    change: Any = None

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    self.change(p, self.state[p])


def _then(change: Callable[[Any, Any], None]) -> Plant:
    def plant(port: Port) -> None:
        def optimizer(network: Any, recipe: Any) -> Any:
            plain = _sgd(network, recipe)
            made = _Odd(plain.param_groups, lr=recipe.lrs[0])
            made.change = change
            return made

        port.optimizer = optimizer

    return plant


def _half_velocity(p: Any, state: Any) -> None:
    state["momentum_buffer"].copy_(state["momentum_buffer"].half().float())


def _half_weights(p: Any, state: Any) -> None:
    p.copy_(p.half().float())


def _forget(p: Any, state: Any) -> None:
    state["count"] = state.get("count", 0) + 1
    if state["count"] == 2:
        state["momentum_buffer"].zero_()


def _frozen_norms(name: str, grad: Any) -> Any:
    return torch.zeros_like(grad) if ".bn." in name else grad
