"""Tables of attacks: what comes back, with intervals, and what each attack spent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..attacks import Result, named
from . import results
from .metrics import wilson

SPENT = {"forward": "forward passes", "backward": "backward passes", "pictures": "pictures"}


def table(result: Result, task: str = "attacks") -> list[dict[str, Any]]:
    """A row per metric of each attack, control, method and variant; rates in percent with Wilson's interval.

    ASR: (recognised before + found) / N; pre-ASR: recognised before; and the mean of what was spent, with its extremes.
    The tries of a search are one variant.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in result.rows:
        variant = "" if named(row["attack"]).search and row["control"] != "no-attack" else row["variant"]
        groups.setdefault((row["attack"], row["control"], row["method"], variant), []).append(row)
    found = []
    for (attack, control, method, variant), rows in groups.items():
        about = {"task": task, "method": method, "settings": variant, "attack": attack, "control": control}
        about |= {"n": len(rows), "concepts": len({row["concept"] for row in rows})}
        for metric, what in (("ASR", "success"), ("pre-ASR", "pre")):
            hits = sum(row[what] for row in rows)
            low, high = (100 * end for end in wilson(hits, len(rows)))
            found.append({**about, "metric": metric, "mean": 100 * hits / len(rows), "low": low, "high": high})
        for key, metric in SPENT.items():
            spent = [row["budget"][key] for row in rows]
            mean = {"mean": float(np.mean(spent)), "low": float(min(spent)), "high": float(max(spent))}
            found.append({**about, "metric": metric, **mean})
    return found


def write_table(path: str | Path, result: Result, command: str, environment: Mapping[str, Any]) -> Path:
    """The tables, and what was not measured, as JSON: {"command", "environment", "rows", "not_measured"}."""
    return results.write(path, command, environment, table(result), result.not_measured)
