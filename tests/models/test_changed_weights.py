"""However a model's weights change between two calls, the second one sees it or the change fails.

The witness is a new model with copies of the arrays, evaluated by the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.models.guarded import guarded
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import official_names
from repvgg_ref.models.network import Model, fuse
from tests.models.small import GRAPHS, SMALL, batch, distinct_model

NETWORKS = {name: SMALL[name] for name in ("plain", "grouped", "se-before-relu", "plus")}
NETWORKS |= {"residual": GRAPHS["residual"]}  # type: ignore[dict-item]  # both are networks


def made(name: str, form: str, dtype: Any = np.float32) -> Model:
    model = distinct_model(NETWORKS[name], dtype=dtype)
    return fuse(model, dtype=dtype) if form == "deploy" else model


def witness(model: Model, x: Array) -> Array:
    params = {name: array.copy() for name, array in model.params.items()}
    again = Model(model.arch, model.form, params, model.eps)
    return again.forward(x.astype(np.float64), backend="reference")


def require_current(model: Model, x: Array, before: Array | None, **how: Any) -> None:
    """The logits are those of the arrays as they are now; `before` is what they no longer are."""
    logits, wanted = model.forward(x, **how), witness(model, x)
    size = np.abs(wanted).max()
    assert np.abs(logits - wanted).max() <= 2e-5 * size
    if before is not None:
        assert np.abs(wanted - before).max() > 1e-4 * size


def kernel(model: Model) -> str:
    """The first block's largest kernel."""
    return max(
        (name for name in model.params if name.startswith(model.arch.blocks[0].name + ".")),
        key=lambda name: model.params[name].size,
    )


def replaced(model: Model, name: str) -> None:
    model.params[name] = model.params[name] * 2


def popped_scaled_and_put_back(model: Model, name: str) -> None:
    array = model.params.pop(name)
    try:
        array *= 2
    finally:
        model.params[name] = array


def every_array_in_turn_at_one_address(model: Model, name: str) -> None:
    for each in list(model.params):
        scaled = model.params.pop(each) * 2
        model.params[each] = scaled


def in_place(model: Model, name: str) -> None:
    model.params[name] *= 2


def after_its_flag_was_set(model: Model, name: str) -> None:
    array = model.params[name]
    array.setflags(write=True)
    array *= 2
    array.setflags(write=False)


def by_the_state(model: Model, name: str) -> None:
    for array in model.state_dict().values():
        array *= 2


def by_loading_a_state(model: Model, name: str) -> None:
    model.load_state_dict({each: array * 2 for each, array in model.state_dict().items()})


def read_as_another_type(model: Model, name: str) -> None:
    array = model.params[name]
    array *= 2
    model.params[name] = array.astype(np.float64)


def by_a_new_dictionary(model: Model, name: str) -> None:
    model.params = {each: array * 2 for each, array in model.params.items()}


WAYS = (
    replaced,
    popped_scaled_and_put_back,
    every_array_in_turn_at_one_address,
    in_place,
    after_its_flag_was_set,
    by_the_state,
    by_loading_a_state,
    read_as_another_type,
    by_a_new_dictionary,
)
every_way = pytest.mark.parametrize("change", WAYS, ids=lambda way: way.__name__)


@every_way
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_a_change_is_seen_or_refused(
    change: Callable[[Model, str], None], name: str, form: str, backend: str
) -> None:
    model = made(name, form)
    x, _ = batch(model.arch, count=1, dtype=np.float32)
    before: Array | None = model.forward(x, backend=backend)
    try:
        change(model, kernel(model))
    except ValueError as error:
        assert "read-only" in str(error) or "WRITEABLE" in str(error)  # noqa: PT017  # either is right
        before = None
    require_current(model, x, before, backend=backend)


