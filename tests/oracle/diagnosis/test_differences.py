"""Differences carried to the logits are those of the network run twice in float64."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs.harness import mutants
from repvgg_ref.oracle.diagnosis.alternatives import Chain, alternatives, exact
from repvgg_ref.oracle.diagnosis.differences import nhwc
from repvgg_ref.oracle.diagnosis.logit_noise import LogitNoise, logit_noise
from repvgg_ref.oracle.power import Place
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from tests.models.small import SMALL

KINDS = ("plain", "grouped", "se-before-relu", "plus", "dilated")


def chain_of(kind: str, *, batch: int = 2) -> Chain:
    model = distinguishing_model(SMALL[kind])
    return Chain(
        Programs(model), distinguishing_inputs(model.arch, batch=batch, height=28, width=24)
    )


@pytest.fixture(scope="module", params=KINDS)
def chain(request: pytest.FixtureRequest) -> Chain:
    return chain_of(request.param)


def _disturbed(chain: Chain, name: str, size: float) -> Array:
    rng = np.random.default_rng(3)
    y = chain.after(name)
    return np.asarray(y + size * y.std() * rng.normal(size=y.shape))


@pytest.mark.parametrize("size", [1e-7, 1e-2, 3.0])
def test_an_error_reaches_the_logits_as_it_does_in_float64(chain: Chain, size: float) -> None:
    for name in chain.blocks:
        wrong = _disturbed(chain, name, size)
        wanted = chain.logits_after(name, wrong) - chain.logits
        found = chain.differences.to_logits(name, nhwc(wrong - chain.after(name)))
        # The reference's own subtraction of two float64 logits is good to 1e-15 of them.
        allowed = 2e-5 * np.abs(wanted).max() + 1e-13 * np.abs(chain.logits).max()
        assert not (np.abs(found - wanted) > allowed).any(), name


def test_many_errors_travel_together(chain: Chain) -> None:
    name = chain.blocks[0]
    errors = [_disturbed(chain, name, size) - chain.after(name) for size in (1e-3, 1.0)]
    alone = [chain.differences.to_logits(name, nhwc(error)) for error in errors]
    together = chain.differences.to_logits(name, nhwc(np.concatenate(errors)))
    assert np.allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-9)


def test_values_of_another_extent_reach_the_logits(chain: Chain) -> None:
    name = chain.blocks[0]
    smaller = chain.after(name)[:, :, 1:, :-2]
    wanted = chain.logits_after(name, smaller)
    assert np.allclose(chain.differences.logits(name, nhwc(smaller)), wanted, rtol=1e-4, atol=1e-5)


def test_alternatives_are_what_the_mutated_network_gives(chain: Chain) -> None:
    sites = mutants(chain.programs, chain.inputs, [chain.blocks[0], chain.names[-1]])
    everything = [Place.of(mutant) for _, mutant in sites]
    drawn = np.random.default_rng(0).permutation(len(everything))[:30]
    found = list(alternatives(chain, "fp32", wanted=[everything[at] for at in drawn]))
    assert len(found) > 20
    for each in found:
        change = exact(chain, each.mutant)
        assert change is not None
        # What changes the extent is carried as a value, with float32's error of the logits.
        allowed = 3e-5 * np.abs(change).max() + 3e-6 * np.abs(chain.logits).max()
        assert not (np.abs(each.change - change) > allowed).any(), each.place


def test_only_what_is_wanted_is_computed(chain: Chain) -> None:
    wanted = [Place("bias-dropped", "", None), Place("bias-twice", "", chain.blocks[1])]
    assert [each.place for each in alternatives(chain, "fp32", wanted=wanted)] == wanted


def test_a_float32_port_scatters_as_estimated(chain: Chain) -> None:
    """float32 by the reference operators: the noise is neither missed nor ten times too large."""
    noise = logit_noise(chain, PRECISIONS["fp32"])
    x = chain.inputs[chain.blocks[0]].astype(np.float32)
    y = chain.programs.model.forward(x, backend="reference")
    assert 0.05 < noise.kappa(y - chain.logits) < noise.allowed / 3


def test_coarser_formats_scatter_in_proportion(chain: Chain) -> None:
    single, half = (logit_noise(chain, PRECISIONS[p]) for p in ("fp32", "fp16"))
    assert np.allclose(half.deviation / single.deviation, 2**13, rtol=0.5)


def test_chance_is_that_of_a_random_direction() -> None:
    """In d dimensions a random error cancels a given one to a tenth about once in 10^(d - 1)."""
    rng = np.random.default_rng(0)
    bug, draws = np.array([1.0, 0.0, 0.0]), rng.normal(size=(400_000, 3))
    along = draws @ bug / (draws**2).sum(axis=1)  # the factor that cancels best
    left = np.linalg.norm(bug - along[:, None] * draws, axis=1)
    noise = LogitNoise(np.ones((1, 3)), 3.0)
    for ratio in (0.1, 0.3):
        assert (left < ratio).mean() <= 1.1 * noise.chance(ratio)
        assert noise.ratio(noise.chance(ratio)) == pytest.approx(ratio)
