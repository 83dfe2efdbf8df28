"""The quality table: the README shows what the shipped report says, of the shipped weights."""

import json

import pytest

from macelib.files import data_folder
from macelib.world import report, table

ROOT = data_folder().parent


@pytest.fixture(scope="module")
def shipped():
    return json.loads((data_folder() / "world" / "report.json").read_text())


def test_the_readme_shows_the_report(shipped):
    assert table.readme_table(shipped) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (data_folder() / "world" / "contact_sheet.png").is_file()


def test_the_report_is_of_the_shipped_weights(shipped):
    assert shipped["weights_sha256"] == report.weights_hash()
    assert set(table.TARGETS) <= set(shipped["measures"])


def test_a_table_takes_the_place_of_the_last(tmp_path, shipped):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert table.into_readme(shipped, path)
    text = path.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith(f"{table.END}\nafter\n")
    assert text.count("|") == 4 * (2 + len(table.TARGETS))
    assert table.into_readme(shipped, path) and path.read_text() == text
    path.write_text("no place for it")
    assert not table.into_readme(shipped, path) and path.read_text() == "no place for it"


def test_a_part_of_the_pictures_is_said(shipped):
    assert "10 % of the pictures" in table.readme_table(shipped | {"share_of_pictures": 0.1})
    assert "of the pictures" not in table.readme_table(shipped | {"share_of_pictures": 1.0})
