"""What is kept and read again: damaged, hostile, of other settings, or in the hands of two processes at once."""

import dataclasses
import json
import logging
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from macelib import Concept, EraseConfig, Erasure, MaceError, erase
from macelib.bench import Shapes, random_erasure
from macelib.cli.artefact import info
from macelib.config import ImagesConfig, PriorConfig, TrainOptions
from macelib.evaluate.pictures import Drawing
from macelib.files import locked, read_cached, read_tensors, save_tensors
from macelib.method import images
from macelib.method.images import read_images, training_images
from macelib.method.lora.work import Work
from macelib.method.prior import Prior
from macelib.models.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("cache")

FEW = ("a photo of the {}", "a drawing of {}")
SHIP = Concept("ship", "sea", templates=FEW)
CONFIG = EraseConfig(
    images=ImagesConfig(count=2, steps=1, masks="full", batch=1),
    train=TrainOptions(steps=2, lr=1e-2),
    prior=PriorConfig(use=False),
)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def small():
    return random_erasure(Shapes(out=(8, 4), width=16), 2)


def same(one, other):
    pairs = zip(one.parts, other.parts, strict=True)
    return all(torch.equal(a.B, b.B) and torch.equal(a.D, b.D) for a, b in pairs)


# --- tensors with a checksum


def test_tensors_come_back_and_every_change_is_noticed(tmp_path):
    path, tensors = tmp_path / "a.safetensors", {"x": torch.arange(6.0), "y": torch.ones(2, 3)}
    save_tensors(path, tensors, {"key": "k", "step": 3})
    about, again, checked = read_tensors(path)
    assert about == {"key": "k", "step": 3} and checked and all(torch.equal(again[n], tensors[n]) for n in tensors)
    whole = path.read_bytes()
    head = 8 + struct.unpack("<Q", whole[:8])[0]
    text = whole.index(b"step")
    for at in (head, len(whole) - 1, text + 1):  # first and last number, what is said about them
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(MaceError, match="is damaged"):
            read_tensors(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(MaceError, match="cut short"):
        read_tensors(path)
    save_file(tensors, path)
    assert read_tensors(path)[::2] == ({}, False)


def test_a_cache_gives_what_was_kept_for_this_key_and_nothing_else(tmp_path, caplog):
    path = tmp_path / "a.safetensors"
    assert read_cached(path, "one") is None and not caplog.text
    save_tensors(path, {"x": torch.ones(2)}, {"key": "one"})
    assert torch.equal(read_cached(path, "one")["x"], torch.ones(2))
    assert read_cached(path, "two") is None and "of something else" in caplog.text  # a file that was exchanged
    save_file({"x": torch.ones(2)}, path)
    assert read_cached(path, "one") is None


# --- erasure files


def damaged(path, change, tensors=None):
    """The file again, with a checksum that is right: as somebody would make it who wants it to be read."""
    about, whole, _ = read_tensors(path)
    change(about)
    save_tensors(path, whole | (tensors or {}), about)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(width=20_000),
        lambda a: a.update(width=True),
        lambda a: a.update(layers=[1]),
        lambda a: a.update(layers={"x": 10**9}),
        lambda a: a.update(layers={}),
        lambda a: a.update(versions=3),
        lambda a: a.update(base=None),
        lambda a: a.update(truncation=float("nan")),
        lambda a: a.update(config={"seed": float("inf")}),
        lambda a: a.update(parts={"a": 1}),
        lambda a: a.update(parts=a["parts"][:1] * 2),
        lambda a: a["parts"][0].update(concept=[1]),
        lambda a: a["parts"][0]["concept"].update(name="\x1b[2Jship"),
        lambda a: a["parts"][0]["concept"].update(extra=1),
        lambda a: a["parts"][0].update(strength=None),
        lambda a: a["parts"][0].update(strength=float("nan")),
        lambda a: a["parts"][0].update(strength=2.5),
        lambda a: a["parts"][0].update(weight="x"),
        lambda a: a["parts"][0].update(weight=float("inf")),
        lambda a: a["parts"][0].pop("lost"),
    ],
)
def test_headers_that_are_nonsense_are_refused(small, tmp_path, change):
    damaged(path := small.save(tmp_path / "a.safetensors"), change)
    with pytest.raises(MaceError, match=r"is damaged|settings in .* cannot be read"):
        Erasure.load(path)


