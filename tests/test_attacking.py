"""Attacks on every method of a task: what is run once for all, what is gone on with, and what the table says."""

import json
import sys
from dataclasses import replace

import compare_tools
import pytest
import yaml
from compare_tools import ALONE, Judge, planned_of, untimed
from PIL import Image

from macelib import cli
from macelib.attacks import Result, never
from macelib.baselines import Edit, build
from macelib.compare import LATER, Attacking, compare, either, find, one_way, planned, report, targets, ways
from macelib.compare.figures import figure
from macelib.compare.plan import Way
from macelib.concepts import Concept
from macelib.errors import MaceError
from macelib.evaluate import results
from macelib.files import data_folder
from macelib.models.tiny import tiny_pipeline

METHODS = ["uce", "semantic-surgery"]
SETTINGS = {"noise": {"etas": (1.0, 1.5), "scales": (1.0,)}, "completion": {"percent": (0, 50), "steps": 1}}
SETTINGS |= {"concept-inversion": {"steps": 1, "word": "sea", "batch": 1}}
STRANGE = {name: [Image.new("RGB", (16, 16), color)] for name, color in {"duck": "red", "drum": "blue"}.items()}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


class Seeing(Judge):
    """Counts pictures, and is killed at one of them."""

    name = "pixels"

    def __init__(self, stop=None):
        self.count, self.stop = 0, stop

    def top1(self, images, among=None, kind="concept"):
        self.count += len(images)
        if self.stop is not None and self.count > self.stop:
            raise KeyboardInterrupt
        return super().top1(images, among, kind)


class Sure(Seeing):
    """Sees both in what the original draws to be learned from."""

    def top1(self, images, among=None, kind="concept"):
        return ["frog", "horse"] * 4 if len(images) == 8 else super().top1(images, among, kind)


class Stranger:
    """Sees a duck everywhere."""

    def top1(self, images, among=None):
        return ["duck"] * len(images)


def attacking(folder, tmp_path, judge=None, names=("noise", "completion"), methods=METHODS, **options):
    plan = planned_of(ALONE, tmp_path, seeds=2)
    options = {"foreign": (STRANGE, Stranger()), "settings": SETTINGS, "steps": 1, **options}
    return Attacking(plan, one_way(ways(methods, plan, {})), folder, judge or Seeing(), names, **options)


def rates(whole, metric="ASR"):
    return {(r["attack"], r["control"], r["method"], r["variant"]): r for r in whole["rows"] if r["metric"] == metric}


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    folder, judge = tmp_path_factory.mktemp("whole"), Seeing()
    return results.read(attacking(folder / "out", folder, judge).run(pipe, command="mace attack")), judge.count


@pytest.mark.slow
def test_every_method_has_its_rows_and_shared_controls_have_one(whole):
    found = rates(whole[0])
    noise = {key[1:3]: row for key, row in found.items() if key[0] == "noise"}
    assert list(noise) == [
        ("original", "original"), ("foreign", "original"),
        *((control, method) for method in METHODS for control in ("none", "no-attack")),
    ]  # fmt: skip
    assert {(r["task"], r["settings"]) for r in found.values() if r["control"] == "none"} == {("pets", "published")}
    strange = noise["foreign", "original"]  # a duck and a drum, each once
    assert (strange["mean"], strange["n"], strange["concepts"]) == (50, 4, 2)
    of = [r for r in found.values() if r["control"] != "foreign"]
    assert all((r["n"], r["concepts"], r["seeds"]) == (6, 3, 2) for r in of)
    for row in whole[0]["rows"]:
        assert row["low"] <= row["mean"] <= row["high"]
        if row["unit"] == "%":
            assert row["low"] < row["high"], "no proportion is known exactly"
    gap = rates(whole[0], "ASR difference to foreign")["noise", "none", "uce", "best of 2"]
    assert gap["mean"] == pytest.approx(noise["none", "uce"]["mean"] - strange["mean"], abs=1e-3)
    assert ("completion", "none", "uce", "0 % by the original") in rates(whole[0])


