import doctest
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import batch_tools as tools
import nbformat
import pytest
import typer
from nbformat import v4
from PIL import Image
from typer.testing import CliRunner

from macelib.batch import cli
from macelib.batch.engines import Local
from macelib.batch.index import collect, find, write
from macelib.batch.lab import tidy
from macelib.batch.launch import launch
from macelib.batch.page import thumbnail
from macelib.batch.readable import make_readable
from macelib.batch.runs import plan
from macelib.errors import MaceError
from macelib.reading import flatten, structure

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def mace():
    app = typer.Typer()
    cli.register(app)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def command(*words) -> list[str]:
    code = "import typer; from macelib.batch import cli; app = typer.Typer(); cli.register(app); app()"
    return [sys.executable, "-c", code, *map(str, words)]


@pytest.mark.slow
def test_a_sweep_from_start_to_index(tmp_path, mace):
    """Two runs, one of which stops with an error: what each leaves behind, and what a second call does."""
    path = tools.sweep(tmp_path, grid={"label": ["a", "bad"]}, seeds=1, name="t")
    done = mace("batch", path, "--root", tmp_path, "--jobs", 2, "-p", "size", 4)
    assert done.exit_code == cli.FAILED, done.output
    assert "ZeroDivisionError: size is wrong" in done.output and "1 of 2 runs failed" in done.output
    frame = collect(tmp_path / "t")
    assert list(frame.status) == ["complete", "failed"] and frame.attrs["varied"] == ["label"]
    good, bad = (tmp_path / "t" / run for run in frame.run)

    random.seed(0)
    value = 4 * 0.5 + random.random()
    metrics = json.loads((good / "metrics.json").read_text())
    assert metrics["value"] == value and metrics["python"] == sys.executable
    assert frame["nested.H_o"][0] == value / 2 and frame.value.isna()[1]
    for run in (good, bad):
        shown = (run / "notebook.html").read_text()
        assert "tiny · " + run.name in shown and "drawn" in shown and "require.min.js" not in shown
        assert not (run / "cell.json").exists() and not (run / "bar.json").exists()
    assert "ZeroDivisionError" in shown
    text = (good / "notebook.ipynb").read_text()
    assert f"drawn {value}" in text and '"size = 4' in text
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "not-installed"  # as it was, and not needed
    assert "drawn" in (good / "log.txt").read_text()
    assert json.loads((good / "environment.json").read_text())["packages"]["papermill"]
    assert json.loads((good / "run.json").read_text())["parameters"]["size"] == 4

    assert not (bad / "SUCCESS").exists() and "ZeroDivisionError" in (bad / "notebook.ipynb").read_text()
    status = json.loads((bad / "status.json").read_text())
    assert status["cell"] and "size is wrong" in status["traceback"] and "\x1b" not in status["traceback"]

    marks = [(run / "environment.json").stat().st_mtime_ns for run in (good, bad)]
    (bad / "work").mkdir()
    (bad / "work" / "kept").touch()
    again = mace("batch", path, "--root", tmp_path, "-p", "size", 4)
    assert again.exit_code == cli.FAILED and "1 of 2 runs are complete" in again.output
    now = [(run / "environment.json").stat().st_mtime_ns for run in (good, bad)]
    assert now[0] == marks[0] and now[1] > marks[1] and (bad / "work" / "kept").exists()

    html = (tmp_path / "t" / "index.html").read_text()
    assert (
        "ZeroDivisionError" in html
        and str(tmp_path) not in html
        and "http" not in html.replace("http://www.w3.org", "")
    )


@pytest.mark.slow
def test_8_runs_killed_at_a_random_moment_and_resumed(tmp_path):
    """Nothing is lost, nothing done twice that was complete, and the index is that of the undisturbed sweep."""
    path = tools.sweep(tmp_path, grid={"rate": [0.1, 0.2]}, name="t", seeds=4)
    subprocess.run(command("batch", path, "--jobs", 2, "--root", tmp_path), cwd=ROOT, check=True, capture_output=True)
    whole = collect(tmp_path / "t")
    assert list(whole.status) == ["complete"] * 8
    assert list(whole.value) == [2 * rate + random.Random(seed).random() for rate in (0.1, 0.2) for seed in range(4)]

    words = command("batch", path, "--jobs", 2, "--root", tmp_path / "killed")
    killed, folder = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL), tmp_path / "killed" / "t"
    while len(list(folder.glob("*/SUCCESS"))) < random.SystemRandom().randint(1, 4):
        assert killed.poll() is None
        time.sleep(0.1)
    time.sleep(2 * random.SystemRandom().random())
    killed.kill()
    killed.wait()
    before = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("*/SUCCESS")}
    assert 0 < len(before) < 8
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    after = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("*/SUCCESS")}
    assert len(after) == 8 and before.items() <= after.items()
    resumed = collect(folder)
    assert resumed.equals(whole) and resumed.to_csv() == whole.to_csv()


