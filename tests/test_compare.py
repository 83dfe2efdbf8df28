"""Comparisons on a tiny pipeline: what is drawn, counted and kept, gone on from after a kill, and what is refused."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from test_cli import mace
from test_evaluate import ByPixel
from tiny_data import tiny_clip, tiny_judge

from macelib import Erasure, MaceError, evaluate
from macelib.baselines import build, methods, register
from macelib.baselines.registry import _METHODS, Settings
from macelib.compare import compare, find, metric_names, plan, planned, tuned_settings, ways
from macelib.compare.counts import CLASSES
from macelib.compare.measure import Looking
from macelib.compare.plan import ORIGINAL, Way, settings_kind
from macelib.compare.rows import numbers, resampling
from macelib.evaluate import metrics, pictures, results
from macelib.evaluate.tasks import read_task, task
from macelib.files import hash_text, locked
from macelib.models.pipelines import kv_weights
from macelib.models.sample import generate
from macelib.models.swap import applied_edit
from macelib.models.tiny import tiny_pipeline

NAMES = {"ship": "vessel", "frog": "amphibian", "horse": "steed", "cat": "kitty"}
ROWS = {
    name: {"name": name, "anchor": "sea", "super": "a thing", "group": "water" if name in ("ship", "frog") else "land",
           "synonyms": [other]}
    for name, other in NAMES.items()
}  # fmt: skip
ALONE = {"title": "Alone", "model": "sd", "metric": "H_o", "erase": "one by one", "templates": ["a photo of the {}"],
         "erased": [ROWS["ship"], ROWS["frog"], ROWS["horse"]]}  # fmt: skip
MANY = {**ALONE, "metric": "H_c", "erase": "together", "templates": ["a {}", "a big {}"], "kept": [ROWS["cat"]],
        "erased": [ROWS["ship"], ROWS["frog"]]}  # fmt: skip
TWO = {**MANY, "erase": "one by one", "kept": [ROWS["horse"], ROWS["cat"]],
       "templates": ["a {} by the {other}", "a {other} by the {}"]}  # fmt: skip
STYLES = {**MANY, "metric": "H_a", "kind": "style", "erased": [ROWS["ship"]], "kept": [ROWS["cat"]]}
KNOWN = [f"concept:{name}" for name in [*NAMES, "sea", "grass"]] + ["style:ship", "style:cat"]
METHODS = ["uce", "semantic-surgery"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


class Judge(ByPixel):
    """Names a picture after its pixels, and has a list of all that it knows."""

    concepts, styles = [*NAMES, "sea", "grass"], ["ship", "cat", "noto"]

    def top1(self, images, among=None, kind="concept"):
        return super().top1(images, among or (self.styles if kind == "style" else self.concepts), kind)

    def check(self, names, kind="concept"):
        evaluate.Judge.check(self, names, kind)


def pictured(pipe, prompts, seeds, *args, **kw):
    """Pictures that depend on prompt, seed and what is applied, and take no time."""
    edit = applied_edit(pipe)
    texts = [hash_text(p, s, "" if edit is None else edit.key) for p, s in zip(prompts, seeds, strict=True)]
    return [Image.frombytes("RGB", (4, 5), text.encode()[:60]) for text in texts]


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Little is drawn, and every (prompt, seed) of it is counted; "stop": after how many the process is killed."""
    monkeypatch.setitem(plan.PROFILES, "quick", plan.Profile("quick", steps=1, images=3, templates=2, seeds=2, pairs=2))
    seen = {"jobs": [], "stop": None}

    def counted(pipe, prompts, seeds, *args, **kw):
        if seen["stop"] is not None and len(seen["jobs"]) >= seen["stop"]:
            raise KeyboardInterrupt
        seen["jobs"] += zip(prompts, seeds, strict=True)
        return pictured(pipe, prompts, seeds)

    monkeypatch.setattr(pictures, "generate", counted)
    return seen


def planned_of(values, tmp_path, **options):
    path = tmp_path / "pets.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return planned(read_task(path), **options)


def run(pipe, found, folder, names=METHODS, **options):
    tuned = options.pop("tuned", {})
    options = {"classifier": Judge(), "batch": 4, "command": "mace compare"} | options
    return results.read(compare(pipe, found, ways(names, found, tuned), folder, **options))


def numbers_of(whole, method, settings="published"):
    return {r["metric"]: r["mean"] for r in whole["rows"] if (r["method"], r["settings"]) == (method, settings)}


