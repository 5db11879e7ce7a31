"""What people hand over: accepted and computed right, or refused in our words."""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data.digits import MODEL_PATH, load_digits
from repvgg_ref.errors import CheckpointError, ReportedError, ShapeError
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.arguments import fixed_side, image_batch, require_side
from repvgg_ref.models.network import Model
from repvgg_ref.models.registry import network
from tests.cli.runner import run_python
from tests.models.small import SMALL, batch, distinct_model
from tests.random_networks import random_model

GREY = plain_architecture(depths=(1,), channels=(4, 4), num_classes=2, in_channels=1)


@pytest.fixture(params=["train", "deploy"])
def model(request: pytest.FixtureRequest) -> Model:
    train = distinct_model(SMALL["plain"], dtype=np.float32)
    return train if request.param == "train" else rr.fuse(train)


def images(channels: int = 3) -> Array:
    x = np.random.default_rng(0).standard_normal((2, channels, 17, 13))
    return x.astype(np.float32)


class Tensor:
    """Another library's: converts to NumPy, once it is detached."""

    def __init__(self, array: Array, *, requires_grad: bool = False, device: str = "cpu") -> None:
        self._array, self._requires_grad, self._device = array, requires_grad, device
        self.shape, self.dtype, self.ndim = array.shape, f"their.{array.dtype}", array.ndim

    def detach(self) -> Tensor:
        return Tensor(self._array, device=self._device)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        if self._requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self._device != "cpu":
            raise TypeError(f"can't convert {self._device} device type tensor to numpy.\nUse cpu()")
        return self._array


# ----------------------------------------------------------------- images


def test_a_model_is_called_like_a_function(model: Model) -> None:
    x = images()
    np.testing.assert_array_equal(model(x), model.forward(x), strict=True)
    assert list(model(x, layers=True)) == list(model.arch.layer_names)


