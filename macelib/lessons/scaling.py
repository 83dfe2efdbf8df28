"""Notebook 11: from 1 to 300 names in one map. Why it gets tight, on embeddings; what was recorded of pictures."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import pandas as pd
import torch

from ..errors import MaceError
from ..method.sums import gram
from ..show.viz import COLORS, Figure
from .capacity import ANCHOR, TRIED, Encoder, rows_of
from .recorded import label
from .shared import series, tiles

RELATIONS = ("shares a word", "same group", "unrelated")  # of a kept name to what is erased
TASKS = ("characters-1", "characters-5", "characters-10", "characters-30", "characters-50", "characters-100", "scaling")
HARMONIC = ("H_o", "H_c", "H_a")  # one by task
JOINED = (*HARMONIC, "Acc_e", "Acc_s")  # with what it is made of
COLUMNS = ("n/d", "metric", "mean", "low", "high")
TIME, MEMORY = "time, s", "peak memory, MB"


def counts_of(numbers: Sequence[int], erased: Sequence[str]) -> list[int]:
    """The numbers in order, once each, that there are names for; MaceError where there is none, or one below 1."""
    counts = sorted({n for n in numbers if n <= len(erased)})
    if not counts or counts[0] < 1:
        raise MaceError(f"numbers is {list(numbers)}; allowed: 1 to {len(erased)}, the names that there are to erase.")
    return counts


def samples(names: Sequence[str], most: int = 6) -> list[str]:
    """Some of the names, evenly from the whole list, each once; all where there are no more."""
    count = min(most, len(names))
    return [names[i * len(names) // count] for i in range(count)]


def pairs(albums: Sequence[Mapping[str, list]]) -> tuple[list[list], list[str]]:
    """Pictures of several albums below each other, a row per seed and a column per name, and the columns' labels."""
    width, rows = max(map(len, albums)), []
    for album in albums:
        rows += [[*seed, *[None] * (width - len(album))] for seed in zip(*album.values(), strict=True)]
    return rows, [" / ".join(filter(None, names)) for names in zip_longest(*albums)]


def room(
    encoder: Encoder, erased: Sequence[str], kept: Sequence[str], counts: Sequence[int], anchor: str = ANCHOR
) -> pd.DataFrame:
    """How much of the text's space n names take, and how much of what tells kept names from the anchor lies in it.

    With F the differences e − e^anchor of the words around the n names, G = Σ F Fᵀ and ε the mean eigenvalue of one
    name's share: directions = tr G (G + ε I)⁻¹, of d; overlap = Σ kᵀ G (G + ε I)⁻¹ k / Σ kᵀ k over the same differences
    k of kept names. Neither can fall with n. What lies wholly in the space (overlap 1) no linear map can keep while it
    sends F to 0.
    """
    each = [gram(rows.f - rows.g) for rows in rows_of(encoder, erased[: max(counts)], anchor, TRIED)]
    beside = sum(gram(rows.f - rows.g) for rows in rows_of(encoder, kept, anchor, TRIED))
    epsilon = float(sum(each).trace()) / len(each) / len(beside)
    table, total = [], torch.zeros_like(beside)
    for n, G in enumerate(each, 1):
        total = total + G
        if n in counts:
            values, U = torch.linalg.eigh(total)
            share = values.clamp(min=0) / (values.clamp(min=0) + epsilon)  # (d,)
            inside = float((share * (U * (beside @ U)).sum(0)).sum() / beside.trace())
            row = {"n": n, "d": len(beside), "n/d": n / len(beside), "directions": float(share.sum())}
            table.append({**row, "part of d": float(share.mean()), "overlap": inside})
    return pd.DataFrame(table)


