"""How long runs take, by those that are recorded; where none is, that is said."""

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from .runs import STATUS, Run, read_json, state


def recorded(runs: Sequence[Run]) -> list[float]:
    """Seconds of the complete runs of the same notebook on this machine: of this sweep, else of all in its root."""
    folder, notebook = Path(runs[0].folder).parent, Path(runs[0].notebook).name
    return _seconds(folder.glob("*/run.json"), notebook) or _seconds(folder.parent.glob("*/*/run.json"), notebook)


def _seconds(paths, notebook: str) -> list[float]:
    found = []
    for path in paths:
        status = read_json(path.parent / STATUS)
        same = read_json(path).get("notebook") == notebook and status.get("machine") == platform.node()
        if same and state(path.parent) == "complete" and isinstance(status.get("seconds"), (int, float)):
            found.append(float(status["seconds"]))
    return found


def left(seconds: Sequence[float], waiting: int, running: Sequence[float], at_once: int) -> float | None:
    """Seconds that runs still take, each as long as the median of `seconds`; None where there are none.

    running: seconds that those under way have taken already. at_once: runs side by side.
    """
    if not seconds:
        return None
    each = statistics.median(seconds)
    return (waiting * each + sum(max(each - s, 0.0) for s in running)) / max(1, min(at_once, waiting + len(running)))


def forecast(runs: Sequence[Run], at_once: int, force: bool = False) -> str:
    """A sentence about how long the runs that are not complete will take."""
    todo = [run for run in runs if force or run.state != "complete"]
    text = f"{counted(len(todo), 'run')} to do"
    if not todo:
        return f"{text}: all are complete."
    seconds, how = recorded(runs), f"{at_once} at once" if at_once > 1 else "one after the other"
    total = left(seconds, len(todo), (), at_once)
    if total is None:
        name = Path(runs[0].notebook).name
        return f"{text}, {how}. How long they take is not known: no run of {name} on this machine is recorded here."
    spread = f" ({duration(min(seconds))} to {duration(max(seconds))})" if len(seconds) > 1 else ""
    past = f"the {counted(len(seconds), 'run')} recorded here took {duration(statistics.median(seconds))}{spread}"
    return f"{text}, {how}: about {duration(total)}, for {past}."


def counted(number: int, thing: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """ "45 s", "10 min", "4 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
