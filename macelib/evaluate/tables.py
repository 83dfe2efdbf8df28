"""From one row per picture to the tables of an evaluation, with intervals over concepts and seeds, crossed."""

import dataclasses
import html
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import MaceError
from ..files import atomic, write_json
from .metrics import Resampling
from .numbers import Cells, Number, combined

log = logging.getLogger(__name__)
TIMES = 2000  # bootstrap samples
SEED = 0  # of the bootstrap


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Tidy tables of a protocol's run; printing it shows `table()`."""

    images: pd.DataFrame  # a row per picture: erased, model, role, name, word, prompt, seed, group, found, value
    concepts: pd.DataFrame  # a row per erasure, model and name: value, low, high, images, unrecognised
    metrics: pd.DataFrame  # a row per erasure, model and metric: value, low, high (95 %), images
    groups: pd.DataFrame  # a row per erasure, model, metric and seed group: value
    settings: dict  # model, classifier, seeds, templates, steps, guidance, ...

    def table(self) -> pd.DataFrame:
        """A row per erasure and model, a column per metric; the last two are the interval of the combined metric."""
        order = list(dict.fromkeys(zip(self.metrics.erased, self.metrics.model, strict=True)))
        names = list(dict.fromkeys(self.metrics.metric))
        by = self.metrics.set_index(["erased", "model", "metric"])
        wide = by.value.unstack("metric").loc[order, names]
        for end in ("low", "high"):
            wide[f"{names[-1]} {end}"] = by[end].unstack("metric").loc[order, names[-1]]
        return wide.rename_axis(columns=None)

    def value(self, metric: str, erased: str | None = None, model: str = "erased") -> float:
        """One number; of the last erasure (their mean, where there are several) unless named."""
        erased = self.metrics.erased.iloc[-1] if erased is None else erased
        return float(self.table().loc[(erased, model), metric])

    def verdict(self, erased: str | None = None) -> str:
        """The objects protocol in a sentence; of the last erasure unless named."""
        erased = self.metrics.erased.iloc[-1] if erased is None else erased
        now, before = (self.table().loc[(erased, model)].round(0).astype(int) for model in ("erased", "original"))
        whose = "their" if " + " in erased else "its"
        return (
            f"{erased}: seen in {now.Acc_e} % of {whose} pictures (before: {before.Acc_e} %), under other names in "
            f"{now.Acc_g} % ({before.Acc_g} %); what is meant to stand in {whose} place in {now.Acc_a} %; everything "
            f"else in {now.Acc_s} % ({before.Acc_s} %)."
        )

    def to_dict(self) -> dict:
        """{erased: {model: {metric: {value, low, high}}}}, for `results.record`."""
        nested: dict = {}
        for row in self.metrics.itertuples():
            numbers = {"value": row.value, "low": row.low, "high": row.high}
            nested.setdefault(row.erased, {}).setdefault(row.model, {})[row.metric] = numbers
        return nested

    def save(self, folder: str | Path) -> "Evaluation":
        """Write images.csv, concepts.csv, metrics.csv, groups.csv and settings.json; tables of others are replaced.

        That is said.
        """
        before, settings = _settings(Path(folder) / "settings.json"), json.loads(json.dumps(self.settings))
        if before is not None and before != settings:
            log.warning("%s held tables of another erasure or other settings: they are replaced.", folder)
        tables = {name: getattr(self, name) for name in ("images", "concepts", "metrics", "groups")}
        save_tables(folder, self.settings, **tables)
        return self

    @property
    def caption(self) -> str:
        """Which settings the erasures were made with."""
        return f"Settings: {self.settings.get('preset', 'unknown')}."

    def __str__(self) -> str:
        return f"{self.table().round(1).to_string()}\n{self.caption}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self.table().round(1).to_html()}<p>{html.escape(self.caption)}</p>"


