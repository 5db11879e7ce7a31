"""The first weights: drawn from the seed, or a checkpoint's with a head for the data's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.data.digits import digits_architecture
from repvgg_ref.data.imagenet import imagenet_place, is_imagenet
from repvgg_ref.files.checkpoint import load
from repvgg_ref.files.identify import closest_official
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.names import official_names
from repvgg_ref.models.network import Model, build, require_branches
from repvgg_ref.models.parameters import initial_params, param_shapes
from repvgg_ref.models.pspnet import FAST, PREFIX, SEGMENTERS, pspnet
from repvgg_ref.train.events import Initialised
from repvgg_ref.train.plan import UnfitError
from repvgg_ref.train.recipe import FROM_FILE
from repvgg_ref.train.settings import Settings

WEIGHTS = "train.pth"  # in a training's folder


class Given(NamedTuple):
    """The checkpoint to start from, and the settings with the network's name in the recipe.

    `says_network`: the network to train is the file's, not one that the recipe names.
    """

    model: Model | None
    settings: Settings
    says_network: bool

    def network(self, num_classes: int, *, dense: bool = False) -> Network | None:
        """The file's network with a head for so many classes, if it says which to train.

        Where pixels have labels and it is a classifier: the PSPNet on it.
        """
        if self.model is None or not self.says_network:
            return None
        arch = self.model.arch
        if dense and isinstance(arch, Architecture):
            _require_stages(arch, self.settings)
            return pspnet(replace(arch, name=_name(arch)), num_classes=num_classes)
        return arch.with_classes(num_classes)


def read_given(settings: Settings) -> Given:
    """Read the file of ``--init``, if there is one.

    A training that goes on finds its network in its own weights: the file that it began with need
    not be there any more.

    Raises
    ------
    NotFusibleError
        If it is in deploy form: its branches are gone, so it cannot be trained.
    UnfitError
        If the recipe takes the network from a file, and there is none.
    """
    recipe, path = settings.recipe, settings.init
    from_file = recipe.model == FROM_FILE
    own = settings.out / WEIGHTS
    if settings.resume and (from_file or path is not None) and own.exists():
        path = own
    if path is None:
        if from_file:
            raise UnfitError(
                "there is no file to take the network from",
                got=f"model {FROM_FILE} in recipe {recipe.name}",
                advice="say --init FILE, or --model NAME",
            )
        return Given(None, settings, says_network=False)
    block = "auto" if from_file and recipe.block == "repvgg" else recipe.block
    model = load(path, dtype=np.dtype(settings.dtype), block=block)
    require_branches(model, f"training from {path.name}")
    if from_file:
        recipe = replace(recipe, model=_name(model.arch), block=model.block)
    return Given(model, replace(settings, recipe=recipe, init=path), from_file)


def first_weights(
    given: Given, arch: Network, classes: Sequence[str]
) -> tuple[Model, Initialised | None]:
    """The model that a training starts from, and what was taken of the file for it.

    Parameters
    ----------
    arch : Network
        What is trained.
    classes : sequence of str
        The data's.

    Raises
    ------
    UnfitError
        If the file's network has other blocks than `arch`.
    """
    settings, dtype = given.settings, np.dtype(given.settings.dtype)
    if given.model is None:
        return build(arch, seed=settings.seed, dtype=dtype), None
    assert settings.init is not None, "there is a file"
    model, file = given.model, settings.init.name
    if arch.is_dense and not model.arch.is_dense:
        return _on_backbone(given, arch)
    if model.arch.with_classes(arch.num_classes).blocks != arch.blocks:
        raise UnfitError(
            f"{file} is another network",
            got=f"{_name(model.arch)}, channels {_channels(model.arch)}",
            wanted=f"{arch.name}, channels {_channels(arch)}",
            advice="leave --model out: the file says which network it is",
        )
    rows, how = _rows(model, classes)
    heads = _heads(model.arch)
    taken = {name: array for name, array in model.params.items() if name not in heads}
    wanted = param_shapes(arch, "train")
    new = [name for name in wanted if name not in taken]
    if new:
        drawn = initial_params(arch, seed=settings.seed, dtype=dtype)
        taken |= {name: _filled(drawn[name], model.params.get(name), rows) for name in new}
    official = official_names(arch, "train")
    found = Initialised(
        file=str(settings.init),
        model=_name(model.arch),
        arrays_taken=len(wanted) - len(new),
        head_arrays=tuple(official[name] for name in new),
        arrays_left=tuple(name for name in model.params if name not in wanted),
        classes_taken=tuple(classes[ours] for ours in rows),
        classes_new=tuple(name for n, name in enumerate(classes) if n not in rows),
        classes_left=model.arch.num_classes - len(rows),
        matched=how,
        notes=(*model.notes, *([f"assumed: {model.assumed}"] if model.assumed else [])),
    )
    params = {name: taken[name] for name in wanted}
    return replace(model, arch=arch, params=params), found


def _on_backbone(given: Given, arch: Network) -> tuple[Model, Initialised]:
    """The PSPNet `arch` on a classifier's stages; everything behind them is new."""
    settings, model = given.settings, given.model
    assert model is not None
    assert settings.init is not None
    wanted = param_shapes(arch, "train")
    stages = {name: shape for name, shape in wanted.items() if name.startswith("stage")}
    here = {
        n: a.shape for n, a in model.params.items() if n.startswith("stage") and "_aux" not in n
    }
    if here != stages:
        _require_stages(model.arch, settings)
        raise UnfitError(
            f"{settings.init.name} is not the backbone of {arch.name}",
            got=_known(model.arch, model.arch.blocks),
            wanted=_known(arch, [b for b in arch.blocks if b.name.startswith("stage")]),
            advice=_other_backbone(model.arch),
        )
    drawn = initial_params(arch, seed=settings.seed, dtype=np.dtype(settings.dtype))
    params = {name: model.params[name] if name in stages else drawn[name] for name in wanted}
    official = official_names(arch, "train")
    found = Initialised(
        file=str(settings.init),
        model=_name(model.arch),
        arrays_taken=len(stages),
        head_arrays=tuple(official[name] for name in wanted if name not in stages),
        arrays_left=tuple(name for name in model.params if name not in stages),
        classes_taken=(),
        classes_new=(),
        classes_left=model.arch.num_classes,
        matched="the backbone alone is taken",
        notes=tuple(model.notes),
    )
    return Model(arch, "train", params, model.eps, model.momentum), found


