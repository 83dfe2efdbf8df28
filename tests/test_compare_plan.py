"""Plans of comparisons, rows of methods, tuned settings, and the command."""

from types import SimpleNamespace

import compare_tools
import pytest
import yaml
from compare_tools import KNOWN, MANY
from test_cli import mace
from tiny_data import tiny_judge

from macelib import Concept, EraseConfig, MaceError, load_pipeline
from macelib.baselines import AS_PUBLISHED, methods
from macelib.cli.compare import listed
from macelib.compare import find, one_way, planned, tried, tuned_settings, ways
from macelib.compare.plan import ORIGINAL, settings_kind
from macelib.compare.tables import Tables
from macelib.concepts import refuse_both
from macelib.evaluate import results
from macelib.evaluate.numbers import Number
from macelib.evaluate.tasks import task, tasks
from macelib.models import families
from macelib.models.tiny import tiny_pipeline

drawn = compare_tools.drawn


def test_profiles_say_how_much_is_drawn():
    characters, objects = task("mini-characters"), task("mini-objects")
    recorded = planned(characters, 100, "recorded")
    assert (len(recorded.templates), len(recorded.seeds), recorded.steps, recorded.name) == (2, 3, 8, "characters-100")
    assert len(recorded.erasures) == 1 and len(recorded.erasures[0]) == len(recorded.told(0)) == 100
    ten = planned(objects, None, "recorded")
    assert (len(ten.erasures), len(ten.seeds), ten.steps, ten.told(0)) == (10, 20, 8, [])
    paper = planned(characters, 30, "paper")
    assert (len(paper.templates), len(paper.seeds), paper.steps) == (5, 5, 25)
    assert len(planned(task("mini-two-things"), None, "recorded").templates) == 2


@pytest.mark.parametrize("name", [name for name in tasks() if name not in ("sd-explicit", "sd-captions")])
def test_no_name_is_erased_and_told_to_be_kept(name):
    found = planned(task(name))
    for i, concepts in enumerate(found.erasures):
        refuse_both([concept.name for concept in concepts], found.told(i))
        assert found.told(i) == (found.kept(i) if found.task.kept and not found.task.captions else [])


def test_tasks_by_the_names_that_people_write():
    sd, mini = ("sd", "mini"), ("mini", "sd")
    for name, worlds, expected in [
        ("objects", mini, ("mini-objects", None)), ("objects", sd, ("sd-objects", None)),
        ("characters-1", mini, ("mini-characters", 1)), ("characters-1", sd, ("sd-celebrities-1", None)),
        ("characters-10", sd, ("sd-celebrities", 10)), ("two-things", sd, ("sd-two-things", None)),
    ]:  # fmt: skip
        found, count = find(name, worlds)
        assert (found.name, count) == expected
    kinds = {"characters": "celebrity", "unsafe": "unsafe", "styles": "style", "objects": "object"}
    assert {name: settings_kind(find(name)[0]) for name in kinds} == kinds
    for name, text in [("object", "near it: objects"), ("characters-31", "it erases 1, 5"), ("zzz", "two-things")]:
        with pytest.raises(MaceError, match=text):
            find(name)


def test_rows_of_methods():
    found = planned(task("mini-objects"))
    quick, every = ways(None, found, {}), ways(None, planned(task("mini-objects"), None, "paper"), {})
    assert quick[0] == every[0] == ORIGINAL and {way.method for way in every} == set(methods())
    assert not {"mace", "esd-x"} & {way.method for way in quick} and "mace-stage-1" in {way.method for way in quick}
    chosen = ways(["oce", "uce", "original"], found, {"uce": {"beta": 2.0}})
    assert list(map(str, chosen)) == ["original", "oce (published)", "uce (published)", "uce (tuned)"]


