# mypy: allow-subclassing-any, allow-untyped-calls, disable-error-code="no-any-return"
"""Training steps of the torch port as its author would dump them, right or with a planted bug.

The bugs are written in torch's own terms (detached tensors, optimizer arguments, hooks), so they
share nothing with the oracle's library but the names they should be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.training.steps import TrainingSteps
from tests.peers.torch_repvgg import TorchBlock, build_torch, to_torch


@dataclass
class Port:
    """A torch training script; a planted bug changes one of its parts."""

    network: Any
    optimizer: Callable[..., Any]
    loss: Callable[[Any, Any, Any, float], Any]
    backward: Callable[[Any], None] = lambda loss: loss.backward()
    after_backward: Callable[[Any], None] = lambda network: None
    before_step: Callable[[Any], None] = lambda network: None
    zero: bool = True
    constant_lr: bool = False
    training: bool = True
    patches: list[Callable[[], Any]] = field(default_factory=list)


def dump_of(
    model: Model, steps: TrainingSteps, dtype: Any, plant: Callable[[Port], None] = lambda p: None
) -> dict[str, Array]:
    """Train in torch as the recipe says and return the arrays under the bundle's names."""
    network = build_torch(model.arch, eps=model.eps)
    network.load_state_dict(to_torch(model.state_dict()), strict=True)
    port = Port(network.to(dtype), _sgd, _loss)
    plant(port)
    network = port.network.train(port.training)
    recipe = steps.recipe
    x, labels = torch.tensor(steps.x).to(dtype), torch.tensor(steps.labels)
    optimizer = port.optimizer(network, recipe)
    arrays: dict[str, Array] = {}
    losses: list[float] = []
    for lr in recipe.lrs:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lrs[0] if port.constant_lr else lr
        if port.zero or not losses:
            optimizer.zero_grad()
        seen: dict[str, Any] = {}
        with _batch_statistics(network, seen):
            loss = port.loss(network, x, labels, recipe.label_smoothing)
            port.backward(loss)
        port.after_backward(network)
        if not losses:
            arrays |= {"loss": _numpy(loss), **{n: _numpy(a) for n, a in seen.items()}}
            arrays |= {f"grad/{n}": _numpy(p.grad) for n, p in network.named_parameters()}
            arrays |= {f"stat/{n}": _numpy(b) for n, b in network.named_buffers()}
        losses.append(_numpy(loss).item())
        port.before_step(network)
        optimizer.step()
    arrays["losses"] = torch.tensor(losses, dtype=dtype).numpy()
    return arrays | {f"after/{n}": _numpy(a) for n, a in network.state_dict().items()}


def _numpy(tensor: Any) -> Array:
    return tensor.detach().numpy().copy()


def _sgd(network: Any, recipe: Any, **changes: Any) -> Any:
    """torch's SGD with weight decay on kernels only."""
    everything = changes.pop("decay_everything", False)
    decay = changes.pop("weight_decay", recipe.weight_decay)
    groups = [
        {"params": [p], "weight_decay": decay if everything or p.ndim > 1 else 0.0}
        for p in network.parameters()
    ]
    how = {"momentum": recipe.momentum, "nesterov": recipe.nesterov} | changes
    return torch.optim.SGD(groups, lr=recipe.lrs[0], **how)