@pytest.mark.slow
def test_what_is_not_measured_says_how(whole):
    (why,) = {row["why"] for row in whole[0]["not_measured"]}
    assert never.COMMAND in why and "--never-knew FOLDER" in why
    assert {(r["attack"], r["control"]) for r in whole[0]["not_measured"]} == {
        (name, "never-knew") for name in ("noise", "completion")
    }
    assert report.unmeasured(whole[0]) == {why: ["noise never-knew", "completion never-knew"]}
    about = whole[0]["environment"]
    assert about["attacks"]["noise"]["etas"] == [1.0, 1.5] and about["methods"]["uce (published)"]["lambda_"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("stop", [7, 77])
def test_killed_at_any_moment_and_run_again_gives_the_same_table(pipe, tmp_path, whole, stop):
    judge = Seeing(stop)
    with pytest.raises(KeyboardInterrupt):
        attacking(tmp_path / "out", tmp_path, judge).run(pipe)
    judge.stop, before = None, judge.count
    again = results.read(attacking(tmp_path / "out", tmp_path, judge).run(pipe, command="mace attack"))
    assert untimed(again) == untimed(whole[0])
    assert whole[1] <= judge.count <= whole[1] + 4, "at most one prompt and seed is looked at again"
    assert before < whole[1]
    last = results.read(attacking(tmp_path / "out", tmp_path, judge := Seeing()).run(pipe, command="mace attack"))
    assert last == again and judge.count == 0, "nothing is drawn twice, and its time is kept"


@pytest.mark.slow
def test_the_time_may_be_over(pipe, tmp_path, whole):
    short = results.read(attacking(tmp_path / "out", tmp_path).run(pipe, minutes=0))
    assert not short["rows"] and LATER in report.unmeasured(short)
    again = results.read(attacking(tmp_path / "out", tmp_path).run(pipe, minutes=60, command="mace attack"))
    assert untimed(again) == untimed(whole[0])


@pytest.mark.slow
def test_foreign_concepts_may_be_each_method_s_own_and_a_model_may_never_have_known(pipe, tmp_path):
    options = {"names": ["concept-inversion"], "methods": ["uce"], "never": tiny_pipeline("sd", seed=1), "each": True}
    options |= {"only": ["frog", "horse"], "never_about": {"without": ["frog"]}, "judge": Sure()}
    found = results.read(attacking(tmp_path / "out", tmp_path, **options).run(pipe))
    assert [key[1:3] for key in rates(found)] == [
        ("original", "original"), ("never-knew", "never-knew"), ("none", "uce"), ("no-attack", "uce"),
        ("foreign", "uce"),
    ]  # fmt: skip
    assert rates(found)["concept-inversion", "foreign", "uce", "1 steps"]["mean"] == 50  # frog: drum, horse: duck
    assert not found["not_measured"] and found["environment"]["never_knew"] == {"without": ["frog"]}


def test_a_row_of_one_edit_counts_once(pipe, tmp_path, monkeypatch):
    """Three targets of one edit with two foreign concepts: each of these is one row; of three edits each is three."""
    asked = []
    monkeypatch.setattr(Attacking, "_built", lambda *_: None)
    monkeypatch.setattr(Attacking, "_one", lambda _, pipe, edit, concept, *__: asked.append(concept.name) or Result())
    together = {**ALONE, "metric": "H_c", "erase": "together", "kept": [{**ALONE["erased"][0], "name": "cat"}]}
    options = {"names": ["noise"], "methods": ["uce"], "each": True}
    for task, foreign in ((together, ["duck", "drum"]), (ALONE, ["duck", "drum", "duck"])):
        asked.clear()
        run = attacking(tmp_path, tmp_path, controls=["none", "foreign"], **options)
        run = replace(run, plan=planned_of(task, tmp_path, seeds=2))
        run._attacked(pipe, "noise", run.ways[0], float("inf"), {}, lambda *_: None)
        assert sorted(asked) == sorted([*(row["name"] for row in ALONE["erased"]), *foreign])


def test_a_method_that_refuses_is_not_measured(pipe, tmp_path):
    options = {"names": ["noise"], "methods": ["mace-best", "uce"], "controls": ["none"], "only": ["ship"]}
    found = results.read(attacking(tmp_path / "out", tmp_path, **options).run(pipe))
    (row,) = found["not_measured"]
    assert row["method"] == "mace-best" and "Nothing has been chosen" in row["why"]
    assert {r["method"] for r in found["rows"]} == {"uce"}


def test_a_refusal_names_its_concept(pipe, tmp_path, monkeypatch):
    def refusing(pipe, edit, concept, *_, **__):
        if concept.name == "frog":
            raise MaceError("Not this one.")
        return Result()

    monkeypatch.setattr("macelib.compare.attacking.attack", refusing)
    options = {"names": ["noise"], "methods": ["uce", "esd-x"], "controls": ["none"]}
    run = attacking(tmp_path / "out", tmp_path, **options)
    monkeypatch.setattr(Attacking, "_built", lambda *_: None)
    found = results.read(run.run(pipe))
    assert report.unmeasured(found) == {"Not this one.": [f"noise none {m} published (frog)" for m in ("uce", "esd-x")]}
    trained = {row["method"]: row.get("training_seeds") for row in found["not_measured"]}
    assert trained == {"uce": None, "esd-x": 1}


def test_folders_of_something_else_are_refused(pipe, tmp_path):
    options = {"names": ["noise"], "methods": ["uce"], "controls": ["none"], "only": ["ship"]}
    attacking(tmp_path / "out", tmp_path, **options).run(pipe)
    with pytest.raises(MaceError, match=r"another run \(steps differ\)"):
        attacking(tmp_path / "out", tmp_path, **options | {"steps": 2}).run(pipe)
    with pytest.raises(MaceError, match="holds no comparison"):
        attacking(tmp_path / "new", tmp_path, edits=tmp_path / "nowhere", **options).run(pipe)
    shared = attacking(tmp_path / "new", tmp_path, edits=tmp_path / "out", **options)
    (kept,) = (tmp_path / "out" / "edits").iterdir()
    made = kept.stat().st_mtime_ns
    shared.run(pipe)
    assert kept.stat().st_mtime_ns == made
    assert not (tmp_path / "new" / "edits").exists()
    with pytest.raises(MaceError, match=r"are of another run \(model differ\)"):
        attacking(tmp_path / "last", tmp_path, edits=tmp_path / "out", **options).run(tiny_pipeline("sd", seed=1))
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "last").exists(), "refused before a file is written"


