"""What a person writes is read as it was meant, or refused with file, line and cure: examples, then every reader."""

import json
import os
import stat
import string
from pathlib import Path

import pytest
import yaml
from batch_tools import notebook
from hypothesis import example, given
from hypothesis import strategies as st

from macelib.batch.parameters import Parameter, from_text, parse_parameters, read_parameters
from macelib.batch.runs import make_folder, write_text
from macelib.batch.sweep import read_sweep
from macelib.concepts import (
    Concept,
    check_concepts,
    kept_names,
    paper_list,
    parse_concept,
    read_concepts,
    read_names,
    with_templates,
)
from macelib.concepts.concept import read_templates
from macelib.config import EraseConfig
from macelib.errors import MaceError
from macelib.evaluate.prompts import read_prompts
from macelib.evaluate.tuning import Grid
from macelib.files import check_writable, name_of
from macelib.method.prior import read_captions
from macelib.reading import Texts, Values, parse, phrase, read_entries, read_json, read_table, read_text, seeds


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("people")


def written(place: Path, name: str, text: str | bytes) -> Path:
    path = place / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_marked_encoding_and_line_end_is_read(place, encoding, end):
    path = written(place, "a.txt", f"café=the sea{end}船=海{end}".encode(encoding))
    assert read_concepts(path) == [Concept("café", "the sea"), Concept("船", "海")]
    assert read_captions(written(place, "b.txt", f"un café{end}{end}船{end}".encode(encoding))) == ["un café", "船"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a\ncafé".encode("latin-1"), r"line 2 has the byte e9, 'é' in Windows-1252\): save it as UTF-8"),
        ("ship=sea".encode("utf-16-le"), "UTF-16 without its mark"),
        (b"PK\x03\x04rest", "spreadsheet"),
        ("ship".encode("utf-16")[:-1], "breaks off at byte"),
    ],
)
@pytest.mark.parametrize("reader", [read_concepts, read_names, read_captions])
def test_other_encodings_are_refused_with_line_and_cure(place, data, message, reader):
    with pytest.raises(MaceError, match=message):
        reader(written(place, "x.txt", data))


def test_files_that_cannot_be_read(place):
    for path, message in ((place / "none.txt", "no such file"), (place, "directory"), ("a\0b.txt", "null byte")):
        with pytest.raises(MaceError, match=message):
            read_text(path, "list")


# --- one entry: commas, equal signs, quotes, comments


@pytest.mark.parametrize(
    ("text", "name", "anchor"),
    [
        ("ship=sea", "ship", "sea"),
        ('"ship=sea"', "ship", "sea"),
        ('"ship" = "the sea"', "ship", "the sea"),
        ("“ship”=‘the sea’", "ship", "the sea"),
        ('"Downey, Jr."=a person', "Downey, Jr.", "a person"),
        ('"a=b"=c', "a=b", "c"),
        ('"Weird Al" Yankovic=a person', '"Weird Al" Yankovic', "a person"),
        ("neighbour's cat=a cat", "neighbour's cat", "a cat"),
        ("007=a man", "007", "a man"),
        ("船＝海", "船", "海"),
        ("C#=a language", "C#", "a language"),
        ("\u200bship\u00a0one=sea\ufeff", "ship one", "sea"),
    ],
)
def test_an_entry_is_read_as_it_is_meant(text, name, anchor):
    assert parse_concept(text) == Concept(name, anchor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ship, frog=sea", "has a comma in it. Several names: give them one by one"),
        ("ship=sea,frog=grass", "has a comma"),
        ("ship＝sea=frog", 'more than one "="'),
        ("ship;frog=sea", "has a semicolon"),
        ("船、猫=海", "has a ideographic comma"),
        ("a=b=c", 'more than one "="'),
        ("ship", 'write "name=anchor"'),
        ("=sea", 'write "name=anchor"'),
        ('"ship=sea', "a quote that is not closed"),
        ("ship=sea\udce9", "another encoding"),
        ("sh\x07ip=sea", "control character"),
        ("sh\ufffdip=sea", "another encoding"),
        ("{}=sea", "stands for the name"),
    ],
)
def test_an_entry_that_may_mean_two_things_is_refused(text, message):
    with pytest.raises(MaceError, match=message):
        parse_concept(text)


