"""The part of `mace study` that chooses the settings of other methods than MACE."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import MaceError, unknown

TASKS = {"objects": "alone", "characters": "together"}  # what a list of the grid is tuned for
NONE = "style, unsafe: no names of these kinds are set apart to choose on; what is chosen for objects is taken."


SIZES = {  # options that say how much a study takes
    "objects": ("only", "images"), "characters": ("count", "seeds"), "tuning": ("count", "seeds"),
    "ablation": ("count", "seeds"), "pairs": ("only", "seeds"), "keeping": ("seeds",),
}  # fmt: skip


def check_sizes(protocol: str, **given) -> None:
    """MaceError for an option of another study, which would say nothing here."""
    has = ("only", "images") if protocol == "ablation" and given["only"] else SIZES[protocol]
    if stray := [name for name, value in given.items() if value is not None and name not in has]:
        known = " and ".join(f"--{name}" for name in has)
        more = " (or --only and --images, of objects)" if protocol == "ablation" and has == SIZES[protocol] else ""
        raise MaceError(f"--{stray[0]} does not apply to the study {protocol}, which has {known}{more}: leave it out.")


def grids(methods: str, task: str | None, grid: Path | None) -> tuple[list, list[str]]:
    """A grid for each method of "uce,speed", or of "all" that have one; and the names of those that have none.

    task: objects or characters; None: both. grid: that of MACE, whose names are used and whose points are counted.
    MaceError: an unknown method or task, a method with nothing to tune.
    """
    from ..baselines import methods as known
    from ..baselines import tunable
    from ..evaluate.tuning import Grid, trials
    from ..files import data_folder
    from .compare import listed

    if task is not None and task not in TASKS:
        raise unknown("task to choose settings for", task, TASKS)
    like = Grid.load(grid or data_folder() / "world" / "tuning.yaml")
    lists = [TASKS[task]] if task else list(TASKS.values())
    names = tunable() if methods == "all" else listed(methods)
    return [trials(name, like, lists) for name in dict.fromkeys(names)], [n for n in known() if n not in tunable()]


def tune_each(points: Sequence, run: Callable[[Any], Any], record: bool) -> None:
    """Tune one method after the other and show its table; with `record` keep what is chosen.

    MaceError, when all others are through: a method that could not be tuned.
    """
    from ..baselines import method
    from ..evaluate.tuned import record_tuned
    from ..evaluate.tuning import KINDS

    failed = []
    for grid in points:
        try:
            result = run(grid)
        except MaceError as error:
            if isinstance(error.__cause__, OSError):  # the disk's fault, not the method's
                raise
            failed.append(f"{grid.method}: {error}")
            continue
        typer.echo(f"\n{grid.method}\n{result}")
        for how, rows in result.metrics.groupby("erased"):
            every = len(method(grid.method).trials(KINDS[how]))
            typer.echo(
                f"{grid.method}, {how}: {len(rows)} of its {every} points tried, {len(getattr(grid, how))} allowed."
            )
        if record:
            typer.echo(record_tuned(result))
    if failed:
        raise MaceError("Not tuned: " + " ".join(failed))


def check(
    protocol: str, method: str | None, task: str | None, minutes: float | None, count: int | None, config
) -> None:
    """MaceError for options that do not go together."""
    if minutes is not None and not minutes >= 0:
        raise MaceError(f"--minutes is {minutes:g}; allowed: 0 or more.")
    if method is None and (task or minutes is not None):
        raise MaceError(f"--{'task' if task else 'minutes'} is for tuning with --method.")
    if method is not None and protocol != "tuning":
        raise MaceError(f"--method is for tuning: the study {protocol} is of MACE.")
    if method is not None and (count is not None or config is not None):
        raise MaceError(f"--{'config' if count is None else 'count'} is not for --method: its grid says it.")
