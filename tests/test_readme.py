"""The README: what stands on its first screen, the files it names, its commands and its code, each run as printed.

They run in a copy of the checkout, on small random models in place of mini-SD and its judge.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from tiny_data import tiny_data

from macelib.batch.parameters import read_notebook
from macelib.batch.picture import picture

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL, PYTHON = (re.findall(rf"^```{name}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL) for name in ("sh", "python"))
SMALL = (
    "-p images 3 -p steps 2 -p strict false -p config.images.count 1 -p config.images.steps 1 -p config.train.steps 2"
)
REAL_WEIGHTS = """\
import macelib
from macelib.models.tiny import tiny_pipeline

def load_pipeline(model):
    assert model == "CompVis/stable-diffusion-v1-4"
    return tiny_pipeline("sd")

macelib.load_pipeline = load_pipeline
"""
QUICK = """\
import macelib
from functools import partial

settings = {"images": {"count": 1, "steps": 1}, "train": {"steps": 2}, "prior": {"captions": "few.txt"}}
macelib.erase = partial(macelib.erase, config=macelib.EraseConfig.from_dict(settings))
"""


def test_picture_and_code_are_on_the_first_screen():
    first = "\n".join(TEXT.splitlines()[:22])
    assert "![" in first and "```python" in first and "erasure.save(" in first
    shown = ROOT / re.search(r"!\[[^\]]+\]\(([^)]+)\)", first)[1]
    notebook = ROOT / "notebooks" / "06_erase_and_evaluate.ipynb"
    if not any(cell.get("outputs") for cell in read_notebook(notebook)["cells"]):
        pytest.skip("the picture is of a notebook that was not executed yet: make notebooks")
    assert shown.read_bytes() == picture(notebook, 4), "make picture"


def test_files_that_it_names_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    paths = re.findall(r"(?<![\w/.])((?:notebooks|data|papermill_runs|macelib)/[\w./-]*\w)", TEXT)
    assert len(links) >= 2 and len(paths) >= 8
    missing = [path for path in {*links, *paths} if not (ROOT / path).exists()]
    assert not missing


def test_every_notebook_is_in_its_table():
    listed = re.findall(r"^\| (\d\d) \| `(\w+)` \|", TEXT, re.MULTILINE)
    assert [f"{number}_{name}" for number, name in listed] == sorted(p.stem for p in ROOT.glob("notebooks/*.ipynb"))


@pytest.mark.parametrize(
    ("study", "row", "columns"),
    [
        ("objects", "each of the paper's ten objects alone, mean", ("Acc_e", "Acc_g", "Acc_s", "H_o")),
        ("characters", "a hundred characters together, a hundred kept", ("Acc_e", None, "Acc_s", "H_c")),
    ],
)
def test_its_short_table_says_what_the_studies_say(study, row, columns):
    with (ROOT / "data" / "studies" / study / "metrics.csv").open(encoding="utf-8") as file:
        found = {line["metric"]: float(line["value"]) for line in csv.DictReader(file) if line["model"] == "erased"}
    cells = next(line for line in TEXT.splitlines() if line.startswith(f"| {row} |")).split("|")[2:-1]
    said = [cell.split()[-1] if cell.strip() else None for cell in cells]
    assert said == [f"{found[column]:.1f}" if column else None for column in columns]  # the last row is the mean


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The checkout's files under links, with places of its own for what the commands write."""
    place = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in sorted({line.partition("/")[0] for line in listed.splitlines()} - {"papermill_runs", ".gitignore"}):
        (place / name).symlink_to(ROOT / name)
    (place / "papermill_runs").mkdir()
    return place


@pytest.fixture(scope="module")
def environment(clone) -> dict[str, str]:
    """Small models, no network for models, one thread, no outer `make`, and the `python3` that runs this test."""
    outer = ("PYTHONPATH", "MACELIB_RUN_FOLDER", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    own = {name: value for name, value in os.environ.items() if name not in outer and "PYTEST" not in name}
    captions = clone / "notebooks" / "lists" / "captions.txt"
    return own | {
        "PATH": os.pathsep.join([str(clone / ".venv" / "bin"), str(Path(sys.executable).parent), own["PATH"]]),
        "MACELIB_DATA": str(tiny_data(clone / "tiny-data")), "MACELIB_CACHE": str(clone / "cache"),
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg",
        "DEMO": f"{SMALL} -p config.prior.captions {captions}", "PYTEST_ADDOPTS": "tests/test_results.py",
        "JUPYTER_RUNTIME_DIR": str(clone / "runtime"), "JUPYTER_CONFIG_DIR": str(clone / "jupyter"), "BROWSER": "true",
    }  # fmt: skip


def run(script: str, clone: Path, environment: dict[str, str], *shell: str) -> str:
    command = [*(shell or ("bash", "-euxo", "pipefail", "-c")), script]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def installed(place: Path) -> str:
    """A line of shell that lends the new environment packages and programs of this one: none is fetched."""
    site = f"{place}/.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    programs = " ".join(
        str(Path(sys.executable).parent / name) for name in ("jupyter", "jupyter-lab", "pytest", "ruff")
    )
    share = f"ln -sfn {sys.prefix}/share {place}/.venv/share"  # nbconvert's templates are there
    return f"echo {sysconfig.get_path('purelib')} > {site}/packages.pth; ln -sf {programs} {place}/.venv/bin; {share}"


