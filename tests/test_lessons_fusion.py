"""Lesson 05: interference against the weights it is about, two ways of fusing, and a concept taken back."""

import dataclasses
import doctest

import pytest
import torch

from macelib import Concept, EraseConfig, MaceError, erase
from macelib.lessons import fusion, interference
from macelib.method.prior import GENERAL, prior
from macelib.models.mini import names
from macelib.models.pipelines import kv_weights
from macelib.models.tiny import tiny_pipeline
from macelib.show.viz import Figure
from macelib.templates import pairs_of

CONFIG = {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 3}}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def erasure(pipe):
    concepts = [Concept("ship", "sea"), Concept("frog", "grass"), Concept("dog", "field")]
    return erase(pipe, concepts, EraseConfig.from_dict(CONFIG))


@pytest.fixture(scope="module")
def E(pipe, erasure):
    return [interference.own_tokens(pipe, concept) for concept in erasure.concepts]


def test_doctests():
    assert doctest.testmod(fusion).failed == doctest.testmod(interference).failed == 0


def test_concepts_are_of_the_mini_world():
    assert len(fusion.CONCEPTS) == 32 and not set(fusion.CONCEPTS) - set(names())
    assert not any(f" {a} " in f" {b} " for a in fusion.CONCEPTS for b in fusion.CONCEPTS if a != b)


def change(erasure, part, D):
    """B D of all layers, one below the other: (Σ out, d)."""
    return torch.cat(
        [b @ d for b, d in zip(part.B.double().split(list(erasure.layers.values())), D.double(), strict=True)]
    )


@pytest.mark.slow
def test_interference_is_what_the_weights_do(erasure, E):
    for method in fusion.METHODS:
        fused = fusion.with_method(erasure, method)
        M, D_star = interference.interference(fused, E), fused.fusion.D_star
        for i, own in enumerate(fused.parts):
            alone = change(fused, own, own.D.double()) @ E[i].T
            for j, other in enumerate(fused.parts):
                D = D_star[:, j : j + 1] - (own.D.double() if i == j else 0)
                brute = (change(fused, other, D) @ E[i].T).norm() / alone.norm()
                assert M[i, j] == pytest.approx(float(brute), rel=1e-6, abs=1e-9)
        assert (M.diagonal().abs().max() < 1e-9) == (method == "naive")
    table = interference.summary({method: M for method in fusion.METHODS})
    assert table.shape == (3, 3) and isinstance(interference.matrix_figure({"M": M}, ["a", "b", "c"]), Figure)


@pytest.mark.parametrize(("weights", "share"), [((1, 1, 1), 1.0), ((130, 20, 1), 1.0), ((130, 20, 1), 0.5)])
def test_pair_is_the_fusion_of_two(erasure, E, weights, share):
    weighed = zip(erasure.parts, weights, strict=True)
    fuse = dataclasses.replace(erasure.config.fuse, null_space=share)
    erasure = erasure.with_config(dataclasses.replace(erasure.config, fuse=fuse))
    erasure = erasure.of([dataclasses.replace(part, weight=float(weight)) for part, weight in weighed])
    P = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)).double()
    erasure = erasure.with_prior(P @ P.T, "random")
    own, other = erasure.parts[:2]
    naive, closed, later = interference.pair(erasure, own, other, other.statistics.C(), E[0])
    two, one = erasure.only("ship", "frog"), erasure.only("ship")
    both = change(two, own, two.fusion.D_star[:, :1]) + change(two, other, two.fusion.D_star[:, 1:])
    alone = change(one, own, one.fusion.D_star)
    assert closed == pytest.approx(float(((both - alone) @ E[0].T).norm() / (alone @ E[0].T).norm()), rel=1e-6)
    added = change(two, other, other.D.double()) @ E[0].T
    assert naive == pytest.approx(float(added.norm() / (change(two, own, own.D.double()) @ E[0].T).norm()), rel=1e-6)
    next_ = erasure.only("frog")
    added = change(next_, next_.parts[0], next_.fusion.D_star) @ E[0].T
    assert later == pytest.approx(float(added.norm() / (alone @ E[0].T).norm()), rel=1e-6)


def test_one_after_the_other_is_what_erasing_again_and_again_writes(pipe, erasure, E):
    W = {name: w.detach().double() for name, w in kv_weights(pipe.unet).items()}
    by_hand = dict(W)
    for name in ("ship", "frog", "dog"):
        by_hand = {layer: w.double() for layer, w in erasure.only(name).weights(by_hand)}
    for layer, w in fusion.in_turn(erasure).weights(W):
        assert torch.allclose(w, by_hand[layer], atol=1e-5 * float(W[layer].abs().max()))
    alone = fusion.in_turn(erasure.only("frog")).fusion
    assert torch.allclose(alone.D_star, erasure.only("frog").fusion.D_star)