def loads(tables: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of some metrics in results files whose rows say how loaded a map is (n/d): by task, label, metric and n/d.

    The task is without its count: lines of other names, kept beside others, are not one line.
    """
    some = [
        {"task": family(row["task"]), "label": label(row), **{key: row[key] for key in COLUMNS}}
        for whole in tables.values()
        for row in whole["rows"]
        if row["metric"] in metrics and "n/d" in row
    ]
    table = pd.DataFrame(some, columns=["task", "label", *COLUMNS])
    return table.sort_values(["task", "label", "metric", "n/d"], ignore_index=True)


def family(task: str) -> str:
    """A task without its count.

    >>> family("characters-100"), family("shared-words")
    ('characters', 'shared-words')
    """
    bare, _, count = task.rpartition("-")
    return bare if count.isdigit() else task


def combined(tables: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The combined metric of every method by load."""
    return loads(tables, HARMONIC)


def loads_figure(table: pd.DataFrame, titles: Mapping[str, str], log_y: bool = False) -> Figure:
    """A panel per task and metric (titles: metric -> title), a line per label over n/d, with its interval as a band."""
    shown = [key for key, _ in table[table.metric.isin(list(titles))].groupby(["task", "metric"], sort=False)]
    fig, axes = tiles(len(shown), min(3, len(shown)), 3.0, 2.9)
    names = list(dict.fromkeys(table.label))
    for (task, metric), ax in zip(shown, axes, strict=True):
        for name, rows in table[(table.task == task) & (table.metric == metric)].groupby("label", sort=False):
            i = names.index(name)
            style = {"color": COLORS[i % len(COLORS)], "linestyle": ("-", "--", ":")[i // len(COLORS) % 3]}
            ax.plot(rows["n/d"], rows["mean"], marker="o", markersize=3, linewidth=1.4, label=name, **style)
            ax.fill_between(rows["n/d"], rows.low, rows.high, color=style["color"], alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log" if log_y else "linear")
        ax.set_xlabel("n / d", fontsize=8)
        ax.set_title(f"{task}: {titles[metric]}", fontsize=8)
    lines = {line.get_label(): line for ax in axes for line in ax.lines}
    fig.legend(lines.values(), lines.keys(), fontsize=6, frameon=False, loc="outside lower center", ncols=4)
    return fig


# --- what a run found


def room_said(table: pd.DataFrame) -> str:
    """How the space fills, by the fewest and the most names; table: of `room`."""
    ends = table.iloc[[0, -1]].itertuples()
    told = series(
        [f"{row.directions:.0f} of {row.d} directions, overlap {row.overlap:.2f} (n = {row.n})" for row in ends]
    )
    half, what = table[table.overlap >= 0.5], "of what tells kept names from the anchor lies in that space"
    where = (
        f"Half {what} from n = {half.n.iloc[0]} on"
        if len(half)
        else f"Less than half {what} up to n = {table.n.iloc[-1]}"
    )
    return f"The names take {told}. {where}."


def breaks_said(table: pd.DataFrame, limit: float) -> str:
    """At which number of names left and lost of the chosen map first add up to more than the limit, by encoder.

    With the least sum of any prior and ridge there, where it was measured. table: of `capacity`.
    """
    told = []
    for encoder, rows in table.groupby("encoder", sort=False):
        over = rows[rows.left + rows.lost > limit].sort_values("n")
        if not len(over):
            told.append(f"{encoder}: not up to n = {int(rows.n.max())}")
            continue
        first = over.iloc[0]
        least = first.get("least sum", float("nan"))
        other = "" if pd.isna(least) else f", where the least sum of any is {least:.2f}"
        told.append(f"{encoder}: first at n = {int(first.n)} (n/d = {first['n/d']:.3f}{other})")
    return f"Left and lost of the map with the best worst case add up to more than {limit:g}: {'; '.join(told)}."


def loads_said(table: pd.DataFrame, what: str, worst: Callable = min) -> str:
    """By task and method the value at the least and the greatest load, and where it falls most; table: of `loads`.

    worst: `max` for what is bad when it rises: then, where it rises most.
    """
    verb, sign = ("rises", 1) if worst is max else ("falls", -1)
    told: dict[str, list[str]] = {}
    for (task, name), rows in table.groupby(["task", "label"], sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        if len(rows) < 2:
            told.setdefault(task, []).append(f"{name} {_short(first['mean'])} at n/d = {first['n/d']:.3f} alone")
            continue
        steps = [b - a for a, b in pairwise(rows["mean"])]
        i = steps.index(worst(steps))
        where = f"{verb} most between {rows['n/d'].iloc[i]:.3f} and {rows['n/d'].iloc[i + 1]:.3f} ({steps[i]:+.1f})"
        most = f", {where}" if sign * steps[i] > 0 else ""
        ends = f"{_short(first['mean'])} to {_short(last['mean'])} (n/d = {first['n/d']:.3f} to {last['n/d']:.3f})"
        told.setdefault(task, []).append(f"{name} {ends}{most}")
    return " ".join(f"{what}, {task}: {'; '.join(some)}." for task, some in told.items())


def relations_said(table: pd.DataFrame) -> str:
    """Which kept names suffer most at the greatest load of each method; table: of `loads` of the three relations."""
    told: dict[str, list[str]] = {}
    for (task, name), rows in table.groupby(["task", "label"], sort=False):
        last = rows[rows["n/d"] == rows["n/d"].max()].set_index("metric")["mean"]
        found = [f"{metric.removeprefix('Acc_s ')} {value:.0f}" for metric, value in last.items()]
        told.setdefault(task, []).append(f"{name} {series(found)}")
    text = "Kept names recognised, percent, at the greatest load"
    return " ".join(f"{text}, {task}: {'; '.join(some)}." for task, some in told.items())


def _short(value: float) -> str:
    """One decimal, or two digits of what is below 1."""
    return f"{value:.1f}" if abs(value) >= 1 or not value else f"{value:.2g}"