def test_another_librarys_tensor_counts_as_its_array(model: Model) -> None:
    x = images()
    given: Any = Tensor(x, requires_grad=True)
    got = model(given)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, model(x), strict=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.tolist(), "not an array .got list ; .*numpy.asarray"),
        (lambda x: None, "not an array .got NoneType"),
        (lambda x: "x.npy", "not an array .got str"),
        (lambda x: Tensor(x, device="cuda:0"), r"can't convert cuda:0 .*cpu\(\)"),
        (lambda x: (9 * x).astype(np.int32), "must hold real numbers .got int32"),
        (lambda x: (9 * x).astype(np.uint8), "must hold real numbers .got uint8 .*standardised"),
        (lambda x: x > 0, "must hold real numbers .got bool"),
        (lambda x: x + 1j, "must hold real numbers .got complex"),
        (lambda x: x.transpose(0, 2, 3, 1), r"look like NHWC: x.transpose\(0, 3, 1, 2\)"),
        (lambda x: x[0], r"one image: x\[None\]"),
        (lambda x: x[0].transpose(1, 2, 0), r"HWC: x.transpose\(2, 0, 1\)\[None\]"),
        (lambda x: x[:, :1], r"got shape \(2, 1, 17, 13\) ; wanted \(N, 3, H, W\)\)"),
        (lambda x: x[0, 0], r"got shape \(17, 13\) ; wanted \(N, 3, H, W\)\)"),
        (lambda x: x[..., None], r"got shape \(2, 3, 17, 13, 1\)"),
        (lambda x: x.mean(), r"got shape \(\)"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(
    model: Model, change: Callable[[Array], Any], said: str
) -> None:
    with pytest.raises(ReportedError, match=said):
        model(change(images()))
    if model.form == "train":
        with pytest.raises(ReportedError, match=said):
            model.loss_and_grads(change(images()), np.array([0, 1]))


@pytest.mark.parametrize(
    ("change", "advice"),
    [(lambda x: x[0, 0], r"x\[None, None\]"), (lambda x: x[:, 0], r"x\[:, None\]")],
)
def test_the_advice_for_grey_images_works(change: Callable[[Array], Any], advice: str) -> None:
    with pytest.raises(ShapeError, match=advice):
        rr.build(GREY)(change(images(1)))


@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_nan_in_an_image_is_nan_in_its_logits_only(model: Model, backend: str) -> None:
    x = images()
    want = model(x, backend=backend)
    x[0, 1, 5, 5] = np.nan
    got = model(x, backend=backend)
    assert np.isnan(got[0]).all()
    np.testing.assert_allclose(got[1], want[1], rtol=1e-6)


def test_labels_may_be_a_list_or_a_tensor() -> None:
    model = distinct_model(SMALL["plain"])
    x, labels = batch(model.arch)
    want = model.loss_and_grads(x, labels)
    for given in (labels.tolist(), tuple(labels.tolist()), Tensor(labels)):
        got = model.loss_and_grads(x, given)  # type: ignore[arg-type]
        assert got.loss == want.loss


@pytest.mark.parametrize(
    "labels", [None, 3, "3", [0.5, 1.5, 0.0, 1.0], [0, 1], [0, 1, 2, 99], [[0], [1, 2], [0], [1]]]
)
def test_other_labels_are_refused(labels: Any) -> None:
    model = distinct_model(SMALL["plain"])
    with pytest.raises(ReportedError):
        model.loss_and_grads(batch(model.arch)[0], labels)


# ----------------------------------------------------------------- building, fusing, replacing


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", True])
@pytest.mark.parametrize("which", ["num_classes", "in_channels"])
@pytest.mark.parametrize("name", ["RepVGG-A0", "ResNet-18", "MobileOne-S0"])
def test_there_must_be_classes_and_channels(name: str, which: str, count: Any) -> None:
    with pytest.raises(ShapeError, match=f"{which}: .*got {count!r} ;"):
        rr.build(name, **{which: count})


def test_no_head_is_refused_with_the_way_to_its_features() -> None:
    with pytest.raises(ShapeError, match=r"forward\(x, layers=True\)"):
        rr.build("RepVGG-A0", num_classes=0)


@pytest.mark.parametrize(
    "wrong",
    [{"depths": (0, 1)}, {"channels": (4, 0, 8)}, {"channels": (4, 8)}, {"groups": 0}],
)
def test_a_network_of_no_blocks_or_channels_is_refused(wrong: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"depths": (1, 1), "channels": (4, 4, 8), "num_classes": 2}
    with pytest.raises(ShapeError):
        plain_architecture(**sizes | wrong)


@pytest.mark.parametrize("dtype", ["int32", np.uint8, "foo", object, bool, complex, "torch.half"])
def test_weights_are_real_numbers(dtype: Any) -> None:
    with pytest.raises(ReportedError, match="cannot have this dtype"):
        rr.build(GREY, dtype=dtype)
    with pytest.raises(ReportedError, match="cannot have this dtype"):
        rr.fuse(rr.build(GREY), dtype=dtype)
    with pytest.raises(ReportedError, match="cannot have this dtype"):
        rr.load("repvgg_ref/data/digits-train.pth", dtype=dtype)


@pytest.mark.parametrize("dtype", [None, "float16", np.float32, np.dtype("float64")])
def test_real_types_are_taken(dtype: Any) -> None:
    built = rr.build(GREY, dtype=dtype)
    assert built.params["linear.weight"].dtype == np.dtype(dtype or np.float32)
    assert rr.fuse(built, dtype=dtype).params["linear.weight"].dtype in (dtype, np.float32)


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), float("inf"), "1e-5", True, [1e-5]])
def test_eps_is_a_number_of_at_least_0(eps: Any) -> None:
    with pytest.raises(ReportedError, match="eps of batch norm"):
        rr.build(GREY, eps=eps)
    with pytest.raises(ReportedError, match="eps of batch norm"):
        rr.load("repvgg_ref/data/digits-train.pth", eps=eps)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rr.build(None),  # type: ignore[arg-type]
        lambda: rr.build(GREY, seed=-1),
        lambda: rr.build(GREY, seed="0"),  # type: ignore[arg-type]
        lambda: rr.fuse(None),  # type: ignore[arg-type]
        lambda: rr.load(None),  # type: ignore[arg-type]
        lambda: rr.load(rr.build(GREY).state_dict()),  # type: ignore[arg-type]
        lambda: rr.load("repvgg_ref/data/digits-train.pth", weights=None),  # type: ignore[arg-type]
        lambda: rr.load("repvgg_ref/data/digits-train.pth", model=None),  # type: ignore[arg-type]
        lambda: rr.save(rr.build(GREY), None),  # type: ignore[arg-type]
        lambda: rr.save("RepVGG-A0", "a0.npz"),  # type: ignore[arg-type]
        lambda: rr.architecture(None),  # type: ignore[arg-type]
        lambda: rr.fuse(rr.build(GREY))(images(1), threads="2"),  # type: ignore[call-overload]
        lambda: rr.fuse(rr.build(GREY))(images(1), threads=0),
        lambda: rr.fuse(rr.build(GREY))(images(1), algorithm="winograd8"),
        lambda: rr.build(GREY)(images(1), algorithm="winograd8"),  # train form: nothing to choose
        lambda: rr.build(GREY)(np.ma.masked_array(images(1), mask=True)),
        lambda: rr.cost("RepVGG-A9"),
        lambda: rr.cost(rr.build(GREY)),  # type: ignore[arg-type]
        lambda: rr.list_models(None),  # type: ignore[arg-type]
        lambda: rr.judge({}, {}, images(1)),  # type: ignore[arg-type]
    ],
)
def test_other_slips_are_reported_in_one_line(call: Callable[[], object]) -> None:
    with pytest.raises(ReportedError) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_network_is_counted_by_its_name_too() -> None:
    assert rr.cost("repvgg_a0") == rr.cost(rr.architecture("RepVGG-A0"))


