"""Launching a sweep: what is complete is left alone, the rest runs, a board tells how far it is."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from .board import Board
from .engines import Engine
from .execute import execute, record_death
from .jobs import Job
from .runs import Run


@dataclass
class Summary:
    """How a sweep ended: ids of runs."""

    skipped: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # id: error


def launch(runs: Sequence[Run], engine: Engine, force: bool = False, output: TextIO | None = None) -> Summary:
    """Execute the runs that are not complete, or all with `force`; a failed run does not stop the others."""
    output = output or sys.stderr
    summary = Summary(skipped=[run.id for run in runs if run.state == "complete" and not force])
    todo = {run.id: run for run in runs if run.id not in summary.skipped}
    if summary.skipped:
        print(f"{len(summary.skipped)} of {len(runs)} runs are complete and left as they are.", file=output)
    jobs = [Job(run.id, execute, (run, force)) for run in todo.values()]
    with Board(list(todo.values()), getattr(engine, "jobs", None), output) as board:
        for outcome in engine.run(jobs):
            run = todo[outcome.key]
            error = outcome.error or _missing(run)
            if error is None:
                summary.done.append(run.id)
                board.done(run)
                continue
            if outcome.died:
                record_death(run, error)
            summary.failed[run.id] = error
            board.done(run, f"failed: {run.id} ({describe(run)}): {short(error)}")
    return summary


def describe(run: Run, also: Sequence[str] = ()) -> str:
    """The parameters of a run that differ from the defaults, and others by name, in a line."""
    names = [name for name in run.parameters if name in run.given or name in also]
    return short(", ".join(f"{name}={run.parameters[name]}" for name in names) or "defaults", 120)


def varied(runs: Sequence[Run]) -> list[str]:
    """Names of the parameters that are not the same in all runs."""
    names = runs[0].parameters if runs else ()
    return [name for name in names if any(run.parameters[name] != runs[0].parameters[name] for run in runs)]


def short(text: str, length: int = 300) -> str:
    """The first line of a text, cut where it is too long."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= length else line[: length - 1] + "…"


def _missing(run: Run) -> str | None:
    """The error that a run is not to be seen from here although it ended well."""
    if run.state == "complete":
        return None
    return (
        f"The run ended well, but {Path(run.folder).parent} here does not show it: use a folder that all nodes share."
    )
