"""What notebooks read of recorded tables, and what they say of them and of those that are missing."""

import doctest
import json

import pandas as pd
import pytest

from macelib.evaluate import results
from macelib.evaluate.numbers import DIFFERENCE
from macelib.evaluate.tasks import task
from macelib.lessons import recorded as r
from macelib.models.pipelines import model_hash
from macelib.models.tiny import tiny_pipeline


def row(method, metric, mean, low, high, settings="published", **beside):
    about = {"task": "objects", "method": method, "settings": settings, "metric": metric, "n": 5}
    return about | {"mean": mean, "low": low, "high": high} | beside


def test_a_recorded_study_of_other_weights_says_so(tmp_path, monkeypatch):
    folder, pipe = tmp_path / "studies" / "ablation", tiny_pipeline()
    folder.mkdir(parents=True)
    rows = [
        (way, model, "H_o", 50.0, 40, 60, 9) for way in ("stage 1 alone", "all") for model in ("original", "erased")
    ]
    frame = pd.DataFrame(rows, columns=["erased", "model", "metric", "value", "low", "high", "images"])
    frame.to_csv(folder / "metrics.csv", index=False)
    about = {
        "config": [{"concepts": [{"name": "ship"}]}],
        "steps": 8,
        "guidance": 3,
        "classifier": "a",
        "among": "known",
    }
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path))
    (folder / "metrics.csv").rename(folder / "later.csv")
    assert r.study("ablation", pipe).startswith("Not recorded yet: `mace study ablation --only ship ")
    (folder / "later.csv").rename(folder / "metrics.csv")
    for model, other in ((model_hash(pipe), False), ("another", True)):
        (folder / "settings.json").write_text(json.dumps({**about, "model": model}))
        told = r.study("ablation", pipe)
        assert ("Recorded for other weights" in told) == other
        assert told.startswith("| Way | Model |") and "in 8 steps" in told and "Erased: ship. By H_o" in told


