"""Metrics by doctest and by hand; judges; protocols on tiny pipelines, whose counts a second route repeats."""

import dataclasses
import doctest
import json
import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import tiny_clip, tiny_judge

from macelib import Concept, EraseConfig, Erasure, MaceError, errors, evaluate, load_pipeline, templates
from macelib.erasure import Part
from macelib.evaluate import lists, made, metrics, pictures, protocols, record, studies, work
from macelib.files import data_folder
from macelib.method.refine import compress
from macelib.models import about
from macelib.models.families import MINI, family_of
from macelib.models.mini import catalogue, split
from macelib.models.pipelines import kv_weights, model_hash
from macelib.models.sample import generate
from macelib.models.tiny import WIDTH, tiny_pipeline
from macelib.presets import values

CLASSES = ["ship", "frog", "horse", "cat"]
FAST = {"steps": 1, "batch": 32}
EXACT = {"steps": 1, "batch": 1}  # batches of other sizes round otherwise


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def ship(pipe):
    return erasure(pipe, Concept("ship", "sea", synonyms=("vessel", "boat")))


def erasure(pipe, *concepts: Concept) -> Erasure:
    """A strong random change of the weights under these names."""
    layers = {name: w.shape[0] for name, w in kv_weights(pipe.unet).items()}
    generator = torch.Generator().manual_seed(len(concepts))
    e = torch.randn(3, WIDTH, generator=generator, dtype=torch.float64)
    statistics = compress(-5 * e.T @ e, e.T @ e, e.T @ e)
    B, D = torch.zeros(sum(layers.values()), 1), torch.zeros(len(layers), 1, WIDTH)
    parts = tuple(Part(concept, statistics, B, D) for concept in concepts)
    return Erasure(parts, layers, WIDTH, model_hash(pipe), config=EraseConfig())


class ByPixel:
    """Names a picture after its mean colour."""

    name = "by pixel"

    def top1(self, images, among=None, kind="concept"):
        among = list(among or CLASSES)
        return [None if self.mean(i) % 7 == 3 else among[self.mean(i) % len(among)] for i in images]

    def mean(self, image) -> int:
        return int(np.asarray(image, dtype=np.int64).sum())

    def check(self, names, kind="concept"):
        pass


@pytest.mark.parametrize("module", [errors, metrics, templates, work])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_harmonic_mean_of_arrays_and_bad_parts():
    assert np.allclose(metrics.h_o(np.array([0.0, 1.0]), np.array([0.5, 0.5]), 0.0), [3 / 4, 0])
    with pytest.raises(MaceError, match="0 or more"):
        metrics.harmonic(-0.1, 1)


def test_an_accuracy_that_rounds_to_more_than_one_counts_as_one():
    assert metrics.h_o(1 + 2e-16 * 4, 1.0, 0.0) == 0 and metrics.h_c(np.array([1 + 1e-15]), 0.5)[0] == 0


def test_bootstrap_against_plain_resampling():
    values = np.random.default_rng(1).random((3, 40)).round()
    _, sample = metrics.bootstrap(values, metrics.h_o, metrics.resample(40, 4000, 0))
    rng = np.random.default_rng(5)
    plain = [metrics.h_o(*values[:, rng.integers(40, size=40)].mean(1)) for _ in range(4000)]
    assert np.allclose(metrics.interval(sample), metrics.interval(np.array(plain)), atol=0.02)


def test_judge():
    labels = [f"concept:{n}" for n in CLASSES] + ["style:noto", "style:pixel art"]
    judge = evaluate.Judge(tiny_judge(labels))
    images = [Image.fromarray(a) for a in np.random.default_rng(0).integers(0, 255, (5, 80, 80, 3), np.uint8)]
    with torch.no_grad():
        small = np.stack([np.asarray(i.resize((64, 64), Image.Resampling.LANCZOS)) for i in images])
        logits = judge.model(torch.tensor(small).permute(0, 3, 1, 2) / 127.5 - 1).logits  # the stock call
    assert judge.top1(images) == [CLASSES[i] for i in logits[:, :4].argmax(1)]
    assert judge.top1(images, ["cat", "ship"]) == [["cat", "ship"][i] for i in logits[:, [3, 0]].argmax(1)]
    assert judge.top1(images, kind="style") == [judge.styles[i] for i in logits[:, 4:].argmax(1)]
    with pytest.raises(MaceError, match="no concept 'shipp'; near it: ship"):
        judge.top1(images, ["shipp"])
    with pytest.raises(MaceError, match="labels of a judge"):
        evaluate.Judge(tiny_judge(["LABEL_0"]))
    with pytest.raises(MaceError, match="holds no judge"):
        evaluate.Judge.load("nowhere")


