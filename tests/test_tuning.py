"""The grid that settings are chosen from: what it refuses, that its best point is taken, that it goes on."""

import json

import pytest
from test_evaluate import FAST, QUICK, ByPixel

from macelib import EraseConfig, MaceError, evaluate
from macelib.evaluate import pictures, record, studies, tuning
from macelib.files import data_folder
from macelib.models.families import MINI
from macelib.models.tiny import tiny_pipeline

GRID = {
    "few": 2,
    "many": 2,
    "alone": [{}, {"train": {"lr": 0.5}}],
    "together": [{"stages": "1", "prior": {"lambda3": 7.0}}],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alone": [], "together": []}, "A grid has 1 to 24 points, not 0"),
        ({"alone": [{"seed": i} for i in range(25)]}, "A grid has 1 to 24 points, not 26"),
        ({"alone": [{}, {}]}, r"alone has the point \{\} twice"),
        ({"alone": [{"train": {"lrr": 1}}]}, "train.lrr is not a setting"),
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


def test_every_point_is_measured_and_the_best_of_each_list_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "family_of", lambda _: MINI)
    monkeypatch.setattr(tuning, "family_of", lambda _: MINI)
    (tmp_path / "grid.yaml").write_text(json.dumps(GRID))
    pipe, grid = tiny_pipeline("sd"), evaluate.Grid.load(tmp_path / "grid.yaml")
    arguments = pipe, tmp_path / "out", grid, EraseConfig.from_dict(QUICK)
    result = evaluate.grid_study(*arguments, classifier=ByPixel(), **FAST)
    rows = result.metrics.to_dict("records")
    assert [(row["erased"], row["point"]) for row in rows] == [("alone", 1), ("alone", 2), ("together", 1)]
    assert [json.loads(row["settings"]) for row in rows] == [
        {},
        {"train": {"lr": 0.5}},
        {"stages": "1", "prior": {"lambda3": 7.0}},
    ]
    first, second, third = rows
    assert third["chosen"] and first["chosen"] == (first["H_c"] >= second["H_c"]) != second["chosen"]
    erased, kept = evaluate.tuning_lists(2)
    assert result.settings["kept_names"] == kept
    held = {p.stem: evaluate_config(p) for p in (tmp_path / "out").glob("*.safetensors")}
    assert set(held) == {f"alone-{i}-{c.name}" for i in (1, 2) for c in erased} | {"together-1"}
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


def test_the_shipped_grid_changes_settings_that_the_preset_has():
    grid = evaluate.Grid.load(data_folder() / "world" / "tuning.yaml")
    assert grid.alone[0] == {} == grid.together[0]
    assert len(grid.points()) == 22 and grid.many == 60


def evaluate_config(path) -> EraseConfig:
    from macelib import Erasure

    return Erasure.load(path).config
