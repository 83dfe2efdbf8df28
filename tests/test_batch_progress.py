"""How far runs are and how long they take: what is written down, and what is made of it."""

import io
import json
import os
import platform
import re
import threading
import time

import batch_tools as tools
import pytest

from macelib.batch import board, progress
from macelib.batch.board import Board
from macelib.batch.engines import Local
from macelib.batch.estimate import duration, forecast, left, recorded
from macelib.batch.launch import launch
from macelib.batch.runs import plan
from macelib.show import progress as bars_module
from macelib.show.progress import Bars

MACHINE = platform.node()


@pytest.fixture
def runs(tmp_path):
    return plan(tools.notebook(tmp_path), [{"seed": s} for s in range(4)], tmp_path / "t")


def record(folder, seconds, notebook="tiny.ipynb", machine=MACHINE, success=True):
    """A run as it is when it has ended."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"notebook": notebook}))
    (folder / "status.json").write_text(json.dumps({"status": "complete", "seconds": seconds, "machine": machine}))
    if success:
        (folder / "SUCCESS").touch()


def test_time_left_is_that_of_the_recorded_median():
    assert left([], 3, (), 1) is None
    assert left([10, 20, 60], waiting=3, running=(), at_once=1) == 60
    assert left([10, 20, 60], waiting=3, running=(15, 25), at_once=2) == (60 + 5 + 0) / 2
    assert left([20], waiting=1, running=(), at_once=8) == 20, "one run does not go faster on eight places"
    assert [duration(s) for s in (44.6, 61, 3599, 14_700)] == ["45 s", "1 min", "1 h 0 min", "4 h 5 min"]


def test_only_runs_that_can_tell_are_asked(runs, tmp_path):
    assert recorded(runs) == [] and "not known" in forecast(runs, 1)
    record(tmp_path / "other" / "a", 90)
    record(tmp_path / "other" / "b", 1, notebook="another.ipynb")
    record(tmp_path / "other" / "c", 2, machine="elsewhere")
    record(tmp_path / "other" / "d", 3, success=False)
    assert recorded(runs) == [90]
    assert forecast(runs, 2) == "4 runs to do, 2 at once: about 3 min, for the 1 run recorded here took 2 min."
    for run, seconds in zip(runs[:2], (30, 50), strict=True):
        record(tmp_path / "t" / run.id, seconds)
    assert sorted(recorded(runs)) == [30, 50], "this sweep's runs are nearer"
    assert "2 runs to do, one after the other: about 1 min" in forecast(runs, 1)
    assert "30 s to 50 s" in forecast(runs, 1) and "4 runs to do" in forecast(runs, 1, force=True)


def test_cell_and_bar_of_a_run(tmp_path, monkeypatch):
    assert progress.said(tmp_path) == "" and not progress.begun(tmp_path, 0)
    cells = progress.Cells(tmp_path, 3)
    assert progress.said(tmp_path) == "starts"
    cells(None, 0), cells(None, 4)
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / progress.BAR))
    monkeypatch.setattr(bars_module, "EVERY", 600.0)
    with Bars() as bars:
        bars("train", 5, 300)
        bars("train", 6, 300)  # told now and then only
        assert progress.said(tmp_path) == "cell 2/3, train 5/300"
    assert progress.said(tmp_path) == "cell 2/3", "the bar is gone with the work"
    (tmp_path / progress.BAR).write_text('{"stage": "train", "done": 1, "total": 2}')
    cells(None, 5)
    assert progress.said(tmp_path) == "cell 3/3", "an earlier cell's bar is not this one's"
    assert progress.begun(tmp_path, time.time() - 60) and not progress.begun(tmp_path, time.time() + 60)


def test_the_board_of_a_file_says_lines(runs, tmp_path):
    output = io.StringIO()
    record(tmp_path / "other" / "a", 60)
    with Board(runs, 2, output) as shown:
        progress.Cells(tmp_path / "t" / runs[1].id, 9)(None, 0)
        shown.show(), shown.show()
        shown.done(runs[0]), shown.done(runs[1], "failed: one")
    lines = output.getvalue().splitlines()
    assert re.fullmatch(r"0/4 runs after \d+ s; about 2 min left; \w{6}: cell 1/9", lines[0])
    assert lines[2] == "failed: one" and "2/4 runs" in lines[3] and "1 failed" in lines[3] and len(lines) == 4


def test_what_a_killed_run_left_behind_is_not_under_way(runs, tmp_path):
    folder = tmp_path / "t" / runs[0].id
    progress.Cells(folder, 9)(None, 0)
    os.utime(folder / progress.CELL, (1, 1))
    assert Board(runs, 1, io.StringIO()).text() == ""


def test_bars_stop_when_their_stage_is_done(capsys):
    with Bars() as bars:
        bars("images", 1, 2), bars("images", 2, 2)
        assert bars.bars["images"].disable, "closed: its clock stands still"
        bars("images", 2, 2), bars("train", 1, 9)
        first = bars.bars["images"]
        bars("images", 1, 4)
        assert bars.bars["images"] is not first and bars.bars["images"].total == 4, "the stage began anew"
    assert capsys.readouterr().err.count("images: 100%") == 1


@pytest.mark.slow
def test_a_run_tells_its_cell_and_its_bar_while_it_goes_on(tmp_path, monkeypatch):
    body = tools.BODY + (
        "from macelib.show.results import Bars\nwith Bars() as bars:\n    bars('train', 7, 300); time.sleep(3)\n"
    )
    runs = plan(tools.notebook(tmp_path, body=body), [{"label": "slow"}], tmp_path / "t")
    monkeypatch.setattr(board, "SHORT", 0.2)
    output, seen = io.StringIO(), []
    thread = threading.Thread(target=lambda: seen.append(launch(runs, Local(1), output=output)))
    thread.start()
    thread.join(500)
    assert seen[0].done == [runs[0].id], output.getvalue()
    assert "cell 3/4, train 7/300" in output.getvalue(), output.getvalue()
    assert "1/1 runs after" in output.getvalue().splitlines()[-1]
    took = json.loads((tmp_path / "t" / runs[0].id / "status.json").read_text())["seconds"]
    assert recorded(runs) == [took] and took > 3
