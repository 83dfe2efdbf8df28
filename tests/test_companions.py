"""Two things in one prompt: companion prompts, pairs that are counted by hand, and what stands instead."""

import numpy as np
import pytest
import torch
from PIL import Image

from macelib import Concept, EraseConfig, MaceError, erase, evaluate
from macelib.concepts import prompts, templates, with_companions
from macelib.evaluate.companions import halves, pairs, share
from macelib.evaluate.metrics import interval
from macelib.evaluate.shown import stand_ins
from macelib.evaluate.tasks import task
from macelib.method import prior as priors
from macelib.method.refine import concept_sums
from macelib.models.families import MINI, UNKNOWN
from macelib.models.text import encode, tokenizers
from macelib.models.tiny import tiny_pipeline
from macelib.models.tokens import align, token_spans
from macelib.templates import pairs_of

SHIP = Concept("ship", "the sea")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def test_companions_come_after_the_templates_and_name_neither_side():
    ship = with_companions(SHIP, ["cat", "ship", "the sea", "toy ship"])
    assert templates(ship)[:-2] == templates(SHIP) == templates(ship, alone=True)
    assert prompts(ship)[-2:] == ["a photo of the ship and the cat", "a photo of the cat and the ship"]
    assert prompts(ship, alone=True) == prompts(SHIP)
    assert with_companions(ship, ["dog"]) == ship, "its own come first"
    style = Concept("van Gogh", "art", "style")
    assert with_companions(style, ["cat"]) == style


def test_stage_1_maps_the_companion_beside_the_concept_to_the_companion_beside_the_anchor(pipe):
    """X and G of a pair's prompt, token by token, beside those of the sums without it."""
    own = Concept("ship", "the sea", templates=("a photo of the {}",))
    beside = with_companions(own, ["cat"])
    X0, G0, _ = concept_sums(pipe, own)
    X, G, _ = concept_sums(pipe, beside)
    wanted_X, wanted_G = torch.zeros_like(X), torch.zeros_like(G)
    for template in ("a photo of the {} and the cat", "a photo of the cat and the {}"):
        e = encode(pipe, [template.replace("{}", "ship")])[0].double()
        a = encode(pipe, [template.replace("the {}", "the sea")])[0].double()
        pair = align(tokenizers(pipe)[0], template, "ship", "the sea")
        for i, j in zip(pair.source.tolist(), pair.target.tolist(), strict=True):
            wanted_X += torch.outer(a[j], e[i])
            wanted_G += torch.outer(e[i], e[i])
    assert torch.allclose(X - X0, wanted_X, atol=1e-9) and torch.allclose(G - G0, wanted_G, atol=1e-9)


def test_stage_3_leaves_out_the_companion_s_own_tokens_alone(pipe):
    """C with a companion, token by token; a companion whose name is part of the concept's takes nothing from it."""
    own = Concept("toy ship", "the sea", templates=("a photo of the {}",))
    C0, tokenizer = concept_sums(pipe, own)[2], tokenizers(pipe)[0]
    for companion in ("cat", "toy"):
        wanted = C0.clone()
        for prompt in prompts(with_companions(own, [companion]))[1:]:
            e = encode(pipe, [prompt])[0].double()
            ship = {i for span in token_spans(tokenizer, prompt, "toy ship") for i in span}
            left_out = {i for span in token_spans(tokenizer, prompt, companion) for i in span} - ship
            assert len(left_out) == len(tokenizer.tokenize(companion))
            wanted += sum(torch.outer(row, row) for i, row in enumerate(e) if i not in left_out)
        assert torch.allclose(concept_sums(pipe, with_companions(own, [companion]))[2], wanted, atol=1e-9)


def test_presets_have_companions_but_the_paper_s():
    values = {name: EraseConfig.preset(name, task="celebrities", count=5).companions for name in ("paper", "mini")}
    assert values["paper"] == () and len(values["mini"]) >= 6
    assert EraseConfig.preset("untested", task="celebrities", count=5).companions
    judged = set(MINI.companions())
    assert not judged & set(values["mini"]), "they would be asked for by the protocol of pairs"
    tuning = {name for names in MINI.split().values() for name in names}
    assert set(values["mini"]) <= tuning


