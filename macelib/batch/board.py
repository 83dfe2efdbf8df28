"""What is shown while runs go on: how many are done, what the others are at, and about how long it still takes."""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from . import progress
from .estimate import duration, left, recorded
from .runs import STATUS, Run, read_json

LOOK, SHORT = 1.0, 30.0  # seconds between two looks: in a terminal, and where the output is a file
SHOWN = 4  # runs whose cell and bar are told


class Board:
    """A bar in a terminal, a line now and then elsewhere; `with` starts and ends it. at_once: runs side by side."""

    def __init__(self, todo: Sequence[Run], at_once: int | None, output: TextIO | None = None):
        from tqdm import tqdm

        self.output, self.at_once = output or sys.stderr, at_once
        self.terminal = self.output.isatty()
        shape = {"bar_format": "{desc}: {n_fmt}/{total_fmt} |{bar:12}| {elapsed}{postfix}", "dynamic_ncols": True}
        self.bar = tqdm(total=len(todo), desc="runs", file=self.output, disable=not (todo and self.terminal), **shape)
        self.waiting, self.since = {run.id: run for run in todo}, {}
        self.total, self.failed, self.begin, self.start = len(todo), 0, time.time() - 1, time.monotonic()
        self.seconds, self.own = recorded(todo) if todo else [], []
        self._end, self._lock, self._last = threading.Event(), threading.Lock(), None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Board":
        if self.total:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        if self.total:
            self._thread.join()
        self.bar.close()

    def done(self, run: Run, failure: str = "") -> None:
        """A run ended; a failure is said in a line of its own."""
        with self._lock:
            self.waiting.pop(run.id), self.since.pop(run.id, None)
            seconds = read_json(Path(run.folder) / STATUS).get("seconds")
            self.own += [float(seconds)] if seconds and not failure else []
            self.failed += bool(failure)
            if failure:
                self.bar.write(failure, file=self.output)
            self.bar.update()
        self.show()

    def text(self) -> str:
        """What is going on, in words."""
        now = time.monotonic()
        running = [run for run in self.waiting.values() if progress.begun(Path(run.folder), self.begin)]
        for run in running:
            self.since.setdefault(run.id, now)
        taken = [now - self.since[run.id] for run in running]
        at_once = self.at_once or max(1, len(running))
        rest = left(self.own or self.seconds, len(self.waiting) - len(running), taken, at_once)
        parts = [f"about {duration(rest)} left"] if rest is not None and self.waiting else []
        parts += [f"{self.failed} failed"] if self.failed else []
        name = "{}: ".format if self.total > 1 else "".format
        parts += [f"{name(run.id[:6])}{progress.said(Path(run.folder))}" for run in running[:SHOWN]]
        return "; ".join([*parts, *([f"and {len(running) - SHOWN} more"] if len(running) > SHOWN else [])])

    def show(self) -> None:
        """Show it now; a file gets a line where something changed."""
        with self._lock:
            text, done = self.text(), self.total - len(self.waiting)
            if self.terminal:
                self.bar.set_postfix_str(text)
            elif (done, text) != self._last:
                passed = duration(time.monotonic() - self.start)
                print(f"{done}/{self.total} runs after {passed}; {text}".rstrip("; "), file=self.output, flush=True)
            self._last = done, text

    def _watch(self) -> None:
        pause = LOOK if self.terminal else SHORT
        while not self._end.wait(pause):
            begun = time.monotonic()
            self.show()
            pause = max(pause, 20 * (time.monotonic() - begun))  # a sweep of many thousands takes long to look at