@pytest.mark.parametrize(
    "name, make",
    [
        ("0.B", lambda B: B.T.contiguous()),
        ("0.B", lambda B: B * float("nan")),
        ("0.B", lambda B: B.int()),
        ("0.D", lambda D: D.flatten()),
        ("0.Q", lambda Q: torch.zeros(0, 10**6)),
        ("0.Gq", lambda G: G[:-1].clone()),
        ("P", lambda P: P[:-1].clone()),
        ("P", lambda P: P * float("inf")),
    ],
)
def test_tensors_that_are_nonsense_are_refused(small, tmp_path, name, make):
    path = small.save(tmp_path / "a.safetensors")
    damaged(path, lambda about: None, {name: make(load_file(path)[name])})
    with pytest.raises(MaceError, match="is damaged"):
        Erasure.load(path)


def test_info_of_a_hostile_header_is_a_sentence(small, tmp_path, capsys):
    path = small.save(tmp_path / "a.safetensors")
    damaged(path, lambda a: a["parts"][0]["concept"].update(name="\x1b[2Jship"))
    info(path)
    assert "\x1b" not in capsys.readouterr().out
    damaged(path, lambda a: a["parts"][0].update(strength="x"))
    with pytest.raises(MaceError, match="is damaged"):
        info(path)


def test_a_file_of_an_earlier_version_is_read_with_a_note(small, tmp_path, caplog):
    path = small.save(tmp_path / "a.safetensors")
    about, tensors, _ = read_tensors(path)
    about["config"].pop("stages")
    save_file(tensors, path, metadata={"macelib": json.dumps(about)})
    assert same(Erasure.load(path), small) and "has no checksum" in caplog.text
    Erasure.load(path).save(path)
    caplog.clear()
    Erasure.load(path)
    assert "checksum" not in caplog.text


def test_an_erasure_that_replaces_another_says_so(small, tmp_path, caplog):
    path = small.save(tmp_path / "a.safetensors")
    small.save(path)
    assert not caplog.text
    small.scaled(0.5).save(path)
    assert "held another erasure or other settings" in caplog.text


# --- two settings, two processes


@pytest.mark.slow
def test_other_settings_in_the_middle_of_a_call_change_nothing(pipe, tmp_path, monkeypatch):
    """While one call draws, another with another seed runs in the same folder: each gets what it gets alone."""
    settings = {seed: dataclasses.replace(CONFIG, seed=seed) for seed in (0, 1)}
    alone = {seed: erase(pipe, [SHIP], config) for seed, config in settings.items()}
    draw, found = images.generate, {}

    def between(*args, **kw):
        if 1 not in found:
            found[1] = None
            found[1] = erase(tiny_pipeline("sd"), [SHIP], settings[1], folder=tmp_path)
        return draw(*args, **kw)

    monkeypatch.setattr(images, "generate", between)
    found[0] = erase(pipe, [SHIP], settings[0], folder=tmp_path)
    assert all(same(found[seed], alone[seed]) for seed in (0, 1)) and not same(*alone.values())
    assert all(same(erase(pipe, [SHIP], settings[seed], folder=tmp_path), alone[seed]) for seed in (0, 1))


def test_every_way_to_draw_has_a_folder_of_its_own(tmp_path):
    layers, R = ("x",), torch.eye(2)
    work = Work([SHIP], CONFIG.training("object"), CONFIG, layers, R, None, "base", "drawn", tmp_path, "key")
    ways = [
        work,
        dataclasses.replace(work, base="other"),
        dataclasses.replace(work, drawn="other"),
        *(
            dataclasses.replace(work, config=dataclasses.replace(CONFIG, **change))
            for change in (
                {"seed": 1},
                {"images": ImagesConfig(count=3, steps=1, masks="full")},
                {"images": ImagesConfig(count=2, steps=2, masks="full")},
                {"images": ImagesConfig(count=2, steps=1, guidance=3.0)},
                {"images": ImagesConfig(count=2, steps=1, autocast="bf16")},
                {"images": ImagesConfig(count=2, steps=1, masks="drawing")},
            )
        ),
    ]
    folders = [way.pictures(SHIP) for way in ways] + [work.pictures(Concept("Ship", "sea"))]
    assert len(set(folders)) == len(folders)
    assert len(work.pictures(Concept("ship " * 99, "sea")).name) < 100
    assert work.pictures(Concept("ship", "grass")) == work.pictures(SHIP)  # the same pictures


