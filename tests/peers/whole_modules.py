"""Whole modules as trainers save them: torch's own pickles of the published blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.peers.family_modules import PLAIN, Named, bn, conv, drawn

# How torch can write: the zip in two protocols, and the stream before 1.6 with its class sources.
WRITTEN: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


class Detector(nn.Module):  # type: ignore[misc]
    """As the YOLO line's: blocks at numbers, a head, and much beside them that is no array."""

    def __init__(self, seed: int = 0, cases: tuple[str, ...] = ("yolov6", "yolov9")) -> None:
        super().__init__()
        blocks = [nn.Sequential(drawn(PLAIN[c][1], seed + i)) for i, c in enumerate(cases)]
        self.model = nn.Sequential(*blocks, nn.SiLU())
        self.head = nn.Conv2d(6, 5, 1).double()
        self.register_buffer("anchors", torch.arange(6.0).reshape(3, 2))
        self.register_buffer("grid", torch.zeros(3), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("scale", None)
        self.extra = None
        self.stride = torch.tensor([8.0, 16.0, 32.0])
        self.names = ["person", "bicycle"]
        self.yaml = {"nc": 2, "anchors": [[1, 2], [3, 4]]}
        self.blocks_again = [self.model[0]]  # a list registers nothing
        self.parent = {"of": self}  # and a cycle that no state dict sees

    def forward(self, x: Any) -> Any:
        return self.head(self.model(x))


class Qa(nn.Module):  # type: ignore[misc]
    """QARepVGG as YOLOv6 publishes it: the identity, and V2's average, are modules or None."""

    def __init__(self, i: int, o: int, stride: int, *, average: bool = False) -> None:
        super().__init__()
        wide = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.rbr_dense = Named(wide, bn(o, 1e-3))
        self.rbr_1x1 = nn.Conv2d(i, o, 1, stride, bias=False)
        same = i == o and stride == 1
        self.rbr_identity = nn.Identity() if same else None
        if average:
            self.rbr_avg = nn.AvgPool2d(3, stride, 1) if same else None
        self.bn = bn(o, 1e-3)
        self.average = average

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        for name in ("rbr_identity", "rbr_avg"):
            branch = getattr(self, name, None)
            y = y if branch is None else y + branch(x)
        return y


class Shared(nn.Module):  # type: ignore[misc]
    """One block under two names, and one convolution in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = drawn(PLAIN["rtdetr"][1], 5)
        self.second = self.first
        self.heads = nn.ModuleList([conv(6, 6, 1).double()] * 3)

    def forward(self, x: Any) -> Any:
        return self.heads[0](self.second(self.first(x)))


class Scaled(nn.Conv2d):  # type: ignore[misc]
    """A convolution by its class's name and arrays; what it computes stands in code."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):  # type: ignore[misc]
    """Of a kernel whose mean is taken away first."""

    def forward(self, x: Any) -> Any:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, None)


class IdentityBasedConv1x1(nn.Conv2d):  # type: ignore[misc]
    """W + I, as the diverse branch block was first published."""

    def forward(self, x: Any) -> Any:
        return x + super().forward(x)


class Negated(nn.BatchNorm2d):  # type: ignore[misc]
    """The same of a batch norm."""

    def forward(self, x: Any) -> Any:
        return -super().forward(x)


class Sequential(nn.Sequential):  # type: ignore[misc]
    """A container called as torch's is, which doubles what its parts make."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


class Hook:
    """A hook that is an object, as pickles can carry it."""

    def __call__(self, module: Any, x: Any, y: Any) -> Any:
        return 2 * y


def written(folder: Path, root: Any, how: str = "zip") -> Path:
    path = folder / "whole.pt"
    torch.save(root, path, **WRITTEN[how])
    return path


def with_eps(module: Any, *eps: float) -> Any:
    """The module with these eps on its batch norms, in turn."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    for place, norm in enumerate(norms):
        norm.eps = eps[place % len(eps)]
    return module
