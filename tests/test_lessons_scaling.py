"""Lesson 11: how the text's space fills with names, by a second route, and recorded tasks by their load."""

import doctest

import pandas as pd
import pytest
import torch

from macelib.errors import MaceError
from macelib.lessons import capacity as c
from macelib.lessons import scaling as s
from macelib.models.families import family_of
from macelib.models.mini import PEOPLE, catalogue
from macelib.models.tiny import tiny_pipeline

NAMES, KEPT = ["ninja", "judge", "red wizard", "horse"], ["queen", "polar bear"]


@pytest.fixture(scope="module")
def encoder():
    return c.of_pipeline(tiny_pipeline("sd"), "tiny")


def differences(encoder, names):
    rows = c.merged(c.rows_of(encoder, names, "a person", c.TRIED))
    return rows.f - rows.g  # (m, d)


def test_room_is_what_ridge_regression_explains(encoder):
    """tr G (G + εI)⁻¹ and the overlap again, as leverages of a ridge regression on the stacked differences."""
    table = s.room(encoder, NAMES, KEPT, [1, 2, 4]).rename(columns={"part of d": "part"})
    F, K = differences(encoder, NAMES), differences(encoder, KEPT)
    epsilon = float(F.square().sum()) / len(NAMES) / F.shape[1]
    for row in table.itertuples():
        F = differences(encoder, NAMES[: row.n])
        hat = F @ torch.linalg.lstsq(F.T @ F + epsilon * torch.eye(F.shape[1], dtype=F.dtype), F.T).solution
        assert row.directions == pytest.approx(float(hat.trace()), rel=1e-6)
        back = torch.linalg.solve(F.T @ F + epsilon * torch.eye(F.shape[1], dtype=F.dtype), F.T @ F)
        assert row.overlap == pytest.approx(float((K @ back * K).sum() / K.square().sum()), rel=1e-6)
        assert row.part == pytest.approx(row.directions / row.d)
    assert table.directions.is_monotonic_increasing and table.overlap.is_monotonic_increasing
    assert table.overlap.between(0, 1).all()


def test_the_erased_names_themselves_lie_in_their_space(encoder):
    own = s.room(encoder, NAMES, NAMES, [len(NAMES)]).overlap.item()
    assert own > s.room(encoder, NAMES, KEPT, [len(NAMES)]).overlap.item() and own > 0.5


def test_as_many_names_as_the_world_has():
    erased, kept = c.name_lists(tiny_pipeline("sd"))
    assert len(erased) == len(kept) == 100 and not set(erased) & set(kept)  # the paper's: no world
    mini = tiny_pipeline("sd", width=384, channels=8)
    assert family_of(mini).catalogue is not None
    erased, kept = c.name_lists(mini)
    people = {entry.name for entry in catalogue() if entry.group in PEOPLE}
    assert len(erased) == len(set(erased)) >= 300 and not set(erased) & set(kept)
    assert set(kept) <= people and set(erased[:103]) <= people and not set(erased[103:]) & people


def test_numbers_and_names_that_are_shown():
    assert doctest.testmod(s).failed == 0
    assert s.counts_of([3, 1, 300, 3], NAMES) == [1, 3]
    for numbers in ([300], [], [0, 3]):
        with pytest.raises(MaceError, match="allowed: 1 to 4"):
            s.counts_of(numbers, NAMES)
    assert s.samples(NAMES[:3]) == NAMES[:3] and s.samples([*"abcdefghijkl"]) == [*"acegik"]
    rows, labels = s.pairs([{"a": ["a0", "a1"]}, {"b": ["b0", "b1"], "c": ["c0", "c1"]}])
    assert rows == [["a0", None], ["a1", None], ["b0", "c0"], ["b1", "c1"]] and labels == ["a / b", "c"]


