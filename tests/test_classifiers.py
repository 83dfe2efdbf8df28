"""Classifiers as plug-ins, and the paper's way of counting."""

import importlib.util
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import CLASSES, EXACT, ByPixel, erasure
from tiny_data import tiny_clip, tiny_judge
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from macelib import Concept, MaceError, evaluate
from macelib.evaluate import NudeNet, classifiers, load_classifier, metrics, plugged
from macelib.evaluate.classifiers import CLIP_COUNTED, Classifier
from macelib.models.families import CLIP_OF_PAPER
from macelib.models.tiny import tiny_pipeline

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"  # public domain, US Navy
LABELS = ["Brad_Pitt", "Amy Adams", "tabby, tabby cat"]


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(a) for a in np.random.default_rng(0).integers(0, 255, (5, 40, 48, 3), np.uint8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random image classifier of transformers, as people save one."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("faces")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **shape, **names)).save_pretrained(place)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)
    return place


def test_an_image_classifier_of_transformers(folder, pictures):
    found = load_classifier(folder)
    assert isinstance(found, Classifier) and found.concepts == LABELS
    model, processor = ViTForImageClassification.from_pretrained(folder), ViTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(pictures, return_tensors="pt")).logits  # the stock call
    assert found.top1(pictures) == [LABELS[i] for i in logits.argmax(1)]
    some = ["amy adams", "brad pitt"]  # in other spellings than the labels
    assert found.top1(pictures, some) == [some[i] for i in logits[:, [1, 0]].argmax(1)]
    assert torch.allclose(found.probabilities(pictures, some), logits[:, [1, 0]].softmax(1), atol=1e-5)
    found.check(["Tabby Cat", "tabby"])
    with pytest.raises(MaceError, match="knows no 'Amy Adam'; near it: amy adams"):
        found.top1(pictures, ["Amy Adam"])


def test_what_ships_and_what_is_not_there(folder, tmp_path):
    model, processor = tiny_clip()
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    assert isinstance(load_classifier(tmp_path / "clip"), evaluate.ClipClassifier)
    tiny_judge(["concept:ship", "style:noto"]).save_pretrained(tmp_path / "judge")
    assert isinstance(load_classifier(tmp_path / "judge"), evaluate.Judge)
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", "nowhere", "./no/where/at/all"):
        with pytest.raises(MaceError, match="No classifier can be loaded"):
            load_classifier(source)


def test_a_function_and_an_object_of_the_user_s(pictures, tmp_path, monkeypatch):
    class Mine:
        def top1(self, pictures, among):
            return [among[0]] * len(pictures)

    for mine in (Mine(), lambda pictures, among: [among[0]] * len(pictures)):
        found = plugged(mine)
        assert found.top1(pictures, ["a", "b"]) == ["a"] * 5 and found.name and found.check(["x"]) is None
    assert plugged(found) is found
    (tmp_path / "mine.py").write_text("def look(pictures, among):\n    return [None for _ in pictures]\n")
    monkeypatch.chdir(tmp_path)
    for source in ("mine:look", "mine.py:look"):
        assert plugged(source).top1(pictures, ["a"]) == [None] * 5
    with pytest.raises(MaceError, match="cannot be imported"):
        plugged("mine:nothing")
    for text in ("def look(", "1 / 0", "raise RuntimeError('no GPU')"):
        (tmp_path / "broken.py").write_text(text)
        with pytest.raises(MaceError, match=r"imported: its module raises (Syntax|ZeroDivision|Runtime)Error"):
            plugged("broken.py:look")
    with pytest.raises(MaceError, match="gave 1 names for 5 pictures"):
        plugged(lambda pictures, among: ["a"]).top1(pictures)
    with pytest.raises(MaceError, match="gave 3 for a picture"):
        plugged(lambda pictures, among: [3] * len(pictures)).top1(pictures)
    with pytest.raises(MaceError, match="is no classifier"):
        plugged(3)


# --- the paper's way of counting


def test_the_paper_s_clip_counts_where_clip_judges(monkeypatch):
    asked = []
    monkeypatch.setattr(classifiers, "load_classifier", asked.append)
    other, mini = tiny_pipeline("sd"), tiny_pipeline("sd", width=384, channels=8)
    evaluate.classifier_for(other, counting="paper"), evaluate.classifier_for(other)
    evaluate.classifier_for(mini, counting="paper")
    assert asked == [CLIP_COUNTED, CLIP_OF_PAPER, "mini-judge"] and "patch32" in CLIP_COUNTED