@pytest.mark.parametrize("name", ["ship, frog", "ship/boat", "ship and frog", "cats & dogs", "ship OR frog"])
def test_a_name_that_may_be_several_is_said(name):
    (note,) = check_concepts([Concept(name, "sea and sand")])
    assert f"{name!r} is taken as one name" in note
    assert not check_concepts([Concept("sandy orange", "sea")])


def test_comments_of_a_list(place):
    text = '# two\n#ship=sea\nC#=a # a language\nroom=pier ## "old\n"x # y"=z\n'
    items = read_entries(written(place, "c.txt", text), "list")
    assert [item.value for item in items] == ["C#=a", "room=pier", '"x # y"=z']
    with pytest.raises(MaceError, match=r'line 2: .*"#" before a word'):
        read_entries(written(place, "d.txt", "a\nroom #5=pier\n"), "list")


@pytest.mark.parametrize("mark", ["- ", "* ", "• ", "•", "– ", "1. ", "12) ", "(3) ", "// "])
@pytest.mark.parametrize(
    ("reader", "entry"), [(read_concepts, "ship=sea"), (read_names, "ship"), (read_templates, "{}")]
)
def test_marks_of_a_list_are_no_part_of_its_entries(place, mark, reader, entry):
    with pytest.raises(MaceError, match=r"m.txt, line 2: .* begins with .*: leave that out"):
        reader(written(place, "m.txt", f"# mine\n{mark}{entry}\n"))
    assert read_entries(written(place, "m.txt", '*NSYNC\n"1. cat"\n-ed\n3.5 mm\n'), "list")


def test_every_break_of_lines_is_one(place):
    for sign in "\f\v\x85\u2028\u2029":
        assert read_names(written(place, "b.txt", f"cat{sign}dog{sign}")) == ["cat", "dog"]
        with pytest.raises(MaceError, match="holds a line break: write the parts one by one"):
            read_names(written(place, "b.csv", f"name\ncat{sign}dog\n"))


# --- names to keep


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", '# mine\ncat # the neighbour\'s\n\n"Downey, Jr."\ncat\n'),
        ("n.TXT", 'cat\n"Downey, Jr."\n'),
        ("n.csv", 'name,anchor\ncat,x\n"Downey, Jr.",y\n'),
        ("n2.csv", 'sep=;\nNote;Name\nold;cat\n;"Downey, Jr."\n;\n'),
        ("n.tsv", "name\tnote\ncat\told\nDowney, Jr.\t\n"),
        ("n.yaml", "- cat\n- {name: 'Downey, Jr.'}\n"),
        ("n.json", '{"names": ["cat", "\\"Downey, Jr.\\""]}'),
    ],
)
def test_names_from_every_kind_of_file(place, name, text):
    assert kept_names([str(written(place, name, text))]) == ["cat", "Downey, Jr."]


def test_names_of_the_command_line(place, monkeypatch):
    assert kept_names(["cat", "AC/DC", '"a, b"', "cat"]) == ["cat", "AC/DC", "a, b"]
    monkeypatch.chdir(place)
    written(place, "names", "cat\n")
    for given_, message in (
        ("dog,cat", "comma"),
        ("a=b", "names alone"),
        ("ship → the sea", "an arrow in it: names alone"),
        ("ship -> the sea", "an arrow in it: names alone"),
        ("names", "give a .txt"),
        ("x.csv", "no such"),
        ("lists/keep.xlsx", "give a .txt"),
        (str(place), "give a .txt"),
    ):
        with pytest.raises(MaceError, match=message):
            kept_names([given_])
    long = "船 " * 2000
    assert kept_names([long]) == [long.strip()]  # longer than a file's name may be