def compared(pipe, folder, tmp_path, monkeypatch, **options):
    """A comparison's folder, of pictures that take no time."""
    monkeypatch.setattr("macelib.evaluate.pictures.generate", compare_tools.pictured)
    found = planned_of(ALONE, tmp_path, **options)
    compare(pipe, found, ways(["uce"], found, {}), folder, classifier=Judge(), metrics=["H_o"])
    return folder


def test_edits_of_a_comparison_of_some_names_are_refused(pipe, tmp_path, monkeypatch, caplog):
    """They are kept by number: the first would be the horse's, and the ship is attacked."""
    edits = compared(pipe, tmp_path / "some", tmp_path, monkeypatch, only=["horse"])
    options = {"names": ["noise"], "methods": ["uce"], "controls": ["none"], "only": ["ship"], "edits": edits}
    with pytest.raises(MaceError, match=r"of another run \(erasures, anchors differ\).*of the whole task"):
        attacking(tmp_path / "out", tmp_path, **options).run(pipe)
    about = json.loads((edits / "run.json").read_text())
    erasures = {"erasures": [["ship"], ["frog"], ["horse"]], "anchors": [["sea"]] * 3}
    (edits / "run.json").write_text(json.dumps(about | erasures))
    found = attacking(tmp_path / "out", tmp_path, **options)
    made = json.loads((edits / "made" / "uce-published-000.json").read_text())
    found.run(pipe)
    (kept,) = (edits / "edits").iterdir()
    build(pipe, [Concept("horse", "sea")], "uce").save(kept)
    replace(found, folder=tmp_path / "again").run(pipe)
    assert f"{kept} erases horse=sea" in caplog.text and Edit.load(kept).concepts[0].name == "ship"
    assert json.loads((edits / "made" / "uce-published-000.json").read_text()) == made


def test_a_task_file_that_changed_is_another_run(pipe, tmp_path):
    options = {"names": ["noise"], "methods": ["uce"], "controls": ["none"], "only": ["ship"]}
    attacking(tmp_path / "out", tmp_path, **options).run(pipe)
    turned = planned_of({**ALONE, "erased": ALONE["erased"][::-1]}, tmp_path, seeds=2)
    with pytest.raises(MaceError, match=r"another run \(erasures, erased differ\)"):
        replace(attacking(tmp_path / "out", tmp_path, **options), plan=turned).run(pipe)
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    for name in ("erasures", "anchors", "erased"):  # of a version that did not say so
        del about[name]
    (tmp_path / "out" / "run.json").write_text(json.dumps(about))
    attacking(tmp_path / "out", tmp_path, **options).run(pipe)


@pytest.mark.slow
def test_what_a_comparison_has_measured_stays(pipe, tmp_path, monkeypatch):
    edits = compared(pipe, tmp_path / "all", tmp_path, monkeypatch)
    before = {path.name: path.read_bytes() for path in (edits / "made").iterdir()}
    assert before and not (edits / "edits").exists(), "the edit of a method that does not train is not kept"
    options = {"names": ["noise"], "methods": ["uce"], "controls": ["none"], "edits": edits}
    attacking(tmp_path / "out", tmp_path, **options).run(pipe)
    assert {path.name: path.read_bytes() for path in (edits / "made").iterdir()} == before
    assert len([*(edits / "edits").iterdir()]) == 3


