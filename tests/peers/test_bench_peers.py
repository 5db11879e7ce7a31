# mypy: allow-subclassing-any
# This project does not follow the types torch publishes: it is a witness, not a dependency.
"""Every installed peer is given the same network, and the comparison networks are torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.bench import race as race_module
from repvgg_ref.bench.contenders.base import ENTRIES, OURS, PEERS
from repvgg_ref.bench.contenders.ncnn_peer import write_ncnn
from repvgg_ref.bench.conversion import OFFICIAL, race_conversions
from repvgg_ref.bench.graph import Graph
from repvgg_ref.bench.race import race
from repvgg_ref.bench.task import Task
from repvgg_ref.models.comparison import COMPARISONS, random_network_params
from repvgg_ref.models.network import fuse

torch = pytest.importorskip("torch")
nn: Any = torch.nn
pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "TURN_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("entry", "network"),
    [*((entry, "RepVGG-A0") for entry in PEERS), (ENTRIES["ncnn"], "RepVGG-B1g4")],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_variant_of_a_peer_computes_the_same(entry: Any, network: str) -> None:
    if entry.missing():
        pytest.skip(f"{entry.name} is not installed")
    task = Task("inference", network, batch=2, size=32, threads=2)
    found = race(task, [ENTRIES[OURS], entry], rounds=1)
    assert found.skipped == []
    other = found.contenders[1]
    assert set(other.tried) == set(entry.variants(task))
    assert 0 < other.error < 2e-5
    assert other.version is not None


def test_a_training_step_of_torch_has_the_same_gradients() -> None:
    task = Task("training", "RepVGG-A0", batch=4, size=64, threads=1)
    found = race(task, [ENTRIES[OURS], ENTRIES["torch"]], rounds=1)
    assert 0 < found.contenders[1].error < 0.05
    # torch 2.13 crashes in channels_last training on some processors: then it must say so.
    assert all("channels_last" in each.name for each in found.skipped)


def test_the_official_conversion_gives_the_same_kernels() -> None:
    task = Task("inference", "RepVGG-A0", 1, 224, 1)
    found = race_conversions(task, official=True, rounds=1, progress=None)
    assert [one.name for one in found.contenders] == [OURS, OFFICIAL]
    assert 0 < found.contenders[1].error < 1e-5


def test_squeeze_and_excitation_is_refused_where_it_is_not_written(tmp_path: Path) -> None:
    from repvgg_ref.bench.contenders.base import CannotTakePartError
    from repvgg_ref.bench.contenders.torch_network import deploy_network, train_network
    from tests.models.small import SMALL, distinct_model

    model = distinct_model(SMALL["se-before-relu"], dtype="float32")
    with pytest.raises(CannotTakePartError):
        write_ncnn(fuse(model), tmp_path)
    with pytest.raises(CannotTakePartError):
        deploy_network(torch, fuse(model))
    with pytest.raises(CannotTakePartError):
        train_network(torch, model.arch, eps=model.eps)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


class Basic(nn.Module):
    """He et al., figure 5 left: two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(inputs, width, 3, stride), nn.ReLU(), _conv(width, width, 3)
        )
        same = inputs == width and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, width, 1, stride)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Figure 5 right: 1x1, 3x3, 1x1 with four times the channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        first, second = _conv(inputs, width, 1, stride), _conv(width, width, 3)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), _conv(width, 4 * width, 1))
        same = inputs == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, 4 * width, 1, stride)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(block: Any, depths: tuple[int, ...], widening: int) -> Any:
    layers = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            layers.append(block(channels, 64 * 2**stage, 2 if stage and not index else 1))
            channels = 64 * 2**stage * widening
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def vgg16(pixels: int) -> Any:
    layers: list[Any] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [_conv(channels, width, 3), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * pixels, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, 1000))


BUILT = {
    "ResNet-18": lambda: resnet(Basic, (2, 2, 2, 2), 1),
    "ResNet-34": lambda: resnet(Basic, (3, 4, 6, 3), 1),
    "ResNet-50": lambda: resnet(Bottleneck, (3, 4, 6, 3), 4),
    "VGG-16": lambda: vgg16(4),
}


@pytest.mark.parametrize("name", BUILT)
def test_comparison_networks_are_torchs(name: str) -> None:
    """Parameters are matched by the names' places in the block, not by the order of our layers."""
    network = COMPARISONS[name]
    params = random_network_params(network, height=64, width=64)
    built = BUILT[name]().eval()
    _load(built, params)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    with torch.inference_mode():
        wanted = built(torch.from_numpy(x)).numpy()
    for threads in (1, 2):
        got = Graph(network, params, x.shape, threads=threads).run(x)
        assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()


def _load(built: Any, params: dict[str, Any]) -> None:
    """Convolutions of a block in their order, its shortcut by name; every array is used once."""
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in params))
    shortcuts = [name for name in names if name.endswith("downsample")]
    others = [name for name in names if not name.endswith("downsample")]
    for path, layer in built.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            name = (shortcuts if path.endswith("shortcut") else others).pop(0)
            for part in ("weight", "bias"):
                array = torch.from_numpy(params[f"{name}.{part}"])
                assert getattr(layer, part).shape == array.shape
                getattr(layer, part).data = array
    assert not shortcuts + others