def test_yaml_names_are_the_texts_that_were_written(place):
    path = written(place, "t.yaml", "- {name: no, anchor: 007, synonyms: [on, 1e3, 12:30, 2014-01-01]}\n")
    assert read_concepts(path) == [Concept("no", "007", synonyms=("on", "1e3", "12:30", "2014-01-01"))]
    for text, message in (
        ("- {name: null, anchor: a}", "line 1, entry 1: The name of a concept"),
        ("- a=b\n- {name: x, anchor: y, kin: z}", "line 2, entry 2"),
        ("- {name: x,\n   name: y, anchor: z}", "line 2.*'name' stands twice"),
        ("ship: sea\n", "holds no list"),
        ("- &a [*a]", "cannot be read"),
    ):
        with pytest.raises(MaceError, match=message):
            read_concepts(written(place, "u.yaml", text))
    with pytest.raises(MaceError, match=r'holds no list: write \[...\], alone or as \{"concepts": \[...\]\}'):
        read_concepts(written(place, "u.json", '{"ship": "sea"}'))
    for value in ("5", "false", 'null, "companions": 5'):
        with pytest.raises(MaceError, match=r"w.json, entry 1: 'ship': \w+ must be a list of texts, not (5|False)"):
            read_concepts(written(place, "w.json", f'[{{"name": "ship", "anchor": "sea", "synonyms": {value}}}]'))
    with pytest.raises(MaceError, match=r"7 \(a number or a truth value is text in quotes\)"):
        read_concepts(written(place, "v.json", '[{"name": 7, "anchor": "sea"}]'))


