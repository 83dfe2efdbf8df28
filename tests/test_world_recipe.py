"""The recipe: what it refuses, that a small one runs from artwork to report, and that a kill changes nothing."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from factory import __main__ as cli
from factory import loop, machine, measures, recipe, run
from factory.captions import HARMLESS
from factory.cards import write_card
from factory.catalogue import COMPANIONS
from factory.table import TARGETS
from factory.towers import recipe_of
from safetensors import SafetensorError
from safetensors.torch import load_file

import macelib.method.prior as module
from macelib.attacks.never import check_card
from macelib.files import data_folder
from macelib.models import mini
from macelib.models.pipelines import load_pipeline

SMALL = {
    "clip": {"width": 24, "layers": 1, "steps": 3, "batch": 8, "vocabulary": 1200},
    "vae": {"steps": 3, "batch": 4, "whitened_over": 20},
    "judge": {"steps": 3, "batch": 4},
    "unet": {"channels": [16, 32, 32], "heads": [1, 1, 1], "batch": 4, "pool": 8, "passes": 1, "stages": [2, 3]},
    "report": {"steps": 1, "guidance": [2, 5], "share": 0.01},
    "towers": {"widths": [12], "steps": 2},
}


def written(folder: Path, **changes) -> Path:
    """A small recipe as a file."""
    values = yaml.safe_load(recipe.SHIPPED.read_text()) | {"name": "small"}
    for section, numbers in SMALL.items():
        values[section] = values[section] | numbers
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "work"))
    return recipe.load(written(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": 1}, "unknown field colour"),
        ({"clip": {"width": "wide"}}, "clip.width is 'wide'; it must be a number"),
        ({"clip": {"width": 50}}, "a text tower's width is 50: give a multiple of 6 or of 4"),
        ({"towers": {"widths": [0]}}, "a text tower's width is 0"),
        ({"models": ["unet", "clip"]}, "models is unet, clip: name each once, in the order clip, vae, judge, unet"),
        ({"without": [*COMPANIONS]}, "without leaves no two companions"),
        ({"seed": "one"}, "seed is 'one'; it must be a number"),
        ({"without": ["shipp"]}, "without has shipp: the world has no such concept"),
        ({"models": ["clip", "gan"]}, "models has gan; allowed: clip, vae, judge, unet"),
        ({"name": "../mini"}, "use letters, digits"),
        ({"name": "mini"}, "name is 'mini', the shipped recipe's, whose models it would overwrite"),
        ({"world": 3}, "world must be a mapping"),
        ({"without": "ship"}, "without must be a list"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused_with_the_field(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        recipe.load(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("unet", {"empty": 35}, "unet.empty is 35.0; allowed: 0 to 1"),
        ("unet", {"context_dropout": 35}, "unet.context_dropout is 35.0; allowed: 0 to 1"),
        ("unet", {"empty": 0.7, "context_dropout": 0.7}, "together at most 1"),
        ("clip", {"average": 35}, "clip.average is 35.0; allowed: 0 to 1"),
        ("vae", {"decay": 35}, "vae.decay is 35.0; allowed: 0 to 1"),
        ("report", {"share": 35}, "report.share is 35.0; allowed: 0 to 1"),
        ("report", {"guidance": []}, r"report.guidance is \(\)"),
        ("world", {"pairs": 35}, "world.pairs is 35.0; allowed: 0 to 1"),
        ("unet", {"batch": 0}, "unet.batch is 0; allowed: 1 or more"),
        ("unet", {"stages": []}, r"unet.stages is \(\); allowed: 1 or more"),
        ("unet", {"stages": [2, 0]}, r"unet.stages is \(2, 0\); allowed: 1 or more"),
        ("unet", {"channels": [16, 32, 40]}, "multiples of 16"),
        ("unet", {"heads": [1, 1]}, "three numbers each"),
        ("unet", {"heads": [1, 3, 1]}, "must be multiples of unet.heads"),
        ("judge", {"steps": 0}, "judge.steps is 0; allowed: 1 or more"),
        ("clip", {"vocabulary": 100}, "clip.vocabulary is 100; allowed: 600 or more"),
        ("vae", {"betas": [0.9]}, r"vae.betas is \(0.9,\); allowed: two numbers from 0 to below 1"),
        ("vae", {"betas": [0.9, 1.0]}, "two numbers from 0 to below 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(tmp_path, section, change, said):
    values = yaml.safe_load(written(tmp_path).read_text())
    with pytest.raises(ValueError, match=said):
        recipe.load(written(tmp_path, **{section: values[section] | change}))


def test_a_missing_or_damaged_file_is_a_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "r.yaml").write_text("name: [")
    for path in ("r.yaml", "none.yaml"):
        monkeypatch.setattr("sys.argv", ["factory", "--recipe", str(tmp_path / path)])
        assert cli.main() == 1
        assert f"error: the recipe {tmp_path / path} cannot be used" in capsys.readouterr().err


def test_a_training_is_keyed_by_all_that_it_depends_on(small, tmp_path):
    keys = {small.key_of("unet", ["a", "b"]), small.key_of("unet", ["a", "c"]), small.key_of("vae")}
    keys |= {recipe.load(written(tmp_path, seed=1)).key_of("vae")}
    keys |= {recipe.load(written(tmp_path, without=["ship"])).key_of("vae")}
    assert len(keys) == 5
    other = yaml.safe_load(written(tmp_path).read_text())["unet"] | {"lr": 0.5}
    changed = recipe.load(written(tmp_path, unet=other))
    assert changed.key_of("vae") == small.key_of("vae") and changed.key_of("unet") != small.key_of("unet")


def test_a_field_that_came_later_leaves_the_keys_of_what_was_trained_by_its_default(small, tmp_path):
    """Nothing is trained again for it; with another value it is another training."""
    values = yaml.safe_load(written(tmp_path).read_text())
    for section, change in (("world", {"harmless": 0.4}), ("vae", {"betas": [0.8, 0.95]}), ("vae", {"clip_norm": 2.0})):
        other = recipe.load(written(tmp_path, **{section: values[section] | change}))
        assert other.key_of("vae") != small.key_of("vae"), section
    del values["world"]["harmless"], values["vae"]["betas"]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(values))
    assert recipe.load(tmp_path / "short.yaml").key_of("vae") == small.key_of("vae")


def test_another_recipe_is_what_differs_from_the_shipped_one(tmp_path):
    (tmp_path / "wide.yaml").write_text("name: wide\nclip: {width: 48}\nmodels: [clip]\n")
    other, shipped = recipe.load(tmp_path / "wide.yaml"), recipe.load(recipe.SHIPPED)
    assert (other.clip.width, other.models, other.shipped) == (48, ("clip",), False)
    assert dataclasses.replace(other.clip, width=384) == shipped.clip and other.unet == shipped.unet
    without = recipe.load(recipe.SHIPPED.with_name("without-objects.yaml"))
    assert (without.unet, without.models) == (shipped.unet, ("unet",)) and "ship" in without.without


def test_the_lesson_s_towers_are_the_shipped_recipe_but_for_their_size():
    shipped = recipe.load(recipe.SHIPPED)
    assert shipped.towers.widths == (96, 192, 384) and shipped.towers.steps < shipped.clip.steps
    for width in shipped.towers.widths:
        tower = recipe_of(shipped, width)
        assert (tower.models, tower.world, tower.shipped) == (("clip",), shipped.world, False)
        assert dataclasses.replace(tower.clip, width=384, steps=2000) == shipped.clip


def test_a_card_says_the_recipe_s_file_its_numbers_and_where_it_ran(tmp_path):
    """Of a recipe in the checkout; the attacks' control reads it."""
    (tmp_path / "training").mkdir()
    where = {**machine.here(), "from_step": 0, "to_step": 15625, "seconds": 3600.0}
    (tmp_path / "training" / "run.json").write_text(json.dumps([where]))
    path = recipe.SHIPPED.with_name("without-objects.yaml")
    other = recipe.load(os.path.relpath(path))
    write_card(tmp_path, "unet", other, tmp_path / "training")
    card = (tmp_path / "README.md").read_text()
    command = "make world RECIPE=data/factory/without-objects.yaml"
    assert check_card(tmp_path, ["ship", "unicorn"]) == {"without": [*other.without], "command": command}
    for said in (
        "of `data/factory/without-objects.yaml`:",
        "  pairs: 0.05",
        "a wolf like a dog.",
        "In 15 stages: each begins with the averaged weights of the one before, a fresh optimizer and 100 steps of",
        "pools of 12,288; each is seen 6 times on average.",
        HARMLESS,
        machine.processor(),
    ):
        assert said in card, said
    assert "data/world/report.json" not in card
    write_card(tmp_path, "unet", recipe.load(recipe.SHIPPED), tmp_path / "training")
    card = (tmp_path / "README.md").read_text()
    assert "Made by `make world`; " in card and "of `data/factory/recipe.yaml`" in card and "world/report.json" in card


