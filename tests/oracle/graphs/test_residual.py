"""Networks that are no chain: right ports pass, wrong ones are placed and named; golden vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.baselines import resnet
from repvgg_ref.models.graph import INPUT, Graph, Node
from repvgg_ref.models.layers import AddRelu, Block, Flatten, Linear, MaxPool, Pass
from repvgg_ref.models.network import Model
from repvgg_ref.models.registry import network
from repvgg_ref.models.residual_reorg import residual_reorg
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.candidates.names import LayerNames
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import TRAINING, distinguishing_model
from repvgg_ref.oracle.programs.layers import Programs

CHAIN = plain_architecture(depths=[2, 3, 1], channels=[4, 6, 8, 8], num_classes=3, kind="plain")
REORG = residual_reorg(CHAIN)
MODEL = distinguishing_model(REORG, seed=1)
X = np.random.default_rng(0).standard_normal((2, 3, 48, 40)).astype(np.float32)
RIGHT: dict[str, Array] = MODEL.forward(X, layers=True)
SUMS = [name for name in RIGHT if name.endswith(".add")]
INNER = [name for name in RIGHT if name.count(".") == 2 and name not in SUMS]


def findings(outputs: Any) -> tuple[str, str | None, list[tuple[str, str | None]]]:
    report = rr.verify(MODEL, outputs, inputs=X)
    return report.verdict, report.first_bad_layer, [(f.bug, f.layer) for f in report.diagnosis]


@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_right_ports_agree(backend: str) -> None:
    report = rr.verify(MODEL, MODEL.forward(X, layers=True, backend=backend), inputs=X)
    assert report.verdict == "agree", report.reason
    assert [layer.name for layer in report.layers] == list(REORG.layer_names)
    assert rr.verify(MODEL, lambda x: MODEL.forward(x, layers=True)).verdict == "agree"


def test_a_port_need_not_show_what_is_inside_its_residual_blocks() -> None:
    """Their modules are called as the blocks are; what is inside is computed for the port."""
    modules = {n.removesuffix(".add"): y for n, y in RIGHT.items() if n not in INNER}
    report = rr.verify(MODEL, modules, inputs=X)
    assert report.verdict == "agree", report.reason
    assert [layer.name for layer in report.layers] == ["stage0", *SUMS, "stage3.0", "linear"]
    (note,) = (each for each in report.notes if "not shown, and computed for the cand" in each)
    assert "stage1.0.downsample, stage1.0.conv1" in note


def test_what_nobody_knows_is_not_judged() -> None:
    assert rr.verify(MODEL, {"linear": RIGHT["linear"]}, inputs=X).verdict == "cannot-judge"
    few = {n: y for n, y in RIGHT.items() if not n.startswith(("stage1", "stage2.0", "stage2.1.c"))}
    report = rr.verify(MODEL, few, inputs=X)
    assert report.verdict == "cannot-judge"
    assert "too little is known of what it is given and gives" in report.reason


def with_sum(name: str, wrong: Callable[[Array, Array], Array]) -> dict[str, Array]:
    """The port that computes one residual sum so, run on from there."""
    known: dict[str, Array] = {INPUT: X}
    for node in REORG.evaluated:
        xs = [known[source] for source in node.inputs]
        own = node.op.forward(node.name, xs, Pass(MODEL.params, REFERENCE, MODEL.eps))[0]
        known[node.name] = wrong(xs[0], xs[1]) if node.name == name else own
    return {each: known[each] for each in RIGHT}


WRONG_SUMS: dict[str, Callable[[Array, Array], Array]] = {
    "shortcut-missing": lambda a, b: np.maximum(a, 0),
    "shortcut-alone": lambda a, b: np.maximum(b, 0),
    "relu-missing": lambda a, b: a + b,
    "relu-before-sum": lambda a, b: np.maximum(a, 0) + b,
}


@pytest.mark.parametrize("bug", WRONG_SUMS)
@pytest.mark.parametrize("shown", ["all", "sums"])
def test_wrong_sums_are_placed_and_named(bug: str, shown: str) -> None:
    port = with_sum("stage2.1.add", WRONG_SUMS[bug])
    if shown == "sums":
        port = {name: each for name, each in port.items() if name not in INNER}
    assert findings(port) == ("disagree", "stage2.1.add", [(bug, "stage2.1.add")])


def test_what_no_bug_explains_is_unknown_at_the_first_bad_layer() -> None:
    report = rr.verify(MODEL, with_sum("stage2.1.add", lambda a, b: a * b), inputs=X)
    (found,) = report.diagnosis
    assert (found.bug, found.layer) == ("unknown", "stage2.1.add")
    assert "% of the outputs looked at are beyond their bound" in found.says
    assert found.says in report.reason


def test_bugs_of_the_library_are_named_in_layers_inside_a_block() -> None:
    eps = replace(MODEL, eps=1e-3).forward(X, layers=True)
    assert findings(eps) == ("disagree", "stage0", [("eps-value", "all")])
    params = dict(MODEL.params)
    params["stage2.0.conv2.bn.running_mean"] = 0 * params["stage2.0.conv2.bn.running_mean"]
    mean = replace(MODEL, params=params).forward(X, layers=True)
    assert findings(mean) == ("disagree", "stage2.0.conv2", [("mean-ignored", "stage2.0.conv2")])
    pool = {**RIGHT, "linear": RIGHT["linear"] * np.float32(1.01)}
    assert findings(pool)[:2] == ("disagree", "linear")


@pytest.mark.few(2)
@pytest.mark.parametrize("layer", RIGHT)
def test_an_error_of_a_hundredth_is_seen_in_every_layer(layer: str) -> None:
    wrong = RIGHT[layer].copy()
    image, channel, *_ = np.unravel_index(np.abs(wrong).argmax(), wrong.shape)
    wrong[image, channel] *= 1.01
    assert findings({**RIGHT, layer: wrong})[:2] == ("disagree", layer)


@pytest.mark.parametrize("layer", ["stage2.1.conv1", "stage2.0.downsample", "linear"])
def test_noise_of_five_bounds_is_no_algorithms(layer: str) -> None:
    bound = max(
        each.bound for each in rr.verify(MODEL, RIGHT, inputs=X).layers if each.name == layer
    )
    noise = np.random.default_rng(3).choice([-5, 5], RIGHT[layer].shape) * bound
    noisy = np.where(RIGHT[layer] != 0, RIGHT[layer] + noise, 0).astype(np.float32)
    assert findings({**RIGHT, layer: noisy})[:2] == ("disagree", layer)


@pytest.mark.few(4)
@pytest.mark.parametrize("layer", RIGHT)
@pytest.mark.parametrize(
    "wrong",
    [lambda y: y[:, :2], lambda y: np.concatenate([y, y], axis=-1), lambda y: y * np.nan],
    ids=["channels", "size", "nan"],
)
def test_layers_that_cannot_be_compared_are_no_traceback(layer: str, wrong: Any) -> None:
    report = rr.verify(MODEL, {**RIGHT, layer: wrong(RIGHT[layer])}, inputs=X)
    assert report.verdict in ("disagree", "cannot-judge")
    assert report.verdict == "cannot-judge" or report.first_bad_layer == layer


def small_vgg(hidden: int = 10) -> Graph:
    """Convolutions, pools and hidden linear layers, for 8 x 8 pixels."""
    layers = [
        (BlockSpec("conv1", 3, 4, 1, kind="conv-bias"), "pool1"),
        (BlockSpec("conv2", 4, 6, 1, kind="conv-bias"), "pool2"),
    ]
    nodes: list[Node] = []
    last = INPUT
    for spec, pool in layers:
        nodes += [Node(spec.name, Block(spec), (last,)), Node(pool, MaxPool(2, 2), (spec.name,))]
        last = pool
    nodes += [
        Node("flatten", Flatten(), (last,)),
        Node("fc0", Linear(24, hidden, relu=True), ("flatten",)),
        Node("fc1", Linear(hidden, 4), ("fc0",), loss_weight=1.0),
    ]
    return Graph("small", tuple(nodes))


RIVALS = {
    "resnet": (resnet("small", depths=(1,), bottleneck=True, num_classes=5), 48),
    "vgg": (small_vgg(), 8),
}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_are_judged_as_well(name: str, half: bool) -> None:
    """A ResNet's bottleneck and pool, a VGG's hidden linear layers."""
    arch, side = RIVALS[name]
    x = np.random.default_rng(1).standard_normal((2, 3, side, side)).astype(np.float32)
    model = distinguishing_model(arch, seed=2, x=x)
    outputs = model.forward(x, layers=True)
    kind: Any = np.float16 if half else np.float32
    given: dict[str, Any] = {n: y.astype(kind) for n, y in outputs.items()}
    report = rr.verify(model, given, inputs=x)
    assert report.verdict == "agree", report.reason
    assert [layer.name for layer in report.layers] == list(arch.layer_names)
    worse = {**given, arch.head.name: given[arch.head.name] * (1.3 if half else 1.001)}
    assert rr.verify(model, worse, inputs=x).first_bad_layer == arch.head.name


def with_hidden_linear(
    wrong: Callable[[Array, Array, Array], Array],
) -> tuple[Model, dict[str, Array], Array]:
    """A VGG's port that computes its first linear layer so, run on from there."""
    arch = small_vgg(hidden=48)
    x = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)
    model = distinguishing_model(arch, seed=2, x=x)
    outputs, params = dict(model.forward(x, layers=True)), model.params
    features = outputs["pool2"].reshape(len(x), -1)
    y = wrong(features, params["fc0.weight"], params["fc0.bias"]).astype(np.float32)
    outputs["fc0"], outputs["fc1"] = y, y @ params["fc1.weight"].T + params["fc1.bias"]
    return model, outputs, x