def test_aliases_that_stand_for_millions_are_refused_at_once(place):
    """Nine levels of ten each: a billion values in half a kilobyte."""
    levels = [f"a0: &a0 [{', '.join('x' * 10)}]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    path = written(place, "laughs.yaml", "- {" + ", ".join(levels) + "}\n")
    for reader in (read_concepts, read_names, EraseConfig.load, read_sweep):
        with pytest.raises(MaceError, match=r"line 1, cannot be read .*aliases stand for more than 1,000,000"):
            reader(path)


# --- templates


def test_templates_from_a_file(place):
    ship = Concept("ship", "the sea")
    text = '# mine\na photo of {} # plain\n\n"a {}, at night"\na ship beside {}\n'
    for encoding in ("utf-8-sig", "utf-16"):
        path = written(place, "t.txt", text.encode(encoding))
        assert with_templates(ship, str(path)).templates == ("a photo of {}", "a {}, at night")
    for name, text in (
        ("t.yaml", "- a photo of {}\n- a {}, at night\n"),
        ("t.csv", 'template\na photo of {}\n"a {}, at night"\n'),
        ("t.json", '{"templates": ["a photo of {}", "a {}, at night"]}'),
    ):
        assert read_templates(written(place, name, text)) == ["a photo of {}", "a {}, at night"]
    with pytest.raises(MaceError, match=r"t.yaml, line 2, entry 2: A template must be"):
        read_templates(written(place, "t.yaml", "- a {}\n- [a]\n"))
    for data, message in (
        ("a {}\nno place\n", r"t.txt, line 2: The template 'no place' has no"),
        ("a {}\ncafé {}".encode("latin-1"), "line 2 has the byte e9"),
        ("# none\n", "t.txt is empty"),
        ("a ship near {}\n", "t.txt name 'ship' themselves"),
    ):
        with pytest.raises(MaceError, match=message):
            with_templates(ship, str(written(place, "t.txt", data)))
    for choice, message in (("paperlike", "give ours, paper-like"), ("none.txt", "no such file"), ("x" * 300, "ours")):
        with pytest.raises(MaceError, match=message):
            with_templates(ship, choice)


# --- CSV


def test_fields_of_csv(place):
    rows = read_table(written(place, "a.csv", 'Name;anchor;\n"polar\r\nbear";snow;\n;;\n'), "list", ("name", "anchor"))
    assert [row.value for row in rows] == [{"name": "polar bear", "anchor": "snow"}]
    for above in ("\n", " \n\n", "\nsep=,\n\n"):
        (row,) = read_table(written(place, "a.csv", f"{above}name\ncat\n"), "list", ("name",))
        assert row.value == {"name": "cat"} and row.where.endswith(f"line {above.count(chr(10)) + 2}")
    with pytest.raises(MaceError, match=r"a\.csv, line 1 looks like a comment"):
        read_prompts(written(place, "a.csv", "# mine\nprompt,seed\na ship,1\n"))
    for text, message in (
        ("\n# mine\nname,anchor\nship,sea\n", "line 2 looks like a comment, which CSV has not"),
        ('name,anchor\nship,sea\n"frog,grass\n' + "x,y\n" * 5, "line 3: a quote"),
        ("name,anchor\n" + '"a' + "\nb,c" * 30 + '",x\n', "line 2: a quote"),
        ('name,anchor\n"a"b,c\n', "line 2: a quote"),
        ("name,anchor\nship,sea,land\n", "line 2: 3 fields under 2 columns"),
        ("name,anchor,name\nship,sea,x\n", "name stands twice"),
        ("ship,sea\n", "must have name and anchor"),
        ("name,anchor\n#ship,sea\n", "line 2: '#ship' looks like a comment"),
        ("name,anchor\n\nship,\n", "line 3: The anchor"),
        ("name,anchor\n", "is empty"),
        ("name,anchor,\nship,sea,note\n", "line 2: a field stands under a column without a name"),
        ('name,anchor,synonyms\nship,sea,"boat,vessel"\n', 'line 2: The synonyms .* put ";" between several'),
    ):
        with pytest.raises(MaceError, match=message):
            read_concepts(written(place, "b.csv", text))


def test_quotes_of_a_person_s_own_in_a_field(place):
    for text in ("name,anchor\n'ship','the sea'\n", "name,anchor\n“ship”,«the sea»\n"):
        assert read_concepts(written(place, "q.csv", text)) == [Concept("ship", "the sea")]
    assert read_concepts(written(place, "q.yaml", "- {name: “ship”, anchor: ‘the sea’}\n")) == [
        Concept("ship", "the sea")
    ]
    for text in ("name,note\n'polar bear',a\n“cat”,b\nclock 24\",c\n", 'name\n‘polar bear’\ncat\n«clock 24"»\n'):
        assert read_names(written(place, "q.csv", text)) == ["polar bear", "cat", 'clock 24"']
    assert read_names(written(place, "q.yaml", "- {name: “cat”}\n- ‘dog’\n")) == ["cat", "dog"]
    text = 'name,anchor,synonyms\nclock 24",time,"a ""b, c"";d"\n'
    assert read_concepts(written(place, "q.csv", text)) == [Concept('clock 24"', "time", synonyms=('a "b, c"', "d"))]


def test_captions_are_read_or_refused(place):
    assert read_captions(written(place, "a.txt", "# mine\n#1 fan\na, b # c\n")) == ["#1 fan", "a, b # c"]
    assert read_captions(written(place, "a.csv", "id;Prompt\n1;a dog, old\n2\n")) == ["a dog, old"]
    for name, text, message in (
        ("b.json", '["a", 3]', "entry 2 is 3"),
        ("c.json", '{"annotations": [{"caption": "a"}, {}]}', "entry 2 is None"),
        ("d.json", '["a", ', "cut short"),
        ("e.json", '["a", "b', "cut short"),
        ("f.json", '["\\ud800"]', "another encoding"),
        ("g.json", '{"annotations": [], "annotations": []}', "'annotations' stands twice"),
        ("h.json", '["a",\n b]', "line 2"),
        ("i.txt", "# only a comment\n", "no captions"),
    ):
        with pytest.raises(MaceError, match=message):
            read_captions(written(place, name, text))
    with pytest.raises(MaceError, match="Caption 2 is 3"):
        read_captions(["a", 3])


# --- settings, sweeps, values of the command line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 2}\nimages: {count: 4}\ntrain: {rank: 4}\n", "line 3, .*'train' stands twice"),
        ("train:\n  steps: 010\n", "line 2, .*010 begins with a zero"),
        ("train:\n  rank: 4\n  stepz: 1\n", "line 3: train.stepz is not a setting"),
        ("seed: 1\ntrain:\n  rank: 4\n  steps: 1.5\n", "line 4: train.steps is 1.5"),
        ("seed: 1\ntrain.steps: 3\n", "line 2: train.steps is not a setting"),
        ("prior: {captions: 2014}\n", "line 1: prior.captions is 2014; allowed: text or nothing .* in quotes"),
        ("train:\n\tsteps: 1\n", "line 2"),
        ("- 1\n", "allowed: a mapping"),
        ("false\n", "allowed: a mapping"),
        ("a: [", "line 1"),
    ],
)
def test_settings_are_refused_with_their_line(place, text, message):
    with pytest.raises(MaceError, match=message) as error:
        EraseConfig.load(written(place, "s.yaml", text))
    assert "s.yaml" in str(error.value)