def _loss(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    return network.loss(x, labels, smoothing)


@contextmanager
def _batch_statistics(network: Any, seen: dict[str, Any]) -> Iterator[None]:
    """Note what every batch norm sees, and the logits."""

    def note(name: str) -> Callable[[Any, Any], None]:
        def hook(module: Any, inputs: Any) -> None:
            (z,) = inputs
            seen[f"batch_mean/{name}"] = z.mean(dim=(0, 2, 3))
            seen[f"batch_var/{name}"] = z.var(dim=(0, 2, 3), unbiased=False)

        return hook

    def keep(module: Any, inputs: Any, output: Any) -> None:
        seen["logits"] = output

    handles = [
        m.register_forward_pre_hook(note(n))
        for n, m in network.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    handles.append(network.linear.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------ planted bugs


def batch_norms(network: Any) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def _norm_with(change: Callable[[Any, Any], Any]) -> Callable[[Port], None]:
    """Replace batch norm's normalisation; running statistics stay torch's."""

    def plant(port: Port) -> None:
        for bn in batch_norms(port.network):

            def forward(x: Any, bn: Any = bn) -> Any:
                with torch.no_grad():
                    nn.BatchNorm2d.forward(bn, x)
                x_hat = change(x, bn)
                return x_hat * bn.weight[:, None, None] + bn.bias[:, None, None]

            bn.forward = forward

    return plant


def _statistics(x: Any) -> tuple[Any, Any]:
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    return mean, ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)


def _constant(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x.detach())
    return (x - mean) / torch.sqrt(var + bn.eps)


def _no_mean_term(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x)
    return (x - mean.detach()) / torch.sqrt(var + bn.eps)


def _no_variance_term(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x)
    return (x - mean) / torch.sqrt(var.detach() + bn.eps)


def _unbiased(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x)
    n = x.numel() / x.shape[1]
    return (x - mean) / torch.sqrt(var * n / (n - 1) + bn.eps)


def _detached(branch: str, only: str | None = None) -> Callable[[Port], None]:
    def plant(port: Port) -> None:
        for name, block in port.network.named_modules():
            if isinstance(block, TorchBlock) and hasattr(block, branch) and only in (None, name):
                getattr(block, branch).register_forward_pre_hook(
                    lambda module, inputs: (inputs[0].detach(),)
                )

    return plant


class _GuidedReLU(torch.autograd.Function):
    """Passes where the gradient is positive: a mask of the wrong tensor."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return torch.clamp(x, min=0)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return torch.clamp(grad, min=0)


class _PassingReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return torch.clamp(x, min=0)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


def _relu(function: Any) -> Callable[[Port], None]:
    def plant(port: Port) -> None:
        for module in port.network.modules():
            if isinstance(module, TorchBlock):
                block: Any = module

                def forward(x: Any, block: Any = block) -> Any:
                    names = [n for n, _ in block.named_children() if n.startswith("rbr_")]
                    total = sum(getattr(block, n)(x) for n in names)
                    return block.post_se(function.apply(block.se(total)))

                block.forward = forward

    return plant


def _set(**fields: Any) -> Callable[[Port], None]:
    def plant(port: Port) -> None:
        for name, value in fields.items():
            setattr(port, name, value)

    return plant


def _optimizer(**changes: Any) -> Callable[[Port], None]:
    return _set(optimizer=lambda network, recipe: _sgd(network, recipe, **changes))


def _bn(**fields: Any) -> Callable[[Port], None]:
    def plant(port: Port) -> None:
        for bn in batch_norms(port.network):
            for name, value in fields.items():
                setattr(bn, name, value)

    return plant


def _biased_running_var(port: Port) -> None:
    for bn in batch_norms(port.network):

        def hook(module: Any, inputs: Any, output: Any) -> None:
            (x,) = inputs
            n = x.numel() / x.shape[1]
            unbiased = x.detach().var(dim=(0, 2, 3), unbiased=True)
            module.running_var.data -= module.momentum * unbiased / n

        bn.register_forward_hook(hook)


def _swapped(network: Any) -> None:
    for bn in batch_norms(network):
        bn.weight.grad, bn.bias.grad = bn.bias.grad, bn.weight.grad


def _summed(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    loss = nn.functional.cross_entropy
    return loss(network(x), labels, label_smoothing=smoothing, reduction="sum")


def _softmax_twice(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    p = torch.softmax(network(x), dim=1)
    return nn.functional.cross_entropy(p, labels, label_smoothing=smoothing)


class _Decoupled(torch.optim.SGD):
    """SGDW: shrinks the weights themselves."""

    decay = 0.0

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.ndim > 1:
                        p.mul_(1 - group["lr"] * self.decay)
        return super().step(closure)


def _decoupled(network: Any, recipe: Any) -> Any:
    optimizer = _Decoupled(network.parameters(), lr=recipe.lrs[0], momentum=recipe.momentum)
    optimizer.decay = recipe.weight_decay
    return optimizer


class _LrInVelocity(torch.optim.SGD):
    """Caffe's: v = m v + lr d, w -= v."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    d = p.grad + group["weight_decay"] * p
                    v = self.state[p].get("v")
                    v = group["lr"] * d if v is None else group["momentum"] * v + group["lr"] * d
                    self.state[p]["v"] = v
                    p -= v


def _caffe(network: Any, recipe: Any) -> Any:
    groups = [
        {"params": [p], "weight_decay": recipe.weight_decay if p.ndim > 1 else 0.0}
        for p in network.parameters()
    ]
    return _LrInVelocity(groups, lr=recipe.lrs[0], momentum=recipe.momentum)


def _clip(network: Any) -> None:
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)


BUGS: dict[str, tuple[str, Callable[[Port], None]]] = {
    "constant statistics": ("bn-backward-constant-statistics", _norm_with(_constant)),
    "no mean term": ("bn-backward-without-mean-term", _norm_with(_no_mean_term)),
    "no variance term": ("bn-backward-without-variance-term", _norm_with(_no_variance_term)),
    "unbiased variance": ("bn-normalises-by-unbiased-variance", _norm_with(_unbiased)),
    "evaluation mode": ("bn-evaluation-mode", _set(training=False)),
    "eps 1e-3": ("bn-eps", _bn(eps=1e-3)),
    "momentum reversed": ("running-momentum-reversed", _bn(momentum=0.9)),
    "momentum 0.01": ("running-momentum-value", _bn(momentum=0.01)),
    "biased running_var": ("running-var-biased", _biased_running_var),
    "identity detached": ("identity-gradient-missing", _detached("rbr_identity")),
    "1x1 detached": ("branch-1x1-gradient-missing", _detached("rbr_1x1")),
    "guided ReLU": ("relu-mask-wrong", _relu(_GuidedReLU)),
    "ReLU passes all": ("relu-mask-wrong", _relu(_PassingReLU)),
    "loss summed": ("loss-summed", _set(loss=_summed)),
    "1/N missing": (
        "loss-gradient-not-averaged",
        _set(backward=lambda loss: (2 * loss).backward()),  # a batch of two
    ),
    "no smoothing": (
        "label-smoothing",
        _set(loss=lambda network, x, labels, _: network.loss(x, labels, 0.0)),
    ),
    "softmax twice": ("softmax-twice", _set(loss=_softmax_twice)),
    "gamma and beta swapped": ("gamma-beta-gradients-swapped", _set(after_backward=_swapped)),
    "decay everywhere": ("weight-decay-on-batch-norm", _optimizer(decay_everything=True)),
    "no decay": ("weight-decay-missing", _optimizer(weight_decay=0.0)),
    "decoupled decay": ("weight-decay-decoupled", _set(optimizer=_decoupled)),
    "nesterov": ("nesterov", _optimizer(nesterov=True)),
    "no momentum": ("momentum-missing", _optimizer(momentum=0.0)),
    "dampening": ("momentum-dampened", _optimizer(dampening=0.9)),
    "lr in the velocity": ("velocity-holds-learning-rate", _set(optimizer=_caffe)),
    "no zero_grad": ("gradients-accumulate", _set(zero=False)),
    "constant lr": ("learning-rates", _set(constant_lr=True)),
    "clipped": ("gradients-clipped", _set(before_step=_clip)),
}