def test_deviations_are_of_all_loras_together(erasure, E):
    for method in fusion.METHODS:
        fused = fusion.with_method(erasure, method)
        D = fused.fusion.D_star
        for i, (found, own) in enumerate(zip(fusion.deviations(fused, E), fused.parts, strict=True)):
            alone = change(fused, own, own.D.double()) @ E[i].T
            whole = sum(change(fused, part, D[:, j : j + 1]) for j, part in enumerate(fused.parts)) @ E[i].T
            assert found == pytest.approx(float((whole - alone).norm() / alone.norm()), rel=1e-6)
    told = fusion.turns_said({"closed": [0.1, 0.1, 0.1], "in turn": [0.9, 0.5, 0.2]}, ["ship", "frog", "dog"])
    assert "closed 0.10 and 0.10" in told and "in turn 0.90 and 0.20, worst ship (0.90)." in told


def test_prompts_that_approach(pipe, erasure, E):
    vectors = [interference.name_vector(pipe, concept) for concept in erasure.concepts]
    curve = interference.approach(pipe, erasure, E[0], vectors, (0, 1))
    own, other = erasure.parts[:2]
    for (near, *found), part in zip(curve, (other, own), strict=True):  # as the other is; as the concept itself
        assert found == pytest.approx(interference.pair(erasure, own, other, part.statistics.C(), E[0]), rel=1e-3)
        assert (near > 0.999) == (part is own)
    points = interference.all_pairs(erasure, E, interference.similarity(vectors))
    assert len(points) == 3 and isinstance(interference.pairs_figure(points, curve, 0.2), Figure)


def test_told_to_keep_changes_the_prior_alone(pipe, erasure, cache):
    assert fusion.told_to_keep(pipe, erasure, "ship", ["cat"], 2.0).P is None  # it was erased without a prior
    erasure = erasure.with_config(
        dataclasses.replace(erasure.config, prior=dataclasses.replace(erasure.config.prior, use=True))
    )
    told = fusion.told_to_keep(pipe, erasure, "ship", ["cat"], 2.0)
    assert [c.name for c in told.concepts] == ["frog", "dog"] and told.parts == erasure.without("ship").parts
    captions = [text for text in GENERAL if "dog" not in text]
    said = erasure.config.keeping(["cat", "ship"], 2.0).prior
    beside = pairs_of(erasure.config.companions), said.beside
    expected = prior(pipe, captions, domain=said.domain, lambda3=said.lambda3, names=said.names, beside=beside)
    assert torch.allclose(told.P, expected.P)


def test_threshold():
    assert interference.threshold([0, 1], [0.1, 0.2], 0.3) is None
    assert interference.threshold([0, 1], [0.4, 0.5], 0.3) == ("below", 0.0)
    assert interference.threshold([0, 1, 2, 3], [0.1, 0.5, 0.1, 0.5], 0.3) == ("at", pytest.approx(2.5))


def test_as_many_concepts_as_counts():
    some = [Concept("ship", "sea"), Concept("frog", "grass"), Concept("dog", "field")]
    assert fusion.chosen(some, [1, 2], "frog") == some[:2]
    for counts in ([], [1], [0, 2], [4]):
        with pytest.raises(MaceError, match="of 3 concepts: give 1 to 3"):
            fusion.chosen(some, counts, "ship")
    with pytest.raises(MaceError, match="'dog' is not among the 2"):
        fusion.chosen(some, [2], "dog")


def test_sweep_and_back(pipe, erasure):
    class Seer:
        concepts, name = (), "seer"

        def check(self, names):
            pass

        def top1(self, images, among=None):
            return ["ship"] * len(images)

    before = {n: w.clone() for n, w in kv_weights(pipe.unet).items()}
    rows, pictures = fusion.sweep(pipe, Seer(), erasure, [2], ["cat"], [0], 2, ["ship"], steps=1)
    assert [(r["count"], r["method"]) for r in rows] == [(0, "original"), *((2, m) for m in fusion.METHODS)]
    assert list(pictures["closed", 2]) == ["ship", "frog", "cat"]
    assert [(r["Acc_e"], r["Acc_s"], r["others"]) for r in rows] == [(0.5, 0.0, 1.0)] * 4
    assert len(fusion.sweep_figure(rows).axes) == 3
    alone, _ = fusion.sweep(pipe, Seer(), erasure, [2], ["cat"], [0], 2, steps=1)
    assert "others" not in alone[0] and len(fusion.sweep_figure(alone).axes) == 2
    told = erasure.without("ship")
    albums = fusion.back(pipe, erasure, "ship", ["ship", "cat"], [0], told=told, steps=1)
    assert list(albums) == ["original", "all erased", "ship at 0.5", "without ship", "without ship, kept"]
    assert albums["without ship, kept"]["ship"][0].tobytes() == albums["without ship"]["ship"][0].tobytes()
    assert albums["original"]["cat"][0].tobytes() == pictures["original", 0]["cat"][0].tobytes()
    assert all(w.equal(before[n]) for n, w in kv_weights(pipe.unet).items())
    assert fusion.trace_left(erasure, "ship") < 1e-9