def whole(load, h, task="characters", **metrics):
    about = {"task": task, "method": "uce", "settings": "published", "n/d": load, "n": 9}
    values = {"H_c": h, **metrics}
    return {"rows": [{**about, "metric": m, "mean": v, "low": v - 1, "high": v + 1} for m, v in values.items()]}


def test_recorded_tasks_by_load():
    relations = {f"Acc_s {name}": value for name, value in zip(s.RELATIONS, (10, 50, 90), strict=True)}
    tables = {"b": whole(0.25, 40, **relations), "a": whole(0.01, 90), "c": whole(0.1, 80)}
    table = s.combined(tables)
    assert table["n/d"].tolist() == [0.01, 0.1, 0.25] and table["mean"].tolist() == [90, 80, 40]
    told = s.loads_said(table, "H_c")
    assert (
        told.startswith("H_c, characters: ")
        and "uce 90.0 to 40.0 (n/d = 0.010 to 0.250), falls most between 0.100 and 0.250 (-40.0)" in told
    )
    mixed = s.combined({**tables, "d": whole(0.01, 30, "scaling-3"), "e": whole(0.25, 20, "scaling-100")})
    assert len(mixed) == 5 and set(mixed.task) == {"characters", "scaling"}, "two tasks are two lines"
    assert "; H_c, scaling" not in s.loads_said(mixed, "H_c") and "H_c, scaling: uce 30.0" in s.loads_said(mixed, "H_c")
    panels = s.loads_figure(mixed, {"H_c": "joint"}).axes
    assert [(ax.get_title(), len(ax.lines)) for ax in panels] == [("characters: joint", 1), ("scaling: joint", 1)]
    grows = s.loads({"a": whole(0.1, 1), "b": whole(0.2, 3)}, ["H_c"])
    assert "most between" not in s.loads_said(grows, "Joint metric")
    assert "rises most between 0.100 and 0.200 (+2.0)" in s.loads_said(grows, "Seconds", worst=max)
    assert "most between" not in s.loads_said(table, "Seconds", worst=max)
    told = s.relations_said(s.loads(tables, list(relations)))
    assert told.endswith("greatest load, characters: uce same group 50, shares a word 10 and unrelated 90.")
    assert len(s.loads_figure(table, {"H_c": "H_c"}).axes) == 1
    assert s.loads_said(s.combined({}), "H_c") == "" and s.relations_said(s.loads({}, [])) == ""
    assert "uce 90.0 at n/d = 0.010 alone" in s.loads_said(s.combined({"a": whole(0.01, 90)}), "H_c")


def test_where_it_breaks():
    rows = [{"encoder": "tiny", "n": n, "n/d": n / 8, "left": 0.1 * n, "lost": 0.05} for n in (1, 4, 8)]
    rows += [{"encoder": "real", "n": n, "n/d": n / 8, "left": 0.1, "lost": 0.2} for n in (1, 4)]
    told = s.breaks_said(pd.DataFrame(rows), 0.4)
    assert told.startswith("Left and lost of the map with the best worst case add up to more than 0.4: tiny: first")
    assert told.endswith("tiny: first at n = 4 (n/d = 0.500); real: not up to n = 4.")
    other = s.breaks_said(pd.DataFrame([rows[1] | {"least sum": 0.31}, rows[3] | {"lost": 0.9}]), 0.4)  # one without
    assert "first at n = 4 (n/d = 0.500, where the least sum of any is 0.31); real: first at n = 1 (n/d" in other
    table = pd.DataFrame([
        {"n": 1, "d": 8, "directions": 2.0, "overlap": 0.1}, {"n": 4, "d": 8, "directions": 6.0, "overlap": 0.7},
    ])  # fmt: skip
    told = s.room_said(table)
    assert "2 of 8 directions, overlap 0.10 (n = 1) and 6 of 8" in told and "from n = 4 on" in told
    assert "Less than half" in s.room_said(table.iloc[:1]) and "up to n = 1" in s.room_said(table.iloc[:1])
