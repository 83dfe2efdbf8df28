import json

import pytest
from batch_tools import notebook, sweep

from macelib.batch.parameters import check, from_text, parse_parameters, read_parameters, table
from macelib.batch.runs import plan
from macelib.batch.sweep import expand, read_sweep
from macelib.errors import MaceError


@pytest.fixture
def known(tmp_path):
    return read_parameters(notebook(tmp_path))


def test_reads_names_types_defaults_and_help(known):
    assert list(known) == ["size", "rate", "label", "names", "config", "extra", "seed", "run_folder"]
    types = ["int", "float", "str", "list[str]", "dict", "int | None", "int", "str"]
    assert [p.type for p in known.values()] == types
    assert (known["rate"].default, known["rate"].help) == (0.5, "steepness")
    assert table(known).splitlines()[2].split() == ["rate", "float", "0.5", "steepness"]


def test_help_of_a_line_with_a_hash_in_its_text_and_of_a_long_one():
    found = parse_parameters('a = "#1"  # first\nb = [\n    1,  # one\n    2.5,\n]  # all\n')
    assert [(p.name, p.type, p.help) for p in found.values()] == [("a", "str", "first"), ("b", "list[float]", "all")]


@pytest.mark.parametrize("text", ["a = 2 * 3", "import os", "a = b = 1", "a = {1, 2}", "a =", "a = float('nan')"])
def test_refuses_what_is_not_a_plain_literal(text):
    with pytest.raises(MaceError, match="parameters cell"):
        parse_parameters(text)


def test_refuses_a_notebook_without_the_tag(tmp_path):
    with pytest.raises(MaceError, match="no cells tagged"):
        read_parameters(notebook(tmp_path, tag="other"))
    with pytest.raises(MaceError, match="no such file"):
        read_parameters(tmp_path / "none.ipynb")


def test_values_take_the_type_of_the_parameter(known):
    values = check(known, {"rate": 1, "extra": None, "config.train.rank": 4, "config": {"seed": 1}}, "tiny")
    assert values["rate"] == 1.0 and isinstance(values["rate"], float)
    assert values["config"] == {"seed": 1, "train": {"rank": 4}}
    assert "run_folder" not in values and values["size"] == 2
    assert known["config"].default == {}


def test_the_deepest_of_several_values_is_set_last(known):
    for given in (
        {"config.train.rank": 4, "config.train": {"lr": 0.5}},
        {"config.train": {"lr": 0.5}, "config.train.rank": 4},
    ):
        assert check(known, given, "tiny")["config"]["train"] == {"lr": 0.5, "rank": 4}
    with pytest.raises(
        MaceError, match=r"config.train.rank cannot be set, for config has the value 5 for train: keep one"
    ):
        check(known, {"config": {"train": 5}, "config.train.rank": 4}, "tiny")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sise": 1}, "sise is not a parameter; did you mean size?"),
        ({"size": 1.5}, "size is 1.5; allowed: a whole number"),
        ({"size": True}, "size is True"),
        ({"rate": "fast"}, "rate is 'fast'; allowed: a number"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"names": ["a", 1]}, r"names\[1\] is 1; allowed: text"),
        ({"extra": "x"}, "a whole number or nothing"),
        ({"label": None}, "label is None; allowed: text"),
        ({"run_folder": "x"}, "set by the batch"),
        ({"size.x": 1}, "size.x is not a parameter"),
    ],
)
def test_refuses_unknown_names_and_wrong_types(known, given, message):
    with pytest.raises(MaceError, match=message):
        check(known, given, "tiny")


def test_all_that_is_wrong_is_named_at_once(known):
    with pytest.raises(MaceError) as caught:
        check(known, {"sise": 1, "rate": "fast"}, "tiny")
    assert "sise" in str(caught.value) and "rate" in str(caught.value)


def test_values_of_the_command_line(known):
    texts = {"size": "3", "rate": "1e-4", "label": "12", "names": "a=b, c", "extra": "null", "config": '{"a": 1e-3}'}
    values = {name: from_text(known[name], text) for name, text in texts.items()}
    assert values == {
        "size": 3, "rate": 1e-4, "label": "12", "names": ["a=b", "c"], "extra": None, "config": {"a": 1e-3},
    }  # fmt: skip
    assert from_text(known["names"], '["a, b"]') == ["a, b"]


def test_grid_zip_list_and_seeds_multiply():
    fields = {"grid": {"a": [1, 2]}, "zip": {"b": [1, 2], "c": [3, 4]}, "list": [{"d": 1}, {"d": 2}], "seeds": 2}
    runs = expand({**fields, "parameters": {"e": 9}})
    assert len(runs) == 2 * 2 * 2 * 2 and len({json.dumps(run) for run in runs}) == 16
    assert {(run["b"], run["c"]) for run in runs} == {(1, 3), (2, 4)} and all(run["e"] == 9 for run in runs)
    assert [run["seed"] for run in runs[:4]] == [0, 1, 0, 1]
    assert expand({"seeds": [5, 7]}) == [{"seed": 5}, {"seed": 7}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gird": {}}, "gird is not a field of a sweep; did you mean grid?"),
        ({"grid": {"size": 3}}, "grid.size is 3; allowed: a list"),
        ({"zip": {"size": [1], "rate": [1, 2]}}, "lists of one length"),
        ({"grid": {"size": [1]}, "parameters": {"size": 2}}, "size stands in parameters and in grid"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": [1, "a"]}, "seeds is"),
        ({"name": "../up"}, "name is"),
        ({"list": {"size": 1}}, "list is"),
    ],
)
def test_refuses_sweeps_that_make_no_sense(tmp_path, fields, message):
    with pytest.raises(MaceError, match=message):
        read_sweep(sweep(tmp_path, **fields))


def test_yaml_numbers_and_keys_that_stand_twice(tmp_path):
    path = sweep(tmp_path)
    path.write_text("notebook: tiny.ipynb\ngrid: {rate: [1e-4, 2.5e-3, 1]}\n")
    assert [run["rate"] for run in read_sweep(path, {"size": 5}).runs] == [1e-4, 2.5e-3, 1]
    assert read_sweep(path, {"size": 5}).runs[0]["size"] == 5
    path.write_text("notebook: tiny.ipynb\nseeds: 1\nseeds: 2\n")
    with pytest.raises(MaceError, match="stands twice"):
        read_sweep(path)


def test_ids_depend_on_values_notebook_and_code_and_nothing_else(tmp_path, monkeypatch):
    path = notebook(tmp_path)

    def ids(*given, folder="a"):
        return [run.id for run in plan(path, given, tmp_path / folder)]

    first = ids({"size": 2}, {"size": 3})
    assert len(set(first)) == 2
    assert ids({}, {"size": 3, "rate": 0.5}, folder="b") == first  # defaults given or not, any folder
    assert ids({"size": 3}, {"size": 3}) == first[1:]  # once
    text = json.loads(path.read_text())
    text["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    path.write_text(json.dumps(text))
    assert ids({"size": 2}, {"size": 3}) == first
    text["cells"][1]["source"] += "\nvalue += 1"
    path.write_text(json.dumps(text))
    assert not set(ids({"size": 2}, {"size": 3})) & set(first)
    second = ids({})
    monkeypatch.setattr("macelib.batch.runs.code_version", lambda: "other")
    assert ids({}) != second


def test_wrong_settings_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(MaceError, match=r"train\.rnak is not a setting"):
        plan(notebook(tmp_path), [{"config.train.rnak": 3}], tmp_path)