@pytest.mark.slow
def test_objects_by_mean_probability():
    pipe, clip = tiny_pipeline("sd"), evaluate.ClipClassifier(*tiny_clip())
    gone = erasure(pipe, Concept("ship", "sea", synonyms=("vessel",)))
    options = {"classifier": clip, "classes": CLASSES, "images": 3, **EXACT}
    theirs = evaluate.objects(pipe, gone, counting="paper", **options)
    assert theirs.settings["counting"] == "paper" and theirs.settings["among"] == "classes"
    part = theirs.images[(theirs.images.model == "erased") & (theirs.images.role == "erased")]
    gone.apply(pipe)
    drawn = evaluate.pictures.generate(pipe, "a photo of the ship", range(3), steps=1, batch=1)
    model, processor = clip.model, clip.processor
    texts = [f"a photo of the {name}" for name in CLASSES]
    with torch.no_grad():
        stock = model(**processor(text=texts, images=drawn, return_tensors="pt", padding=True)).logits_per_image
    probability = stock.softmax(1)[:, CLASSES.index("ship")]
    assert np.allclose(part.value, probability, atol=1e-4)
    assert theirs.value("Acc_e") == pytest.approx(100 * float(probability.mean()), abs=0.01)
    ours = evaluate.objects(pipe, gone, **options)
    assert set(ours.images.value) <= {0.0, 1.0} and not set(theirs.images.value) <= {0.0, 1.0}
    with pytest.raises(MaceError, match="gives no probabilities"):
        evaluate.objects(pipe, gone, counting="paper", **options | {"classifier": ByPixel()})
    with pytest.raises(MaceError, match="counting is 'theirs'; allowed: top1, paper"):
        evaluate.objects(pipe, gone, counting="theirs", **options)


@pytest.mark.slow
def test_pictures_without_a_face_are_left_out():
    pipe = tiny_pipeline("sd")
    gone = erasure(pipe, Concept("ship", "sea"))
    options = {"classifier": ByPixel(), "templates": ("a {}", "the {}"), "seeds": range(4), **EXACT}
    ours = evaluate.characters(pipe, gone, ["cat", "dog"], **options)
    theirs = evaluate.characters(pipe, gone, ["cat", "dog"], counting="paper", **options)
    faces = ours.images.found.notna()
    assert 0 < faces.sum() < len(faces)
    for role, metric in (("erased", "Acc_e"), ("kept", "Acc_s")):
        rows = ours.images[(ours.images.role == role) & (ours.images.model == "erased")]
        seen = rows[rows.found.notna()]
        assert ours.value(metric) == pytest.approx(100 * (rows.found == rows.name).mean())
        assert theirs.value(metric) == pytest.approx(100 * (seen.found == seen.name).mean())


def test_a_ratio_is_resampled_as_one():
    hits, faces = np.array([1.0, 0, 2, 1]), np.array([2.0, 1, 2, 2])
    value, sample = metrics.bootstrap([np.stack([hits, faces])], lambda x: x, metrics.resample(4, 500, 0))
    assert value == pytest.approx(4 / 7)
    rng = np.random.default_rng(3)
    index = rng.integers(4, size=(4000, 4))
    plain = hits[index].sum(1) / faces[index].sum(1)
    assert np.allclose(metrics.interval(sample), metrics.interval(plain), atol=0.05)


# --- NudeNet


class Detector:
    """Stands for NudeNet's: what it was shown, and two detections."""

    def __init__(self):
        self.seen = []

    def detect(self, pixels):
        self.seen.append(pixels)
        return [
            {"class": "BELLY_EXPOSED", "score": 0.7, "box": [0, 0, 1, 1]},
            {"class": "FEET_EXPOSED", "score": 0.61, "box": [0, 0, 1, 1]},
            {"class": "FEET_EXPOSED", "score": 0.59, "box": [0, 0, 1, 1]},
            {"class": "FACE_FEMALE", "score": 0.9, "box": [0, 0, 1, 1]},
        ]


def test_nudenet_s_classes_and_threshold(pictures):
    detector = Detector()
    found = NudeNet(detector, "3.4.2")
    assert found.name == "nudenet 3.4.2 at 0.6" and len(found.concepts) == 9
    counts = found.counts(pictures[:1])[0]
    assert {name: n for name, n in counts.items() if n} == {"BELLY_EXPOSED": 1, "FEET_EXPOSED": 1}
    assert (detector.seen[0][..., ::-1] == np.asarray(pictures[0])).all()  # blue first
    assert found.top1(pictures[:1]) == ["BELLY_EXPOSED"] and found.top1(pictures[:1], ["ANUS_EXPOSED"]) == [None]
    assert NudeNet(detector, "3.4.2", 0.5).counts(pictures[:1])[0]["FEET_EXPOSED"] == 2
    with pytest.raises(MaceError, match="counts no 'FACE_FEMALE'"):
        found.check(["FACE_FEMALE"])
    with pytest.raises(MaceError, match="threshold is 2"):
        NudeNet(detector, "3.4.2", 2)


def test_a_detector_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nudenet", None)
    with pytest.raises(MaceError, match=r"nudenet is needed .* pip install \"macelib\[explicit\]\""):
        load_classifier("nudenet")


@pytest.mark.skipif(not importlib.util.find_spec("nudenet"), reason="the extra explicit (nudenet) is not installed")
def test_the_real_detector_on_a_photograph():
    found, photograph = load_classifier("nudenet"), Image.open(PHOTOGRAPH)
    assert found.version == "3.4.2"
    by_file = {(d["class"], round(d["score"], 2)) for d in found.detector.detect(str(PHOTOGRAPH))}
    (seen,) = NudeNet(found.detector, found.version, 0.2).detections([photograph])
    assert {(name, round(score, 2)) for name, score in seen} == by_file
    assert [name for name, _ in found.detections([photograph])[0]] == ["FACE_FEMALE"]
    assert found.top1([photograph]) == [None] and not any(found.counts([photograph])[0].values())
    labels = {d for d in found.concepts}
    source = Path(importlib.util.find_spec("nudenet").origin).with_name("nudenet.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in source for name in labels)  # the detector knows every class that is counted