def test_arrays_are_replaced_all_or_none() -> None:
    model = distinct_model(SMALL["plain"])
    before = dict(model.params)
    good = {"linear.bias": np.zeros(3)}
    for wrong in ({"linear.weight": np.zeros((3, 9))}, {"nowhere": np.zeros(3)}):
        with pytest.raises(ShapeError, match=r"wrong shape|no such array"):
            model.load_state_dict(good | wrong)
        assert all(model.params[name] is array for name, array in before.items())
    model.load_state_dict({"linear.bias": Tensor(np.ones(3))})  # type: ignore[dict-item]
    np.testing.assert_array_equal(model.params["linear.bias"], np.ones(3), strict=True)


# ----------------------------------------------------------------- names

# https://github.com/huggingface/pytorch-image-models, timm/models/byobnet.py, version 1.0
TIMM = {
    "repvgg_a0.rvgg_in1k": "RepVGG-A0",
    "repvgg_a1.rvgg_in1k": "RepVGG-A1",
    "repvgg_a2.rvgg_in1k": "RepVGG-A2",
    "repvgg_b0.rvgg_in1k": "RepVGG-B0",
    "repvgg_b1.rvgg_in1k": "RepVGG-B1",
    "repvgg_b1g4.rvgg_in1k": "RepVGG-B1g4",
    "repvgg_b2.rvgg_in1k": "RepVGG-B2",
    "repvgg_b2g4.rvgg_in1k": "RepVGG-B2g4",
    "repvgg_b3.rvgg_in1k": "RepVGG-B3",
    "repvgg_b3g4.rvgg_in1k": "RepVGG-B3g4",
    "repvgg_d2se.rvgg_in1k": "RepVGG-D2se",
    "mobileone_s0.apple_in1k": "MobileOne-S0",
    "resnet18.tv_in1k": "ResNet-18",
    "resnet34.tv_in1k": "ResNet-34",
    "vgg16.tv_in1k": "VGG-16",
}


@pytest.mark.parametrize(("theirs", "ours"), TIMM.items())
def test_timms_spellings_are_known(theirs: str, ours: str) -> None:
    bare = theirs.split(".")[0]
    assert rr.list_models(bare) == [ours]
    for name in (theirs, bare, ours, ours.lower()):
        assert network(name).name == ours


def test_every_name_that_is_listed_can_be_built() -> None:
    names = rr.list_models()
    assert [network(name).name for name in names] == names
    assert set(rr.NAMES) < set(names)


def test_patterns_find_names_in_any_spelling() -> None:
    assert rr.list_models("repvgg_b1*") == ["RepVGG-B1", "RepVGG-B1g2", "RepVGG-B1g4"]
    assert rr.list_models("RepVGG*SE") == ["RepVGG-D2se", "RepVGGplus-L2pse"]
    assert rr.list_models("RepVGG-B?g2") == ["RepVGG-B1g2", "RepVGG-B2g2", "RepVGG-B3g2"]
    assert rr.list_models("alexnet*") == []