def served(clone: Path, environment: dict[str, str]) -> dict:
    """What `make lab` says of its server once it listens; then it is stopped."""
    with (clone / "lab.txt").open("w") as log:
        lab = subprocess.Popen(
            ["make", "lab"], cwd=clone, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(1200):
            for path in (clone / "runtime").glob("jpserver-*.json"):
                if found := path.read_text():
                    return json.loads(found)
            assert lab.poll() is None, (clone / "lab.txt").read_text()[-3000:]
            time.sleep(0.2)
        raise AssertionError((clone / "lab.txt").read_text()[-3000:])
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(60)


@pytest.mark.slow
def test_install_and_make_run_as_printed(clone, environment):
    install, make, *_ = SHELL
    lines = install.splitlines()
    assert lines[0].startswith("python3 -m venv .venv")
    run("\n".join([lines[0], installed(clone), *lines[1:]]), clone, environment)
    run(re.search(r"`(pip install -e \S+)`", TEXT)[1], clone, environment)  # with an extra
    assert (clone / ".venv" / "bin" / "mace").exists()
    assert "-m factory" in run("make -n world", clone, environment)  # many hours

    demo, lab, test = make.splitlines()
    said = run(demo, clone, environment)
    page = next((clone / "papermill_runs" / "demo").glob("*/notebook.html"))
    assert (
        str(page) in said
        and "H_o" in said
        and said.rstrip().splitlines()[-1].startswith("ship + frog + horse: seen in")
    )
    assert page.read_text().count("data:image/png") >= 5
    assert "demo" in run("mace runs demo", clone, environment)
    assert lab.split()[:2] == ["make", "lab"]
    assert Path(served(clone, environment)["root_dir"]) == clone
    assert "passed" in run(test, clone, environment)
    changed = run("git status --porcelain", ROOT, environment)
    assert "runs/" not in changed, changed


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_code_runs_as_printed(number, clone, environment):
    code = PYTHON[number] if 'CompVis/stable-diffusion-v1-4")' not in PYTHON[number] else REAL_WEIGHTS + PYTHON[number]
    paths = {"PYTHONPATH": str(ROOT)}
    run(code, clone, environment | paths, sys.executable, "-c")
    assert (clone / "ship.safetensors").exists() if number == 0 else (clone / "runs" / "erased").is_dir()


@pytest.mark.slow
def test_the_wheel_runs_the_code_and_copies_the_notebooks(tmp_path, environment):
    """Outside the checkout, with the models that come in it; the captions are few and the training is short."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True, capture_output=True)
    (tmp_path / "home").mkdir()
    own = {k: v for k, v in environment.items() if k != "MACELIB_DATA"} | {"MACELIB_CACHE": str(tmp_path / "cache")}
    own["PATH"] = os.pathsep.join([str(tmp_path / ".venv" / "bin"), os.environ["PATH"]])
    subprocess.run([sys.executable, "-m", "venv", tmp_path / ".venv"], check=True)
    run(installed(tmp_path), tmp_path, own)
    wheel = next(tmp_path.glob("macelib-*.whl"))
    run(f"python -m pip install -q --no-deps --no-index {wheel}", tmp_path, own)
    home = tmp_path / "home"
    assert str(tmp_path) in run("python -c 'import macelib; print(macelib.__file__)'", home, own)
    (home / "few.txt").write_text("a red dog\na big cat on grass\n")
    run(QUICK + PYTHON[0], home, own, str(tmp_path / ".venv" / "bin" / "python"), "-c")
    assert (home / "ship.safetensors").exists() and shutil.which("mace", path=own["PATH"]).startswith(str(tmp_path))
    run("mace notebooks mine", home, own)
    names = {path.name for path in ROOT.glob("notebooks/*.ipynb")}
    assert {path.name for path in (home / "mine").glob("*.ipynb")} == names and (home / "mine" / "lists").is_dir()