def test_tuned_settings_are_read_and_refused(tmp_path):
    path = tmp_path / "tuned.yaml"
    assert tuned_settings("object", path) == {}
    path.write_text("uce: {celebrity: {lambda_: 5.0}, object: {beta: 0.1}}\ndp: {celebrity: {k: 16}}\n")
    assert tuned_settings("celebrity", path) == {"uce": {"lambda_": 5.0}, "dp": {"k": 16}}
    assert tuned_settings("style", path) == tuned_settings("unsafe", path) == {"uce": {"beta": 0.1}}  # of objects
    for text, said in [
        ("uec: {object: {}}", "no method 'uec'; near it: uce"), ("uce: {objects: {}}", "near it: object"),
        ("uce: {object: {lambda: 1}}", "no setting of uce 'lambda'; near it: lambda_"), ("uce: 3", "must map methods"),
    ]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(MaceError, match=said):
            tuned_settings("object", path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline("sd").save_pretrained(folder / "tiny")
    tiny_judge(KNOWN).save_pretrained(folder / "judge")
    (folder / "pets.yaml").write_text(yaml.safe_dump(MANY), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_command_writes_the_table_and_shows_it(model, tmp_path, capsys):
    common = ["--model", model / "tiny", "--classifier", model / "judge", "--device", "cpu", "--out", tmp_path / "out"]
    code, said, errors = mace(capsys, "compare", "--task", model / "pets.yaml", "--methods", "uce, dp", *common)
    assert code == 0, errors
    whole = results.read(tmp_path / "out" / "pets.json")
    assert whole["command"].startswith("mace compare --task") and {r["method"] for r in whole["rows"]} >= {"uce", "dp"}
    assert "| uce | published |" in said and "not measured" in errors
    some = ["--metrics", "Acc_e,H_c", "--methods", "uce"]
    assert mace(capsys, "compare", "-t", model / "pets.yaml", *some, *common)[0] == 0
    assert {r["metric"] for r in results.read(tmp_path / "out" / "pets.json")["rows"]} == {"Acc_e", "H_c"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "uec"], "no method 'uec'; near it: uce"),
        (["--methods", ","], "The list is empty"),
        (["--profile", "fast"], "no profile 'fast'; there are quick, recorded, paper"),
        (["--task", "objekts"], "no task 'objekts'; near it: objects"),
        (["--only", "shipp"], "no concept in pets 'shipp'; near it: ship"),
        (["--engine", "cloud"], "choose from local, ray"),
        (["--jobs", "2"], "--jobs belongs to an engine"),
        (["--record", "--profile", "recorded", "--only", "ship"], "A part of a task is not recorded"),
        (["--record", "--profile", "recorded", "--methods", "uce"], "A part of a task is not recorded"),
        (["--record", "--profile", "recorded", "--metrics", "H_c"], "A part of a task is not recorded"),
        (["--record"], "take --profile recorded or paper"),
        (["--task", "sd-explicit"], "macelib[explicit]"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(model, tmp_path, capsys, options, words):
    given = ["--task", model / "pets.yaml", "--model", "nowhere", "--out", tmp_path / "out", *options]
    code, _, said = mace(capsys, "compare", *given)
    assert code == 1 and words in said and not (tmp_path / "out").exists()


def test_a_model_with_settings_of_its_own_has_the_paper_s_and_its_own_rows_of_mace():
    found = planned(task("mini-objects"), None, "recorded")
    sd, mini = (next(f for f in families.families() if f.name.startswith(name)) for name in ("SD 1", "mini"))
    names = ["mace", "mace-best", "mace-values-only", "uce"]
    rows = [str(way) for way in ways(names, found, {}, mini)]
    assert rows == [
        "original", "mace (published)", "mace (tuned)", "mace-best (tuned)", "mace-values-only (published)",
        "mace-values-only (tuned)", "uce (published)",
    ]  # fmt: skip
    assert [str(way) for way in ways(["mace"], found, {}, sd)] == ["original", "mace (published)"]
    among = ways(names, found, {"uce": {}}, mini, {"mace": 12, "mace-best": 23, "uce": 10})
    assert [way.among for way in among] == [None, 1, 12, 23, 1, 12, 1, 10]


@pytest.mark.parametrize("name", ["mini-styles", "mini-unsafe"])
def test_where_nothing_was_tuned_mace_stands_as_it_is_and_published_is_held_against_published(name):
    found, mini = planned(task(name)), next(f for f in families.families() if f.name.startswith("mini"))
    rows = ways(["mace", "mace-best", "uce", "dp"], found, {"uce": {"lambda_": 5.0}}, mini, {"uce": 10})
    assert [str(way) for way in rows] == [
        "original", "mace (published)", "mace (preset)", "mace-best (preset)", "uce (published)", "uce (preset)",
        "dp (published)",
    ]  # fmt: skip
    assert (rows[5].values, rows[5].among) == ({"lambda_": 5.0}, 10)
    published = ["mace (published)", "mace-best (preset)", "uce (published)", "dp (published)"]
    assert [str(way) for way in one_way(rows)] == published
    tables = SimpleNamespace(run=SimpleNamespace(plan=found), against=None, _of=lambda way: {})
    numbers = {way: {found.task.about.metric: Number(0.5, None, (0.4, 0.6), 4, 1)} for way in rows}
    compared = {str(way): Tables._difference(tables, way, numbers) for way in rows}
    assert {name: [row["against"] for row in of] for name, of in compared.items()} == {
        "original": [], "mace (published)": [], **{str(way): ["mace (published)"] for way in rows[2:]}
    }  # fmt: skip


def test_among_how_many_settings_a_row_was_chosen(tmp_path):
    (tmp_path / "tuned.csv").write_text("method,kind,point\nuce,object,1\nuce,object,2\nuce,celebrity,1\n")
    assert tried("object", tmp_path) == {"uce": 2, "mace": 10 + 3, "mace-best": 10 + 3 + 11}  # {} in both, once
    assert tried("celebrity", tmp_path) == {"uce": 1, "mace": 12, "mace-best": 12 + 11}
    assert tried("style", tmp_path) == {"uce": 2, "mace-best": 24}  # take that of objects


def test_the_paper_s_row_on_another_model_has_the_paper_s_numbers():
    concept = Concept("ship", "the sea")
    config = EraseConfig.from_dict(AS_PUBLISHED).for_model(load_pipeline("mini-sd"), [concept])
    paper = EraseConfig.preset("paper", task="objects", count=1, concept="ship")
    assert config.train == paper.train and config.refine == paper.refine and config.fuse == paper.fuse
    assert (config.prior.captions, config.images.masks) == ("builtin", "attention")


def test_a_metric_with_a_comma_in_its_name_stands_in_quotes():
    assert listed('Acc_e, "time, s",H_c') == ["Acc_e", "time, s", "H_c"] and listed(None) is None
    for wrong, said in ((" , ", "The list is empty"), ('"time, s', "not closed")):
        with pytest.raises(MaceError, match=said):
            listed(wrong)