def _by_pixels(x: Array) -> Array:
    return x.reshape(len(x), 6, 4).transpose(0, 2, 1).reshape(len(x), -1)


WRONG_LINEAR: dict[str, Callable[[Array, Array, Array], Array]] = {
    "outputs-scaled": lambda x, w, b: np.maximum(x @ w.T + b, 0) * np.float32(1 + 1e-5),
    "head-bias": lambda x, w, b: np.maximum(x @ w.T, 0),
    "relu-missing": lambda x, w, b: x @ w.T + b,
    "flatten-order": lambda x, w, b: np.maximum(_by_pixels(x) @ w.T + b, 0),
}


@pytest.mark.parametrize("bug", WRONG_LINEAR)
def test_a_hidden_linear_layer_is_estimated_and_its_bugs_are_named(bug: str) -> None:
    model, outputs, x = with_hidden_linear(WRONG_LINEAR[bug])
    report = rr.verify(model, outputs, inputs=x)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "fc0")
    assert [(found.bug, found.layer) for found in report.diagnosis] == [(bug, "fc0")]


def test_features_know_the_channels_of_their_map() -> None:
    """Behind pools and sums; a head behind a mean has no map's pixels."""
    conv = [BlockSpec(name, n, 4, 1, kind="conv-bias") for name, n in (("a", 3), ("b", 4))]
    nodes = (
        Node("a", Block(conv[0]), (INPUT,)),
        Node("b", Block(conv[1]), ("a",)),
        Node("add", AddRelu(), ("b", "a")),
        Node("flatten", Flatten(), ("add",)),
        Node("fc", Linear(64, 3), ("flatten",), loss_weight=1.0),
    )
    assert Programs(rr.build(Graph("small", nodes)))["fc"].flattened == 4
    assert Programs(rr.build(RIVALS["resnet"][0]))["linear"].flattened == 0


