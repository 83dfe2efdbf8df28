"""Widening mini-CLIP's text tower: the same function first, then codes of names and quieter tails."""

import random
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from macelib.files import data_folder
from macelib.world import assemble, clip, loop, widen


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


def test_targets_move_tails_towards_the_mean_and_nothing_else(narrow, tokenizer, monkeypatch):
    monkeypatch.setattr(widen, "SUBJECTS", 5)
    d = narrow.config.text_config.hidden_size
    wide = widen.grown(narrow)
    tokens = widen.collect(widen.Listener(wide, tokenizer, d), 2, seed=0)
    with torch.no_grad():
        before = wide.text_model.final_layer_norm(F.pad(tokens.stream.float(), (0, widen.WIDTH - d)))[:, :d]
    # the first sentence: 4 words of each text, then [EOS] and padding
    before, target = (x[: 5 * 8].view(5, 8, d) for x in (before, tokens.target.float()))
    assert torch.allclose(before[:, :4], target[:, :4], atol=0.03)
    deviation = [x[:, 4:] - x[:, 4:].mean(0) for x in (before, target)]
    assert torch.allclose(widen.TAIL_SHARE * deviation[0], deviation[1], atol=0.03)
    assert torch.allclose(before[:, 4:].mean(0), target[:, 4:].mean(0), atol=0.03)


def test_a_fit_is_what_the_tower_says_and_is_written_once(narrow, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(widen, "SUBJECTS", 4)
    records = list(widen.train_widen(narrow, tokenizer, steps=30, batch=64, sentences=2))
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
    listen = widen.Listener(widen.grown(narrow), tokenizer, d)
    inner, past, stream, _ = (x.float() for x in listen(clip.ids_of(tokenizer, TEXTS)))
    neurons = widen.Neurons.of(narrow)
    neurons.load_state_dict(loop.averaged("widen"))
    with torch.no_grad():
        expected = neurons(inner, past, stream, model.text_model.final_layer_norm)
    assert (out - expected).norm() < 0.05 * expected.norm()
    with pytest.raises(ValueError, match="wide already"):
        assemble.finished_widen()


def test_a_widened_denoiser_reads_zeros():
    state = {"a.attn2.to_k.weight": torch.ones(3, 4), "a.attn1.to_k.weight": torch.ones(3, 3)}
    wide = widen.widened_unet(state, 6)
    assert wide["a.attn2.to_k.weight"].tolist() == [[1, 1, 1, 1, 0, 0]] * 3
    assert wide["a.attn1.to_k.weight"] is state["a.attn1.to_k.weight"]
