"""What torchvision does to known pictures with known draws, as a committed file.

torchvision and the project's own torch cannot be installed beside each other, so this runs by
hand, in a virtual environment that has torchvision, from the repository's root:

    python -m tests.peers.make_torchvision_fixture

Its draws are recorded while it runs; the tests feed the same draws to our code and compare every
parameter, and a hash of every result's pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # in an environment of its own
from PIL import Image
from PIL import __version__ as pillow
from torchvision import transforms as tv
from torchvision.transforms import autoaugment

from tests.data.pictures import drawn

PATH = Path(__file__).parents[1] / "data" / "fixtures" / "torchvision.json"
SIZES = [(500, 375), (375, 500), (224, 224), (333, 77), (40, 300), (32, 32), (97, 101)]
MODES = {"bilinear": tv.InterpolationMode.BILINEAR, "bicubic": tv.InterpolationMode.BICUBIC}


def digest(picture: Image.Image) -> str:
    pixels = np.asarray(picture)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


@contextmanager
def recorded() -> Iterator[list[list[float]]]:
    """Every random number that torch draws meanwhile, one list a call."""
    draws: list[list[float]] = []
    originals = torch.rand, torch.randint, torch.Tensor.uniform_

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            drawn_numbers = function(*args, **kwargs)
            draws.append(drawn_numbers.flatten().tolist())
            return drawn_numbers

        return wrapped

    torch.rand, torch.randint = noting(originals[0]), noting(originals[1])
    torch.Tensor.uniform_ = noting(originals[2])
    try:
        yield draws
    finally:
        torch.rand, torch.randint = originals[:2]
        torch.Tensor.uniform_ = originals[2]


def resized_crops() -> Iterator[dict[str, Any]]:
    for number in range(60):
        width, height = SIZES[number % len(SIZES)]
        mode = list(MODES)[number % 2]
        crop = tv.RandomResizedCrop(64, interpolation=MODES[mode])
        with recorded() as draws:
            box = crop.get_params(drawn(width, height), list(crop.scale), list(crop.ratio))
        cut = tv.functional.resized_crop(
            drawn(width, height), *box, size=[64, 64], interpolation=MODES[mode]
        )
        yield {
            "size": [width, height],
            "interpolation": mode,
            "draws": draws,
            "box": list(box),
            "pixels": digest(cut),
        }


def shifts() -> Iterator[dict[str, Any]]:
    for number in range(12):
        with recorded() as draws:
            shifted = tv.RandomCrop(32, padding=4)(drawn(32, 32, seed=number))
        yield {"seed": number, "draws": draws, "pixels": digest(shifted)}


def evaluations() -> Iterator[dict[str, Any]]:
    for mode, method in MODES.items():
        for width, height in SIZES:
            for resize, size in ((256, 224), (224, 224), (73, 64)):
                steps = tv.Compose([tv.Resize(resize, interpolation=method), tv.CenterCrop(size)])
                yield {
                    "size": [width, height],
                    "interpolation": mode,
                    "resize": resize,
                    "crop": size,
                    "pixels": digest(steps(drawn(width, height))),
                }


def operations() -> Iterator[dict[str, Any]]:
    """Every operation at every level of both methods, on a colour and a grey picture."""
    for method, levels in ((tv.AutoAugment(), 10), (tv.RandAugment(), 31)):
        for width, height in ((97, 101), (224, 160)):
            space = method._augmentation_space(levels, (height, width))
            for operation, (magnitudes, signed) in space.items():
                values = magnitudes.tolist() if magnitudes.ndim else [0.0]
                for level in range(0, len(values), 1 if levels == 10 else 3):
                    yield from operation_case(
                        operation, values[level], level, levels, (width, height), signed
                    )


def operation_case(
    operation: str, value: float, level: int, levels: int, size: tuple[int, int], signed: bool
) -> Iterator[dict[str, Any]]:
    for sign in (1, -1) if signed else (1,):
        pixels = [
            digest(
                autoaugment._apply_op(
                    drawn(*size, grey=grey),
                    operation,
                    sign * float(value),
                    interpolation=tv.InterpolationMode.NEAREST,
                    fill=None,
                )
            )
            for grey in (False, True)
        ]
        yield {
            "operation": operation,
            "level": level,
            "levels": levels,
            "size": list(size),
            "magnitude": float(value),
            "sign": sign,
            "pixels": pixels,
        }


def policies() -> Iterator[dict[str, Any]]:
    methods = {
        "autoaugment": tv.AutoAugment(),
        "autoaugment-cifar10": tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10),
        "randaugment": tv.RandAugment(),
    }
    for name, method in methods.items():
        for number in range(80):
            with recorded() as draws:
                augmented = method(drawn(64, 48, seed=number))
            yield {"method": name, "seed": number, "draws": draws, "pixels": digest(augmented)}


def moves() -> Iterator[dict[str, Any]]:
    """Whole pixels of every move, also of sides where the number of pixels is nearly whole."""
    for method, levels in ((tv.AutoAugment(), 10), (tv.RandAugment(), 31)):
        for side in (32, 224, 320, 331, 662, 993):
            values = method._augmentation_space(levels, (1, side))["TranslateX"][0]
            yield {"levels": levels, "side": side, "pixels": [int(value) for value in values]}


def tables() -> dict[str, Any]:
    return {
        policy.value: tv.AutoAugment(policy).policies
        for policy in (tv.AutoAugmentPolicy.IMAGENET, tv.AutoAugmentPolicy.CIFAR10)
    }


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    part.__name__: part
    for part in (resized_crops, shifts, evaluations, operations, moves, policies)
}

if __name__ == "__main__":
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "torchvision": torchvision.__version__,
        "pillow": pillow,
        **{name: list(part()) for name, part in PARTS.items()},
        "tables": tables(),
    }
    lines = []
    for name, value in made.items():
        rows = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else ""
        lines.append(f"{json.dumps(name)}: " + (f"[\n{rows}\n]" if rows else json.dumps(value)))
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{PATH}: {PATH.stat().st_size} bytes")