def test_clip_reads_a_name_with_one_article_or_none(monkeypatch):
    clip, read = evaluate.ClipClassifier(*tiny_clip()), []
    monkeypatch.setattr(clip, "text_vectors", lambda texts: read.extend(texts) or torch.eye(len(texts), 32))
    monkeypatch.setattr(clip, "image_vectors", lambda images: torch.eye(1, 32))
    clip.top1([None], ["ship", "the sea", "a person", "Amy Adams"])
    assert [text.removeprefix("a photo of ") for text in read] == ["the ship", "the sea", "a person", "Amy Adams"]


def test_clip():
    model, processor = tiny_clip()
    clip = evaluate.ClipClassifier(model, processor)
    images = [Image.fromarray(a) for a in np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)]
    prompts = [f"a photo of the {name}" for name in CLASSES]
    with torch.no_grad():
        stock = model(**processor(text=prompts, images=images, return_tensors="pt", padding=True))
        cosine = stock.logits_per_image / model.logit_scale.exp()
    assert clip.top1(images, CLASSES) == [CLASSES[i] for i in cosine.argmax(1)]
    assert np.allclose(clip.score(images, prompts), 100 * cosine.diagonal().clamp(min=0), atol=1e-3)
    with pytest.raises(MaceError, match="among which"):
        clip.top1(images)
    with pytest.raises(MaceError, match="reads 77"):
        clip.score(images[:1], ["ship " * 100])
    with pytest.raises(MaceError, match="No CLIP can be loaded"):
        evaluate.ClipClassifier.load("./nowhere", local_files_only=True)


@pytest.mark.slow
def test_objects_counts_what_it_draws(pipe, ship):
    judge, done = ByPixel(), []
    before = {name: w.clone() for name, w in kv_weights(pipe.unet).items()}
    result = evaluate.objects(
        pipe, ship, classifier=judge, classes=CLASSES[:3], images=3, seed=7,
        progress=lambda *event: done.append(event[1:3]), **EXACT,
    )  # fmt: skip
    assert all(torch.equal(w, before[name]) for name, w in kv_weights(pipe.unet).items())
    assert done[-1] == (30, 30) and len(result.images) == 36  # 2 states x (3 classes + 2 synonyms + instead) x 3 seeds
    seeds, expected = range(7, 10), {}
    for state in ("original", "erased"):
        if state == "erased":
            ship.apply(pipe)

        def accuracy(word, name):
            names = judge.top1(generate(pipe, f"a photo of the {word}", seeds, **EXACT), CLASSES[:3])
            return np.mean([n == name for n in names])

        acc_s = np.mean([accuracy(name, name) for name in CLASSES[1:3]])
        acc_g = np.mean([accuracy("vessel", "ship"), accuracy("boat", "ship")])
        instead = judge.top1(generate(pipe, "a photo of the ship", seeds, **EXACT), [*CLASSES[:3], "sea"])
        found = [accuracy("ship", "ship"), acc_s, acc_g]
        expected[state] = [*found, np.mean([name == "sea" for name in instead]), metrics.h_o(*found)]
    ship.remove(pipe)
    table = result.table()
    assert list(table) == ["Acc_e", "Acc_s", "Acc_g", "Acc_a", "H_o", "H_o low", "H_o high"]
    for state, numbers in expected.items():
        assert np.allclose(table.loc[("ship", state)].iloc[:5], 100 * np.array(numbers))
    assert expected["erased"] != expected["original"]
    assert (table["H_o low"] <= table["H_o"] + 1e-9).all() and (table["H_o"] <= table["H_o high"] + 1e-9).all()
    assert result.value("Acc_s") == table.loc[("ship", "erased"), "Acc_s"]
    assert result.to_dict()["ship"]["original"]["H_o"]["value"] == table.loc[("ship", "original"), "H_o"]
    (e, s, g, a, _), (e0, s0, g0, *_) = ([round(100 * n) for n in expected[m]] for m in ("erased", "original"))
    assert result.verdict() == (
        f"ship: seen in {e} % of its pictures (before: {e0} %), under other names in {g} % ({g0} %); "
        f"what is meant to stand in its place in {a} %; everything else in {s} % ({s0} %)."
    )
    assert set(result.groups.group) == {0, 1, 2} and result.settings["seeds"] == [7, 8, 9]
    about = result.settings
    assert {"config", "versions", "model", "judge", "scheduler", "guidance", "precision"} <= set(about)
    assert about["scheduler"]["class"] == type(pipe.scheduler).__name__ and about["precision"] == "float32"
    assert (
        about["config"][0]["concepts"][0]["name"] == "ship" and about["config"][0]["settings"] == ship.config.to_dict()
    )
    assert "H_o" in str(result) and "<table" in result._repr_html_()
    assert "Settings: settings tuned on mini-SD." in str(result) and "tuned on mini-SD" in result._repr_html_()


