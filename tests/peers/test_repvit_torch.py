# mypy: allow-subclassing-any
"""RepViT against a torch network with the published names, and the published counts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.cpu import NUMPY
from repvgg_ref.files.convert import convert
from repvgg_ref.models import gated
from repvgg_ref.models.repvit import repvit, rows
from repvgg_ref.oracle.families.graph_file import judge_graph_file
from repvgg_ref.oracle.families.kind import kind_of
from tests.models.small import distinct_model

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

pytestmark = pytest.mark.peers

WIDTHS, DEPTHS = (8, 16, 24), (2, 1, 2)
TINY = (8, 16)  # with one pair in each stage


class ConvNorm(nn.Sequential):
    """The published pair ``c``, ``bn``."""

    def __init__(self, i: int, o: int, k: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(o))


class Mixer(nn.Module):
    """RepVGGDW."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = ConvNorm(c, c, 3, groups=c)
        self.conv1 = nn.Conv2d(c, c, 1, groups=c)
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x) + self.conv1(x) + x)


class Gate(nn.Module):
    """timm's squeeze-and-excitation."""

    def __init__(self, c: int) -> None:
        super().__init__()
        narrow = max(8, int(c / 4 + 4) // 8 * 8)
        self.fc1, self.fc2 = nn.Conv2d(c, narrow, 1), nn.Conv2d(narrow, c, 1)

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.m = nn.Sequential(ConvNorm(c, 2 * c, 1), nn.GELU(), ConvNorm(2 * c, c, 1))

    def forward(self, x: Any) -> Any:
        return x + self.m(x)


class Pair(nn.Module):
    def __init__(self, i: int, row: Any) -> None:
        super().__init__()
        gate = Gate(i) if row.gated else nn.Identity()
        if row.stride == 1:
            self.token_mixer = nn.Sequential(Mixer(i), gate)
        else:
            wide = ConvNorm(i, row.channels, 1)
            self.token_mixer = nn.Sequential(ConvNorm(i, i, 3, 2, i), gate, wide)
        self.channel_mixer = Residual(row.channels)

    def forward(self, x: Any) -> Any:
        return self.channel_mixer(self.token_mixer(x))


class NormLinear(nn.Module):
    def __init__(self, c: int, classes: int) -> None:
        super().__init__()
        self.bn, self.l = nn.BatchNorm1d(c), nn.Linear(c, classes)

    def forward(self, x: Any) -> Any:
        return self.l(self.bn(x))


class TorchRepVit(nn.Module):
    def __init__(self, widths: Any, depths: Any, classes: int) -> None:
        super().__init__()
        c = widths[0]
        stem = nn.Sequential(ConvNorm(3, c // 2, 3, 2), nn.GELU(), ConvNorm(c // 2, c, 3, 2))
        blocks = []
        for row in rows(widths, depths):
            blocks.append(Pair(c, row))
            c = row.channels
        self.features = nn.ModuleList([stem, *blocks])
        self.classifier = nn.ModuleDict({"classifier": NormLinear(c, classes)})

    def forward(self, x: Any) -> Any:
        for part in self.features:
            x = part(x)
        return self.classifier["classifier"](x.mean((2, 3)))


def small() -> Any:
    return repvit("small", widths=WIDTHS, depths=DEPTHS, num_classes=5)


def tiny() -> Any:
    return distinct_model(
        repvit("tiny", widths=TINY, depths=(1, 1), num_classes=5), dtype=np.float32
    )


def torch_of(model: Any, widths: Any = WIDTHS, depths: Any = DEPTHS) -> Any:
    root = TorchRepVit(widths, depths, 5).double()
    state = {name: torch.tensor(np.asarray(a)) for name, a in model.state_dict().items()}
    missing, spare = root.load_state_dict(state, strict=False)
    assert not spare
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return root


@pytest.mark.parametrize(
    ("name", "million_params", "billion_macs"),
    [("M0.9", 5.1, 0.8), ("M1.0", 6.8, 1.1), ("M1.1", 8.2, 1.3), ("M1.5", 14.0, 2.3),
     ("M2.3", 22.9, 4.5)],
)  # fmt: skip
def test_the_published_counts(name: str, million_params: float, billion_macs: float) -> None:
    """Table 1 of the paper."""
    counted = rr.cost(rr.build(f"RepViT-{name}").arch)
    found = round(counted.params_deploy / 1e6, 2), round(counted.macs / 1e9, 2)
    assert abs(found[0] - million_params) < 0.051
    assert abs(found[1] - billion_macs) < 0.051


@pytest.mark.parametrize("channels", [8, 20, 36, 40, 44, 48, 56, 72, 80, 112])
def test_gates_are_as_wide_inside_as_timms(channels: int) -> None:
    network = repvit("gated", widths=(channels,), depths=(1,))
    (gate,) = (node.op for node in network.nodes if isinstance(node.op, gated.Gate))
    assert gate.hidden == Gate(channels).fc1.out_channels


def test_evaluation_loss_and_gradients_are_torchs() -> None:
    model = distinct_model(small())
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((3, 3, 41, 35)), rng.integers(0, 5, 3)
    root = torch_of(model)
    with torch.no_grad():
        want = root.eval()(torch.tensor(x)).numpy()
    got = model.forward(x)
    assert not np.abs(got - want).max() > 1e-9 * np.abs(want).max()
    loss = nn.functional.cross_entropy(root.train()(torch.tensor(x)), torch.tensor(labels))
    loss.backward()
    ours = model.loss_and_grads(x, labels)
    assert float(ours.loss) == pytest.approx(loss.item(), rel=1e-11)
    theirs = {name: p.grad.numpy() for name, p in root.named_parameters()}
    assert theirs.keys() == ours.grads.keys()
    for name, grad in theirs.items():
        assert not np.abs(ours.grads[name] - grad).max() > 1e-8 * max(1e-4, np.abs(grad).max())


def test_the_fused_network_computes_the_same_on_every_way(tmp_path: Path) -> None:
    """Operators one by one, the fast engine, and ONNX Runtime."""
    ort = pytest.importorskip("onnxruntime")
    model = distinct_model(small())
    fused = rr.fuse(model)
    x = np.random.default_rng(1).standard_normal((2, 3, 40, 48))
    want = model.forward(x, backend="reference")
    for backend in ("reference", "numpy"):
        got = fused.forward(x, backend=backend)
        assert not np.abs(got - want).max() > 1e-9 * np.abs(want).max()
    narrow = rr.fuse(model, dtype=np.float32)
    assert NUMPY.recognise_network is not None
    x = x.astype(np.float32)
    fast = narrow.forward(x, backend="numpy")
    assert fast.dtype == np.float32
    assert not np.abs(fast - want).max() > 1e-4 * np.abs(want).max()
    rr.save(narrow, tmp_path / "m.onnx")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": x})
    assert not np.abs(logits - want).max() > 1e-4 * np.abs(want).max()


def test_the_head_takes_its_norm_in_exactly() -> None:
    """Every number is the float32 nearest to what float64 gives, or its neighbour's tie."""
    model = distinct_model(small())
    fused = rr.fuse(model, dtype=np.float32)
    p = {k.rpartition(".")[2]: v for k, v in model.params.items() if k.startswith("linear.bn.")}
    t = p["gamma"] / np.sqrt(p["running_var"] + 1e-5)
    weight, bias = model.params["linear.weight"], model.params["linear.bias"]
    np.testing.assert_array_equal(fused.params["linear.weight"], (weight * t).astype(np.float32))
    moved = bias + weight @ (p["beta"] - p["running_mean"] * t)
    np.testing.assert_array_equal(fused.params["linear.bias"], moved.astype(np.float32))


def port_of(model: Any) -> Any:
    """The torch network in float32, in evaluation."""
    return torch_of(model, TINY, (1, 1)).eval().float()


def pictures() -> Any:
    return np.random.default_rng(3).standard_normal((2, 3, 40, 48)).astype(np.float32)


def test_a_torch_module_is_listened_to_layer_by_layer() -> None:
    model = tiny()
    report = rr.verify(model, port_of(model), inputs=pictures())
    assert report.verdict == "agree", report.reason
    assert tuple(layer.name for layer in report.layers) == model.arch.layer_names
    wrong = port_of(model)
    wrong.features[2].channel_mixer.m[1] = nn.GELU(approximate="tanh")
    report = rr.verify(model, wrong, inputs=pictures())
    assert (report.verdict, report.first_bad_layer) == ("disagree", "block2.gelu")
    assert report.diagnosis[0].bug == "gelu-approximated"


@pytest.mark.slow
def test_a_module_in_a_process_of_its_own_is_listened_to_as_well(tmp_path: Path) -> None:
    model = tiny()
    torch.save(port_of(model), tmp_path / "port.pt")
    program = tmp_path / "port.py"
    program.write_text(
        f"import torch\nmodel = torch.load({str(tmp_path / 'port.pt')!r}, weights_only=False)\n"
    )
    report = rr.verify(model, f"{program}:model", inputs=pictures()[:1])
    assert report.verdict == "agree", report.reason
    assert tuple(layer.name for layer in report.layers) == model.arch.layer_names


@pytest.mark.few(1)
@pytest.mark.parametrize("norms", ["kept", "folded"])
def test_torchs_onnx_files_are_run_layer_by_layer(norms: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = tiny()
    wrong = port_of(model)
    wrong.features[1].token_mixer[1].fc1.bias.data.zero_()
    found = {}
    for name, module in (("right", port_of(model)), ("wrong", wrong)):
        path = tmp_path / f"{name}.onnx"
        export(module, path, folded=norms == "folded")
        found[name] = rr.verify(model, path, inputs=pictures())
    assert found["right"].verdict == "agree", found["right"].reason
    assert len(found["right"].layers) == len(model.arch.layer_names)
    report = found["wrong"]
    assert (report.verdict, report.first_bad_layer) == ("disagree", "block1.gate")
    assert report.diagnosis[0].bug == "gate-bias"


def export(module: Any, path: Path, *, folded: bool) -> None:
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that runs without onnxscript
        torch.onnx.export(
            module, (torch.from_numpy(pictures()),), str(path), dynamo=False, training=mode,
            do_constant_folding=folded, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": [0, 2, 3]},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("weight", "layer"), [("features.2.token_mixer.0", "block2.token"), ("classifier", "linear")]
)
def test_one_weight_of_an_onnx_file_off_by_little_is_found(
    weight: str, layer: str, tmp_path: Path
) -> None:
    """By its taps, in the file: 84 of a RepViT-M0.9's layers are held so."""
    pytest.importorskip("onnxruntime")
    import onnx

    model = tiny()
    rr.save(rr.fuse(model), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx")
    (tensor,) = (t for t in graph.graph.initializer if t.name == f"{weight}.weight")
    altered = onnx.numpy_helper.to_array(tensor).copy()
    altered.flat[7] *= np.float32(1.0002)
    tensor.CopyFrom(onnx.numpy_helper.from_array(altered, tensor.name))
    onnx.save(graph, tmp_path / "wrong.onnx")
    x = pictures()[:1]
    report = rr.verify(model, tmp_path / "wrong.onnx", inputs=x)
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer)
    assert "taps-altered" in {finding.bug for finding in report.diagnosis}
    right = rr.verify(model, tmp_path / "m.onnx", inputs=x)
    assert right.verdict == "agree"
    assert any("tap by tap in 16 of 27 layers" in note for note in right.notes)


def test_an_onnx_file_whose_tensors_are_called_otherwise_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnx

    model = tiny()
    export(port_of(model), tmp_path / "m.onnx", folded=True)
    graph = onnx.load(tmp_path / "m.onnx")
    for number, node in enumerate(graph.graph.node):
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name.startswith("/"):
                    names[place] = f"t{name.__hash__()}"
        node.name = f"n{number}"
    onnx.save(graph, tmp_path / "m.onnx")
    report = rr.verify(model, tmp_path / "m.onnx", inputs=pictures())
    assert report.verdict == "cannot-judge"
    assert "no tensor of the graph is called like a layer" in report.reason


def published(folder: Path) -> Any:
    """A RepViT-M0.9 with drawn statistics, and its file."""
    torch.manual_seed(0)
    root = TorchRepVit((48, 96, 192, 384), (2, 2, 14, 2), 1000).eval()
    for name, value in root.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand_like(value) + 0.5)
        elif name.endswith("running_mean"):
            value.copy_(torch.randn_like(value) / 5)
    torch.save(root.state_dict(), folder / "m.pth")
    return root


def test_a_published_file_is_told_converts_and_is_judged(tmp_path: Path) -> None:
    root = published(tmp_path)
    loaded = rr.load(tmp_path / "m.pth")
    assert loaded.name == "RepViT-M0.9"
    done = convert(tmp_path / "m.pth", tmp_path / "fused.pth")
    assert done.self_check is not None
    assert done.self_check.ok
    state = torch.load(tmp_path / "fused.pth", weights_only=True)
    assert {"features.1.token_mixer.0.bias", "classifier.weight"} <= set(state)
    assert not any(".bn." in key or ".c." in key for key in state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = root(x).numpy()
    got = rr.load(tmp_path / "fused.pth").forward(x.numpy())
    assert not np.abs(got - want).max() > 1e-4 * np.abs(want).max()
    assert kind_of(tmp_path / "m.pth") == "network"
    report = judge_graph_file(tmp_path / "m.pth", tmp_path / "fused.pth")
    assert report.verdict == "agree", report.reason
    assert len(report.layers) == 84  # two of the stem, 82 of blocks and head: all that is fused
    names = ("features.5.token_mixer.0", "features.9.channel_mixer.m.2", "classifier")
    norm = root.features[5].token_mixer[0].bn
    identity = norm.weight / (norm.running_var + 1e-5).sqrt()  # behind the outer batch norm
    gate = "features.1.token_mixer.1.fc1.bias"
    wrong = {name: value.clone() for name, value in state.items()} | {gate: torch.ones(16)}
    wrong[f"{names[0]}.weight"][:, 0, 1, 1] -= identity
    for name in names[1:]:
        wrong[f"{name}.weight"] *= 1.01
    torch.save(wrong, tmp_path / "wrong.pth")
    report = judge_graph_file(tmp_path / "m.pth", tmp_path / "wrong.pth")
    assert report.verdict == "disagree"
    assert {layer.name for layer in report.layers if not layer.ok} == {*names, gate}
    bugs = [(finding.bug, finding.layer) for finding in report.diagnosis]
    told = ("branch-missing", "weights-scaled", "weights-scaled")
    assert bugs[:3] == list(zip(told, names, strict=True))
