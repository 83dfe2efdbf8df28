"""Tuned settings of other methods than MACE: which points are tried, on which names; kept, gone on with, recorded."""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import product

import pandas as pd
import pytest
from PIL import Image
from test_cli import mace
from test_evaluate import ByPixel

from macelib import MaceError, evaluate
from macelib.baselines import build, method, register, tunable
from macelib.baselines.registry import _METHODS, Settings
from macelib.compare import tuned_settings
from macelib.evaluate import pictures, protocols, studies, tuning
from macelib.evaluate.tasks import task, tasks
from macelib.evaluate.tuned import record_tuned
from macelib.evaluate.tuning import Grid, trials
from macelib.files import data_folder, hash_text
from macelib.models.families import MINI
from macelib.models.mini import split
from macelib.models.swap import applied_edit
from macelib.models.tiny import tiny_pipeline
from macelib.templates import fill

LIKE = Grid(few=2, many=2, alone=({}, {"seed": 1}), together=({}, {"seed": 1}, {"seed": 2}))
OPTIONS = {"classifier": ByPixel(), "steps": 1, "batch": 4}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Pictures that depend on prompt, seed and edit, and take no time; "stop": after how many the process is killed."""
    monkeypatch.setattr(tuning, "family_of", lambda _: MINI)
    seen = {"jobs": [], "stop": None}

    def pictured(pipe, prompts, seeds, *args, **kw):
        if seen["stop"] is not None and len(seen["jobs"]) >= seen["stop"]:
            raise KeyboardInterrupt
        edit = applied_edit(pipe)
        jobs = [(prompt, seed, "" if edit is None else edit.key) for prompt, seed in zip(prompts, seeds, strict=True)]
        seen["jobs"] += jobs
        return [Image.frombytes("RGB", (4, 5), hash_text(*job).encode()[:60]) for job in jobs]

    monkeypatch.setattr(pictures, "generate", pictured)
    return seen


@dataclass(frozen=True)
class Slowly(Settings):
    size: float = 1.0


@pytest.fixture
def slow():
    """A method that trains: how often it was built, by size; sizes below 1 are refused."""
    built = []

    @register("slow", Slowly, grid={"size": (0.5, 2.0)}, trains=True)
    def slow(request, settings):
        built.append(settings.size)
        if settings.size < 1:
            raise MaceError("It is too small.")
        return method("original").make(request, settings)

    yield built
    del _METHODS["slow"]


def tuned(pipe, folder, name="uce", **options):
    return studies.grid_study(pipe, folder, trials(name, LIKE), **OPTIONS | options)


# --- which points -------------------------------------------------------------------------------------------------


def differing(a, b):
    return len({name for name in {**a, **b} if (name in a) != (name in b) or a.get(name) != b.get(name)})


@pytest.mark.parametrize("name", tunable())
def test_the_published_point_comes_first_and_each_next_one_is_the_farthest(name):
    grids = method(name).grid if isinstance(method(name).grid, tuple) else (method(name).grid,)
    for kind, most in (("object", 10), ("celebrity", 12)):
        start = vars(method(name).settings_for(kind))
        points = method(name).trials(kind, most)
        assert points[0] == {field: start[field] for grid in grids for field in grid}
        every = [dict(zip(g, values, strict=True)) for g in grids for values in product(*g.values())]
        others = [point for point in every if start | point != start]
        assert len(points) == min(most, 1 + len(others)) and all(point in others for point in points[1:])
        assert len({json.dumps(start | point) for point in points}) == len(points)
        for i in range(1, len(points)):
            nearest = [min(differing(p, q) for q in points[:i]) for p in others if p not in points[1:i]]
            assert min(differing(points[i], q) for q in points[:i]) == max(nearest)


def test_no_more_points_than_mace_has_in_the_same_list():
    like = Grid.load(data_folder() / "world" / "tuning.yaml")
    for name in tunable():
        grid = trials(name, like)
        assert (grid.few, grid.many, grid.method) == (like.few, like.many, name)
        assert len(grid.alone) <= len(like.alone) == 10 and len(grid.together) <= len(like.together) == 12
        if not method(name).trains:  # the others have as much time
            assert (len(grid.alone), len(grid.together)) == (10, 12), name
    assert trials("uce", like, ["together"]).alone == () != trials("uce", like, ["alone"]).alone
    with pytest.raises(MaceError, match=r"negative-prompt has nothing to tune here: it has no such settings.*uce"):
        trials("negative-prompt", like)
    with pytest.raises(MaceError, match="mace has nothing to tune here: its grid is a file"):
        trials("mace", like)
    with pytest.raises(MaceError, match="no method 'uec'"):
        Grid(method="uec", alone=({},))
    with pytest.raises(MaceError, match="whose settings are MACE's: tune mace"):
        Grid(method="mace-stage-1", alone=({},))
    with pytest.raises(MaceError, match="lambdaa is not a setting"):
        Grid(method="uce", alone=({"lambdaa": 1},))


# --- how they are measured ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_points_are_measured_as_mace_s_on_tuning_names_alone_and_drawn_once(pipe, tmp_path, drawn):
    result = tuned(pipe, tmp_path)
    rows = result.metrics.to_dict("records")
    assert [(row["erased"], row["point"]) for row in rows] == [
        ("alone", 1), ("alone", 2), ("together", 1), ("together", 2), ("together", 3)
    ]  # fmt: skip
    assert json.loads(rows[0]["settings"]) == {"tokens": "last", "lambda_": 0.5, "alpha": 1.0}
    for how in ("alone", "together"):
        of = [row for row in rows if row["erased"] == how]
        best = max(row["H_c"] for row in of)
        assert [row["point"] for row in of if row["chosen"]] == [next(r["point"] for r in of if r["H_c"] == best)]
    concepts, kept = evaluate.tuning_lists(2)
    for row in rows:  # by another route: built one by one, and measured by the protocol
        point, kind = json.loads(row["settings"]), "object" if row["erased"] == "alone" else "celebrity"
        if row["erased"] == "alone":
            edits = [build(pipe, [concept], "uce", point, task=kind) for concept in concepts]
        else:
            edits = [build(pipe, concepts, "uce", point, task=kind, kept=kept)]
        found = evaluate.characters(
            pipe, edits, kept, templates=protocols.TUNING_TEMPLATES, seeds=range(3), **OPTIONS
        ).table()
        for metric in ("Acc_e", "Acc_s", "Acc_a", "H_c"):
            assert row[metric] == pytest.approx(found.xs("erased", level="model")[metric].iloc[-1]), (row, metric)
        assert row["low"] <= row["H_c"] <= row["high"]
    ours = {fill(t, name) for t in protocols.TUNING_TEMPLATES for name in (*[c.name for c in concepts], *kept)}
    assert {prompt for prompt, *_ in drawn["jobs"]} == ours
    named = {row.name for found in map(task, tasks()) for row in (*found.erased, *found.kept)}
    assert not named & {*split()["erased"], *split()["kept"]}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_measured_points_are_kept(pipe, tmp_path, drawn, monkeypatch):
    whole = tuned(pipe, tmp_path / "whole")
    once = Counter(drawn["jobs"])
    assert set(once.values()) == {1}
    for stop in (9, len(once) - 5):
        drawn.update(jobs=[], stop=stop)
        with pytest.raises(KeyboardInterrupt):
            tuned(pipe, tmp_path / str(stop))
        drawn["stop"] = None
        again = tuned(pipe, tmp_path / str(stop))
        assert again.metrics.drop(columns="seconds").equals(whole.metrics.drop(columns="seconds"))
        assert Counter(drawn["jobs"]) == once
    monkeypatch.setattr(tuning, "build", None)  # nothing is made or drawn where all is measured
    monkeypatch.setattr(pictures, "generate", None)
    assert tuned(pipe, tmp_path / "whole").metrics.equals(whole.metrics)
    monkeypatch.undo()


@pytest.mark.slow
def test_other_seeds_are_measured_anew(pipe, tmp_path, drawn):
    tuned(pipe, tmp_path)
    count = len(drawn["jobs"])
    tuned(pipe, tmp_path, seeds=range(4))
    assert len(drawn["jobs"]) == count * 4 // 3


def test_what_is_trained_is_kept_and_what_is_refused_is_not_chosen(pipe, tmp_path, drawn, slow):
    drawn["stop"] = 16  # the original, and some of the first point
    with pytest.raises(KeyboardInterrupt):
        tuned(pipe, tmp_path, "slow")
    assert slow == [1.0, 1.0]  # two concepts, alone
    drawn["stop"] = None
    rows = tuned(pipe, tmp_path, "slow").metrics
    assert slow == [1.0, 1.0, 0.5, 1.0, 0.5, 2.0]
    refused = rows[rows.why != ""]
    assert [*refused.settings] == ['{"size": 0.5}'] * 2 and refused.H_c.isna().all() and not refused.chosen.any()
    assert {*refused.why} == {"It is too small."} and rows.chosen.sum() == 2


def test_a_method_that_refuses_every_point_is_not_tuned(pipe, tmp_path, slow):
    grid = Grid(few=2, many=2, together=({"size": 0.5},), method="slow")
    with pytest.raises(MaceError, match="slow refuses every point"):
        studies.grid_study(pipe, tmp_path, grid, **OPTIONS)


def test_no_point_begins_when_the_time_is_spent(pipe, tmp_path, slow):
    rows = tuned(pipe, tmp_path, "slow", minutes=0).metrics
    assert [*zip(rows.erased, rows.point, strict=True)] == [("alone", 1), ("together", 1)]


# --- recorded, and by command -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_chosen_is_recorded_and_read_by_comparisons(pipe, tmp_path, slow):
    record_tuned(tuned(pipe, tmp_path / "uce"), tmp_path / "kept")
    first = pd.read_csv(tmp_path / "kept" / "tuned.csv")
    path = record_tuned(tuned(pipe, tmp_path / "slow", "slow"), tmp_path / "kept")
    for how, kind in tuning.KINDS.items():
        of = first[(first.kind == kind) & first.chosen]
        chosen = tuned_settings(kind, path)
        assert chosen["uce"] == json.loads(of.settings.item()) and set(chosen) == {"uce", "slow"}, how
    only = trials("uce", LIKE, ["together"])
    before = tuned_settings("object", path)
    record_tuned(studies.grid_study(pipe, tmp_path / "uce", only, **OPTIONS), tmp_path / "kept")
    assert tuned_settings("object", path) == before
    table = pd.read_csv(tmp_path / "kept" / "tuned.csv")
    assert Counter(zip(table.method, table.kind, strict=True)) == {
        ("uce", "object"): 2, ("uce", "celebrity"): 3, ("slow", "object"): 2, ("slow", "celebrity"): 3
    }  # fmt: skip
    assert {*table.seeds} == {3} and {*table.steps} == {1} and {*table.judge} == {"by pixel"}
    assert {*table[table.why.notna()].settings} == {'{"size": 0.5}'}


def test_the_command_tunes_each_method_and_says_which_it_cannot(pipe, tmp_path, capsys, monkeypatch):
    from macelib.cli import measure

    monkeypatch.setattr(measure, "pipeline", lambda *_: pipe)
    monkeypatch.setattr(tuning, "classifier_for", lambda _: ByPixel())
    (tmp_path / "grid.yaml").write_text(json.dumps({"few": 1, "many": 2, "alone": [{}], "together": [{}, {"seed": 1}]}))
    common = ["study", "tuning", "--grid", tmp_path / "grid.yaml", "--seeds", "3", "--steps", "1"]
    code, said, errors = mace(capsys, *common, "--method", "uce, dp", "--task", "characters", "--out", tmp_path / "out")
    assert code == 0, errors
    assert "uce, together: 2 of its 18 points tried, 2 allowed." in said and "dp, together: 2 of its 12" in said
    assert (
        "uce, alone" not in said
        and "Nothing to tune: " in said
        and "negative-prompt" in said
        and "style, unsafe" in said
    )


def test_a_method_that_cannot_be_tuned_is_said_after_the_others(capsys):
    from macelib.cli.tuned import tune_each

    done = []

    def run(grid):
        if grid.method == "dp":
            raise MaceError("dp refuses every point.")
        done.append(grid.method)
        return tuning.Tuning(pd.DataFrame({"erased": ["alone"], "H_c": [1.0]}), {"preset": grid.method})

    with pytest.raises(MaceError, match=r"^Not tuned: dp: dp refuses every point\.$"):
        tune_each([trials(name, LIKE, ["alone"]) for name in ("dp", "uce", "rece")], run, record=False)
    assert done == ["uce", "rece"] and "rece, alone: 1 of its 12 points tried, 2 allowed." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "uec"], "no method 'uec'; near it: uce"),
        (["--method", "original"], "original has nothing to tune here"),
        (["--method", "uce", "--task", "styles"], "no task to choose settings for 'styles'"),
        (["--task", "objects"], "--task is for tuning with --method"),
        (["--method", "uce", "--count", "3"], "--count is not for --method"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(tmp_path, capsys, options, words):
    code, _, said = mace(capsys, "study", "tuning", "--model", "nowhere", "--out", tmp_path / "out", *options)
    assert code == 1 and words in said and not (tmp_path / "out").exists()
