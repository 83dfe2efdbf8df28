"""How far kept pictures move, what drawing takes, and several training seeds: each by hand, or by loops."""

import dataclasses

import compare_tools
import numpy as np
import pytest
import scipy.linalg
import torch
from compare_tools import ALONE, MANY, METHODS, Judge, numbers_of, pictured, planned_of, run, untimed
from tiny_data import tiny_clip

from macelib import MaceError, evaluate
from macelib.baselines import TextMap, build, register
from macelib.baselines.registry import _METHODS, Settings
from macelib.compare import planned
from macelib.compare.distance import FRECHET, KERNEL, _weights
from macelib.compare.plan import Way
from macelib.compare.rows import resampling
from macelib.evaluate.distances import cmmd
from macelib.evaluate.tasks import task
from macelib.models.swap import untouched
from macelib.models.tiny import WIDTH

pipe, drawn = compare_tools.pipe, compare_tools.drawn


@pytest.fixture(scope="module")
def clip():
    return evaluate.ClipClassifier(*tiny_clip(), name="tiny CLIP")


def by_hand(pipe, clip, jobs, edit=None):
    """Vectors of the pictures of these jobs as the pipeline draws them with an edit."""
    with untouched(pipe):
        if edit is not None:
            edit.apply(pipe)
        return clip.image_vectors(pictured(pipe, *zip(*jobs, strict=True)))


def normal_distance(x, y):
    (m, n), (A, B) = ([f(s.double().numpy()) for s in (x, y)] for f in (lambda s: s.mean(0), lambda s: np.cov(s.T)))
    return ((m - n) ** 2).sum() + np.trace(A + B - 2 * scipy.linalg.sqrtm(A @ B).real)


def rows_of(whole, metric):
    return {r["method"]: r for r in whole["rows"] if r["metric"] == metric}


def why(whole, metric, method):
    return next(r["why"] for r in whole["not_measured"] if (r["metric"], r["method"]) == (metric, method))


# --- distances ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kept_pictures_are_compared_with_the_original_s_of_the_same_prompts_and_seeds(pipe, clip, tmp_path, drawn):
    found = planned_of(MANY, tmp_path, seeds=40)
    whole = run(pipe, found, tmp_path / "out", features=clip)
    jobs = [(template.format("cat"), seed) for template in found.templates for seed in range(40)]
    width = clip.model.config.projection_dim
    x = by_hand(pipe, clip, jobs)
    for method in METHODS:
        y = by_hand(pipe, clip, jobs, build(pipe, found.erasures[0], method, kept=["cat"]))
        kernel, normal = rows_of(whole, KERNEL)[method], rows_of(whole, FRECHET)[method]
        assert kernel["mean"] == pytest.approx(max(cmmd(x, y), 0), abs=2e-4)
        assert normal["mean"] == pytest.approx(normal_distance(x, y), abs=2e-4)
        for row in (kernel, normal):
            assert row["low"] <= row["mean"] <= row["high"] and row["low"] < row["high"]
            assert (row["n"], row["unit"], row["over"]) == (80, "", "seeds")
    assert why(whole, KERNEL, "original") == "the others are compared with it"
    assert whole["environment"]["features"]["name"] == "tiny CLIP" and len(jobs) >= 2 * width
    count = len(drawn["jobs"])  # vectors that are lost are taken anew, of the pictures that are there
    (tmp_path / "out" / "vectors" / "uce-published-000.safetensors").write_bytes(b"cut")
    again = run(pipe, found, tmp_path / "out", features=clip)
    assert untimed(again) == untimed(whole) and len(drawn["jobs"]) == count