@pytest.mark.slow
def test_force_begins_anew_and_a_change_of_the_notebook_stops_the_sweep(tmp_path, capfd):
    path = tools.notebook(tmp_path)
    runs = plan(path, [{}], tmp_path / "t")
    old = Path(runs[0].folder)
    (old / "work").mkdir(parents=True)
    (old / "SUCCESS").touch()
    assert launch(runs, Local()).skipped == [runs[0].id]
    assert launch(runs, Local(), force=True).done == [runs[0].id]
    assert (old / "metrics.json").exists() and not (old / "work").exists()
    path.write_text(path.read_text().replace("rate +", "rate -"))
    assert "notebook was changed" in launch(runs, Local(), force=True).failed[runs[0].id]
    assert (old / "SUCCESS").exists()  # what was there is kept


@pytest.mark.slow
def test_a_run_whose_last_claim_fails_keeps_what_it_found(tmp_path, mace):
    """The metrics and the figure that were recorded before the failing assertion are in the index, marked."""
    cell = tools.BODY + (
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\n"
        "Path(run_folder, 'metrics.json').write_text(json.dumps({'H_o': {'value': value, 'low': 0, 'high': 9}}))\n"
    )
    path = tools.notebook(tmp_path, body=cell, last="assert size < 3, 'too large'")
    done = mace("run", path, "-p", "size", 4, "--root", tmp_path, "--name", "t")
    assert done.exit_code == cli.FAILED and "notebook.html" in done.output
    frame = collect(tmp_path / "t")
    random.seed(0)
    assert list(frame.status) == ["failed"] and frame.H_o[0] == 2 + random.random()
    assert frame.error[0] == "AssertionError: too large"
    data = page_data(tmp_path / "t")
    assert data["rows"][0]["metrics"] == {"H_o": frame.H_o[0], "H_o.low": 0, "H_o.high": 9}
    assert len(data["rows"][0]["pictures"]) == 1 and data["rows"][0]["files"][0] == "notebook.html"


def page_data(folder: Path) -> dict:
    """What the index page is told."""
    text = (folder / "index.html").read_text()
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


@pytest.mark.slow
def test_a_single_run_ends_with_its_page_and_summary(tmp_path, mace):
    path = tools.notebook(tmp_path)
    said = 'Path(run_folder, \\"summary.txt\\").write_text(\\"all is well\\\\n\\"); time.sleep(0.3'
    path.write_text(path.read_text().replace("time.sleep(0.3", said))
    words = ("run", path, "--root", tmp_path, "--name", "one", "-p", "label", "slow")
    done = mace(*words)
    assert done.exit_code == 0, done.output
    folder = next((tmp_path / "one").glob("*/SUCCESS")).parent
    lines = done.output.splitlines()
    assert lines[-1] == "all is well" and str(folder / "notebook.html") in lines
    assert "all is well" in mace(*words).output  # complete: not done again, but said
    assert mace("runs", "one", "--root", tmp_path).exit_code == 0


