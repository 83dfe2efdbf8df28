"""Tables of results as files, checked where they are written and where they are read.

A file is {"command", "environment", "rows", "not_measured"}. Every row has a task, a method, its settings, a metric,
mean, low and high (finite, low ≤ mean ≤ high; of a unit "%" within 0..100), and n, of how many. What there is no number
for is in "not_measured", with the reason. The tables of `data/studies` are read as such rows, too.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import MaceError, unknown
from ..files import data_folder, write_json

TEXTS, NUMBERS = ("task", "method", "settings", "metric"), ("mean", "low", "high")
REASONS = ("method", "metric", "why")


def folder() -> Path:
    """Where results are kept: a file by task, and `tuned.yaml`."""
    return data_folder() / "results"


def place(name: str) -> Path:
    """The file that keeps the results of a task."""
    return folder() / f"{name}.json"


def recorded() -> list[str]:
    """Names of the tasks whose results are kept."""
    return sorted(path.stem for path in folder().glob("*.json"))


def write(
    path: str | Path,
    command: str,
    environment: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    not_measured: Sequence[Mapping[str, Any]],
) -> Path:
    """Write one file, atomically; MaceError for a row that is not as the file's form says."""
    whole = {"command": command, "environment": dict(environment), "rows": list(rows)}
    check(whole | {"not_measured": list(not_measured)}, path)
    return write_json(path, whole | {"not_measured": list(not_measured)}, allow_nan=False)


def read(path: str | Path) -> dict[str, Any]:
    """One file; MaceError where it is missing, damaged, or holds a row that says nothing."""
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaceError(f"{path} cannot be read ({error}): make it again, or restore it.") from error
    return check(whole, path)


def of(name: str) -> dict[str, Any]:
    """The results of a task, or of a study in `data/studies`; MaceError that lists near names where there are none."""
    if place(name).is_file():
        return read(place(name))
    studies = {path.parent.name: path for path in sorted((data_folder() / "studies").glob("*/metrics.csv"))}
    if name in studies:
        return study(studies[name].parent)
    tables = [known for known, path in studies.items() if not _tried(pd.read_csv(path, nrows=0))]
    raise unknown("result", name, [*recorded(), *tables])


def study(path: str | Path) -> dict[str, Any]:
    """The tables in a study's folder as a results file: the method is "original", or "mace" with its settings.

    MaceError: no such tables; settings that were tried, of which there are points in place of results.
    """
    path = Path(path)
    try:
        settings = json.loads((path / "settings.json").read_text(encoding="utf-8"))
        table = pd.read_csv(path / "metrics.csv")
        if _tried(table):
            raise MaceError(f"{path} holds settings that were tried, not results: evaluate.record.markdown shows them.")
        rows = [_of_study(path.name, line, settings.get("preset", "unknown")) for line in table.to_dict("records")]
    except (OSError, ValueError, LookupError) as error:
        raise MaceError(f"{path} holds no tables of a study ({error!r}): record it again.") from error
    whole = {"command": f"mace study {path.name}", "environment": settings, "rows": rows, "not_measured": []}
    return check(whole, path)


def _tried(table: pd.DataFrame) -> bool:
    """Whether a study's table is one of settings that were tried."""
    return "chosen" in table


def _of_study(name: str, line: Mapping[str, Any], preset: str) -> dict[str, Any]:
    erased = line.get("erased", line.get("erasure"))
    beside = {key: line[key] for key in ("order", "kept") if key in line}  # pairs; names to keep
    method = "original" if line.get("model") == "original" else "mace"
    about = {"task": name, "method": method, "settings": "" if method == "original" else preset, "erased": erased}
    number = line["difference"] if "difference" in line else line["value"]
    ends = (line["low"], line["high"]) if line["low"] <= line["high"] else (number, number)  # none: nothing to compare
    count = next(line[key] for key in ("images", "pictures") if key in line)
    metric = "difference" if "difference" in line else line["metric"]
    return about | beside | {"metric": metric, "mean": number, "low": ends[0], "high": ends[1], "n": int(count)}


def check(whole: Any, where: str | Path) -> dict[str, Any]:
    """The same; MaceError names the file and the row that is not as it should be."""
    try:
        for key, kind in (("command", str), ("environment", dict), ("rows", list), ("not_measured", list)):
            if not isinstance(whole, dict) or not isinstance(whole.get(key), kind):
                raise MaceError(f"{key} is missing, or of another kind than it should be.")
        for number, row in enumerate(whole["rows"], 1):
            if problem := _problem(row):
                raise MaceError(f"row {number} ({row.get('method')}, {row.get('metric')}): {problem}.")
        for number, row in enumerate(whole["not_measured"], 1):
            if missing := [key for key in REASONS if not isinstance(row.get(key), str) or not row[key]]:
                raise MaceError(f"not_measured, row {number}: {', '.join(missing)} is missing.")
    except (MaceError, AttributeError, TypeError) as error:
        raise MaceError(f"{where} holds no results: {error}") from error
    return whole


def _problem(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row; None where nothing is."""
    if missing := [key for key in TEXTS if not isinstance(row.get(key), str)]:
        return f"{', '.join(missing)} is missing"
    numbers = [row.get(key) for key in NUMBERS]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        return "mean, low and high must be finite numbers"
    mean, low, high = numbers
    if not low <= mean <= high:
        return f"low ≤ mean ≤ high does not hold for {low:g}, {mean:g}, {high:g}"
    if row.get("unit") == "%" and not (low >= 0 and high <= 100):
        return f"{low:g} to {high:g} is not within 0 to 100 percent"
    count = row.get("n")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return f"n is {count!r}: what nothing was measured for belongs to not_measured"
    return None
