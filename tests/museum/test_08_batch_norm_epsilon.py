"""8. The number that no checkpoint holds.

The ports: batch norm's eps left at the framework's default (Keras 1e-3; torch and the official code
1e-5); added to the standard deviation instead of the variance; dropped while fusing. And, of the
same family, a fused bias that forgets the running mean.

Why no test saw it: with variances near 1, eps outside the root changes 5e-6 of the output, two
hundred times less than the usual rtol of 1e-3. With a fresh network's statistics (mean 0) the
forgotten mean changes nothing at all, and fresh networks are what tests build.

The oracle: measures eps and says how sure it is; finds "outside the root" although the error is a
few units of rounding, because it is the same few in every pixel of a channel.
"""

from __future__ import annotations

from typing import Any

import pytest

from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import initial_params
from repvgg_ref.oracle import verify
from tests.museum.exhibit import PLAIN, Exhibit, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _norms(network: Any) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def _outside(network: Any) -> Any:
    """gamma / (sqrt(var) + eps), by statistics that make torch's formula give that."""
    for bn in _norms(network):
        sigma = bn.running_var.double().sqrt() + bn.eps
        bn.running_var, bn.eps = (sigma**2).float(), 0.0
    return network


def _dropped(network: Any) -> Any:
    for bn in _norms(network):
        bn.eps = 0.0
    return network


def _forgetful(network: Any) -> Any:
    for bn in _norms(network):
        bn.running_mean.zero_()
    return network


def exhibits() -> list[Exhibit]:
    model = trained(PLAIN)
    keras = torch_port(train_form(model, eps=1e-3))
    outside = torch_port(_outside(train_form(model)))
    dropped = torch_port(_dropped(train_form(model)))
    forgetful = torch_port(_forgetful(train_form(model)))
    return [
        Exhibit("eps of Keras", model, keras, "eps-value"),
        Exhibit("eps outside the root", model, outside, "eps-outside-root"),
        Exhibit("eps dropped", model, dropped, "eps-dropped"),
        Exhibit("running mean ignored", model, forgetful, "mean-ignored"),
    ]


def test_eps_is_measured() -> None:
    report = exhibits()[0].check()
    assert report.diagnosis[0].estimate == pytest.approx(1e-3, rel=1e-3)


def test_eps_outside_the_root_is_named_though_hardly_there() -> None:
    exhibits()[1].check()


def test_a_dropped_eps_is_named() -> None:
    exhibits()[2].check()


def test_a_fresh_network_hides_the_forgotten_mean_and_a_trained_one_does_not() -> None:
    exhibits()[3].check()
    fresh = Model(PLAIN, "train", initial_params(PLAIN, seed=0))
    port = torch_port(_forgetful(train_form(fresh)))
    assert verify(fresh, port).verdict == "agree"
