"""A PSPNet so small that its training steps take milliseconds, and dumps of ports of it."""

from __future__ import annotations

from functools import cache

from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.models.pspnet import pspnet
from repvgg_ref.oracle.programs.distinguishing import TRAINING, distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs, training_labels
from repvgg_ref.oracle.training.run import Setup, right_setup
from repvgg_ref.oracle.training.steps import TrainingSteps, training_steps

DEPTHS, CHANNELS, CLASSES, HEAD, AUX = (1, 1, 2, 1), (3, 4, 4, 5, 8), 3, 6, 5
SCENES = pspnet(
    plain_architecture(depths=DEPTHS, channels=CHANNELS, num_classes=3),
    num_classes=CLASSES,
    head=HEAD,
    aux_head=AUX,
)


@cache
def case() -> tuple[Model, TrainingSteps]:
    """The model and its right steps."""
    x = distinguishing_inputs(SCENES, batch=3, height=41, width=25)
    model = distinguishing_model(SCENES, x=x, statistics=TRAINING)
    return model, training_steps(model, x, training_labels(SCENES, x))


def setup_of() -> Setup:
    """Its right training."""
    model, steps = case()
    return right_setup(model, steps.x, steps.labels, steps.recipe, steps.kept)
