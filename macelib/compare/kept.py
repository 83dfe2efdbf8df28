"""What a comparison leaves in `data/results`: its own table, and the tables that are parts of several."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MaceError
from ..evaluate import results
from ..files import write_text
from .plan import BEST, WORLDS, Plan
from .published import beside

ABLATED = ("objects", "characters-100")  # tasks of which MACE's own rows are the ablation
ATTACKED = "objects"  # the task whose attacks are recorded


def record(path: Path, plan: Plan) -> list[Path]:
    """Keep a comparison's tables; the files that were written.

    A task of one table for all counts has its rows put among those of other counts. `ablation.json` is written anew out
    of `ABLATED`, those that there are: the rows of the original model, MACE and its ablations.
    """
    if plan.task.about.one_table:
        kept = [_joined(results.read(path), plan)]
    else:
        place = results.place(plan.name)
        pairs = {path: place, beside(path): beside(place)}
        kept = [write_text(target, source.read_text(encoding="utf-8")) for source, target in pairs.items()]
    return [*kept, *_ablation(plan)]


def check_attacks(plan: Plan) -> None:
    """MaceError where a task's attacks are not recorded: there is one table, of one task."""
    if plan.task.name != f"{WORLDS[0]}-{ATTACKED}":
        raise MaceError(f"The attacks on {plan.name} are not recorded, only those on {ATTACKED}: leave out --record.")


def record_attacks(path: Path) -> Path:
    """Keep the table of a task's attacks, `attacks.json`; where it is."""
    whole = results.read(path)
    return results.write(
        results.place("attacks"), *(whole[key] for key in ("command", "environment", "rows", "not_measured"))
    )


def _joined(new: Mapping[str, Any], plan: Plan) -> Path:
    """The table of all counts, this one's rows in place of earlier ones."""
    name = plan.task.name.removeprefix(f"{WORLDS[0]}-")
    place = results.place(name)
    old = results.read(place) if place.is_file() else {"environment": {}, "rows": [], "not_measured": []}
    rows = [row for row in old["rows"] if row["task"] != plan.name] + [*new["rows"]]
    left = [row for row in old["not_measured"] if row.get("task") != plan.name]
    left += [{"task": plan.name, **row} for row in new["not_measured"]]
    about = {**old["environment"], plan.name: {"command": new["command"], **new["environment"]}}
    rows.sort(key=lambda row: int((re.findall(r"\d+$", row["task"]) or [0])[0]))  # by count
    return results.write(place, f"mace compare --task {name}-COUNT --record", about, rows, left)


def _ablation(plan: Plan) -> list[Path]:
    """MACE beside what is left of it without a part; nothing where this task is not one of those."""
    there = [name for name in ABLATED if results.place(name).is_file()]
    if plan.name not in there:
        return []
    rows, left, about, commands = [], [], {}, []
    for name in there:
        whole = results.read(results.place(name))
        about[name] = whole["environment"]
        commands.append(whole["command"])
        rows += _own(whole["rows"])
        left += [{"task": name, **row} for row in _own(whole["not_measured"])]
    return [results.write(results.place("ablation"), "; ".join(commands), about, rows, left)]


def _own(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the original and of MACE and its ablations; `method` may be followed by its settings."""
    names = ((row, row["method"].partition(" ")[0]) for row in rows)
    return [
        dict(row) for row, name in names if name in ("original", "mace") or (name.startswith("mace-") and name != BEST)
    ]