def test_what_jupyterlab_saves_is_what_was_there(tmp_path):
    """Lab's names of kernel and language, which depend on the machine, and its times do not reach the file."""
    from jupyter_server.services.contents.filemanager import FileContentsManager

    committed = ROOT / "notebooks" / "06_erase_and_evaluate.ipynb"
    manager = FileContentsManager(root_dir=str(tmp_path), pre_save_hook=tidy)
    (tmp_path / committed.name).write_bytes(committed.read_bytes())
    model = manager.get(committed.name)
    model["content"]["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    model["content"]["metadata"]["language_info"] |= {"version": "3.11.7", "pygments_lexer": "ipython3"}
    model["content"]["cells"][1]["metadata"]["execution"] = {"iopub.status.busy": "2026"}
    manager.save(model, committed.name)
    assert (tmp_path / committed.name).read_bytes() == committed.read_bytes()


def test_nothing_starts_with_wrong_parameters(tmp_path, mace):
    path = tools.notebook(tmp_path)
    root = tmp_path / "runs"
    for words in (("-p", "sise", 3), ("-p", "size", "big"), ("-p", "size"), ("-p", "size", 1, "-p", "size=2")):
        done = mace("run", path, "--root", root, *words)
        assert isinstance(done.exception, MaceError), done.output
    assert not root.exists()


def test_params_and_dry_run(tmp_path, mace):
    path = tools.notebook(tmp_path)
    assert "steepness" in mace("params", path).output
    assert json.loads(mace("params", path, "--json").output)[1]["default"] == 0.5
    done = mace("run", path, "-p", "size", -5, "-p", "names", "a=b,c", "-p", "rate=2", "--root", tmp_path, "--dry-run")
    assert done.exit_code == 0 and "waiting" in done.output
    assert "size=-5, rate=2.0, names=['a=b', 'c']" in done.output and not (tmp_path / "tiny").exists()
    assert "1 run to do, one after the other. How long they take is not known" in done.output
    path = tools.sweep(tmp_path, grid={"size": [2, 3]}, seeds=2)
    text = mace("batch", path, "--root", tmp_path, "--dry-run").output
    assert "size=2, seed=0" in text and "size=3, seed=1" in text, "what varies is said, the defaults' values too"


def fake(folder: Path, rows: list[dict], done: int) -> None:
    """Folders as runs leave them, without running anything."""
    runs = [{"id": f"{i:012x}", "parameters": row} for i, row in enumerate(rows)]
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"name": "t", "notebook": "n.ipynb", "runs": runs}))
    for i, run in enumerate(runs[:done]):
        (folder / run["id"]).mkdir()
        metrics = {"loss": 1 / (i + 1), "seed": i, "note": "<b>", "environment": {"machine": f"m{i}"}}
        (folder / run["id"] / "metrics.json").write_text(json.dumps(metrics))
        (folder / run["id"] / "SUCCESS").touch()


def test_index_orders_by_what_varies_and_names_what_is_what(tmp_path):
    rows = [{"a": a, "b": {"c": [1]}, "seed": s} for a in (10, 9, None, "x") for s in (1, 0)]
    fake(tmp_path / "t", rows, done=7)
    frame = collect(tmp_path / "t")
    assert list(frame.columns) == ["run", "status", "a", "b.c", "seed", "loss", "metric.seed", "note", "error"]
    assert [*frame.a[:4], frame.a[4]] == [9, 9, 10, 10, "x"] and list(frame.seed[:4]) == [0, 1, 0, 1]
    assert frame.attrs["varied"] == ["a", "seed"] and sorted(set(frame.status)) == ["complete", "waiting"]
    assert doctest.testmod(structure).failed == 0
    assert flatten({"a": {"b": {"value": 1, "low": 0}}, "c": [1]}) == {"a.b": 1, "a.b.low": 0, "c": "[1]"}
    assert find("t", tmp_path) == tmp_path / "t"
    with pytest.raises(MaceError, match="no runs of u; it has: t"):
        find("u", tmp_path)


def test_a_parameter_may_be_called_as_a_column_is(tmp_path):
    names = ("run", "status", "error")
    fake(tmp_path / "t", [dict.fromkeys(names, v) for v in (1, 2)], done=2)
    frame, _, _ = write(tmp_path / "t")
    assert frame.attrs["varied"] == [f"parameter.{name}" for name in names]
    assert frame["parameter.run"].tolist() == [1, 2] and frame["status"].tolist() == ["complete"] * 2


