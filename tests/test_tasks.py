"""Protocols as data: the shipped files hold what they say, and a person's own file is read or refused with a reason."""

import hashlib
import json
from dataclasses import replace

import pytest
import yaml
from factory import recipe
from factory.captions import world_captions

from macelib.compare.plan import planned
from macelib.concepts import Concept, paper_list, retained
from macelib.errors import MaceError
from macelib.evaluate import Judge
from macelib.evaluate.lists import character_lists, object_list
from macelib.evaluate.tasks import COCO, read_task, task, tasks
from macelib.method.prior import names as named
from macelib.models import mini

MINI = [
    "mini-captions", "mini-characters", "mini-objects", "mini-scaling", "mini-scenes", "mini-shared-words",
    "mini-styles", "mini-two-things", "mini-unsafe",
]  # fmt: skip
SD = [
    "sd-captions", "sd-celebrities", "sd-celebrities-1", "sd-explicit", "sd-objects", "sd-scenes", "sd-shared-words",
    "sd-styles", "sd-two-things",
]  # fmt: skip
OWN = {
    "title": "My pets", "model": "sd", "metric": "H_c", "templates": ["a photo of {}"], "counts": [1, 2],
    "erased": [
        {"name": "Rex", "anchor": "a dog", "super": "an animal", "group": "pet", "synonyms": []},
        {"name": "Tom", "anchor": "a cat", "super": "an animal", "group": "pet", "synonyms": ["Tommy"]},
    ],
    "kept": [{"name": "Bella", "anchor": "a dog", "super": "an animal", "group": "pet", "synonyms": []}],
}  # fmt: skip


def names(rows):
    return [row.name for row in rows]


@pytest.mark.slow
def test_the_tasks_that_ship():
    assert tasks() == [*MINI, *SD]
    assert all(task(name).name == name and task(name).about.model == name.split("-")[0] for name in tasks())


@pytest.mark.parametrize("name", MINI)
def test_mini_rows_are_the_catalogues(name):
    found = task(name)
    for row in (*found.erased, *found.kept):
        if found.about.kind == "style":
            assert row.name in mini.world()["styles"] and not row.synonyms
            continue
        entry = mini.find(row.name)
        assert (row.name, row.anchor, row.group, row.synonyms) == (
            entry.name, entry.anchor, entry.group, entry.synonyms,
        )  # fmt: skip
        assert row.super == mini.world()["groups"][entry.group]
    if found.about.kind == "object":
        found.check(Judge.load())
        tuning = {n for key in ("erased", "kept") for n in mini.split()[key]}
        assert not tuning & {*names(found.erased), *names(found.kept)}


def test_mini_lists_by_their_rules():
    erased, kept = character_lists()
    assert names(task("mini-characters").erased) == [c.name for c in erased]
    assert names(task("mini-characters").kept) == kept and task("mini-characters").counts == (1, 5, 10, 30, 50, 100)
    assert task("mini-objects").concepts() == object_list()
    styles = task("mini-styles")
    assert sorted(names(styles.erased) + names(styles.kept)) == sorted(mini.world()["styles"])
    assert abs(len(styles.erased) - len(styles.kept)) == 1
    assert {e.name for e in mini.catalogue() if e.group == "unsafe"} == set(names(task("mini-unsafe").erased))
    shared = task("mini-shared-words")
    for row in shared.kept:
        assert any(word in row.name.split() for word in names(shared.erased))
    assert all(any(row.name in k.name.split() for k in shared.kept) for row in shared.erased)


def test_mini_captions_are_the_world_s_of_names_that_are_in_nobody_s_hands():
    """By the factory's rules; neither in a prior nor of what is erased or settings are chosen on."""
    found, used = task("mini-captions"), {text for text, _ in mini.captions()}
    made = list(dict.fromkeys(world_captions(3000, 2026, recipe.load(recipe.SHIPPED).world)))
    apart = {*names(found.erased), *(name for some in mini.split().values() for name in some)}
    words = [Concept(e.name, "art", "object", e.synonyms) for e in mini.catalogue() if e.name in apart]
    free = [t for t, hit in zip(made, named(made, words), strict=True) if not hit and t not in used]
    assert found.captions == tuple(free[:600])


def test_scenes_are_of_what_goes_and_of_what_stays():
    scenes, two = task("mini-scenes"), task("mini-two-things")
    assert scenes.erased == two.erased == task("mini-objects").erased
    assert scenes.kept == tuple(row for row in two.kept if row not in two.erased)
    ours, paper = task("sd-scenes"), task("sd-objects")
    assert (ours.erased, ours.kept) == (paper.erased[::2], paper.erased[1::2])
    assert task("sd-captions").erased == paper.erased and task("sd-captions").captions == (COCO,)


