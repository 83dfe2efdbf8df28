"""The notebook's cells: while another one runs, the kernel does not answer a page, and so the page says it."""

from collections.abc import Callable

from IPython import get_ipython

RUNNING = "Another cell of the notebook is running: until it has ended, the page answers slowly, or not at all."


def running_cell() -> str:
    """What the notebook calls the cell that runs now; empty where nothing says so."""
    message = getattr(get_ipython(), "get_parent", dict)() or {}
    return str(message.get("metadata", {}).get("cellId") or "")


class Cells:
    """Calls `tell` with a sentence when a cell begins to run, and with "" when it has ended; outside IPython, never."""

    def __init__(self, tell: Callable[[str], None]):
        self._events = getattr(get_ipython(), "events", None)
        self._heard = {"pre_run_cell": lambda *_: tell(RUNNING), "post_run_cell": lambda *_: tell("")}
        for name, heard in self._heard.items() if self._events else ():
            self._events.register(name, heard)

    def close(self) -> None:
        """Hear nothing any more."""
        for name, heard in self._heard.items() if self._events else ():
            self._events.unregister(name, heard)
        self._heard = {}