@pytest.mark.slow
def test_among_all_that_a_judge_knows(pipe, ship):
    judge = evaluate.Judge(tiny_judge([f"concept:{n}" for n in [*CLASSES, "grass", "sea"]] + ["style:noto"]))
    options = {"classifier": judge, "classes": CLASSES, "images": 3, **FAST}
    found = {among: evaluate.objects(pipe, ship, among=among, **options) for among in ("known", "classes")}
    assert {k: v.settings["among"] for k, v in found.items()} == {"known": "known", "classes": "classes"}
    looked = "model == 'original' and role != 'shown'"
    prompts, seeds = zip(*found["known"].images.query(looked)[["prompt", "seed"]].values, strict=True)
    images = generate(pipe, prompts, seeds, **FAST)
    for among, names in (("known", judge.concepts), ("classes", CLASSES)):
        assert list(found[among].images.query(looked).found) == judge.top1(images, names)
    blind = ByPixel()  # has no list of its own
    assert evaluate.objects(pipe, ship, **options | {"classifier": blind}).settings["among"] == "classes"
    with pytest.raises(MaceError, match="among is 'all'"):
        evaluate.objects(pipe, ship, among="all", **options)


def test_several_erasures_share_the_original(pipe, ship):
    both = erasure(pipe, ship.concepts[0], Concept("frog", "grass", synonyms=("amphibian",)))
    result = evaluate.objects(pipe, [ship, both], classifier=ByPixel(), classes=CLASSES, images=3, **FAST)
    table = result.table()
    assert list(table.index.get_level_values(0)[::2]) == ["ship", "ship + frog", "mean of 2"]
    one, two, mean = (table.loc[(label, "erased"), "H_o"] for label in ("ship", "ship + frog", "mean of 2"))
    assert mean == pytest.approx((one + two) / 2)
    original = result.images.query("model == 'original' and role != 'shown'")
    assert original.groupby(["prompt", "seed"]).found.nunique(dropna=False).max() == 1
    kept = result.concepts.query("erased == 'ship + frog' and model == 'erased' and role == 'kept'")
    assert list(kept.name) == ["horse", "cat"]


@pytest.mark.slow
def test_pictures_are_kept_and_read_again(pipe, ship, tmp_path, monkeypatch):
    options = {"classifier": ByPixel(), "classes": CLASSES, "images": 3, "folder": tmp_path, **EXACT}
    first = evaluate.objects(pipe, ship, **options)
    places = sorted(p for p in tmp_path.iterdir() if p.is_dir())
    assert [p.name.split("-")[0] for p in places] == ["erased", "original"]
    manifest = json.loads((places[1] / "manifest.json").read_text())
    assert {"model_name", "precision", "scheduler", "versions"} <= set(manifest["made"])
    assert len(manifest["images"]) == 18 and manifest["model"] == model_hash(pipe) and manifest["steps"] == 1
    assert (tmp_path / "metrics.csv").is_file() and (tmp_path / "settings.json").is_file()
    lost, broken = (places[0] / entry["file"] for entry in manifest["images"][:2])
    lost.unlink()
    broken.write_bytes(b"no picture")
    drawn = []

    def counted(pipe, prompts, *args, **kw):
        drawn.extend(prompts)
        return generate(pipe, prompts, *args, **kw)

    monkeypatch.setattr(pictures, "generate", counted)
    again = evaluate.objects(pipe, ship, **options)
    assert len(drawn) == 2 and again.images.equals(first.images)


def test_autocast_draws_nearly_the_same(pipe):
    jobs = [("a photo of the ship", seed) for seed in range(2)]
    drawn = {}
    for autocast in (None, "bf16"):
        drawing = pictures.Drawing(steps=1, autocast=autocast)
        assert drawing.about(pipe)["autocast"] == autocast
        drawn[autocast] = np.stack(
            [np.asarray(i, dtype=float) for _, some in drawing.pictures(pipe, jobs) for i in some]
        )
    distance = np.abs(drawn[None] - drawn["bf16"]).mean()
    assert 0 < distance < 0.2 * np.abs(drawn[None][0] - drawn[None][1]).mean()
    with pytest.raises(MaceError, match="autocast is 'int8'"):
        pictures.Drawing(autocast="int8")


