"""Names and shapes of every official model are those of the torch network, in both forms."""

from __future__ import annotations

import pytest

from repvgg_ref.models.architectures import NAMES, architecture
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import official_dialect
from repvgg_ref.models.parameters import param_shapes

torch = pytest.importorskip("torch")

from tests.peers.torch_repvgg import build_torch  # noqa: E402  (torch may be absent)

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_names_and_shapes(name: str, form: Form) -> None:
    arch = architecture(name)
    with torch.device("meta"):  # shapes without memory
        theirs = build_torch(arch, deploy=form == "deploy").state_dict()
    shapes = param_shapes(arch, form)
    official = official_dialect(arch).names(shapes)
    assert {official[ours]: shape for ours, shape in shapes.items()} == {
        key: tuple(tensor.shape) for key, tensor in theirs.items()
    }
