# mypy: allow-untyped-calls, allow-subclassing-any
# mypy: disable-error-code="no-any-return"
"""How ports of PSPNet's training go wrong, in torch's own terms: each plant changes a `Port`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from tests.peers.scenes_ports import NEW, Port, Tensor

Plant = Callable[[Port], None]


def settings(**changed: Any) -> Plant:
    """Other values of a port's attributes."""

    def plant(port: Port) -> None:
        for name, value in changed.items():
            setattr(port, name, value)

    return plant


def wrapped(method: str, change: Callable[..., Any]) -> Plant:
    """`change(port, right, *arguments)` in place of a port's method."""

    def plant(port: Port) -> None:
        right = getattr(port, method)
        setattr(port, method, lambda *given, **how: change(port, right, *given, **how))

    return plant


def only(belongs: Callable[[str], bool], change: Callable[..., Any]) -> Callable[..., Any]:
    """A change of calls whose first argument, a name, belongs."""
    return lambda port, right, name, *rest, **how: (
        change(port, right, name, *rest, **how) if belongs(name) else right(name, *rest, **how)
    )


def straight_through(forward: Tensor, gradient_of: Tensor) -> Tensor:
    """The value of one, the gradient of the other."""
    return gradient_of + (forward - gradient_of).detach()


# ------------------------------------------------------------------------------- loss, labels


def relabelled(to: int) -> Plant:
    def plant(port: Port) -> None:
        port.labels = torch.where(port.labels == 255, to, port.labels)

    return plant


