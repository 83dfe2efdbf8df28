"""The Ray engine on a real cluster of two nodes on this machine."""

import time
from pathlib import Path

import batch_tools as tools
import numpy as np
import pytest

from macelib.batch.engines import make_engine
from macelib.batch.jobs import Job
from macelib.errors import MaceError

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "macelib[ray]"')
pytestmark = pytest.mark.slow


NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def head():
    """A cluster of one node."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))  # of the library; jobs bring theirs
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.second = None
        yield cluster
        cluster.shutdown()


@pytest.fixture
def cluster(head):
    """The same with a second node: a new one where the last test has killed it."""
    if head.second not in head.worker_nodes:
        head.second = head.add_node(**NODE)
    head.wait_for_nodes()
    yield head
    ray.shutdown()


def test_a_node_is_killed_half_way_and_nothing_is_lost(cluster, tmp_path):
    node = cluster.second.node_id
    jobs = [Job(f"j{i}", tools.slow, (str(tmp_path), f"j{i}", 0.2, node if i > 1 else "")) for i in range(8)]
    engine, found = make_engine("ray", address=cluster.address, threads=1, retries=3), {}
    for outcome in engine.run([*jobs, Job("bad", tools.fail, ("oh",)), Job("dead", tools.die)]):
        assert outcome.key not in found
        found[outcome.key] = outcome
        if len(found) == 3:
            end = time.monotonic() + 60
            while not any(node in path.read_text() for path in tmp_path.glob("j[2-7].starts")):
                assert time.monotonic() < end, "the second node got no job"
                time.sleep(0.05)
            cluster.remove_node(cluster.second, allow_graceful=False)
    assert "KeyError" in found.pop("bad").error and "SIGKILL" in found.pop("dead").error
    assert {key: outcome.value for key, outcome in found.items()} == {
        job.key: tools.slow_value(job.key) for job in jobs
    }
    starts = [(tmp_path / f"{job.key}.starts").read_text().split() for job in jobs]
    assert any(len(nodes) > 1 and nodes[0] == node != nodes[-1] for nodes in starts), "no job had to be done again"
    assert not ray.is_initialized()


def test_a_sweep_runs_on_a_cluster_as_it_does_here(cluster, tmp_path):
    from macelib.batch.engines import Local
    from macelib.batch.index import collect
    from macelib.batch.launch import launch
    from macelib.batch.runs import plan, remember

    path, frames = tools.notebook(tmp_path), []
    for name, engine in (("local", Local()), ("ray", make_engine("ray", address=cluster.address))):
        runs = plan(path, [{"size": 1}, {"size": 2}], tmp_path / name)
        remember(tmp_path / name, name, runs)
        assert len(launch(runs, engine).done) == 2
        frames.append(collect(tmp_path / name))
    assert frames[0].equals(frames[1])


def test_an_erasure_trains_on_a_cluster_that_loses_a_node(cluster, tmp_path):
    from macelib import Concept, EraseConfig, erase, load_pipeline
    from macelib.config import ImagesConfig, PriorConfig, TrainOptions
    from macelib.models.tiny import tiny_pipeline

    tiny_pipeline("sd").save_pretrained(tmp_path / "model")
    pipe = load_pipeline(tmp_path / "model", device="cpu")
    concepts = [Concept(name, "grass") for name in ("ship", "frog", "horse", "cat")]
    config = EraseConfig(
        images=ImagesConfig(count=1, steps=1, masks="full"),
        train=TrainOptions(steps=3, lr=1e-2, concepts_per_pass=1),
        prior=PriorConfig(use=False),
    )
    done = []

    def lose(stage, *rest):
        if stage == "concepts" and not done:
            cluster.remove_node(cluster.second, allow_graceful=False)
        done.append((stage, *rest))

    engine = make_engine("ray", address=cluster.address, threads=1)
    there = erase(pipe, concepts, config, engine=engine, progress=lose, folder=tmp_path / "there")
    here = erase(pipe, concepts, config, folder=tmp_path / "here")
    assert [step for stage, step, *_ in done if stage == "concepts"] == [1, 2, 3, 4]
    for one, other in zip(there.parts, here.parts, strict=True):
        assert one.concept == other.concept and (one.B - other.B).abs().max() < 1e-5
        assert (one.D - other.D).abs().max() < 1e-5


def test_a_list_of_prompts_is_drawn_by_all_nodes(cluster, tmp_path):
    """One share for each place of the cluster, whose number nobody says; the pictures are those drawn here."""
    from macelib import load_pipeline
    from macelib.evaluate.pictures import Drawing
    from macelib.evaluate.prompts import Prompt, draw_prompts
    from macelib.models.tiny import tiny_pipeline

    tiny_pipeline("sd").save_pretrained(tmp_path / "tiny")
    pipe, rows = load_pipeline(tmp_path / "tiny", device="cpu"), [Prompt("a ship", i) for i in range(6)]
    engine, how, ran = make_engine("ray", address=cluster.address), Drawing(steps=1, batch=1), []
    assert engine.slots() == 2 and make_engine("ray", address=cluster.address, jobs=5).slots() == 5
    run = engine.run
    engine.run = lambda jobs: run(ran.append(job.key) or job for job in jobs)
    there, here = (
        {i: np.asarray(picture, int) for n, pictures, _ in draw_prompts(pipe, rows, tmp_path / name, how, engine=e)
         for i, picture in zip(n, pictures, strict=True)}
        for name, e in (("there", engine), ("here", None))
    )  # fmt: skip
    assert ran == ["pictures 1 of 2", "pictures 2 of 2"] and there.keys() == here.keys() == {*range(6)}
    assert all(abs(there[i] - here[i]).max() <= 2 for i in there)  # the nodes have other numbers of threads
    assert abs(here[0] - here[1]).max() > 2


def test_a_job_that_no_node_can_take_is_refused(cluster):
    with pytest.raises(MaceError, match="needs 9 cores"):
        list(make_engine("ray", address=cluster.address, threads=9).run([Job("a", tools.square, (1,))]))
    with pytest.raises(MaceError, match="1 GPUs"):
        list(make_engine("ray", address=cluster.address, gpus=1).run([Job("a", tools.square, (1,))]))