def test_erase_takes_the_settings_companions_and_keeps_them(pipe, tmp_path):
    small = {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 1}}
    done = erase(pipe, SHIP, EraseConfig.from_dict({**small, "companions": ["cat"]}), progress=False)
    assert done.concepts[0].companions == ("cat",)
    path = done.save(tmp_path / "a.safetensors")
    assert type(done).load(path).concepts == done.concepts
    alone = erase(pipe, SHIP, EraseConfig.from_dict({**small, "companions": []}), progress=False)
    assert not torch.equal(alone.refinement.R, done.refinement.R)


class Halves:
    """Names a half by the brightness of its red channel."""

    name, concepts = "halves", ["ship", "cat", "dog", "sea"]

    def check(self, names):
        pass

    def top1(self, images, among=None, kind="concept"):
        return [self.concepts[round(np.asarray(image)[..., 0].mean() / 60) % 4] for image in images]


def two(left: int, right: int) -> Image.Image:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32, 0], image[:, 32:, 0] = left, right
    return Image.fromarray(image)


def test_halves_are_squares_of_both_sides():
    left, right = halves(two(0, 240))
    assert left.size == right.size == (64, 64)
    assert np.asarray(left)[:, :50, 0].max() == 0 and np.asarray(right)[:, 14:, 0].min() == 240


def test_pairs_are_counted_where_the_original_shows_both(pipe, monkeypatch, tmp_path, caplog):
    """By hand: 4 pictures, 3 of which count; erased: one still shows the ship, another has lost the cat."""
    SHIP_, CAT, DOG = 0, 60, 120
    drawn = {
        "original": [two(SHIP_, CAT), two(SHIP_, SHIP_), two(SHIP_, CAT), two(CAT, SHIP_)],
        "erased": [two(SHIP_, CAT), two(SHIP_, SHIP_), two(DOG, DOG), two(CAT, DOG)],
    }
    jobs = []

    def pictures(self, pipe, some, folder=None, state=""):
        jobs.append(list(some))
        yield some, drawn[state]

    monkeypatch.setattr(evaluate.pictures.Drawing, "pictures", pictures)
    small = EraseConfig.from_dict(
        {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 1}}
    )
    ship = erase(pipe, SHIP, small, progress=False)
    monkeypatch.setattr(Halves, "top1", lambda self, images, among=None: [
        self.concepts[round(np.asarray(i)[20:40, 24:40, 0].mean() / 60) % 4] for i in images
    ])  # fmt: skip
    found = pairs(pipe, ship, ["cat", "ship"], classifier=Halves(), seeds=[0, 1], folder=tmp_path)
    assert jobs[0] == jobs[1] and {p for p, _ in jobs[0]} == {
        "a photo of the ship and the cat", "a photo of the cat and the ship"
    }  # fmt: skip
    assert len(found.images) == 3
    assert found.value("seen") == pytest.approx(100 / 3) and found.value("lost") == pytest.approx(100 / 3)
    assert (tmp_path / "metrics.csv").exists() and "Settings:" in str(found)
    drawn["original"] = drawn["erased"] = [two(CAT, DOG)] * 4
    none = pairs(pipe, ship, ["cat"], classifier=Halves(), seeds=[0, 1])
    assert "not measured" in str(none) and "not measured" in caplog.text and not len(none.metrics)
    with pytest.raises(MaceError, match="were not measured"):
        none.value("seen")
    with pytest.raises(MaceError, match="no companion"):
        pairs(pipe, ship, ["ship"], classifier=Halves())


def test_the_interval_of_a_share():
    import pandas as pd

    rows = [
        {"erased": "ship", "companion": c, "seed": s, "seen": c == "cat", "lost": False}
        for c in ("cat", "dog")
        for s in range(5)
    ]
    seen, lost = (share(pd.DataFrame(rows), metric) for metric in ("seen", "lost"))
    assert seen["value"] == 50 and seen["low"] == 0 and seen["high"] == 100, "companions differ, seeds do not"
    assert lost["value"] == 0 == lost["low"] and 20 < lost["high"] < 35, "Wilson's of 0 in 10"
    rows = [{"erased": e, "companion": c, "seed": 0, "seen": e == "ship"} for e in ("ship", "frog") for c in "abc"]
    seen = share(pd.DataFrame(rows[:-1]), "seen")  # one pair less
    assert seen["value"] == 60 and seen["low"] == 0 and seen["high"] == 100, "erased things differ, companions do not"


