"""Recorded results: what a file must hold, the tables that pages show, and where README and records disagree."""

import json

import pytest
from PIL import Image
from test_attacks_table import row as attack_row
from test_cli import mace

from macelib.attacks import Result
from macelib.compare import phenomena, published, report
from macelib.compare.figures import figure
from macelib.errors import MaceError
from macelib.evaluate import record, results
from macelib.evaluate.attacked import FOREIGN, write_table
from macelib.files import data_folder


def line(method, settings, metric, mean, half=1.0, **beside):
    about = {"task": "objects", "method": method, "settings": settings, "profile": "quick", "metric": metric}
    return about | {"mean": mean, "low": mean - half, "high": mean + half, "n": 50, "unit": "%"} | beside


ROWS = [
    line("original", "", "Acc_e", 98.0), line("original", "", "H_o", 3.0),
    line("uce", "published", "Acc_e", 12.34), line("uce", "published", "H_o", 80.0, n=1650),
    line("uce", "published", "H_o difference", -4.25, unit="points", against="mace (tuned)"),
    line("uce", "published", "time, s", 2.5, unit="s"),
    line("mace", "tuned", "Acc_e", 2.0), line("mace", "tuned", "H_o", 84.25),
]  # fmt: skip
ABOUT = {"profile": "quick", "steps": 8, "guidance": 7.5, "judge": {"name": "mini-judge"}}
MISSING = [{"method": "speed (published)", "metric": "all", "why": "It refuses."}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout of its own: data, and a README with a place for one task."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "studies").symlink_to(data_folder() / "studies")
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path / "data"))
    places = "".join(f"<!-- {m} -->\n<!-- end of {m} -->\n" for m in ("results objects", "study pairs"))
    (tmp_path / "README.md").write_text(f"Before.\n{places}![x](data/readme/results-objects.png)\nAfter.\n")
    return tmp_path


def write(name="objects", rows=ROWS):
    return results.write(results.place(name), "mace compare --task objects", ABOUT, rows, MISSING)


def test_the_readme_shows_what_is_recorded():
    assert report.disagreements() == [], "mace report"


def test_the_short_table_has_the_studies_that_are_recorded(folder):
    assert len(report.short().splitlines()) == 4 and ("study short", report.short()) in report.tables()
    (folder / "data" / "studies").unlink()
    assert report.short() == "" and not list(report.tables())


def test_tables_by_method_with_intervals():
    head, _, *lines, _, how = report.markdown(
        {"command": "c", "environment": ABOUT, "rows": ROWS, "not_measured": MISSING}
    ).splitlines()
    assert head == "| Method | Settings | Acc_e | H_o | 95 % of H_o | minus mace (tuned) | Time, s |"
    assert lines == [
        "| original |  | 98.0 | 3.0 | 2.0 to 4.0 |  |  |",
        "| uce | published | 12.3 | 80.0 | 79.0 to 81.0 | -4.2 (-5.2 to -3.2) | 2.5 |",
        "| mace | tuned | 2.0 | 84.2 | 83.2 to 85.2 |  |  |",
    ]
    assert how == (
        "Profile quick: 1,650 pictures a row; 8 steps at guidance 7.5; judged by mini-judge. "
        "Not measured: speed (published)."
    )


def test_a_table_says_how_settings_were_chosen():
    some = [("mace", "published", 1), ("mace", "tuned", 12), ("mace-best", "tuned", 23)]
    rows = [line(method, settings, "H_c", 80.0, chosen_among=n) for method, settings, n in some]
    whole = {"command": "c", "environment": ABOUT, "rows": rows, "not_measured": []}
    *lines, _, how = report.markdown(whole).splitlines()
    assert [row.split(" | ")[1] for row in lines[2:]] == ["published", "tuned, of 12", "tuned, of 23"]
    assert how.endswith(
        "Tuned settings are the best of as many as stand beside them, on names that no task has. "
        "mace-best was chosen among 23 settings, mace among 12."
    )
    rows = [line("mace", "published", "H_a", 8.0, chosen_among=1), line("mace", "preset", "H_a", 8.0)]
    how = report.markdown(whole | {"rows": [*rows, line("mace-best", "preset", "H_a", 8.0, chosen_among=24)]})
    assert how.endswith(
        "mace-best was chosen among 24 settings, of objects. For names of this kind nothing was tuned: preset is MACE "
        "as it stands for this model, and another method as it was tuned for objects; differences are to MACE's "
        "published settings."
    )


