"""What a pickled module says of itself is held against its arrays, and never believed blindly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.convert_modules import ModulesConversion, convert_modules
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.files.modules import find_blocks
from tests.files.module_settings import array, block, file_of, number, pair
from tests.weights_io.forge import integer, integers, text
from tests.weights_io.module_files import again, made, module, state
from tests.weights_io.refusal import CANARY


def converted(folder: Path, body: bytes, **options: Any) -> ModulesConversion:
    path = folder / "whole.pt"
    path.write_bytes(file_of(body))
    return convert_modules(path, folder / "out.npz", "npz", **options)


def arrays_of(path: Path) -> dict[str, Any]:
    with weights_io.open_weights(path) as archive:
        assert isinstance(archive.root, dict)
        return {name: array.read() for name, array in archive.root.items()}


def test_a_sound_block_is_fused_with_what_it_says(tmp_path: Path) -> None:
    done = converted(tmp_path, block())
    assert [(b.member.name, b.eps, b.is_told) for b in done.blocks] == [("rtdetr", 1e-3, True)]
    assert not any("assumed" in note for note in done.notes)


# What is said, and what is wrong with it.
NORMS: dict[str, tuple[bytes, str]] = {
    "text": (text("1e-3"), "eps is none"),
    "NaN": (number(float("nan")), "eps is none"),
    "infinity": (number(float("inf")), "eps is none"),
    "below zero": (number(-1e-3), "eps is none"),
    "nothing": (b"N", "eps is none"),
    "a truth": (b"\x88", "eps is none"),
    "a tuple": (pair(1), "eps is none"),
    "a tensor": (array(4), "eps is none"),
    "a module": (module(), "eps is none"),
    "a huge integer": (integer(1 << 90), "eps is none"),
}
CONVS: dict[str, tuple[str, bytes | None, str]] = {
    "no stride": ("stride", None, "does not say its stride"),
    "stride 0": ("stride", pair(0), "no stride or dilation is so"),
    "a stride below zero": ("stride", pair(-1), "no stride or dilation is so"),
    "a huge stride": ("stride", pair(1 << 40), "no stride or dilation is so"),
    "three strides": ("stride", integers((1, 1, 1)), "does not say its stride"),
    "a stride that is text": ("stride", text("1"), "does not say its stride"),
    "a stride that is a fraction": ("stride", number(1.0), "does not say its stride"),
    "a stride that is a truth": ("stride", b"\x88", "does not say its stride"),
    "a stride that is a tensor": ("stride", array(4), "does not say its stride"),
    "stride 2 in one branch": ("stride", pair(2), "their stride differs"),
    "no padding": ("padding", pair(0), "does not keep the kernel in the middle"),
    "padding on one axis": ("padding", pair(1, 0), "does not keep the kernel in the middle"),
    "a huge padding": ("padding", pair(1 << 60), "no padding is so"),
    "a padding below zero": ("padding", pair(-1), "no padding is so"),
    "padding valid": ("padding", text("valid"), "does not keep the kernel in the middle"),
    "a word for padding": ("padding", text("full"), "does not say its padding"),
    "dilation without padding": ("dilation", pair(2), "does not keep the kernel in the middle"),
    "dilation 0": ("dilation", pair(0), "no stride or dilation is so"),
    "a huge dilation": ("dilation", pair(1 << 62), "no stride or dilation is so"),
    "no groups": ("groups", None, "does not say its groups"),
    "0 groups": ("groups", integer(0), "does not say its groups"),
    "two groups": ("groups", integer(2), "its in_channels is not that of its kernel"),
    "groups beyond its outputs": ("groups", integer(1 << 62), "does not say its groups"),
    "another kernel": ("kernel_size", pair(5), "its kernel_size is not that of its kernel"),
    "a kernel that is text": ("kernel_size", text("3"), "does not say its kernel_size"),
    "other inputs": ("in_channels", integer(8), "its in_channels is not that of its kernel"),
    "other outputs": ("out_channels", integer(3), "its out_channels is not that of its kernel"),
    "another border": ("padding_mode", text("reflect"), "no convolution padded by zeros"),
    "no border": ("padding_mode", b"N", "no convolution padded by zeros"),
    "transposed": ("transposed", b"\x88", "no convolution padded by zeros"),
    "a forward of its own": ("forward", b"N", "its forward is replaced"),
    "a hook": (
        "_forward_hooks", b"}K\x00" + f"c{CANARY}\nMark\n".encode() + b")\x81s", "a hook may change"
    ),
    "hooks that are no dict": ("_forward_hooks", b"]", "_forward_hooks is no dict"),
    "a pruning hook on a whole kernel": (
        "_forward_pre_hooks", b"}K\x00ctorch.nn.utils.prune\nIdentity\n)\x81s", "a hook may change"
    ),
}  # fmt: skip


def require_refused(folder: Path, body: bytes, why: str) -> None:
    """Alone it is refused; beside a sound block it is left as it is, and that is said."""
    with pytest.raises(ReportedError) as caught:
        converted(folder, body)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()
    if "is no dict" in why:  # no module can be so: the file is refused
        return
    done = converted(folder, module(modules={"bad": body, "good": block()}))
    assert [one.prefix for one in done.blocks] == ["good."]
    (note,) = (note for note in done.notes if note.startswith("left as it is"))
    assert why in note
    found = arrays_of(folder / "out.npz")
    assert "bad.conv1.conv.weight" in found
    messages = [finding.message for finding in inspect_file(folder / "whole.pt").findings]
    assert note in messages


@pytest.mark.parametrize("what", NORMS)
def test_an_eps_that_is_none_is_refused(what: str, tmp_path: Path) -> None:
    said, why = NORMS[what]
    require_refused(tmp_path, block(norms={"eps": said}), why)


@pytest.mark.parametrize("what", CONVS)
def test_a_setting_that_the_kernel_cannot_have_is_refused(what: str, tmp_path: Path) -> None:
    name, said, why = CONVS[what]
    require_refused(tmp_path, block(wide={name: said}), why)


@pytest.mark.parametrize("said", [b"K\x01", pair(1), text("same")])
def test_torch_has_several_words_for_one_padding(said: bytes, tmp_path: Path) -> None:
    converted(tmp_path, block())
    known = arrays_of(tmp_path / "out.npz")
    converted(tmp_path, block(wide={"padding": said}))
    for name, found in arrays_of(tmp_path / "out.npz").items():
        np.testing.assert_array_equal(found, known[name], strict=True)


def test_dilations_that_make_a_kernel_grow_are_refused(tmp_path: Path) -> None:
    """A file of a kilobyte would ask for kernels of any size."""
    body = block(wide={"dilation": pair(64), "padding": pair(64)})
    assert converted(tmp_path, body).blocks[0].conv.kernel == (3, 3)  # its taps lie apart
    state: dict[str, tuple[int, ...]]
    state = {"lk_origin.weight": (9, 1, 3, 3), "dil_conv_k3_64.weight": (9, 1, 3, 3)}
    for norm in ("origin_bn", "dil_bn_k3_64"):
        state |= {f"{norm}.{part}": (9,) for part in ("weight", "bias", "running_mean")}
        state[f"{norm}.running_var"] = (9,)
    (near,) = (line for line in find_blocks(state).near if "larger than any" in line)
    assert "129 x 129" in near
    far = {name.replace("64", "1" + "0" * 12): shape for name, shape in state.items()}
    assert not find_blocks(far).found


def test_an_old_convolution_says_nothing_of_its_border(tmp_path: Path) -> None:
    assert converted(tmp_path, block(wide={"padding_mode": None, "transposed": None})).blocks


def test_an_eps_that_is_not_said_is_assumed_aloud(tmp_path: Path) -> None:
    done = converted(tmp_path, block(norms={"eps": None}))
    assert [one.eps for one in done.blocks] == [1e-5]
    assert any("eps 1e-05 is assumed where its modules do not say it" in n for n in done.notes)
    done = converted(tmp_path, block(norms={"eps": None}, last={"eps": number(0.5)}))
    assert any("1e-05 is assumed" in note for note in done.notes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zero", [number(0.0), integer(0)], ids=["0.0", "0"])
def test_an_eps_of_zero_is_taken_without_a_warning(zero: bytes, tmp_path: Path) -> None:
    done = converted(tmp_path, block(norms={"eps": zero}, last={}))
    assert any("eps 0, 0.001" in note for note in done.notes)


def test_batch_norms_of_one_block_keep_their_own_eps(tmp_path: Path) -> None:
    """Against the sums of equation (3) in float64, with an eps each."""
    done = converted(tmp_path, block(norms={"eps": number(0.25)}, last={"eps": number(0.75)}))
    assert any("eps 0.25, 0.75" in note for note in done.notes)
    with weights_io.open_weights(tmp_path / "whole.pt") as archive:
        assert isinstance(archive.root, weights_io.PickledModule)
        held = {n: a.read().astype(np.float64) for n, a in archive.root.arrays().items()}
    kernel = np.zeros((4, 4, 3, 3))
    bias = np.zeros(4)
    for branch, eps in (("conv1", 0.25), ("conv2", 0.75)):
        gamma, beta, mean, var = (
            held[f"{branch}.norm.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        t = gamma / np.sqrt(var + eps)
        weight = held[f"{branch}.conv.weight"] * t[:, None, None, None]
        inside = slice(1, 2) if branch == "conv2" else slice(0, 3)
        kernel[:, :, inside, inside] += weight
        bias += beta - mean * t
    found = arrays_of(tmp_path / "out.npz")
    np.testing.assert_allclose(found["conv.weight"], kernel, rtol=1e-6)
    np.testing.assert_allclose(found["conv.bias"], bias, rtol=1e-6, atol=1e-6)


def test_a_block_whose_forward_is_a_method_of_it_is_left(tmp_path: Path) -> None:
    """YOLO's fuse does that: what the block computes is no longer what its class does."""
    forward = b"c__builtin__\ngetattr\n" + again(7) + text("forward_fuse") + b"\x86R"
    sound = block()
    inside = sound[sound.index(b"}(") :]
    body = made(inside[:-1].removesuffix(b"u") + text("forward") + forward + b"u", place=7)
    with pytest.raises(ReportedError, match="its forward is replaced"):
        converted(tmp_path, body)


def test_a_setting_that_comes_after_the_module_is_refused(tmp_path: Path) -> None:
    """It does not change the object that Python makes, so nothing may read it there."""
    late = made(state({"weight": array(4)}) + b"q\x05")
    whole = module(modules={"a": late, "b": block()})
    listed = b"](" + whole + again(5) + text("eps") + number(0.5) + b"se"
    with pytest.raises(ReportedError, match="change after it was built"):
        converted(tmp_path, listed)
