"""Lesson 04: prompts swapped on the way, a training watched, and the LoRAs of several settings compared."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from factory.judge import labels
from tiny_data import tiny_judge

from macelib import Concept, MaceError
from macelib.evaluate import Judge
from macelib.lessons import cfis, probabilities, shared
from macelib.method.lora.train import TrainConfig, train
from macelib.method.lora.train import cfis as xi_of
from macelib.models.pipelines import kv_weights
from macelib.models.sample import generate
from macelib.models.text import encode
from macelib.models.tokens import token_spans

STEPS = 3


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Pictures as loaded: they are compared to the last bit, which bf16 does not keep."""
    monkeypatch.setattr(shared, "fast_precision", lambda pipe: None)


@pytest.fixture(scope="module")
def pipe():
    from macelib.models.tiny import tiny_pipeline

    return tiny_pipeline()


@pytest.fixture(scope="module")
def data(pipe):
    return cfis.examples(pipe, [Concept("ship", "sea"), Concept("frog", "grass")], [0, 1], "full", steps=1)[0]


def test_doctests():
    assert doctest.testmod(cfis).failed == 0


def test_lessons_draw_in_the_fast_precision(pipe, monkeypatch):
    names = ["ship"]
    exact = shared.album(pipe, names, [0], steps=1)["ship"][0]
    monkeypatch.setattr(shared, "fast_precision", lambda pipe: "bf16")
    assert shared.album(pipe, names, [0], steps=1)["ship"][0].tobytes() != exact.tobytes()


def test_swap(pipe):
    first, then, seeds = "a photo of the ship", "a red dog on grass", [0, 1, 2]
    ends = [generate(pipe, text, seeds, steps=STEPS, batch=2) for text in (then, first)]
    found = [cfis.swap(pipe, first, then, k, seeds, steps=STEPS, batch=2) for k in (0, STEPS, 1)]
    for expected, got in zip(ends, found, strict=False):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, got, strict=True))
    assert all(found[2][i].tobytes() not in (ends[0][i].tobytes(), ends[1][i].tobytes()) for i in range(3))


def test_window():
    t1, t2 = cfis.window([0, 250, 500, 750, 999], [0.8, 0.8, 0.4, 0.0, 0.1])  # the last one is noise
    assert 250 < t1 < 500 < t2 < 750
    assert cfis.window([0, 500], [0, 0]) is None


def test_a_name_that_the_judge_does_not_know_is_refused_before_anything_is_drawn(pipe):
    with pytest.raises(MaceError, match="knows no concept 'shp'"):
        cfis.swaps(pipe, Judge(tiny_judge(labels())), [["shp", "frog"]], [0], [0], STEPS)
    with pytest.raises(MaceError, match="knows no concept 'shp'"):
        shared.shares(Judge(tiny_judge(labels())), {"shp": []}, [])


def test_own_words(pipe):
    e = cfis.own_words(pipe, "ship")
    full, empty = encode(pipe, ["a photo of the ship", ""])
    own = token_spans(pipe.tokenizer, "a photo of the ship", "ship")[0]
    rest = [i for i in range(len(e)) if i not in own]
    assert e[own].equal(full[own]) and e[rest].equal(empty[rest]) and not full[own].equal(empty[own])


def test_drawn_words_depend_on_name_and_seed_alone(pipe):
    several = cfis.draw_words(pipe, ["ship", "frog"], [3, 4], STEPS, 5.0, batch=3)
    alone = cfis.draw_words(pipe, ["frog"], [4], STEPS, 5.0)
    a, b = (np.asarray(p, dtype=int) for p in (several["frog"][1], alone["frog"][0]))
    assert abs(a - b).max() <= 1  # batches of other sizes round otherwise
    assert several["frog"][1].tobytes() != several["ship"][1].tobytes()


