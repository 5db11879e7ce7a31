"""What a pickled module says beside its arrays: the name of its class and its plain settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Of convolutions, batch norms and poolings: what no state dict holds.
SETTINGS = (
    *("eps", "momentum", "affine", "track_running_stats", "num_features"),
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("padding_mode", "transposed", "count_include_pad", "ceil_mode", "divisor_override"),
)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ModuleRecord:
    """A module of a pickled whole, dead: nothing of its class is imported, called or known.

    Attributes
    ----------
    type_name : str
        Its class, as the pickle spells it: ``torch.nn.modules.conv.Conv2d``. A name proves nothing.
    path : str
        Where it stands in the whole: ``model.0.rbr_dense.conv``; "" is the whole itself.
    settings : mapping of str to object
        Those of `SETTINGS` that it has: numbers, bools, None, text and tuples of integers, as the
        pickle holds them; an `Inert` for anything else.
    altered : str
        Why it may compute something else than its class does; "" if nothing in it says so.
    parent : ModuleRecord or None
    children : dict of str to ModuleRecord
        Its submodules by name, without those that are None.
    """

    type_name: str
    path: str
    settings: Mapping[str, object]
    altered: str
    parent: ModuleRecord | None
    children: dict[str, ModuleRecord] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ModuleRecord({self.type_name!r}, {self.path!r})"
