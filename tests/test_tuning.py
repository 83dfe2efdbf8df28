"""The grid that settings are chosen from: what it refuses, that its best point is taken, that it goes on."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import typer
from test_evaluate import FAST, QUICK, ByPixel

from macelib import EraseConfig, MaceError, evaluate, load_pipeline
from macelib.cli import app, tuned
from macelib.evaluate import pictures, record, studies, tuning
from macelib.files import data_folder
from macelib.models.families import MINI
from macelib.models.tiny import tiny_pipeline
from macelib.presets import values
from macelib.presets.values import HOW

GRID = {
    "few": 2,
    "many": 2,
    "alone": [{}, {"train": {"lr": 0.5}}],
    "together": [{"stages": "1", "prior": {"lambda3": 7.0}}],
    "cheaper": [{"images": {"masks": "drawing"}}],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alone": [], "together": [], "cheaper": []}, "A grid has 1 to 24 points, not 0"),
        ({"alone": [{"seed": i} for i in range(25)]}, "A grid has 1 to 24 points, not 27"),
        ({"alone": []}, "cheaper is MACE's, and compared with the first point of alone"),
        ({"alone": [{}, {}]}, r"alone\[1\]: the point \{\} stands there twice"),
        ({"alone": [{"train": {"lrr": 1}}]}, r"alone\[0\]: train.lrr is not a setting"),
        ({"alone": [3]}, r"alone\[0\] is 3; allowed: a mapping"),
        ({"alone": 3}, "alone is 3; allowed: a list of mappings"),
        ({"many": 1}, "many is 1"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(tmp_path, change, said):
    (tmp_path / "grid.yaml").write_text(json.dumps(GRID | change))
    with pytest.raises(MaceError, match=said) as error:
        evaluate.Grid.load(tmp_path / "grid.yaml")
    assert "grid.yaml" in str(error.value)


def test_a_point_is_refused_with_its_line(tmp_path):
    (tmp_path / "grid.yaml").write_text("alone:\n- {}\n- train:\n    lr: fast\n")
    with pytest.raises(MaceError, match=r"grid.yaml, line 3: alone\[1\]: train.lr is 'fast'; allowed: a number"):
        evaluate.Grid.load(tmp_path / "grid.yaml")


def test_less_time_than_none_is_refused_before_any_work(tmp_path):
    with pytest.raises(MaceError, match="minutes is -1; allowed: 0 or more"):
        tuning.tune(None, tmp_path, evaluate.Grid(alone=({},)), None, None, minutes=-1)
    with pytest.raises(MaceError, match="--minutes is -1; allowed: 0 or more"):
        tuned.check("tuning", "uce", None, -1.0, None, None)


@pytest.mark.slow
def test_every_point_is_measured_and_the_best_of_each_list_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "family_of", lambda _: MINI)
    monkeypatch.setattr(tuning, "family_of", lambda _: MINI)
    (tmp_path / "grid.yaml").write_text(json.dumps(GRID))
    pipe, grid = tiny_pipeline("sd"), evaluate.Grid.load(tmp_path / "grid.yaml")
    arguments = pipe, tmp_path / "out", grid, EraseConfig.from_dict(QUICK)
    result = evaluate.grid_study(*arguments, classifier=ByPixel(), **FAST)
    rows = result.metrics.to_dict("records")
    assert [(row["erased"], row["point"]) for row in rows] == [
        ("alone", 1), ("alone", 2), ("together", 1), ("cheaper", 1),
    ]  # fmt: skip
    assert [json.loads(row["settings"]) for row in rows] == [
        {},
        {"train": {"lr": 0.5}},
        {"stages": "1", "prior": {"lambda3": 7.0}},
        *GRID["cheaper"],
    ]
    first, second, third = rows[:3]
    assert third["chosen"] and first["chosen"] == (first["H_c"] >= second["H_c"]) != second["chosen"]
    erased, kept = evaluate.tuning_lists(2)
    assert result.settings["kept_names"] == kept
    held = {p.stem: evaluate_config(p) for p in (tmp_path / "out").glob("*.safetensors")}
    single = {f"{point}-{c.name}" for point in ("alone-1", "alone-2", "cheaper-1") for c in erased}
    assert set(held) == single | {"together-1"}
    assert held[f"cheaper-1-{erased[0].name}"].images.masks == "drawing"
    assert held[f"alone-2-{erased[0].name}"].train.lr == 0.5 != held[f"alone-1-{erased[0].name}"].train.lr
    assert (
        held["together-1"].stages == "1"
        and held["together-1"].prior.lambda3 == 7
        and held["together-1"].defaults == "celebrity"
    )
    for row in rows:
        assert row["low"] <= row["H_c"] <= row["high"]
    lines = record.markdown(record.record("tuning", result, tmp_path / "kept")).splitlines()
    assert lines[2].startswith("| alone | the preset |") and "| alone | train.lr 0.5 |" in lines[3]

    monkeypatch.setattr(pictures, "generate", None)  # all is there
    again = evaluate.grid_study(*arguments, classifier=ByPixel(), **FAST)
    assert again.metrics.equals(result.metrics)
    monkeypatch.setitem(import_module("macelib.presets.values").MINI_TRAIN, "object", {"lr": 9.0})
    monkeypatch.setattr(studies, "_erased", lambda *args: {}["erased anew"])
    with pytest.raises(KeyError, match="erased anew"):  # the preset fills what points leave open
        evaluate.grid_study(*arguments, classifier=ByPixel(), **FAST)


def test_the_shipped_grid_changes_settings_that_the_preset_has():
    grid = evaluate.Grid.load(data_folder() / "world" / "tuning.yaml")
    assert grid.alone[0] == {} == grid.together[0]
    assert len(grid.points()) == 22 and grid.many == 60 and not grid.cheaper
    cheaper = evaluate.Grid.load(data_folder() / "world" / "cheaper.yaml")
    assert [p["images"]["steps"] for p in (*cheaper.alone, *cheaper.cheaper)] == [25, 8, 15]


@pytest.mark.parametrize(("cheap", "chosen"), [((80.0, 95.0), 3), ((79.9, 80.1), 4), ((10.0, 79.0), None)])
def test_the_cheapest_that_changes_nothing_is_enough(cheap, chosen):
    """H_c of alone's first point has the interval 80 to 90; its second is better, and does not matter here."""
    how, H_c = ["alone", "alone", "together", "cheaper", "cheaper"], [85.0, 97.0, 60.0, *cheap]
    rows = zip(how, [1, 2, 1, 1, 2], H_c, [80, 95, 50, 0, 0], strict=True)
    found = tuning._best(pd.DataFrame(rows, columns=["erased", "point", "H_c", "low"]))
    assert sorted(found) == [1, 2, *([] if chosen is None else [chosen])]


