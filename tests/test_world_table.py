"""The quality table: its place in the README, which shows what the shipped report says of the shipped weights."""

import json

import pytest
import torch
from factory import report, table

from macelib.files import data_folder


def test_the_readme_shows_the_report_of_the_shipped_weights():
    shipped = json.loads((data_folder() / "world" / "report.json").read_text())
    assert shipped["weights_sha256"] == report.weights_hash()
    assert table.readme_table(shipped) in (data_folder().parent / "README.md").read_text(encoding="utf-8")
    assert (data_folder() / "world" / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("value", "target", "said"),
    [
        (0.398, "0.40 to 0.90", ", missed"),
        (0.95, "0.40 to 0.90", ", missed"),
        (0.4, "0.40 to 0.90", ""),
        (0.59, ">= 0.60", ", missed"),
        (0.7, ">= 0.60", ""),
        (13.0, "<= 12", ", missed"),
        (3.0, "<= 12", ""),
        (0.01, "", ""),
    ],
)
def test_a_missed_target_is_said(value, target, said):
    assert table.missed(value, target) == said


@pytest.fixture
def shipped():
    values = dict.fromkeys(table.TARGETS, 0.5)
    return {
        "measures": values,
        "share_of_pictures": 1.0,
        "steps": 25,
        "precision": "bf16",
        "guidance": 5.0,
        "machine": "a laptop",
    }


def test_a_report_goes_on_where_it_stopped_with_the_steps_that_it_was_told(tmp_path, monkeypatch):
    asked, finished = [], []

    class Models:
        precision, device = None, torch.device("cpu")

        def __init__(self, steps, guidance):
            asked.append((steps, guidance))

    def measure_first(m, share):
        finished.append(share)
        return dict.fromkeys(table.TARGETS, 0.5)

    def measure_second(m, share):
        if len(asked) == 1:
            raise KeyboardInterrupt
        return {"objects": 0.9}

    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(report, "Models", Models)
    monkeypatch.setattr(report, "MEASURES", (measure_first, measure_second))
    monkeypatch.setattr(report, "contact_sheet", lambda m, path: None)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(tmp_path, 0.5, 12, 5.0)
    assert not (tmp_path / "report.json").exists()
    assert "0.900" in report.write_report(tmp_path, 0.5, 12, 5.0)
    written = json.loads((tmp_path / "report.json").read_text())
    assert asked == [(12, 5.0)] * 2 and finished == [0.5], "a finished measure was taken again"
    assert (written["steps"], written["precision"], written["share_of_pictures"]) == (12, "fp32", 0.5)
    assert "`python -m factory report --steps 12 --guidance 5`, in fp32," in table.readme_table(written)
    report.write_report(tmp_path, 0.5, 3, 5.0)
    assert finished == [0.5] * 2, "other steps are another report"
    report.write_report(tmp_path, 0.5, 3, 7.5)
    assert finished == [0.5] * 3, "another guidance is another report"


def test_a_table_has_a_place_in_a_page(tmp_path, shipped):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- report -->\nold\n<!-- end of report -->\nafter\n")
    assert table.into_readme(shipped, path)
    text = path.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("-->\nafter\n")
    assert text.count("|") == 4 * (2 + len(table.TARGETS))


def test_a_gpu_is_said(shipped):
    places = {"measure_speed": "cpu", "measure_objects": "NVIDIA H200"}
    assert "a laptop, pictures drawn on an NVIDIA H200." in table.readme_table(shipped | {"measured_on": places})
    assert "drawn on" not in table.readme_table(shipped | {"measured_on": {"measure_objects": "cpu"}})


def test_a_part_of_the_pictures_is_said(shipped):
    assert "10 % of the pictures" in table.readme_table(shipped | {"share_of_pictures": 0.1})
    assert "of the pictures" not in table.readme_table(shipped | {"share_of_pictures": 1.0})
