"""Lesson 03: the identity W' = W R against per-layer least squares, and what R does."""

import doctest
from dataclasses import replace

import pytest
import torch

from macelib import Concept, EraseConfig, MaceError, erase
from macelib.lessons import refinement
from macelib.lessons.residual import refine
from macelib.method.refine import accumulate, concept_sums, gram, solve_refinement
from macelib.models.tiny import tiny_pipeline
from macelib.show.viz import Figure


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_doctests():
    assert doctest.testmod(refinement).failed == 0


@pytest.mark.parametrize(("lambda1", "lambda0"), [(0.0, 0.0), (2.0, 0.0), (2.0, 0.5)])
def test_identity(lambda1, lambda0):
    e_f, e_g, e_p = refinement.toy()
    X, G = accumulate(e_f, e_g)
    R = solve_refinement(X, G, gram(e_p), lambda1, lambda0).R
    W = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = refinement.per_layer(W, e_f, e_g, gram(e_p), lambda1, lambda0)
    rows = torch.cat([e_f, lambda1**0.5 * e_p, lambda0**0.5 * torch.eye(2)])  # the prior's rows themselves
    targets = torch.cat([e_g, lambda1**0.5 * e_p, lambda0**0.5 * torch.eye(2)]) @ W.T
    assert (found - torch.linalg.lstsq(rows, targets).solution.T).abs().max() < 1e-9
    assert (found - W @ R).abs().max() < 1e-9


def test_pairs_are_those_of_the_solve(pipe):
    concept = Concept("ship", "the sea")
    X, G = accumulate(*(e.double() for e in refinement.pairs(pipe, concept)))
    X_of, G_of, _ = concept_sums(pipe, concept)
    assert (X - X_of).abs().max() < 1e-9 * X_of.abs().max() and (G - G_of).abs().max() < 1e-9 * G_of.abs().max()


def test_what_is_asked_is_what_erase_solves(pipe):
    """Concept's weight, companions, templates, a domain prior: R of `erase` by its rows."""
    config = EraseConfig.from_dict({
        "templates": "paper-like", "companions": ["frog"], "refine": {"lambda1": 3.0, "lambda0": 0.5, "weight": 4.0},
    }).keeping(["cat"], 2.0)  # fmt: skip
    ship = Concept("ship", "the sea")
    e_f, e_g, P, lambda1, lambda0 = refinement.asked(pipe, ship, config)
    R = erase(pipe, [ship], replace(config, stages="1"), progress=False).refinement.R
    assert (solve_refinement(*accumulate(e_f, e_g), P, lambda1, lambda0).R - R).abs().max() < 1e-5
    W = torch.randn(5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (refinement.per_layer(W, e_f, e_g, P, lambda1, lambda0) - W @ R).abs().max() < 1e-4
    for off in ({"prior": {"use": False}}, {"refine": {"rounds": 1}}):
        with pytest.raises(MaceError, match="leave prior\\.use on"):
            refinement.asked(pipe, ship, EraseConfig.from_dict(off))


def test_a_stronger_prior_never_leaves_less_of_what_is_asked(pipe):
    settings = EraseConfig.from_dict({"refine": {"lambda0": 5.0}})
    some = [Concept("ship", "the sea"), Concept("frog", "grass")]
    costs = [refinement.cost(pipe, some, settings, refine(pipe, some, settings, times).R) for times in (1, 3, 100)]
    assert costs == sorted(costs) and costs[0] < costs[2] < 1
    assert refinement.cost(pipe, some, settings, torch.eye(32).double()) == pytest.approx(1)


def test_layers_by_themselves_are_exact_with_a_singular_prior(pipe):
    e_f, e_g, P, lambda1, lambda0 = refinement.asked(pipe, Concept("ship", "the sea"), EraseConfig())
    values, vectors = torch.linalg.eigh(P)
    P = vectors[:, 16:] * values[16:] @ vectors[:, 16:].T
    R = solve_refinement(*accumulate(e_f, e_g), P, 1000 * lambda1, lambda0).R
    W = torch.randn(5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = refinement.per_layer(W, e_f, e_g, P, 1000 * lambda1, lambda0)
    assert (found - W @ R).abs().max() < 1e-9 * found.abs().max()


def test_moved_and_spectrum(pipe):
    eye = torch.eye(32, dtype=torch.float64)
    assert list(refinement.moved(pipe, eye, ["ship", "frog"]).values()) == [0.0, 0.0]
    assert refinement.moved(pipe, eye, []) == {}
    assert refinement.moved(pipe, 3 * eye, ["ship"])["ship"] == pytest.approx(2.0)
    change = eye + torch.outer(eye[0], eye[1]) * 0.5
    assert refinement.spectrum(change)[0] == pytest.approx(0.5) and refinement.spectrum(change)[1] < 1e-12
    assert refinement.directions_for(refinement.spectrum(change)) == 1


def test_effects_trade():
    e_f, e_g, e_p = refinement.toy()
    for vary in ("lambda1", "lambda0"):
        found = refinement.effects(e_f, e_g, gram(e_p), [1e-3, 1, 1e9], lambda0=0.0, vary=vary)
        assert found["left"][0] < found["left"][1] < found["left"][2] == pytest.approx(1, abs=1e-3)
        assert found["disturbed"][0] > found["disturbed"][1] > found["disturbed"][2] < 1e-3
    assert isinstance(refinement.effects_figure([1e-3, 1, 1e9], {vary: found}), Figure)
    assert isinstance(refinement.toy_figure(e_f, e_g, e_p, [0, 1]), Figure)
    assert isinstance(refinement.spectrum_figure({"a": torch.tensor([1.0, 0.1])}), Figure)
    assert isinstance(refinement.moved_figure({"a": {"ship": 0.3}, "b": {"cat": 0.1}}), Figure)