@every_way
@pytest.mark.parametrize("weights", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("images", [np.float32, np.float64])
def test_weights_and_images_of_different_types(
    change: Callable[[Model, str], None], weights: Any, images: Any
) -> None:
    model = made("plain", "deploy", weights)
    x, _ = batch(model.arch, count=1, dtype=images)
    before: Array | None = model.forward(x)
    try:
        change(model, kernel(model))
    except ValueError:
        before = None
    require_current(model, x, before)


def older_view(array: Array) -> Array:
    return array[:1]


def older_flat_view(array: Array) -> Array:
    return array.reshape(-1)


def same_object(array: Array) -> Array:
    return array


def view_of_another_type(array: Array) -> Array:
    return array.view(np.int32)[..., :1]


def its_buffer(array: Array) -> Array:
    return np.frombuffer(memoryview(array).cast("B"), np.float32)  # type: ignore[arg-type]  # is one


@pytest.mark.parametrize(
    "view", [older_view, older_flat_view, same_object, view_of_another_type, its_buffer]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_taken_before_the_first_call_may_be_written_to(
    view: Callable[[Array], Array], name: str
) -> None:
    model = made(name, "deploy")
    x, _ = batch(model.arch, count=1, dtype=np.float32)
    where = kernel(model)
    held = view(model.params[where])
    before = model.forward(x)
    held[...] = held[::-1].copy() if held.ndim == 1 and held.dtype != np.int32 else 0
    require_current(model, x, before)


def test_arrays_that_are_parts_of_one_vector_may_be_written_to_through_it() -> None:
    model = made("plain", "deploy")
    sizes = np.cumsum([array.size for array in model.params.values()])
    vector = np.concatenate([array.ravel() for array in model.params.values()])
    for (name, array), part in zip(
        list(model.params.items()), np.split(vector, sizes[:-1]), strict=True
    ):
        model.params[name] = part.reshape(array.shape)
    x, _ = batch(model.arch, count=1, dtype=np.float32)
    before = model.forward(x)
    vector *= 2
    require_current(model, x, before)


def test_shape_and_type_set_in_place_are_seen() -> None:
    model = made("plain", "deploy")
    x, _ = batch(model.arch, count=1, dtype=np.float32)
    model.forward(x)
    name = kernel(model)
    setattr(model.params[name], "dtype", np.dtype(np.int32))  # noqa: B010  # NumPy allows it still
    with pytest.raises(ShapeError, match="does not hold real numbers"):
        model.forward(x)


CUTS = {
    "deploy": ("linear.weight", "linear.bias", "stage1.0.fused.weight", "stage1.0.fused.bias"),
    "train": ("linear.weight", "stage1.0.branch_1x1.conv.weight", "stage1.0.branch_3x3.bn.gamma"),
}


@pytest.mark.parametrize(("form", "name"), [(form, n) for form in CUTS for n in CUTS[form]])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_an_array_that_numpy_would_broadcast_is_refused(
    form: Form, name: str, backend: str, tmp_path: Path
) -> None:
    model = made("plain", form)
    x, labels = batch(model.arch, count=1, dtype=np.float32)
    model.forward(x, backend=backend)
    model.params[name] = model.params[name][:1]
    uses: list[Callable[[], object]] = [
        lambda: model.forward(x, backend=backend),
        lambda: rr.save(model, tmp_path / "file.npz"),
    ]
    if form == "train":
        uses += [lambda: fuse(model), lambda: model.loss_and_grads(x, labels)]
    for use in uses:
        with pytest.raises(ShapeError, match=f"{official_names(model.arch, form)[name]} is not as"):
            use()


@pytest.mark.parametrize("dtype", [np.complex64, np.int64, bool, "U8"])
def test_arrays_of_other_kinds_are_not_loaded(dtype: Any) -> None:
    model = made("plain", "train")
    state = {name: array.astype(dtype) for name, array in model.state_dict().items()}
    with pytest.raises(ReportedError):
        model.load_state_dict({"linear.weight": state["linear.weight"]})


def test_another_network_over_the_same_arrays_is_seen() -> None:
    model = made("plain", "deploy")
    x, _ = batch(model.arch, count=1, dtype=np.float32)
    before = model.forward(x)
    blocks = tuple(
        replace(block, stride=1) if block.name == "stage2.0" else block
        for block in SMALL["plain"].blocks
    )
    model.arch = replace(SMALL["plain"], blocks=blocks)
    require_current(model, x, before)


def test_a_model_and_its_copy_do_not_share_what_is_kept() -> None:
    model = made("plain", "deploy")
    x, _ = batch(model.arch, count=1, dtype=np.float32)
    before = model.forward(x)
    other = replace(model, params=dict(model.params))
    replaced(other, kernel(other))
    require_current(other, x, before)
    np.testing.assert_array_equal(model.forward(x), before)


@pytest.mark.parametrize("seed", range(8))
def test_any_single_change_and_any_exchange_of_two_numbers_is_seen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(40_000).astype(np.float32)
    kept = guarded({"": vector}, "")
    i, j = rng.choice(len(vector), 2, replace=False)
    assert kept.holds(vector)
    vector[[i, j]] = vector[[j, i]]
    assert not kept.holds(vector)
    vector[[i, j]] = vector[[j, i]]
    assert kept.holds(vector)
    vector[i] = np.nextafter(vector[i], np.float32(9))
    assert not kept.holds(vector)


def test_arrays_that_only_the_model_holds_are_not_summed_again() -> None:
    """What makes the guard cheap: it is asked whether they are the same objects, no more."""
    model = made("plain", "deploy")
    x, _ = batch(model.arch, count=1, dtype=np.float32)
    model.forward(x)
    assert all(not array.flags.writeable for array in model.params.values())
    for array in model.params.values():
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)


def test_engines_have_numbers_of_their_own() -> None:
    """Helper processes keep packed weights by the number, which an address would give twice."""
    model = made("plain", "deploy")
    numbers = set()
    for _ in range(20):
        numbers.add(Engine(SMALL["plain"].blocks, model.params, dtype=np.float32)._number)
    assert len(numbers) == 20
