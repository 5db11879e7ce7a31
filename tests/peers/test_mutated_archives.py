"""Where torch's `weights_only` reader and ours both take a changed archive, they read the same."""

from __future__ import annotations

import random
from io import BytesIO

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.peers

import torch  # noqa: E402 (the suite runs without it)

import weights_io  # noqa: E402
from tests.peers import mutated_archives  # noqa: E402
from tests.peers.test_weights_io_torch import saved  # noqa: E402


@pytest.mark.parametrize("first", [0, 20, 40])
def test_what_both_take_is_read_the_same(first: int) -> None:
    found = [
        mutated_archives.opinions(mutated_archives.mutated(random.Random(seed)))
        for seed in range(first, first + 20)
    ]
    assert sum(each.ours and each.torchs for each in found) >= 2, "the changes leave nothing whole"
    assert not all(each.ours for each in found), "the changes break nothing"


def test_a_difference_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved({"weight": torch.ones(3)}).getvalue()
    assert mutated_archives.opinions(file) == (True, True)
    wrong = {"weight": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    monkeypatch.setattr(torch, "load", lambda *_, **__: wrong)
    with pytest.raises(AssertionError):
        mutated_archives.opinions(file)


def test_keys_of_other_kinds_are_no_difference() -> None:
    """Changed archives have them, and we keep of such a key that there was one."""
    tensor = torch.ones(3)
    file = saved({tensor: tensor, (1, "a"): 2, None: [3], "b": tensor}).getvalue()
    assert mutated_archives.opinions(file) == (True, True)
    with weights_io.open_weights(BytesIO(file)) as archive:
        assert isinstance(archive.root, dict)
        kinds = [getattr(key, "type_name", key) for key in archive.root]
    assert kinds == ["torch.Tensor", "tuple", "NoneType", "b"]


@pytest.mark.parametrize("keys", ["wW", "w", "W"])
def test_records_whose_names_differ_by_case_only_are_refused(keys: str) -> None:
    file = mutated_archives.of_two_cases(keys)
    theirs = torch.load(BytesIO(file), weights_only=True)
    assert len({float(tensor.sum()) for tensor in theirs.values()}) == 1, "torch finds one for both"
    with pytest.raises(weights_io.WeightsFileError, match="case"):
        weights_io.open_weights(BytesIO(file))