def test_a_lock_is_waited_for_or_said(tmp_path):
    with locked(tmp_path / "a" / ".lock", "the work") as waited:
        assert not waited
        second = locked(tmp_path / "a" / ".lock", "the work", wait=False)
        with pytest.raises(MaceError, match="Another process is at work on the work"), second:
            pass
    with locked(tmp_path / "a" / ".lock", "the work", wait=False):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(MaceError, match="cannot be locked"), locked(tmp_path / "file" / ".lock", "x"):
        pass


def test_loras_of_another_prior_under_the_same_name_are_not_taken(pipe, tmp_path):
    eye = torch.eye(32, dtype=torch.float64)
    one, two = (Prior(scale * eye, "mine", 1) for scale in (1, 100))
    config = dataclasses.replace(CONFIG, prior=PriorConfig())
    first, second = (erase(pipe, [SHIP], config, prior=p, folder=tmp_path) for p in (one, two))
    assert not same(first, second) and same(second, erase(pipe, [SHIP], config, prior=two))
    total = first + dataclasses.replace(
        second, parts=tuple(dataclasses.replace(p, concept=Concept("frog", "grass")) for p in second.parts)
    )
    assert torch.allclose(total.P, 50.5 * eye)  # the mean of both, not the first


# --- pictures


def test_a_picture_that_was_exchanged_is_drawn_again(pipe, tmp_path, caplog):
    training_images(pipe, SHIP, 2, tmp_path, steps=1)
    files = [tmp_path / f"000{i}.png" for i in (0, 1)]
    first = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(MaceError, match="missing or was changed"):
        read_images(tmp_path)
    training_images(pipe, SHIP, 2, tmp_path, steps=1)
    assert files[0].read_bytes() == first and "drawn again" in caplog.text
    text = (tmp_path / "manifest.json").read_text().replace("0001.png", "../0001.png")
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(MaceError, match=r"no manifest\.json"):
        read_images(tmp_path)


def near(some, others):
    """The same pictures, but for a level where one is drawn alone and not in a batch."""
    pairs = zip(some, others, strict=True)
    return all(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1 for a, b in pairs)


def test_an_evaluation_reads_its_own_pictures_alone(pipe, tmp_path):
    drawing, jobs = Drawing(steps=1), [("a ship", 0), ("a cat", 1)]
    ((_, drawn),) = drawing.pictures(pipe, jobs, tmp_path)
    place = next(tmp_path.iterdir())
    manifest = json.loads((place / "manifest.json").read_text())
    one, two = (place / entry["file"] for entry in manifest["images"])
    one.write_bytes(two.read_bytes())  # exchanged
    ((_, again),) = drawing.pictures(pipe, jobs, tmp_path)
    assert near(again, drawn) and not near(*([p] for p in drawn))
    for wrong in ({**manifest, "steps": 9}, [], {**manifest, "images": ["a"]}):
        (place / "manifest.json").write_text(json.dumps(wrong))
        ((_, again),) = drawing.pictures(pipe, jobs, tmp_path)
        assert near(again, drawn)


# --- harm that can be foreseen


@pytest.mark.parametrize(
    "change, said",
    [
        ({"prior": {"use": False}}, "prior.use is off"),
        ({"refine": {"lambda1": 0}, "fuse": {"lambda2": 0}}, "refine.lambda1 and fuse.lambda2 is off"),
        ({"fuse": {"lambda2": 0}}, "fuse.lambda2 is off"),
        ({"fuse": {"lambda2": 0}, "stages": "1"}, None),
        ({"stages": "2"}, None),
        ({}, None),
    ],
)
def test_what_runs_without_a_prior_says_so(pipe, tmp_path, caplog, change, said):
    (tmp_path / "captions.txt").write_text("\n".join(f"a photo of {i} cats" for i in range(120)))
    values = CONFIG.to_dict() | {"prior": {"captions": str(tmp_path / "captions.txt")}}
    config = EraseConfig.from_dict(
        {**values, **{k: v if isinstance(v, str) else {**values[k], **v} for k, v in change.items()}}
    )
    with caplog.at_level(logging.WARNING):
        erase(pipe, [SHIP], config)
    assert ("Without a prior" in caplog.text) == bool(said) and (said or "") in caplog.text


def test_a_prior_of_few_captions_is_said(pipe, tmp_path, caplog):
    (tmp_path / "captions.txt").write_text("a cat\na dog")
    config = dataclasses.replace(CONFIG, prior=PriorConfig(captions=str(tmp_path / "captions.txt")), stages="1")
    erase(pipe, [SHIP], config)
    assert "made of 2 captions" in caplog.text