@pytest.mark.parametrize(
    "name", ["repvgg_a9", "repvgg", "", "repvgg_b1g3", "a-0-0", "RepVGG-A0.pth", "a0.onnx", "a0.x"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="no network of that name"):
        rr.build(name)


# ----------------------------------------------------------------- what Python shows


def records() -> Iterator[object]:
    """One of everything public that holds arrays."""
    from repvgg_ref.blocks.fusion import FusedConv
    from repvgg_ref.files.checkpoint import open_checkpoint
    from repvgg_ref.oracle.candidates import Outputs
    from repvgg_ref.oracle.golden.arrays import layer_arrays
    from repvgg_ref.oracle.report import LayerReport

    model = random_model(SMALL["plain"], 1)
    x, labels = batch(model.arch, dtype=np.float32)
    yield model
    yield rr.fuse(model)
    yield model.loss_and_grads(x, labels)
    yield FusedConv(np.ones((64, 64, 3, 3)), np.ones(64))
    yield Outputs(model.forward(x, layers=True), x)
    yield layer_arrays(model, x)["stage0"]
    yield load_digits()
    yield load_digits().test
    layers = (LayerReport("stage1.0", 0.1, 0.2, 0.5, ok=True),) * 22
    yield rr.Report("agree", "all are", "RepVGG-A0", "port", "fp32", layers, residual=x)
    with open_checkpoint("repvgg_ref/data/digits-train.pth") as checkpoint:
        yield checkpoint


def test_reprs_are_one_line_without_numbers_of_arrays() -> None:
    for record in records():
        shown = repr(record)
        assert shown.isprintable(), type(record)
        assert len(shown) < 700, (type(record), len(shown), shown)
        assert type(record).__name__ in shown
    step = list(records())[2]
    assert repr(step).startswith("StepResult(loss=")
    assert "logits=float32[4, 3], grads=<dict of " in repr(step)


def test_a_models_repr_says_what_it_is() -> None:
    model = random_model(SMALL["plain"], 1, np.float32)
    parameters = rr.cost(model.arch).params_train
    assert repr(model) == (
        f"<Model custom: train form, repvgg blocks, {parameters:,} parameters, float32,"
        " 3 channels to 3 classes>"
    )
    assert f"{rr.cost(model.arch).params_deploy:,} parameters, float64" in repr(
        rr.fuse(model, dtype=np.float64)
    )


def test_dir_and_help_show_everything_public() -> None:
    assert {name for name in dir(rr) if not name.startswith("__")} == set(rr.__all__)
    assert {"NotFusibleError", "__version__"} <= set(dir(rr))
    plain = pydoc.TextDoc()
    plain.bold = lambda text: text  # type: ignore[method-assign]
    page = pydoc.render_doc(rr, renderer=plain)
    missing = [name for name in rr.__all__ if not any(f"{name}{end}" in page for end in "( \n")]
    assert missing == []
    assert "Judge a port of RepVGG against the reference" in page


@pytest.mark.parametrize("asked", [{"block": "acb"}, {"num_classes": 7}, {"in_channels": 1}])
def test_a_network_of_ones_own_is_built_as_it_is_or_not_at_all(asked: dict[str, Any]) -> None:
    arch = SMALL["plain"]
    with pytest.raises(ReportedError, match=f"built as it is .*{next(iter(asked))}"):
        rr.build(arch, **asked)
    assert rr.build(arch, block="repvgg", num_classes=3, in_channels=3).arch is arch
    model = rr.build("RepVGG-A0")
    assert (model.arch.num_classes, model.arch.in_channels, model.block) == (1000, 3, "repvgg")


def test_errors_call_arrays_by_the_keys_of_files() -> None:
    model = rr.fuse(random_model(SMALL["plain"], 1, np.float32))
    model.params["stage1.0.fused.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ShapeError, match=r"stage1\.0\.rbr_reparam\.weight is not as"):
        model.forward(batch(model.arch)[0])


def test_names_of_the_oracle_are_shown_before_it_is_loaded() -> None:
    done = run_python(
        "-c",
        "import sys, repvgg_ref as rr; assert {'verify', 'verify_op'} <= set(dir(rr));"
        "assert not {'scipy', 'torch', 'onnx'} & set(sys.modules); rr.verify;"
        "assert 'scipy' in sys.modules",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_type_that_weights_may_have_is_named() -> None:
    with pytest.raises(ReportedError) as caught:
        rr.load(MODEL_PATH, dtype="int32")
    for name in ("float16", "float32", "float64", "bfloat16, once ml_dtypes is imported"):
        assert name in str(caught.value)
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 is of this package")
    model = rr.load(MODEL_PATH, dtype=ml_dtypes.bfloat16)
    assert model.params["linear.weight"].dtype.name == "bfloat16"


@pytest.mark.parametrize("size", [(64, 64), (224, 32), (200, 224)])
def test_a_network_that_takes_every_pixel_says_which_size_it_takes(size: tuple[int, int]) -> None:
    """VGG-16: 224 x 224, and up to 255, since its pools drop the rest."""
    arch = network("VGG-16")
    assert fixed_side(arch) == 224
    assert fixed_side(network("VGG-16", size=64)) == 64
    assert fixed_side(network("ResNet-18")) is None
    require_side(arch, 255, 230)
    with pytest.raises(
        ShapeError, match=f"images have one size.*got {size[0]} x {size[1]}.*wanted 224 x 224"
    ):
        require_side(arch, *size)
    with pytest.raises(ShapeError, match="images have one size"):
        image_batch(arch, np.zeros((1, 3, *size), np.float32))
