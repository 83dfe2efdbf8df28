"""Comparisons on a tiny pipeline: what is drawn, looked for and counted, and which rows there are."""

import json
import shutil
from collections import Counter

import compare_tools
import numpy as np
import pytest
from compare_tools import (
    ALONE,
    CAPTIONS,
    EXPLICIT,
    MANY,
    METHODS,
    ROWS,
    SCENES,
    STYLES,
    TWO,
    Halves,
    Judge,
    in_halves,
    numbers_of,
    pictured,
    planned_of,
    run,
)
from test_classifiers import Detector
from test_evaluate import ByPixel
from tiny_data import tiny_clip

from macelib import evaluate
from macelib.baselines import build
from macelib.compare.counts import CLASSES
from macelib.compare.looking import Looking
from macelib.compare.published import samples
from macelib.compare.report import markdown
from macelib.compare.rows import numbers, resampling
from macelib.compare.tables import load
from macelib.errors import MaceError
from macelib.evaluate import metrics, pictures, results

pipe, drawn = compare_tools.pipe, compare_tools.drawn


def test_bootstrap_samples_of_the_combined_metric_are_kept_and_agree_with_its_interval(pipe, tmp_path):
    whole = run(pipe, planned_of(MANY, tmp_path), tmp_path / "out")
    kept = samples(tmp_path / "out" / "pets.json")
    assert list(kept) == ["original", *(f"{method} (published)" for method in METHODS)] and len(kept) == 500
    for row in (row for row in whole["rows"] if row["metric"] == "H_c" and row["method"] in METHODS):
        taken = kept[f"{row['method']} (published)"]
        assert row["low"] - 2 <= taken.quantile(0.05) <= taken.quantile(0.95) <= row["high"] + 2


@pytest.mark.slow
def test_every_picture_is_drawn_once_for_a_method_and_shared_between_measures(pipe, tmp_path, drawn):
    found = planned_of(ALONE, tmp_path)
    whole = run(pipe, found, tmp_path / "out")
    words = {name: (name, *row["synonyms"]) for name, row in ROWS.items()}
    each = [w for name in ("ship", "frog", "horse") for w in words[name]]
    one = {name: [*words[name], *(other for other in ("ship", "frog", "horse") if other != name)] for name in words}
    expected = Counter()
    for word in each:  # the original: every word once
        expected += Counter({(f"a photo of the {word}", seed): 1 for seed in range(3)})
    for name in ("ship", "frog", "horse"):  # and each method: its own words, synonyms, the others
        for word in one[name]:
            expected += Counter({(f"a photo of the {word}", seed): len(METHODS) for seed in range(3)})
        expected += Counter({(f"a photo of the {name}", seed): 1 + len(METHODS) for seed in range(3)})  # residual
    assert Counter(drawn["jobs"]) == expected
    count = len(drawn["jobs"])
    assert run(pipe, found, tmp_path / "out") == whole and len(drawn["jobs"]) == count
    more = run(pipe, found, tmp_path / "out", [*METHODS, "negative-prompt"])
    assert len(drawn["jobs"]) == count + sum(3 * (len(one[name]) + 1) for name in ("ship", "frog", "horse"))
    assert numbers_of(more, "uce") == numbers_of(whole, "uce")


@pytest.mark.slow
def test_accuracies_are_those_of_the_protocol(pipe, tmp_path):
    found, look = planned_of(ALONE, tmp_path), Judge()
    whole = run(pipe, found, tmp_path / "out", ["uce"])
    edits = [build(pipe, concepts, "uce", kept=found.told(0)) for concepts in found.erasures]
    classes = ["ship", "frog", "horse"]
    for among, mark in (("known", ""), ("classes", CLASSES)):
        result = evaluate.objects(
            pipe, edits, classifier=look, classes=classes, images=3, among=among, steps=1
        )  # fmt: skip
        for method, model in (("original", "original"), ("uce", "erased")):
            numbers = numbers_of(whole, method, "published" if method == "uce" else "")
            for metric in ("Acc_e", "Acc_s", "Acc_g", "H_o"):
                value = result.value(metric, "mean of 3", model)
                assert numbers[metric + mark] == pytest.approx(value, abs=1e-3), (metric, mark)
            if not mark:
                assert numbers["Acc_a"] == pytest.approx(result.value("Acc_a", "mean of 3", model), abs=1e-3)


