"""When the studio does what: soon after a change, one thing at a time, with the page busy and Stop to click."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import MaceError, explained
from .controls import Controls
from .page import message
from .worker import Stopped, Worker, heed

log = logging.getLogger(__name__)
PAUSE = 0.08  # seconds of rest before something is done, in which further changes are gathered
WAITING = message("waiting for another drawing or training …")
Work = Callable[[threading.Event | None], None]  # ends once the event is set


class Doing(Controls):
    """Controls that say how things go: `error` is the sentence that is shown, or empty; `seconds` is what it took."""

    def __init__(self, *controls, **options):
        super().__init__(*controls, **options)
        self.error, self.seconds, self.worker = "", 0.0, Worker()
        self._timer, self._quiet, self._closed, self._doing = None, None, False, ""
        self.halt.on_click(self._halt)

    def close(self) -> None:
        """Take the page away; its controls do nothing any more."""
        self._closed = True
        self.worker.stop()
        if self._timer:
            self._timer.cancel()
        for widget in [*self.widgets()]:
            widget.close()

    def _do(self, what: str, work: Callable[[], str], draws: bool = False) -> None:
        """Do something that takes a while, with the page busy; what goes wrong is said in the page.

        draws: without it done, the pictures are those of an earlier state, and look like it.
        """
        if self._closed:
            return
        start, self._timer, self.error, done = time.perf_counter(), None, "", ""
        self._doing, self.status.value = what, message(what)
        self.busy(True)
        try:
            with explained():
                done = work()
        except MaceError as error:
            self.error = str(error)
        except (Stopped, KeyboardInterrupt):
            done = ""
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            log.exception("The studio could not go on.")
        self.seconds = time.perf_counter() - start
        self.busy(False)
        if draws:
            self.old(not done)
        said = f"ready in {self.seconds:.1f} s; {done}" if done else "stopped"
        self.status.value = message(self.error or said, bool(self.error))

    def _soon(self, work: Work) -> None:
        """Do it soon: what is asked for before it began takes its place. Without a loop: now. Closed: never."""
        if self._closed:
            return None
        if self._timer:
            self._timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return work(None)
        self._timer = loop.call_later(PAUSE, self._aside, work)

    def _aside(self, work: Work) -> None:
        """Have something done in the worker's thread, with Stop to click meanwhile; without a loop, do it now."""
        if self._closed:
            return None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return work(None)

        def all_of_it(stop: threading.Event) -> None:
            self.halt.disabled = False
            try:
                work(stop)
            finally:
                self.halt.disabled = True

        self.worker.start(all_of_it)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Several changes without drawing in between."""
        self._quiet = threading.get_ident()
        try:
            yield
        finally:
            self._quiet = None

    def _unheard(self) -> bool:
        """Whether a change is one of those that `_together` makes, and nothing is to follow."""
        return self._quiet == threading.get_ident()

    def _tell(self, stop: threading.Event | None, done: int, total: int) -> None:
        """Show how far it is, nothing meaning that it waits for others; raises Stopped once Stop was clicked."""
        heed(stop)
        self.bar.max, self.bar.value = total, done
        if not done:
            self.status.value = WAITING
        elif self.status.value == WAITING:
            self.status.value = message(self._doing)

    def _halt(self, _) -> None:
        self.status.value = message("stopping …")
        self.worker.stop()