def test_the_grid_of_candidates_has_the_preset_each_alone_and_some_together():
    grid = evaluate.Grid.load(data_folder() / "world" / "best.yaml")
    assert grid.few == 6 and grid.many == 60 and len(grid.points()) <= tuning.MOST
    for points in (grid.alone, grid.together):
        assert points[0] == {}
        named = [{f"{s}.{n}" for s, v in p.items() for n in (v if isinstance(v, dict) else {s})} for p in points]
        named = [names - {"refine.gamma"} for names in named]
        alone = {next(iter(names)) for names in named if len(names) == 1}
        assert alone == {
            "fuse.null_space", "refine.rounds", "prior.influence", "train.down", "written.written", "train.until"
        }  # fmt: skip
        assert all(names <= alone for names in named) and 2 <= sum(len(names) > 1 for names in named) <= 3


@pytest.mark.parametrize("grid", ["tuning", "best", "cheaper"])
def test_a_grid_s_command_runs_as_printed(grid):
    """What stands in the file's head has all that the command asks for, and is what is said elsewhere."""
    text = (data_folder() / "world" / f"{grid}.yaml").read_text()
    command = shlex.split(re.search(r"`(mace study [^`]+)`", text)[1])
    study = typer.main.get_command(app).commands["study"]
    given = study.make_context("study", command[2:]).params
    assert given["grid"] == Path(f"data/world/{grid}.yaml") and given["out"] == Path(f"runs/study/{grid}")
    assert given["record"] and given["protocol"] == "tuning"
    elsewhere = {"best": HOW, "cheaper": (data_folder().parent / "Makefile").read_text(encoding="utf-8")}
    assert shlex.join(command) in elsewhere.get(grid, shlex.join(command))


def test_no_point_is_told_a_name_that_it_is_measured_on(tmp_path):
    kept = evaluate.tuning_lists()[1]
    grid = evaluate.Grid(few=1, many=60, alone=({"companions": [kept[3]]},))

    def asked(how, concepts, names, point):
        return point

    told = values(MINI.preset, "object")["companions"]
    assert told and not {*told} & {*kept}
    pipe = load_pipeline("mini-sd", device="cpu")
    with pytest.raises(MaceError, match=f"companions has {kept[3]}, a name that settings are measured on.*alone 1"):
        tuning.tune(pipe, tmp_path, grid, None, asked, classifier=ByPixel(), **FAST)


def evaluate_config(path) -> EraseConfig:
    from macelib import Erasure

    return Erasure.load(path).config