def test_weights_are_hashed_once_however_many_batches_there_are(pipe, tmp_path, monkeypatch):
    hashed = []
    for module in (pictures, about):
        own = module.hash_tensors
        monkeypatch.setattr(module, "hash_tensors", lambda tensors, own=own: hashed.append(1) or own(tensors))
    jobs = [("a photo of the ship", seed) for seed in range(3)]
    assert len([*pictures.Drawing(steps=1, batch=1).pictures(pipe, jobs, tmp_path)]) == 3 and len(hashed) == 1


@pytest.mark.slow
def test_two_strengths_of_one_erasure_are_two_rows(pipe, ship):
    result = evaluate.objects(pipe, [ship, ship.scaled(0.5)], classifier=ByPixel(), images=3, **FAST)
    assert list(dict.fromkeys(result.metrics.erased)) == ["ship (1)", "ship (2)", "mean of 2"]
    alone = evaluate.objects(pipe, ship.scaled(0.5), classifier=ByPixel(), images=3, **FAST)
    assert result.value("Acc_s", "ship (2)") == alone.value("Acc_s")


def test_characters(pipe, ship):
    seeds = [0, 3, 5]
    result = evaluate.characters(pipe, ship, ["frog"], classifier=ByPixel(), seeds=seeds, **FAST)
    assert list(result.table())[:4] == ["Acc_e", "Acc_s", "Acc_a", "H_c"]
    assert set(result.images.prompt[:5]) <= {t.format("ship") for t in protocols.CHARACTER_TEMPLATES}
    assert (
        len(result.images) == 2 * 3 * 5 * 3 and result.concepts.unrecognised.sum() == result.images.found.isna().sum()
    )
    erased, kept = result.value("Acc_e") / 100, result.value("Acc_s") / 100
    assert result.value("H_c") == pytest.approx(100 * metrics.h_c(erased, kept))
    with pytest.raises(MaceError, match="ship: to be erased and to be kept"):
        evaluate.characters(pipe, ship, ["ship"], classifier=ByPixel())
    assert templates.fill(protocols.PERSON_TEMPLATES[0], "Adam Driver") == "a portrait of Adam Driver"


@pytest.mark.slow
def test_styles(pipe):
    clip = evaluate.ClipClassifier(*tiny_clip())
    noto = erasure(pipe, Concept("noto", "art", kind="style"))
    result = evaluate.styles(pipe, noto, ["red"], scorer=clip, seeds=range(3), **FAST)
    rows = result.images.query("model == 'original'")
    images = generate(pipe, list(rows.prompt), list(rows.seed), steps=1)
    assert np.allclose(rows.value, clip.score(images, list(rows.prompt)), atol=0.2)
    by_role = rows.groupby("role").value.mean()
    assert result.value("H_a", model="original") == pytest.approx(by_role["kept"] - by_role["erased"])


QUICK = {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 1}}


