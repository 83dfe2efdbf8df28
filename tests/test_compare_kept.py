"""What a comparison leaves in `data/results`: its own table, one of several counts, and the ablation's."""

import dataclasses

import pytest

from macelib.compare import find, planned, record, report, ways
from macelib.compare.figures import figure
from macelib.evaluate import results


def row(task, method, mean, metric="H_c", settings="published"):
    return {
        "task": task, "method": method, "settings": "" if method == "original" else settings, "metric": metric,
        "mean": mean, "low": mean, "high": mean, "n": 6, "unit": "%",
    }  # fmt: skip


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path / "results")

    def keep(name, rows, missing=()):
        plan, path = planned(*find(name)), tmp_path / f"{name}.json"
        results.write(path, f"mace compare --task {name}", {"profile": "quick"}, rows, missing)
        path.with_suffix(".samples.csv").write_text("mace\n1\n")
        return [file.name for file in record(path, plan)]

    return keep


def test_a_table_is_kept_as_it_is_with_its_samples(kept, tmp_path):
    assert kept("unsafe", [row("unsafe", "uce", 50.0)]) == ["unsafe.json", "unsafe.samples.csv"]
    assert (tmp_path / "results" / "unsafe.json").read_bytes() == (tmp_path / "unsafe.json").read_bytes()


def test_the_counts_of_one_table_stand_in_their_order_and_a_new_one_takes_the_place_of_its_own(kept):
    why = {"method": "esd-u (published)", "metric": "all", "why": "no room"}
    kept("scaling-30", [row("scaling-30", "mace", 70.0)], [why])
    kept("scaling-3", [row("scaling-3", "mace", 90.0)])
    assert kept("scaling-30", [row("scaling-30", "mace", 71.0), row("scaling-30", "uce", 60.0)]) == ["scaling.json"]
    whole = results.of("scaling")
    found = [(r["task"], r["method"], r["mean"]) for r in whole["rows"]]
    assert found == [("scaling-3", "mace", 90.0), ("scaling-30", "mace", 71.0), ("scaling-30", "uce", 60.0)]
    assert whole["not_measured"] == [] and set(whole["environment"]) == {"scaling-3", "scaling-30"}
    lines = report.markdown(whole).splitlines()
    assert lines[0].startswith("| Task | Method |") and lines[2].startswith("| scaling-3 | mace | published | 90.0 |")
    assert figure(whole) is None


def test_a_whole_list_that_no_count_names_has_its_place_too(kept, tmp_path):
    kept("scaling-30", [row("scaling-30", "mace", 70.0)])
    plan = planned(dataclasses.replace(find("scaling")[0], counts=(3, 30)))
    path = results.write(tmp_path / "all.json", "mace compare", {}, [row("scaling-300", "mace", 60.0)], [])
    assert plan.name == "scaling-300" and [file.name for file in record(path, plan)] == ["scaling.json"]
    assert [r["task"] for r in results.of("scaling")["rows"]] == ["scaling-30", "scaling-300"]


def test_the_ablation_is_what_objects_and_characters_say_of_mace_and_its_parts(kept):
    rows = [row("objects", m, x, "H_o") for m, x in (("original", 0.0), ("uce", 80.0), ("mace", 95.0))]
    why = [{"method": name, "metric": "residual", "why": "none"} for name in ("mace-stage-1 (published)", "uce")]
    assert "ablation.json" in kept("objects", rows, why)
    people = [row("characters-100", m, x) for m, x in (("mace-values-only", 40.0), ("mace-best", 99.0))]
    assert "ablation.json" in kept("characters-100", people)
    whole = results.of("ablation")
    assert [(r["task"], r["method"]) for r in whole["rows"]] == [
        ("objects", "original"), ("objects", "mace"), ("characters-100", "mace-values-only"),
    ]  # fmt: skip
    assert whole["not_measured"] == [{"task": "objects", **why[0]}]
    assert "ablation.json" not in kept("unsafe", [row("unsafe", "mace", 50.0)])


def test_a_task_names_the_methods_and_settings_that_it_is_for():
    plan = planned(*find("scaling-10"), "recorded")
    assert plan.kind == "celebrity" and len(plan.erasures[0]) == 10 and len(plan.told(0)) == 39
    names = [way.method for way in ways(None, plan, {})]
    assert names == ["original", "mace", "mace-best", "mace-stage-1", "mace-added-up", "uce", "speed"]
    quick = planned(*find("scaling-10"), "quick")
    assert [way.method for way in ways(None, quick, {})] == ["original", "mace-stage-1", "uce", "speed"]