ROWS = [
    row("original", "H_o", 1, 0, 3, ""), row("uce", "H_o", 60, 50, 70), row("uce", "H_o", 80, 75, 85, "tuned"),
    row("dp", "H_o", 95, 90, 99), row("mace", "H_o", 90, 85, 95),
    row("uce", "H_o difference", -30, -40, -20, against="mace (published)"),
    row("uce", "H_o difference", -10, -20, 0, "tuned", against="mace (published)"),
    row("dp", "H_o difference", 5, 1, 9, against="mace (published)"),
    row("uce", "time, s", 0.5, 0.4, 0.6), row("dp", "time, s", 2, 1, 3), row("mace", "time, s", 50, 40, 60),
    row("uce", "peak memory, MB", 500, 400, 600),
]  # fmt: skip
MISSING = [{"method": "safree", "metric": "all", "why": "more concepts than tokens."}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    results.write(tmp_path / "objects.json", "mace compare", {}, ROWS, MISSING)
    return tmp_path


def test_doctests():
    assert doctest.testmod(r).failed == 0 and f" {DIFFERENCE}" == r.PAIRED


def test_what_is_there_is_read_and_what_is_not_is_said(folder):
    assert list(r.found(["objects", "styles"])) == ["objects"] and r.missing_said(["objects"]) == ""
    told = r.missing_said(["objects", "styles", "attacks"])
    assert told.startswith("Not recorded yet: styles and attacks; `mace compare --task styles --profile recorded")
    assert "`mace attack " in r.missing_said(["attacks"]) and r.missing_said(["attacks"]).endswith("makes this table.")
    assert "this table (the others alike). `make evidence` makes all of them" in told


def test_a_file_of_several_tasks_is_taken_apart_and_its_model_named(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    rows = [row("mace", "H_o", 90, 85, 95), row("mace", "H_c", 70, 60, 80) | {"task": "characters-100"}]
    about = {"objects": {"model_name": "mini-sd"}, "characters-100": {"model_name": "mini-sd", "steps": 8}}
    results.write(tmp_path / "ablation.json", "mace compare", about, rows, [{"task": "objects", **MISSING[0]}])
    tables = r.by_task(r.found(["ablation"]))
    assert [(name, r.combined(of)) for name, of in tables.items()] == [
        ("ablation, objects", "H_o"), ("ablation, characters-100", "H_c"),
    ]  # fmt: skip
    assert [len(of["not_measured"]) for of in tables.values()] == [1, 0]
    assert r.heading(tables) == r.heading(r.found(["ablation"])) == "Recorded, on mini-sd." and r.heading({}) == ""
    assert r.titled("x", tables["ablation, objects"], "| a |") == "**x. Recorded, on mini-sd.**\n\n| a |"
    pipe, known = tiny_pipeline(), {"x": {"environment": {"model_name": "tiny", "model": "another"}}}
    assert r.heading(known, pipe) == "Recorded, on tiny, with other weights than those loaded."
    known["x"]["environment"]["model"] = model_hash(pipe)
    assert r.heading(known, pipe) == "Recorded, on tiny." == r.heading(known) and r.heading({}, pipe) == ""
    assert r.heading({"old": {"environment": {}}}) == "Recorded." and len(r.tasks_figure(tables).axes) == 2


def test_each_count_of_one_file_is_missed_by_itself(tmp_path, monkeypatch):
    assert r.PARTS["scaling"] == task("mini-scaling").counts
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    results.write(
        tmp_path / "scaling.json", "mace compare", {}, [row("uce", "H_c", 1, 0, 2) | {"task": "scaling-300"}], []
    )
    told = r.missing_said(["scaling"])
    assert "scaling-1, scaling-3, scaling-10, scaling-30 and scaling-100; `mace compare --task scaling-1 " in told


def test_a_task_is_told_with_its_intervals(folder):
    (whole,) = r.found(["objects"]).values()
    told = r.task_said("objects", whole)
    assert "H_o is highest for dp (95.0; 90.0 to 99.0)" in told
    assert "Against mace (published) on the same prompts and seeds" in told
    assert told.endswith("above: dp; below: uce; not told apart: uce, tuned.")
    assert "nothing is compared" in r.task_said("objects", whole | {"rows": ROWS[:3]})
    assert "no combined metric" in r.task_said("objects", whole | {"rows": ROWS[-1:]})
    assert r.unmeasured_said({"objects": whole}) == "Not measured: safree on objects (more concepts than tokens)."
    assert len(r.tasks_figure({"objects": whole, "styles": whole}).axes) == 2 and r.tasks_figure({}) is None


def test_what_an_edit_costs(folder):
    table = r.costs(r.found(["objects"])["objects"])
    assert table.seconds.to_dict() == {"uce": 0.5, "dp": 2.0, "mace": 50.0} and table["peak MB"]["uce"] == 500
    told = r.costs_said(table)
    assert "0.5 s (uce) to 50 s (mace)" in told and "As a multiple of the 50 s of mace: uce 0.01 and dp 0.04." in told
    assert told.endswith("Cheaper and with a better H_o, intervals ignored: dp.")
    assert "mace is not among them" in r.costs_said(table.drop("mace")) and len(r.costs_figure(table).axes) == 1
    both = pd.concat([table, table.loc[["mace"]].rename({"mace": "mace, tuned"}).assign(seconds=0.004)])
    assert "0.004 s of mace, tuned:" in r.costs_said(both.sort_values("seconds")), "judged by the tuned row"
    assert "No edit" in r.costs_said(table.iloc[:0])


def test_agreement_in_words():
    row = {"source": "A", "task": "objects", "settings": "tuned", "methods": 3, "tau": 1 / 3, "low": -1.0, "high": 1.0,
           "agree": 2, "pairs": 3, "p": 0.5, "apart": "uce and dp", "tied": "uce and oce"}  # fmt: skip
    told = r.agreement_said(pd.DataFrame([row]))
    assert "A as our objects, tuned settings: τ = 0.33 (-1.00 to 1.00), 2 of 3 pairs of 3 methods agree" in told
    assert "(p = 0.50; the other way round: uce and dp; equal: uce and oce)" in told
    assert "nothing can be said" in r.agreement_said(pd.DataFrame())