def test_a_table_of_several_tasks_has_each_one_s_joint_metric():
    rows = [line("uce", "published", "H_o", 80.0), line("uce", "published", "H_c", 70.0, task="people")]
    rows += [line("uce", "published", "H_c difference", -1.0, task="people", against="mace (tuned)")]
    head, _, *lines, _, _ = report.markdown(
        {"command": "c", "environment": ABOUT, "rows": rows, "not_measured": []}
    ).splitlines()
    assert head == "| Task | Method | Settings | H_o or H_c | 95 % of H_o or H_c | minus mace (tuned) |"
    assert lines == [
        "| objects | uce | published | 80.0 | 79.0 to 81.0 |  |",
        "| people | uce | published | 70.0 | 69.0 to 71.0 | -1.0 (-2.0 to +0.0) |",
    ]


def test_attacks_are_shown_beside_their_controls(tmp_path):
    rows = [attack_row(success=True), attack_row(), attack_row(variant="weaker"), attack_row(control="no-attack")]
    rows += [attack_row(control="original", method="original", success=True, pre=True)]
    rows += [attack_row(control="foreign", method="original")]
    missing = [{"attack": a, "control": "never-knew", "method": "never-knew", "metric": "ASR", "why": "No such model."}
               for a in ("noise", "wording")]  # fmt: skip
    whole = results.read(write_table(tmp_path / "attacks.json", Result(rows, missing), "mace attack", {}))
    gap = next(row for row in whole["rows"] if row["metric"] == FOREIGN and row["variant"] == "best of 2")
    assert gap["low"] < gap["mean"] == 50 < gap["high"]
    head, _, *lines, _, how = report.markdown(whole).splitlines()
    assert head == (
        "| Attack | Method | Settings | Variant | pre-ASR | ASR | 95 % of ASR "
        "| no attack | foreign | minus foreign | n |"
    )
    assert lines == [
        "| noise | uce |  | best of 2 (of 2 variants) | 0.0 | 50.0 | 9.5 to 90.5 | 0.0 | 0.0 "
        f"| +50.0 ({gap['low']:+.1f} to {gap['high']:+.1f}) | 2 |",
        "| noise | original |  | best of 2 | 100.0 | 100.0 | 20.7 to 100.0 |  | 0.0 |  | 1 |",
    ]
    assert how.startswith("By mace attack. Of several variants the one with the highest ASR is shown, chosen after")
    assert how.endswith(
        "Minus foreign: paired, by the same variant, with 95 %. "
        "Not measured: noise never-knew, wording never-knew: No such model."
    )
    (panel,) = figure(whole).axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["original", "uce"]


def test_the_order_beside_published_tables_is_shown_where_its_marks_stand(folder):
    (folder / "data" / "results").mkdir()
    (folder / "data" / "results" / "published.csv").write_text("source,task,method,h\n")
    report.render()
    page = folder / "README.md"
    assert "results agreement" not in page.read_text()
    page.write_text(page.read_text() + "<!-- results agreement -->\n<!-- end of results agreement -->\n")
    assert "results agreement" in report.disagreements()
    assert "results agreement: shown" in report.render() and published.NOTHING in page.read_text()
    assert "results agreement" not in report.disagreements()


def test_readme_is_rendered_and_checked(folder, capsys):
    picture, studies = "data/readme/results-objects.png", [mark for mark, _ in report.tables()]
    assert set(report.disagreements()) == {"results objects", *studies, picture} and len(studies) > 1
    write()
    said = report.render()
    assert "results objects: shown" in said and "study pairs: shown" in said
    assert all(f"{mark}: shown" in said for mark in studies) and str(folder / picture) in said
    page = (folder / "README.md").read_text()
    assert page.startswith("Before.\n") and page.endswith("After.\n") and "| uce | published | 12.3 |" in page
    assert record.markdown(data_folder() / "studies" / "pairs") in page and report.disagreements() == []
    assert mace(capsys, "report", "--check")[0] == 0
    write(rows=[*ROWS[:-1], line("mace", "tuned", "H_o", 85.25)])  # one number is another
    assert report.disagreements() == ["results objects", picture]
    code, _, said = mace(capsys, "report", "--check")
    assert code == 1 and f"disagree on results objects, {picture}: call mace report" in " ".join(said.split())
    assert mace(capsys, "report")[0] == 0 and report.disagreements() == []
    results.place("objects").unlink()
    assert report.disagreements() == ["results objects", picture]  # shown, and not recorded


