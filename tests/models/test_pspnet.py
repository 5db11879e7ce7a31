"""PSPNet as a graph: laws that need no peer."""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.dense import ResizeAs, Zoom
from repvgg_ref.models.graph import extents
from repvgg_ref.models.pspnet import pspnet
from tests.models.segmenters import CLASSES, pictures, small_graph, small_model

ENDS = ("aux.4", "cls.4")


def test_the_fused_form_is_the_trained_one_on_every_pixel() -> None:
    model = small_model()
    x, _ = pictures()
    trained, fused = model.forward(x), rr.fuse(model).forward(x)
    assert trained.shape == (2, CLASSES, *x.shape[2:])
    assert not (np.abs(trained - fused).max() > 1e-12 * np.abs(trained).max())


def test_tables_agree_on_every_layer() -> None:
    model = small_model(fast=True)
    x, _ = pictures(height=9, width=17)
    ours, theirs = (model.forward(x, layers=True, backend=b) for b in ("numpy", "reference"))
    assert list(ours) == list(theirs)
    for name, y in theirs.items():
        assert ours[name].shape == y.shape
        assert not (np.abs(ours[name] - y).max() > 1e-11 * max(1, np.abs(y).max())), name


@pytest.mark.parametrize(("height", "width"), [(32, 33), (33, 40), (34, 33)])
def test_sizes_other_than_8k_plus_1_are_refused(height: int, width: int) -> None:
    with pytest.raises(
        ShapeError, match=r"8k \+ 1 \(got .* wanted such as (33 x 33|33 x 41|41 x 33)"
    ):
        small_model().forward(np.zeros((1, 3, height, width)))


def test_extents_are_what_is_computed() -> None:
    network, model = small_graph(), small_model()
    sizes = extents(network, 25, 41)
    x = np.zeros((1, 3, 25, 41))
    for name, y in model.forward(x, layers=True).items():
        assert y.shape[1:] == sizes[name]


def test_dropout_is_drawn_from_the_seed_and_can_be_switched_off() -> None:
    model, (x, labels) = small_model(), pictures()

    def loss(**how: float | int | None) -> float:
        return float(model.loss_and_grads(x, labels, **how).loss)  # type: ignore[arg-type]

    assert loss(drop_seed=1) == loss(drop_seed=1)
    assert loss(drop_seed=1) != loss(drop_seed=2)
    assert loss(drop_seed=1, dropout=0.0) == loss(dropout=0.0) == loss()


def test_classes_are_those_of_both_heads() -> None:
    wider = small_graph().with_classes(11)
    assert wider.num_classes == 11
    heads = {n.name: n.op.extent([(1, 1, 1)])[0] for n in wider.nodes if n.name in ENDS}
    assert heads == dict.fromkeys(ENDS, 11)


def test_labels_that_are_no_class_are_named() -> None:
    model, (x, labels) = small_model(), pictures()
    labels[1, 2, 3] = CLASSES
    with pytest.raises(ReportedError, match=r"labels\[1, 2, 3\] \(=5\)"):
        model.loss_and_grads(x, labels)
    with pytest.raises(ReportedError, match="label smoothing"):
        model.loss_and_grads(x, pictures()[1], label_smoothing=0.1)


def test_only_the_last_layers_of_the_fast_form_are_dilated() -> None:
    steps = {s.name: s.dilation for s in small_graph(fast=True).blocks if s.name[:5] == "stage"}
    assert [steps[f"stage3.{n}"] for n in range(6)] == [1, 1, 2, 2, 2, 2]
    assert steps["stage4.0"] == 4
    usual = {s.name: s.dilation for s in small_graph().blocks}
    assert {usual[f"stage3.{n}"] for n in range(6)} == {2}


def test_first_blocks_that_lost_their_stride_gain_no_identity() -> None:
    """Even where in and out channels are equal."""
    chain = plain_architecture(depths=(1, 1, 2, 1), channels=(4, 4, 4, 4, 4), num_classes=2)
    names = rr.build(pspnet(chain, num_classes=2)).state_dict()
    assert "layer3.0.rbr_identity.weight" not in names
    assert "layer3.1.rbr_identity.weight" in names
    assert "layer4.0.rbr_identity.weight" not in names


def test_every_backbone_has_both_forms() -> None:
    names = rr.list_models("PSPNet-*")
    assert len(names) == 2 * len(rr.list_models("RepVGG*"))
    grouped = rr.build("pspnet_repvgg_a1", num_classes=3)
    assert (grouped.name, grouped.arch.num_classes) == ("PSPNet-RepVGG-A1", 3)


def test_other_backbones_are_refused() -> None:
    short = plain_architecture(depths=(1, 1), channels=(4, 4, 4), num_classes=2)
    with pytest.raises(ReportedError, match="stages 0 to 4"):
        pspnet(short, num_classes=2)


def test_resizing_and_zooming_agree() -> None:
    assert Zoom(8).extent([(3, 5, 6)]) == ResizeAs().extent([(3, 5, 6), (9, 33, 41)])
