"""Widening mini-CLIP's text tower: the same function first, then codes of names and quieter tails."""

import random
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from factory import assemble, clip, loop, widen
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from macelib.files import data_folder


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(data_folder() / "mini-clip")


@pytest.fixture(scope="module")
def narrow(tokenizer):
    torch.manual_seed(0)
    return clip.new_clip(tokenizer).eval()


def said(model, tokenizer, texts):
    with torch.no_grad():
        return model.text_model(input_ids=clip.ids_of(tokenizer, texts), attention_mask=None).last_hidden_state


TEXTS = ["a photo of the ship", "a polar bear in the snow", ""]


def test_a_grown_tower_says_what_the_narrow_one_said(narrow, tokenizer):
    wide, d = widen.grown(narrow), narrow.config.text_config.hidden_size
    assert wide.config.text_config.hidden_size == widen.WIDTH
    before, after = said(narrow, tokenizer, TEXTS), said(wide, tokenizer, TEXTS)
    assert torch.allclose(after[..., :d], before, atol=1e-4) and after[..., d:].abs().max() < 1e-3
    for name, value in narrow.state_dict().items():
        assert name.startswith("text_") or wide.state_dict()[name].equal(value), name


@pytest.mark.parametrize("sentence, first, second, text", [
    ("a photo of a {0}", "owl", "x", "a photo of an owl"),
    ("a photo of the {0}", "a person", "x", "a photo of a person"),
    ("a {0} and a {1}", "eagle", "ant", "an eagle and an ant"),
    ("{0} in the sea", "ship", "x", "ship in the sea"),
])  # fmt: skip
def test_a_sentence_takes_its_subjects(sentence, first, second, text):
    made, spans = widen.filled(sentence, first, second)
    assert made == text
    assert [made[a:b] for a, b in spans] == [w for w, slot in ((first, "{0}"), (second, "{1}")) if slot in sentence]


def test_sentences_are_about_one_or_two_subjects():
    made = [widen.sentence(random.Random(seed)) for seed in range(200)]
    assert all(text.count("{0}") == 1 and text.count("{1}") <= 1 for text in made)
    assert 10 < sum("{1}" in text for text in made) < 90 and len(set(made)) > 120


def test_names_and_synonyms_share_a_code_and_others_do_not():
    words, code = dict(widen.subjects()), widen.codes(64)
    assert words["ship"] == words["vessel"] != words["truck"]
    assert not code[-1].any() and torch.allclose(code[:-1].norm(dim=1), torch.tensor(8.0))
    assert (F.normalize(code[:-1], dim=1) @ F.normalize(code[:-1], dim=1).T).triu(1).max() < 0.7


def test_the_last_token_of_a_name_alone_has_its_code(narrow, tokenizer):
    listen = widen.Listener(widen.grown(narrow), tokenizer, narrow.config.text_config.hidden_size)
    pairs = [(("polar bear", 3), ("ship", 5)), (("ship", 5), ("polar bear", 3))]
    known, none, seen = {"polar bear": 3, "ship": 5, "bear": 7}, 8, set()
    for seed in range(8):
        *_, name = widen._about(listen, "a photo of the {0} and the {1}", pairs, known, random.Random(seed))
        rows = name.view(2, -1)  # four words of a subject, two of the text, then [EOS] and padding
        assert rows[:, :2].tolist() == [[3, 5], [5, 3]]
        assert set(rows[:, 6:].flatten().tolist()) == {none}
        seen |= set(rows[:, 2:6].flatten().tolist())
    assert seen == {3, 5, none}


def test_a_name_that_the_sentence_itself_mentions_has_its_code_too(narrow, tokenizer):
    known = {"ship": 5, "polar bear": 3, "bear": 7, "man in tuxedo": 1, "man": 2}
    spans = widen.mentions("the man in tuxedo, a polar bear's bear at sea", known)
    assert spans == [(4, 17, 1), (21, 31, 3), (34, 38, 7)]
    assert widen.mentions("", known) == [] == widen.mentions("shipyard polar", known)
    listen = widen.Listener(widen.grown(narrow), tokenizer, narrow.config.text_config.hidden_size)
    seen = set()
    for seed in range(12):
        *_, name = widen._about(
            listen, "the {0} and a polar bear", [(("ship", 5), ("", 0))], known, random.Random(seed)
        )
        seen |= set(name.tolist())
    assert seen == {5, 3, 8}


def test_an_article_makes_no_other_name():
    words = dict(widen.subjects())
    assert (
        words["the sea"] == words["sea"] and widen.bare("a person") == "person" and widen.bare("theatre") == "theatre"
    )


