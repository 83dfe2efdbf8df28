"""The main job on tiny pipelines: end to end, resumed, the pipeline left alone, bad input as sentences."""

import dataclasses
import errno
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import macelib
from macelib import Concept, EraseConfig, Erasure, MaceError, erase, job, load_pipeline
from macelib.batch import make_engine
from macelib.config import ImagesConfig, PriorConfig, TrainOptions
from macelib.files import data_folder
from macelib.method import images
from macelib.method.lora import work
from macelib.method.prior import Prior
from macelib.method.refine import concept_sums, solve_refinement
from macelib.models.pipelines import kv_weights
from macelib.models.text import embedding_size
from macelib.models.tiny import tiny_pipeline
from macelib.show import progress

pytestmark = pytest.mark.usefixtures("cache")

FEW = ("a photo of the {}", "a drawing of {}", "{} at sunset")
CONCEPTS = [
    Concept("ship", "sea", templates=FEW),
    Concept("noto", "art", kind="style", templates=FEW),
    Concept("frog", "grass", templates=FEW),
]
CAPTIONS = ["a red dog", "a big cat on grass", "a photo of the ship"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture
def config(tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    return EraseConfig(
        images=ImagesConfig(count=1, steps=1, masks="full"),
        train=TrainOptions(steps=2, lr=1e-2, concepts_per_pass=1),
        prior=PriorConfig(captions=str(tmp_path / "captions.txt"), domain=("a green man",)),
    )


def weights(pipe):
    return {name: w.detach().clone() for name, w in pipe.unet.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def equal(one, other):
    """The same LoRAs, to rounding, which Adam's first steps enlarge: 1e-5, as for N concepts in one pass."""
    pairs = list(zip(one.parts, other.parts, strict=True))
    return all(
        torch.allclose(a.B, b.B, rtol=0, atol=1e-5) and torch.allclose(a.D, b.D, rtol=0, atol=1e-5) for a, b in pairs
    )


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
def test_end_to_end_leaves_the_pipeline_as_it_was(kind, config, tmp_path):
    pipe, calls = tiny_pipeline(kind), []
    before, processors = weights(pipe), {n: type(p) for n, p in pipe.unet.attn_processors.items()}
    erasure = erase(pipe, CONCEPTS, config, progress=lambda *a: calls.append(a), folder=tmp_path / "run")
    assert same(weights(pipe), before)
    assert {n: type(p) for n, p in pipe.unet.attn_processors.items()} == processors
    assert [replace(concept, companions=()) for concept in erasure.concepts] == CONCEPTS
    assert all(p.B.abs().max() > 0 for p in erasure.parts)
    for stage, total in [("captions", 3), ("statistics", 3), ("images", 3), ("train", 6)]:
        done = [d for s, d, t, _ in calls if s == stage and t == total]
        assert done == sorted(done) and done[-1] == total
    erasure.apply(pipe)
    assert not same(weights(pipe), before)
    erasure.remove(pipe)
    assert same(weights(pipe), before)
    again = Erasure.load(erasure.save(tmp_path / "e.safetensors"))
    assert equal(again, erasure) and again.versions["torch"] == torch.__version__


@pytest.mark.slow
def test_stage_1_alone_draws_no_picture_and_stage_2_alone_leaves_the_words_around(pipe, config, tmp_path, monkeypatch):
    whole = erase(pipe, CONCEPTS, config, folder=tmp_path)
    seen, train = [], work.train

    def watched(p, *arguments):
        seen.append({name: w.detach().clone() for name, w in kv_weights(p.unet).items()})
        return train(p, *arguments)

    monkeypatch.setattr(work, "train", watched)
    added = erase(pipe, CONCEPTS, dataclasses.replace(config, stages="1+2"), folder=tmp_path)
    assert equal(added, whole) and not seen  # the same LoRAs, added up
    alone = erase(pipe, CONCEPTS, dataclasses.replace(config, stages="2"), folder=tmp_path)
    assert len(seen) == 3 and all(same(s, {n: w.detach() for n, w in kv_weights(pipe.unet).items()}) for s in seen)
    assert not equal(alone, whole) and alone.P is None and alone.truncation == 0
    monkeypatch.setattr(images, "generate", None)
    first = erase(pipe, CONCEPTS, dataclasses.replace(config, stages="1"), folder=tmp_path / "first")
    assert all(p.D.numel() == 0 for p in first.parts) and torch.equal(first.refinement.R, whole.refinement.R)


def test_attention_masks(pipe, config):
    config = dataclasses.replace(config, images=ImagesConfig(count=1, steps=2, masks="attention"))
    assert len(erase(pipe, CONCEPTS[:1], config).parts) == 1


@pytest.mark.slow
def test_killed_half_way_goes_on_where_it_stopped(pipe, config, tmp_path, monkeypatch):
    before, whole = weights(pipe), erase(pipe, CONCEPTS, config, folder=tmp_path / "whole")

    def stop(stage, done, total, detail):
        if stage == "train" and done == 3:  # of 6: in the second of three concepts
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase(pipe, CONCEPTS, config, folder=tmp_path / "run", progress=stop)
    assert same(weights(pipe), before)

    trained, drawn, train, draw = [], [], work.train, images.generate
    monkeypatch.setattr(work, "train", lambda p, ex, *a: trained.append(ex[0].name) or train(p, ex, *a))
    monkeypatch.setattr(images, "generate", lambda *a, **k: drawn.append(a[1]) or draw(*a, **k))
    resumed = erase(pipe, CONCEPTS, config, folder=tmp_path / "run")
    assert len(trained) == 2 and len(drawn) == 1  # the first is done; the second has its pictures
    assert equal(resumed, whole)

    trained.clear()
    assert equal(erase(pipe, CONCEPTS, config, folder=tmp_path / "run"), whole) and not trained
    kept = next((tmp_path / "run" / "loras").iterdir())
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: that one is trained again
    assert equal(erase(pipe, CONCEPTS, config, folder=tmp_path / "run"), whole) and len(trained) == 1


@pytest.mark.slow
def test_groups_in_processes_of_their_own_give_the_same(pipe, config, tmp_path):
    with pytest.raises(MaceError, match="load_pipeline"):
        erase(pipe, CONCEPTS, config, engine=make_engine("local", jobs=2))
    pipe.save_pretrained(tmp_path / "model")
    loaded, told = load_pipeline(tmp_path / "model", device="cpu"), []
    options = {"folder": tmp_path / "run", "progress": lambda *a: told.append(a)}
    apart = erase(loaded, CONCEPTS, config, engine=make_engine("local", jobs=2), **options)
    assert equal(apart, erase(loaded, CONCEPTS, config, folder=tmp_path / "here"))
    assert [a[1:3] for a in told if a[0] == "concepts"] == [(1, 3), (2, 3), (3, 3)]

    kept = sorted((tmp_path / "run" / "loras").iterdir())
    kept[0].unlink()
    shutil.rmtree(tmp_path / "model")  # the one that is missing cannot be trained; the others are kept
    with pytest.raises(MaceError, match="1 groups failed"):
        erase(loaded, CONCEPTS, config, engine=make_engine("local", jobs=2), **options)
    loaded.save_pretrained(tmp_path / "model")
    assert equal(erase(loaded, CONCEPTS, config, engine=make_engine("local"), **options), apart)


@pytest.mark.slow
def test_concepts_in_one_pass_equal_those_alone(pipe, config):
    both = dataclasses.replace(config, train=dataclasses.replace(config.train, concepts_per_pass=8))
    assert equal(erase(pipe, CONCEPTS, both), erase(pipe, CONCEPTS, config))


def test_an_applied_erasure_is_still_applied_afterwards_and_does_not_matter(pipe, config):
    first = erase(pipe, CONCEPTS[:1], config)
    first.apply(pipe)
    applied = weights(pipe)
    second = erase(pipe, CONCEPTS[:1], config)
    assert same(weights(pipe), applied) and equal(first, second) and first.base == second.base
    first.remove(pipe)


def test_an_exception_leaves_the_pipeline_as_it_was(pipe, config, monkeypatch):
    before = weights(pipe)
    for error, sentence in [
        (RuntimeError("CUDA out of memory. Tried"), "memory is full: lower train.concepts_per_pass"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: not enough memory"), "memory is full"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full: free some space"),
    ]:

        def fail(*_, error=error):
            assert not same(weights(pipe), before)  # stage 1 is in the model now
            raise error

        monkeypatch.setattr(work, "train", fail)
        with pytest.raises(MaceError, match=sentence):
            erase(pipe, CONCEPTS[:1], config)
        assert same(weights(pipe), before)


@pytest.mark.parametrize(
    "concepts, sentence",
    [
        ([], "empty"),
        ([Concept("ship", "Ship ")], "concept itself"),
        ([Concept("ship", "sea"), Concept("Ship", "art")], "listed twice"),
        ([Concept("ship " * 90, "sea")], "tokens and the model reads 77: shorten it"),
    ],
)
def test_bad_concepts_end_before_any_picture(pipe, config, concepts, sentence, tmp_path):
    with pytest.raises(MaceError, match=sentence):
        erase(pipe, concepts, config, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("captions", "place", "cached", "sentence"),
    [
        ("none.txt", "run", "cache", "none.txt"),
        (None, "file/run", "cache", "file/run could not be written"),
        (None, "run", "file/cache", "file/cache cannot be made"),
    ],
)
def test_what_can_be_known_at_once_ends_before_any_work(
    pipe, config, captions, place, cached, sentence, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MACELIB_CACHE", str(tmp_path / cached))
    if captions:
        config = dataclasses.replace(config, prior=PriorConfig(captions=str(tmp_path / captions)))
    begun = []
    with pytest.raises(MaceError, match=sentence):
        erase(pipe, CONCEPTS[:1], config, folder=tmp_path / place, progress=lambda *told: begun.append(told))
    assert not begun


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"templates": "none.txt"}, "The list of templates none.txt cannot be read"),
        ({"images": ImagesConfig(steps=5000)}, "steps is 5000; allowed: 1 to 999"),
        ({"train": TrainOptions(rank=10**9)}, "train.rank is 1000000000; allowed: 1 to 32, the width"),
    ],
)
def test_limits_are_looked_at_before_any_work(pipe, config, change, sentence, monkeypatch):
    begun = []
    monkeypatch.setattr("macelib.job.prior_of", lambda *_: begun.append("captions"))
    with pytest.raises(MaceError, match=sentence):
        erase(pipe, [Concept("ship", "sea")], dataclasses.replace(config, **change))
    assert not begun


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"progress": True}, r"progress is True: give a function of \(stage, done, total, detail\)"),
        ({"folder": 5}, "folder is 5: give a path"),
        ({"prior": "x"}, "prior is 'x': give what"),
        ({"engine": "local"}, r"engine is 'local': give macelib.batch.make_engine\(.local.\)"),
        ({"engine": make_engine("local")}, "load it with macelib.load_pipeline"),
        ({"config": {"seed": 1}}, "give an EraseConfig"),
    ],
)
def test_arguments_are_looked_at_before_any_work(pipe, config, given, sentence, monkeypatch):
    monkeypatch.setattr("macelib.job.prior_of", lambda *_: pytest.fail("captions are read"))
    with pytest.raises(MaceError, match=sentence):
        erase(pipe, [Concept("ship", "sea")], **{"config": config} | given)


