"""Lesson 04: easy and hard concepts, counted by hand."""

import math

import pandas as pd
import pytest

from macelib import MaceError
from macelib.lessons import samplings

NEAR = {"polar bear": ["bear", "teddy bear"], "ice cream": ["ice skate"]}
START = {"polar bear": 1.0, "bear": 1.0, "teddy bear": 0.5, "ice cream": 0.8, "ice skate": 1.0}
MEASURED = {  # (sampling, concept): step -> (own share, shares of the names beside it)
    ("cfis", "polar bear"): {10: (0.6, (1.0, 0.5)), 20: (0.5, (0.8, 0.4)), 30: (0.0, (0.0, 0.0))},
    ("uniform", "polar bear"): {10: (0.9, (1.0, 0.5)), 20: (0.8, (1.0, 0.5)), 30: (0.7, (1.0, 0.5))},
    ("cfis", "ice cream"): {10: (0.4, (0.9,)), 20: (0.0, (0.1,)), 30: (0.0, (0.0,))},
    ("uniform", "ice cream"): {10: (0.5, (0.9,)), 20: (0.3, (0.7,)), 30: (0.0, (0.5,))},
}


def rows():
    for sampling in ("cfis", "uniform"):
        yield from ({"sampling": sampling, "step": 0, "name": name, "share": s} for name, s in START.items())
    for (sampling, concept), by_step in MEASURED.items():
        for step, (own, beside) in by_step.items():
            for name, share in zip((concept, *NEAR[concept]), (own, *beside), strict=True):
                yield {"sampling": sampling, "step": step, "concept": concept, "name": name, "share": share}


def test_every_concept_has_names_beside_it():
    assert list(samplings.paired(["b", "a"], {"a": ["x"], "b": ["y"]})) == ["b", "a"]
    for near in ({"a": ["x"]}, {"a": ["x"], "b": []}, {"a": ["x"], "b": ["y"], "c": ["z"]}):
        with pytest.raises(MaceError, match="`near` has to give names for each"):
            samplings.paired(["a", "b"], near)


def test_concepts_are_compared_when_they_are_halved():
    table = samplings.by_concept([*rows()], NEAR)
    assert list(dict.fromkeys(table.concept)) == ["ice cream", "polar bear"], "the easiest first"
    found = table.set_index(["concept", "sampling"])
    assert found.steps["ice cream"].to_dict() == {"cfis": 10, "uniform": 20}
    assert found.kept["ice cream"].to_dict() == pytest.approx({"cfis": 90, "uniform": 70})
    assert found.steps["polar bear", "cfis"] == 20 and math.isnan(found.steps["polar bear", "uniform"])
    assert found.kept["polar bear", "cfis"] == pytest.approx(60) and found.before["polar bear"].tolist() == [75, 75]
    assert found.difficulty["ice cream", "cfis"] == 15 and found.difficulty["polar bear", "cfis"] == (20 + 2 * 30) / 2


def test_they_are_told_from_easy_to_hard():
    table = samplings.by_concept([*rows()], NEAR)
    told = samplings.concepts_said(table)
    assert "first: ice cream (original 100 %): cfis 90 % after 10 and uniform 70 % after 20; polar bear" in told
    assert told.endswith("polar bear (original 75 %): cfis 60 % after 20, never by uniform.")
    never = pd.DataFrame({**table.iloc[:1], "steps": [float("nan")]})
    assert "ice cream is not halved" in samplings.concepts_said(never)


def test_what_the_original_does_not_draw_is_left_out():
    rows_ = [{**row, "share": 0.0} if row["name"] == "ice cream" else row for row in rows()]
    assert set(samplings.by_concept(rows_, NEAR).concept) == {"polar bear"}
    none = samplings.by_concept([{**row, "share": 0.0} for row in rows()], NEAR)
    assert not len(none) and list(none) == samplings.COLUMNS and "no sampling" in samplings.concepts_said(none)