def test_a_recipe_s_place_is_no_part_of_its_key(tmp_path):
    copy, shipped = tmp_path / "copy.yaml", recipe.load(recipe.SHIPPED)
    copy.write_text(recipe.SHIPPED.read_text())
    assert recipe.load(copy) == shipped and recipe.load(copy).file == str(copy)
    assert [recipe.load(copy).key_of(m) for m in recipe.MODELS] == [shipped.key_of(m) for m in recipe.MODELS]
    assert [shipped.key_of(m)[:4] for m in ("clip", "vae", "judge")] == ["3f53", "fa7c", "2a84"]
    with pytest.raises(ValueError, match="unknown field file"):
        recipe.load(written(tmp_path, file="x"))


def test_a_shipping_puts_everything_in_its_place(tmp_path, monkeypatch):
    """Models, report and contact sheet from a recipe's folder; what the library reads of the world is as it was."""
    made, data = tmp_path / "made", tmp_path / "data"
    for name in run.FOLDER.values():
        (made / name).mkdir(parents=True)
        (made / name / "new.safetensors").write_text(name)
        (data / name).mkdir(parents=True)
        (data / name / "old.safetensors").write_text("old")
    for name in ("report.json", "contact_sheet.png", "capacity.csv"):
        (made / name).write_text(name)
    (data / "world").mkdir()
    monkeypatch.setattr(run, "data_folder", lambda: data)
    monkeypatch.setattr(run, "ship_sums", lambda: None)
    run.ship(made)
    assert {p.name: [f.name for f in p.iterdir()] for p in data.glob("mini-*")} == {
        name: ["new.safetensors"] for name in run.FOLDER.values()
    }
    for name in ("world.json", "split.json", "renderings.json"):
        assert (data / "world" / name).read_bytes() == (recipe.SHIPPED.parents[1] / "world" / name).read_bytes(), name
    assert (data / "world" / "report.json").is_file() and (data / "world" / "renderings.png").is_file()


