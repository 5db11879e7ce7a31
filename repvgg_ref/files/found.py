"""What identification gives of a network that is no chain of stages."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import Dialect


class Found(NamedTuple):
    """A network, its form, and the canonical name of each of the file's arrays."""

    network: Network
    form: Form
    canonical: dict[str, str]
    dialect: Dialect
