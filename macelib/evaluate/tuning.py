"""Settings chosen on names that no protocol asks for: every point of a grid is erased and measured, the best is taken.

MACE's grid is a file that is written before the first point is run: `alone`, settings with which some concepts are
erased one by one, `together`, settings for many concepts beside as many names to keep, and `cheaper`, settings that
take less time than the first of `alone`, the cheapest first: what changes nothing is enough. Another method's grid is
its own (`Method.grid`), of which no more points are tried than MACE's has.
"""

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..baselines import Edit, build, method, tunable
from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError
from ..files import hash_text, name_of, read_checked, write_checked
from ..models.families import family_of
from ..models.swap import base_hash
from ..reading import build_settings, located, placed, read_data
from . import protocols
from .classifiers import classifier_for, plugged
from .lists import tuning_lists
from .made import made_with
from .pictures import Drawing
from .tables import Evaluation
from .work import Progress, check_seeds

MOST = 24  # points of a grid
KINDS = {"alone": "object", "together": "celebrity"}  # by list: the kind of task that its settings are for
STANDS_IN = "object"  # whose settings a kind takes that no names are set apart for: the preset "best" does so, too
DRAWING = {f.name for f in dataclasses.fields(Drawing)}
# list, concepts, names to keep, point, label -> an erasure or an edit
Make = Callable[[str, Sequence[Concept], Sequence[str], dict[str, Any], str], Any]

