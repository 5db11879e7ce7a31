"""Networks exported by torch, batch norms kept or folded: one convolution a block, same outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import torch
from torch import nn

from repvgg_ref.files.convert_graph import convert_graph
from tests.peers.family_modules import PLAIN, bn, conv, drawn
from tests.peers.impulses import response
from tests.peers.linear_graphs import operators, run

pytestmark = pytest.mark.peers
# Its padded batch norm is written element by element into a larger tensor.
NOT_LINEAR_AS_EXPORTED = tuple(name for name in PLAIN if name.startswith("dbb"))
# A stride hides taps from single impulses; a product of constants is rounded in the file.
OF_OTHER_NUMBERS = ("strided", "ecbsr")


class Mixer(nn.Module):  # type: ignore[misc]
    """FastViT's RepMixer: x + g (mixer(x) - norm(x))."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.mixer = bn(c, 1e-5), nn.Sequential(conv(c, c, 3, groups=c), bn(c, 1e-5))
        self.scale = nn.Parameter(torch.ones(c, 1, 1))

    def forward(self, x: Any) -> Any:
        return x + self.scale * (self.mixer(x) - self.norm(x))


class Edges(nn.Module):  # type: ignore[misc]
    """ECBSR's expand and squeeze, without bias, and its fixed masks."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.plain = nn.Conv2d(c, c, 3, padding=1)
        self.expand, self.squeeze = conv(c, 2 * c, 1), nn.Conv2d(2 * c, c, 3, padding=1)
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).expand(c, 1, 3, 3)
        self.register_buffer("mask", sobel.contiguous())
        self.scale = nn.Parameter(torch.ones(c, 1, 1, 1))
        self.point = conv(c, c, 1)

    def forward(self, x: Any) -> Any:
        edges = nn.functional.conv2d(
            self.point(x), self.scale * self.mask, padding=1, groups=len(self.mask)
        )
        return self.plain(x) + self.squeeze(self.expand(x)) + edges + x


class Ghost(nn.Module):  # type: ignore[misc]
    """Two halves side by side: grouped convolutions by hand; sizes are computed in the graph."""

    def __init__(self, c: int) -> None:
        super().__init__()
        half = c // 2
        self.left, self.left_norm = conv(half, half, 3), bn(half, 1e-5)
        self.right = conv(half, half, 3)

    def forward(self, x: Any) -> Any:
        left, right = torch.chunk(x, 2, dim=1)
        return torch.cat([self.left_norm(self.left(left)), self.right(right)], dim=1)


class Strided(nn.Module):  # type: ignore[misc]
    """A first block of a stage, dilated beside its 1x1."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(c, 2 * c, 3, (2, 1), 2, 2, bias=False)
        self.point = nn.Conv2d(c, 2 * c, 1, (2, 1), bias=False)
        self.norms = nn.ModuleList([bn(2 * c, 1e-3) for _ in range(2)])

    def forward(self, x: Any) -> Any:
        return self.norms[0](self.wide(x)) + self.norms[1](self.point(x))


NETWORKS: dict[str, Callable[[], Any]] = {
    **{name: b for name, (_, b, _) in PLAIN.items() if name not in NOT_LINEAR_AS_EXPORTED},
    "fastvit": lambda: Mixer(6),
    "ecbsr": lambda: Edges(6),
    "halves": lambda: Ghost(8),
    "strided": lambda: Strided(4),
}


def exported(path: Path, module: Any, x: Any, *, folded: bool, dynamic: bool) -> Any:
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that runs without onnxscript
        torch.onnx.export(
            module, (x,), str(path), dynamo=False, opset_version=17, training=mode,
            do_constant_folding=folded, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": [0, 2, 3]} if dynamic else None,
        )  # fmt: skip
    return onnx.load(path)


