"""The README's commands, each run as printed: the lines of its blocks of `mace` one after the other, as later ones read
what earlier ones wrote, and those in its sentences, with something there in place of their CAPITALS. Studies are those
of `make studies`.

Small random models draw; pictures that are only counted are noise, and what is timed is small. Of the sweeps, the
notebook ends with its first erasure. Of the studies, the erasures are quick and the lists short.
"""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image
from test_readme import ROOT, SHELL, TEXT, clone, environment, run  # noqa: F401
from typer.main import get_command

from macelib import bench, cli
from macelib.attacks import scene
from macelib.config import EraseConfig
from macelib.evaluate import keeping, pictures, studies

LINES, RUNS = (block.splitlines() for block in SHELL[2:])  # after installing, and `make`
STUDIES = re.findall(r"^\t\$\(BIN\)/(mace study .+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
SPANS = {" ".join(s.split()) for s in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S))}
PROSE = sorted(span for span in SPANS if span.startswith("mace "))
WHOLE = [span for span in PROSE if len(span.split()) > 2]  # not a command's name alone
ELSEWHERE = {"git clone --depth 1", 'pip install -e ".[ray]"', "make", "make world", "make studies"}
RECORDED = sorted(path.parent.name for path in ROOT.glob("data/studies/*/metrics.csv"))
SHAPES = bench.Shapes(out=(8, 8, 16), width=24, tokens=7, prompts=5)
NOTEBOOK = "06_erase_and_evaluate.ipynb"
LAST = """\
assert images in (3, 10) and strict is False
results.record(run_folder, lambda1=erasure.config.refine.lambda1)
"""


def test_the_blocks_are_commands_and_so_is_what_the_sentences_name():
    assert len(LINES) >= 14 and all(line.startswith("mace ") for line in [*LINES, *RUNS])
    assert {line.split()[-1] for line in STUDIES} == {f"runs/study/{name.split('-')[-1]}" for name in RECORDED}
    assert {span for span in SPANS if re.match(r"(git|pip|make|python3?)\b", span)} <= ELSEWHERE
    known = get_command(cli.app).commands
    options = {name for command in known.values() for one in command.params for name in one.opts}
    assert len(WHOLE) >= 2 and {span.split()[1] for span in PROSE} <= {*known}
    named = {word for span in SPANS - ELSEWHERE for word in re.findall(r"(?<!\S)--\S+", span)}
    assert "--low-memory" in named and named <= options


def inside(clone, environment, patch) -> None:  # noqa: F811
    """The copy of the checkout, for commands in this process."""
    for name, value in environment.items():
        patch.setenv(name, value)
    patch.chdir(clone)


def noise(pipe, prompts, seeds, *_, **options) -> list[Image.Image]:
    return [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)) for seed in seeds]


def called(command: str, patch) -> None:
    """Run it by `mace`'s entry point."""
    patch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


@pytest.fixture(scope="module")
def ran(clone, environment):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        inside(clone, environment, patch)
        patch.setattr(pictures, "generate", noise)
        patch.setattr(scene, "generate", noise)
        patch.setattr(bench, "run", partial(bench.run, shapes=SHAPES))
        for line in LINES:
            called(line, patch)
    return clone


@pytest.mark.slow
def test_every_command_runs_as_printed(ran):
    assert (ran / "runs" / "for-comfyui" / "lora_standalone.safetensors").is_file()


@pytest.mark.slow
def test_notebooks_run_as_printed(clone, environment):  # noqa: F811
    """By a notebook with the same parameters, whose defaults are small, and the same cells up to its first erasure."""
    (clone / "notebooks").unlink()
    shutil.copytree(ROOT / "notebooks", clone / "notebooks")
    path = clone / "notebooks" / NOTEBOOK
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    given = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    small = {"images": {"count": 1, "steps": 1}, "train": {"steps": 2}}
    small["prior"] = {"captions": str(clone / "notebooks" / "lists" / "captions.txt")}
    for old, new in ((r"^config = \{\}", f"config = {small!r}"), (r"^steps = \d+", "steps = 1")):
        given["source"], found = re.subn(old, new, "".join(given["source"]), flags=re.MULTILINE)
        assert found == 1
    end = next(i for i, cell in enumerate(cells) if "erase(pipe, first" in "".join(cell["source"]))
    cells[end + 1 :] = [cells[end] | {"id": "last", "source": LAST}]
    path.write_text(json.dumps(notebook), encoding="utf-8")

    for line in RUNS:
        said = run(line, clone, environment | {"PYTHONPATH": str(ROOT)})
    assert RUNS[-1].startswith("mace runs first") and "lambda1" in said
    values = [json.loads(p.read_text())["lambda1"] for p in clone.glob("papermill_runs/*/*/metrics.json")]
    assert sorted(values) == [5, 500, 500] and (clone / "papermill_runs" / "first" / "index.html").is_file()


@pytest.fixture
def quick(clone, environment, monkeypatch):  # noqa: F811
    """The copy of the checkout, its studies with noise for pictures, quick erasures and short lists."""
    inside(clone, environment, monkeypatch)
    whole, objects, people, grid = studies.erase, studies.object_list, studies.character_lists, studies.Grid.load

    def erase(pipe, concepts, config, **options):
        config = config or EraseConfig()
        images, train = replace(config.images, count=1, steps=1), replace(config.train, steps=1)
        prior = replace(config.prior, captions=str(ROOT / "notebooks" / "lists" / "captions.txt"))
        return whole(pipe, concepts, replace(config, images=images, train=train, prior=prior), **options)

    monkeypatch.setattr(studies, "erase", erase)
    monkeypatch.setattr(keeping, "erase", erase)
    monkeypatch.setattr(studies, "object_list", lambda *given: objects(*given)[-2:])
    monkeypatch.setattr(studies, "character_lists", lambda count, family: people(count // 50, family))
    monkeypatch.setattr(studies.Grid, "load", lambda path: replace(grid(path), few=1, many=2))
    monkeypatch.setattr(pictures, "generate", noise)
    return clone


@pytest.mark.slow
@pytest.mark.parametrize("line", STUDIES)
def test_studies_run_as_printed(line, quick, monkeypatch):
    called(line, monkeypatch)
    study, out = line.split()[2], quick / line.split()[-1]
    recorded = quick / "tiny-data" / "studies" / ("tuning-cheaper" if study == "tuning" else study) / "settings.json"
    assert (out / "work").is_dir() and json.loads(recorded.read_text())["steps"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("command", WHOLE)
def test_sentences_name_commands_that_run(command, ran, quick, monkeypatch, tmp_path):
    filled = {"FILE": "runs/two/erasure.safetensors", "FOLDER": str(tmp_path / "out")}
    called(" ".join(filled.get(word, word) for word in command.split()), monkeypatch)
    assert any((tmp_path / "out").iterdir())
