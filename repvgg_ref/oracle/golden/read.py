"""Reading a golden bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import weights_io
from repvgg_ref.arrays import Array, one_line
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError, ReportedError
from repvgg_ref.files.checkpoint import load
from repvgg_ref.models.about import Assumed
from repvgg_ref.models.architectures import Architecture, AuxHeadSpec
from repvgg_ref.models.geometry import geometry_of
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import official_names
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.oracle.golden.arrays import OUTPUTS, WEIGHTS
from repvgg_ref.oracle.golden.folder import checked_manifest, digest_of
from repvgg_ref.oracle.training.steps import ARRAYS, DESCRIPTION, TrainingSteps, read_steps
from weights_io import sanitize

_Spec = TypeVar("_Spec", BlockSpec, AuxHeadSpec)


@dataclass(frozen=True)
class Golden:
    """A bundle whose files were found to be what its manifest says.

    `model` is None if the bundle came without weights and none were given.
    """

    manifest: Mapping[str, Any]
    x: Array
    model: Model | None
    steps: TrainingSteps | None

    __repr__ = one_line


def read_golden(folder: str | Path, *, reference: Model | str | Path | None = None) -> Golden:
    """Read a bundle.

    Parameters
    ----------
    folder : path
    reference : Model or path, optional
        The weights, for a bundle without them.

    Raises
    ------
    ReportedError
        If it is no bundle, or a file was changed.
    CheckpointError
        If `reference` does not have the weights that the bundle was made with.
    """
    path = Path(folder)
    manifest = checked_manifest(path, _needed)
    with _told(path):
        with weights_io.open_weights(path / OUTPUTS) as archive:
            root: Any = archive.root
            x = root["input"].read()
        _require_shape(manifest["input"], x)
        model = _model(path, manifest, reference)
    steps = read_steps(path) if manifest.get("train_step") is not None else None
    return Golden(manifest, x, model, steps)


def _require_shape(said: Mapping[str, Any], x: Array) -> None:
    if said["shape"] != list(x.shape):
        raise ValueError(f"input of shape {said['shape']}, and there is one of {x.shape}")


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What goes wrong with a manifest in which something is missing, or of another type."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ReportedError(
            f"{sanitize(folder.name)}: the bundle's manifest does not describe a network",
            got=sanitize(f"{type(error).__name__}: {error}"),
            advice="get the bundle again from its source",
        ) from None


def _needed(manifest: Mapping[str, Any]) -> list[str]:
    """The files of a bundle that are read; its weights have a digest of their own."""
    return [OUTPUTS] if manifest.get("train_step") is None else [OUTPUTS, ARRAYS, DESCRIPTION]


def _model(
    path: Path, manifest: Mapping[str, Any], reference: Model | str | Path | None
) -> Model | None:
    eps, momentum = float(manifest["eps"]), float(manifest["momentum"])
    if manifest["architecture"].get("dense"):
        return _dense_model(path, manifest, _architecture(manifest["architecture"]), reference)
    if _is_graph(manifest):
        return _graph(path, manifest, reference, eps)
    arch = _architecture(manifest["architecture"])
    if isinstance(reference, Model):
        model = replace(reference, arch=arch, eps=eps, momentum=momentum)
    elif reference is not None:
        known = geometry_of(arch)
        loaded = load(reference, eps=eps, strides=known.strides, dilations=known.dilations)
        model = replace(loaded, arch=arch, momentum=momentum)
    elif (path / WEIGHTS).is_file():
        form: Form = "deploy" if manifest["form"] == "deploy" else "train"
        model = Model(arch, form, _params(path / WEIGHTS, arch, form), eps, momentum)
    else:
        return None
    return _fitting(model, manifest)


def _is_graph(manifest: Mapping[str, Any]) -> bool:
    """Whether the network is no chain: some layer is not fed by the one before it alone."""
    layers, inputs = list(manifest["layers"]), manifest.get("inputs")
    before = [[name] for name in ("input", *layers)]
    return inputs is not None and [inputs[name] for name in layers] != before[: len(layers)]


def _graph(
    folder: Path, manifest: Mapping[str, Any], reference: Model | str | Path | None, eps: float
) -> Model | None:
    """A network that is no chain; its weights' names and metadata say which it is."""
    if reference is None and not (folder / WEIGHTS).is_file():
        return None
    try:
        model = reference if isinstance(reference, Model) else load(reference or folder / WEIGHTS)
    except CheckpointError as error:
        raise ReportedError(
            "the bundle's weights do not say which network they are",
            got=sanitize(manifest["architecture"]["name"]),
            wanted="a network with a name of ours",
            advice="give the model that it was made from as the reference",
        ) from error
    model = replace(model, eps=eps, momentum=float(manifest["momentum"]))
    return _fitting(model, manifest)


