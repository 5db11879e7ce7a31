# mypy: allow-subclassing-any, allow-untyped-calls, disable-error-code="no-any-return"
"""Training steps of PSPNet in torch: right ones agree, bugs in torch's terms get their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training.judge import judge_training
from tests.oracle.training import scenes

torch: Any = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


class Script:
    """A torch training script; a planted bug changes one of its settings."""

    aux_weight, rate, power, momentum = 0.4, 10.0, 0.9, 0.9
    aligned: ClassVar[dict[str, Any]] = {"mode": "bilinear", "align_corners": True}
    dropout, ignored, counted = True, 255, False

    def __init__(self, dtype: Any, **settings: Any) -> None:
        from tests.peers.torch_pspnet import TorchPSPNet

        self.__dict__.update(settings)
        model, self.steps = scenes.case()
        sizes = {"classes": scenes.CLASSES, "width": scenes.HEAD, "aux": scenes.AUX}
        self.net = TorchPSPNet(scenes.DEPTHS, scenes.CHANNELS, fast=False, **sizes)
        state = {n: torch.tensor(np.asarray(a)) for n, a in model.state_dict().items()}
        self.net.load_state_dict(state)
        self.net = self.net.to(dtype).train()
        self.x = torch.tensor(self.steps.x).to(dtype)
        self.labels = torch.tensor(self.steps.labels)
        if self.dropout:
            for head in ("cls", "aux"):
                kept = torch.tensor(self.steps.kept[f"{head}.dropout"]).to(dtype) / 0.9
                getattr(self.net, head)[3].forward = lambda y, k=kept: y * k[:, :, None, None]

    def loss(self) -> tuple[Any, Any]:
        y = self.x
        for stage in range(4):
            y = getattr(self.net, f"layer{stage}")(y)
        ends = self.net.cls(self.net.ppm(self.net.layer4(y))), self.net.aux(y)
        size = self.x.shape[2:]
        logits = [torch.nn.functional.interpolate(e, size, **self.aligned) for e in ends]
        main, aux = map(self._loss, logits)
        return main + self.aux_weight * aux, logits[0]

    def _loss(self, logits: Any) -> Any:
        loss = torch.nn.functional.cross_entropy
        if self.counted:
            return loss(logits, self.labels, ignore_index=255, reduction="none").mean()
        return loss(logits, self.labels, ignore_index=self.ignored)

    def dump(self) -> dict[str, Array]:
        net, recipe = self.net, self.steps.recipe
        new = [p for n, p in net.named_parameters() if n[:3] in ("ppm", "cls", "aux")]
        old = [p for n, p in net.named_parameters() if n[:3] not in ("ppm", "cls", "aux")]
        how = {"momentum": self.momentum, "weight_decay": recipe.weight_decay, "lr": 0.0}
        optimizer = torch.optim.SGD([{"params": old}, {"params": new}], **how)
        found: dict[str, Array] = {}
        count = len(recipe.lrs)
        for i in range(count):
            lr = recipe.lrs[0] * (1 - i / count) ** self.power
            for group, factor in zip(optimizer.param_groups, (1.0, self.rate), strict=True):
                group["lr"] = lr * factor
            optimizer.zero_grad()
            loss, logits = self.loss()
            loss.backward()
            if not i:
                found |= {"loss": numbers(loss), "logits": numbers(logits)}
                found |= {f"grad/{n}": numbers(p.grad) for n, p in net.named_parameters()}
                found |= {f"stat/{n}": numbers(b) for n, b in net.named_buffers()}
            optimizer.step()
        return found | {f"after/{n}": numbers(a) for n, a in net.state_dict().items()}


def numbers(tensor: Any) -> Array:
    return tensor.detach().numpy().copy()


def ignoring_nothing(script: Script) -> None:
    script.labels = torch.where(script.labels == 255, 0, script.labels)


BUGS: dict[str, tuple[dict[str, Any], str, str, Callable[[Script], None] | None]] = {
    "aux weight": ({"aux_weight": 0.3}, "aux-heads", "loss", None),
    "counted": ({"counted": True}, "ignored-pixels", "loss", None),
    "class 0": ({}, "ignored-pixels", "loss", ignoring_nothing),
    "no dropout": ({"dropout": False}, "dropout-wrong", "logits", None),
    "corners": (
        {"aligned": {"mode": "bilinear", "align_corners": False}},
        "corners-not-aligned",
        "logits",
        None,
    ),
    "one rate": ({"rate": 1.0}, "learning-rate-of-new-modules", "after/", None),
    "linear": ({"power": 1.0}, "poly-schedule", "after/", None),
    "no momentum": ({"momentum": 0.0}, "momentum-missing", "after/", None),
}


def test_float64_steps_agree_to_their_last_digits() -> None:
    _, steps = scenes.case()
    dump = Script(torch.float64).dump()
    for name, array in dump.items():
        exact = np.asarray(steps.exact[name])
        error = np.abs(array - exact).max()
        assert error <= 1e-9 * max(1.0, np.abs(exact).max()), (name, error)


def test_a_right_port_in_float32_agrees() -> None:
    model, steps = scenes.case()
    report = judge_training(steps, Script(torch.float32).dump(), model=model)
    assert report.verdict == "agree", report.reason


@pytest.mark.few(1)
@pytest.mark.parametrize("name", BUGS)
def test_bugs_are_placed_and_named(name: str) -> None:
    settings, bug, place, change = BUGS[name]
    model, steps = scenes.case()
    script = Script(torch.float32, **settings)
    if change is not None:
        change(script)
    report = judge_training(steps, script.dump(), model=model)
    assert report.verdict == "disagree"
    assert [finding.bug for finding in report.diagnosis] == [bug]
    assert str(report.first_bad_layer).startswith(place)
