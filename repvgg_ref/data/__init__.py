"""Pictures for training and evaluation: data sets, transforms, and the loader.

>>> from repvgg_ref.data import Loader, open_data, training_transform
>>> digits = open_data(None, split="train")
>>> shifted = training_transform(size=32, crop="shift", flip=False)
>>> loader = Loader(digits, transform=shifted, batch_size=64, seed=0, threads=2)
>>> next(loader.epoch(0)).images.shape
(64, 32, 32, 1)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repvgg_ref.data.loader import Batch, Loader
    from repvgg_ref.data.open import Parts, open_data, open_parts
    from repvgg_ref.data.source import ArraySource, DataError, Source, Standardise, Subset
    from repvgg_ref.data.splits import splits_of
    from repvgg_ref.data.transforms import (
        EvaluationTransform,
        Transform,
        evaluation_transform,
        training_transform,
    )

__all__ = [
    "ArraySource",
    "Batch",
    "DataError",
    "EvaluationTransform",
    "Loader",
    "Parts",
    "Source",
    "Standardise",
    "Subset",
    "Transform",
    "evaluation_transform",
    "open_data",
    "open_parts",
    "splits_of",
    "training_transform",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562): the digits alone need neither Pillow nor threads."""
    if name in __all__:
        for home in ("source", "transforms", "loader", "splits", "open"):
            module = import_module(f"repvgg_ref.data.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