def _fitting(model: Model, manifest: Mapping[str, Any]) -> Model:
    """The model, if its weights are those that the bundle was made with."""
    shapes = {name: array.shape for name, array in model.params.items()}
    fits = shapes == param_shapes(model.arch, model.form)
    _require_its_own(model, manifest, fits=fits)
    return replace(model, assumed=_assumed(manifest))


def _require_its_own(model: Model, manifest: Mapping[str, Any], *, fits: bool) -> None:
    if not fits or digest_of(model.state_dict()) != manifest["weights_sha256"]:
        raise CheckpointError(
            "these are not the weights the bundle was made with",
            got=f"{model.name} in {model.form} form",
            wanted=f"{manifest['model']}, digest {str(manifest['weights_sha256'])[:12]}",
        )


def _dense_model(
    path: Path, manifest: Mapping[str, Any], blocks: Network, reference: Model | str | Path | None
) -> Model | None:
    """A network that says a class for every pixel: as its weights and the `blocks` tell it."""
    model = reference
    if model is None and not (path / WEIGHTS).is_file():
        return None
    if not isinstance(model, Model):
        known = geometry_of(blocks)
        source = path / WEIGHTS if model is None else model
        eps = float(manifest["eps"])
        model = load(source, eps=eps, strides=known.strides, dilations=known.dilations)
    _require_its_own(model, manifest, fits=model.arch.blocks == blocks.blocks)
    momentum = float(manifest["momentum"])
    return replace(model, momentum=momentum, assumed=_assumed(manifest))


def _assumed(manifest: Mapping[str, Any]) -> Assumed:
    """What was assumed when the bundle was made; bundles before 0.2.0 do not say it."""
    try:
        said = manifest.get("assumed", {})
        eps = None if said.get("eps") is None else float(said["eps"])
        strides, dilations = (
            {str(b): int(n) for b, n in said.get(what, {}).items()} for what in Assumed().steps
        )
        is_fused = eps is not None and manifest["form"] == "deploy"
        return Assumed(eps, strides, dilations, is_fused)
    except (AttributeError, TypeError, ValueError):
        raise ReportedError("the manifest's 'assumed' is no table of numbers") from None


def _params(path: Path, arch: Network, form: Form) -> dict[str, Array]:
    """The bundle's own weights; strides and dilations are in no such file, but in the manifest."""
    names = official_names(arch, form)
    with weights_io.open_weights(path) as archive:
        root: Any = archive.root
        try:
            return {ours: root[theirs].read() for ours, theirs in names.items()}
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path.name} lacks an array of the manifest's architecture", got=sanitize(error)
            ) from None


def _block(said: Mapping[str, Any]) -> BlockSpec:
    """A block; bundles of 0.1.0 say which branches it has instead of its kind."""
    known = dict(said)
    branches = known.pop("has_1x1", None), known.pop("has_identity", None)
    if branches[0] is not None:
        spec = _typed(BlockSpec, known)
        beside = bool(branches[0]), bool(branches[1]) or not spec.can_add_input
        known["kind"] = _KINDS_OF_0_1_0[beside]
    return _typed(BlockSpec, known)


def _typed(kind: type[_Spec], said: Mapping[str, Any]) -> _Spec:
    """A block or a head, every field of which is of its type: number, text, or yes and no."""
    for field in fields(kind):
        wanted = {"int": int, "bool": bool}.get(str(field.type), str)
        value: Any = said.get(field.name, field.default)
        found: type = type(value)
        if found is not wanted or (found is int and not 0 <= value < 1 << 31):
            raise TypeError(f"{field.name} is {value!r}")
    return kind(**said)


# 1x1, and identity wherever shapes allow one.
_KINDS_OF_0_1_0 = {
    (True, True): "repvgg",
    (True, False): "1x1-only",
    (False, True): "identity-only",
    (False, False): "plain",
}


def _architecture(said: Mapping[str, Any]) -> Network:
    """What `dataclasses.asdict` made of an `Architecture`."""
    try:
        return Architecture(
            str(said["name"]),
            tuple(_block(block) for block in said["blocks"]),
            int(said["num_classes"]),
            tuple(_typed(AuxHeadSpec, head) for head in said["aux_heads"]),
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ReportedError(
            "the manifest's architecture is incomplete", got=sanitize(error)
        ) from None