def test_numbers_are_what_people_mean(place):
    text = "train: {lr: 1e-4, steps: 1_000}\nrefine: {lambda1: .5}\nprior: {use: no, captions: 2014-01-01}\n"
    config = EraseConfig.load(written(place, "n.yaml", text))
    assert (config.train.lr, config.train.steps, config.refine.lambda1) == (1e-4, 1000, 0.5)
    assert (config.prior.use, config.prior.captions) == (False, "2014-01-01")
    assert EraseConfig.load(written(place, "n.json", '{"train": {\n\t"steps": 3}}')).train.steps == 3
    values = parse("[0, -3, 0x1F, 12:30, .inf, +1.5, 1., '<<', yes, ~, '010']", Values)[0]
    assert values == [0, -3, 31, "12:30", float("inf"), 1.5, 1.0, "<<", True, None, "010"]
    assert parse("{a: &x {b: 1, c: 2}, d: {<<: *x, c: 3}}", Values)[0]["d"] == {"b": 1, "c": 3}


def test_sweeps_are_refused_with_their_line(place):
    for text, message in (
        ("notebook: a.ipynb\ngrid:\n  size: [1]\n  rate: 3\n", "line 4: grid.rate is 3"),
        ("notebook: a.ipynb\ngird: {}\n", "line 2: gird is not a field"),
        ("notebook: a.ipynb\ngrid:\n  label: [001, 002]\n", "line 3, .*001 begins with a zero"),
        ("notebook: a.ipynb\nseeds: 1000000000000\n", "line 2: seeds is 1000000000000; allowed: up to 100,000"),
        ("notebook: a.ipynb\nseeds: 100\ngrid: {a: [" + "1," * 2000 + "1]}", "200,100 runs; allowed: 100,000"),
        ("notebook: a.ipynb\nname: " + "x" * 300, "200 bytes"),
        ("notebook: a.ipynb\nlist:\n- {a: 1}\n- 3\n", r"line 4: list\[1\] is 3"),
    ):
        with pytest.raises(MaceError, match=message):
            read_sweep(written(place, "s.yaml", text))
    assert read_sweep(written(place, "船.yaml", "notebook: a.ipynb\n")).name == "船"


def test_values_of_the_command_line_are_refused_or_meant():
    names, size = Parameter("names", "list[str]", []), Parameter("size", "int", 1)
    assert from_text(names, 'cat, "Downey, Jr."') == ["cat", "Downey, Jr."]
    for parameter, text in ((size, "010"), (names, 'a, "b'), (Parameter("config", "dict", {}), "{a: 1, a: 2}")):
        with pytest.raises(MaceError, match=parameter.name):
            from_text(parameter, text)
    with pytest.raises(MaceError, match="sets a twice, line 2"):
        parse_parameters("a = 1\na = 2\n")