def test_snapshots(pipe, data):
    config = TrainConfig(steps=3, lr=1e-3, concepts_per_pass=2)
    kept = cfis.snapshots(pipe, data, {"cfis": config, "uniform": replace(config, timesteps="uniform")}, [1, 3])
    assert {label: list(by_step) for label, by_step in kept.items()} == {"cfis": [1, 3], "uniform": [1, 3]}
    whole = train(pipe, data, config).finish()
    name = next(iter(whole.B))
    assert kept["cfis"][3].B[name].equal(whole.B[name]) and not kept["cfis"][1].B[name].equal(whole.B[name])
    with pytest.raises(MaceError, match="concepts_per_pass"):
        cfis.snapshots(pipe, data, {"one by one": replace(config, concepts_per_pass=1)}, [1])


def test_watch_and_measure(pipe, data):
    xi = xi_of(1000)
    run = train(pipe, data, TrainConfig(steps=4, lr=1e-2, concepts_per_pass=2))
    records = list(cfis.watch(run, xi, every=2))
    assert [record.step for record in records] == [1, 2, 3, 4]
    figure = cfis.training_figure(records, xi)
    assert figure.axes[1].xaxis_inverted() and figure.legends and not any(ax.get_legend() for ax in figure.axes)
    before, seen = {n: w.clone() for n, w in kv_weights(pipe.unet).items()}, []

    def draw(names):
        seen.append({n: w.clone() for n, w in kv_weights(pipe.unet).items()})
        return {name: [name] for name in names}

    near = {"ship": ["dog"], "frog": []}
    rows, pictures = cfis.measure(pipe, near, run.loras, draw, lambda some: dict.fromkeys(some, 0.5))
    assert [(row["concept"], row["name"], row["role"]) for row in rows] == [
        ("ship", "ship", "erased"), ("ship", "dog", "shares a word"), ("frog", "frog", "erased"),
    ]  # fmt: skip
    assert list(pictures) == [("ship", "ship"), ("ship", "dog"), ("frog", "frog")]
    for concept, weights in zip(near, seen, strict=True):
        B, D = run.loras.select(concept)
        for name, w in before.items():
            assert torch.allclose(weights[name], w + B[name] @ D[name], atol=1e-6)
    assert all(w.equal(before[n]) for n, w in kv_weights(pipe.unet).items())


def test_shares_of_pictures():
    class Seer:
        concepts = ("ship", "frog", "cat")

        def check(self, names):
            assert set(names) <= set(self.concepts)

        def top1(self, images, among=None):
            assert among is None
            return images

    albums = {"original": {"ship": ["ship", "cat"], "frog": ["frog", "frog"]}}
    assert shared.shares(Seer(), albums["original"], []) == {"ship": 0.5, "frog": 1.0}
    table = shared.recognised(Seer(), albums, {"both": ["ship", "frog"], "ship": ["ship"]})
    assert table.loc["original"].to_dict() == {"both": 75.0, "ship": 50.0}
    assert list(shared.recognised(Seer(), albums, {"ship": ["ship"], "near it": []})) == ["ship"]


def test_what_compares_names_is_given_the_anchor_as_well():
    class Clip:
        name, asked = "clip", None

        def check(self, names):
            pass

        def top1(self, images, among=None):
            self.asked = among
            return images

    judge, albums = Clip(), {"original": {"ship": ["ship"]}}
    shared.recognised(judge, albums, {"ship": ["ship"]}, [Concept("ship", "the sea")])
    assert judge.asked[:2] == ["ship", "the sea"] and len(judge.asked) > 2
    with pytest.raises(MaceError, match="clip compares names with each other"):
        shared.shares(judge, albums["original"], ["ship"])
    with pytest.raises(MaceError, match="clip compares names with each other"):
        probabilities(judge, ["ship"], ["ship"], ["ship"])


def test_one_concept():
    assert shared.one({"ship": "the sea"}) == Concept("ship", "the sea")
    with pytest.raises(MaceError, match="one concept, 2 are given"):
        shared.one({"ship": "the sea", "frog": "grass"})
