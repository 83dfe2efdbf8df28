import dataclasses
import json
import unicodedata
from pathlib import Path

import pytest
import torch
from brute import letter_tokenizer, real_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from macelib.concepts import (
    TEMPLATES,
    Concept,
    align,
    anchored,
    check_concepts,
    listed,
    paper_list,
    parse_concept,
    prompts,
    read_concepts,
    retained,
    sample_prompt,
    templates,
    token_spans,
)
from macelib.errors import MaceError
from macelib.models.mini import catalogue
from macelib.models.tokens import occurrences, tokenize
from macelib.templates import fill, fitted


@pytest.fixture(scope="module")
def clip():
    return real_tokenizer()


def metaspace_tokenizer():
    """A fast tokenizer of another family: pieces that carry the space before them, no [BOS], own padding."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>", "<pad>"], show_progress=False)
    model.train_from_iterator(["a photo of the ship in the sky", "the delivery truck", "x-ray"] * 5, trainer)
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=60, **special)


PAIRS = [
    ("ship", "sky"),
    ("Ship", "a sky"),
    ("delivery truck", "truck"),
    ("truck", "delivery truck"),
    ("x-ray", "photo"),
]
TOKENIZERS = {"clip": real_tokenizer, "letters": letter_tokenizer, "metaspace": metaspace_tokenizer}


def words(tokenizer, prompt, positions):
    ids, _ = tokenize(tokenizer, prompt)
    return tokenizer.convert_ids_to_tokens([ids[i] for i in positions])


def test_the_real_vocabulary(clip):
    ids, offsets = tokenize(clip, "a photo of a cat")
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(ids[7:]) == {49407} and len(ids) == len(offsets) == 77
    assert offsets[5] == (13, 16) and offsets[0] == offsets[6] == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a photo of the ship", "ship", [["ship</w>"]]),
        ("The SHIP's sail", "ship", [["ship</w>"]]),
        ("a ship and a Ship", "ship", [["ship</w>"], ["ship</w>"]]),
        ("two ships, a shipyard, friendship", "ship", []),
        ("a delivery  truck", "delivery truck", [["delivery</w>", "truck</w>"]]),
        ("an x-ray of it", "X-ray", [["x</w>", "-</w>", "ray</w>"]]),
        ("the Melania Trump photo", "Melania Trump", [["melania</w>", "trump</w>"]]),
        ("work of Brian K. Vaughan, a book", "Brian K. Vaughan", [["brian</w>", "k</w>", ".</w>", "vaughan</w>"]]),
        ("a café, cafe", "Café", [["cafÃ©</w>"]]),
        (unicodedata.normalize("NFD", "a café in İstanbul"), "café", [["cafÃ©</w>"]]),
        ("a cafe\u0301", "cafe", []),
        ("ship_of_ship", "ship", [["ship</w>"], ["ship</w>"]]),
    ],
)
def test_spans_by_character(clip, prompt, phrase, expected):
    assert [words(clip, prompt, span) for span in token_spans(clip, prompt, phrase)] == expected


def test_occurrences_ignore_case_accents_and_spaces():
    assert occurrences("Ein  Hot\n dog", "hot dog") == [(5, 13)]
    assert occurrences("foxes and buses", "fox", plural=True) == [(0, 5)]
    assert occurrences("foxes", "fox") == []
    assert occurrences("日本語の船", "船") == [(4, 5)]
    assert occurrences("a (c++) thing", "c++") == [(3, 6)]


def check_alignment(tokenizer, template, name, anchor, complete=True):
    """What must hold for every alignment, found from the token ids alone."""
    pair = align(tokenizer, template, name, anchor)
    ids_f, off_f = tokenize(tokenizer, fill(template, name))
    ids_g, off_g = tokenize(tokenizer, fill(template, anchor))
    source, target, own = pair.source.tolist(), pair.target.tolist(), pair.own.tolist()
    assert [ids_f[i] for i in source] == [ids_g[j] for j in target]  # the same tokens, every pair
    assert source == sorted(set(source)) and target == sorted(set(target))  # in order, each once
    assert own and not set(own) & set(source)
    T = len(ids_f)
    shorter = min(T - sum(b > a for a, b in off_f), T - sum(b > a for a, b in off_g))  # special tokens
    text = [i for i, (a, b) in enumerate(off_f) if b > a]
    kept = shorter + len(set(text) - set(own))
    complete = complete and fitted(template, name) == fitted(template, anchor)  # else an article of one side is
    assert len(source) == kept if complete else shorter <= len(source) <= kept  # nothing else is left out


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize(
    "template", ["a photo of the {}", "{} in the sky", "{}", "the {}'s photo", "a {} and a {} photo"]
)
@pytest.mark.parametrize(
    ("name", "anchor"),
    [
        ("ship", "sky"),
        ("truck", "the sky"),
        ("delivery truck", "truck"),
        ("truck", "delivery truck"),
        ("x-ray", "photo"),
    ],
)
def test_alignment(make, template, name, anchor):
    check_alignment(make(), template, name, anchor)


def test_alignment_positions(clip):
    pair = align(clip, "the {} in the rain", "delivery truck", "truck")  # the word they share belongs to the phrase
    assert pair.own.tolist() == [2, 3]
    assert pair.source.tolist() == [0, 1, *range(4, 77)]
    assert pair.target.tolist() == [0, 1, *range(3, 76)]
    pair = align(clip, "a {}, the {}", "cat", "big old dog")  # a longer anchor: the tail of the prompt is cut
    assert pair.own.tolist() == [2, 5]
    assert pair.source.tolist() == [0, 1, 3, 4, *range(6, 73)]
    assert pair.target.tolist() == [0, 1, 5, 6, *range(10, 77)]


def test_the_name_elsewhere_in_the_template_is_own(clip):
    pair = align(clip, "a ship, a {}", "ship", "sky")
    assert pair.own.tolist() == [2, 5] and 2 not in pair.source.tolist() and 2 not in pair.target.tolist()
    pair = align(clip, "a sky, a {}", "ship", "sky")  # the anchor elsewhere is a token like any other
    assert pair.own.tolist() == [5] and 2 in pair.source.tolist()


def test_alignment_of_random_prompts(clip):
    parts = [
        "Café",
        "ship's",
        "x-ray",
        "the",
        "日本",
        "1999",
        "a",
        "Zürich,",
        "naïve",
        "(old)",
        "e\u0301t\u0301e",
        "😀",
        "İ",
    ]
    generator = torch.Generator().manual_seed(0)

    def some(low, high):
        n = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(parts[int(i)] for i in torch.randint(len(parts), (n,), generator=generator))

    for _ in range(60):
        name, anchor = some(1, 4), some(1, 4)
        after = ["", " the", "s ", ",", "'s", ")"][int(torch.randint(6, (1,), generator=generator))]
        template = f"{some(0, 4)} {{}}{after}"
        if not occurrences(template, name):  # signs and letters that touch the phrase may melt into its last token
            check_alignment(clip, template, name, anchor, complete=after in ("", " the"))


def test_what_cannot_be_tokenised_or_is_too_long(clip):
    with pytest.raises(MaceError, match="has 102 tokens and the model reads 77"):
        tokenize(clip, "a " * 100)
    with pytest.raises(MaceError, match="shorten"):
        align(clip, "{}", "cat", "dog " * 80)
    with pytest.raises(MaceError, match="cannot be tokenised"):
        align(clip, "a photo of {}", "<|endoftext|>", "sky")
    with pytest.raises(MaceError, match="cannot be tokenised"):
        align(metaspace_tokenizer(), "a photo of {}", "Ж", "sky")
    with pytest.raises(MaceError, match=r"no \"\{\}\""):
        align(clip, "a photo", "cat", "sky")
    with pytest.raises(MaceError, match="fast version"):
        tokenize(object(), "a cat")


@pytest.mark.parametrize("kind", TEMPLATES)
def test_thirty_templates(kind):
    assert len(set(TEMPLATES[kind])) == 30 and all(t.count("{}") == 1 for t in TEMPLATES[kind])
    concept = Concept("ship", "sea", kind)
    assert len(prompts(concept)) == 30
    assert [p.replace("ship", "sea") for p in prompts(concept)] == anchored(concept)


def test_an_article_of_one_side_pairs_with_nothing(clip):
    pair = align(clip, "a photo of the {}'s hat", "cat", "a person")
    ids, anchor_ids = (tokenize(clip, text)[0] for text in ("a photo of the cat's hat", "a photo of a person's hat"))
    same = [(ids[i], anchor_ids[j]) for i, j in zip(pair.source.tolist(), pair.target.tolist(), strict=True)]
    assert all(a == b for a, b in same) and 4 not in pair.source.tolist()  # "the"
    words = clip.convert_ids_to_tokens([a for a, _ in same[:6]])
    assert [w.replace("</w>", "") for w in words] == ["<|startoftext|>", "a", "photo", "of", "'s", "hat"]


def test_templates_that_name_the_concept_or_double_an_article():
    assert "{} at sunset" not in templates(Concept("Sunset", "sky")) and len(templates(Concept("Sunset", "sky"))) == 29
    person = Concept("Amy Adams", "a person")
    assert "a photo of a person" in anchored(person) and "a photo of Amy Adams" in prompts(person)
    assert not any("the a " in text for text in anchored(person))
    assert len(set(prompts(person))) == len(prompts(person)) == len(anchored(person)) == 29  # "the {}" and "{}" are one
    singer = Concept("woman singer", "a person")
    assert "a photo of the woman singer" in prompts(singer) and "a photo of a person" in anchored(singer)
    assert sample_prompt(Concept("ship", "sea")) == "a photo of the ship"
    assert sample_prompt(Concept("noto", "art", "style")) == "an image in the style of noto"
    assert prompts(Concept("ship", "sea", templates=["one {}"])) == ["one ship"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": " "}, "name of a concept"),
        ({"anchor": ""}, "anchor of a concept"),
        ({"kind": "thing"}, "must be one of object, style, celebrity, explicit"),
        ({"templates": ["a photo"]}, "where the name goes"),
        ({"templates": []}, "empty"),
        ({"templates": ["a ship, {}"]}, "names 'ship' itself"),
        ({"synonyms": "boat"}, r"must be a list of texts, not 'boat': write \['boat'\]"),
        ({"synonyms": 5}, "'ship': synonyms must be a list of texts, not 5"),
        ({"companions": None}, "companions must be a list of texts, not None"),
        ({"templates": {"a {}": 1}}, "templates must be a list of texts"),
    ],
)
def test_bad_concepts(fields, message):
    with pytest.raises(MaceError, match=message):
        Concept(**{"name": "ship", "anchor": "sea"} | fields)


def test_check_concepts():
    truck, delivery = Concept("truck", "road"), Concept("delivery  truck", "truck")
    notes = check_concepts([truck, delivery])
    assert len(notes) == 2 and "'truck' is part of 'delivery truck'" in notes[0] and "names the erased" in notes[1]
    assert check_concepts([truck, Concept("ship", "sea")]) == []
    for bad, message in (
        ([], "empty"),
        ([truck, Concept("Truck ", "sky")], "twice"),
        ([Concept("SHIP", "ship")], "concept itself"),
    ):
        with pytest.raises(MaceError, match=message):
            check_concepts(bad)


def test_lists_from_files(tmp_path):
    ship, noto = Concept("ship", "sea", synonyms=("boat", "vessel")), Concept("noto", "art", "style")
    files = {
        "a.txt": "# two\nship=sea\n\n frog = grass # green\n",
        "b.csv": "name,anchor,kind,synonyms\nship,sea,,boat; vessel\nnoto,art,style,\n",
        "c.yaml": "concepts:\n- {name: ship, anchor: sea, synonyms: [boat, vessel]}\n"
        "- {name: noto, anchor: art, kind: style}",
        "d.json": json.dumps([dataclasses.asdict(ship), dataclasses.asdict(noto)]),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_concepts(tmp_path / "a.txt") == [Concept("ship", "sea"), Concept("frog", "grass")]
    for name in ("b.csv", "c.yaml", "d.json"):
        assert read_concepts(tmp_path / name) == [ship, noto], name
    for name, text, message in (
        ("e.txt", "ship\n", "line 1"),
        ("f.csv", "name,color\nship,red\n", "must have name and anchor"),
        ("g.yaml", "- [", "cannot be read"),
        ("h.json", "[]", "empty"),
        ("i.doc", "ship=sea", "no concept list"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(MaceError, match=message):
            read_concepts(tmp_path / name)
    with pytest.raises(MaceError, match="cannot be read"):
        read_concepts(tmp_path / "missing.txt")
    assert parse_concept("ship=sea") == Concept("ship", "sea")
    with pytest.raises(MaceError, match="name=anchor"):
        parse_concept("ship")


def test_the_paper_lists(clip):
    sizes = {"objects": 10, "explicit": 4, "celebrities_1": 1, "celebrities_5": 5, "celebrities_10": 10}
    for name, size in (sizes | {"celebrities_100": 100, "styles_100": 100}).items():
        concepts = paper_list(name)
        assert len(concepts) == size
        check_concepts(concepts)
        for concept in concepts:
            check_alignment(clip, templates(concept)[0], concept.name, concept.anchor)
    assert paper_list("objects")[8].synonyms == ("vessel", "boat", "watercraft")
    assert len(retained("celebrities")) == len(retained("styles")) == 100
    with pytest.raises(MaceError, match="choose one of"):
        paper_list("cars")


def test_whatever_a_person_gives_becomes_concepts(caplog):
    ship, frog = Concept("ship", "the sea"), Concept("frog", "grass")
    assert listed("ship=the sea") == listed(ship) == listed([ship]) == listed({"ship": "the sea"}) == [ship]
    assert listed(["ship=the sea", frog]) == listed({"ship": "the sea", "frog": "grass"}) == [ship, frog]
    assert listed(c for c in (ship, frog)) == [ship, frog] and listed([]) == []
    assert not caplog.messages
    assert listed(["Ship", frog], catalogue) == [Concept("Ship", "the sea"), frog]
    assert caplog.messages == ['"Ship": in its place the sea is shown; say "Ship=..." for something else.']
    assert listed('"ship"', catalogue) == [ship]
    assert listed("canine", catalogue) == [Concept("canine", "a meadow")]  # a synonym has its entry's anchor


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("my neighbour", 'No anchor is known for .my neighbour.: .*"my neighbour=a person"'),
        ("shipp", "Known names near it: ship"),
        ("ship, frog", "has a comma in it. Several names: give them one by one"),
        ('"Downey, Jr."', """No anchor is known for .Downey, Jr..: .*'"Downey, Jr."=a person' or Concept"""),
        ("many.csv", r"is a file: read it with macelib.concepts.read_concepts\(path\)"),
        ("ship=", "name=anchor"),
        ("", "'' is no concept"),
        (["ship=the sea", 3], '3 is no concept. Give "ship=the sea"'),
        (None, "None is no concept"),
        (b"ship", "is no concept"),
        (Path("many.csv"), r"read_concepts\(path\)"),
        ({"ship": 3}, "The anchor of a concept must be a word"),
        ({"name": "ship", "anchor": "the sea"}, r"write Concept\(\*\*fields\)"),
        ([{"ship": "the sea"}], "is no concept"),
    ],
)
def test_what_is_no_concept_is_refused_with_the_way_to_give_one(given, said):
    with pytest.raises(MaceError, match=said):
        listed(given, catalogue)