@pytest.mark.slow
def test_studies_erase_and_measure(pipe, tmp_path, monkeypatch):
    look, settings = {"classifier": ByPixel(), **FAST}, EraseConfig.from_dict(QUICK)
    two = evaluate.objects_study(pipe, tmp_path, settings, only=["ship", "cat"], images=3, **look)
    assert list(dict.fromkeys(two.metrics.erased)) == ["cat", "ship", "mean of 2"]
    ship = Erasure.load(tmp_path / "ship.safetensors")
    assert [c.name for c in ship.concepts] == ["ship"]
    alone = evaluate.objects(pipe, ship, images=3, **look)
    for metric in ("Acc_e", "Acc_s", "Acc_g", "H_o"):
        assert two.value(metric, "ship") == alone.value(metric)
    place = record.record("objects", two, tmp_path / "kept")
    assert {p.name for p in place.iterdir()} == {"metrics.csv", "concepts.csv", "settings.json"}
    *rows, _, how = record.markdown(place).splitlines()
    assert [row.split(" | ")[:2] for row in rows[2:]] == [
        ["| cat", "erased"], ["| ship", "erased"], ["| mean of 2", "original"], ["| mean of 2", "erased"]
    ]  # fmt: skip
    assert f"| {two.value('H_o'):.1f} |" in rows[-1] and "among" in how and "at the model's own guidance" in how
    with pytest.raises(MaceError, match=r"zebra: not of the paper's ten \(airplane"):
        evaluate.objects_study(pipe, tmp_path, settings, only=["zebra"])
    for few in (partial(evaluate.objects_study, images=2), partial(evaluate.characters_study, seeds=range(2))):
        with pytest.raises(MaceError, match="2 seeds make no 3 seed groups"):
            few(pipe, tmp_path / "few", settings)
    assert not (tmp_path / "few").exists(), "something was erased before the seeds were counted"
    monkeypatch.setattr(lists, "retained", lambda _: ["Adam Driver", "Amy Adams"])
    people = evaluate.characters_study(pipe, tmp_path / "people", settings, count=1, seeds=range(3), **look)
    assert list(people.table()) == ["Acc_e", "Acc_s", "Acc_a", "H_c", "H_c low", "H_c high"]
    config = Erasure.load(tmp_path / "people" / "1-characters.safetensors").config
    assert config.defaults == "celebrity"
    kept = settings.keeping(["Adam Driver", "Amy Adams"]).prior
    assert (config.prior.domain, config.prior.names, config.prior.lambda3) == (kept.domain, kept.names, 250)
    with pytest.raises(MaceError, match="to choose settings on with a model of no known family"):
        evaluate.tuning_study(pipe, tmp_path / "tuned", settings, count=1, **look)
    monkeypatch.setattr(studies, "family_of", lambda _: MINI)
    tuned = evaluate.tuning_study(pipe, tmp_path / "tuned", settings, count=1, **look)
    names = [evaluate.tuning_lists(1)[0][0].name, *evaluate.tuning_lists(1)[1]]
    assert set(tuned.images.prompt) == {templates.fill(t, name) for t in protocols.TUNING_TEMPLATES for name in names}


@pytest.mark.slow
def test_the_ablation_erases_the_same_by_single_stages(pipe, tmp_path):
    settings, look = EraseConfig.from_dict(QUICK), {"classifier": ByPixel(), **FAST}
    result = evaluate.ablation_study(pipe, tmp_path, settings, only=["ship"], images=3, **look)
    assert list(dict.fromkeys(result.metrics.erased)) == list(studies.ABLATION)  # and no mean of them
    held = {name: Erasure.load(tmp_path / f"{studies.file_name(name)}.safetensors") for name in studies.ABLATION}
    assert [held[name].config.stages for name in studies.ABLATION] == ["1", "2", "1+2", "all", "all"]
    assert (
        held["all, without CFIS"].config.train.timesteps == "uniform" and not held["stage 1 alone"].parts[0].D.numel()
    )
    for name in ("stage 1 alone", "stages 1 and 2, added up"):
        alone = evaluate.objects(pipe, held[name], images=3, **look)
        assert result.value("H_o", name) == alone.value("H_o")
    rows = record.markdown(record.record("ablation", result, tmp_path / "kept")).splitlines()[2:-2]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| none", "original"], *([f"| {name}", "erased"] for name in studies.ABLATION)
    ]  # fmt: skip
    with pytest.raises(MaceError, match="2 seeds make no 3 seed groups"):
        evaluate.ablation_study(pipe, tmp_path, settings, seeds=range(2))


def test_what_settings_say_of_a_concept_is_enough_to_erase_it_again():
    usual = Concept("ship", "sea", companions=("cat",))
    own = Concept("frog", "grass", synonyms=("toad",), templates=("a {}",), companions=("dog",))
    erasure = SimpleNamespace(concepts=[usual, own], strengths={"ship": 1.0}, config=EraseConfig(companions=("cat",)))
    said = made._settings(erasure)["concepts"]
    assert said[0] == {"name": "ship", "anchor": "sea", "kind": "object", "strength": 1.0}
    values = {name: value for name, value in said[1].items() if name != "strength"}
    assert Concept(**values) == own


def test_a_study_s_files_have_a_name_in_any_script():
    names = [studies.file_name(label) for label in ("船", "猫", "ship " * 90, "ship " * 91, "?")]
    assert len(set(names)) == 5 and all(0 < len(name) < 100 for name in names)


