"""Notebook 11: from 1 to 300 names in one map. Why it gets tight, on embeddings; what was recorded of pictures."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..method.sums import gram
from ..show.viz import COLORS, Figure
from .capacity import TRIED, Encoder, rows_of
from .recorded import COMBINED, label
from .shared import panels, series

RELATIONS = ("shares a word", "same group", "unrelated")  # of a kept name to what is erased
TASKS = ("characters-1", "characters-5", "characters-10", "characters-30", "characters-50", "characters-100", "scaling")
TIME, MEMORY = "time, s", "peak memory, MB"


def room(
    encoder: Encoder, erased: Sequence[str], kept: Sequence[str], counts: Sequence[int], anchor: str = "a person"
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
    """Rows of some metrics in results files whose rows say how loaded a map is (n/d): by label, metric and n/d."""
    some = [
        {"label": label(row), **{key: row[key] for key in ("n/d", "metric", "mean", "low", "high")}}
        for whole in tables.values()
        for row in whole["rows"]
        if row["metric"] in metrics and "n/d" in row
    ]
    table = pd.DataFrame(some, columns=["label", "n/d", "metric", "mean", "low", "high"])
    return table.drop_duplicates(["label", "metric", "n/d"]).sort_values(["label", "metric", "n/d"], ignore_index=True)


def combined(tables: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The combined metric of every method by load."""
    return loads(tables, COMBINED)


def loads_figure(table: pd.DataFrame, titles: Mapping[str, str], log_y: bool = False) -> Figure:
    """A panel per metric (titles: metric -> title), a line per label over n/d, with its interval as a band."""
    fig, axes = panels(len(titles), 3.2, 3.2)
    names = list(dict.fromkeys(table.label))
    for (metric, title), ax in zip(titles.items(), axes, strict=True):
        for name, rows in table[table.metric == metric].groupby("label", sort=False):
            i = names.index(name)
            style = {"color": COLORS[i % len(COLORS)], "linestyle": ("-", "--", ":")[i // len(COLORS) % 3]}
            ax.plot(rows["n/d"], rows["mean"], marker="o", markersize=3, linewidth=1.4, label=name, **style)
            ax.fill_between(rows["n/d"], rows.low, rows.high, color=style["color"], alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log" if log_y else "linear")
        ax.set_xlabel("n / d", fontsize=8)
        ax.set_title(title, fontsize=8)
    shown = {line.get_label(): line for ax in axes for line in ax.lines}
    fig.legend(shown.values(), shown.keys(), fontsize=6, frameon=False, loc="outside lower center", ncols=4)
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
    """From which number of names on one map leaves or loses more than the limit, by encoder; table: of `capacity`."""
    told = []
    for encoder, rows in table.groupby("encoder", sort=False):
        over = rows[rows[["left", "lost"]].max(axis=1) > limit].sort_values("n")
        most = int(rows.n.max())
        told.append(
            f"{encoder}: from n = {over.n.iloc[0]} on (n/d = {over['n/d'].iloc[0]:.2f})"
            if len(over)
            else f"{encoder}: not up to n = {most}"
        )
    return f"More than {limit:g} is left of erased names or lost of kept ones: {'; '.join(told)}."


def loads_said(table: pd.DataFrame, what: str) -> str:
    """By method the value at the least and at the greatest load, and where it falls most, if so; table: of `loads`."""
    told = []
    for name, rows in table.groupby("label", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        if len(rows) < 2:
            told.append(f"{name} {first['mean']:.1f} at n/d = {first['n/d']:.3f} alone")
            continue
        falls = [b - a for a, b in pairwise(rows["mean"])]
        i = int(np.argmin(falls))
        fall = (
            ""
            if falls[i] >= 0
            else f", most between {rows['n/d'].iloc[i]:.3f} and {rows['n/d'].iloc[i + 1]:.3f} ({falls[i]:+.1f})"
        )
        ends = f"{first['mean']:.1f} to {last['mean']:.1f} (n/d = {first['n/d']:.3f} to {last['n/d']:.3f})"
        told.append(f"{name} {ends}{fall}")
    return f"{what}: {'; '.join(told)}." if told else ""


def relations_said(table: pd.DataFrame) -> str:
    """Which kept names suffer most at the greatest load of each method; table: of `loads` of the three relations."""
    told = []
    for name, rows in table.groupby("label", sort=False):
        last = rows[rows["n/d"] == rows["n/d"].max()].set_index("metric")["mean"]
        found = [f"{metric.removeprefix('Acc_s ')} {value:.0f}" for metric, value in last.items()]
        told.append(f"{name} {series(found)}")
    return f"Kept names recognised, percent, at the greatest load: {'; '.join(told)}." if told else ""