def test_a_recorded_table_without_a_place_gets_one_and_a_figure_is_what_is_rendered(folder):
    write()
    write("people")
    report.render()
    page = (folder / "README.md").read_text()
    assert page.index("<!-- end of results objects -->\n\n<!-- results people -->\n") < page.index("<!-- study pairs")
    assert report.disagreements() == []
    (folder / "README.md").write_text(page.replace("<!-- results people -->", ""))
    assert report.disagreements() == ["results people"]
    report.render(), (picture := folder / "data/readme/results-objects.png").unlink()
    assert report.disagreements()[-1] == "data/readme/results-objects.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert report.disagreements()[-1] == "data/readme/results-objects.png"
    (folder / "README.md").write_text("Nothing.\n")
    assert "results objects: has no place in README.md" in report.render()
    assert (folder / "README.md").read_text() == "Nothing.\n"


def test_the_model_s_card_says_which_phenomena_of_erasing_are_there(folder):
    card = folder / "data" / "mini-sd" / "README.md"
    card.parent.mkdir()
    card.write_text("# mini-sd\n\n<!-- erasing -->\n<!-- end of erasing -->\n")
    assert phenomena.text() == ""
    few = [line("uce", "published", "H_c", 90), line("mace", "tuned", "H_c", 91), line("mace", "published", "H_c", 1)]
    many = [
        line("mace-stage-1", "tuned", "Acc_e", 62), line("uce", "published", "H_c", 20),
        line("mace", "tuned", "H_c", 90), line("mace-added-up", "tuned", "H_c", 70), line("mace", "tuned", "Acc_s", 80),
        line("mace-without-cfis", "tuned", "Acc_s", 81),
    ]  # fmt: skip
    write("characters-10", few)
    write("characters-100", many)
    assert f"erasing in {card}" in report.disagreements()
    assert f"erasing: shown in {card}" in report.render() and f"erasing in {card}" not in report.disagreements()
    for said in (
        "- after stage 1 alone most of a hundred erased names are still recognised: present, Acc_e 62.0 (61.0 to 63.0)",
        "- LoRAs that are added up interfere: present, H_c 70.0 (69.0 to 71.0), with all parts 90.0 (89.0 to 91.0)",
        "- without CFIS the fusion loses specificity: absent, Acc_s 81.0",
        "- UCE collapses at 50 to 100 names: present, H_c 90.0 (89.0 to 91.0) of 10; 20.0 (19.0 to 21.0) of 100",
        "- MACE declines from 10 to 100 names: absent, H_c 91.0",
    ):
        assert said in card.read_text(), said


def test_nothing_recorded_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path / "data"))
    code, said, _ = mace(capsys, "report")
    assert code == 0 and "--profile recorded --record" in said and results.recorded() == []


def test_studies_are_read_as_results():
    for name in ("objects", "characters", "ablation", "pairs"):
        whole = results.of(name)
        assert whole["rows"] and whole["command"] == f"mace study {name}"
    mean = next(r for r in results.of("objects")["rows"]
                if (r["erased"], r["method"], r["metric"]) == ("mean of 10", "mace", "H_o"))  # fmt: skip
    table = record.markdown(data_folder() / "studies" / "objects").splitlines()
    assert f"| {mean['mean']:.1f} | {mean['low']:.1f} to {mean['high']:.1f} |" in table[13]
    assert {r["order"] for r in results.of("pairs")["rows"]} == {"both orders", "erased first", "companion first"}
    with pytest.raises(MaceError, match="no result 'object'; near it: objects"):
        results.of("object")
    with pytest.raises(MaceError, match="tuning-cheaper holds settings that were tried, not results"):
        results.of("tuning-cheaper")
    with pytest.raises(MaceError) as error:
        results.of("nothing like these")
    assert "characters" in str(error.value) and "tuning" not in str(error.value)


def test_a_record_comes_before_a_study(folder):
    write()
    assert results.of("objects")["command"] == "mace compare --task objects" and results.recorded() == ["objects"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": float("nan")}, "must be finite numbers"),
        ({"mean": None}, "must be finite numbers"),
        ({"low": 99.0}, "low ≤ mean ≤ high does not hold for 99, 98, 99"),
        ({"high": 100.5}, "not within 0 to 100 percent"),
        ({"n": 0}, "n is 0: what nothing was measured for belongs to not_measured"),
        ({"method": None}, "method is missing"),
    ],
)
def test_rows_that_say_nothing_are_not_written(tmp_path, change, words):
    bad = line("uce", "published", "Acc_e", 98.0) | change
    with pytest.raises(MaceError, match=words):
        results.write(tmp_path / "objects.json", "c", {}, [ROWS[0], bad], [])
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "objects.json"
    for text in ("{", json.dumps({"command": "c", "environment": {}, "rows": 3, "not_measured": []}), "[]"):
        path.write_text(text)
        with pytest.raises(MaceError, match=r"objects\.json"):
            results.read(path)
    with pytest.raises(MaceError, match="why is missing"):
        results.write(path, "c", {}, [], [{"method": "uce", "metric": "Acc_g", "why": ""}])
