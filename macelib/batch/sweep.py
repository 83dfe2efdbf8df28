"""Sweeps: a YAML file that says which notebook is run with which values.

    notebook: ../06_erase_and_evaluate.ipynb   # relative to this file
    name: lambda-rank                          # folder of the runs; the file's name by default
    parameters: {images: 20}                   # the same for all runs
    grid: {lambda1: [0.1, 1.0], rank: [1, 4]}  # every combination
    zip: {t1: [100, 200], t2: [300, 400]}      # side by side: lists of one length
    list: [{steps: 20, lr: 0.001}, {steps: 50, lr: 0.0005}]  # one by one
    seeds: 3                                   # repeats: 0, 1, 2; or a list; the parameter is `seed`

Parts that are there multiply: grid x zip x list x seeds.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MaceError
from ..reading import Where, located, read_data
from .parameters import unknown

FIELDS = ("name", "notebook", "parameters", "grid", "zip", "list", "seeds")
SEED = "seed"
LONGEST, MOST = 200, 100_000  # bytes of a name, which is a folder's; runs of a sweep


@dataclass(frozen=True)
class Sweep:
    """What is to be run: values given for each run, in order."""

    name: str
    notebook: Path
    runs: tuple[dict[str, Any], ...]


def read_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """Read a sweep file; `overrides` replace a parameter wherever it stands. MaceError: field and what is allowed."""
    path = Path(path)
    values, where = read_data(path, "sweep")
    if not isinstance(values, dict):
        raise MaceError(f"The sweep {path} is {values!r}; allowed: a mapping with {', '.join(FIELDS)}.")
    for name in values:
        if name not in FIELDS:
            raise MaceError(f"{where(str(name))}: " + unknown(name, FIELDS, "a field of a sweep"))
    if not isinstance(values.get("notebook"), str):
        raise MaceError(f"{where('notebook')}: notebook is {values.get('notebook')!r}; allowed: a path from the sweep.")
    with located(where("name")):
        name = check_name(values.get("name", path.stem))
    runs = [{**run, **(overrides or {})} for run in expand(values, where)]
    return Sweep(name, (path.parent / values["notebook"]).resolve(), tuple(runs))


def check_name(name: Any) -> str:
    """The name of a sweep, which is that of a folder."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > LONGEST:
        raise MaceError(
            f"The sweep's name is {name!r}; allowed: letters, digits, dots, dashes and underscores, {LONGEST} bytes."
        )
    return name


def expand(values: Mapping[str, Any], where: Where = lambda _: "the sweep") -> list[dict[str, Any]]:
    """Values given for every run: grid x zip x list x seeds, the last one fastest. where: the place of a field.

    MaceError: field and what is allowed; more than MOST runs, before they are made.
    """
    common = _mapping(values.get("parameters"), "parameters", where)
    grid = {name: _list(v, f"grid.{name}", where) for name, v in _mapping(values.get("grid"), "grid", where).items()}
    side = {name: _list(v, f"zip.{name}", where) for name, v in _mapping(values.get("zip"), "zip", where).items()}
    if len({len(v) for v in side.values()}) > 1:
        lengths = ", ".join(f"{name} {len(v)}" for name, v in side.items())
        raise MaceError(f"{where('zip')}: zip needs lists of one length, and these have {lengths}.")
    rows = _list(values["list"], "list", where) if values.get("list") is not None else [{}]
    rows = [_mapping(row, f"list[{i}]", where) for i, row in enumerate(rows)]
    seeds = _seeds(values.get("seeds"), where)
    named = {"parameters": common, "grid": grid, "zip": side, "list": {n for r in rows for n in r}, "seeds": seeds[0]}
    for (one, here), (two, there) in itertools.combinations(named.items(), 2):
        if both := sorted(set(here) & set(there)):
            raise MaceError(f"{where(two)}: {', '.join(both)} stands in {one} and in {two}: keep one.")
    count = math.prod([*map(len, grid.values()), max(map(len, side.values()), default=1), len(rows), len(seeds)])
    if count > MOST:
        raise MaceError(f"{where('grid')}: {count:,} runs; allowed: {MOST:,}. Make the sweep smaller.")
    combinations = [dict(zip(grid, c, strict=True)) for c in itertools.product(*grid.values())]
    pairs = [dict(zip(side, c, strict=True)) for c in zip(*side.values(), strict=True)] if side else [{}]
    parts = itertools.product(combinations, pairs, rows, seeds)
    return [{**common, **a, **b, **c, **d} for a, b, c, d in parts]


def _mapping(value: Any, name: str, where: Where) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MaceError(f"{where(name)}: {name} is {value!r}; allowed: a mapping from parameters to values.")
    return value


def _list(value: Any, name: str, where: Where) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise MaceError(f"{where(name)}: {name} is {value!r}; allowed: a list with something in it.")
    return value


def _seeds(value: Any, where: Where) -> list[dict[str, int]]:
    """One mapping per repeat."""
    if value is None:
        return [{}]
    whole = [value] if isinstance(value, int) else value if isinstance(value, list) else [None]
    if not whole or any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in whole) or value == 0:
        raise MaceError(f"{where('seeds')}: seeds is {value!r}; allowed: how many, or a list of whole numbers.")
    if whole[0] > MOST and isinstance(value, int):
        raise MaceError(f"{where('seeds')}: seeds is {value!r}; allowed: up to {MOST:,}.")
    return [{SEED: seed} for seed in (range(value) if isinstance(value, int) else value)]