def test_of_several_erasures_all_pictures_are_taken_together(pipe, clip, tmp_path):
    found = planned_of(ALONE, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"], features=clip)
    x, y = [], []
    for i, concepts in enumerate(found.erasures):
        jobs = [(f"a photo of the {name}", seed) for name in found.kept(i) for seed in found.seeds]
        x.append(by_hand(pipe, clip, jobs))
        y.append(by_hand(pipe, clip, jobs, build(pipe, concepts, "uce")))
    row = rows_of(whole, KERNEL)["uce"]
    assert row["mean"] == pytest.approx(max(cmmd(torch.cat(x), torch.cat(y)), 0), abs=2e-4)
    assert (row["n"], row["concepts"], row["over"]) == (18, 3, "concepts and seeds")
    assert "9 different pictures of the original for" in why(whole, FRECHET, "uce (published)")


def test_without_clip_there_is_no_distance_and_what_is_no_clip_is_refused(pipe, tmp_path):
    found = planned_of(MANY, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"])
    assert "--features" in why(whole, FRECHET, "uce (published)") and KERNEL not in {r["metric"] for r in whole["rows"]}
    with pytest.raises(MaceError, match="by pixel gives no image vectors: name a CLIP"):
        run(pipe, found, tmp_path / "other", ["uce"], features=Judge())


@pytest.mark.parametrize("values", [MANY, ALONE])
def test_a_resample_counts_each_picture_as_often_as_its_concept_seed_and_training(pipe, tmp_path, values):
    from macelib.compare.counts import Counts

    found = planned_of(values, tmp_path, seeds=4)
    sizes = (3,) if found.apart else (2, 1)
    taken = resampling(Counts({}, sizes, found.apart, trainings=2), 4)
    cells = [(i, training, (template.format(name), seed), name)
             for i in range(len(found.erasures)) for training in range(2) for name in found.kept(i)
             for template in found.templates for seed in found.seeds]  # fmt: skip
    weights = _weights(type("Run", (), {"plan": found}), cells, taken)
    for t in (0, 7, 150):
        own = []
        for i, training, (_, seed), name in cells:
            concept = taken.concepts[0][t][i] if found.apart else taken.concepts[1][t][found.kept(0).index(name)]
            own.append(concept * taken.draws[t].reshape(2, 4)[training, seed])
        assert np.allclose(weights[t], np.array(own) / sum(own)) and float(weights[t].sum()) == pytest.approx(1)


# --- what drawing takes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_drawing_is_timed_by_batch_also_where_it_was_cut_short(pipe, tmp_path, drawn):
    found, batch = planned_of(ALONE, tmp_path), 4
    drawn["stop"] = 50  # in the middle of uce
    with pytest.raises(KeyboardInterrupt):
        run(pipe, found, tmp_path / "out", tuned={"uce": {"lambda_": 0.5}})
    drawn["stop"] = None
    whole = run(pipe, found, tmp_path / "out", tuned={"uce": {"lambda_": 0.5}})
    seconds = {(r["method"], r["settings"]): r for r in whole["rows"] if r["metric"] == "time per picture, s"}
    memory = {(r["method"], r["settings"]): r for r in whole["rows"] if r["metric"] == "peak memory of drawing, MB"}
    jobs = [len(dict.fromkeys(found.jobs(i, work_of(found)))) for i in range(3)]
    for key in (("uce", "published"), ("semantic-surgery", "published")):
        assert seconds[key]["n"] == sum(jobs) and memory[key]["n"] == sum(-(-count // batch) for count in jobs)
        assert 0 <= seconds[key]["low"] <= seconds[key]["mean"] <= seconds[key]["high"]
        assert 0 < memory[key]["low"] <= memory[key]["mean"] <= memory[key]["high"]
    assert ("original", "") in seconds and ("uce", "tuned") not in seconds  # the published row drew the same pictures
    assert why(whole, "time per picture, s", "uce (tuned)") == "another row had drawn the same pictures"
    measured = {
        (r["metric"], f"{r['method']} ({r['settings']})" if r["settings"] else r["method"]) for r in whole["rows"]
    }
    assert not measured & {(r["metric"], r["method"]) for r in whole["not_measured"]}


def work_of(found):
    from macelib.evaluate.work import Protocol, Work

    return Work(Protocol("pets", {}, "", float), found.templates, found.seeds, None, None, None, False, None)


# --- training seeds -----------------------------------------------------------------------------------------------


@pytest.fixture
def slow():
    """A method that trains: another text map for every seed; (concept, seed) of every training."""
    built = []

    @register("slow", Settings, trains=True)
    def slow(request, settings):
        built.append((request.concepts[0].name, request.seed))
        return TextMap(torch.eye(WIDTH) * (1 + 0.01 * len(request.concepts[0].name) + 0.1 * request.seed))

    yield built
    del _METHODS["slow"]


def test_objects_are_trained_with_three_seeds_where_much_is_drawn():
    assert [planned(task("mini-objects"), None, p).trainings for p in ("quick", "recorded", "paper")] == [1, 3, 3]
    assert planned(task("mini-characters"), 10, "paper").trainings == 1
    assert planned(task("mini-two-things"), None, "paper").trainings == 1
    assert planned(task("mini-characters"), 10, "paper", trainings=2).trainings == 2
    with pytest.raises(MaceError, match="trainings is 0; allowed: 1 or more"):
        planned(task("mini-objects"), trainings=0)


@pytest.mark.slow
def test_a_trained_method_s_numbers_are_over_its_trainings_too(pipe, clip, tmp_path, drawn, slow):
    found = dataclasses.replace(planned_of(ALONE, tmp_path), trainings=3)
    drawn["stop"] = 75  # the original, and some of the first trainings
    with pytest.raises(KeyboardInterrupt):
        run(pipe, found, tmp_path / "out", ["slow"], features=clip)
    drawn["stop"] = None
    whole = run(pipe, found, tmp_path / "out", ["slow", "uce"], features=clip)
    assert slow == [(name, seed) for seed in range(3) for name in ("ship", "frog", "horse")]  # nothing twice
    of, classes = numbers_of(whole, "slow"), ["ship", "frog", "horse"]
    results = []
    for seed in range(3):
        edits = [build(pipe, concepts, "slow", seed=seed) for concepts in found.erasures]
        results.append(evaluate.objects(pipe, edits, classifier=Judge(), classes=classes, images=3, steps=1))
    for metric in ("Acc_e", "Acc_s", "Acc_g"):
        each = [result.value(metric, "mean of 3") for result in results]
        assert of[metric] == pytest.approx(np.mean(each), abs=1e-3), metric
    row = rows_of(whole, "H_o")["slow"]
    assert (row["training_seeds"], row["seeds"], row["n"]) == (3, 3, 3 * 36)
    assert row["over"] == "concepts and seeds and training seeds" and row["low"] <= row["mean"] <= row["high"]
    assert rows_of(whole, "time, s")["slow"]["n"] == 9 and rows_of(whole, KERNEL)["slow"]["n"] == 3 * 18
    assert "training_seeds" not in rows_of(whole, "H_o")["uce"]
    difference = rows_of(whole, "H_o difference")["slow"]
    assert difference["mean"] == pytest.approx(of["H_o"] - numbers_of(whole, "uce")["H_o"], abs=1e-3)


def test_one_training_is_said(pipe, tmp_path, slow):
    whole = run(pipe, planned_of(ALONE, tmp_path), tmp_path / "out", ["slow"])
    rows = [r for r in whole["rows"] if r["method"] == "slow" and r["metric"] == "Acc_s"]
    assert rows[0]["training_seeds"] == 1 and rows[0]["over"].endswith("; one training")
    assert untimed(whole) == untimed(run(pipe, planned_of(ALONE, tmp_path), tmp_path / "out", ["slow"]))
    assert str(Way("slow", "published")) == "slow (published)" and {s for _, s in slow} == {0}