def test_of_a_large_linear_layer_the_first_outputs_are_estimated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A factor is seen in them; what is wrong behind them, by the certified bounds."""
    monkeypatch.setattr("repvgg_ref.oracle.graphs.judge._MOST_WEIGHTS", 24 * 24)
    model, right, x = with_hidden_linear(lambda x, w, b: np.maximum(x @ w.T + b, 0))
    report = rr.verify(model, right, inputs=x)
    assert report.verdict == "agree", report.reason
    size = next(each for each in report.layers if each.name == "fc0").detects["scale"]
    assert size is not None
    assert size < 1e-5
    model, outputs, x = with_hidden_linear(WRONG_LINEAR["outputs-scaled"])
    (found,) = rr.verify(model, outputs, inputs=x).diagnosis
    assert (found.bug, found.layer) == ("outputs-scaled", "fc0")
    wrong = right["fc0"].copy()
    wrong[:, 30:] *= 1.01
    assert rr.verify(model, {**right, "fc0": wrong}, inputs=x).first_bad_layer == "fc0"


def test_networks_with_other_layers_are_refused_by_what_they_hold() -> None:
    with pytest.raises(ReportedError, match=r"cannot be judged one by one yet.*gate, silu"):
        rr.verify(rr.build("EfficientNet-B0"), lambda x: x)


def test_submodules_are_heard_where_they_give_a_layer() -> None:
    """torchvision's: VGG's ReLUs, ResNet's blocks; no convolution by itself, no batch norm."""
    heard = LayerNames(network("VGG-16")).module
    layers = {"features.1": "conv1_1", "features.6": "conv2_1", "classifier.4": "fc1"}
    assert {name: heard(name) for name in layers} == layers
    assert not any(map(heard, ("features.0", "classifier.0", "classifier.6", "classifier")))
    heard = LayerNames(network("ResNet-18")).module
    assert (heard("layer1.0"), heard("maxpool")) == ("layer1.0.add", "maxpool")
    assert not any(map(heard, ("conv1", "layer1.0.conv1", "layer1.0.bn1", "fc", "layer1")))
    assert LayerNames(network("RegNetX-3.2GF")).module("stem.1") is None


