"""What the suffix of a file's name says of its format, so that no file says what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from repvgg_ref.errors import ReportedError

# Suffix -> the formats that it may stand for; a suffix that is not here says nothing.
_FORMATS: Mapping[str, tuple[str, ...]] = {
    ".npz": ("npz",),
    ".npy": ("npy",),
    ".safetensors": ("safetensors",),
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".tar"), ("pth",)),
    ".onnx": ("onnx",),
    **dict.fromkeys((".html", ".htm"), ("html",)),
    ".xml": ("xml", "OpenVINO"),
    ".json": ("json",),
    ".svg": ("svg",),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), ("Keras",)),
    ".tflite": ("TFLite",),
    ".pb": ("TensorFlow",),
    ".pt2": ("torch.export",),
    ".param": ("ncnn",),
    ".mnn": ("MNN",),
    **dict.fromkeys((".engine", ".plan", ".trt"), ("TensorRT",)),
    **dict.fromkeys((".mlmodel", ".mlpackage"), ("Core ML",)),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tiff"), ("picture",)),
    **dict.fromkeys((".zip", ".gz", ".xz", ".7z"), ("archive",)),
    **dict.fromkeys((".csv", ".txt", ".md", ".pdf", ".py", ".toml", ".yaml", ".yml"), ("text",)),
}
FOLDER = "a folder"


class SuffixError(ReportedError):
    """A name that promises another format than what would be written under it."""


def formats_of(path: Path) -> tuple[str, ...]:
    """The formats that the name may stand for; none if its suffix says nothing."""
    return _FORMATS.get(path.suffix.lower(), ())


def require_suffix(path: Path, written: str) -> None:
    """Raise `SuffixError` if the name of `path` says that it is not what will be `written`.

    Parameters
    ----------
    written : str
        A format of the table above, or `FOLDER`. A folder that is there may be called anything; a
        file there is refused by whoever would write the folder.
    """
    promised = formats_of(path)
    if not promised or written in promised or (written == FOLDER and path.exists()):
        return
    suffixes = [suffix for suffix, formats in _FORMATS.items() if written in formats]
    raise SuffixError(
        "the output's name says another format than what would be written",
        got=f"{path.name!r} for {written}",
        wanted="a name without that suffix"
        if written == FOLDER
        else "a name ending in " + " or ".join(suffixes),
    )