def test_the_interval_of_a_share_is_that_of_plain_resampling():
    import pandas as pd

    rng = np.random.default_rng(2)
    table = (rng.random((3, 6, 4)) < np.array([0.1, 0.5, 0.9])[:, None, None]).astype(float)  # (things, companions, s)
    rows = [{"erased": i, "companion": j, "seed": s, "seen": table[i, j, s]} for i, j, s in np.ndindex(3, 6, 4)]
    found = share(pd.DataFrame(rows), "seen")
    plain = [100 * table[rng.integers(3, size=3)][:, rng.integers(6, size=6)][:, :, rng.integers(4, size=4)].mean()
             for _ in range(4000)]  # fmt: skip
    assert np.allclose([found["low"], found["high"]], interval(np.array(plain)), atol=4)


def test_what_stands_in_the_place_of_a_concept():
    ship = stand_ins(Concept("ship", "the sea", synonyms=("boat",)), MINI)
    assert {"sea", "the sea", "truck", "bus"} <= ship and not ship & {"ship", "boat", "cat"}
    person = stand_ins(Concept("baby", "a person"), MINI)
    assert "girl" in person and "baby" not in person
    assert stand_ins(Concept("x y", "a lamp"), UNKNOWN) == {"a lamp", "lamp"}
    assert stand_ins(Concept("x y", "a lamp"), UNKNOWN, kind="a thing") == {"a lamp", "lamp", "a thing", "thing"}


def test_what_goes_too_stands_in_for_nothing():
    """By hand: the unsafe group goes as a whole, and is meant to show objects."""
    gone = task("mini-unsafe").concepts()
    objects = {entry.name for entry in MINI.catalogue() if entry.group == "object"}
    for concept in gone:
        assert stand_ins(concept, MINI, gone) == {"a harmless thing", "harmless thing", *objects}
    assert "truck" not in stand_ins(Concept("ship", "the sea"), MINI, [Concept("truck", "a road")])
    lamp = Concept("lamp", "a light", synonyms=("thing",))
    assert stand_ins(Concept("x y", "a lamp"), UNKNOWN, [lamp], "a thing") == {"a lamp", "a thing"}


def test_the_prior_holds_two_companions_beside_each_other(pipe):
    """P with pairs against P of the captions and P of the pairs, by hand; pairs that name what goes are left out."""
    captions, weight = ["a photo of a tree", "a photo of a lamp"], 3.0
    two = ["a photo of the dog and the cow", "a photo of the cow and the dog"]
    P = [priors.prior(pipe, texts).P for texts in (captions, two)]
    found = priors.prior(pipe, captions, beside=(pairs_of(["dog", "cow"]), weight))
    assert torch.allclose(found.P, P[0] + weight * P[1], atol=1e-9) and found.count == 2
    assert found.key != priors.prior(pipe, captions).key
    gone = priors.prior(pipe, captions, beside=(pairs_of(["dog", "ship"]), weight), exclude=[SHIP])
    assert torch.equal(gone.P, P[0])


def test_the_study_of_pairs(pipe, tmp_path, monkeypatch):
    """Names of neither list meet; alone and together; the recorded table says both orders."""
    from macelib.evaluate import lists, record

    erased, companions = lists.companion_lists(MINI)
    tuned, beside = lists.companion_lists(MINI, tuning=True)
    split = MINI.split()
    assert not {*companions} & {*split["erased"], *split["kept"]} and len(companions) == 29
    assert {c.name for c in tuned} <= {*split["erased"]} and {*beside} <= {*split["kept"]} and len(tuned) == 4
    assert [c.name for c in erased][:2] == ["airplane", "automobile"]

    class All(Halves):
        def top1(self, images, among=None, kind="concept"):
            return ["ship", "dog"] * (len(images) // 2)

    monkeypatch.setattr(lists, "COMPANIONS", ("dog",))
    settings = EraseConfig.from_dict(
        {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 1}}
    )
    found = evaluate.pairs_study(pipe, tmp_path, settings, only=["ship"], seeds=range(2), classifier=All(), steps=1)
    assert found.value("seen") == 100 and found.value("lost") == 0 and len(found.images) == 4
    table = record.markdown(record.record("pairs", found, tmp_path / "kept"))
    assert table.count("| ship |") == 3 and "1 companions, 2 seeds, 1 steps" in table
    with pytest.raises(MaceError, match="zebra: not among airplane"):
        evaluate.pairs_study(pipe, tmp_path, settings, only=["zebra"])