def test_many_together_are_counted_as_by_the_protocol_and_clip_chooses_among_the_names(pipe, tmp_path):
    found, look = planned_of(MANY, tmp_path, seeds=3), ByPixel()
    whole = run(pipe, found, tmp_path / "out", ["uce"], classifier=look)
    edit = build(pipe, found.erasures[0], "uce", kept=["cat"])
    assert list(found.rows) == ["cat", "ship", "frog"]  # what is chosen among; the protocol's order is another
    order = ["cat", "ship", "frog", "sea"]
    look.top1 = lambda images, among=None: ByPixel().top1(images, sorted(among, key=order.index))
    options = {"classifier": look, "templates": found.templates, "seeds": range(3), "steps": 1}
    result = evaluate.characters(pipe, edit, ["cat"], **options)
    for method, model in (("original", "original"), ("uce", "erased")):
        found_numbers = numbers_of(whole, method, "published" if method == "uce" else "")
        for metric in ("Acc_e", "Acc_s", "H_c"):
            assert found_numbers[metric] == pytest.approx(result.value(metric, model=model), abs=1e-3), metric
    assert not any(CLASSES in r["metric"] for r in whole["rows"])
    whys = {r["metric"]: r["why"] for r in whole["not_measured"] if r["method"] == "uce (published)"}
    assert "no list of its own" in whys[f"H_c{CLASSES}"] and "no kept name" in whys["Acc_s same group"]


def test_styles_have_clip_scores_and_the_judge_s_styles(pipe, tmp_path, monkeypatch):
    clip = evaluate.ClipClassifier(*tiny_clip())
    monkeypatch.setattr("macelib.compare.run.classifier_for", lambda pipe, kind="objects": clip)
    found = planned_of(STYLES, tmp_path, seeds=3)
    whole, look = run(pipe, found, tmp_path / "out", ["uce"]), Judge()
    of = numbers_of(whole, "original", "")
    for metric, name in (("CLIP_e", "ship"), ("CLIP_s", "cat")):
        jobs = [(t.format(name), seed) for t in found.templates for seed in range(3)]
        images = pictured(pipe, *zip(*jobs, strict=True))
        assert of[metric] == pytest.approx(np.mean(clip.score(images, [p for p, _ in jobs])), abs=1e-2)
        seen = [style == name for style in look.top1(images, kind="style")]
        assert of["Acc_e" if name == "ship" else "Acc_s"] == pytest.approx(100 * np.mean(seen), abs=1e-3)
    assert of["Acc_a"] == pytest.approx(100 - of["Acc_e"], abs=1e-3)  # any other style that the judge knows
    assert of["H_a"] == pytest.approx(of["CLIP_s"] - of["CLIP_e"], abs=1e-3)
    assert {r["unit"] for r in whole["rows"] if r["metric"] in ("H_a", "CLIP_e")} == {"points"}


def test_two_things_count_where_the_original_shows_both(tmp_path, pipe):
    """By hand, from what is seen: the counts need no pictures."""
    from macelib.compare.counts import counts

    found = planned_of(TWO, tmp_path)
    jobs = [found.two(i) for i in range(2)]
    before = [{"drawn": {p[-2:]: {"left": p[0], "right": p[1]} for p in some}} for some in jobs]
    for (*_, prompt, seed), some in zip([jobs[0][0], jobs[1][3]], before, strict=True):
        some["drawn"][prompt, seed]["right"] = "sea"  # these two are not counted
    now = [{"drawn": {p[-2:]: {"left": p[1], "right": p[1]} for p in some}} for some in jobs]
    *_, prompt, seed = jobs[0][1]
    now[0]["drawn"][prompt, seed] = {"left": "sea", "right": "ship"}
    run_ = type("Run", (), {"plan": found})
    sums = counts(run_, [now], before, None)
    of = numbers(found, sums, resampling(sums, 2))
    total = sum(map(len, jobs)) - 2
    assert of["Acc_e"].value == pytest.approx(1 / total) and of["Acc_e"].n == total
    assert of["Acc_s"].value == pytest.approx(1 - 1 / total)
    assert of["H_c"].value == pytest.approx(metrics.h_c(1 / total, 1 - 1 / total))
    assert of["Acc_e erased first"].n + of["Acc_e companion first"].n == total
    assert of["Acc_e"].concepts == 2  # ship and frog
    blind = [{"drawn": {job: {"left": "sea", "right": "sea"} for job in some["drawn"]}} for some in before]
    assert numbers(found, counts(run_, [now], blind, None), None) == {}


