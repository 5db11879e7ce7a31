"""What torch itself writes beside the weights: stepped over, in both of its containers."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.peers

WEIGHT = torch.arange(6.0).reshape(2, 3)
OTHERS = ("complex64", "complex128", "uint16", "uint64", "float8_e4m3fn", "float8_e5m2")


# A tensor of a class of its own. (torch may be absent, and has no types for mypy then.)
Boxes = type("Boxes", (torch.Tensor,), {"__module__": __name__})


def _values() -> dict[str, Any]:
    itself: list[Any] = []
    itself.append(itself)
    return {
        **{name: torch.ones(3).to(getattr(torch, name)) for name in OTHERS},
        "a type": torch.float8_e4m3fn,
        "keys": {(1, 2): 1, b"a": 2, torch.float16: 3, torch.device("cpu"): 4, "text": 5},
        "itself": itself,
        "meta": torch.zeros(2, device="meta"),
        "own class": WEIGHT.as_subclass(Boxes),
        "a date": np.datetime64("2020-01-01"),
        "a chain": collections.ChainMap({}),
        "text": "x" * 70_000,
    }


def _deprecated() -> dict[str, Any]:
    """What torch warns of when it is made."""
    return {
        "sparse": torch.eye(2).to_sparse(),
        "compressed": torch.eye(2).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.quint8),
        "parameters": torch.nn.Parameter(torch.eye(2).to_sparse()),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", [*_values(), "sparse", "compressed", "quantised", "parameters"])
def test_what_torch_writes_beside_the_weights_is_stepped_over(
    name: str, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    content = {"w": WEIGHT, "beside": [(_values() | _deprecated())[name], 3], "v": WEIGHT + 1}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with weights_io.open_weights(path) as archive:
        root: Any = archive.root
        np.testing.assert_array_equal(root["w"].read(), WEIGHT.numpy(), strict=True)
        np.testing.assert_array_equal(root["v"].read(), WEIGHT.numpy() + 1, strict=True)
        found, three = root["beside"]
    assert three == 3
    assert not isinstance(found, weights_io.LazyArray)
