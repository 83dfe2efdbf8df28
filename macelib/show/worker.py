"""Work beside the page: one thread, so that the page still hears what is clicked, Stop above all."""

import contextvars
import threading
from collections.abc import Callable


class Stopped(Exception):
    """Raised where work is told to stop."""


def heed(stop: threading.Event | None) -> None:
    """Raise Stopped once the event is set; without one, never."""
    if stop is not None and stop.is_set():
        raise Stopped


class Worker:
    """Does the last thing that was asked for: what is asked later stops what is going on, and waits until it has."""

    def __init__(self):
        self._stop, self._thread = threading.Event(), None

    def start(self, work: Callable[[threading.Event], None]) -> None:
        """Have `work(stop)` done soon, in the context of the caller; it should end once `stop` is set."""
        self._stop.set()
        stop, before, context = threading.Event(), self._thread, contextvars.copy_context()

        def run() -> None:
            if before is not None:
                before.join()
            if not stop.is_set():
                context.run(work, stop)

        self._stop, self._thread = stop, threading.Thread(target=run, daemon=True, name="macelib-studio")
        self._thread.start()

    def stop(self) -> None:
        """Tell what is going on, or about to, to stop."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is going on."""
        if self._thread is not None:
            self._thread.join(timeout)
