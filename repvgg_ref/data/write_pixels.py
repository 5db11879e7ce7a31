"""Making the folders that `pixel_shards` reads: whole or visibly unfinished, and resumable."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.data.loader import Batch, Loader
from repvgg_ref.data.pixel_shards import FORMAT, LABELS, MANIFEST, VERSION, read_manifest
from repvgg_ref.data.source import DataError, Source
from repvgg_ref.data.transforms import evaluation_transform
from weights_io import atomic_path, claim, open_regular, reported, sanitize, sweep

_PART = {"file": str, "count": int, "sha256": str, "labels": list, "skipped": list}
PLAN = "unfinished.json"  # what is being made; there until the manifest is
PART_BYTES = 2**28
BATCH = 64

# How many batches are resized, and of how many.
Progress = Callable[[int, int], None]


def write_pixels(
    source: Source,
    out: Path,
    *,
    size: int = 256,
    interpolation: str = "bilinear",
    threads: int = 1,
    part_bytes: int = PART_BYTES,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write the middle of every picture: shorter side resized to `size`, centre square cropped.

    Evaluation with ``resize=size`` sees from these what it sees from the pictures themselves, pixel
    for pixel (if `size` less the crop is a multiple of four). Training sees central squares only:
    its crops never reach what was cut away.

    Pictures that cannot be read are left out and listed. A part is renamed into place when it is
    whole, and the manifest comes last; after an interruption the same call goes on after the last
    whole part.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    DataError
        If `out` holds a data set already, or the beginnings of another one.
    """
    loader = Loader(
        source,
        transform=evaluation_transform(size=size, resize=size, interpolation=interpolation),
        batch_size=BATCH,
        threads=threads,
        shuffle=False,
        drop_last=False,
    )
    per_part = max(1, part_bytes // (BATCH * size * size * source.channels))  # batches
    header = {
        "format": FORMAT,
        "version": VERSION,
        "size": size,
        "channels": source.channels,
        "interpolation": interpolation,
        "classes": list(source.classes),
        "standardise": list(source.standardise),
    }
    plan = header | {"batches_a_part": per_part, "pictures": _fingerprint(source)}
    with reported(out), _claimed(out, json.loads(json.dumps(plan))):
        if (out / MANIFEST).exists():  # all was done but to tidy up
            return _tidied(out, read_manifest(out))
        parts = _whole_parts(out, size * size * source.channels)
        first = len(parts) * per_part
        with contextlib.closing(loader.epoch(0, first_step=first)) as batches:
            counted = _counted(batches, first, loader.steps, progress)
            for start in range(first, loader.steps, per_part):
                steps = min(per_part, loader.steps - start)
                path = _part(out, len(parts))
                part = _write_part(path, islice(counted, steps)) | {"skipped": loader.skipped}
                _write_json(_beside(path), part)
                parts.append(part)
        return _finish(out, header, parts)


def _counted(
    batches: Iterable[Batch], first: int, steps: int, progress: Progress
) -> Iterator[Batch]:
    for done, batch in enumerate(batches, first + 1):
        progress(done, steps)
        yield batch


def _fingerprint(source: Source) -> str:
    """A hash of which pictures these are: their names and labels."""
    digest = hashlib.sha256(source.labels.astype("<i8").tobytes())
    for index in range(len(source)):
        digest.update(source.name(index).encode() + b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def _claimed(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The folder, empty or with the beginnings of this very plan, for this process alone."""
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)  # what a run has left that was killed
    if (out / MANIFEST).exists() and not (out / PLAN).exists():
        raise DataError(f"{sanitize(out)}: holds a data set already", advice="name another folder")
    if not (out / PLAN).exists():
        if any(out.iterdir()):
            raise DataError(f"{sanitize(out)}: is not empty", advice="name another folder")
        _write_json(out / PLAN, plan)
    with open_regular(out / PLAN) as file:
        if not claim(file):
            raise DataError(f"{sanitize(out)}: another process is writing here")
        if _parsed(file.read()) != plan:
            raise DataError(
                f"{sanitize(out)}: holds the beginnings of another data set",
                advice="name another folder, or delete this one",
            )
        yield
    (out / PLAN).unlink()  # now that it is closed: Windows removes no open file


def _whole_parts(out: Path, picture_bytes: int) -> list[dict[str, Any]]:
    """What earlier runs finished, up to the first part that is missing."""
    parts: list[dict[str, Any]] = []
    while True:
        path = _part(out, len(parts))
        if not _beside(path).is_file() or not path.is_file():
            return parts
        part = _parsed(_beside(path).read_bytes()) or {}
        if not _is_part(part) or path.stat().st_size != part["count"] * picture_bytes:
            return parts
        parts.append(part)


def _is_part(said: dict[str, Any]) -> bool:
    """Whether this is what `_write_part` says of a part."""
    return (
        all(type(said.get(name)) is kind for name, kind in _PART.items())
        and said["count"] == len(said["labels"])
        and all(type(label) is int for label in said["labels"])
    )


def _write_part(path: Path, batches: Iterable[Batch]) -> dict[str, Any]:
    digest, labels = hashlib.sha256(), []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for batch in batches:
            pixels = np.ascontiguousarray(batch.images).data
            file.write(pixels)
            digest.update(pixels)
            labels += batch.labels.tolist()
    return {
        "file": path.name,
        "count": len(labels),
        "sha256": digest.hexdigest(),
        "labels": labels,
    }


def _finish(out: Path, header: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the labels, then the manifest; only then forget the parts' own records."""
    labels = np.array([label for part in parts for label in part["labels"]], np.int64)
    data = io.BytesIO()
    np.save(data, labels)
    with atomic_path(out / LABELS) as temporary:
        temporary.write_bytes(data.getvalue())
    skipped = {name: reason for part in parts for name, reason in part["skipped"]}
    manifest = header | {
        "count": len(labels),
        "labels_sha256": hashlib.sha256(data.getvalue()).hexdigest(),
        "parts": [{key: part[key] for key in ("file", "count", "sha256")} for part in parts],
        "skipped": sorted(skipped.items()),
    }
    _write_json(out / MANIFEST, manifest)
    return _tidied(out, manifest)


def _tidied(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, without the records that it has made needless."""
    for number in range(len(manifest["parts"])):
        _beside(_part(out, number)).unlink(missing_ok=True)
    return manifest


def _part(out: Path, number: int) -> Path:
    return out / f"pixels-{number:05d}.u8"


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