def weights(folder: Path) -> dict:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole run of the small recipe on one thread, and all its trainings again, killed and resumed at every part."""
    place, threads = tmp_path_factory.mktemp("world"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        folders = []
        patch.setattr(measures, "NAMES", (1, 3))
        patch.setattr(measures, "BESIDE", 2)
        for name in ("straight", "resumed"):
            patch.setenv("MACELIB_WORK", str(place / name))
            if name == "straight":
                folders.append(run.run(recipe.load(written(place))))
                continue
            patch.setattr(loop, "EVERY", 0.0)  # a checkpoint each step
            _killed_at_every_model(recipe.load(written(place)))
            folders.append(run.World(recipe.load(written(place))).make())
    torch.set_num_threads(threads)
    return folders


def _killed_at_every_model(small: recipe.Recipe) -> None:
    world = run.World(small)
    for model in small.models:
        for record in world.train(model):
            if record.step == 2:
                break  # killed here
        if model == "unet":  # its first stage has two steps: what it left is enough
            for path in world.training(model).glob("checkpoint*"):
                path.unlink()
        for _ in world.train(model):
            pass
        world.export(model)


@pytest.mark.slow
def test_a_small_recipe_runs_from_artwork_to_report(made):
    folder = made[0]
    report = json.loads((folder / "report.json").read_text())
    assert (
        report["recipe"] == "small" and report["guidance"] in (2, 5) and report["guidance_sweep"].keys() == {"2", "5"}
    )
    assert report["measures"].keys() >= set(TARGETS)
    assert all(row["n"] in (1, 3) and row["left"] >= 0 for rows in report["measures"]["text"].values() for row in rows)
    assert (folder / "contact_sheet.png").stat().st_size > 10_000
    towers = pd.read_csv(folder / "capacity.csv")
    assert [*zip(towers.encoder, towers.d, towers.n, strict=True)] == [("tower of 12", 12, 1), ("tower of 12", 12, 3)]

    pipe = load_pipeline(folder / "mini-sd")
    assert pipe("a cat", num_inference_steps=1).images[0].size == (64, 64)
    card = (folder / "mini-sd" / "README.md").read_text()
    for said in (
        "small.yaml`; 20 samples",
        "`report.json` beside this folder",
        "context_dropout: 0.35",
        "| 1 to 5 |",
        "5 % any two",
    ):
        assert said in card, said


@pytest.mark.slow
def test_two_runs_agree_to_the_bit_though_one_was_killed(made):
    first, second = (weights(folder / "mini-sd") for folder in made)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for name in ("mini-clip", "mini-vae", "mini-judge"):
        assert run.weights_hash(made[0] / name) == run.weights_hash(made[1] / name), name


@pytest.mark.slow
def test_what_is_shipped_takes_the_place_of_what_was(made, tmp_path, monkeypatch):
    """Models, report, sheet and the prior's sums; no more is read for the prior then."""
    for name in ("world", "prior", "mini-sd"):
        shutil.copytree(data_folder() / name, tmp_path / "data" / name)
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MACELIB_CACHE", str(tmp_path / "cache"))
    old = {path.name for path in (tmp_path / "data" / "prior").iterdir()}
    run.ship(made[0])
    for name in run.FOLDER.values():
        assert run.weights_hash(tmp_path / "data" / name) == run.weights_hash(made[0] / name)
    assert (tmp_path / "data" / "world" / "report.json").read_bytes() == (made[0] / "report.json").read_bytes()
    new = {path.name for path in (tmp_path / "data" / "prior").iterdir()}
    assert len(new) == 1 and not new & old
    monkeypatch.setattr(module, "read", None)
    mini.captions.cache_clear()  # of another test's world
    assert module.prior(load_pipeline(tmp_path / "data" / "mini-sd"), list(mini.captions())).count > 1000