def untimed(whole):
    """A file without what depends on how fast and full the machine is."""
    rows = [r for r in whole["rows"] if not r["metric"].startswith(("time", "peak memory"))]
    return whole | {"rows": rows}


# --- what is drawn and counted ------------------------------------------------------------------------------------


def test_bootstrap_samples_of_the_combined_metric_are_kept_and_agree_with_its_interval(pipe, tmp_path):
    whole = run(pipe, planned_of(MANY, tmp_path), tmp_path / "out")
    kept = pd.read_csv(tmp_path / "out" / "pets.samples.csv")
    assert list(kept) == ["original", *(f"{method} (published)" for method in METHODS)] and len(kept) == 500
    for row in (row for row in whole["rows"] if row["metric"] == "H_c" and row["method"] in METHODS):
        taken = kept[f"{row['method']} (published)"]
        assert row["low"] - 2 <= taken.quantile(0.05) <= taken.quantile(0.95) <= row["high"] + 2


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


def test_accuracies_are_those_of_the_protocol(pipe, tmp_path):
    found, look = planned_of(ALONE, tmp_path), Judge()
    whole = run(pipe, found, tmp_path / "out", ["uce"])
    edits = [build(pipe, concepts, "uce", kept=found.told) for concepts in found.erasures]
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
    sums = counts(run_, now, before, None)
    of = numbers(found, sums, resampling(sums, 2))
    total = sum(map(len, jobs)) - 2
    assert of["Acc_e"].value == pytest.approx(1 / total) and of["Acc_e"].n == total
    assert of["Acc_s"].value == pytest.approx(1 - 1 / total)
    assert of["H_c"].value == pytest.approx(metrics.h_c(1 / total, 1 - 1 / total))
    assert of["Acc_e erased first"].n + of["Acc_e companion first"].n == total
    blind = [{"drawn": {job: {"left": "sea", "right": "sea"} for job in some["drawn"]}} for some in before]
    assert numbers(found, counts(run_, now, blind, None), None) == {}


def test_two_things_are_drawn_and_looked_at_in_halves(pipe, tmp_path):
    whole = run(pipe, planned_of(TWO, tmp_path), tmp_path / "out", ["uce"])
    whys = {r["metric"]: r["why"] for r in whole["not_measured"] if r["method"] == "original"}
    measured = {r["metric"] for r in whole["rows"]}
    assert "Acc_e" in measured or "shows no such pair" in whys["Acc_e"]
    assert "Acc_a" not in measured and "Acc_g" not in measured


def test_rows_hold_together(pipe, tmp_path):
    whole = run(pipe, planned_of(ALONE, tmp_path), tmp_path / "out", metrics=None)
    results.check(whole, "here")
    rows = whole["rows"]
    assert all(r["low"] <= r["mean"] <= r["high"] and r["profile"] == "quick" and r["n/d"] == 1 / 32 for r in rows)
    assert [r["method"] for r in rows] == sorted((r["method"] for r in rows), key=["original", *METHODS].index)
    by = {(r["method"], r["metric"]): r for r in rows}
    assert by["uce", "Acc_e"]["n"] == 9 and by["uce", "Acc_s"]["n"] == 18 and by["uce", "H_o"]["n"] == 36
    assert by["uce", "Acc_s same group"]["n"] == 6 and by["uce", "Acc_s unrelated"]["n"] == 12
    assert by["uce", "H_o difference"]["against"] == "uce (published)" if ("uce", "H_o difference") in by else True
    difference = by["semantic-surgery", "H_o difference"]
    expected = by["semantic-surgery", "H_o"]["mean"] - by["uce", "H_o"]["mean"]
    assert difference["against"] == "uce (published)" and difference["mean"] == pytest.approx(expected, abs=1e-3)
    assert by["uce", "time, s"]["n"] == 3 and by["uce", "peak memory, MB"]["low"] > 0
    assert ("original", "time, s") not in by
    missing = {(r["method"], r["metric"]) for r in whole["not_measured"]}
    assert ("original", "time, s") in missing and ("uce (published)", "rank of what is kept") in missing
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


# --- a run is gone on with ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5, 60])
def test_killed_at_any_moment_and_run_again_gives_the_same_tables(pipe, tmp_path, drawn, stop):
    found = planned_of(ALONE, tmp_path)
    whole = run(pipe, found, tmp_path / "whole")
    count = len(drawn["jobs"])
    drawn.update(jobs=[], stop=stop)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, found, tmp_path / "out")
    before = len(drawn["jobs"])
    drawn["stop"] = None
    again = run(pipe, found, tmp_path / "out")
    assert untimed(again) == untimed(whole) and 0 < before < count == len(drawn["jobs"])


