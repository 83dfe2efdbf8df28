"""A concept that the model does not draw is noticed on its training pictures, and said with near names."""

import dataclasses
from types import SimpleNamespace

import pytest
from tiny_data import tiny_data

from macelib import Concept, EraseConfig, erase, load_pipeline
from macelib.evaluate import drawn
from macelib.evaluate.drawn import doubt, looker
from macelib.files import data_folder
from macelib.models.families import MINI
from macelib.models.tiny import tiny_pipeline

JUDGE = SimpleNamespace(concepts=["ship", "cat", "castle", "Amy Adams"], styles=["noto", "twemoji"])
SETTINGS = {"images": {"count": 3, "steps": 1}, "train": {"steps": 1}, "stages": "2"}


@pytest.mark.parametrize("name", ["ship", "Ship", "boat", "amy adams"])  # boat: a synonym that the world knows
def test_what_is_recognised_raises_no_doubt(name):
    shown = "Amy Adams" if "amy" in name else "ship"
    assert doubt(Concept(name, "sea"), [shown, "cat", "cat", "cat"], JUDGE) is None
    said = doubt(Concept(name, "sea"), [shown, "cat", "cat", "cat", "cat"], JUDGE)
    assert f"hardly draws concept {name!r}: its 5 training pictures show cat (4), {shown} (1)" in said


def test_an_unknown_word_is_said_with_near_names():
    said = doubt(Concept("shpi", "sea"), ["ship", "cat", "castle", "ship"], JUDGE)
    assert "knows no concept 'shpi': its 4 training pictures show ship (2), cat (1), castle (1)" in said
    assert "Is it misspelt? Near it: ship" in said
    assert "No known name is near it" in doubt(Concept("qwzx", "sea"), ["cat"], JUDGE)
    style = doubt(Concept("notto", "art", kind="style"), ["noto"], JUDGE)
    assert "knows no style 'notto'" in style and "Near it: noto" in style
    assert doubt(Concept("noto", "art", kind="style"), ["noto"], JUDGE) is None


def test_every_training_picture_is_looked_at_before_training(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        drawn, "looker", lambda pipe, concepts: lambda c, pictures: seen.append((c.name, len(pictures)))
    )
    call = tiny_pipeline("sd"), [Concept("ship", "sea"), Concept("frog", "grass")], EraseConfig.from_dict(SETTINGS)
    erase(*call, folder=tmp_path, progress=lambda stage, *_: seen.append(stage) if stage == "train" else None)
    assert seen[:3] == [("ship", 3), ("frog", 3), "train"]
    seen.clear()
    erase(*call, folder=tmp_path)
    assert not seen  # nothing is drawn again


def test_without_a_classifier_that_is_said_once(caplog):
    erase(tiny_pipeline("sd"), [Concept("ship", "sea"), Concept("frog", "grass")], EraseConfig.from_dict(SETTINGS))
    said = [r.message for r in caplog.records if "not checked" in r.message]
    assert len(said) == 1 and "'ship', 'frog' was not checked (no classifier comes with this model)" in said[0]
    caplog.clear()
    assert looker(tiny_pipeline("sd"), [Concept(f"thing {i}", "sea") for i in range(9)]) is None
    assert "and 4 more" in caplog.text


def test_stage_1_alone_says_what_was_not_checked(caplog, monkeypatch):
    settings = EraseConfig.from_dict({**SETTINGS, "stages": "1"})
    erase(tiny_pipeline("sd"), [Concept("ship", "sea")], settings)
    assert "'ship' was not checked (stage 1 alone has no training pictures): draw some." in caplog.text
    caplog.clear()
    monkeypatch.setattr(drawn, "family_of", lambda _: MINI)
    drawn.unlooked(None, [Concept("Ship", "sea"), Concept("qwzx", "sea")])
    assert [r.message.split(" was ")[0] for r in caplog.records] == ["Whether the model draws 'qwzx'"]


def test_a_world_with_another_judge_is_not_looked_at_by_ours(monkeypatch, caplog):
    other = dataclasses.replace(MINI, name="a world of one's own", judge="owner/classifier")
    monkeypatch.setattr(drawn, "family_of", lambda pipe: other)
    assert looker(tiny_pipeline("sd"), [Concept("ship", "sea")]) is None and "was not checked" in caplog.text


def test_the_mini_world_is_looked_at_by_its_judge(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MACELIB_DATA", str(tiny_data(tmp_path)))
    pipe = load_pipeline("mini-sd", device="cpu")
    erase(pipe, [Concept("qwzx", "the sea")], EraseConfig.from_dict(SETTINGS))
    assert "knows no concept 'qwzx': its 3 training pictures show" in caplog.text
    (data_folder() / "mini-judge" / "config.json").unlink()
    assert looker(pipe, [Concept("ship", "sea")]) is None and "holds no judge" in caplog.text