# list, concepts, names to keep, point -> the settings, as JSON
Asked = Callable[[str, Sequence[Concept], Sequence[str], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Grid:
    """Points that are tried: settings of a method as in a settings file, each a change of what it starts from."""

    few: int = 6  # concepts that are erased one by one
    many: int = 60  # concepts that are erased together, beside as many names to keep (`tuning_lists`)
    alone: tuple[dict, ...] = field(default=())
    together: tuple[dict, ...] = field(default=())
    cheaper: tuple[dict, ...] = field(default=())
    method: str = "mace"  # whose settings

    def __post_init__(self):
        if not 1 <= len(self.points()) <= MOST:
            raise MaceError(f"A grid has 1 to {MOST} points, not {len(self.points())}.")
        if self.cheaper and not (self.alone and self.method == "mace"):
            raise MaceError("cheaper is MACE's, and compared with the first point of alone: give one, such as {}.")
        if self.few < 1 or self.many < 2:
            raise MaceError(f"few is {self.few!r} and many is {self.many!r}; allowed: 1 or more, and 2 or more.")
        settings = method(self.method).settings
        if settings is EraseConfig and self.method != "mace":
            raise MaceError(f"method is {self.method!r}, whose settings are MACE's: tune mace.")
        for how, number, point in self.points():
            if point in getattr(self, how)[: number - 1]:
                raise MaceError(f"{how}[{number - 1}]: the point {json.dumps(point)} stands there twice: keep one.")
            with located(f"{how}[{number - 1}]"):
                EraseConfig.from_dict(point) if settings is EraseConfig else build_settings(settings, point)

    def points(self) -> list[tuple[str, int, dict[str, Any]]]:
        """(alone, together or cheaper, number from 1, settings) of every point."""
        lists = ("alone", self.alone), ("together", self.together), ("cheaper", self.cheaper)
        return [(how, i, point) for how, points in lists for i, point in enumerate(points, 1)]

    def label(self, how: str, number: int) -> str:
        """What a point is called."""
        return f"{how} {number}" if self.method == "mace" else f"{self.method} {how} {number}"

    @classmethod
    def load(cls, path: str | Path) -> "Grid":
        """Read a YAML or JSON file; MaceError names file, line, point or field, and what is allowed."""
        values, where = read_data(path, "grid")
        with placed(where):
            return build_settings(cls, {} if values is None else values)


def trials(name: str, like: Grid, lists: Sequence[str] = tuple(KINDS)) -> Grid:
    """The grid of a method on the names of another grid, with at most as many points as that has in each list.

    MaceError: a method that has nothing to choose, or MACE, whose grid is a file.
    """
    if name not in tunable():
        has = "its grid is a file, --grid" if method(name).settings is EraseConfig else "it has no such settings"
        raise MaceError(f"{name} has nothing to tune here: {has}. There are {', '.join(tunable())}.")
    points = {how: tuple(method(name).trials(KINDS[how], len(getattr(like, how)))) for how in lists}
    return dataclasses.replace(like, method=name, cheaper=(), **({how: () for how in KINDS} | points))


@dataclass(frozen=True)
class Tuning:
    """A row per point, and what is chosen; printing it shows `metrics`."""

    # erased (see `Grid.points`), point, settings, Acc_e, Acc_s, Acc_a, H_c, low, high, seconds (to make), why (there
    # are no numbers), chosen
    metrics: pd.DataFrame
    settings: dict

    def __str__(self) -> str:
        return f"{self.metrics.round(1).to_string(index=False)}\nSettings: {self.settings['preset']}."


def tune(
    pipe,
    folder: str | Path,
    grid: Grid,
    make: Make,
    asked: Asked,
    *,
    seeds: Sequence[int] = range(3),
    minutes: float | None = None,
    progress: Progress | None = None,
    **options,
) -> Tuning:
    """Erase and measure every point of a grid on the names that settings are chosen on (`tuning_lists`).

    Acc_e, Acc_s, Acc_a and H_c are those of `characters`, in two prompts; `alone`: their mean over the first `few`
    names, beside the first `many` to keep, of which the method is not told. The highest H_c of each list is chosen, the
    first of equal ones; of `cheaper`, measured as `alone`, the first whose H_c is not below the interval of alone's
    first point. A point that the method refuses has no numbers. Points that are measured are kept in `folder`,
    pictures, too.

    make: erases by a point. asked: all settings that it does so with, as JSON: a point is measured anew where they
    changed. minutes: no further point of a list begins when making those before it took so long; 0 or more. options:
    of `characters`.
    """
    check_seeds(len(seeds))
    check_minutes(minutes)
    folder, family = Path(folder), family_of(pipe)
    concepts, kept = tuning_lists(grid.many, family)
    if grid.few > len(concepts):
        raise MaceError(f"few is {grid.few}; allowed: up to many, {grid.many}.")
    who = options.pop("classifier", None)
    options["classifier"] = classifier_for(pipe) if who is None else plugged(who)
    common = {"templates": protocols.TUNING_TEMPLATES, "seeds": seeds, "folder": folder / "evaluation", **options}
    drawing = Drawing(**{name: value for name, value in options.items() if name in DRAWING})
    about = [drawing.about(pipe), made_with(pipe, [], options["classifier"]), [*seeds], protocols.TUNING_TEMPLATES]
    rows, settings, spent = [], {}, defaultdict(float)
    for how, number, point in grid.points():
        if minutes is not None and spent[how] > 60 * minutes:
            continue
        label, single = grid.label(how, number), how != "together"
        lists = [[c] for c in concepts[: grid.few]] if single else [concepts]
        told = [] if single else kept
        wanted = [[[c.name for c in some], asked(how, some, told, point)] for some in lists]
        if single and (both := {*kept} & {name for _, values in wanted for name in values.get("companions") or ()}):
            raise MaceError(
                f"companions has {min(both)}, a name that settings are measured on: leave it out of {label}."
            )
        key = hash_text(json.dumps([about, point, wanted, kept], default=str), method(grid.method).code)
        place = folder / "points" / f"{name_of(label)}.json"
        if (found := _read(place, key)) is None:
            found = {"key": key, **_measured(pipe, make, how, lists, told, kept, point, label, progress, common)}
            if "settings" in found:
                write_checked(place, json.loads(json.dumps(found, default=str)))
        settings = found.get("settings", settings)
        spent[how] += found["row"].get("seconds", 0.0)
        rows.append({"erased": how, "point": number, "settings": json.dumps(point), **found["row"]})
    metrics = pd.DataFrame(rows)
    if not settings:
        raise MaceError(f"{grid.method} refuses every point. Of the first: {metrics.why[0]}")
    metrics["chosen"] = metrics.index.isin(_best(metrics.dropna(subset=["H_c"])))
    about = {"grid": {"few": grid.few, "many": grid.many}}
    about["grid"] |= {name: [*getattr(grid, name)] for name in ("alone", "together", "cheaper")}
    names = {"erased_names": [c.name for c in concepts], "kept_names": kept, "method": grid.method}
    return Tuning(metrics, settings | about | names)


def tuned_kind(kind: str) -> str:
    """The kind of task whose tuned settings are taken for a kind: its own, or that of objects."""
    return kind if kind in KINDS.values() else STANDS_IN


def check_minutes(minutes: float | None) -> None:
    """MaceError for less time than none."""
    if minutes is not None and not minutes >= 0:
        raise MaceError(f"minutes is {minutes!r}; allowed: 0 or more.")


def _best(metrics: pd.DataFrame) -> list[int]:
    """Rows of what is chosen: see `tune`."""
    first = metrics[(metrics.erased == "alone") & (metrics.point == 1)]
    cheaper = metrics[metrics.erased == "cheaper"]
    enough = [*cheaper.index[cheaper.H_c >= first.low.iloc[0]]] if len(first) else []
    return [*metrics.drop(cheaper.index).groupby("erased").H_c.idxmax(), *enough[:1]]


def _measured(pipe, make: Make, how, lists, told, kept, point, label: str, progress, common: dict) -> dict[str, Any]:
    """A point's numbers and the settings that they were taken with; why there are none, where the method refuses."""
    erasures, seconds = [], 0.0
    for some in lists:
        began = time.perf_counter()
        try:
            made = make(how, some, told, point, label if how == "together" else f"{label} {some[0].name}")
        except MaceError as error:
            if isinstance(error.__cause__, OSError):  # the disk's fault, not the method's
                raise
            return {"row": {"why": str(error)}}
        seconds += getattr(made, "report", {}).get("seconds", time.perf_counter() - began)
        erasures.append(made)
    said = None if progress is None else _said(progress, label)
    result = protocols.characters(pipe, erasures, kept, progress=said, **common)
    return {"row": {**_numbers(result), "seconds": seconds, "why": ""}, "settings": result.settings}


def published(name: str, how: str, point: dict[str, Any]) -> dict[str, Any]:
    """A method's published settings for a list, with a point's in their place."""
    return dataclasses.asdict(method(name).settings_for(KINDS[how])) | point


def edits(pipe, folder: str | Path, name: str, progress: Progress | None = None) -> Make:
    """What makes the edits of a method from points of its grid; those that are trained are kept, and their time."""
    chosen = method(name)

    def make(how: str, concepts, kept, point: dict[str, Any], label: str) -> Edit:
        path = Path(folder) / "edits" / f"{name_of(label)}-{hash_text(chosen.code)[:8]}.safetensors"
        wanted = published(name, how, point)
        if chosen.trains and path.is_file():
            edit = Edit.load(path)
            if (edit.base, edit.settings, edit.concepts) == (base_hash(pipe), wanted, [*concepts]):
                return edit
        began = time.perf_counter()
        said = _said(progress, label) if progress else None
        edit = build(pipe, concepts, name, point, task=KINDS[how], kept=kept, progress=said)
        report = edit.report | {"seconds": time.perf_counter() - began}
        edit = dataclasses.replace(edit, report=report)
        if chosen.trains:
            edit.save(path)
        return edit

    return make


def _read(place: Path, key: str) -> dict[str, Any] | None:
    """A point that was measured; None where it is missing, damaged, or of something else."""
    try:
        found = read_checked(place)
        return found if found["key"] == key and found["row"]["H_c"] is not None else None
    except (MaceError, LookupError, TypeError):
        return None


def _numbers(result: Evaluation) -> dict[str, float]:
    """The erased model's metrics, of several erasures their mean, and the interval of the last."""
    row = result.table().xs("erased", level="model").iloc[-1]
    return {name.replace("H_c ", ""): float(value) for name, value in row.items()}


def _said(progress: Progress, label: str) -> Progress:
    return lambda stage, done, total, detail: progress(f"{label}: {stage}", done, total, detail)


def changed(config: EraseConfig, point: dict[str, Any]) -> EraseConfig:
    """The settings with a point's in their place."""
    values = config.to_dict()
    for name, value in point.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return EraseConfig.from_dict(values)
