"""Tables of attacks: what comes back, with intervals, and what each attack spent."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..attacks import Result, named
from ..errors import MaceError
from . import results
from .metrics import Resampling
from .numbers import DIFFERENCE, Number, ratio, row, spread
from .tables import SEED, TIMES

RATES = {"ASR": "success", "pre-ASR": "pre"}
SPENT = {"forward": "forward passes", "backward": "backward passes", "pictures": "pictures"}
FOREIGN = f"ASR {DIFFERENCE} to foreign"
AGAINST = "mace"  # whom the others' rates are compared with
Key = tuple[str, str, str, str, str]  # attack, control, method, settings, variant


def table(result: Result, task: str = "attacks") -> list[dict[str, Any]]:
    """A row per metric of each attack, control, method, its settings and the attack's variant; rates in percent.

    ASR: (recognised before + found) / N; pre-ASR: recognised before, where something is drawn before; ASR difference
    to foreign: less that of the foreign control; ASR difference: less MACE's under the same attack; then the mean of
    what was spent, with its extremes. Intervals as in `numbers`, differences paired: with the same seeds, and between
    methods the same concepts. The tries of a search are one variant.
    """
    groups: dict[Key, list[dict]] = {}
    for line in result.rows:
        variant = "" if named(line["attack"]).search and line["control"] != "no-attack" else line["variant"]
        key = line["attack"], line["control"], line["method"], line.get("settings", ""), variant
        groups.setdefault(key, []).append(line)
    return [row for key in groups for row in _rows(groups, key, task)]


def _rows(groups: Mapping[Key, list[dict]], key: Key, task: str) -> Iterator[dict[str, Any]]:
    lines, (attack, control, method, settings, variant) = groups[key], key
    about = {"task": task, "method": method, "settings": settings}
    about |= {"attack": attack, "control": control, "variant": variant}
    about |= {"training_seeds": lines[0]["training_seeds"]} if "training_seeds" in lines[0] else {}
    seeds = len({line["seed"] for line in lines})
    rates = {metric: _rate(lines, what) for metric, what in RATES.items() if lines[0][what] is not None}
    for metric, number in rates.items():
        yield row(about, metric, number, seeds)
    strange = ((method, settings), ("original", ""))  # of the method's own, or one for all methods
    foreign = next(filter(None, (groups.get((attack, "foreign", *of, variant)) for of in strange)), None)
    if control == "none" and foreign and _axes(foreign)[1] == _axes(lines)[1]:
        yield row(about, FOREIGN, rates["ASR"].minus(_rate(foreign, "success", 1)), seeds)
    if control == "none" and method != AGAINST:
        for other in (k for k in groups if (*k[:3], k[4]) == (attack, "none", AGAINST, variant)):
            if _axes(groups[other]) == _axes(lines):
                gap = rates["ASR"].minus(_rate(groups[other], "success"))
                against = f"{AGAINST} ({other[3]})" if other[3] else AGAINST
                yield row(about, f"ASR {DIFFERENCE}", gap, seeds, against=against)
    for name, metric in SPENT.items():
        yield spread(about, metric, [line["budget"][name] for line in lines], "")
    if all("seconds" in line for line in lines):
        yield spread(about, "time, s", [line["seconds"] for line in lines], "s")


def _axes(lines: Sequence[dict]) -> tuple[list[str], list[int]]:
    """The concepts and the seeds of rows, in order."""
    return sorted({line["concept"] for line in lines}), sorted({line["seed"] for line in lines})


def _rate(lines: Sequence[dict], what: str, which: int = 0) -> Number:
    """The share of rows that show the concept; which: another number's concepts are taken anew apart from these."""
    concepts, seeds = _axes(lines)
    hits, counts = np.zeros((2, len(concepts), len(seeds)))
    at = [concepts.index(line["concept"]) for line in lines], [seeds.index(line["seed"]) for line in lines]
    np.add.at(counts, at, 1)
    np.add.at(hits, at, [float(line[what]) for line in lines])
    try:
        taken = Resampling.of([len(concepts)] * (which + 1), len(seeds), TIMES, SEED)
    except MaceError:  # one concept with one seed
        taken = None
    return ratio(hits, counts, taken, which)


def write_table(path: str | Path, result: Result, command: str, environment: Mapping[str, Any], task="attacks") -> Path:
    """The tables, and what was not measured, as JSON: {"command", "environment", "rows", "not_measured"}."""
    return results.write(path, command, environment, table(result, task), result.not_measured)