def _counted(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    return right(name, logits) * (port.labels != 255).float().mean().to(logits.dtype)


def _image_means(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    every, losses = port.labels, []
    for i in range(len(every)):
        port.labels = every[i : i + 1]
        losses.append(right(name, logits[i : i + 1]))
    port.labels = every
    return torch.stack(losses).mean()


def _smoothed(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    taken = port.labels != 255
    uniform = -(torch.log_softmax(logits, 1).mean(1) * taken).sum() / taken.sum()
    return 0.9 * right(name, logits) + 0.1 * uniform


def _summed(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    return right(name, logits) * (port.labels != 255).sum()


def _by_class(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    weight = torch.linspace(0.5, 1.5, logits.shape[1], dtype=logits.dtype)
    return F.cross_entropy(logits, port.labels, weight, ignore_index=255)


def _softmax_twice(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    return right(name, torch.softmax(logits, 1))


def _small_labels(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    """Labels resized to an eighth in place of the logits resized to the labels."""
    whole = port.labels
    port.labels = whole[:, ::8, ::8]
    loss = right(name, logits[:, :, ::8, ::8])
    port.labels = whole
    return loss


def _hard_examples(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    """Online hard example mining: the half of the pixels that cost most."""
    every = F.cross_entropy(logits, port.labels, ignore_index=255, reduction="none")[
        port.labels != 255
    ]
    return every.topk(len(every) // 2).values.mean()


def _labels_to_image(port: Port) -> None:
    port.labels = port.labels.flip(2)


def _aux_detached(port: Port, right: Any, x: Tensor) -> Tensor:
    return right(x).detach()


def _aux_of_stage_2(port: Port, right: Any, number: int, x: Tensor) -> Tensor:
    y = right(number, x)
    if number == 3:
        kept = y
        wrapped("aux_input", lambda port, right, given: kept.roll(1, 1))(port)
    return y


# ------------------------------------------------------------------------- dropout, resizing


def _undropped(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    return x


def _unscaled(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    return right(name, x) * (1 - port.dropout)


def _inverted(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    kept = port.kept[name]
    port.kept[name] = 1 - kept
    y = right(name, x)
    port.kept[name] = kept
    return y


def _mask_of_first(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    """One mask for the whole batch."""
    return x * (port.kept[name][:1] / (1 - port.dropout))[:, :, None, None]


def _dropped_backward_unscaled(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    y = right(name, x)
    return straight_through(y, y * (1 - port.dropout))


def _unaligned(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _nearest(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, tuple(size), mode="nearest")


def _bicubic(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bicubic", align_corners=True)


def _unaligned_backward(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return straight_through(right(where, x, size), _unaligned(port, right, where, x, size))


def _nearest_backward(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return straight_through(right(where, x, size), _nearest(port, right, where, x, size))


def _resize_without_gradient(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return right(where, x.detach(), size)


def _transposed_size(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return right(where, x.transpose(2, 3), size)


class _ResizedBack(torch.autograd.Function):
    """Backward by resizing the gradient back, which is not the transposed map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Any) -> Tensor:
        ctx.size = x.shape[2:]
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return F.interpolate(grad, ctx.size, mode="bilinear", align_corners=True), None


def _resized_back(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    return _ResizedBack.apply(x, tuple(size))


def _floor_windows(port: Port, right: Any, x: Tensor, bins: int) -> Tensor:
    """Windows of one size, the rest of the rows left out."""
    side = [n // bins for n in x.shape[2:]]
    if min(side) < 1:
        return right(x, bins)
    return F.avg_pool2d(x, side)[:, :, :bins, :bins]


def _max_pool(port: Port, right: Any, x: Tensor, bins: int) -> Tensor:
    return F.adaptive_max_pool2d(x, bins)


def _no_own_input(port: Port, right: Any, x: Tensor) -> Tensor:
    y = right(x)
    return torch.cat([torch.zeros_like(x), y[:, x.shape[1] :]], 1)


def _floors_first(port: Port, right: Any, x: Tensor) -> Tensor:
    y = right(x)
    return torch.cat([y[:, x.shape[1] :], y[:, : x.shape[1]]], 1)


def _floors_detached(port: Port, right: Any, index: int, x: Tensor) -> Tensor:
    return right(index, x.detach())


def _floor_unrectified(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    return x


# --------------------------------------------------------------------------------- backbone


def geometry(change: Callable[[int, int, int, int], tuple[int, int]]) -> Plant:
    """`change(stage, index, stride, dilation)`."""

    def other(port: Port, right: Any, stage: int, index: int) -> tuple[int, int]:
        return change(stage, index, *right(stage, index))

    return wrapped("how", other)


# ------------------------------------------------------------------------------------ norms


def _unbiased(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    """Normalised by the unbiased variance."""
    y, (_, var), shift = right(name, x), port.statistics(name, x), port.state[f"{name}.bias"]
    count = x.numel() // x.shape[1]
    factor = torch.sqrt((var + port.eps) / (var * count / (count - 1) + port.eps))
    across = (1, -1, 1, 1)
    return shift.view(across) + (y - shift.view(across)) * factor.view(across)


def _per_device(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    """Statistics of each image's device alone: not synchronised."""
    if x.shape[2] * x.shape[3] == 1:
        return right(name, x)
    return torch.cat([right(name, x[i : i + 1]) for i in range(len(x))])


def _frozen(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    across = (1, -1, 1, 1)
    mean, var = port.state[f"{name}.running_mean"], port.state[f"{name}.running_var"]
    x_hat = (x - mean.view(across)) / torch.sqrt(var.view(across) + port.eps)
    scale, shift = port.state[f"{name}.weight"], port.state[f"{name}.bias"]
    return x_hat * scale.view(across) + shift.view(across)


def _detached(port: Port, right: Any, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = right(name, x)
    return mean.detach(), var.detach()


def _var_detached(port: Port, right: Any, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = right(name, x)
    return mean, var.detach()


def _biased_running(port: Port, right: Any, name: str, mean: Any, var: Any, n: int) -> None:
    right(name, mean, var * (n - 1) / n, n)


def _reversed_running(port: Port, right: Any, *given: Any) -> None:
    port.bn_momentum = 0.9
    right(*given)
    port.bn_momentum = 0.1


def _never_running(port: Port, right: Any, *given: Any) -> None:
    return


# -------------------------------------------------------------------------------- optimizer


def _is_norm(name: str) -> bool:
    """Gamma or beta: all that is no convolution's."""
    return not name.endswith(("conv.weight", ".0.weight", ".1.weight", ".4.weight", ".4.bias")) or (
        name in ("cls.1.weight", "aux.1.weight")
    )


def decaying(applies: Callable[[Port, str], bool], otherwise: float = 0.0) -> Plant:
    def change(port: Port, right: Any, name: str) -> float:
        return right(name) if applies(port, name) else otherwise * right(name)

    return wrapped("decay_of", change)


def rating(factor: Callable[[str], float]) -> Plant:
    return wrapped("rate", lambda port, right, name: factor(name) * right(name))


def scheduled(fraction: Callable[[int, int], float]) -> Plant:
    """The share of the first rate, of the step and the number of steps."""

    def rate(port: Port, right: Any, name: str) -> float:
        lr = port.recipe.lrs[0] * fraction(port.step, len(port.recipe.lrs))
        return lr * (port.times_new if name.startswith(NEW) else 1.0)

    return wrapped("rate", rate)


def _nesterov(port: Port, right: Any, name: str, weight: Tensor, grad: Tensor) -> Tensor:
    right(name, weight, grad)
    d = grad + port.decay_of(name) * weight
    return weight - port.rate(name) * (d + port.momentum * port.velocity[name])


def _caffe(port: Port, right: Any, name: str, weight: Tensor, grad: Tensor) -> Tensor:
    """The rate inside the velocity."""
    moved = port.rate(name) * (grad + port.decay_of(name) * weight)
    old = port.velocity.get(name)
    port.velocity[name] = moved if old is None else port.momentum * old + moved
    return weight - port.velocity[name]


def _decoupled(port: Port, right: Any, name: str, weight: Tensor, grad: Tensor) -> Tensor:
    decay, port.decay = port.decay, 0.0
    moved = right(name, weight, grad)
    port.decay = decay
    return moved - port.rate(name) * decay * weight


def _dampened(port: Port, right: Any, name: str, weight: Tensor, grad: Tensor) -> Tensor:
    d = grad + port.decay_of(name) * weight
    old = port.velocity.get(name)
    port.velocity[name] = d if old is None else port.momentum * old + 0.1 * d
    return weight - port.rate(name) * port.velocity[name]


def _accumulating(port: Port, right: Any, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    port.sums = {n: g + port.sums.get(n, 0) for n, g in grads.items()}
    return port.sums


def _clipped(port: Port, right: Any, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in grads.values()))
    return {n: g * float(0.5 * norm / norm) for n, g in grads.items()}


def _without(belongs: Callable[[str], bool]) -> Plant:
    """Parameters that the optimizer was never given."""

    def change(port: Port, right: Any, name: str, weight: Tensor, grad: Tensor) -> Tensor:
        return weight if belongs(name) else right(name, weight, grad)

    return wrapped("update", change)


def _scaled_gradients(factor: float) -> Plant:
    return wrapped(
        "gradients",
        lambda port, right, loss: {n: factor * g for n, g in right(loss).items()},
    )


def at(*names: str) -> Callable[[str], bool]:
    """Whether a name starts so."""
    return lambda name: name.startswith(names)