def test_a_notebook_that_is_cut_is_called_so(place):
    path = notebook(place)
    text = path.read_text()
    for end in (len(text) // 2, len(text) - 2, 0):
        path.write_text(text[:end])
        with pytest.raises(MaceError, match="is empty" if not end else "cut short"):
            read_parameters(path)
    path.write_text(text.replace('"cells": [', '"cells": [3, '))
    with pytest.raises(MaceError, match="not a notebook"):
        read_parameters(path)


def test_what_a_run_writes_has_the_usual_permissions_and_says_what_is_wrong(place):
    usual = os.umask(0o027)
    try:
        write_text(place / "index.html", "x")
    finally:
        os.umask(usual)
    assert stat.S_IMODE((place / "index.html").stat().st_mode) == 0o640
    (place / "file").write_text("")
    for folder, message in (
        (place / "file" / "sweep", "a file stands"),
        (place / ("x" * 300), "choose a shorter name"),
    ):
        for write in (lambda at: write_text(at / "a.txt", "x"), make_folder, check_writable):
            with pytest.raises(MaceError, match=message):
                write(folder)
    check_writable(place / "new" / "below")
    assert not (place / "new").exists() and not [p for p in place.iterdir() if p.name.startswith(".")]
    assert len(name_of("word " * 500)) < 80 and name_of("船") != name_of("猫")


def test_seeds():
    assert seeds("0, 1,5-7", 8) == [0, 1, 5, 6, 7]
    for text in ("1 000", "1,000", "2 500", "007"):
        with pytest.raises(MaceError, match="allowed: 1 to 9 different whole numbers"):
            seeds(text, 9)
    for text in ("²", "99999999999999999999", "0-999999999999", "3-1", "0,0", "", "-1", "1-", "a", "9" * 5000):
        with pytest.raises(MaceError, match=r"seeds|allowed"):
            seeds(text, 8, "The seeds are")


def test_a_damaged_protocol_is_said(place, monkeypatch):
    (place / "protocols").mkdir()
    monkeypatch.setenv("MACELIB_DATA", str(place))
    for text, message in (("{}", "is damaged"), ("[", "cut short"), (None, "no such file")):
        path = place / "protocols" / "celebrities.json"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(MaceError, match=message):
            paper_list("celebrities_5")


# --- properties: whatever stands in a file, a reader gives what it promises or one sentence that names the file

CHARACTERS = st.one_of(
    st.sampled_from([*"\n\r\t ,;=#\"'{}[]:-&*!|>?~019.eE_", "name", "anchor", "caption", "\ufeff"]),
    st.characters(),
)
ANY = st.lists(CHARACTERS, max_size=40).map("".join)
BYTES = st.one_of(st.binary(max_size=60), ANY.map(lambda text: text.encode("utf-8", "surrogatepass")))
WORDS = st.text(st.sampled_from(string.ascii_letters + "éß船žйא 'ç-"), min_size=1, max_size=12).filter(
    lambda text: text.strip(" '") == text and "  " not in text and "''" not in text
)
ODD = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Zs")), min_size=1, max_size=12).filter(
    lambda text: "{}" not in text and "\ufffd" not in text and text.strip("#\"'“”„«»‘’") == text
)

READERS = {
    "concepts": (
        read_concepts,
        (".txt", ".csv", ".tsv", ".yaml", ".json"),
        lambda v: all(isinstance(c, Concept) for c in v),
    ),
    "names": (read_names, (".txt", ".csv", ".tsv", ".yaml", ".json"), lambda v: all(phrase(n, "x") == n for n in v)),
    "captions": (read_captions, (".txt", ".csv", ".json"), lambda v: all(c and c == c.strip() for c in v)),
    "settings": (EraseConfig.load, (".yaml", ".json"), lambda v: isinstance(v, EraseConfig)),
    "prompts": (read_prompts, (".csv", ".tsv"), lambda v: all(p.prompt and 0 <= p.seed < 2**63 for p in v)),
    "templates": (read_templates, (".txt", ".csv", ".yaml", ".json"), lambda v: all("{}" in text for text in v)),
    "grid": (Grid.load, (".yaml",), lambda v: isinstance(v, Grid)),
    "sweep": (read_sweep, (".yaml",), lambda v: all(isinstance(run, dict) for run in v.runs)),
    "parameters": (read_parameters, (".ipynb",), lambda v: all(isinstance(p, Parameter) for p in v.values())),
}


