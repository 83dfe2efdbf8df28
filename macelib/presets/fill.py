"""A preset's values in the settings of a run, whose concepts may be of several kinds."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..templates import PAPER_LIKE
from ..templates import fill as filled_in
from .values import Run, Values, values, weight_of

WHOLE = {"prior": ("influence",), "refine": ("rounds", "gamma"), "fuse": ("null_space",)}  # one for all of a run


@dataclass(frozen=True)
class Filled:
    """Settings of a run, and what is to be said of them."""

    config: Any  # the settings with what all kinds agree on
    rows: dict[str, Values]  # by kind, the values in which the kinds differ
    own: list[str]  # names of fields whose values are not the preset's


def into(config, chosen: Mapping[str, Any]):
    """The settings (a dataclass) with these values in their open fields, at any depth."""
    changes = {}
    for name, value in chosen.items():
        mine = getattr(config, name)
        if dataclasses.is_dataclass(mine):
            changes[name] = into(mine, value)
        elif mine is None:
            changes[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(config, **changes)


def fill(config, preset: str, kinds: Sequence[str], run: Run) -> Filled:
    """A preset's values for concepts of these kinds (one entry per concept) in what the settings leave open.

    λ3 is one number: where the kinds of a run differ in it, its mean over the concepts, each by its λ2. So is what
    `WHOLE` lists: that of the kind with most concepts.
    """
    rows = {kind: values(preset, kind, run) for kind in dict.fromkeys(kinds)}
    held = [rows[kind]["fuse"]["lambda2"] for kind in kinds]
    mean = sum(h * rows[kind]["prior"]["lambda3"] for h, kind in zip(held, kinds, strict=True)) / (sum(held) or 1.0)
    if len({row["prior"]["lambda3"] for row in rows.values()}) > 1:
        for row in rows.values():
            row["prior"]["lambda3"] = mean
    most = rows[Counter(kinds).most_common(1)[0][0]] if kinds else {}
    for row in rows.values():
        for section, names in WHOLE.items():
            row[section] |= {name: most[section][name] for name in names}
        row["written"] = most["written"]
    common = agreed(list(rows.values()))
    apart = {kind: _without(row, common) for kind, row in rows.items()}
    own = [name for name in dict.fromkeys(n for row in rows.values() for n in _differences(config, row))]
    return Filled(into(config, common), {kind: row for kind, row in apart.items() if row}, own)


def domain(preset: str, kinds: Iterable[str], run: Run) -> tuple[str, ...]:
    """The prompts of the domain where none are said: the paper's retained names by thirty templates, styles for styles
    and celebrities for the rest, where the preset weighs them; else none."""
    from ..concepts import retained

    if preset == "mini" or (preset == "best" and run.base == "mini"):
        return ()
    lists = {"styles" if kind == "style" else "celebrities": kind for kind in kinds if weight_of(kind, run)}
    return tuple(
        filled_in(template, name)
        for task, kind in lists.items()
        for name in retained(task)
        for template in PAPER_LIKE["style" if kind == "style" else "celebrity"]
    )


def agreed(rows: Sequence[Values]) -> Values:
    """The values that are the same in all rows."""
    if not rows:
        return {}
    first, *others = rows
    common: Values = {}
    for name, value in first.items():
        if isinstance(value, Mapping):
            common[name] = agreed([row[name] for row in rows])
        elif all(row.get(name) == value for row in others):
            common[name] = value
    return common


def _without(row: Values, common: Values) -> Values:
    """A row's values that are not among the common ones."""
    rest = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            if part := _without(value, common[name]):
                rest[name] = part
        elif name not in common:
            rest[name] = value
    return rest


def _differences(config, row: Values, prefix: str = "") -> Iterator[str]:
    """Names of fields that are set to something else than a row has."""
    for name, value in row.items():
        mine = getattr(config, name)
        if dataclasses.is_dataclass(mine):
            yield from _differences(mine, value, f"{prefix}{name}.")
        elif mine is not None and mine != value:
            yield prefix + name
