"""The Ray engine: jobs on the nodes of a cluster, each in a subprocess of its task.

Ray decides where a task runs and starts it again when its node or worker dies; all else is as on one machine: the
task starts the same process as the local engine does, with threads and visible GPUs set explicitly.
"""

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import MaceError, first_line
from .jobs import POLL, Job, Outcome, Process, pack, settings

LOOK = 1.0  # seconds that one wait for finished tasks lasts, so that Ctrl-C is heard


class Ray:
    """Tasks on a Ray cluster: at `address`, else $RAY_ADDRESS, else the one in use, else one started on this machine.

    threads: cores of a job (default: one, or the node's cores shared by `jobs` of them on a cluster of our own).
    gpus: of a job, 0.5 lets two share one (default: one where the cluster has any). retries: of a job whose node died.
    """

    def __init__(self, address: str | None, jobs: int | None, threads: int | None, gpus: float | None, retries: int):
        if min(jobs or 1, threads or 1) < 1 or (gpus or 0) < 0 or retries < 0:
            raise MaceError(f"jobs {jobs}, threads {threads}, gpus {gpus}, retries {retries}: none can be negative.")
        try:
            import ray
        except ImportError as error:
            raise MaceError('The engine ray needs Ray: install it with pip install "macelib[ray]".') from error
        self.ray, self.address = ray, address
        self.jobs, self.threads, self.gpus, self.retries = jobs, threads, gpus, retries

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Yield outcomes as jobs finish."""
        ray, ours = self.ray, self._connect()
        pending: dict[Any, Job] = {}
        try:
            threads, gpus = self._needs()
            options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": self.retries, "retry_exceptions": False}
            task = ray.remote(work).options(**options)
            waiting = list(reversed(list(jobs)))
            while waiting or pending:
                while waiting and (self.jobs is None or len(pending) < self.jobs):
                    job = waiting.pop()
                    pending[task.remote(job.key, pack(job), threads, gpus > 0)] = job
                done, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK)
                for reference in done:
                    yield self._outcome(reference, pending.pop(reference))
        finally:
            for reference in pending:
                ray.cancel(reference)
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=10)
            if ours:
                ray.shutdown()

    def _connect(self) -> bool:
        """Join a cluster or start one; whether it is ours to end."""
        if self.ray.is_initialized():
            return False
        address = self.address or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        try:
            self.ray.init(address=address or "auto", **quiet)
        except ConnectionError as error:
            if address:
                raise MaceError(f"There is no Ray cluster at {address}: start one with ray start --head.") from error
            self.ray.init(include_dashboard=False, **quiet)
        return True

    def slots(self) -> int:
        """How many jobs run at once: `jobs`, or as many as the nodes of the cluster have room for."""
        if self.jobs:
            return self.jobs
        ours = self._connect()
        try:
            threads, gpus = self._needs()
            needs = {"CPU": threads, "GPU": gpus}
            return sum(min(int(node.get(k, 0) // n) for k, n in needs.items() if n) for node in self._nodes())
        finally:
            if ours:
                self.ray.shutdown()

    def _nodes(self) -> list[dict[str, float]]:
        """What each node has of everything."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _needs(self) -> tuple[int, float]:
        """Cores and GPUs of one job; MaceError where no node has as many."""
        nodes = self._nodes()
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
        share = int(most["CPU"] // self.jobs) if self.jobs and len(nodes) == 1 else 1
        threads, gpus = self.threads or max(1, share), (1 if most["GPU"] else 0) if self.gpus is None else self.gpus
        if threads > most["CPU"] or gpus > most["GPU"]:
            raise MaceError(
                f"A job needs {threads} cores and {gpus} GPUs, and the largest nodes of the cluster have "
                f"{most['CPU']:g} and {most['GPU']:g}: lower --threads or --gpus."
            )
        return threads, gpus

    def _outcome(self, reference: Any, job: Job) -> Outcome:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            return Outcome(job.key, error=str(error.cause), trace=str(error))
        except self.ray.exceptions.RayError as error:
            return Outcome(job.key, error=f"Ray gave the job up: {first_line(error)}", trace=str(error), died=True)


def work(key: str, packed: bytes, threads: int, gpus: bool) -> Outcome:
    """Body of a task: the job in a process that sees the GPUs that Ray gave the task, or none.

    The job comes packed, so that only this module has to be importable by Ray's own workers.
    """
    import ray

    context = ray.get_runtime_context()
    chosen = [str(i) for i in context.get_accelerator_ids()["GPU"]] if gpus else []
    environment = {**settings(threads, chosen), "RAY_NODE_ID": context.get_node_id()}
    with Process(key, packed, environment) as process:
        while (outcome := process.poll()) is None:
            time.sleep(POLL)
    return outcome