@pytest.mark.parametrize("cut", [0, 60, 2000])
def test_a_picture_that_is_damaged_is_left_out_of_the_page(tmp_path, caplog, cut):
    fake(tmp_path / "t", [{"a": 1}, {"a": 2}], done=2)
    for i in range(2):
        path = tmp_path / "t" / f"{i:012x}" / "a.png"
        Image.effect_noise((200, 200), 80).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    write(tmp_path / "t")
    assert [len(row["pictures"]) for row in page_data(tmp_path / "t")["rows"]] == [1, 0]
    assert "a.png cannot be read" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"runs": 5}',
        '{"runs": ["a"]}',
        '{"runs": [{"id": 1, "parameters": {}}]}',
        "[" * 10**5,
        '{"runs": [{"id": "../x", "parameters": {}}]}',
        '{"runs": [{"id": "a", "parameters": []}]}',
    ],
)
def test_a_damaged_list_of_runs_is_named_and_its_index_stays(tmp_path, mace, text, caplog):
    for name in ("t", "u"):
        fake(tmp_path / name, [{"a": 1}, {"a": 2}], done=2)
        write(tmp_path / name)
    before = (tmp_path / "t" / "index.csv").read_text()
    (tmp_path / "t" / "sweep.json").write_text(text)
    with pytest.raises(MaceError, match=r"sweep.json is damaged: delete it and launch the sweep again"):
        write(tmp_path / "t")
    assert (tmp_path / "t" / "index.csv").read_text() == before
    said = mace("runs", "--root", tmp_path)
    assert "u: 2 complete" in said.output and "sweep.json is damaged" in caplog.text
    assert "has no runs" in mace("runs", "--root", tmp_path / "nothere").output


def test_page_holds_all_it_needs_and_cannot_be_broken_by_values(tmp_path, mace):
    from PIL import Image

    fake(tmp_path / "t", [{"a": "</script><b>", "seed": s} for s in range(3)], done=2)
    Image.new("RGBA", (900, 300), (255, 0, 0, 0)).save(tmp_path / "t" / f"{0:012x}" / "grid.png")
    (tmp_path / "t" / f"{0:012x}" / "work").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "t" / f"{0:012x}" / "work" / "training.png")
    done = mace("runs", "t", "--root", tmp_path)
    assert done.exit_code == 0, done.output
    assert mace("runs", "--root", tmp_path).output == "t: 2 complete, 1 waiting\n"
    text = (tmp_path / "t" / "index.html").read_text()
    assert "@@" not in text and "<b>" not in text.partition("<script>")[0].replace("<li><b>", "")
    assert text.count("data:image/webp") == 1 and "training" not in text and text.count("</script>") == 2
    assert thumbnail(tmp_path / "t" / f"{0:012x}" / "grid.png")[1:] == (360, 120)
    assert ": 3 runs, 2 complete, 1 waiting<" in text
    fake(tmp_path / "u", [{"seed": 0}], done=1)
    mace("runs", "u", "--root", tmp_path)
    assert ": 1 run, 1 complete<" in (tmp_path / "u" / "index.html").read_text()


@pytest.mark.slow
def test_refresh_keeps_results_and_leaves_a_failing_notebook_alone(tmp_path):
    good, bad = tools.notebook(tmp_path), tmp_path / "bad.ipynb"
    text = good.read_text()
    good.write_text(text.replace('print(\\"drawn\\"', 'sys.stderr.write(\\"hidden\\"); print(\\"drawn\\"'))
    bad.write_text(text.replace('label = \\"a\\"', 'label = \\"bad\\"'))
    before = bad.read_text()
    command = [sys.executable, "-m", "macelib.batch.refresh", "tiny.ipynb", "bad.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "bad.ipynb: stopped in code cell 3: ZeroDivisionError" in done.stdout, done.stderr
    assert bad.read_text() == before
    executed = json.loads(good.read_text())
    assert [cell["execution_count"] for cell in executed["cells"]] == [1, 2, 3]
    assert [cell["metadata"] for cell in executed["cells"]] == [{"tags": ["parameters"]}, {}, {}]
    outputs = executed["cells"][1]["outputs"]
    assert [o["name"] for o in outputs] == ["stdout"] and "drawn" in "".join(outputs[0]["text"])
    assert set(executed["metadata"]) == {"kernelspec", "language_info"}


def test_a_run_s_page_shows_results_and_no_bars_that_stand_still(tmp_path):
    bar = v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "train:   0%|"})
    cell = v4.new_code_cell("1 + 1", outputs=[bar, v4.new_output("execute_result", {"text/plain": "two"})])
    nbformat.write(v4.new_notebook(cells=[cell, v4.new_markdown_cell("Said.")]), tmp_path / "notebook.ipynb")
    make_readable(tmp_path)
    page = (tmp_path / "notebook.html").read_text()
    assert "two" in page and "Said." in page and "train:" not in page