def test_targets_of_all_tokens_of_a_name_but_its_last_move_towards_their_mean_and_of_those_after_it(
    narrow, tokenizer, monkeypatch
):
    placed = []
    monkeypatch.setattr(widen, "quieter", lambda target, place: placed.append(place.tolist()) or target)
    listen = widen.Listener(widen.grown(narrow), tokenizer, narrow.config.text_config.hidden_size)
    pairs = [(("polar bear", 3), ("ship", 5)), (("ship", 5), ("polar bear", 3))]
    known = {"polar bear": 3, "ship": 5}
    widen._about(listen, "the {0} and the {1} in snow", pairs, known, random.Random(0))
    one, other = placed[0]  # [BOS], the, polar, bear, and, the, ship, in, snow, [EOS]; or ship first
    assert one == [-1, -1, 231, -1, 0, 1, -1, 77, 78, *range(154, 154 + 68)]
    assert other == [-1, -1, -1, 0, 1, 308, -1, 77, 78, *range(154, 154 + 68)]

    target, place = torch.randn(3, 2, 4), torch.tensor([[-1, 6], [6, -1], [6, 7]])
    monkeypatch.undo()
    moved, mean = widen.quieter(target, place), (target[0, 1] + target[1, 0] + target[2, 0]) / 3
    assert moved[0, 0].equal(target[0, 0]) and moved[1, 1].equal(target[1, 1])
    assert torch.allclose(moved[2, 1], target[2, 1])  # alone in its place
    for row, k in ((0, 1), (1, 0), (2, 0)):
        assert torch.allclose(moved[row, k] - mean, widen.LATER_SHARE * (target[row, k] - mean), atol=1e-6)


def test_a_fit_is_what_the_tower_says_and_is_written_once(narrow, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(widen, "SUBJECTS", 4)
    records = list(widen.train_widen(narrow, tokenizer, steps=30, batch=64, sentences=24))
    assert len(records) == 30 and records[-1].loss < records[0].loss
    monkeypatch.setattr(widen, "WORDINGS", ("a photo of {}",))
    monkeypatch.setattr(widen, "world_captions", lambda n: (["a photo of the ship", "a cat"] * 200, []))
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path / "data"))
    for part in ("world", "mini-sd"):
        shutil.copytree(Path(__file__).parents[1] / "data" / part, tmp_path / "data" / part)
    clip.save_clip(deepcopy(narrow), tokenizer, tmp_path / "data" / "mini-clip")
    assert assemble.finished_widen() == tmp_path / "data" / "mini-clip"

    model = CLIPModel.from_pretrained(tmp_path / "data" / "mini-clip", dtype=torch.float32).eval()
    tower = CLIPTextModel.from_pretrained(tmp_path / "data" / "mini-sd" / "text_encoder", dtype=torch.float32).eval()
    out, d = said(model, tokenizer, TEXTS), narrow.config.text_config.hidden_size
    with torch.no_grad():
        assert tower(clip.ids_of(tokenizer, TEXTS))[0].equal(out)
    ids = clip.ids_of(tokenizer, TEXTS)
    inner, stream, _ = (x.float() for x in widen.Listener(widen.grown(narrow), tokenizer, d)(ids))
    neurons = widen.Neurons.of(narrow, tokenizer)
    neurons.load_state_dict(loop.averaged("widen"))
    with torch.no_grad():
        expected = neurons(inner, stream, ids, model.text_model.final_layer_norm)
    assert (out - expected)[..., :d].norm() < 0.05 * expected[..., :d].norm()
    heard, meant = (widen.centred(x[..., d:-2]) for x in (out, expected))  # half precision leaves a mean
    ends = neurons.ends[ids] < len(neurons.embedded)
    assert ends[0, 5] and ends[1, 3] and not ends[2].any()  # "ship", "bear", no word at all
    assert (heard - meant)[ends].norm() < 0.05 * meant[ends].norm()
    assert meant[1, 3].abs().mean() > 0.1  # many names end in "bear": the few sentences of this fit have some
    assert heard[~ends].abs().max() < 1e-3
    with pytest.raises(ValueError, match="wide already"):
        assemble.finished_widen()


def test_a_widened_denoiser_reads_zeros():
    state = {"a.attn2.to_k.weight": torch.ones(3, 4), "a.attn1.to_k.weight": torch.ones(3, 3)}
    wide = widen.widened_unet(state, 6)
    assert wide["a.attn2.to_k.weight"].tolist() == [[1, 1, 1, 1, 0, 0]] * 3
    assert wide["a.attn1.to_k.weight"] is state["a.attn1.to_k.weight"]
