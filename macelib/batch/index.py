"""Index of a sweep: one row per run with its parameters and metrics, as a data frame and CSV.

The columns hold nothing that depends on when, where or in which order the runs were made, so that a sweep that was
killed and resumed has the same index as one that was not.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import MaceError
from ..reading import flatten
from .runs import ENDED, METRICS, ROOT, STATUS, SWEEP, read_json, read_runs, state, write_text

log = logging.getLogger(__name__)
OWN = ("run", "status", "error")  # columns of every index; what has such a name is called parameter. or metric.
ABOUT = ("config", "environment", "settings", "seconds")  # entries of metrics.json that are no results


def find(name: str | Path, root: str | Path = ROOT) -> Path:
    """Folder of a sweep given by name, by its YAML file or as a path. MaceError lists those that there are."""
    root, path = Path(root), Path(name)
    if path.suffix in (".yaml", ".yml") and path.exists():
        from .sweep import read_sweep

        path = Path(read_sweep(path).name)
    for folder in (path, root / path):
        if (folder / SWEEP).exists():
            return folder
    there = ", ".join(sweeps(root))
    raise MaceError(f"{root} has no runs of {name}; " + (f"it has: {there}." if there else "it has no runs at all."))


def sweeps(root: str | Path = ROOT) -> dict[str, Counter]:
    """The sweeps in a folder, by name: how many runs are in which state; a damaged one has none (said)."""
    found = {}
    for path in sorted(Path(root).glob(f"*/{SWEEP}")):
        found[path.parent.name] = Counter()
        try:
            found[path.parent.name].update(state(path.parent / run["id"]) for run in read_runs(path.parent))
        except MaceError as error:
            log.warning("%s", error)
    return found


def collect(folder: str | Path, everything: bool = False) -> pd.DataFrame:
    """The runs of a sweep: run, status, parameters, metrics, error; a failed run has what it recorded before.

    `everything`: also runs of earlier versions of notebook, code or sweep file. `frame.attrs` says which columns are
    parameters ("parameters"), which of these vary ("varied"), and which are metrics ("metrics"). MaceError: a damaged
    sweep.json.
    """
    folder = Path(folder)
    listed = {run["id"]: run["parameters"] for run in read_runs(folder)}
    if everything:
        earlier = {path.parent.name: read_json(path).get("parameters") for path in folder.glob("*/run.json")}
        listed = {**{key: values for key, values in earlier.items() if isinstance(values, dict)}, **listed}
    column = lambda name: f"parameter.{name}" if name in OWN else name  # noqa: E731
    parameters = {key: {column(n): v for n, v in flatten(values).items()} for key, values in listed.items()}
    metrics = {key: _metrics(folder / key) for key in listed}
    given, measured = _names(parameters.values()), _names(metrics.values())
    alias = {name: f"metric.{name}" if name in (*given, *OWN) else name for name in measured}
    rows = []
    for key in listed:
        status = state(folder / key)
        error = read_json(folder / key / STATUS).get("error") if status == "failed" else None
        measures = {alias[name]: value for name, value in metrics[key].items()}
        rows.append({"run": key, "status": status, **parameters[key], **measures, "error": error})
    columns = ["run", "status", *given, *alias.values(), "error"]
    frame = pd.DataFrame(rows, columns=columns)
    varied = [name for name in given if len({_text(values.get(name)) for values in parameters.values()}) > 1]
    order = sorted(range(len(rows)), key=lambda i: [*(_rank(rows[i].get(n)) for n in varied), (0, 0, rows[i]["run"])])
    frame = frame.iloc[order].reset_index(drop=True)
    frame.attrs = {"parameters": given, "varied": varied, "metrics": list(alias.values())}
    return frame


def write(folder: str | Path, everything: bool = False) -> tuple[pd.DataFrame, Path, Path]:
    """Write index.csv and index.html into a sweep's folder; returns the frame and both paths."""
    from .page import page

    folder = Path(folder)
    frame = collect(folder, everything)
    write_text(folder / "index.csv", frame.to_csv(index=False))
    write_text(folder / "index.html", page(folder, frame))
    return frame, folder / "index.csv", folder / "index.html"


def _metrics(folder: Path) -> dict[str, Any]:
    """Numbers, texts and truth values that a run recorded before it ended, well or with an error."""
    if state(folder) not in ENDED:
        return {}
    recorded = {name: value for name, value in read_json(folder / METRICS).items() if name not in ABOUT}
    return {name: v for name, v in flatten(recorded).items() if not (isinstance(v, str) and v.startswith(("[", "{")))}


def _names(mappings) -> list[str]:
    """All keys: those of one level in order of appearance, sorted where runs differ in what they have."""
    each = [list(mapping) for mapping in mappings if mapping]
    if all(names == each[0] for names in each):
        return each[0] if each else []
    return sorted({name for names in each for name in names})


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _rank(value: Any) -> tuple:
    """Order of values of any type: numbers by size, then texts, then nothing."""
    if isinstance(value, (int, float)):
        return (0, value, "")
    return (2, 0, "") if value is None else (1, 0, str(value))
