"""Names to keep harm no others: the study's lists, its paired differences by hand, and a run on a small pipeline."""

from dataclasses import replace

import pandas as pd
import pytest

from macelib import EraseConfig, MaceError, evaluate
from macelib.evaluate import keeping, record
from macelib.evaluate.keeping import differences, keeping_lists, keeping_study
from macelib.evaluate.metrics import wilson
from macelib.models.families import MINI, UNKNOWN
from macelib.models.mini import catalogue
from macelib.models.tiny import tiny_pipeline


def test_lists_meet_neither_each_other_nor_other_studies():
    looked, kept = keeping_lists(MINI)
    assert len(set(looked)) == 25 and len(set(kept)) == 20 and not set(looked) & set(kept)
    apart = {name for names in MINI.split().values() for name in names} | {c.name for c in evaluate.object_list(MINI)}
    assert not apart & {*looked, *kept}
    groups = {entry.name: entry.group for entry in catalogue()}
    assert not {groups[name] for name in [*looked, *kept]} & {"unsafe", *MINI.people}
    with pytest.raises(MaceError, match="needs a catalogue"):
        keeping_lists(UNKNOWN)
    few = {*kept[:10], *(concept.name for concept in evaluate.object_list(MINI))}
    with pytest.raises(MaceError, match="10 names of mini-SD are left, and this study needs 45"):
        keeping_lists(replace(MINI, catalogue=lambda: [e for e in catalogue() if e.name in few]))


def test_differences_are_paired():
    """Every picture of b is lost with names to keep, none of a: half of all, whatever the level of the others is."""
    rows = [
        {"erased": "ship", "kept": k, "name": name, "seed": seed, "value": float(seed % 2 and not (k and name == "b"))}
        for k in (0, 1)
        for name in "ab"
        for seed in range(4)
    ]
    none, one = differences(pd.DataFrame(rows)).to_dict("records")
    assert none["value"] == 50 and none["difference"] == none["low"] == none["high"] == 0
    assert one["value"] == 25 and one["difference"] == -25 and one["low"] < -25 < one["high"] <= 0


def test_a_difference_that_is_nought_everywhere_is_not_certain():
    rows = [
        {"erased": "ship", "kept": k, "name": name, "seed": seed, "value": 1.0}
        for k in (0, 1)
        for name in "ab"
        for seed in range(4)
    ]
    none, one = differences(pd.DataFrame(rows)).to_dict("records")
    assert none["low"] == none["high"] == 0  # with itself
    assert one["difference"] == 0 and one["low"] == -one["high"] == pytest.approx(-100 * (1 - wilson(8, 8)[0]))


def test_recorded_studies_are_shown_and_others_refused():
    assert "| mean of 10 | erased |" in evaluate.recorded("objects")
    with pytest.raises(MaceError, match=r"No study .styles. is recorded .* characters, "):
        evaluate.recorded("styles")


class Right:
    """Recognises every picture."""

    name, concepts = "right", ["cat", "dog"]

    def check(self, names):
        pass

    def top1(self, images, among=None):
        return ["cat"] * len(images)


@pytest.mark.slow
def test_the_study(tmp_path, monkeypatch):
    pipe = tiny_pipeline("sd")
    config = EraseConfig.from_dict({
        "prior": {"captions": "builtin"}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 1},
    })  # fmt: skip
    monkeypatch.setattr(keeping, "keeping_lists", lambda family: (["cat", "dog"], ["castle"]))
    told = []
    found = keeping_study(
        pipe, tmp_path, config, seeds=range(2), classifier=Right(), steps=1, batch=4,
        progress=lambda stage, *rest: told.append(stage),
    )  # fmt: skip
    assert list(found.metrics.kept) == [0, 1, 0, 1] and list(found.metrics.value) == [50] * 4
    assert list(found.metrics.erased) == ["ship"] * 2 + ["ship + frog + horse"] * 2
    assert "ship, 1 kept: pictures" in told and (tmp_path / "evaluation" / "metrics.csv").exists()
    page = record.markdown(record.record("keeping", found, tmp_path / "kept"))
    assert "| ship + frog + horse | 1 | 50.0 | +0.0 | -70.7 to +70.7 |" in page and "2 names that were not" in page
    kept = [e["settings"]["prior"]["names"] for e in found.settings["config"]]
    assert kept == [(), ("castle",)] * 2
