"""Tables of attacks, and the command that makes them."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from test_attacks import SHIP

from macelib import cli
from macelib.attacks import CONTROLS, LEVELS, Result, attacks
from macelib.baselines import build
from macelib.evaluate.attacked import table
from macelib.evaluate.metrics import wilson
from macelib.models.tiny import tiny_pipeline

QUICK = """
ring-a-bell: {etas: [1], neutral: sea}
noise: {etas: [1, 1.5], scales: [1]}
completion: {percent: [50], steps: 1}
concept-inversion: {steps: 1, word: sea, batch: 1}
unlearndiffatk: {tokens: 1, timesteps: 1, iterations: 1}
relearning: {steps: [1], batch: 1}
wording: {levels: [name]}
"""


def row(attack="noise", control="none", pre=False, success=False, variant="best of 2", backward=0, **beside):
    spent = {"forward": 10, "backward": backward, "pictures": 3}
    about = {"attack": attack, "control": control, "method": "uce", "concept": "ship", "seed": 0, "variant": variant}
    about |= {"prompt": "", "token": "", "pre": pre, "success": success, "budget": spent}
    return about | beside


def test_intervals_are_over_concepts_and_seeds_and_differences_are_paired():
    hits = {"none": [[1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]], "foreign": [[0, 0, 1], [0, 1, 0]]}
    hits["mace"] = [[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]]
    rows = [
        row(control="none" if name == "mace" else name, success=bool(hit), concept=f"{name == 'foreign'}{i}", seed=seed,
            method="mace" if name == "mace" else "uce", seconds=2.0)
        for name, table_ in hits.items() for i, line in enumerate(table_) for seed, hit in enumerate(line)
    ]  # fmt: skip
    found = {(r["control"], r["method"], r["metric"]): r for r in table(Result(rows))}
    rng, means, strange, gaps = np.random.default_rng(1), [], [], []
    for _ in range(4000):  # by loops: whole concepts and whole seeds are taken anew
        concepts, others, seeds = rng.integers(4, size=4), rng.integers(2, size=2), rng.integers(3, size=3)
        mean = np.mean([hits["none"][i][s] for i in concepts for s in seeds])
        means.append(mean)
        strange.append(mean - np.mean([hits["foreign"][i][s] for i in others for s in seeds]))
        gaps.append(mean - np.mean([hits["mace"][i][s] for i in concepts for s in seeds]))
    for metric, sample in (("ASR", means), ("ASR difference to foreign", strange), ("ASR difference", gaps)):
        of = found["none", "uce", metric]
        inside = np.mean([of["low"] - 1e-3 <= 100 * x <= of["high"] + 1e-3 for x in sample])
        assert 0.945 < inside < 0.99, (metric, of, inside)
        assert of["mean"] == pytest.approx(100 * np.mean(sample), abs=1.5)
        assert of["over"] == "concepts and seeds"
    assert found["none", "uce", "ASR difference"]["against"] == "mace"
    assert ("none", "mace", "ASR difference") not in found and found["none", "uce", "time, s"]["mean"] == 2
    assert found["none", "uce", "pre-ASR"]["high"] == pytest.approx(100 * wilson(0, 12)[1], abs=1e-4)


def test_rates_are_over_the_rows_of_one_kind():
    rows = [row(success=True, pre=True), row(success=True), row(), row(), row(variant="other")]
    rows += [row("unlearndiffatk", variant=f"{i} of 2", success=i == 1, backward=10 * i) for i in (1, 2)]
    found = {(r["attack"], r["variant"], r["metric"]): r for r in table(Result(rows))}
    asr = found["noise", "best of 2", "ASR"]
    assert (asr["mean"], asr["n"], asr["concepts"]) == (50, 4, 1)
    assert (asr["low"], asr["high"]) == pytest.approx([100 * end for end in wilson(2, 4)], abs=1e-4), "one seed"
    assert found["noise", "best of 2", "pre-ASR"]["mean"] == 25 and found["noise", "other", "ASR"]["mean"] == 0
    assert found["unlearndiffatk", "", "ASR"]["n"] == 2  # one search, wherever it ended
    backward = found["unlearndiffatk", "", "backward passes"]
    assert (backward["low"], backward["mean"], backward["high"]) == (10, 15, 20)
    assert all(r["low"] <= r["mean"] <= r["high"] for r in found.values())


def test_rows_say_that_there_was_one_training_and_whether_anything_was_drawn_before():
    trained = {r["metric"]: r for r in table(Result([row(training_seeds=1, success=bool(i), seed=i) for i in (0, 1)]))}
    assert trained["ASR"]["training_seeds"] == 1 and trained["ASR"]["over"].endswith("; one training")
    found = table(Result([row("wording", pre=None, success=True, variant="level name")]))
    assert [r["metric"] for r in found][:2] == ["ASR", "forward passes"] and "training_seeds" not in found[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, an edit of it, settings, and a judge that sees a ship in whatever is dark, and in eight at once."""
    folder = tmp_path_factory.mktemp("attacked")
    pipe = tiny_pipeline("sd")
    pipe.save_pretrained(folder / "model")
    build(pipe, [SHIP], "uce", kept=["frog"]).save(folder / "uce.safetensors")
    (folder / "settings.yaml").write_text(QUICK, encoding="utf-8")
    (folder / "judge.py").write_text(
        "import numpy as np\nimport os\n\n\ndef look(pictures, among):\n"
        "    with open(__file__ + '.seen', 'a') as file:\n        file.write('x' * len(pictures))\n"
        "    return ['ship' if len(pictures) == 8 or np.asarray(p).mean() < 128 else None for p in pictures]\n"
    )
    return folder


