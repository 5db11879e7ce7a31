"""What kind of dependence it is, told by which calls are wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repvgg_ref.oracle.probes.calls import Made
from repvgg_ref.oracle.report import Finding

_CONTENTS = ("scale-dependent", "sign-dependent", "constant-image")

# Name -> what the port does, what to look at.
_WORDS: Mapping[str, tuple[str, str]] = {
    "state-between-calls": (
        "an earlier call changes what a later one gives",
        "look for what is kept from call to call: statistics, a cached result, a buffer that is "
        "not cleared",
    ),
    "cached-by-shape": (
        "only the first batch of each shape is computed: others of that shape get something kept "
        "from it",
        "key the cache by nothing but what does not depend on the contents",
    ),
    "batch-dependent": (
        "what an image gives depends on how many images are in the batch",
        "look for a batch size that is built in, a mean over the batch, or training mode",
    ),
    "square-assumed": (
        "height and width are taken for equal",
        "look for a height used as a width: strides of memory, pooling, loop bounds",
    ),
    "square-image": (
        "square images go wrong, others do not",
        "look for a case that is chosen where height and width are equal",
    ),
    "odd-size": (
        "odd extents go wrong",
        "with padding 1 and stride 2 an output has (n + 1) // 2 rows, also for odd n",
    ),
    "tiny-size": (
        "images of a few pixels go wrong",
        "look at borders and tiles that are larger than the image",
    ),
    "large-size": (
        "images above 128 pixels go wrong",
        "look for a buffer, a tile or a loop of a fixed size",
    ),
    "scale-dependent": (
        "the size of the values matters more than the network says",
        "look for a clip, a flush to zero, or a normalisation of the input",
    ),
    "sign-dependent": (
        "negative inputs go wrong",
        "look for an unsigned type, or a clip at zero in front of the network",
    ),
    "constant-image": (
        "a constant image goes wrong",
        "look for a normalisation of each image, which divides by its deviation",
    ),
    "depends-on-call": (
        "some calls are right and others wrong",
        "compare the calls that are wrong with those that are right",
    ),
}


def named(made: Sequence[Made]) -> Finding:
    """The dependence that the wrong ones among the calls show, placed where it shows first."""
    first = next((m.deviation for m in made if m.is_wrong and m.deviation is not None), None)
    layer = None if first is None or first.layer.name == "linear" else first.layer.name
    return finding(_bug(made), layer)


def finding(bug: str, layer: str | None) -> Finding:
    """A dependence on the call, in words."""
    says, advice = _WORDS[bug]
    return Finding(bug, layer, None, 1.0, 0.0, says, advice)


def _bug(made: Sequence[Made]) -> str:
    wrong = [m.probe.kind for m in made if m.is_wrong]
    fine = [m.probe for m in made if m.outputs is not None and not m.is_wrong]
    kinds: list[str] = list(dict.fromkeys(wrong))
    right = {probe.kind for probe in fine}
    # A port that keeps the first call's result is right whenever that call's images come again.
    keeps_the_first = len(wrong) > 2 and all(probe.like_first is not None for probe in fine)
    if "state-between-calls" in kinds or keeps_the_first:
        return "state-between-calls"
    if set(kinds) == set(_CONTENTS) and not right & set(_CONTENTS):
        return "cached-by-shape"
    return kinds[0] if len(kinds) == 1 else _explained(made, kinds)


def _explained(made: Sequence[Made], kinds: list[str]) -> str:
    """The one dependence of which the others are consequences, if there is one."""
    sizes: dict[str, tuple[int, ...]] = {m.probe.kind: m.probe.x.shape for m in made if m.is_wrong}
    if "odd-size" in kinds and all(_is_odd(sizes[kind]) for kind in kinds):
        return "odd-size"
    if "batch-dependent" in kinds and all(sizes[kind][0] == sizes[kinds[0]][0] for kind in kinds):
        return "batch-dependent"
    return "depends-on-call"


def _is_odd(shape: tuple[int, ...]) -> bool:
    return bool(shape[2] % 2 or shape[3] % 2)
