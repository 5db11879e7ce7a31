"""10. Compared in training mode.

The "port": is right. The comparison forgot `model.eval()`, so batch norm used the batch's own
statistics. The most frequent "bug" reported against the official code: train and deploy form
disagree (DingXiaoH/RepVGG issues 9, 19 and 35, answered "you forgot to call eval").

Why no test saw it: this is the test.

The oracle: `train-mode-batch-norm`, since it predicts those outputs exactly from the batch.
"""

from __future__ import annotations

import pytest

from tests.museum.exhibit import PLAIN, Exhibit, torch_port, train_form, trained

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def exhibits() -> list[Exhibit]:
    model = trained(PLAIN)
    port = torch_port(train_form(model).train())
    return [Exhibit("model.eval() forgotten", model, port, "train-mode-batch-norm")]


def test_training_mode_is_named() -> None:
    (exhibit,) = exhibits()
    exhibit.check()
