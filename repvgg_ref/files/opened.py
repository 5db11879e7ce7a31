"""A checkpoint whose names and shapes are understood, and whose arrays wait to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repvgg_ref.arrays import one_line
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.identify import UNSAID
from repvgg_ref.files.lazy_params import LazyParams
from repvgg_ref.files.metadata import assumed_eps, is_ours, read_about, read_eps, strangers_eps
from repvgg_ref.files.strides import assumed_geometry
from repvgg_ref.files.told_networks import told_eps
from repvgg_ref.models.about import About, Assumed
from repvgg_ref.models.arguments import checked_eps
from repvgg_ref.models.geometry import Geometry
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import Dialect
from repvgg_ref.models.network import DEFAULT_EPS
from repvgg_ref.models.parameters import param_shapes
from weights_io import LazyArray, sanitize


@dataclass
class Checkpoint:
    """An open file whose arrays are known but not read.

    `arrays` are under the file's own names; `canonical` translates those that were understood.
    `arch` is None if the network could not be told, and `problem` then says why. `norms_left`: of
    a fused network some batch norms were left, and are folded with `asked_eps`, or what `eps` says.
    """

    path: Path
    container: str
    metadata: Mapping[str, str]
    arrays: dict[str, LazyArray]
    notes: list[str]
    dialect: Dialect | None = None
    canonical: dict[str, str] = field(default_factory=dict)
    form: str = "unknown"
    arch: Network | None = None
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    problem: CheckpointError | None = None
    said: Geometry = UNSAID
    fits: list[str] = field(default_factory=list)
    beside: dict[str, LazyArray] = field(default_factory=dict)
    norms_left: bool = False
    asked_eps: float | None = None

    __repr__ = one_line

    def params(self, dtype: Any = None, *, eps: float | None = None) -> LazyParams:
        """The arrays under canonical names, each read when asked for; `eps`: asked for, if one."""
        assert self.arch is not None
        self.asked_eps = eps
        keys = {ours: sanitize(theirs) for theirs, ours in self.canonical.items()}
        return LazyParams(self.ours, param_shapes(self.arch, self._form()), dtype, keys)

    def stored_dtype(self, canonical: str) -> str:
        """The dtype in which the array of this canonical name is stored."""
        theirs = {ours: name for name, ours in self.canonical.items()}
        return self.arrays[theirs[canonical]].dtype

    @property
    def is_network(self) -> bool:
        """Whether names, shapes or a note of ours tell a network; other files may hold blocks."""
        return bool(self.dialect or self.arch or is_ours(self.metadata))

    @property
    def ours(self) -> dict[str, LazyArray]:
        """The arrays that were understood, under canonical names."""
        return {ours: self.arrays[theirs] for theirs, ours in self.canonical.items()}

    def eps(self, asked: float | None = None) -> float:
        """The eps asked for, else what metadata or modules say, else the official 1e-5."""
        said = self._said_eps(asked)
        if asked is not None:
            self._tell_of_eps(checked_eps(asked), said)
            return float(asked)
        if (other := strangers_eps(self.metadata)) is not None:
            self._tell(
                f"the file's metadata says eps {other[:20]!r}, which repvgg-ref did not write: not"
                " taken, since it may be an optimiser's"
            )
        return DEFAULT_EPS if said is None else said

    def eps_in_use(self) -> float:
        """`eps`, of what was asked for when arrays were: for what is folded as it is read."""
        return self.eps(self.asked_eps)

    def _said_eps(self, asked: float | None) -> float | None:
        """What the file says; modules that say several are passed over where one is asked for."""
        said = read_eps(self.metadata)
        if said is not None:
            return said
        try:
            return told_eps(self.ours)
        except CheckpointError:
            if asked is None:
                raise
            return None

    def _tell_of_eps(self, asked: float, said: float | None) -> None:
        if self.form == "deploy" and not self.norms_left:
            if asked != said:
                self._tell(f"eps {asked:g} has no effect: the file is fused")
        elif said is not None and asked != said and not assumed_eps(self.metadata):
            who = "metadata says" if read_eps(self.metadata) is not None else "modules say"
            self._tell(f"the file's {who} eps {said:g}; {asked:g} is taken, as you say")

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def assumed(self, asked: float | None = None) -> Assumed:
        """What nobody says of this network; `asked` is the eps that was asked for, if any."""
        if self.arch is None:
            return Assumed()
        geometry = assumed_geometry(self.arch, self.form, self.said)
        is_fused = self.form == "deploy"
        if is_fused and not self.norms_left:  # what its branches were fused with stays
            guessed = assumed_eps(self.metadata)
        else:
            unsaid = self._said_eps(asked) is None or assumed_eps(self.metadata)
            guessed = asked is None and unsaid
        eps = self.eps() if guessed else None
        return Assumed(eps, geometry.strides, geometry.dilations, guessed and is_fused)

    def about(self) -> About:
        """What the file's metadata says of classes and pictures."""
        assert self.arch is not None
        return read_about(self.metadata, self.arch)

    def _form(self) -> Form:
        return "deploy" if self.form == "deploy" else "train"
