"""From one row per picture to the tables of an evaluation, with bootstrap intervals."""

import dataclasses
import html
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import atomic, write_json
from .metrics import bootstrap, interval, resample, standing, widened, wilson

log = logging.getLogger(__name__)
TIMES = 2000  # bootstrap samples
SEED = 0  # of the bootstrap


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Tidy tables of a protocol's run; printing it shows `table()`."""

    images: pd.DataFrame  # a row per picture: erased, model, role, name, word, prompt, seed, draw, group, found, value
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


def evaluation(protocol, rows: Sequence[dict], settings: dict, mean: bool = True) -> Evaluation:
    """Tables from rows of pictures; `protocol` says what the roles' means are called and how they combine.

    mean: several erasures are told together, too.
    """
    images = pd.DataFrame(rows)
    told = {role: metric for role, metric in protocol.beside.items() if role in set(images.role)}
    protocol = dataclasses.replace(protocol, beside=told)
    weights = resample(int(images.draw.max()) + 1, TIMES, SEED)
    concepts, metrics, groups, samples = [], [], [], {}
    for (erased, model), part in images.groupby(["erased", "model"], sort=False):
        at = {"erased": erased, "model": model}
        roles = {role: _draws(part[part.role == role]) for role in _roles(protocol)}
        ends = {role: _ends(protocol, part[part.role == role].value) for role in _roles(protocol)}
        asked = dict.fromkeys(role for _, used, _ in _functions(protocol) for role in used)
        means = {role: bootstrap([roles[role]], _same, weights) for role in asked}
        still_ones = {role: ends[role] if np.ptp(sample) < 1e-12 else None for role, (_, sample) in means.items()}
        for metric, used, function in _functions(protocol):
            value, sample = bootstrap([roles[role] for role in used], function, weights)
            corners = [float(function(*corner)) for corner in product(*(ends[role] for role in used))]
            fixed = min(corners), max(corners)
            still = standing(function, [means[role][0] for role in used], [still_ones[role] for role in used])
            samples.setdefault((model, metric), []).append((value, sample, fixed, still))
            count = int(part.role.isin(used).sum())
            metrics.append(at | {"metric": metric, **_scaled(protocol, value, sample, fixed, still), "images": count})
        for group, of_group in part.groupby("group"):
            shown = {role: of_group[of_group.role == role].value.mean() for role in _roles(protocol)}
            for metric, used, function in _functions(protocol):
                value = protocol.scale * float(function(*(shown[role] for role in used)))
                groups.append(at | {"metric": metric, "group": group, "value": value})
        for (role, name), of_name in part.groupby(["role", "name"], sort=False):
            value, sample = bootstrap([_draws(of_name)], _same, weights)
            numbers = _scaled(protocol, value, sample, _ends(protocol, of_name.value)) | {"images": len(of_name)}
            if protocol.scale != 1:
                numbers["unrecognised"] = int(of_name.found.isna().sum())
            concepts.append(at | {"role": role, "name": name} | numbers)
    if mean and (count := images.erased.nunique()) > 1:
        for (model, metric), several in samples.items():  # the mean over the erasures, draw by draw
            value, sample, fixed, still = (np.mean(column, axis=0) for column in zip(*several, strict=True))
            at = {"erased": f"mean of {count}", "model": model, "metric": metric}
            used = [m["images"] for m in metrics if (m["model"], m["metric"]) == (model, metric)]
            metrics.append(at | _scaled(protocol, float(value), sample, fixed, still) | {"images": sum(used)})
    return Evaluation(images, *map(pd.DataFrame, (concepts, metrics, groups)), settings)


def _draws(part: pd.DataFrame) -> np.ndarray:
    """Mean over the prompts of every draw: (draws,); where pictures are left out (NaN), sums and counts: (2, draws)."""
    values = part.groupby("draw").value
    if part.value.isna().any():
        return np.stack([values.sum().sort_index(), values.count().sort_index()]).astype(float)
    return values.mean().sort_index().to_numpy()


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


def _ends(protocol, values: pd.Series) -> tuple[float, float]:
    """Interval of a mean where no draw differs: Wilson's, of the pictures, for a proportion; else the mean itself."""
    mean = float(values.mean())
    return (mean, mean) if protocol.scale == 1 else wilson(float(values.sum()), int(values.count()))


def _scaled(protocol, value: float, sample: np.ndarray, fixed: tuple[float, float], still=(0.0, 0.0)) -> dict:
    """Value and interval as tables show them; fixed: the interval where the bootstrap finds no variation.

    still: what a part of it that does not vary adds to the interval, as `standing` says.
    """
    limits = (-np.inf, np.inf) if protocol.scale == 1 else (0.0, 1.0)
    low, high = fixed if np.ptp(sample) < 1e-12 else widened(value, interval(sample), still, limits)
    return {"value": protocol.scale * value, "low": protocol.scale * float(low), "high": protocol.scale * float(high)}
