"""Settings chosen on names that no protocol asks for: every point of a grid is erased and measured, the best is taken.

A grid is a file that is written before the first point is run: `alone`, settings with which some concepts are erased
one by one, and `together`, settings for many concepts beside as many names to keep.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError
from ..models.families import family_of
from ..reading import build_settings, read_data
from . import protocols
from .lists import tuning_lists
from .tables import Evaluation
from .work import Progress, check_seeds

MOST = 24  # points of a grid
Erase = Callable[[Sequence[Concept], EraseConfig, str], Any]  # concepts, settings, label -> an erasure


@dataclass(frozen=True)
class Grid:
    """Points that are tried: settings as in a settings file, each a change of the preset."""

    few: int = 6  # concepts that are erased one by one
    many: int = 60  # concepts that are erased together, beside as many names to keep
    alone: tuple[dict, ...] = field(default=())
    together: tuple[dict, ...] = field(default=())

    def __post_init__(self):
        if not 1 <= len(self.alone) + len(self.together) <= MOST:
            raise MaceError(f"A grid has 1 to {MOST} points, not {len(self.alone) + len(self.together)}.")
        if self.few < 1 or self.many < 2:
            raise MaceError(f"few is {self.few!r} and many is {self.many!r}; allowed: 1 or more, and 2 or more.")
        for how, number, point in self.points():
            if point in getattr(self, how)[: number - 1]:
                raise MaceError(f"{how} has the point {json.dumps(point)} twice.")
            EraseConfig.from_dict(point)

    def points(self) -> list[tuple[str, int, dict[str, Any]]]:
        """(alone or together, number from 1, settings) of every point."""
        lists = ("alone", self.alone), ("together", self.together)
        return [(how, i, point) for how, points in lists for i, point in enumerate(points, 1)]

    @classmethod
    def load(cls, path: str | Path) -> "Grid":
        """Read a YAML or JSON file; MaceError names file, field and what is allowed."""
        values, where = read_data(path, "grid")
        try:
            return build_settings(cls, values or {})
        except MaceError as error:
            raise MaceError(f"{where(str(error).partition(' ')[0])}: {error}") from error


@dataclass(frozen=True)
class Tuning:
    """A row per point, and what is chosen; printing it shows `metrics`."""

    metrics: pd.DataFrame  # erased ("alone", "together"), point, settings, Acc_e, Acc_s, Acc_a, H_c, low, high, chosen
    settings: dict

    def __str__(self) -> str:
        return f"{self.metrics.round(1).to_string(index=False)}\nSettings: {self.settings['preset']}."


def tune(
    pipe,
    folder: str | Path,
    grid: Grid,
    erase: Erase,
    config: EraseConfig | None = None,
    *,
    seeds: Sequence[int] = range(3),
    progress: Progress | None = None,
    **options,
) -> Tuning:
    """Erase and measure every point of a grid on the names that settings are chosen on (`tuning_lists`).

    A point is a change of `config`. Acc_e, Acc_s, Acc_a and H_c are those of `characters`, in two prompts; `alone`:
    their mean over the first `few` names, beside the first `many` to keep. The highest H_c of each list is chosen, the
    first of equal ones. Points that are measured are kept in `folder`, pictures and training images shared.
    """
    check_seeds(len(seeds))
    folder, family = Path(folder), family_of(pipe)
    concepts, kept = tuning_lists(grid.many, family)
    if grid.few > len(concepts):
        raise MaceError(f"few is {grid.few}; allowed: up to many, {grid.many}.")
    rows, result = [], None
    common = {"templates": protocols.TUNING_TEMPLATES, "seeds": seeds, "folder": folder / "evaluation", **options}
    for how, number, point in grid.points():
        settings = _changed(config or EraseConfig(), point)
        label = f"{how} {number}"
        if how == "alone":
            erasures = [erase([concept], settings, f"{label} {concept.name}") for concept in concepts[: grid.few]]
        else:
            settings = settings if settings.defaults else replace(settings, defaults="celebrity")
            beside = settings if settings.prior.domain else settings.keeping(kept, settings.prior.lambda3)
            erasures = [erase(concepts, beside, label)]
        said = None if progress is None else _said(progress, label)
        result = protocols.characters(pipe, erasures, kept, progress=said, **common)
        rows.append({"erased": how, "point": number, "settings": json.dumps(point), **_numbers(result)})
    metrics = pd.DataFrame(rows)
    best = metrics.groupby("erased").H_c.idxmax()
    metrics["chosen"] = metrics.index.isin(best)
    about = {"grid": {"few": grid.few, "many": grid.many, "alone": [*grid.alone], "together": [*grid.together]}}
    names = {"erased_names": [c.name for c in concepts], "kept_names": kept}
    return Tuning(metrics, result.settings | about | names)


def _numbers(result: Evaluation) -> dict[str, float]:
    """The erased model's metrics, of several erasures their mean, and the interval of the last."""
    row = result.table().xs("erased", level="model").iloc[-1]
    return {name.replace("H_c ", ""): float(value) for name, value in row.items()}


def _said(progress: Progress, label: str) -> Progress:
    return lambda stage, done, total, detail: progress(f"{label}: {stage}", done, total, detail)


def _changed(config: EraseConfig, point: dict[str, Any]) -> EraseConfig:
    """The settings with a point's in their place."""
    values = config.to_dict()
    for name, value in point.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return EraseConfig.from_dict(values)
