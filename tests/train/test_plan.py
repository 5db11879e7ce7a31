"""What a training is said to need, against what it needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.data.digits import digits_architecture
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import build
from repvgg_ref.train.plan import activation_bytes, available_memory
from tests.cli.runner import run_python
from tests.train.small_training import changed, small_job

MEASURED = """
import sys
from pathlib import Path

import numpy as np

from repvgg_ref.backends import backend_ops
from repvgg_ref.data.digits import digits_architecture
from repvgg_ref.models.network import build
from repvgg_ref.models.step import training_step

arch, ops = digits_architecture(), backend_ops("numpy")
params = build(arch).params

def step(images):
    x, labels = np.zeros((images, 1, 32, 32), np.float32), np.zeros(images, np.int64)
    training_step(arch, params, x, labels, ops=ops, eps=1e-5, momentum=0.1, label_smoothing=0)
    # Not getrusage: its maximum is handed on by the process that forked this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

before = step(1)
print(step(int(sys.argv[1])) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_estimate_of_a_steps_memory_is_near_its_measured_peak() -> None:
    images = 512
    measured = run_python("-c", MEASURED, images)
    assert measured.returncode == 0, measured.stderr
    arch = digits_architecture()
    estimate = activation_bytes(arch, images=images, extent=(32, 32), itemsize=4)
    assert 0.4 <= int(measured.stdout) / estimate <= 1.5


def test_parts_need_less_memory_and_averages_more(tmp_path: Path) -> None:
    def need(**fields: object) -> int:
        return small_job(tmp_path, recipe=changed(**fields)).plan.memory

    assert need(accumulate=2) < need() < need(ema=0.9)


def test_a_plan_counts_steps_rates_and_parameters(tmp_path: Path) -> None:
    plan = small_job(tmp_path, recipe=changed(epochs=4, warm_up_epochs=1.0)).plan
    assert (plan.steps, plan.steps_per_epoch) == (20, 5)
    rates = dict(plan.lrs)
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(0.05 * (1 + np.cos(np.pi / 4)) / 2)
    assert max(rates) == 19
    a0 = architecture("RepVGG-A0")
    assert build(a0).arch is a0


def test_this_machine_says_what_memory_it_has() -> None:
    available = available_memory(np.zeros(1))
    assert available is None or available > 1 << 20
