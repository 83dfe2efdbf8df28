"""A comparison is gone on with after a kill, measures rows anew that changed, and refuses what it cannot do."""

import dataclasses
import importlib.util
import json
from importlib import import_module

import compare_tools
import pytest
from compare_tools import ALONE, KNOWN, MANY, METHODS, ROWS, Judge, planned_of, run, untimed
from tiny_data import tiny_judge

from macelib import Erasure, MaceError
from macelib.baselines import build, register
from macelib.baselines.registry import _METHODS, Settings
from macelib.compare import compare, measure, metric_names, ways
from macelib.compare.plan import ORIGINAL, Way
from macelib.evaluate import pictures, results
from macelib.files import locked
from macelib.models.families import family_of
from macelib.models.pipelines import kv_weights
from macelib.models.sample import generate
from macelib.models.tiny import tiny_pipeline

values = import_module("macelib.presets.values")  # the package has a function of this name
drawn, pipe = compare_tools.drawn, compare_tools.pipe


@pytest.mark.slow
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


def test_best_is_not_measured_while_nothing_is_chosen(pipe, tmp_path):
    whole = run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", ["mace-best"])
    (why,) = [row["why"] for row in whole["not_measured"] if row["method"] == "mace-best (tuned)"]
    assert why.startswith("Nothing has been chosen for the preset 'best' yet") and "mace study tuning --grid" in why
    assert {row["method"] for row in whole["rows"]} == {"original"}


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


@pytest.mark.slow
def test_mace_is_trained_as_by_itself_and_its_time_goes_on(pipe, tmp_path, drawn):
    values = {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 2}}
    found, way = planned_of({**MANY, "kept": [ROWS["cat"]]}, tmp_path), Way("mace", "tuned", values)
    options = {"classifier": Judge(), "batch": 4}
    folder = tmp_path / "out"
    (folder / "spent").mkdir(parents=True)
    key = measure.Measuring(found, None, None, folder, family=family_of(pipe))._key(way, (0, 0))
    spent = folder / "spent" / "mace-tuned-000.json"
    spent.write_text(json.dumps({"key": key, "seconds": 1000.0}))  # of a run that was cut short
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
    assert not spent.exists() and time["mean"] > 1000
    assert whole["environment"]["settings"]["mace (tuned)"]["train"]["steps"] == 2


@pytest.mark.slow
def test_a_preset_that_changed_is_measured_anew(pipe, tmp_path, monkeypatch):
    """What MACE's settings leave open is what the preset says today."""
    built, found = [], planned_of(MANY, tmp_path)
    monkeypatch.setattr(measure, "build", lambda *args, **options: built.append(args[2]) or build(*args, **options))
    rows = [ORIGINAL, Way("mace-stage-1", "tuned", {"prior": {"use": False}}), Way("uce", "published")]
    for lr in (1.0, 1.0, 2.0):
        monkeypatch.setitem(values.MINI_TRAIN, "object", {"lr": lr})
        compare(pipe, found, rows, tmp_path / "out", classifier=Judge(), batch=4)
    assert built == ["mace-stage-1", "uce", "mace-stage-1"]


def test_best_is_measured_anew_when_something_is_chosen(tmp_path, monkeypatch):
    run = measure.Measuring(planned_of(MANY, tmp_path), None, None, tmp_path)
    before = run._key(Way("mace-best", "tuned"), (0, 0))
    monkeypatch.setattr(values, "BEST", {"object": {"train": {"until": 0.5}}})
    assert run._key(Way("mace-best", "tuned"), (0, 0)) != before


def test_a_method_of_one_s_own_is_measured_anew_when_its_code_is_edited(tmp_path):
    measuring, keys = measure.Measuring(planned_of(MANY, tmp_path), None, None, tmp_path), []
    try:
        for factor in (1, 2, 2):
            path = tmp_path / f"{factor}.py"
            path.write_text(f"def mine(request, settings):\n    return {factor}\n")
            spec = importlib.util.spec_from_file_location(f"mine_{factor}", path)
            spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
            register("mine", Settings)(module.mine)
            keys.append(measuring._key(Way("mine", "published"), (0, 0)))
    finally:
        _METHODS.pop("mine", None)
    assert keys[0] != keys[1] == keys[2]


def about_of(pipe, found, tmp_path):
    """What a folder says of its run."""
    compare(pipe, found, [ORIGINAL], tmp_path / "about", classifier=Judge(), batch=4)
    return json.loads((tmp_path / "about" / "run.json").read_text())


def test_time_that_other_settings_took_is_not_counted(pipe, tmp_path):
    found, way = planned_of(MANY, tmp_path), Way("mace-stage-1", "tuned", {"prior": {"use": False}})
    spent = tmp_path / "out" / "spent" / "mace-stage-1-tuned-000.json"
    spent.parent.mkdir(parents=True)
    spent.write_text(json.dumps({"key": "of another learning rate", "seconds": 1000.0}))
    measuring = measure.Measuring(found, None, None, tmp_path / "out", family=family_of(pipe))
    measuring.built(pipe, way, (0, 0), lambda *_: None)
    assert measuring.made(way)[0]["seconds"] < 1000 and not spent.exists()


@pytest.mark.parametrize("values", [{"synonyms": ["boat"]}, {"super": "a boat"}])
def test_a_task_whose_names_are_described_anew_is_another_run(pipe, tmp_path, values):
    run(pipe, planned_of(ALONE, tmp_path), tmp_path / "out", [])
    edited = {**ALONE, "erased": [ROWS["ship"] | values, *ALONE["erased"][1:]]}
    with pytest.raises(MaceError, match=r"pictures of another run \(erased differ\)"):
        run(pipe, planned_of(edited, tmp_path), tmp_path / "out", [])


def test_another_run_s_folder_is_refused(pipe, tmp_path):
    found = planned_of(MANY, tmp_path)
    run(pipe, found, tmp_path / "out", [])
    with pytest.raises(MaceError, match=r"pictures of another run .*seeds differ"):
        run(pipe, planned_of(MANY, tmp_path, seeds=1), tmp_path / "out", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with locked(tmp_path / "out" / ".lock", "it"), pytest.raises(MaceError, match="Another process is at work"):
        run(pipe, found, tmp_path / "out", [])
    with pytest.raises(MaceError, match="holds no such run, but something else"):
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
    with pytest.raises(MaceError, match="name it in text"):
        run(pipe, found, tmp_path / "objects", ["uce"], engine=make_engine("local"))


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
