"""Notebook 01's measures: groups of tokens, what replaces them, stage 1 through the embeddings or the weights."""

import dataclasses

import numpy as np
import pytest
import torch
from factory.judge import labels
from tiny_data import tiny_judge

from macelib import Concept, EraseConfig, MaceError, erase
from macelib.concepts import align, templates
from macelib.evaluate import Judge
from macelib.lessons import drawing, load_model, probabilities, shared
from macelib.lessons import residual as r
from macelib.models.pipelines import kv_weights
from macelib.models.sample import generate
from macelib.models.swap import untouched
from macelib.models.text import encode

SHIP = Concept("ship", "the sea", synonyms=("boat",))
PLACED = r.Case("in a place", "a photo of the {} by the sea", "ship", "ship")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Pictures as loaded: they are compared to the last bit, which bf16 does not keep."""
    monkeypatch.setattr(shared, "fast_precision", lambda pipe: None)


@pytest.fixture(scope="module")
def pipe():
    return load_model("tiny")


@pytest.fixture(scope="module")
def judge():
    return Judge(tiny_judge(labels()))


def arrays(images) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in images])


def test_every_token_but_the_first_is_in_one_group(pipe):
    at = r.groups(pipe.tokenizer, PLACED.prompt, "ship")
    assert at["before"] == [1, 2, 3, 4] and at["own"] == [5] and at["after"] == [6, 7, 8] and at["[EOS]"] == [9]
    assert sorted(i for members in at.values() for i in members) == list(range(1, pipe.tokenizer.model_max_length))
    with pytest.raises(MaceError, match="does not hold 'frog'"):
        r.groups(pipe.tokenizer, PLACED.prompt, "frog")


def test_all_cases_name_their_phrase(pipe):
    found = r.cases(SHIP)
    assert {"plural", "synonym", *r.PATTERNS} == {case.pattern for case in found}
    for case in [*found, r.longer(SHIP, "before", 3), r.longer(SHIP, "after", 3)]:
        assert r.groups(pipe.tokenizer, case.prompt, case.phrase)["own"]
    assert r.longer(SHIP, "before", 2).prompt == "a photo of a poster of the ship"
    assert r.longer(SHIP, "after", 1).prompt == "the ship in the snow"
    with pytest.raises(MaceError, match="0 to 6"):
        r.longer(SHIP, "after", 7)


def test_a_proper_name_has_no_article(pipe):
    amy = r.Case("in a place", "a photo of the {} in the snow", "Amy Adams", "Amy Adams")
    assert amy.prompt == "a photo of Amy Adams in the snow"
    moved = r.shift(pipe, amy, "a person")
    assert moved.groupby("group").value.max()[["[BOS]", "before"]].max() < 1e-5
    assert not (moved.token == "the").iloc[:5].any()


def test_variants(pipe):
    e, empty = encode(pipe, [PLACED.prompt, ""])
    at = r.groups(pipe.tokenizer, PLACED.prompt, "ship")
    changed = lambda a, b: (a != b).any(1).nonzero()[:, 0].tolist()  # noqa: E731
    assert torch.equal(r.everything(e, empty, at), e)
    assert changed(r.residual(e, empty, at), e) == [5] and torch.equal(r.residual(e, empty, at)[5], e[9])
    assert changed(r.without("own", "after")(e, empty, at), e) == [5, 6, 7, 8]
    assert changed(r.only("own", "[EOS]")(e, empty, at), empty) == [5, 9]


def test_only_tokens_to_the_right_know_the_concept(pipe):
    moved = r.shift(pipe, PLACED, SHIP.anchor).groupby("group").value
    assert moved.max()[["[BOS]", "before"]].max() < 1e-5
    assert moved.min()[["after", "[EOS]", "padding"]].min() > 1e-3


def test_the_fit_is_no_worse_than_no_change_and_ends_at_the_anchor(pipe):
    """R minimises Σ ||R e^f − e^g||² + λ0 ||R − I||² over its templates, so it beats R = I there."""
    settings = EraseConfig.from_dict({"prior": {"use": False}})
    R = r.refine(pipe, [SHIP], settings).R
    left = whole = 0.0
    for template in templates(SHIP):
        pair = align(pipe.tokenizer, template, SHIP.name, SHIP.anchor)
        f, g = encode(pipe, [template.replace("{}", SHIP.name), template.replace("{}", SHIP.anchor)]).double()
        f, g = f[pair.source], g[pair.target]
        left, whole = left + float((f @ R.T - g).square().sum()), whole + float((f - g).square().sum())
    assert left < 0.9 * whole
    plain = r.Case("alone", "{}", "ship", "ship")
    after = r.shift(pipe, plain, SHIP.anchor, R)
    assert after.square.sum() < after.whole.sum()


def test_stage_1_is_that_of_erase(pipe):
    settings = EraseConfig.from_dict({"templates": "paper-like", "companions": ["frog"], "train": {"steps": 1}})
    settings = dataclasses.replace(
        settings, images=dataclasses.replace(settings.images, count=1, steps=1, masks="full")
    )
    R = r.refine(pipe, [SHIP], settings).R
    assert torch.equal(R, erase(pipe, [SHIP], settings, progress=False).refinement.R)
    assert not torch.equal(R, r.refine(pipe, [SHIP], EraseConfig()).R)


def test_a_stronger_prior_leaves_more(pipe, tmp_path):
    """Of all patterns R = I leaves everything; with more of the prior, R moves less."""
    captions = tmp_path / "captions.txt"
    captions.write_text("a photo of a cat\na dog in the snow\na red house\n")
    settings = EraseConfig.from_dict({"prior": {"captions": str(captions)}})
    assert r.left(pipe, [SHIP], torch.eye(32).double()) == pytest.approx(dict.fromkeys(r.left(pipe, [SHIP], None), 1.0))
    weak, strong = (r.refine(pipe, [SHIP], settings, times).R for times in (1, 100))
    assert torch.equal(weak, r.refine(pipe, [SHIP], settings).R)
    some, more = (r.left(pipe, [SHIP], R) for R in (weak, strong))
    assert set(some) == {*r.PATTERNS, "plural", "synonym"} and some["at the end"] < more["at the end"] < 1


def test_refined_embeddings_and_refined_weights_draw_the_same(pipe):
    """W (R e) by the embeddings against (W R) e by the weights."""
    R = torch.eye(32).double() + 0.3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).double()
    e = encode(pipe, [PLACED.prompt])
    by_embeddings = arrays(r.draw(pipe, e, [3], R, steps=2))
    with untouched(pipe), torch.no_grad():
        for w in kv_weights(pipe.unet).values():
            w.copy_((w.double() @ R).float())
        by_weights = arrays(r.draw(pipe, e, [3], steps=2))
    plain, other = (arrays(r.draw(pipe, e, [3], steps=2, **g)) for g in ({}, {"guidance": 5.0}))
    assert abs(by_embeddings - by_weights).max() <= 1 < abs(by_embeddings - plain).max()
    for pictures, guidance in ((plain, None), (other, 5.0)):  # and as the prompt is drawn
        assert abs(pictures - arrays(generate(pipe, PLACED.prompt, [3], 2, guidance))).max() <= 1


def test_study_judges_every_case_variant_and_seed(pipe, judge):
    variants = {"all": r.everything, "own": r.only("own")}
    frame = r.study(pipe, judge, r.cases(SHIP)[:2], variants, [4, 5], ["ship"], steps=1)
    assert len(frame) == 2 * 2 * 2 and frame.value.between(0, 1).all()
    one = frame[(frame.pattern == "at the end") & (frame.tokens == "all") & (frame.seed == 5)].iloc[0]
    alone = r.draw(pipe, encode(pipe, ["a photo of the ship"]), [5], steps=1)
    assert abs(arrays([one.picture]) - arrays(alone)).max() <= 1 and one.length == 5
    logits = judge.logits(alone)[0].softmax(1)
    assert one.value == pytest.approx(logits[0, judge.concepts.index("ship")].item(), abs=1e-4)
    with pytest.raises(MaceError, match="1 images and 2 names"):
        probabilities(judge, alone, ["ship", "frog"], [])


def test_figures(pipe):
    moved = r.shift(pipe, PLACED, SHIP.anchor)
    fig = drawing.shifts({"original": moved, "stage 1": moved}, first=10)
    assert fig.legends and not drawing.shifts({"original": moved}).legends  # needless for one
    assert len(fig.axes[0].patches) == 20 and fig.axes[0].get_xticklabels()[0].get_text() == "[BOS]"
    table = moved.groupby("group", sort=False).value.max().to_frame("largest")
    assert len(drawing.dots(table, "x").axes[0].collections) == 2  # lines, and one column's dots
    assert drawing.method_map()._repr_png_()