def require_exact_taps(result: Any, block: Any) -> None:
    """The kernel is that of impulses through torch in float64, rounded: of what float32 holds."""
    (conv, _) = result.graph.node
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in result.graph.initializer}
    weight, bias = (arrays[name] for name in conv.input[1:])
    groups = next(a.i for a in conv.attribute if a.name == "group")
    exact, rest = response(block.double(), weight.shape[1] * groups, weight.shape[2] // 2)
    per_group = len(weight) // groups
    for o in range(len(weight)):
        first = o // per_group * weight.shape[1]
        want = exact[o, first : first + weight.shape[1]].numpy()
        assert np.abs(want).sum() == pytest.approx(float(exact[o].abs().sum()), rel=1e-9)
        assert (np.abs(weight[o] - want) <= np.spacing(np.abs(weight[o])) * 0.501 + 1e-9).all()
    assert (np.abs(bias - rest.numpy()) <= np.spacing(np.abs(bias)) * 0.501 + 1e-9).all()


@pytest.mark.few
@pytest.mark.parametrize("folded", [False, True], ids=["norms kept", "norms folded"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_block_is_one_convolution_and_gives_what_torch_gives(
    name: str, folded: bool, dynamic: bool, tmp_path: Path
) -> None:
    block = drawn(NETWORKS[name], seed=len(name))
    channels = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
    channels = 8 if name == "halves" else channels
    module = nn.Sequential(block, nn.ReLU()).eval()
    x = torch.randn(2, channels, 11, 14, dtype=torch.float64)
    with torch.no_grad():
        want = module(x).numpy()
    model = exported(
        tmp_path / "in.onnx", module.float(), x.float(), folded=folded, dynamic=dynamic
    )
    done = convert_graph(tmp_path / "in.onnx", tmp_path / "out.onnx")
    result = onnx.load(tmp_path / "out.onnx")
    assert operators(result) == ["Conv", "Relu"]
    assert (done.convs_before, done.convs_after) == (operators(model).count("Conv"), 1)
    assert done.left == ()
    (got,) = run(result, x.float().numpy())
    scale = np.abs(want).max()
    assert np.abs(got - want).max() <= 3e-6 * scale
    if not folded and name not in OF_OTHER_NUMBERS:
        require_exact_taps(result, block)
    theirs = np.abs(run(model, x.float().numpy())[0] - want).max()
    assert np.abs(got - want).max() <= 4 * theirs + 1e-7 * scale  # no worse than theirs


@pytest.mark.parametrize("folded", [False, True], ids=["norms kept", "norms folded"])
def test_a_diverse_branch_block_is_left_with_the_reason(folded: bool, tmp_path: Path) -> None:
    """Its 3x3 and 1x1 become one; what its padded batch norms write over images stays."""
    module = drawn(PLAIN["dbb"][1], seed=1).float()
    x = torch.randn(1, 4, 9, 8)
    model = exported(tmp_path / "in.onnx", module, x, folded=folded, dynamic=True)
    done = convert_graph(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert (done.convs_before, done.convs_after) == (5, 4)
    reasons = [each.reason for each in done.left if "ScatterND" in each.node]
    assert any("the padded batch norm of a diverse branch block" in why for why in reasons)
    (want,), (got,) = run(model, x.numpy()), run(onnx.load(tmp_path / "out.onnx"), x.numpy())
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("folded", [False, True], ids=["norms kept", "norms folded"])
def test_networks_of_many_blocks(folded: bool, tmp_path: Path) -> None:
    """Every block of a chain, a residual around some; a separable pair stays two."""
    parts = [drawn(PLAIN[name][1], seed=k) for k, name in enumerate(("yolov6", "repvit", "yolov9"))]
    separable = [conv(6, 6, 3, groups=6), conv(6, 8, 1)]

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([each.float() for each in parts])
            self.tail = nn.Sequential(*separable)

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = x + 0.5 * torch.relu(block(x))
            return torch.sigmoid(self.tail(x))

    model = exported(
        tmp_path / "in.onnx", Network().eval(), torch.randn(1, 6, 9, 9), folded=folded, dynamic=True
    )
    done = convert_graph(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert (done.convs_before, done.convs_after) == (8, 5)
    assert any("multiply-accumulates a pixel in place of" in each.reason for each in done.left)
    x = np.random.default_rng(0).normal(size=(2, 6, 12, 7)).astype(np.float32)
    (want,), (got,) = run(model, x), run(onnx.load(tmp_path / "out.onnx"), x)
    assert np.abs(got - want).max() <= 1e-5
