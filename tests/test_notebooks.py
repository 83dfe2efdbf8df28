"""Every notebook: how it is written, what is committed with it, and that it runs with small parameters."""

import ast
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from papermill.translators import PythonTranslator
from tiny_data import tiny_data
from tiny_results import tiny_results

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CELLS, LINES, FIGURE, TOTAL = 20, 15, 150_000, 6_000_000  # most cells, lines of a code cell, bytes
TINY_CAPTIONS = "a red dog\na big cat on grass\na painting of a house\n"
SMALL = {  # values for parameters of these names, in whatever notebook has them
    "images": 3,
    "steps": 2,
    "numbers": [1, 3],
    "counts": [2, 4],
    "probes": 2,
    "beside": 5,
    "foreign": 1,
    "settings": {"ring-a-bell": {"etas": [1.0], "neutral": "sea"}},  # a word of one token to the tiny tokenizer
    "seed": 1,
    "strict": False,
    "config": {
        "prior": {"captions": "{captions}"},
        "images": {"count": 1, "steps": 1, "masks": "full"},
        "train": {"steps": 2},
    },
}


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook) -> list:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]


def parameters(notebook) -> dict:
    tree = ast.parse(tagged(notebook)[0].source)
    return {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}


def figures(cell) -> list[str]:
    return [output.data["image/png"] for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def notebook(path):
    found = nbformat.reads(text_of(path), as_version=4)
    nbformat.validate(found)
    return found


def text_of(path: Path) -> str:
    """A notebook as it is staged or committed: what was run or tried out in it since is nobody's concern.

    The file itself where that is all there is, as outside a checkout.
    """
    done = subprocess.run(["git", "show", f":./{path.name}"], cwd=path.parent, capture_output=True, check=False)
    return (done.stdout if done.returncode == 0 else path.read_bytes()).decode("utf-8")


def test_there_are_notebooks():
    assert NOTEBOOKS and all(re.fullmatch(r"\d\d_\w+", path.stem) for path in NOTEBOOKS)
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= TOTAL


def test_size(notebook):
    assert len(notebook.cells) <= CELLS
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= LINES and not re.search(r"^class ", cell.source, re.M), cell.source
        assert all(len(line) <= 120 for line in cell.source.splitlines()), cell.source


def test_parameters(notebook):
    assert len(tagged(notebook)) == 1 and notebook.cells.index(tagged(notebook)[0]) == 1
    source = tagged(notebook)[0].source
    assert all(re.match(r"\w+ = .*  # \w|\w+ = .*  # \"", line) for line in source.splitlines()), source
    for name, value in parameters(notebook).items():
        assert json.loads(json.dumps(value)) == value, name  # what papermill is given on the command line
    assert "run_folder" in parameters(notebook)
    shown = PythonTranslator.inspect(tagged(notebook)[0])  # what papermill can list and check: one "=" a line
    assert {p.name for p in shown if p.help} == set(parameters(notebook))


def test_shape(notebook):
    assert notebook.cells[0].source.startswith("# ") and "**Question.**" in notebook.cells[0].source
    assert "assert" in code(notebook)[-1].source
    drawn = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and "viz." in cell.source]
    assert drawn and drawn[0] < 4, "the first picture comes too late"
    for i, cell in enumerate(notebook.cells):
        if figures(cell):
            assert any("**What to notice.**" in later.source for later in notebook.cells[i + 1 : i + 4]), cell.source


def test_outputs(notebook):
    if not any(cell.outputs for cell in code(notebook)):
        pytest.skip("it was not executed yet: make notebooks")
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert sum(len(figures(cell)) for cell in code(notebook)) >= 1
    for cell in code(notebook):
        assert all(len(figure) * 3 / 4 <= FIGURE for figure in figures(cell)), cell.source
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            assert not any("widget" in kind for kind in output.get("data", {})), cell.source
        assert not {"execution", "papermill"} & set(cell.metadata), "timings are not committed"
    assert not {"widgets", "papermill"} & set(notebook.metadata)


def test_no_absolute_path(notebook):
    for cell in notebook.cells:
        text = cell.source + "".join(
            str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            for output in cell.get("outputs", ())
        )
        found = re.search(r"(?<![\w.~/])(/(home|root|tmp|work|usr|mnt|Users|opt)/|[A-Z]:\\\\)", text)
        assert found is None, text


def execute(path: Path, data: Path, folder: Path) -> subprocess.CompletedProcess:
    """Run the notebook with small parameters, in a process of its own that uses one core."""
    captions = folder / "captions.txt"
    captions.write_text(TINY_CAPTIONS)
    small = json.loads(json.dumps(SMALL).replace("{captions}", captions.as_posix()))
    chosen = {name: value for name, value in small.items() if name in parameters(nbformat.read(path, as_version=4))}
    chosen["run_folder"] = str(folder / "run")
    (folder / "parameters.json").write_text(json.dumps(chosen))
    environment = {**os.environ, "MACELIB_DATA": str(data), "MACELIB_CACHE": str(folder / "cache")}
    environment |= {"PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = ["-m", "papermill", str(path), str(folder / "out.ipynb"), "--cwd", str(FOLDER), "--no-progress-bar"]
    command += ["--parameters_file", str(folder / "parameters.json"), "--kernel", "python3"]
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def executions(request, tmp_path_factory):
    """The folder and the pending execution of each notebook that is asked for: two are executed at a time."""
    data = tiny_data(tmp_path_factory.mktemp("data"))
    tiny_results(data / "results")
    asked = [item for item in request.session.items if item.originalname == "test_runs_with_small_parameters"]
    folders = {item.callspec.params["path"]: tmp_path_factory.mktemp("notebook") for item in asked}
    with ThreadPoolExecutor(2) as pool:
        yield {path: (folder, pool.submit(execute, path, data, folder)) for path, folder in folders.items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
def test_runs_with_small_parameters(path, executions):
    folder, pending = executions[path]
    done = pending.result()
    assert done.returncode == 0, done.stderr[-3000:]
    executed = nbformat.read(folder / "out.ipynb", as_version=4)
    assert sum(len(figures(cell)) for cell in code(executed)) >= 1
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics and any((folder / "run").glob("*.png"))