def test_what_is_damaged_is_looked_at_anew_without_drawing(pipe, tmp_path, drawn):
    found = planned_of(MANY, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"])
    count = len(drawn["jobs"])
    (tmp_path / "out" / "seen" / "uce-published-000.json").write_text('{"key"')
    assert untimed(run(pipe, found, tmp_path / "out", ["uce"])) == untimed(whole) and len(drawn["jobs"]) == count


def test_tuned_settings_are_a_second_row_and_are_measured_anew_when_they_change(pipe, tmp_path, drawn):
    found = planned_of(MANY, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"], tuned={"uce": {"lambda_": 5.0}})
    assert [(r["method"], r["settings"]) for r in whole["rows"] if r["metric"] == "Acc_e"] == [
        ("original", ""), ("uce", "published"), ("uce", "tuned")
    ]  # fmt: skip
    values = whole["environment"]["settings"]
    assert (values["uce (published)"]["lambda_"], values["uce (tuned)"]["lambda_"]) == (0.5, 5.0)
    count = len(drawn["jobs"])
    run(pipe, found, tmp_path / "out", ["uce"], tuned={"uce": {"lambda_": 0.01}})
    assert len(drawn["jobs"]) == count * 4 // 3  # one row of three


def test_a_method_that_refuses_is_not_measured_and_the_others_are(pipe, tmp_path):
    @register("refuses", Settings)
    def refuses(request, settings):
        raise MaceError("It does not do that.")

    try:
        whole = run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", ["refuses", "uce"])
    finally:
        del _METHODS["refuses"]
    row = {"method": "refuses (published)", "metric": "all", "why": "It does not do that."}
    assert row in whole["not_measured"] and {r["method"] for r in whole["rows"]} == {"original", "uce"}


def test_a_training_that_was_done_is_kept(pipe, tmp_path, drawn):
    built, found = [], planned_of(MANY, tmp_path)

    @register("slow", Settings, trains=True)
    def slow(request, settings):
        built.append(1)
        return _METHODS["original"].make(request, settings)

    try:
        drawn["stop"] = 20  # the original and a part of the method
        with pytest.raises(KeyboardInterrupt):
            run(pipe, found, tmp_path / "out", ["slow"])
        drawn["stop"] = None
        whole = run(pipe, found, tmp_path / "out", ["slow"])
        quick, recorded = (ways(None, dataclasses.replace(found, profile=name), {}) for name in ("quick", "recorded"))
        assert Way("slow", "published") not in quick and Way("slow", "published") in recorded
    finally:
        del _METHODS["slow"]
    assert built == [1] and {r["training_seeds"] for r in whole["rows"] if r["method"] == "slow"} == {1}


def test_mace_is_trained_as_by_itself_and_its_time_goes_on(pipe, tmp_path, drawn):
    values = {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 2}}
    found, way = planned_of({**MANY, "kept": [ROWS["cat"]]}, tmp_path), Way("mace", "tuned", values)
    options = {"classifier": Judge(), "batch": 4}
    folder = tmp_path / "out"
    (folder / "spent").mkdir(parents=True)
    (folder / "spent" / "mace-tuned-000.json").write_text("1000.0")  # of a run that was cut short
    (folder / "run.json").write_text(json.dumps(about_of(pipe, found, tmp_path)))
    drawn["stop"] = len(drawn["jobs"]) + 20  # the original and a part of the method
    with pytest.raises(KeyboardInterrupt):
        compare(pipe, found, [ORIGINAL, way], folder, **options)
    kept = Erasure.load(folder / "edits" / "mace-tuned-000.safetensors")
    own = build(pipe, found.erasures[0], "mace", values, task="object", kept=["cat"])
    weights = {name: w.detach() for name, w in kv_weights(pipe.unet).items()}
    for (name, a), (_, b) in zip(kept.weights(weights), own.weights(weights), strict=True):
        assert (a - b).abs().max() < 1e-5, name
    drawn["stop"] = None
    whole = results.read(compare(pipe, found, [ORIGINAL, way], folder, **options))
    time = next(r for r in whole["rows"] if r["metric"] == "time, s")
    assert time["mean"] > 1000 and whole["environment"]["settings"]["mace (tuned)"]["train"]["steps"] == 2


def about_of(pipe, found, tmp_path):
    """What a folder says of its run."""
    compare(pipe, found, [ORIGINAL], tmp_path / "about", classifier=Judge(), batch=4)
    return json.loads((tmp_path / "about" / "run.json").read_text())


def test_another_run_s_folder_is_refused(pipe, tmp_path):
    found = planned_of(MANY, tmp_path)
    run(pipe, found, tmp_path / "out", [])
    with pytest.raises(MaceError, match=r"pictures of another run .*seeds differ"):
        run(pipe, planned_of(MANY, tmp_path, seeds=1), tmp_path / "out", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with locked(tmp_path / "out" / ".lock", "it"), pytest.raises(MaceError, match="Another process is at work"):
        run(pipe, found, tmp_path / "out", [])
    with pytest.raises(MaceError, match="holds what no comparison has written"):
        run(pipe, found, tmp_path / "other", [])


@pytest.mark.slow
def test_an_engine_measures_rows_in_processes_of_their_own(tmp_path, monkeypatch):
    from macelib import load_pipeline
    from macelib.batch import make_engine

    monkeypatch.setattr(pictures, "generate", generate)  # other processes draw, too
    tiny_pipeline("sd").save_pretrained(tmp_path / "model")
    tiny_judge(KNOWN).save_pretrained(tmp_path / "judge")
    pipe, found = load_pipeline(str(tmp_path / "model"), device="cpu"), planned_of(MANY, tmp_path, profile="quick")
    options = {"classifier": str(tmp_path / "judge")}
    here = run(pipe, found, tmp_path / "here", METHODS, **options)
    there = run(pipe, found, tmp_path / "there", METHODS, engine=make_engine("local", jobs=1, threads=1), **options)
    assert untimed(here) == untimed(there)
    with pytest.raises(MaceError, match="name the classifier in text"):
        run(pipe, found, tmp_path / "objects", ["uce"], engine=make_engine("local"))


# --- the plan and the command -------------------------------------------------------------------------------------


def test_profiles_say_how_much_is_drawn():
    characters, objects = task("mini-characters"), task("mini-objects")
    recorded = planned(characters, 100, "recorded")
    assert (len(recorded.templates), len(recorded.seeds), recorded.steps, recorded.name) == (2, 3, 8, "characters-100")
    assert len(recorded.erasures) == 1 and len(recorded.erasures[0]) == len(recorded.told) == 100
    ten = planned(objects, None, "recorded")
    assert (len(ten.erasures), len(ten.seeds), ten.steps, ten.told) == (10, 20, 8, ())
    paper = planned(characters, 30, "paper")
    assert (len(paper.templates), len(paper.seeds), paper.steps) == (5, 5, 25)
    assert len(planned(task("mini-two-things"), None, "recorded").templates) == 2


def test_tasks_by_the_names_that_people_write():
    sd, mini = ("sd", "mini"), ("mini", "sd")
    for name, worlds, expected in [
        ("objects", mini, ("mini-objects", None)), ("objects", sd, ("sd-objects", None)),
        ("characters-1", mini, ("mini-characters", 1)), ("characters-1", sd, ("sd-celebrities-1", None)),
        ("characters-10", sd, ("sd-celebrities", 10)), ("two-things", sd, ("mini-two-things", None)),
    ]:  # fmt: skip
        found, count = find(name, worlds)
        assert (found.name, count) == expected
    kinds = {"characters": "celebrity", "unsafe": "unsafe", "styles": "style", "objects": "object"}
    assert {name: settings_kind(find(name)[0]) for name in kinds} == kinds
    for name, text in [("object", "near it: objects"), ("characters-31", "it erases 1, 5"), ("zzz", "two-things")]:
        with pytest.raises(MaceError, match=text):
            find(name)


def test_rows_of_methods():
    found = planned(task("mini-objects"))
    quick, every = ways(None, found, {}), ways(None, planned(task("mini-objects"), None, "paper"), {})
    assert quick[0] == every[0] == ORIGINAL and {way.method for way in every} == set(methods())
    assert not {"mace", "esd-x"} & {way.method for way in quick} and "mace-stage-1" in {way.method for way in quick}
    chosen = ways(["oce", "uce", "original"], found, {"uce": {"beta": 2.0}})
    assert list(map(str, chosen)) == ["original", "oce (published)", "uce (published)", "uce (tuned)"]


def test_tuned_settings_are_read_and_refused(tmp_path):
    path = tmp_path / "tuned.yaml"
    assert tuned_settings("object", path) == {}
    path.write_text("uce: {celebrity: {lambda_: 5.0}, object: {beta: 0.1}}\ndp: {celebrity: {k: 16}}\n")
    assert tuned_settings("celebrity", path) == {"uce": {"lambda_": 5.0}, "dp": {"k": 16}}
    assert tuned_settings("style", path) == {}
    for text, said in [
        ("uec: {object: {}}", "no method 'uec'; near it: uce"), ("uce: {objects: {}}", "near it: object"),
        ("uce: {object: {lambda: 1}}", "no setting of uce 'lambda'; near it: lambda_"), ("uce: 3", "must map methods"),
    ]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(MaceError, match=said):
            tuned_settings("object", path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline("sd").save_pretrained(folder / "tiny")
    tiny_judge(KNOWN).save_pretrained(folder / "judge")
    (folder / "pets.yaml").write_text(yaml.safe_dump(MANY), encoding="utf-8")
    return folder


def test_the_command_writes_the_table_and_shows_it(model, tmp_path, capsys):
    common = ["--model", model / "tiny", "--classifier", model / "judge", "--device", "cpu", "--out", tmp_path / "out"]
    code, said, errors = mace(capsys, "compare", "--task", model / "pets.yaml", "--methods", "uce, dp", *common)
    assert code == 0, errors
    whole = results.read(tmp_path / "out" / "pets.json")
    assert whole["command"].startswith("mace compare --task") and {r["method"] for r in whole["rows"]} >= {"uce", "dp"}
    assert "| uce | published |" in said and "not measured" in errors
    some = ["--metrics", "Acc_e,H_c", "--methods", "uce"]
    assert mace(capsys, "compare", "-t", model / "pets.yaml", *some, *common)[0] == 0
    assert {r["metric"] for r in results.read(tmp_path / "out" / "pets.json")["rows"]} == {"Acc_e", "H_c"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "uec"], "no method 'uec'; near it: uce"),
        (["--methods", ","], "The list is empty"),
        (["--profile", "fast"], "no profile 'fast'; there are quick, recorded, paper"),
        (["--task", "objekts"], "no task 'objekts'; near it: objects"),
        (["--only", "shipp"], "no concept in pets 'shipp'; near it: ship"),
        (["--engine", "cloud"], "choose from local, ray"),
        (["--jobs", "2"], "--jobs belongs to an engine"),
        (["--record", "--only", "ship"], "A part of a task is not recorded"),
        (["--task", "sd-explicit"], "macelib[explicit]"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(model, tmp_path, capsys, options, words):
    given = ["--task", model / "pets.yaml", "--model", "nowhere", "--out", tmp_path / "out", *options]
    code, _, said = mace(capsys, "compare", *given)
    assert code == 1 and words in said and not (tmp_path / "out").exists()


def test_names_that_are_not_known_are_refused_before_anything_is_drawn(pipe, tmp_path, drawn):
    found = planned_of({**MANY, "kept": [ROWS["cat"] | {"name": "zebra"}]}, tmp_path)
    with pytest.raises(MaceError, match="knows no concept 'zebra'"):
        run(pipe, found, tmp_path / "out")
    with pytest.raises(MaceError, match="no metric 'Acc_x'; near it: Acc_"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", metrics=["Acc_x"])
    with pytest.raises(MaceError, match="among those that are measured 'mace'; near it: uce"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", ["uce"], against="mace")
    with pytest.raises(MaceError, match=r"nudenet is needed here .*macelib\[explicit\]"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", classifier="nudenet")
    with pytest.raises(MaceError, match="0 seeds"):
        planned_of(MANY, tmp_path, seeds=0)
    assert not drawn["jobs"] and "H_c difference" in metric_names(planned_of(MANY, tmp_path))


def test_what_is_looked_for(pipe, tmp_path):
    jobs, look = [("a ship", 0), ("a ship", 1)], Judge()
    images = pictured(pipe, *zip(*jobs, strict=True))
    seen = Looking(planned_of(MANY, tmp_path), look)(images, jobs)
    assert [s["known"] for s in seen] == look.top1(images)
    assert [s["classes"] for s in seen] == look.top1(images, ["cat", "ship", "frog"])
    assert json.loads(json.dumps(seen)) == seen
    wider = Looking(planned_of(MANY, tmp_path), ByPixel())(images, jobs)
    assert [s["wider"] for s in wider] == ByPixel().top1(images, ["cat", "ship", "frog", "sea", "a thing"])