# ------------------------------------------------------------------------ golden vectors


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "bundle"
    written = write_golden(MODEL, folder)
    assert (written.score, written.matrix.survivors, written.warnings) == (1.0, (), ())
    rows = written.matrix.rows()
    marks = "".join("B" if name in SUMS else "." for name in REORG.layer_names)
    assert rows["shortcut-missing"] == rows["relu-before-sum"] == marks
    return folder


def test_each_layer_is_within_its_bounds_from_the_inputs_that_the_manifest_lists(
    bundle: Path,
) -> None:
    """A port in the words of the manifest: float32 from the exact outputs of other layers."""
    told = json.loads((bundle / "manifest.json").read_text())
    outputs, bounds = np.load(bundle / "outputs.npz"), np.load(bundle / "bounds.npz")
    nodes = {node.name: node for node in REORG.evaluated}
    run = Pass(MODEL.params, REFERENCE, MODEL.eps)
    for name, sources in told["inputs"].items():
        xs = [outputs[source].astype(np.float32) for source in sources]
        xs = [x.mean(axis=(2, 3)) for x in xs] if name == "linear" else xs
        y = nodes[name].op.forward(name, xs, run)[0]
        assert not (np.abs(y - outputs[name]) > bounds[f"{name}/fp32"]).any()
        wrong = y * np.float32(1.001)
        assert (np.abs(wrong - outputs[name]) > bounds[f"{name}/fp32"]).any()


def test_a_bundle_judges_ports_and_finds_what_is_wrong(bundle: Path) -> None:
    assert rr.verify(bundle, lambda x: MODEL.forward(x, layers=True)).verdict == "agree"
    other = replace(MODEL, eps=1e-3)
    report = rr.verify(bundle, lambda x: other.forward(x, layers=True))
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("eps-value", "all")]


@pytest.mark.slow
def test_training_steps_are_written_and_judged(tmp_path: Path) -> None:
    small = plain_architecture(depths=[1, 2, 1], channels=[3, 4, 4, 4], num_classes=3, kind="plain")
    model: Model = distinguishing_model(residual_reorg(small), seed=1, statistics=TRAINING)
    write_golden(model, tmp_path / "bundle", train_step=True)
    with np.load(tmp_path / "bundle" / "train_step.npz") as archive:
        right = {name: archive[name].astype(np.float32) for name in archive.files}
    assert rr.verify(tmp_path / "bundle", right).verdict == "agree"
    name = "grad/stage1.0.conv2.weight"
    report = rr.verify(tmp_path / "bundle", right | {name: right[name] / 2})
    assert report.verdict == "disagree"


def test_raw_numbers_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(ReportedError, match=r"described for chains.*with --raw"):
        write_golden(MODEL, tmp_path / "bundle", raw=True)
    assert not (tmp_path / "bundle").exists()
