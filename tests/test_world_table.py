"""The quality table: its place in the README, which shows what the shipped report says of the shipped weights."""

import json

import pytest

from macelib.files import data_folder
from macelib.world import report, table


def test_the_readme_shows_the_report_of_the_shipped_weights():
    shipped = json.loads((data_folder() / "world" / "report.json").read_text())
    assert shipped["weights_sha256"] == report.weights_hash()
    assert table.readme_table(shipped) in (data_folder().parent / "README.md").read_text(encoding="utf-8")
    assert (data_folder() / "world" / "contact_sheet.png").is_file()


@pytest.fixture
def shipped():
    values = dict.fromkeys(table.TARGETS, 0.5)
    return {"measures": values, "share_of_pictures": 1.0, "steps": 25, "guidance": 5.0, "machine": "a laptop"}


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
