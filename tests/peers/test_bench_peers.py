"""Every installed peer is given the same network, and the comparison networks are torch's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.bench import race as race_module
from repvgg_ref.bench.contenders.base import ENTRIES, OURS, PEERS
from repvgg_ref.bench.contenders.ncnn_peer import write_ncnn
from repvgg_ref.bench.conversion import OFFICIAL, race_conversions
from repvgg_ref.bench.race import race
from repvgg_ref.bench.task import Task
from repvgg_ref.models.network import fuse

torch = pytest.importorskip("torch")
from tests.peers.torch_baselines import build_torch, filled  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "TURN_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("entry", "network"),
    [
        *((entry, "RepVGG-A0") for entry in PEERS),
        (ENTRIES["ncnn"], "RepVGG-B1g4"),
        *((entry, "MobileOne-S0") for entry in PEERS),
    ],
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
    from tests.models.small import GRAPHS, SMALL, distinct_model

    with pytest.raises(CannotTakePartError):
        deploy_network(torch, fuse(distinct_model(GRAPHS["residual"], dtype="float32")))
    model = distinct_model(SMALL["se-before-relu"], dtype="float32")
    with pytest.raises(CannotTakePartError):
        write_ncnn(fuse(model), tmp_path)
    with pytest.raises(CannotTakePartError):
        deploy_network(torch, fuse(model))
    with pytest.raises(CannotTakePartError):
        train_network(torch, model.arch, eps=model.eps)


@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-34", "ResNet-50", "VGG-16"])
def test_comparison_networks_are_torchs(name: str) -> None:
    task = Task("inference", name, batch=2, size=64, threads=1)
    model = task.model()
    built = filled(build_torch(name, size=64, classes=1000), model).eval()
    with torch.inference_mode():
        wanted = built(torch.from_numpy(task.images())).numpy()
    for threads in (1, 2):
        contender = ENTRIES[OURS].prepare(replace(task, threads=threads), "auto")
        got = contender.outputs(contender.run())["logits"]
        assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()