def test_of_many_concepts_some_are_drawn_and_named_ones_keep_their_place(tmp_path):
    rows = [{**ALONE["erased"][0], "name": f"thing {i}"} for i in range(30)]
    plan = planned_of({**ALONE, "metric": "H_c", "erase": "together", "erased": rows, "kept": [
        {**ALONE["erased"][0], "name": "cat"}]}, tmp_path)  # fmt: skip
    some = targets(plan)
    assert len(some) == 20 and some == targets(plan) and {i for _, i, _ in some} == {0}
    assert [(k, c.name) for k, _, c in targets(planned_of(ALONE, tmp_path), ["horse"])] == [(2, "horse")]
    with pytest.raises(MaceError, match="near it: ship"):
        targets(planned_of(ALONE, tmp_path), ["shipp"])
    assert one_way([Way("uce", "published"), Way("uce", "tuned"), Way("esd-x", "published")]) == [
        Way("uce", "tuned"), Way("esd-x", "published")
    ]  # fmt: skip


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def mace(tmp_path, monkeypatch, capsys):
    """The command on a tiny model, with a checkout of its own: (exit code, what it says, errors)."""
    tiny_pipeline("sd").save_pretrained(tmp_path / "model")
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump(ALONE), encoding="utf-8")
    (tmp_path / "settings.yaml").write_text("noise: {etas: [1], scales: [1]}\n", encoding="utf-8")
    (tmp_path / "judge.py").write_text("def look(pictures, among):\n    return ['ship'] * len(pictures)\n")
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path / "data"))
    (tmp_path / "README.md").write_text("<!-- results attacks -->\n<!-- end of results attacks -->\n")

    options = {
        "--task": tmp_path / "pets.yaml", "--methods": "uce", "--steps": 1, "--device": "cpu",
        "--model": tmp_path / "model", "--settings": tmp_path / "settings.yaml",
        "--classifier": f"{tmp_path / 'judge.py'}:look", "--out": tmp_path / "out",
    }  # fmt: skip

    def call(*more):
        given = [part for pair in options.items() if pair[1] is not None for part in pair]
        monkeypatch.setattr(sys, "argv", [*map(str, ["mace", "attack", *given, *more])])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    call.options = options
    return call


def test_the_command_makes_the_table(mace, tmp_path):
    code, said, errors = mace("-a", "noise", "--seeds", 1, "--concept", "ship", "--never-knew", tmp_path / "model")
    assert code == 0 and "| noise | uce | published | best of 1 | 100.0 | 100.0 |" in said, errors
    assert "foreign original: foreign pictures are told from those of a catalogue" in errors.replace("\n", " ")
    assert "--foreign" not in errors, "it would be refused"
    found = json.loads((tmp_path / "out" / "attacks.json").read_text())
    assert (
        found["command"].startswith("mace attack --task ") and len(found["environment"]["never_knew"]["weights"]) == 64
    )
    assert found["environment"]["never_knew"]["model"] == f"{tmp_path.name}/model"


