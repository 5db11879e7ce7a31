"""Files with a network inside, and what must come out of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.network import Model
from tests.files.checkpoint_files import small_state

ONE = np.ones(10, np.float32)
LOSS = {"criterion.weight": ONE, "train_acc.tp": np.zeros(10, np.int64)}


def pickled(folder: Path, root: Any) -> Path:
    path = folder / "wrapped.pkl"
    path.write_bytes(pickle.dumps(root, protocol=4))
    return path


def assert_is(model: Model, wanted: Mapping[str, Any] | None = None) -> None:
    found, wanted = model.state_dict(), small_state() if wanted is None else wanted
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def behind(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: array for name, array in state.items()}


def renamed(state: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    renamed = {}
    for name, array in state.items():
        for old, new in words.items():
            name = name.replace(old, new)
        renamed[name] = array
    return renamed


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        rr.load(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message
