"""A job, how it ended, and the process of its own that it runs in, here or inside a task of a cluster."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MaceError

THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "RAYON")  # *_NUM_THREADS
POLL, PATIENCE = 0.05, 5.0  # seconds between looks at running jobs, and until one that is told to end is killed
PACKAGES = Path(__file__).resolve().parents[2]  # folder from which macelib is imported


@dataclass(frozen=True)
class Job:
    """`call(*args)`, to be run somewhere."""

    key: str
    call: Callable[..., Any]
    args: tuple = ()


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its value, or an error in a sentence and where it came from."""

    key: str
    value: Any = None
    error: str | None = None
    trace: str = ""
    died: bool = False  # the process ended without a word, e.g. for lack of memory


def pack(job: Job) -> bytes:
    """A job as a process anywhere can read it: the caller's import paths, then the call. MaceError for `__main__`'s."""
    if job.call.__module__ == "__main__":
        raise MaceError(f"{job.call.__name__} cannot be imported by another process: move it into a module.")
    return pickle.dumps((sys.path, pickle.dumps((job.call, job.args))))


class Process:
    """One job in a process of its own; `with` or `close` ends it."""

    def __init__(self, key: str, packed: bytes, environment: Mapping[str, str]):
        self.key, self.folder = key, Path(tempfile.mkdtemp(prefix="mace-job-"))
        (self.folder / "job").write_bytes(packed)
        with open(self.folder / "output", "wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "macelib.batch.worker", self.folder],
                stdin=subprocess.PIPE,  # never written to: the worker ends when it closes
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for the caller, which closes its jobs
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def poll(self) -> Outcome | None:
        """How the job ended; None while it runs."""
        code = self.popen.poll()
        if code is None:
            return None
        try:
            return Outcome(self.key, **pickle.loads((self.folder / "outcome").read_bytes()))
        except FileNotFoundError:
            tail = (self.folder / "output").read_text(encoding="utf-8", errors="replace")[-2000:].strip()
            why = f"signal {_signal(-code)}" if code < 0 else f"exit code {code}"
            hint = " (often a lack of memory)" if code == -9 else ""
            return Outcome(self.key, error=f"The process ended by {why}{hint}.", trace=tail, died=True)

    def close(self) -> None:
        """End the job, with all the processes it has started."""
        self.popen.stdin.close()
        try:
            self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def settings(threads: int, gpus: list[str] | None) -> dict[str, str]:
    """Environment of a job. `gpus` None: as the caller sees them."""
    path = os.pathsep.join(p for p in (str(PACKAGES), os.environ.get("PYTHONPATH")) if p)
    values = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    values |= {f"{name}_NUM_THREADS": str(threads) for name in THREADS}
    return values if gpus is None else {**values, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def _signal(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)