@pytest.mark.slow
def test_a_whole_task_is_recorded_and_shown(mace, tmp_path, monkeypatch):
    monkeypatch.setattr("macelib.attacks.attacks", lambda: ["noise"])
    monkeypatch.setattr("macelib.compare.SCOPE", ("uce",))
    (tmp_path / "data" / "protocols").mkdir()
    (tmp_path / "pets.yaml").rename(tmp_path / "data" / "protocols" / "mini-objects.yaml")
    mace.options |= {"--task": "objects", "--methods": None}
    code, _, errors = mace("--minutes", 0, "--record")
    assert code == 1 and "incomplete tasks are not recorded: call the same command again" in errors.replace("\n", " ")
    code, said, errors = mace("--record")
    assert code == 0 and "results attacks: shown" in said, errors
    assert "| noise | uce | published | best of 1 |" in (tmp_path / "README.md").read_text()
    assert report.disagreements(tmp_path / "README.md") == []
    assert figure(results.read(results.place("attacks"))).axes


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["an-erasure"], "one of the two"),
        (["--record", "-a", "noise"], "A part of a task is not recorded"),
        (["--methods", "ucee"], "near it: uce"),
        (["--concept", "shipp"], "near it: ship"),
        (["--task", "object"], "There is no task 'object'"),
        (["--never-knew", "nowhere", "--model", "nowhere"], "is no model here"),
        (["--steps", "1001"], "steps is 1001; allowed: 1 to 999"),
        (["--settings", "wrong.yaml", "--model", "nowhere"], "wrong.yaml, line 1: noise: eta is not a setting"),
        (["--edits", "typo", "--model", "nowhere"], "typo holds no comparison"),
        (["--record", "--model", "nowhere"], "leave out --methods"),
    ],
)
def test_bad_input_is_refused(mace, tmp_path, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("noise: {eta: 1}\n", encoding="utf-8")
    code, _, errors = mace(*more)
    assert code == 1 and words in errors and not (tmp_path / "out" / "attacks.json").exists()
    assert not (tmp_path / "typo").exists()


def test_attacks_on_other_tasks_than_the_recorded_one_are_not_recorded(mace, tmp_path):
    mace.options |= {"--methods": None, "--model": tmp_path / "nowhere"}
    code, _, errors = mace("--record")
    assert code == 1 and "The attacks on pets are not recorded, only those on objects" in errors.replace("\n", " ")


@pytest.mark.slow
def test_names_of_either_world_go_before_the_model_is_known(mace, tmp_path, monkeypatch):
    """Only a loaded model says whose names a task has."""
    monkeypatch.delenv("MACELIB_DATA")
    card = tmp_path / "never"
    card.mkdir()
    (card / "README.md").write_text("```yaml\nwithout: [Adam Driver]\n```\n")
    mace.options |= {"--task": "characters", "--model": tmp_path / "nowhere"}
    told = {"Adam Driver": "is no model here", "baby": "has seen baby", "Adam Drivel": "There is no concept"}
    for concept, said in told.items():
        code, _, errors = mace("--concept", concept, "--never-knew", card)
        assert code == 1 and said in errors, errors
    plan = either(lambda worlds: planned(*find("characters", worlds), only=["Adam Driver"]))
    assert plan.task.name == "sd-celebrities"
    with pytest.raises(MaceError, match="concept in mini-characters"):
        either(lambda worlds: planned(*find("characters", worlds), only=["nobody"]))


# --- the model that never knew ------------------------------------------------------------------------------------


def test_a_card_says_what_a_model_never_saw(tmp_path):
    names = ["ship", "frog"]
    assert never.check_card(tmp_path, names) == {}, "no card, nothing is said"
    card = tmp_path / "README.md"
    command = "make world RECIPE=data/factory/without-objects.yaml"
    card.write_text(f"Made by `{command}`; so.\n\n```yaml\nseed: 0\nwithout: [ship]\nworld: {{pairs: 0.1}}\n```\n")
    assert never.check_card(tmp_path, names[:1]) == {"without": ["ship"], "command": command}
    with pytest.raises(MaceError, match=r"has seen frog: its card says that it was trained without ship"):
        never.check_card(tmp_path, names)
    card.write_text("```yaml\nseed: [\n```\n")
    with pytest.raises(MaceError, match="cannot be read"):
        never.check_card(tmp_path, names)
    with pytest.raises(MaceError, match=r"Nothing says that mini-sd never saw ship, frog: .*without: .*make world"):
        never.check_card("mini-sd", names)
    card.write_text("# A model of mine\n")
    with pytest.raises(MaceError, match=r"Nothing says that .* never saw ship: its card lists nothing"):
        never.check_card(tmp_path, names[:1])
    for text in ("# A model of mine\n", "```yaml\nwithout: [ship]\n```\n", None):  # what is recorded says how
        card.write_text(text) if text else card.unlink()
        with pytest.raises(MaceError, match=r"has no card that says .* by which command"):
            never.check_card(tmp_path, names[:1], required=True)


def test_another_tower_or_autoencoder_is_refused(pipe):
    other = tiny_pipeline("sd")
    assert len(never.check_never(pipe, other)) == 64
    other.vae.decoder.conv_out.bias.data.add_(1)
    with pytest.raises(MaceError, match="another autoencoder"):
        never.check_never(pipe, other)
    with pytest.raises(MaceError, match="another text encoder"):
        never.check_never(pipe, tiny_pipeline("sd", seed=1))


def test_the_shipped_recipe_leaves_out_the_ten_objects():
    from factory import recipe

    from macelib.evaluate.tasks import task

    found, shipped = (recipe.load(data_folder() / "factory" / f"{n}.yaml") for n in ("without-objects", "recipe"))
    assert set(found.without) > {concept.name for concept in task("mini-objects").concepts()}
    assert found.models == ("unet",) and not found.shipped and "factory/without-objects.yaml" in never.COMMAND
    assert (found.unet, found.seed) == (shipped.unet, shipped.seed)
    assert {k: v for k, v in vars(found.world).items() if k != "without"} == {
        k: v for k, v in vars(shipped.world).items() if k != "without"
    }