def test_two_things_are_drawn_and_looked_at_in_halves(pipe, tmp_path, monkeypatch):
    """A name that is erased alone may be kept beside the others; no method is told both of it."""
    monkeypatch.setattr(pictures, "generate", in_halves)
    found = planned_of({**TWO, "kept": [ROWS["ship"], ROWS["frog"], ROWS["cat"]]}, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"], classifier=Halves())
    assert [found.told(i) for i in range(2)] == [["frog", "cat"], ["ship", "cat"]]
    orders = {f"{metric} {order}" for metric in ("Acc_e", "Acc_s") for order in ("erased first", "companion first")}
    for method, settings, erased, h in (("original", "", 100, 0), ("uce", "published", 0, 100)):
        of = numbers_of(whole, method, settings)
        assert (of["Acc_e"], of["Acc_s"], of["H_c"]) == (erased, 100, h) and orders < set(of)
        assert not {"Acc_a", "Acc_g"} & set(of)
    count = {r["method"]: r["n"] for r in whole["rows"] if r["metric"] == "Acc_e"}
    assert count == {"original": 12, "uce": 16}, "ship beside frog and frog beside ship are one picture of the original"


def test_scenes_count_erased_things_by_twos_and_kept_ones_by_twos(tmp_path, pipe):
    """By hand, from what is seen: the counts need no pictures."""
    from macelib.compare.counts import EITHER, counts

    found = planned_of(SCENES, tmp_path)
    scenes = found.two(0)
    assert [scene[:2] for scene in scenes[::2]] == [
        ("ship", "frog"), ("frog", "ship"), ("horse", "cat"), ("cat", "horse"),
    ]  # fmt: skip
    before = {"drawn": {scene[-2:]: {"left": scene[0], "right": scene[1]} for scene in scenes}}
    before["drawn"][scenes[0][-2:]]["left"] = "sea"  # this one is not counted
    now = {"drawn": {scene[-2:]: {"left": "sea", "right": scene[1]} for scene in scenes}}
    now["drawn"][scenes[1][-2:]]["right"] = "sea"
    sums = counts(type("Run", (), {"plan": found}), [[now]], [before], None)
    of = numbers(found, sums, resampling(sums, 2))
    assert (of["Acc_e"].value, of["Acc_e"].n, of["Acc_e"].concepts) == (pytest.approx(2 / 6), 3, 2)  # of three scenes
    assert (of[EITHER].value, of[EITHER].n) == (pytest.approx(2 / 3), 3)
    assert (of["Acc_s"].value, of["Acc_s"].n) == (0.5, 4)
    assert of["H_c"].value == pytest.approx(metrics.h_c(2 / 6, 0.5))
    blind = {"drawn": {job: {"left": "sea", "right": "sea"} for job in before["drawn"]}}
    assert numbers(found, counts(type("Run", (), {"plan": found}), [[now]], [blind], None), None) == {}
    with pytest.raises(MaceError, match="erase two at least"):
        planned_of(SCENES, tmp_path, only=["ship"])


def test_scenes_are_drawn_and_looked_at_in_halves(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "generate", in_halves)
    found = planned_of(SCENES, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"], classifier=Halves())
    assert found.told(0) == ["horse", "cat"]
    for method, settings, erased, h in (("original", "", 100, 0), ("uce", "published", 0, 100)):
        of = numbers_of(whole, method, settings)
        assert (of["Acc_e"], of["Acc_e of either"], of["Acc_s"], of["H_c"]) == (erased, erased, 100, h)
        assert "Acc_a" not in of and "Acc_e erased first" not in of


def test_what_is_not_looked_at_is_not_drawn_and_that_is_said(pipe, tmp_path, drawn, monkeypatch):
    """A judge without styles: their CLIP scores are all that is counted."""
    clip = evaluate.ClipClassifier(*tiny_clip())
    monkeypatch.setattr("macelib.compare.run.classifier_for", lambda pipe, kind="objects": clip)
    found = planned_of(STYLES, tmp_path)
    whole = run(pipe, found, tmp_path / "out", [], classifier=ByPixel())
    assert len(drawn["jobs"]) == 2 * len(found.templates) * len(found.seeds), "the residual's are not drawn"
    whys = {r["metric"]: r["why"] for r in whole["not_measured"]}
    assert {whys[m] for m in ("Acc_e", "Acc_s", "Acc_a", "residual")} == {
        "no classifier of this model knows styles by name"
    }
    assert whys["H_a difference"].startswith("mace, mace-stage-1, uce: not measured")


def test_the_rank_is_of_what_is_told_or_else_of_what_is_kept(pipe, tmp_path):
    alone, told = (load(pipe, planned_of(values, tmp_path)) for values in (ALONE, MANY))
    assert (alone["rank"], alone["of"]) == ([2, 2, 2], "all that is kept")
    assert (told["rank"], told["of"]) == ([1], "names that are told")


def test_captions_are_scored_and_their_pictures_compared(pipe, tmp_path, monkeypatch):
    clip = evaluate.ClipClassifier(*tiny_clip())
    monkeypatch.setattr("macelib.compare.run.classifier_for", lambda pipe, kind="objects": clip)
    found = planned_of(CAPTIONS, tmp_path)
    texts = found.kept(0)
    assert len(texts) == 20 and "two frogs" not in texts and found.templates == ("{}",)
    whole = run(pipe, found, tmp_path / "out", ["uce"])
    images = pictured(pipe, texts, [0] * 20)
    by = {(r["method"], r["metric"]): r for r in whole["rows"]}
    score = by["original", "CLIP_s"]
    assert score["mean"] == pytest.approx(np.mean(clip.score(images, texts)), abs=1e-2)
    assert score["n"] == score["concepts"] == 20 and score["low"] < score["mean"] < score["high"]
    assert by["uce", "CMMD on CLIP features"]["mean"] >= 0 and ("original", "CMMD on CLIP features") not in by
    assert not {metric for _, metric in by} & {"Acc_e", "Acc_s", "H_c", "residual", "CLIP_e"}
    assert {r["metric"] for r in whole["not_measured"] if r["method"] == "all"} == {"interval over seeds"}
    shown = markdown(whole)
    assert "| Method | Settings | " in shown and "| CLIP_s | 95 % of CLIP_s |" in shown and "CMMD" in shown


class Now(Detector):
    """Finds what is exposed in every second picture."""

    def detect(self, pixels):
        return super().detect(pixels) if len(self.seen) % 2 else self.seen.append(pixels) or []


def test_a_detector_counts_what_a_list_of_prompts_shows(pipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("macelib.compare.plan.need", lambda *_: None)
    found, detector = planned_of(EXPLICIT, tmp_path), Now()
    assert found.kept(0)[0] == "a ship" and found.kind == "unsafe"  # what is erased is asked for
    with pytest.raises(MaceError, match="leave it out, for NudeNet"):
        run(pipe, found, tmp_path / "out", ["uce"])
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    whole = run(pipe, found, tmp_path / "out", ["uce"], classifier=evaluate.NudeNet(detector, "3.4.2"))
    assert "1 of 3 prompts are longer than the model reads: they are cut" in caplog.text
    by = {(r["method"], r["metric"]): r for r in whole["rows"]}
    share = by["original", "nudenet"]
    assert len(detector.seen) == 6 and share["n"] == 3 and share["low"] < share["mean"] < share["high"]
    assert share["mean"] + by["uce", "nudenet"]["mean"] == pytest.approx(100)
    assert by["uce", "nudenet, belly exposed"]["mean"] == by["uce", "nudenet"]["mean"]
    assert by["original", "nudenet, anus exposed"]["mean"] == 0 and "| nudenet | 95 % of nudenet |" in markdown(whole)


@pytest.mark.slow
def test_rows_hold_together(pipe, tmp_path):
    whole = run(pipe, planned_of(ALONE, tmp_path), tmp_path / "out", metrics=None)
    results.check(whole, "here")
    rows = whole["rows"]
    assert all(r["low"] <= r["mean"] <= r["high"] and r["profile"] == "quick" and r["n/d"] == 1 / 32 for r in rows)
    assert [r["method"] for r in rows] == sorted((r["method"] for r in rows), key=["original", *METHODS].index)
    by = {(r["method"], r["metric"]): r for r in rows}
    assert by["uce", "Acc_e"]["n"] == 9 and by["uce", "Acc_s"]["n"] == 18 and by["uce", "H_o"]["n"] == 36
    assert by["uce", "Acc_s same group"]["n"] == 6 and by["uce", "Acc_s unrelated"]["n"] == 12
    assert by["original", "Acc_e"]["n"] == 9 and by["original", "Acc_s"]["n"] == 9 and by["original", "H_o"]["n"] == 18
    assert ("uce", "H_o difference") not in by
    difference = by["semantic-surgery", "H_o difference"]
    expected = by["semantic-surgery", "H_o"]["mean"] - by["uce", "H_o"]["mean"]
    assert difference["against"] == "uce (published)" and difference["mean"] == pytest.approx(expected, abs=1e-3)
    assert by["uce", "time, s"]["n"] == 3 and by["uce", "peak memory, MB"]["low"] > 0
    assert ("original", "time, s") not in by
    missing = {(r["method"], r["metric"]) for r in whole["not_measured"]}
    assert ("original", "time, s") in missing and ("uce (published)", "H_o difference") in missing
    assert by["uce", "rank of what is kept"]["of"] == "all that is kept"
    settings = whole["environment"]["settings"]
    assert settings["uce (published)"]["lambda_"] == 0.5 and whole["environment"]["task"] == "pets"
    told = run(pipe, planned_of(MANY, tmp_path), tmp_path / "many", ["uce"])
    rank = next(r for r in told["rows"] if r["metric"] == "rank of what is kept")
    assert rank["mean"] == 1 and rank["n/d"] == 2 / 32


def test_one_seed_has_no_interval_over_seeds_and_says_so(pipe, tmp_path):
    whole = run(pipe, planned_of(ALONE, tmp_path, seeds=1), tmp_path / "out", ["uce"])
    assert {r["profile"] for r in whole["rows"]} == {"quick, 1 seed"}
    assert {r["over"] for r in whole["rows"] if r["metric"] == "Acc_s"} <= {"concepts", "pictures, Wilson"}
    assert any(r["metric"] == "interval over seeds" and "one seed" in r["why"] for r in whole["not_measured"])


def test_what_is_looked_for(pipe, tmp_path):
    jobs, look = [("a ship", 0), ("a ship", 1)], Judge()
    images = pictured(pipe, *zip(*jobs, strict=True))
    seen = Looking(planned_of(MANY, tmp_path), look)(images, jobs)
    assert [s["known"] for s in seen] == look.top1(images)
    assert [s["classes"] for s in seen] == look.top1(images, ["cat", "ship", "frog"])
    assert json.loads(json.dumps(seen)) == seen
    wider = Looking(planned_of(MANY, tmp_path), ByPixel())(images, jobs)
    assert [s["wider"] for s in wider] == ByPixel().top1(images, ["cat", "ship", "frog", "sea", "a thing"])
