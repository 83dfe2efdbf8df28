import json

import pytest
import torch
from brute import relative

import macelib.method.prior as module
from macelib.concepts import Concept, check_kept
from macelib.errors import MaceError
from macelib.files import cache_folder
from macelib.method.prior import captions_for, names, prior, read_captions
from macelib.models.pipelines import load_pipeline
from macelib.models.text import embedding_size, encode, read
from macelib.models.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("cache")

CAPTIONS = ["a ship", "two Ships at sea", "a shipyard", "a red car", "the frog", "a kitty", "a blue sky"]
SHIP, CAT = Concept("ship", "sea"), Concept("cat", "sofa", synonyms=("kitty",))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def mean(pipe, captions):
    """The mean over captions of the sum over all T tokens, one outer product at a time."""
    total = torch.zeros(embedding_size(pipe), embedding_size(pipe), dtype=torch.float64)
    for caption in captions:
        for e in encode(pipe, [caption])[0].double():
            total += torch.outer(e, e) / len(captions)
    return total


def test_per_caption_without_those_that_name_a_concept(pipe):
    assert names(CAPTIONS, [SHIP, CAT]) == [True, True, False, False, False, True, False]
    assert relative(prior(pipe, CAPTIONS).P, mean(pipe, CAPTIONS)) <= 1e-6
    kept = prior(pipe, CAPTIONS, exclude=[SHIP, CAT])
    assert (
        kept.count == 4 and relative(kept.P, mean(pipe, ["a shipyard", "a red car", "the frog", "a blue sky"])) <= 1e-6
    )
    assert torch.equal(kept.P, kept.P.T) and kept.P.dtype == torch.float64
    assert relative(prior(pipe, CAPTIONS * 2).P, prior(pipe, CAPTIONS).P) == 0  # a caption counts once


def test_domain(pipe):
    found = prior(pipe, CAPTIONS, domain=["by Amy", "by a ship"], lambda3=2.0, exclude=[SHIP])
    expected = mean(pipe, ["a shipyard", "a red car", "the frog", "a kitty", "a blue sky"]) + 2 * mean(pipe, ["by Amy"])
    assert found.count == 6 and relative(found.P, expected) <= 1e-6


def test_of_names_to_keep_their_own_tokens_alone_count(pipe):
    captions, names = ["a red frog", "frog, a small one", "a cat and a frog"], ["frog", "cat"]
    found = prior(pipe, CAPTIONS, domain=captions, lambda3=2.0, names=names)
    positions = {captions[0]: [3], captions[1]: [1], captions[2]: [2, 5]}  # [BOS] is 0
    special = torch.zeros_like(found.P)
    for caption, own in positions.items():
        for e in encode(pipe, [caption])[0, own].double():
            special += torch.outer(e, e) / len(captions)
    assert relative(found.P, mean(pipe, CAPTIONS) + 2 * special) <= 1e-6
    whole = prior(pipe, CAPTIONS, domain=captions, lambda3=2.0)
    assert whole.key != found.key and relative(whole.P, mean(pipe, CAPTIONS) + 2 * mean(pipe, captions)) <= 1e-6
    with pytest.raises(MaceError, match="'a red frog' has none of the names"):
        prior(pipe, CAPTIONS, domain=captions, names=["cat"])


def test_a_kept_name_that_holds_an_erased_one_is_kept():
    bear, texts = (
        Concept("bear", "sea", synonyms=("cub",)),
        ["a teddy bear", "a bear and a teddy bear", "a cub", "bears"],
    )
    assert names(texts, [bear]) == [True] * 4
    assert names(texts, [bear], ["teddy bear"]) == [False, True, True, True]
    assert names(texts, [bear], ["bear"]) == [True] * 4  # to be erased: never held
    assert names(["a polar bear"], [Concept("polar bear", "sea")], ["bear"]) == [True]
    notes = check_kept([bear], ["teddy bear", "Cub", "cat"])
    assert len(notes) == 2 and "'teddy bear'" in notes[0] and "synonym" in notes[1]
    with pytest.raises(MaceError, match="bear: to be erased and to be kept"):
        check_kept([bear], ["Bear "])