def save_tables(folder: str | Path, settings: dict, **tables: pd.DataFrame) -> None:
    """Write every table as `name`.csv, and settings.json."""
    for name, table in tables.items():
        with atomic(Path(folder) / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    write_json(Path(folder) / "settings.json", settings)


def _settings(path: Path) -> dict | None:
    """What settings.json holds; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def taken_anew(sizes: Sequence[int], seeds: int) -> Resampling | None:
    """Which concepts of each set, and which seeds, a bootstrap takes anew; None where there is one of each alone."""
    try:
        return Resampling.of(sizes, seeds, TIMES, SEED)
    except MaceError:
        return None


def evaluation(protocol, rows: Sequence[dict], settings: dict, mean: bool = True) -> Evaluation:
    """Tables from rows of pictures; `protocol` says what the roles' means are called and how they combine.

    Intervals are over concepts and seeds, crossed, those of a mean over erasures and seeds. mean: several erasures are
    told together, too.
    """
    images = pd.DataFrame(rows)
    told = {role: metric for role, metric in protocol.beside.items() if role in set(images.role)}
    protocol, seeds = dataclasses.replace(protocol, beside=told), [*images.seed.unique()]
    concepts, metrics, groups, every = [], [], [], {}
    for (erased, model), part in images.groupby(["erased", "model"], sort=False):
        at = {"erased": erased, "model": model}
        kept = part.role == "kept"
        names = part[~kept]["name"].unique(), part[kept]["name"].unique()
        taken = taken_anew([len(some) for some in names if len(some)], len(seeds))
        cells = {}
        for role in _roles(protocol):
            which = int(role == "kept" and len(names[0]) > 0)
            cells[role] = _cells(protocol, part[part.role == role], names[role == "kept"], seeds, which)
            every.setdefault(model, {}).setdefault(role, []).append(cells[role])
        for metric, used, function in _functions(protocol):
            number = combined(function, [cells[role] for role in used], taken)
            metrics.append(at | {"metric": metric, **_scaled(protocol, number)})
        for group, of_group in part.groupby("group"):
            shown = {role: of_group[of_group.role == role].value.mean() for role in _roles(protocol)}
            for metric, used, function in _functions(protocol):
                value = protocol.scale * float(function(*(shown[role] for role in used)))
                groups.append(at | {"metric": metric, "group": group, "value": value})
        for (role, name), of_name in part.groupby(["role", "name"], sort=False):
            number = _cells(protocol, of_name, [name], seeds).mean(taken_anew([1], len(seeds)))
            numbers = _scaled(protocol, number)
            if protocol.scale != 1:
                numbers["unrecognised"] = int(of_name.found.isna().sum())
            concepts.append(at | {"role": role, "name": name} | numbers)
    if mean and (count := images.erased.nunique()) > 1:
        taken = taken_anew([count], len(seeds))
        for model, roles in every.items():
            cells = {role: _stacked(some) for role, some in roles.items()}
            for metric, used, function in _functions(protocol):
                number = combined(function, [cells[role] for role in used], taken, each=True)
                at = {"erased": f"mean of {count}", "model": model, "metric": metric}
                metrics.append(at | _scaled(protocol, number))
    return Evaluation(images, *map(pd.DataFrame, (concepts, metrics, groups)), settings)


def _cells(protocol, rows: pd.DataFrame, names: Sequence[str], seeds: Sequence[int], which: int = 0) -> Cells:
    """Sums by name and seed; the original model's pictures are the same for every erasure."""
    whose = rows.erased.where(rows.model != "original", "")
    return Cells.of(rows.assign(key=rows["name"], training=0, model=whose), names, seeds, which, protocol.scale != 1)


def _stacked(several: Sequence[Cells]) -> Cells:
    """A row per erasure in place of its names."""
    hits, counts = (np.stack([getattr(cells, of).sum(0) for cells in several]) for of in ("hits", "counts"))
    return Cells(0, hits, counts, several[0].proportion, frozenset().union(*(cells.pictures for cells in several)))


def _roles(protocol) -> dict[str, str]:
    """Metric by role, of those that are told and not combined, too."""
    return {**protocol.roles, **protocol.beside}


def _functions(protocol):
    """(metric, roles it reads, function of their means)."""
    for role, metric in _roles(protocol).items():
        yield metric, [role], _same
    yield protocol.combined, list(protocol.roles), protocol.combine


def _same(mean):
    return mean


def _scaled(protocol, number: Number) -> dict:
    """Value and interval as tables show them, and of how many different pictures."""
    low, high = number.interval
    scaled = {"value": number.value, "low": low, "high": high}
    return {name: protocol.scale * float(value) for name, value in scaled.items()} | {"images": number.n}