def test_what_settings_are_tuned_on_is_in_no_protocol():
    erased, kept = evaluate.tuning_lists()
    names, groups = [c.name for c in erased] + kept, {e.name: e.group for e in catalogue()}
    told = values("mini", "object")["companions"]  # names to keep that the preset is told anyway
    assert len(erased) == 60 and len(kept) == 60 - len(told) and len(set(names)) == 120 - len(told)
    assert set(names) | set(told) == set(split()["erased"]) | set(split()["kept"])
    with pytest.raises(MaceError, match="on 60 concepts at most, not 61"):
        evaluate.tuning_lists(61)
    with pytest.raises(MaceError, match="103 at most are erased beside as many that are kept, not 104"):
        evaluate.character_lists(104)
    people, more = evaluate.character_lists()
    measured = {c.name for c in [*evaluate.object_list(), *people]} | set(more)
    assert not measured & set(names) and not {groups[name] for name in names} & {"character", "face"}


def test_the_readme_shows_the_recorded_studies_of_the_shipped_weights():
    places = sorted((data_folder() / "studies").glob("*/"))
    if not places:
        pytest.skip("no study is recorded yet: mace study objects --record")
    readme = (data_folder().parent / "README.md").read_text(encoding="utf-8")
    for place in places:
        settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
        assert settings["model"] == model_hash(load_pipeline("mini-sd", device="cpu")), place.name
        assert record.markdown(place) in readme, place.name


def test_a_study_without_a_place_in_the_page_comes_after_the_last_one(tmp_path, caplog):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- study objects -->\nold\n<!-- end of study objects -->\n\nz\n")
    record.show(page, "tuning-own", "| 1 |")
    record.show(page, "tuning-own", "| 2 |")
    record.show(page, "objects", "new")
    shown = [f"<!-- study {name} -->\n{text}\n<!-- end of study {name} -->\n"
             for name, text in (("objects", "new"), ("tuning-own", "| 2 |"))]  # fmt: skip
    assert page.read_text() == "a\n" + "\n".join(shown) + "\nz\n"
    page.write_text("a\n")
    record.show(page, "objects", "new")
    assert page.read_text() == "a\n" and "shows no studies: the tables of objects" in caplog.text


def test_bad_input(pipe, ship, caplog):
    look = {"classifier": ByPixel(), "classes": CLASSES, **FAST}
    with pytest.raises(MaceError, match="give at least 3"):
        evaluate.objects(pipe, ship, images=2, **look)
    with pytest.raises(MaceError, match="There is no erasure"):
        evaluate.objects(pipe, ship.without("ship"), **look)
    with pytest.raises(MaceError, match="No synonyms of zeppelin"):
        evaluate.objects(pipe, erasure(pipe, Concept("zeppelin", "sky")), **look)
    with pytest.raises(MaceError, match="noto is a style"):
        evaluate.objects(pipe, erasure(pipe, Concept("noto", "art", kind="style")), **look)
    some = erasure(pipe, Concept("zeppelin", "sky"), Concept("frog", "grass"))
    with caplog.at_level(logging.WARNING):
        evaluate.objects(pipe, some, images=3, **look)
    assert "No synonyms of zeppelin" in caplog.text
    other = dataclasses.replace(ship, base="another model")
    with pytest.raises(MaceError, match="another base model"):
        evaluate.objects(pipe, other, images=3, **look)
    evaluate.objects(pipe, other, images=3, force=True, **look)


def test_lists():
    assert evaluate.with_synonyms(Concept("ship", "sea")).synonyms == ("vessel", "boat", "watercraft")
    own = Concept("ship", "sea", synonyms=("ark",))
    assert evaluate.with_synonyms(own) is own
    erased, kept = evaluate.character_lists()
    ten = {c.name: c.anchor for c in evaluate.object_list()}
    assert ten["ship"] == "the sea" and list(ten) == [
        c.name for c in evaluate.object_list(family_of(tiny_pipeline("sd")))
    ]
    assert len(erased) == len(kept) == 100 and not {c.name for c in erased} & set(kept)


def test_who_looks(monkeypatch):
    calls = []
    monkeypatch.setattr(evaluate.Judge, "load", lambda source=None: calls.append(("judge", Path(source).name)))
    monkeypatch.setattr(evaluate.ClipClassifier, "load", lambda source=None: calls.append(("clip", Path(source).name)))
    mini, other = tiny_pipeline("sd", width=384, channels=8), tiny_pipeline("sd")
    evaluate.classifier_for(mini), evaluate.classifier_for(mini, "styles"), evaluate.classifier_for(other)
    assert calls == [("judge", "mini-judge"), ("clip", "mini-clip"), ("clip", "clip-vit-large-patch14")]
