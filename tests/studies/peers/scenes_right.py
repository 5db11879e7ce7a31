# mypy: allow-untyped-calls, disable-error-code="no-any-return"
"""Right ports of PSPNet's training in torch: other orders of summation, other operators."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from repvgg_ref.arrays import Array
from tests.peers.scenes_ports import Port, Tensor
from tests.studies.peers.scenes_plants import Plant, settings, wrapped


def _last_channel_first(port: Port) -> None:
    """Channels last in memory."""
    port.x = port.x.contiguous(memory_format=torch.channels_last)


def _in_reverse(port: Port) -> None:
    """The images in another order: sums over the batch are added up otherwise."""
    port.x, port.labels = port.x.flip(0), port.labels.flip(0)
    port.kept = {name: mask.flip(0) for name, mask in port.kept.items()}
    right = port.dump

    def dump() -> dict[str, Array]:
        found = right()
        return found | {"logits": found["logits"][::-1].copy()}

    setattr(port, "dump", dump)  # noqa: B010 - mypy forbids assigning to a method


def _unfolded(port: Port, right: Any, name: str, x: Tensor, **how: Any) -> Tensor:
    """A product of matrices, the windows written out."""
    weight, bias = port.state[f"{name}.weight"], port.state.get(f"{name}.bias")
    side, stride = weight.shape[2], how.get("stride", 1)
    padding, dilation = how.get("padding", 0), how.get("dilation", 1)
    pixels = [(n + 2 * padding - dilation * (side - 1) - 1) // stride + 1 for n in x.shape[2:]]
    columns = F.unfold(x, side, dilation, padding, stride)  # (N, C K K, pixels)
    y = (weight.flatten(1) @ columns).unflatten(2, pixels)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def _by_halves(port: Port, right: Any, name: str, x: Tensor, **how: Any) -> Tensor:
    """The input channels in two parts, whose convolutions are added up."""
    weight, whole = port.state[f"{name}.weight"], x.shape[1] // 2
    bias = port.state.get(f"{name}.bias")
    if not whole:
        return right(name, x, **how)
    first = F.conv2d(x[:, :whole], weight[:, :whole], bias, **how)
    return first + F.conv2d(x[:, whole:], weight[:, whole:], None, **how)


def _of_devices(port: Port, right: Any, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Synchronised statistics: each image's device sends its mean and its squares' sum."""
    means = x.mean((2, 3))
    mean = means.mean(0)
    within = ((x - means[:, :, None, None]) ** 2).mean((2, 3)).mean(0)
    return mean, within + ((means - mean) ** 2).mean(0)


def _of_squares(port: Port, right: Any, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of squares less the mean's square, in float64."""
    wide = x.double()
    mean = wide.mean((0, 2, 3))
    return mean.to(x.dtype), ((wide**2).mean((0, 2, 3)) - mean**2).to(x.dtype)


def _torch_norm(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    mean, var = port.statistics(name, x)
    if port.step == 0:
        port.seen |= {f"batch_mean/{name}": mean, f"batch_var/{name}": var}
    port.state[f"{name}.num_batches_tracked"] += 1
    mean, var = (port.state[f"{name}.running_{what}"] for what in ("mean", "var"))
    gamma, beta = port.state[f"{name}.weight"], port.state[f"{name}.bias"]
    return F.batch_norm(x, mean, var, gamma, beta, True, port.bn_momentum, port.eps)


def _torch_loss(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, port.labels, ignore_index=255)


def _of_images(port: Port, right: Any, name: str, logits: Tensor) -> Tensor:
    """Each image's sum, over the count of all."""
    pairs = zip(logits, port.labels, strict=True)
    sums = [F.cross_entropy(y[None], k[None], ignore_index=255, reduction="sum") for y, k in pairs]
    return torch.stack(sums).sum() / (port.labels != 255).sum()


def _in_one_backward(port: Port, right: Any, loss: Tensor) -> dict[str, Tensor]:
    """The loss times 1024 for the way back, and divided again."""
    return {name: grad / 1024 for name, grad in right(1024 * loss).items()}


def _by_matrices(port: Port, right: Any, where: str, x: Tensor, size: Any) -> Tensor:
    """A x B^T, where A and B hold the weights of pixels."""
    rows, columns = (_interpolation(n, k, x.dtype) for n, k in zip(size, x.shape[2:], strict=True))
    return rows @ x @ columns.T


def _interpolation(outputs: int, pixels: int, dtype: Any) -> Tensor:
    place = torch.arange(outputs, dtype=torch.float64) * (pixels - 1) / max(outputs - 1, 1)
    distance = (place[:, None] - torch.arange(pixels)[None]).abs()
    return (1 - distance).clamp(min=0).to(dtype)


def _by_windows(port: Port, right: Any, x: Tensor, bins: int) -> Tensor:
    """Each window's own mean, written in a loop."""
    height, width = x.shape[2:]
    rows = [(i * height // bins, -(-(i + 1) * height // bins)) for i in range(bins)]
    columns = [(i * width // bins, -(-(i + 1) * width // bins)) for i in range(bins)]
    means = [[x[:, :, a:b, c:d].mean((2, 3)) for c, d in columns] for a, b in rows]
    return torch.stack([torch.stack(each, -1) for each in means], -2)


def _scaled_first(port: Port, right: Any, name: str, x: Tensor) -> Tensor:
    """What is kept is divided first, and masked then."""
    return (x / (1 - port.dropout)) * port.kept[name][:, :, None, None]


def _in_place(port: Port, right: Any, name: str, weight: Tensor, grad: Tensor) -> Tensor:
    """As torch's SGD: velocity and weight in place."""
    d = grad.clone().add_(weight, alpha=port.decay_of(name))
    if name in port.velocity:
        d = port.velocity[name].mul_(port.momentum).add_(d)
    port.velocity[name] = d
    return weight.clone().add_(d, alpha=-port.rate(name))


def _all_of(*plants: Plant) -> Plant:
    def plant(port: Port) -> None:
        for each in plants:
            each(port)

    return plant


RIGHT: dict[str, Plant] = {
    "as it stands": settings(),
    "channels last": _last_channel_first,
    "images in reverse": _in_reverse,
    "windows written out": wrapped("conv", _unfolded),
    "channels in two halves": wrapped("conv", _by_halves),
    "statistics of devices put together": wrapped("statistics", _of_devices),
    "variance of squares, in float64": wrapped("statistics", _of_squares),
    "torch's batch norm": wrapped("norm", _torch_norm),
    "torch's loss": wrapped("cross_entropy", _torch_loss),
    "loss by images": wrapped("cross_entropy", _of_images),
    "loss scaled and gradients scaled back": wrapped("gradients", _in_one_backward),
    "resized by matrices": wrapped("resize", _by_matrices),
    "pooled window by window": wrapped("pool", _by_windows),
    "dropout scaled first": wrapped("drop", _scaled_first),
    "updated in place": wrapped("update", _in_place),
}
RIGHT["all that torch has"] = _all_of(
    *(RIGHT[n] for n in ("channels last", "torch's batch norm", "torch's loss", "updated in place"))
)
RIGHT["all that it has not"] = _all_of(
    *(
        RIGHT[name]
        for name in (
            "windows written out",
            "statistics of devices put together",
            "loss by images",
            "resized by matrices",
            "pooled window by window",
        )
    )
)
