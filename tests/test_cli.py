"""The command line: help with examples, exit codes, sentences on standard error, and each command on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from macelib import __version__, cli
from macelib.baselines.edit import FORMAT
from macelib.config import EraseConfig
from macelib.erasure import Erasure
from macelib.errors import MaceError
from macelib.files import locked, save_tensors
from macelib.models.mini import catalogue
from macelib.models.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("cache")

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "06_erase_and_evaluate.ipynb"
SETTINGS = """
images: {count: 1, steps: 1, masks: full}
train: {steps: 2, concepts_per_pass: 2}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline("sd").save_pretrained(folder)
    return str(folder)


def mace(capsys, *arguments):
    """Exit code, standard output and standard error of the command."""
    sys_argv, sys.argv = sys.argv, ["mace", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = sys_argv
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize(
    "command",
    [
        "erase", "plan", "generate", "evaluate", "study", "compare", "report", "attack", "export", "info", "bench",
        "concepts", "notebooks",
    ],
)  # fmt: skip
def test_help_has_examples(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and "Examples" in result.output and f"mace {command}" in result.output


def test_erase_generate_export_info(model, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    out, common = tmp_path / "run", ["--model", model, "--device", "cpu"]
    settings = ["--config", tmp_path / "settings.yaml", "--out", out, *common]
    (tmp_path / "keep.txt").write_text("dog\ncow\n")
    (tmp_path / "both.yaml").write_text("prior: {domain: [a dog]}")
    both = ["--config", tmp_path / "both.yaml", "--keep", "cat", "--out", tmp_path / "x"]
    code, _, said = mace(capsys, "erase", "ship=sea", *both)
    assert code == 1 and "both say what must stay" in said
    keep = ["--keep", "cat", "--keep", tmp_path / "keep.txt"]
    code, said, bars = mace(capsys, "erase", "ship=sea", "frog=grass", *settings, "--seed", 3, *keep)
    assert code == 0 and "2 concepts" in said and "train" in bars
    path = out / "erasure.safetensors"
    config = Erasure.load(path).config
    kept = EraseConfig().keeping(["cat", "dog", "cow"]).prior
    assert config.seed == 3 and (config.prior.domain, config.prior.names) == (kept.domain, kept.names)
    assert config.preset_name == "mini" and config.defaults is None  # keeping chooses no other settings

    code, said, _ = mace(capsys, "info", path, "--json")
    assert code == 0 and [c["name"] for c in json.loads(said)["concepts"]] == ["ship", "frog"]
    assert json.loads(said)["settings"].startswith("settings tuned on mini-SD; a model of no known family; own values")
    assert "ship -> sea" in mace(capsys, "info", path)[1]
    assert_info_is_the_same_without_and_with_pytorch(path, json.loads(said), tmp_path, capsys)

    draw = ["generate", "a photo of the ship", "--steps", 1, "--seeds", "0-1", *common]
    assert mace(capsys, *draw, "--out", tmp_path / "before")[0] == 0
    assert mace(capsys, *draw, "--out", tmp_path / "after", "-e", path, "--without", "frog")[0] == 0
    manifest = json.loads((tmp_path / "after" / "manifest.json").read_text())
    assert [entry["seed"] for entry in manifest["images"]] == [0, 1] and manifest["erasure"]["strengths"] == {"ship": 1}
    needed = {"model", "weights", "scheduler", "guidance", "size", "precision", "steps", "versions"}
    assert needed <= set(manifest) and manifest["scheduler"]["class"] == "DDIMScheduler" and manifest["steps"] == 1
    before = json.loads((tmp_path / "before" / "manifest.json").read_text())
    assert before["model"] == manifest["model"] and before["weights"] != manifest["weights"]
    pictures = [Image.open(tmp_path / side / "0001.png").tobytes() for side in ("before", "after")]
    assert pictures[0] != pictures[1]

    for wrong in (["a ship", "a ship " * 90, *draw[2:]], ["a ship", *draw[2:], "--steps", 5000]):
        code, _, said = mace(capsys, "generate", *wrong, "--batch", 1, "--out", tmp_path / "none")
        assert code == 1 and ("shorten it" in said or "steps is 5000" in said)
        assert not [path for path in (tmp_path / "none").iterdir() if path.name != ".lock"]

    again = (tmp_path / "before" / "0001.png").read_bytes()
    assert mace(capsys, *draw, "--out", tmp_path / "before")[0] == 0  # the same call draws the same
    assert (tmp_path / "before" / "0001.png").read_bytes() == again
    for other in ([*draw, "-e", path], ["generate", "a frog", *draw[2:]]):
        code, _, said = mace(capsys, *other, "--out", tmp_path / "before")
        assert code == 1 and "holds pictures that this call did not draw" in said
    with locked(tmp_path / "new" / ".lock", "new"):
        code, _, said = mace(capsys, "generate", "a frog", *draw[2:], "--out", tmp_path / "new")
    assert code == 1 and "Another process is at work on" in said and not [*(tmp_path / "new").glob("*.png")]

    code, said, _ = mace(capsys, "export", path, "--format", "weights", "--out", tmp_path / "export", *common)
    assert code == 0 and (tmp_path / "export" / "unet.safetensors").exists()


def assert_info_is_the_same_without_and_with_pytorch(path, said: dict, tmp_path, capsys) -> None:
    """`info` reads a header; of an earlier file, which does not say how well it solved, it solves again."""
    code = "import sys; from macelib import cli; sys.argv[1:] = ['info', sys.argv[1]]\ntry: cli.main()\n"
    code += "finally: print(sorted({'torch', 'diffusers', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("[]\n") and "ship -> sea" in done.stdout, done.stderr
    with safe_open(path, framework="pt") as file:
        about, tensors = json.loads(file.metadata()["macelib"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    del about["stages"]
    save_file(tensors, tmp_path / "earlier.safetensors", metadata={"macelib": json.dumps(about)})
    earlier = json.loads(mace(capsys, "info", tmp_path / "earlier.safetensors", "--json")[1])
    for whole in (said, earlier):
        del whole["file"], whole["megabytes"]
    for stage in ("stage 1", "stage 3"):
        assert earlier.pop(stage) == pytest.approx(said.pop(stage), rel=1e-6)
    assert earlier == said


def test_help_and_params_need_no_pytorch():
    for words in (["--help"], ["params", str(NOTEBOOK)], ["--version"]):
        code = f"import sys; from macelib import cli; sys.argv[1:] = {words!r}\ntry: cli.main()\n"
        code += "finally: print(sorted({'torch', 'diffusers', 'transformers', 'pandas'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_version_and_concepts(capsys):
    assert mace(capsys, "--version")[1] == f"macelib {__version__}\n"
    whole = mace(capsys, "concepts")[1]
    assert all(entry.name in whole for entry in catalogue()) and "watercolor" in whole
    for word in ("SHIP", " ship\t"):
        assert "ship (vehicle): shown in its place, the sea; also called" in mace(capsys, "concepts", word)[1]
    assert "The word is empty" in mace(capsys, "concepts", " ")[2]
    code, _, said = mace(capsys, "concepts", "quxfroog")
    assert code == 1 and "frog" in said


def test_notebooks_are_copied_and_nothing_is_overwritten(capsys, tmp_path):
    code, said, _ = mace(capsys, "notebooks", tmp_path / "mine")
    assert code == 0 and str(tmp_path / "mine" / "00_start_here.ipynb") in said
    assert (tmp_path / "mine" / "sweeps" / "lambda_rank.yaml").exists()
    assert (tmp_path / "mine" / NOTEBOOK.name).read_bytes() == NOTEBOOK.read_bytes()
    code, _, said = mace(capsys, "notebooks", tmp_path / "mine")
    assert code == 1 and "not an empty folder" in said


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["erase", "--out", "x"], "list of concepts is empty"),
        (["erase", "ship", "--out", "x"], 'write "name=anchor"'),
        (["erase", "ship=Ship", "--out", "x"], "anchor of 'ship' is the concept itself"),
        (["erase", "ship=sea", "ship=art", "--out", "x"], "listed twice"),
        (["erase", "ship=sea", "--model", "no-such-model", "--out", "x"], "mini-sd"),
        (["erase", "ship=sea", "--kind", "thing", "--out", "x"], "object, style"),
        (["erase", "ship=sea", "--preset", "papers", "--out", "x"], "choose from paper, mini, untested, best"),
        (["erase", "ship=sea", "--preset", "best", "--out", "x"], "Nothing has been chosen for the preset 'best' yet"),
        (["erase", "ship=sea", "--task", "cats", "--out", "x"], "choose from objects, styles, celebrities, explicit"),
        (["erase", "ship=sea", "--seed", "-1", "--out", "x"], "seed is -1"),
        (["erase", "ship=sea", "--keep", "Ship", "--out", "x"], "ship: to be erased and to be kept"),
        (["erase", "ship=sea", "--keep", "absent.txt", "--out", "x"], "absent.txt cannot be read"),
        (["info", "absent.safetensors"], "missing or cut short"),
        (["info", "."], "is a folder, and a file is needed: give a .safetensors file"),
        (["generate", "a ship", "--strength", "ship=1", "--out", "x"], "--erasure"),
        (["generate", "a ship", "--seeds", "one", "--out", "x"], "0-3 or 0,5,7"),
        (["generate", "a ship", "--seeds", "²", "--out", "x"], "0-3 or 0,5,7"),
        (["generate", "a ship", "--seeds", "99999999999999999999", "--out", "x"], "up to 2^63 - 1"),
        (["generate", "a ship", "--seeds", "0-999999999999", "--out", "x"], "1 to 1,000,000"),
        (["generate", "a ship", "--guidance", "nan", "--out", "x"], "guidance is nan"),
        (["generate", "a ship", "--device", "abacus", "--model", "m", "--out", "x"], "--device is 'abacus'"),
        (["erase", "ship=sea", "--captions", "none.json", "--model", "m", "--out", "x"], "no such file"),
        (["erase", "ship=sea", "--model", "m", "--out", "file/x"], "file/x could not be written (Not a directory)"),
        (["erase", "ship=sea", "--model", "m", "--out", "x" * 300], "choose a shorter name"),
        (["erase", "ship, frog=sea", "--model", "m", "--out", "x"], "has a comma in it"),
        (["erase", "ship=sea", "--keep", "dog,cat", "--model", "m", "--out", "x"], "has a comma in it"),
        (["erase", "ship=sea", "--keep", "x" * 300, "--model", "m", "--out", "x"], "'m' is no model"),
        (
            ["erase", "ship=sea", "--config", "templates.yaml", "--model", "m", "--out", "x"],
            "There are no templates 'our'",
        ),
        (["study", "objects", "--autocast", "int8", "--model", "m", "--out", "x"], "autocast is 'int8'"),
        (["study", "objects", "--model", "m", "--out", "file/x"], "Not a directory"),
        (["export", "absent.safetensors", "--format", "ckpt", "--out", "x"], "pipeline, weights, lora"),
        (["study", "styles", "--out", "x"], "choose objects, characters, tuning, ablation, pairs or keeping"),
        (["study", "objects", "--only", "zebra", "--model", "m", "--out", "x"], "not of the paper's ten"),
        (["study", "pairs", "--only", "zebra", "--model", "m", "--out", "x"], "not of the paper's ten"),
        (["study", "characters", "--only", "ship", "--model", "m", "--out", "x"], "has --count and --seeds: leave it"),
        (
            ["study", "objects", "--seeds", "3", "--model", "m", "--out", "x"],
            "--seeds does not apply to the study objects",
        ),
        (["study", "ablation", "--images", "9", "--model", "m", "--out", "x"], "or --only and --images, of objects"),
        (["study", "keeping", "--images", "9", "--model", "m", "--out", "x"], "has --seeds: leave it out"),
        (["study", "ablation", "--only", "ship", "--count", "5", "--model", "m", "--out", "x"], "--only and --images"),
        (["bench", "--products", "fp8"], "fp64, mixed, both"),
        (["bench", "--layout", "SD v9"], "There is no layout 'SD v9' to fill with random weights; choose from SD v1.4"),
        (["bench", "--layout", "SD v1.4", "--model", "m"], "--layout takes the place of --model m"),
        (["bench", "--device", "abacus"], "--device is 'abacus', which is not there"),
        (["bench", "--model", "nowhere"], "nowhere"),
        (["bench", "--dtype", "float8"], "--dtype is 'float8'; choose from float32, float16, bfloat16"),
        (["evaluate", "--prompts", "list.csv", "--jobs", "2", "--out", "x"], "belong to an engine"),
        (
            ["evaluate", "edits/ours.safetensors", "--model", "m", "--out", "x"],
            "of method 'ours', which is not known here",
        ),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_1(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "templates.yaml").write_text("templates: our\n")
    (tmp_path / "list.csv").write_text("prompt,seed\na ship,1\n")
    save_tensors(tmp_path / "edits" / "ours.safetensors", {}, {"format": FORMAT, "change": "Ours", "method": "ours"})
    code, _, said = mace(capsys, *arguments)
    assert code == 1 and sentence in said and "Traceback" not in said


def test_wrong_usage_is_exit_code_2(capsys):
    assert mace(capsys, "erase", "ship=sea")[0] == 2  # no --out
    assert mace(capsys, "erase", "ship=sea", "--out", "x", "--no-such-option")[0] == 2
    assert mace(capsys, "paint")[0] == 2


@pytest.mark.slow
def test_no_traceback_from_the_real_program(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "macelib", "erase", "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "Traceback" not in run.stderr


def test_a_preset_and_a_task_are_chosen_by_name():
    chosen = cli._by_preset(EraseConfig(seed=3, defaults="style"), "paper", None)
    assert (chosen.preset_name, chosen.defaults, chosen.seed, chosen.refine.lambda1) == ("paper", "style", 3, None)
    assert cli._by_preset(EraseConfig(), None, "celebrities").defaults == "celebrity"


def test_a_name_to_keep_is_not_one_to_erase(tmp_path):
    (tmp_path / "names.txt").write_text("# animals\ncat\n")
    assert cli._kept([str(tmp_path / "names.txt"), "dog"], ["ship"]) == ["cat", "dog"]
    with pytest.raises(MaceError, match="to be erased and to be kept"):
        cli._kept(["Ship"], ["ship"])


def test_numbers_and_strengths():
    assert cli._seeds("0-2, 7") == [0, 1, 2, 7]
    assert cli._strengths(["a=b=0.5"]) == {"a=b": 0.5}
    for texts in (["ship=1", "ship=0"], ["0.5"], ["ship=x"]):
        with pytest.raises(MaceError, match="--strength"):
            cli._strengths(texts)


@pytest.mark.parametrize("name", ["objects", "characters", "tuning", "ablation", "pairs", "keeping"])
def test_every_study_is_found_and_told_its_options(name, capsys, tmp_path, monkeypatch):
    from macelib.cli import measure
    from macelib.evaluate import keeping, studies

    told = {}

    def fake(pipe, out, settings, **options):
        told.update(options)
        return f"the study {name}"

    scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000))
    monkeypatch.setattr(measure, "pipeline", lambda *_: SimpleNamespace(scheduler=scheduler))
    monkeypatch.setattr(keeping if name == "keeping" else studies, f"{name}_study", fake)
    code, said, _ = mace(capsys, "study", name, "--steps", "3", "--out", str(tmp_path / "s"))
    assert code == 0 and f"the study {name}" in said and told["steps"] == 3
    code, _, said = mace(capsys, "study", name, "--steps", "3000", "--out", str(tmp_path / "s"))
    assert code == 1 and "steps is 3000; allowed: 1 to 1000" in said  # before anything is erased
    assert ("images" in told) == (name in ("objects", "ablation")) and ("seeds" in told) == (name != "objects")
