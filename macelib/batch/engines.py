"""Engines: where jobs run. One interface for notebooks, LoRA groups, or anything else that takes long.

    engine = make_engine("local", jobs=2)                    # or make_engine("ray", threads=4, gpus=1)
    for outcome in engine.run([Job("a", function, (1,)), Job("b", function, (2,))]):
        print(outcome.key, outcome.error or outcome.value)   # as they finish

A job is a function that can be imported (`macelib.groups.train_elsewhere`, not a lambda or one of a notebook) and
picklable arguments; each runs in a fresh process, with the number of threads limited and the GPUs that it may see set
before anything is imported. Its return value is pickled back. An exception, or the death of the process, becomes
`outcome.error`: it does not stop the others. Leaving the loop, by `break` or an error, ends what still runs, and so
does the death of the calling process: jobs never outlive it.

To train LoRA groups over machines: one job per group, whose arguments are the model's name, the concepts, the settings
and a folder, and whose value is the group's tensors; the caller stores them in order of the groups, whichever finishes
first. With Ray, folders that jobs write to must be shared between the machines; values travel by themselves.
"""

import os
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from ..errors import MaceError
from .cluster import Ray
from .jobs import POLL, Job, Outcome, Process, pack, settings


class Engine(Protocol):
    """Runs jobs, several at once."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Yield outcomes as jobs finish; every job has exactly one."""
        ...

    def slots(self) -> int:
        """How many jobs run at once."""
        ...


def make_engine(
    name: str = "local",
    *,
    jobs: int | None = None,
    threads: int | None = None,
    gpus: float | None = None,
    address: str | None = None,
    retries: int = 3,
) -> Engine:
    """An engine by name. `jobs` at once and `threads` of each; `gpus` per job, `address` and `retries` are Ray's."""
    if name == "local":
        if address is not None or gpus is not None:
            raise MaceError("An address and GPUs per job belong to --engine ray; the local engine has --jobs.")
        return Local(jobs, threads)
    if name == "ray":
        return Ray(address, jobs, threads, gpus, retries)
    raise MaceError(f"The engine is {name!r}; choose from local, ray.")


class Local:
    """Processes on this machine: one per GPU, or `jobs` of them, sharing GPUs and cores evenly."""

    def __init__(self, jobs: int | None = None, threads: int | None = None):
        for name, value in (("jobs", jobs), ("threads", threads)):
            if value is not None and value < 1:
                raise MaceError(f"{name} is {value}; allowed: 1 or more.")
        self.gpus = visible_gpus()
        self.jobs = jobs or len(self.gpus) or 1
        self.threads = threads or max(1, cores() // self.jobs)

    def slots(self) -> int:
        """How many jobs run at once."""
        return self.jobs

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Yield outcomes as jobs finish."""
        waiting, free, running = deque(jobs), deque(range(self.jobs)), {}
        try:
            while waiting or running:
                while waiting and free:
                    slot = free.popleft()
                    gpus = [self.gpus[slot % len(self.gpus)]] if self.gpus else None
                    job = waiting.popleft()
                    running[slot] = Process(job.key, pack(job), settings(self.threads, gpus))
                finished = {slot: outcome for slot, process in running.items() if (outcome := process.poll())}
                for slot in finished:
                    running.pop(slot).close()
                    free.append(slot)
                yield from finished.values()
                if not finished:
                    time.sleep(POLL)
        finally:
            for process in running.values():
                process.popen.stdin.close()  # all at once, then wait for each
            for process in running.values():
                process.close()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names (numbers or UUIDs) of the NVIDIA GPUs that this process may use, without starting CUDA."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in done.stdout.splitlines() if line.startswith("GPU "))]