def _require_stages(arch: Network, settings: Settings) -> None:
    """Refuse a file's network that no PSPNet stands on."""
    stages = sorted({block.name.partition(".")[0] for block in arch.blocks})
    if stages != [f"stage{n}" for n in range(5)]:
        assert settings.init is not None
        raise UnfitError(
            f"{settings.init.name} cannot be the backbone of a PSPNet",
            got=f"{_name(arch)}, which has {', '.join(stages)}",
            wanted="a RepVGG, which has stages 0 to 4",
        )


def _known(arch: Network, blocks: Sequence[BlockSpec]) -> str:
    """A backbone by its name, if it has one, else by its widths."""
    name = _name(arch).removeprefix(PREFIX).removesuffix(FAST)
    widths = ", ".join(str(block.out_channels) for block in blocks)
    return f"channels {widths}" if name == "custom" else name


def _other_backbone(arch: Network) -> str | None:
    name = PREFIX + _name(arch)
    return f"say --model {name}, or {name}{FAST}" if name in SEGMENTERS else None


def _rows(model: Model, classes: Sequence[str]) -> tuple[dict[int, int], str]:
    """Which row of the new head is which of the file's, and how that was found out."""
    count = model.arch.num_classes
    theirs = model.about.classes
    if theirs is not None and len(theirs) == count:
        places = {name: n for n, name in enumerate(theirs)}
        found = {ours: places[name] for ours, name in enumerate(classes) if name in places}
        return found, "found by name" if found else "the file has classes of other names"
    if is_imagenet(model.arch):
        known = ((ours, imagenet_place(name)) for ours, name in enumerate(classes))
        found = {ours: place for ours, place in known if place is not None}
        if found:
            return found, "found by name: the file's are taken for ImageNet's"
    if count == len(classes):
        return {n: n for n in range(count)}, "taken to be the file's, which have no names there"
    return {}, "the file does not name its classes"


def _heads(arch: Network) -> set[str]:
    """The arrays with a row for every class, auxiliary heads' too."""
    here, wider = (
        param_shapes(arch.with_classes(arch.num_classes + more), "train") for more in (0, 1)
    )
    return {name for name, shape in here.items() if shape != wider[name]}


def _filled(drawn: Array, given: Array | None, rows: dict[int, int]) -> Array:
    """A head's array with the rows that the file has."""
    if given is not None and rows:
        drawn[list(rows)] = given[list(rows.values())]
    return drawn


def _name(arch: Network) -> str:
    """What the network is called, whatever its number of classes."""
    if arch.name != "custom":
        return arch.name
    if arch.blocks == digits_architecture().blocks:
        return "digits"
    return closest_official(arch) or arch.name


def _channels(arch: Network) -> str:
    return ", ".join(str(block.out_channels) for block in arch.blocks)
