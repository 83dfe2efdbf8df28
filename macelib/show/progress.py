"""Progress bars for the command line and notebooks."""

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

from ..errors import MaceError

TOLD = "MACELIB_PROGRESS"  # environment variable of a batch run: the file in which its bars are looked up
EVERY = 1.0  # seconds between two changes of that file


class Bars:
    """Progress bars, one per stage, on standard error or in the page: call with (stage, done, total, detail).

    A bar stops when its stage is done. In a batch run the last one is told to whoever watches the run, too.
    `options`: of tqdm, such as leave=False for bars that are gone at the end.
    """

    def __init__(self, **options):
        quiet = {} if sys.stderr.isatty() else {"position": 0, "mininterval": 10}  # a file does not go back a line
        self.bars, self.options, self.told = {}, {**quiet, **options}, -EVERY
        self.file = Path(os.environ[TOLD]) if os.environ.get(TOLD) else None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_) -> None:
        for bar in self.bars.values():
            bar.close()
        if self.file:
            self.file.unlink(missing_ok=True)

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        from tqdm.auto import tqdm

        bar = self.bars.get(stage)
        if bar is None or (bar.n >= bar.total and done < total):  # the first time, or the stage begins anew
            bar = self.bars[stage] = tqdm(total=total, desc=stage, **self.options)
        bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
        self._tell(stage, done, total)

    def _tell(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.file is None or now - self.told < EVERY:
            return
        self.told = now
        from ..files import write_json  # loads PyTorch

        with contextlib.suppress(MaceError):  # no reason to stop the work
            write_json(self.file, {"stage": stage, "done": done, "total": total}, None)


def watched() -> bool:
    """Whether somebody sees bars: on a terminal, beside a batch run, or on a notebook's page, which a batch has not."""
    on_page = in_notebook() and "MACELIB_RUN_FOLDER" not in os.environ
    return on_page or bool(os.environ.get(TOLD)) or sys.stderr.isatty()


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()


def say(log: logging.Logger, text: str) -> None:
    """Say what everybody should read and is no warning: a line of a notebook's own output, elsewhere in the log.

    (A notebook shows the log in a red box.)
    """
    if in_notebook():
        print(text)
    else:
        log.warning(text)
