"""RepVGG (arXiv 2101.03697), the reference that ports are checked against.

>>> import repvgg_ref as rr
>>> model = rr.build("RepVGG-A0", seed=0)
>>> rr.fuse(model).form
'deploy'
"""

from repvgg_ref.checkpoint import load, save
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.architectures import NAMES, Architecture, architecture, plain_architecture
from repvgg_ref.models.cost import cost
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.models.step import StepResult

__version__ = "0.1.0"

__all__ = [
    "NAMES",
    "Architecture",
    "Model",
    "ReportedError",
    "StepResult",
    "architecture",
    "build",
    "cost",
    "fuse",
    "load",
    "plain_architecture",
    "save",
]