def test_overlapping_concepts_are_said_and_erased(pipe, config, caplog):
    with caplog.at_level(logging.WARNING):
        erasure = erase(
            pipe, [Concept("cat", "grass", templates=FEW), Concept("big cat", "dog", templates=FEW)], config
        )
    assert "'cat' is part of 'big cat'" in caplog.text and len(erasure.parts) == 2


def test_what_is_no_pipeline_is_refused(config):
    with pytest.raises(MaceError, match="load a Stable Diffusion"):
        erase(object(), CONCEPTS, config)


def test_priors(pipe, config):
    none = dataclasses.replace(config, prior=PriorConfig(use=False))
    assert erase(pipe, CONCEPTS[:1], none).P is None
    given = Prior(torch.eye(32, dtype=torch.float64), "mine", 1)
    assert erase(pipe, CONCEPTS[:1], config, prior=given).prior_key == "mine"
    a, b = erase(pipe, CONCEPTS[:1], config), erase(pipe, CONCEPTS[2:], config)
    total = a + b
    assert a.prior_key != b.prior_key and torch.allclose(total.P, (a.P + b.P) / 2)


@pytest.mark.slow
def test_many_concepts_without_a_name_to_keep_are_said(pipe, config, caplog, monkeypatch):
    monkeypatch.setattr(job, "MANY", 2)
    general = dataclasses.replace(config, prior=dataclasses.replace(config.prior, domain=()))
    few = [CONCEPTS[0], CONCEPTS[2]]
    for settings, said in ((general, True), (general.keeping(["cat"]), False), (config, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            erase(pipe, few, settings)
        assert ("Say which must stay" in caplog.text) == said


def test_lazy_names():
    assert macelib.erase is job.erase and macelib.Concept is Concept and "trace" in dir(macelib)
    with pytest.raises(AttributeError, match="nothing"):
        _ = macelib.nothing


@pytest.mark.slow
def test_what_is_applied_to_mini_sd_is_the_exact_solution():
    """Eq. 2 of the model that ships, from the whole sums, against what an erasure writes: nothing is truncated."""
    if not (data_folder() / "mini-sd" / "model_index.json").is_file():
        pytest.skip("data/mini-sd is not there")
    pipe, ship = load_pipeline("mini-sd", device="cpu"), Concept("ship", "the sea")
    prior = Prior(10 * torch.eye(embedding_size(pipe), dtype=torch.float64), "", 1)
    few = EraseConfig(images=ImagesConfig(count=1, steps=1, masks="full"), train=TrainOptions(steps=1, lr=1e-9))
    erasure = erase(pipe, [ship], few, prior=prior)
    X, G, _ = concept_sums(pipe, erasure.concepts[0])  # with the companions of its settings
    refine = erasure.config.refine
    R = solve_refinement(X, G, prior.P, refine.lambda1, refine.lambda0).R
    assert erasure.truncation < 1e-5 and float((erasure.refinement.R - R).abs().max() / R.abs().max()) < 1e-5
    assert Erasure.load(erasure.save(Path(tempfile.mkdtemp()) / "e.safetensors")).truncation == erasure.truncation


@pytest.mark.slow
def test_erase_takes_what_a_person_writes_and_shows_bars_where_somebody_looks(pipe, config, monkeypatch, capsys):
    expected = erase(pipe, [Concept("ship", "sea")], config, progress=False)
    assert not capsys.readouterr().err  # nobody looks: no bar
    monkeypatch.setattr(job, "watched", lambda: True)
    found = erase(pipe, "ship=sea", config)
    assert "train: 100%" in capsys.readouterr().err
    assert found.concepts == expected.concepts and torch.equal(found.parts[0].B, expected.parts[0].B)
    erase(pipe, {"ship": "sea"}, config, progress=False)
    assert not capsys.readouterr().err
    with pytest.raises(MaceError, match="No anchor is known for 'ship'"):
        erase(pipe, "ship", config)  # a random pipeline has no catalogue
    with pytest.raises(MaceError, match="give an EraseConfig"):
        erase(pipe, "ship=sea", {"seed": 1})


def test_what_is_no_warning_is_a_line_of_a_notebook(monkeypatch, capsys, caplog):
    progress.say(job.log, "Settings: these.")
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    progress.say(job.log, "Settings: those.")
    assert caplog.messages == ["Settings: these."] and capsys.readouterr() == ("Settings: those.\n", "")
