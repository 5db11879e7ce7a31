# mypy: allow-untyped-calls, disable-error-code="no-any-return"
"""A PSPNet trained in torch, written from the paper as functions of a state dict.

It shares nothing with `tests.peers.torch_pspnet`: no modules, no optimizer of torch's, each step a
method, so that a wrong port overrides one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training.steps import TrainingSteps

BINS = (1, 2, 3, 6)
DILATIONS = {3: 2, 4: 4}
NEW = ("ppm.", "cls.", "aux.")
Tensor = Any


class Port:
    """Trains as the recipe says; a subclass or an attribute makes it wrong, or right otherwise."""

    aux_weight, dropout, eps, bn_momentum, ignored = 0.4, 0.1, 1e-5, 0.1, 255
    momentum, power, times_new = 0.9, 0.9, 10.0
    bins = BINS

    def __init__(
        self, state: Mapping[str, Array], steps: TrainingSteps, dtype: Any, **changed: Any
    ) -> None:
        self.dtype, self.steps, self.recipe = dtype, steps, steps.recipe
        self.decay = self.recipe.weight_decay
        self.state = {n: self.tensor(a) for n, a in state.items()}
        self.x, self.labels = self.tensor(steps.x), torch.tensor(steps.labels)
        self.kept = {n.partition(".")[0]: self.tensor(k * 1.0) for n, k in steps.kept.items()}
        self.velocity: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}  # of gradients that a wrong port never clears
        self.seen: dict[str, Tensor] = {}
        self.step = 0
        for name, value in changed.items():
            setattr(self, name, value)

    def tensor(self, array: Any) -> Tensor:
        found = torch.tensor(np.asarray(array))
        return found.to(self.dtype) if found.is_floating_point() else found

    # ------------------------------------------------------------------ forward

    def conv(self, name: str, x: Tensor, **how: Any) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **how)

    def statistics(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)

    def running(self, name: str, mean: Tensor, var: Tensor, count: int) -> None:
        for what, new in (("mean", mean), ("var", var * count / (count - 1))):
            old = self.state[f"{name}.running_{what}"]
            old.copy_((1 - self.bn_momentum) * old + self.bn_momentum * new.detach())
        self.state[f"{name}.num_batches_tracked"] += 1

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var = self.statistics(name, x)
        if self.step == 0:
            self.seen |= {f"batch_mean/{name}": mean, f"batch_var/{name}": var}
        self.running(name, mean, var, x.numel() // x.shape[1])
        across = (1, -1, 1, 1)
        scale = self.state[f"{name}.weight"] / torch.sqrt(var + self.eps)
        x_hat = (x - mean.view(across)) * scale.view(across)
        return x_hat + self.state[f"{name}.bias"].view(across)

    def relu(self, name: str, x: Tensor) -> Tensor:
        return torch.relu(x)

    def how(self, stage: int, index: int) -> tuple[int, int]:
        """Stride and dilation."""
        if stage in DILATIONS:
            return 1, DILATIONS[stage]
        return (2 if index == 0 else 1), 1

    def block(self, name: str, x: Tensor, stride: int, dilation: int) -> Tensor:
        wide = self.conv(f"{name}.rbr_dense.conv", x, stride=stride, padding=dilation,
                         dilation=dilation)  # fmt: skip
        y = self.norm(f"{name}.rbr_dense.bn", wide)
        narrow = self.conv(f"{name}.rbr_1x1.conv", x, stride=stride)
        y = y + self.norm(f"{name}.rbr_1x1.bn", narrow)
        if f"{name}.rbr_identity.weight" in self.state:
            y = y + self.norm(f"{name}.rbr_identity", x)
        return self.relu(name, y)

    def resize(self, where: str, x: Tensor, size: Any) -> Tensor:
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)

    def pool(self, x: Tensor, bins: int) -> Tensor:
        return F.adaptive_avg_pool2d(x, bins)

    def floor(self, index: int, x: Tensor) -> Tensor:
        name = f"ppm.features.{index}"
        y = self.conv(f"{name}.1", self.pool(x, self.bins[index]))
        y = self.relu(name, self.norm(f"{name}.2", y))
        return self.resize(name, y, x.shape[2:])

    def pyramid(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(self.floor(i, x) for i in range(4))], 1)

    def drop(self, name: str, x: Tensor) -> Tensor:
        return x * (self.kept[name] / (1 - self.dropout))[:, :, None, None]

    def head(self, name: str, x: Tensor) -> Tensor:
        y = self.relu(name, self.norm(f"{name}.1", self.conv(f"{name}.0", x, padding=1)))
        return self.conv(f"{name}.4", self.drop(name, y))

    def stage(self, number: int, x: Tensor) -> Tensor:
        blocks = {n.split(".")[1] for n in self.state if n.startswith(f"layer{number}.")}
        if number == 0:
            return self.block("layer0", x, *self.how(0, 0))
        for index in sorted(map(int, blocks)):
            x = self.block(f"layer{number}.{index}", x, *self.how(number, index))
        return x

    def ends(self) -> tuple[Tensor, Tensor]:
        """Logits, main and auxiliary, at the images' size."""
        x = self.x
        for number in range(4):
            x = self.stage(number, x)
        main = self.head("cls", self.pyramid(self.stage(4, x)))
        aux = self.head("aux", self.aux_input(x))
        size = self.x.shape[2:]
        return self.resize("cls", main, size), self.resize("aux", aux, size)

    def aux_input(self, x: Tensor) -> Tensor:
        return x

    def cross_entropy(self, name: str, logits: Tensor) -> Tensor:
        taken = self.labels != self.ignored
        scores = torch.log_softmax(logits, 1)
        chosen = scores.gather(1, torch.where(taken, self.labels, 0)[:, None])[:, 0]
        return -(chosen * taken).sum() / taken.sum()

    def loss(self, main: Tensor, aux: Tensor) -> Tensor:
        weighed = self.aux_weight * self.cross_entropy("aux", aux)
        return self.cross_entropy("cls", main) + weighed

    # ----------------------------------------------------------------- backward

    def parameters(self) -> list[str]:
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        return [n for n in self.state if not n.endswith(buffers)]

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        names = self.parameters()
        found = torch.autograd.grad(loss, [self.state[n] for n in names], allow_unused=True)
        return {
            n: torch.zeros_like(self.state[n]) if g is None else g
            for n, g in zip(names, found, strict=True)
        }

    def rate(self, name: str) -> float:
        """Of the poly schedule, ten times as much for what stands behind the backbone."""
        count = len(self.recipe.lrs)
        lr = self.recipe.lrs[0] * (1 - self.step / count) ** self.power
        return lr * (self.times_new if name.startswith(NEW) else 1.0)

    def decay_of(self, name: str) -> float:
        return self.decay

    def update(self, name: str, weight: Tensor, grad: Tensor) -> Tensor:
        d = grad + self.decay_of(name) * weight
        v = d if name not in self.velocity else self.momentum * self.velocity[name] + d
        self.velocity[name] = v
        return weight - self.rate(name) * v

    def before_update(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        return grads

    def dump(self) -> dict[str, Array]:
        """Train, and note everything under the bundle's names."""
        losses: list[float] = []
        found: dict[str, Tensor] = {}
        for step in range(len(self.recipe.lrs)):
            self.step = step
            for name in self.parameters():
                self.state[name] = self.state[name].detach().requires_grad_()
            main, aux = self.ends()
            loss = self.loss(main, aux)
            grads = self.gradients(loss)
            losses.append(loss.item())
            if self.step == 0:
                found = {"loss": loss, "logits": main, **self.seen}
                found |= {f"grad/{n}": g for n, g in grads.items()}
                found |= {f"stat/{n}": self.state[n].clone() for n in self.state if n not in grads}
            with torch.no_grad():
                for name, grad in self.before_update(grads).items():
                    self.state[name] = self.update(name, self.state[name], grad)
        found |= {f"after/{n}": a for n, a in self.state.items()}
        arrays = {n: a.detach().numpy().copy() for n, a in found.items()}
        return arrays | {"losses": np.asarray(losses, arrays["loss"].dtype)}