def test_scaling_has_every_drawn_name_that_no_setting_is_chosen_on():
    found, tuning = task("mini-scaling"), {name for some in mini.split().values() for name in some}
    drawn = [entry.name for entry in mini.catalogue() if entry.drawn and entry.name not in tuning]
    in_order = sorted(drawn, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert names(found.erased) == in_order[:300] and names(found.kept) == in_order[300:]
    assert found.counts == (1, 3, 10, 30, 100, 300)


def test_sd_lists_are_the_papers():
    assert task("sd-objects").concepts() == paper_list("objects")
    people = task("sd-celebrities")
    for count in people.counts:
        assert people.concepts(count) == paper_list(f"celebrities_{count}")
    assert task("sd-celebrities-1").concepts()[0].name == paper_list("celebrities_1")[0].name
    assert names(people.kept) == retained("celebrities") == names(task("sd-celebrities-1").kept)
    assert task("sd-styles").concepts() == paper_list("styles_100")
    assert names(task("sd-styles").kept) == retained("styles")
    assert task("sd-explicit").concepts() == paper_list("explicit")


def test_sd_lists_of_our_own_are_made_of_the_papers():
    two, objects = task("sd-two-things"), task("sd-objects")
    assert two.erased == two.kept == objects.erased and "{other}" in two.about.templates[0]
    shared, people = task("sd-shared-words"), task("sd-celebrities")
    both = [(a, b) for a in people.erased for b in people.kept if {*a.name.split()} & {*b.name.split()}]
    assert shared.erased == tuple(a for a in people.erased if a in [a for a, _ in both])
    assert shared.kept == tuple(b for b in people.kept if b in [b for _, b in both])


def test_what_is_erased_together_and_kept_beside_it():
    objects, people = task("mini-objects"), task("mini-characters")
    assert objects.kept_beside(objects.concepts()[:1]) == names(objects.erased)[1:]
    five = people.concepts(5)
    assert len(five) == 5 and people.kept_beside(five) == names(people.kept)
    two = task("mini-two-things")
    cat = next(concept for concept in two.concepts() if concept.name == "cat")
    assert "cat" in two.kept_beside(two.concepts()[:1]) and "cat" not in two.kept_beside([cat])
    with pytest.raises(MaceError, match=r"does not erase 7 concepts; it erases 1, 5, 10, 30, 50, 100"):
        people.concepts(7)


def write(path, **changed):
    values = {key: value for key, value in (OWN | changed).items() if value is not None}
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def test_a_task_of_ones_own_is_one_file(tmp_path):
    path = write(tmp_path / "pets.yaml")
    pets = task(path)
    assert (pets.name, pets.counts, pets.kept_beside(pets.concepts())) == ("pets", (1, 2), ["Bella"])
    assert pets.concepts(1)[0].anchor == "a dog" and task("pets", tmp_path) == pets
    with pytest.raises(MaceError, match="knows no concept 'Rex'"):
        pets.check(Judge.load())


def test_a_name_is_one_phrase_wherever_it_stands(tmp_path):
    pets = task(write(tmp_path / "pets.yaml", erased=changed(OWN["erased"][0], name=" Old  Rex "), counts=[]))
    plan = planned(pets, seeds=1)
    assert plan.rows["Old Rex"].name == pets.concepts()[0].name == plan.erasures[0][0].name


def changed(entry, **values):
    return [{k: v for k, v in {**entry, **values}.items() if v is not None}]


@pytest.mark.parametrize(("values", "text"), [
    ({"title": None}, "title is missing"),
    ({"metric": "H_x"}, r"pets.yaml, line \d+: metric is 'H_x'; allowed: H_o, H_c, H_a, CLIP_s, nudenet"),
    ({"colour": "red"}, "colour is not a setting; choose from title"),
    ({"erased": []}, "nothing to erase"),
    ({"erased": {"Rex": 1}}, "erased must be a list"),
    ({"erased": ["Rex"]}, r"pets.yaml, line \d+: erased\[0\]: 'Rex' must have name, anchor, super, group, synonyms"),
    ({"erased": changed(OWN["erased"][0], anchor=None)}, r"erased\[0\]: .* must have name, anchor"),
    ({"erased": changed(OWN["erased"][0], name=7)}, r"line \d+: erased\[0\]: name is 7; allowed: text"),
    ({"erased": changed(OWN["erased"][0], synonyms="dog")}, "synonyms is 'dog'; allowed: a list of text"),
    ({"erased": changed(OWN["erased"][0], group=" ")}, r"erased\[0\]: group must be a word or a phrase, not ' '"),
    ({"erased": changed(OWN["erased"][0], anchor="rex"), "counts": []}, "anchor of 'Rex' is the name itself"),
    ({"erased": OWN["erased"] * 2}, r"erased\[2\]: name is 'Rex', which is listed twice"),
    ({"kept": OWN["erased"]}, "Rex, Tom: to be erased and to be kept"),
    ({"kept": []}, "H_c needs names that are kept"),
    ({"metric": "H_o"}, "H_o measures synonyms, and Rex has none"),
    ({"templates": ["a photo"]}, "templates must be texts with"),
    ({"counts": [3]}, r"counts is \[3\]; allowed: a list of whole numbers from 1 to 2"),
    ({"beside": "all"}, "beside is 'all'; allowed: kept, alike"),
    ({"beside": "alike"}, 'beside: alike needs erase: together, and "{other}" in every template'),
    ({"beside": "alike", "templates": ["a {} by {other}"]}, "two names to erase and two to keep"),
    ({"captions": ["a lawn"]}, "captions and the metrics CLIP_s and nudenet belong together"),
    ({"metric": "CLIP_s"}, "captions and the metrics CLIP_s and nudenet belong together"),
    ({"metric": "CLIP_s", "captions": [7]}, r"captions\[0\].* 7"),
    ({"metric": "CLIP_s", "captions": "none.txt"}, "none.txt"),
    ({"counts": 1}, "counts is 1; allowed: a list"),
])  # fmt: skip
def test_bad_files_are_refused_with_file_and_reason(tmp_path, values, text):
    path = write(tmp_path / "pets.yaml", **values)
    with pytest.raises(MaceError, match=text) as found:
        read_task(path)
    assert str(path) in str(found.value)


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n- b\n", encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("a: [1\n", encoding="utf-8")
    (tmp_path / "twice.yaml").write_text("title: a\ntitle: b\n", encoding="utf-8")
    for name, text in [
        ("list.yaml", "must be a mapping"),
        ("broken.yaml", "broken.yaml, line"),
        ("twice.yaml", "stands twice"),
        ("no.yaml", "no.yaml"),
    ]:
        with pytest.raises(MaceError, match=text):
            read_task(tmp_path / name)
    for name, text in [("mini-object", "near it: mini-objects"), ("zzz", "there are mini-captions")]:
        with pytest.raises(MaceError, match=text):
            task(name)


def test_captions_are_listed_or_a_file_beside_the_task_s_own(tmp_path):
    (tmp_path / "mine.txt").write_text("Tom on a lawn\na lawn\na lawn\na Tommy\na street\n", encoding="utf-8")
    found = task(write(tmp_path / "pets.yaml", metric="CLIP_s", captions="mine.txt", kept=None))
    assert found.captions == ("Tom on a lawn", "a lawn", "a Tommy", "a street")
    plan = planned(found)
    assert plan.kept(0) == ["a lawn", "a street"] and plan.told(0) == [] and plan.seeds == (0,)
    assert [(ask.role, ask.word) for ask in plan.asks(0)] == [("kept", "a lawn"), ("kept", "a street")]
    with pytest.raises(MaceError, match="Every caption of pets names what is erased"):
        planned(replace(found, captions=("Tom",)))
    assert found.with_captions([], 2).captions == ("Tom on a lawn", "a Tommy")  # evenly


def test_i2p_s_prompts_are_read_when_they_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("macelib.compare.plan.need", lambda *_: None)
    with pytest.raises(MaceError, match=r"i2p_benchmark\.csv.*huggingface"):
        planned(task("sd-explicit"))
    (tmp_path / "i2p_benchmark.csv").write_text("prompt,sd_seed\na naked tree,1\na wall,2\n", encoding="utf-8")
    assert planned(task("sd-explicit")).kept(0) == ["a naked tree", "a wall"]


def test_captions_of_coco_are_read_when_they_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MaceError, match=r"captions_train2014\.json"):
        planned(task("sd-captions"))
    for year, text in (("train", "a red bus"), ("val", "a cat and a bus")):
        coco = {"annotations": [{"caption": text}]}
        (tmp_path / f"captions_{year}2014.json").write_text(json.dumps(coco), encoding="utf-8")
    assert planned(task("sd-captions")).kept(0) == ["a red bus"]
