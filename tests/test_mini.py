"""What the library reads of the mini world is what its factory makes."""

import json

import pytest
import torch
from factory import shipped
from factory.catalogue import CIFAR_10, catalogue
from factory.judge import labels

from macelib.errors import MaceError
from macelib.evaluate.judge import Judge
from macelib.models import mini


@pytest.mark.parametrize(("file", "make"), [("world.json", shipped.world_index), ("split.json", shipped.split)])
def test_shipped_facts_are_what_the_factory_writes(file, make):
    assert json.loads((mini.world_folder() / file).read_text(encoding="utf-8")) == make()


def test_shipped_renderings_are_what_the_factory_draws():
    from PIL import Image, ImageChops

    kept = Image.open(mini.world_folder() / "renderings.png")
    assert kept.mode == "RGBA" and ImageChops.difference(kept, shipped.rendering_sheet()).getbbox() is None


def test_a_rendering_and_its_mask():
    names, pictures, alpha = mini.renderings()
    assert pictures.shape == (len(names), 4, 2, 3, 64, 64) and alpha.shape == (len(names), 4, 2, 1, 64, 64)
    plain, scenic = pictures[names.index("ship"), 0]
    covered = alpha[names.index("ship"), 0] == 1
    assert 0.05 < covered.float().mean() < 0.9
    edge = plain[:, ~covered[0, 0] & (alpha[names.index("ship"), 0, 0, 0] == 0)]
    assert edge.std(1).max() < 0.1 < scenic.std(), "the plain one is not before a plain colour"


def test_the_catalogue_is_the_factory_s():
    assert [e.name for e in mini.catalogue()] == [e.name for e in catalogue()]
    assert [e.drawn for e in mini.catalogue()] == [bool(e.code_point) for e in catalogue()]
    judge = Judge.load()
    assert [f"concept:{c}" for c in judge.concepts] + [f"style:{s}" for s in judge.styles] == labels()


def test_names_to_tune_on_are_no_protocol_s():
    erased, kept = (set(mini.split()[key]) for key in ("erased", "kept"))
    assert len(erased) == len(kept) == 60 and not erased & kept
    for name in erased | kept:
        entry = mini.find(name)
        assert entry.drawn and entry.group not in (*mini.PEOPLE, "unsafe") and name not in CIFAR_10


def test_general_captions_say_what_they_are_about():
    texts = mini.captions()
    assert len(texts) == 6000
    hit = [text for text, about in texts if "frog" in about]
    assert len(hit) > 5 and all(any(w in t for w in ("frog", *mini.find("frog").synonyms)) for t in hit)


def test_damaged_data_is_named_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path))
    with pytest.raises(MaceError, match=r"split\.json cannot be read"):
        mini.split.__wrapped__()
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "renderings.json").write_text('{"names": ["ship"]}')
    (tmp_path / "world" / "renderings.png").write_bytes(b"no picture")
    with pytest.raises(MaceError, match="git checkout"):
        mini.renderings.__wrapped__()


def test_halves_hold_the_two_subjects():
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, :, :28], images[:, :, :, 36:] = 0.25, 0.75
    left, right = (mini.crop_half(images, side) for side in (0, 1))
    assert left.shape == (1, 3, 64, 64) and left[..., :20].mean() == 0.25 and right[..., 44:].mean() == 0.75