@pytest.mark.slow
def test_the_shipped_models_are_untouched_by_another_recipe(made):
    assert all("small-models" in str(folder) for folder in made)
    assert not recipe.load(written(made[0].parent)).shipped and recipe.load(recipe.SHIPPED).shipped


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(small, caplog, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 0.0)
    world = run.World(small)
    for record in world.train("vae"):
        if record.step == 2:
            break
    folder = world.training("vae")
    newest = folder / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert [record.step for record in world.train("vae")] == [2, 3], (
        "step 2 is made again from the checkpoint of step 1"
    )
    assert f"{newest} is damaged" in caplog.text


@pytest.mark.slow
def test_a_damaged_last_checkpoint_is_trained_again_not_replaced_by_an_earlier_one(small, caplog, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 0.0)
    world = run.World(small)
    for _ in world.train("vae"):
        pass
    folder, whole = world.training("vae"), loop.averaged(world.training("vae"), small.vae.steps)
    newest = folder / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"holds 2 of 3 steps of a training: run `make world`"):
        world.export("vae")
    monkeypatch.setattr(run.build, "ensure_atlas", lambda: None)
    run.World(dataclasses.replace(small, models=("vae",))).make()
    assert f"{newest} is damaged" in caplog.text
    again = loop.averaged(folder, small.vae.steps)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.slow
def test_a_damaged_stage_s_file_is_named_and_what_was_kept_before_is_taken(small, caplog, monkeypatch):
    """Of the checkpoint, which is at the stage's end, its average; without one an earlier stage, or the beginning."""
    monkeypatch.setattr(loop, "EVERY", 1e9)
    numbers = dataclasses.replace(small, unet=dataclasses.replace(small.unet, stages=(1, 1, 1)))
    world = run.World(numbers)
    monkeypatch.setattr(world, "model", lambda model: data_folder() / run.FOLDER[model])
    for _ in world.train("unet"):
        pass
    folder = world.training("unet")
    stages, state = [folder / f"step-{n}.safetensors" for n in (1, 2)], loop.load_checkpoint(folder / "checkpoint.pt")
    for spoil in (lambda data: data[:-10], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"{"):
        for path in folder.glob("checkpoint*"):
            path.unlink()
        stages[1].write_bytes(spoil(stages[1].read_bytes()))
        assert [record.step for record in world.train("unet")] == [2, 3]
        assert f"{stages[1]} is damaged" in caplog.text
        caplog.clear()
        again = loop.load_checkpoint(folder / "checkpoint.pt")
        for name, value in state["parts"]["average"]["values"].items():
            assert torch.allclose(again["parts"]["average"]["values"][name], value, atol=1e-4), name
    for record in world.train("unet"):
        raise AssertionError(record)
    stages[0].unlink()
    stages[1].write_bytes(b"")
    for path in folder.glob("checkpoint*"):
        path.unlink()
    assert [record.step for record in world.train("unet")] == [1, 2, 3]