def test_what_is_left_out_is_read_once_more_by_group_and_kept(pipe, monkeypatch):
    groups = [["ship"], ["ship"], ["yard"], ["car"], ["frog", "noto"], ["cat"], ["sky"]]
    pairs = list(zip(CAPTIONS, groups, strict=True))
    first = prior(pipe, pairs)
    calls = []
    monkeypatch.setattr(module, "read", lambda *args: calls.append(args[1]) or read(*args))
    again = prior(pipe, [(text, labels[0] if len(labels) == 1 else labels) for text, labels in pairs])
    assert not calls and torch.equal(again.P, first.P) and again.key == first.key
    without = prior(pipe, pairs, exclude=[SHIP, Concept("noto", "art", "style")])
    assert calls == [["the frog"], ["a ship", "two Ships at sea"]] and without.key != first.key
    assert relative(without.P, mean(pipe, ["a shipyard", "a red car", "a kitty", "a blue sky"])) <= 1e-6
    ship = prior(pipe, pairs, exclude=[SHIP])  # the ship's are known, with or without the frog's
    (cache_folder() / "prior").rename(cache_folder() / "before")
    assert len(calls) == 2 and torch.equal(prior(pipe, pairs, exclude=[SHIP]).P, ship.P)
    calls.clear()
    some = prior(pipe, CAPTIONS, exclude=[SHIP])  # no groups: what leaves is read again, and that once
    assert calls == []
    assert torch.equal(prior(pipe, CAPTIONS, exclude=[SHIP]).P, some.P) and torch.equal(some.P, ship.P)


def test_statistics_of_shipped_captions_may_be_shipped(pipe, tmp_path, monkeypatch):
    first = prior(pipe, CAPTIONS)
    (cache_folder() / "prior").rename(tmp_path / "prior")
    monkeypatch.setattr(module, "read", None)
    with pytest.raises(TypeError):
        prior(pipe, CAPTIONS)
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path))
    assert torch.equal(prior(pipe, CAPTIONS).P, first.P)


def test_a_broken_cache_is_made_anew_and_other_encoders_have_their_own(pipe, caplog):
    first = prior(pipe, CAPTIONS)
    (file,) = (cache_folder() / "prior").iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(prior(pipe, CAPTIONS).P, first.P) and "made anew" in caplog.text
    other = tiny_pipeline()
    with torch.no_grad():
        next(other.text_encoder.parameters()).mul_(1.5)
    assert prior(other, CAPTIONS).key != first.key and len(list((cache_folder() / "prior").iterdir())) == 2


def test_caption_files(tmp_path, pipe):
    files = {
        "a.txt": "a ship\n\nthe sky\n",
        "b.csv": "id,caption\n1,a ship\n2,the sky\n",
        "c.json": json.dumps({"images": [], "annotations": [{"caption": "a ship "}, {"caption": "the sky"}]}),
        "d.json": json.dumps(["a ship", "the sky"]),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert read_captions(tmp_path / name) == ["a ship", "the sky"], name
    (tmp_path / "e.json").write_text('{"annotations": 3}')
    (tmp_path / "f.csv").write_text("id\n1\n")
    for name, message in (
        ("e.json", "holds no captions"),
        ("f.csv", "must have caption"),
        ("g.txt", "cannot be read"),
    ):
        with pytest.raises(MaceError, match=message):
            read_captions(tmp_path / name)
    assert prior(pipe, str(tmp_path / "a.txt")).count == 2


def test_refusals_and_long_captions(pipe, caplog):
    with pytest.raises(MaceError, match="No caption is left"):
        prior(pipe, ["a ship"], exclude=[SHIP])
    with pytest.raises(MaceError, match="λ3"):
        prior(pipe, CAPTIONS, lambda3=-1.0)
    assert prior(pipe, ["a car", "b " * 90]).count == 1 and "1 captions are longer" in caplog.text


def test_built_in_captions(pipe, caplog):
    captions = captions_for(pipe)
    assert len(set(captions)) == len(captions) > 100 and "COCO" in caplog.text
    assert prior(pipe, captions).count == len(captions)


def test_the_mini_world_s_captions_say_what_they_are_about():
    captions = captions_for(tiny_pipeline("sd", width=384, channels=8))
    about = names(["\n".join(labels) for _, labels in captions], [SHIP])
    assert len(captions) > 1000 and 0 < sum(about) < len(captions) / 10


def test_those_of_the_mini_world_s_captions_are_shipped(monkeypatch):
    pipe = load_pipeline("mini-sd", device="cpu")
    monkeypatch.setattr(module, "read", None)
    assert prior(pipe, captions_for(pipe)).count > 1000