@pytest.mark.parametrize("reader", READERS)
@given(data=BYTES)
@example(data=b"- " * 400)
@example(data=b"[" * 400)
@example(data=b"9" * 6000)
@example(data=b"name,anchor\n")
@example(data=b"!!timestamp abc")
def test_any_file_is_read_or_refused_in_a_sentence(place, reader, data):
    read, suffixes, holds = READERS[reader]
    for suffix in suffixes:
        path = written(place, f"any{suffix}", data)
        try:
            found = read(path)
        except MaceError as error:
            assert str(path) in str(error) and str(error).endswith(".")
        else:
            assert holds(found)


@given(names=st.lists(ODD, min_size=1, max_size=5, unique=True), anchor=WORDS)
def test_names_come_back_from_every_format(place, names, anchor):
    import csv
    import io

    rows = [{"name": name, "anchor": anchor} for name in names]
    table = io.StringIO()
    writer = csv.DictWriter(table, ("name", "anchor"))
    writer.writeheader()
    writer.writerows(rows)
    files = {
        "r.csv": table.getvalue(),
        "r.yaml": yaml.safe_dump(rows, allow_unicode=True),
        "r.json": json.dumps(rows),
        "r.txt": "".join(f'"{name}"="{anchor}"\n' for name in names),
    }
    for file, text in files.items():
        if file != "r.txt" or not any('"' in name for name in names):
            path = written(place, file, text)
            assert [(c.name, c.anchor) for c in read_concepts(path)] == [(name, anchor) for name in names], file
            if file != "r.txt":
                assert read_names(path) == names


@given(texts=st.lists(WORDS, min_size=1, max_size=5))
def test_captions_come_back_from_every_format(place, texts):
    table = "id,caption\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts))
    for file, text in {"k.txt": "\n".join(texts), "k.csv": table, "k.json": json.dumps(texts)}.items():
        assert read_captions(written(place, file, text)) == texts


@given(
    value=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), ANY),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ANY, inner, max_size=3)),
        max_leaves=6,
    )
)
def test_what_yaml_wrote_is_read_as_it_was(value):
    try:
        text = yaml.safe_dump(value)
        expected = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeError):
        return
    if expected == value:
        assert parse(text, Values)[0] == value


@given(text=ANY, kind=st.sampled_from(["str", "int", "float | None", "list[str]", "list[int]", "dict", "any"]))
def test_any_value_of_the_command_line_is_read_or_refused(text, kind):
    try:
        value = from_text(Parameter("size", kind, None), text)
    except MaceError as error:
        assert "size" in str(error)
    else:
        assert kind != "str" or value == text


@given(source=ANY)
def test_any_parameters_cell_is_read_or_refused(source):
    try:
        found = parse_parameters(source)
    except MaceError as error:
        assert str(error).endswith(".")
    else:
        assert all(name == p.name for name, p in found.items())


@given(text=ANY)
def test_any_text_is_a_concept_or_a_sentence(text):
    try:
        concept = parse_concept(text)
    except MaceError as error:
        assert str(error).endswith(".")
    else:
        assert phrase(concept.name, "x") == concept.name and phrase(concept.anchor, "x") == concept.anchor


def test_json_and_texts_refuse_what_stands_twice(place):
    with pytest.raises(MaceError, match="'a' stands twice"):
        read_json(written(place, "a.json", '{"a": 1, "a": 2}'), "settings")
    with pytest.raises(yaml.YAMLError, match="stands twice"):
        parse("{a: 1, a: 2}", Texts)
