import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import batch_tools as tools
import psutil
import pytest

from macelib.batch.engines import Local, make_engine, visible_gpus
from macelib.batch.jobs import Job, pack, settings
from macelib.errors import MaceError


def outcomes(engine, *jobs):
    return {outcome.key: outcome for outcome in engine.run(jobs)}


def test_values_errors_and_deaths_and_nobody_stops_the_others():
    jobs = [Job("fail", tools.fail, ("oh",)), Job("die", tools.die), Job("a", tools.square, (3,))]
    found = outcomes(Local(jobs=2), *jobs, Job("unknown", math.sqrt, (-1,)))
    assert found["a"].value == 9 and found["a"].error is None
    assert found["fail"].error == "KeyError: 'oh'" and "in fail" in found["fail"].trace and not found["fail"].died
    assert "SIGKILL" in found["die"].error and found["die"].died
    assert found["unknown"].error.startswith("ValueError") and len(found) == 4


def test_threads_and_gpus_are_set_before_anything_is_imported(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    engine = Local(threads=7)
    assert (engine.gpus, engine.jobs, visible_gpus()) == (["3", "5"], 2, ["3", "5"])
    found = outcomes(engine, Job("a", tools.surroundings), Job("b", tools.surroundings))
    assert {f.value["CUDA_VISIBLE_DEVICES"] for f in found.values()} == {"3", "5"}
    assert {f.value["OMP_NUM_THREADS"] for f in found.values()} == {"7"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert (visible_gpus(), Local().jobs) == ([], 1)
    assert settings(1, [])["CUDA_VISIBLE_DEVICES"] == ""


def test_leaving_the_loop_ends_what_runs(tmp_path):
    jobs = [Job("a", tools.slow, (str(tmp_path), "a", 60)), Job("b", tools.square, (2,))]
    for outcome in Local(jobs=2).run(jobs):
        assert outcome.key == "b"
        while not (tmp_path / "a.starts").exists():
            time.sleep(0.05)
        break
    pid = int((tmp_path / "a.starts").read_text())
    assert not psutil.pid_exists(pid)


def test_jobs_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import batch_tools as t; from macelib.batch.engines import *\n"
        f"list(Local(1).run([Job('a', t.slow, ({str(tmp_path)!r}, 'a', 60))]))"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    caller = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    while not (tmp_path / "a.starts").exists() or not (tmp_path / "a.starts").read_text():
        assert caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    pid = int((tmp_path / "a.starts").read_text())
    for _ in range(400):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError("the job outlived its caller")


@pytest.mark.parametrize(
    ("nodes", "options", "slots"),
    [
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}], {}, 6),  # a GPU each
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], {"gpus": 0.5}, 4),  # two on a GPU
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}], {"gpus": 0, "threads": 2}, 5),
        ([{"CPU": 2.0}], {}, 2),
        ([{"CPU": 2.0}], {"jobs": 5}, 5),
    ],
)
def test_a_cluster_runs_as_many_at_once_as_its_nodes_have_room_for(nodes, options, slots):
    pytest.importorskip("ray")
    engine = make_engine("ray", **options)
    there = [{"Alive": True, "Resources": node} for node in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    engine.ray = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: [*there, gone])
    assert engine.slots() == slots and Local(jobs=3).slots() == 3


def test_wrong_use_is_told():
    with pytest.raises(MaceError, match="choose from local, ray"):
        make_engine("slurm")
    with pytest.raises(MaceError, match="jobs is 0"):
        Local(jobs=0)
    with pytest.raises(MaceError, match="belong to --engine ray"):
        make_engine("local", gpus=1)

    def main():
        pass

    main.__module__ = "__main__"
    with pytest.raises(MaceError, match="move it into a module"):
        pack(Job("a", main))