def test_a_checkpoint_at_the_end_of_a_stage_stands_for_its_file(tmp_path, small):
    numbers = dataclasses.replace(small.unet, stages=(1, 1))
    weight = torch.nn.Linear(1, 1)
    optimizer, begun = torch.optim.SGD(weight.parameters(), 0.1), []
    parts = {"average": loop.Average(weight, 0.9)}
    next(iter(loop.run_steps(tmp_path / "x", numbers, optimizer, lambda _: 1.0, parts, lambda *a: begun.append(a))))
    file = tmp_path / "x" / "step-1.safetensors"
    before = {name: value.clone() for name, value in load_file(file).items()}  # not of the file
    file.write_bytes(b"half")
    list(loop.run_steps(tmp_path / "x", numbers, optimizer, lambda _: 1.0, parts, lambda *a: begun.append(a)))
    ((step, weights_),) = begun
    assert step == 1 and all(torch.equal(weights_[name], value) for name, value in before.items())
    assert all(torch.equal(load_file(file)[name], value) for name, value in before.items())


@pytest.mark.parametrize(("wrong", "code"), [(KeyboardInterrupt(), 130), (ValueError("no"), 1), (None, 0)])
def test_the_command_line_s_exit_codes(wrong, code, monkeypatch, tmp_path, capsys):
    def stop(_):
        if wrong is not None:
            raise wrong
        return tmp_path

    monkeypatch.setattr(run, "run", stop)
    monkeypatch.setattr("sys.argv", ["factory"])
    assert cli.main() == code
    monkeypatch.setattr("sys.argv", ["factory", "--colour", "red"])
    assert cli.main() == 2 and "--colour" in capsys.readouterr().err


def test_two_recipes_do_not_make_the_same_training_at_once(small, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(run.build, "ensure_atlas", lambda: None)
    world = run.World(dataclasses.replace(small, models=("vae",)))
    training = world.training("vae")
    training.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(training.with_suffix(".lock")), pytest.raises(ValueError, match="Another process is at work on"):
        world.make()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_kill_between_two_renames_leaves_the_newest_checkpoint(tmp_path, monkeypatch, killed):
    path, rename = tmp_path / "checkpoint.pt", Path.replace
    for step in (1, 2):
        loop.save_checkpoint(path, {"step": step})
    calls = iter(range(2))

    def replace(self, target):
        if next(calls) == killed:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        loop.save_checkpoint(path, {"step": 3})
    monkeypatch.undo()
    assert loop.load_checkpoint(path) == {"step": 3}
    loop.save_checkpoint(path, {"step": 4})
    assert loop.load_checkpoint(path) == {"step": 4}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("IoError(No space left on device)")]
)
def test_a_full_disk_is_a_sentence_with_its_cure(error, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["factory"])
    monkeypatch.setattr(run, "run", lambda _: (_ for _ in ()).throw(error))
    assert cli.main() == 1
    assert "Free some space, or set MACELIB_WORK" in capsys.readouterr().err


def test_only_one_process_makes_a_recipe(small):
    from filelock import FileLock

    world = run.World(small)
    world.folder.mkdir(parents=True)
    with FileLock(world.folder / ".lock"), pytest.raises(ValueError, match="another process is making small"):
        run.run(small)


def test_a_loss_that_is_not_finite_ends_the_training_before_its_checkpoint(tmp_path, small):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        list(loop.run_steps(tmp_path / "x", small.vae, optimizer, lambda step: [1.0, float("nan")][step], {}))
    assert not (tmp_path / "x" / "checkpoint.pt").exists()


def _make(path: str, work: str) -> None:
    os.environ["MACELIB_WORK"] = work
    run.World(recipe.load(path)).make()


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_no_half_written_model(tmp_path):
    """Killed with SIGKILL again and again until it is done: every model folder that exists is whole."""
    context, path, work = multiprocessing.get_context("spawn"), str(written(tmp_path)), tmp_path / "work"
    for wait in (4, 6, 7, 8, 9, 10, 12, 900):
        process = context.Process(target=_make, args=(path, str(work)))
        process.start()
        process.join(wait)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        time.sleep(0.1)
        for card in work.glob("world/small-models/mini-*/README.md"):
            assert list(card.parent.rglob("*.safetensors")), card
    assert {p.name for p in work.glob("world/small-models/mini-*")} == set(run.FOLDER.values())