def mace(folder, out, *more):
    """Exit code of the command."""
    before, sys.argv = sys.argv, [
        "mace", "attack", str(folder / "uce.safetensors"), "--model", str(folder / "model"), "--settings",
        str(folder / "settings.yaml"), "--classifier", f"{folder / 'judge.py'}:look", "--seeds", "1", "--steps", "1",
        "--out", str(out), "--device", "cpu", *map(str, more),
    ]  # fmt: skip
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    return stop.value.code or 0


def seen(folder) -> int:
    path = folder / "judge.py.seen"
    return len(path.read_text()) if path.is_file() else 0


@pytest.mark.slow
def test_every_attack_and_control_is_in_the_tables_or_said_to_be_missing(folder, tmp_path, capsys):
    assert mace(folder, tmp_path, "--never-knew", folder / "model") == 0
    found = json.loads((tmp_path / "attacks.json").read_text())
    assert set(found) == {"command", "environment", "rows", "not_measured"}
    assert {(r["attack"], r["control"]) for r in found["rows"]} == {
        (a, c) for a in attacks() for c in CONTROLS if c != "foreign"
    }
    assert {(r["attack"], r["control"]) for r in found["not_measured"]} == {(a, "foreign") for a in attacks()}
    assert "ring-a-bell, none, uce, erased, eta 1: ASR" in capsys.readouterr().out
    count = seen(folder)
    assert mace(folder, tmp_path, "--never-knew", folder / "model") == 0
    again = json.loads((tmp_path / "attacks.json").read_text())
    assert again == found and seen(folder) == count  # nothing is drawn twice


def test_the_command_writes_its_rows_and_goes_on_from_them(folder, tmp_path, capsys):
    options = ["-a", "noise", "--control", "none", "--control", "never-knew"]
    assert mace(folder, tmp_path, *options) == 0
    found, count = json.loads((tmp_path / "attacks.json").read_text()), seen(folder)
    assert found["command"].startswith("mace attack ") and found["environment"]["judge"]["name"] == "look"
    assert {"model", "weights", "scheduler", "precision", "given", "versions", "config"} <= set(found["environment"])
    assert [(r["metric"], r["n"]) for r in found["rows"][:2]] == [("ASR", 1), ("pre-ASR", 1)]
    (missing,) = found["not_measured"]
    assert missing["control"] == "never-knew" and "trained without" in missing["why"]
    (tmp_path / "attacks.json").unlink()
    assert mace(folder, tmp_path, *options) == 0
    assert json.loads((tmp_path / "attacks.json").read_text()) == found and seen(folder) == count


def test_of_several_attacks_one_that_refuses_a_concept_is_not_measured(folder, tmp_path, capsys):
    levels = {level: ["a cat" if level in ("name", "modifiers") else "a pet"] for level in LEVELS}
    (tmp_path / "cat.yaml").write_text(json.dumps({"cat": levels}))
    (tmp_path / "settings.yaml").write_text(QUICK.replace("levels: [name]", f"file: {tmp_path / 'cat.yaml'}"))
    options = ["--settings", tmp_path / "settings.yaml", "--control", "none", "-a", "wording"]
    assert mace(folder, tmp_path, *options, "-a", "noise") == 0
    found = json.loads((tmp_path / "attacks.json").read_text())
    assert {row["attack"] for row in found["rows"]} == {"noise"}
    (missing,) = found["not_measured"]
    assert missing["attack"] == "wording" and "no wordings of 'ship', only of cat" in missing["why"]
    assert mace(folder, tmp_path / "alone", *options) == 1
    assert "no wordings of 'ship'" in capsys.readouterr().err


@pytest.mark.slow
def test_another_classifier_or_other_names_look_themselves(folder, tmp_path):
    """The table says who judged: rows of another judge are none of its own."""
    options = ["-a", "noise", "--control", "none"]
    assert mace(folder, tmp_path, *options) == 0
    (folder / "no.py").write_text("def look(pictures, among):\n    return ['sea'] * len(pictures)\n")
    assert mace(folder, tmp_path, *options, "--classifier", f"{folder / 'no.py'}:look") == 0
    rate = next(r for r in json.loads((tmp_path / "attacks.json").read_text())["rows"] if r["metric"] == "ASR")
    assert rate["mean"] == 0
    count = seen(folder)
    assert mace(folder, tmp_path, *options) == 0 and seen(folder) == count
    assert mace(folder, tmp_path, *options, "--among", "cat") == 0 and seen(folder) > count


def test_a_folder_of_a_whole_task_is_refused(folder, tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    assert mace(folder, tmp_path, "--model", "nowhere") == 1
    assert "holds a run of a whole task: choose another folder" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-a", "noises"], "near it: noise"),
        (["--control", "all"], "no control 'all'"),
        (["--concept", "frog"], "it holds ship"),
        (["--foreign", "nowhere"], "holds no pictures"),
        (["--classifier", "nobody:look", "--model", "nowhere"], "cannot be imported"),
        (["--settings", "{folder}/without.yaml"], "none.yaml"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(folder, tmp_path, capsys, more, words):
    (folder / "without.yaml").write_text("wording: {file: none.yaml}")
    assert mace(folder, tmp_path, "--model", "nowhere", *(text.format(folder=folder) for text in more)) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "attacks.json").exists()


def test_more_steps_than_timesteps_are_refused_at_once(folder, tmp_path, capsys):
    assert mace(folder, tmp_path, "--steps", "1001") == 1
    assert "steps is 1001; allowed: 1 to 999" in capsys.readouterr().err and not list(tmp_path.glob("*.json"))


def test_foreign_pictures_need_a_catalogue(folder, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "axolotl.png")
    assert mace(folder, tmp_path / "out", "--foreign", tmp_path, "-a", "noise") == 1
    assert "leave out --foreign" in capsys.readouterr().err
