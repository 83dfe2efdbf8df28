"""Figures of the notebooks 00 to 02 that `macelib.show.viz` does not have; each returns its `Figure`."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.patches import FancyBboxPatch

from ..show.viz import COLORS, DPI, Figure

GREY = "#777777"
STAGES = (  # title, what it does, notebooks
    ("Model", "text embeddings $e$;\n$W_k, W_v$ read them", "01, 02"),
    ("1  Refinement", "words around the concept:\n$W' = W R$", "01, 03"),
    ("2  LoRA + CFIS", "its own tokens:\n$W' + B_i D_i$ per concept", "04"),
    ("3  Fusion", "all concepts at once:\n$W^* = W\\tilde{R} + \\sum_i B_i D_i^*$", "05"),
    ("Erased model", "measure, explore, export", "06, 07, 08"),
    ("Beyond MACE", "compare, attack, scale", "09, 10, 11"),
)


def method_map() -> Figure:
    """The stages of the method from left to right and what is done beyond it, with the notebooks that show them."""
    fig = Figure(figsize=(10.8, 1.7), dpi=DPI, layout="constrained", facecolor="white")
    ax = fig.subplots()
    ax.set(xlim=(0, len(STAGES)), ylim=(0, 1))
    ax.axis("off")
    for i, (title, does, where) in enumerate(STAGES):
        color = COLORS[i - 1] if 0 < i < 4 else GREY
        box = FancyBboxPatch(
            (i + 0.06, 0.22), 0.82, 0.7, "round,pad=0,rounding_size=0.05", fc="white", ec=color, lw=1.6
        )
        ax.add_patch(box)
        ax.text(i + 0.47, 0.78, title, ha="center", va="center", fontsize=9, weight="bold", color=color)
        ax.text(i + 0.47, 0.46, does, ha="center", va="center", fontsize=7.5, color="#222222")
        ax.text(
            i + 0.47, 0.09, f"notebook{'s' if ',' in where else ''} {where}", ha="center", fontsize=7.5, color="#555555"
        )
        if i:
            arrow = {"arrowstyle": "-|>", "color": GREY}
            ax.annotate("", (i + 0.06, 0.57), (i - 0.12, 0.57), arrowprops=arrow)
    return fig


def shifts(frames: Mapping[str, pd.DataFrame], first: int = 16, title: str | None = None) -> Figure:
    """Bars of `shift` over the first positions, a colour per label."""
    shown = {label: frame.head(first) for label, frame in frames.items()}
    fig = Figure(figsize=(6.5, 2.6), dpi=DPI, layout="constrained", facecolor="white")
    ax, width = fig.subplots(), 0.8 / len(shown)
    for i, (label, frame) in enumerate(shown.items()):
        ax.bar(
            [x - 0.4 + (i + 0.5) * width for x in range(len(frame))],
            frame["value"],
            width,
            color=COLORS[i % len(COLORS)],
            label=label,
        )
    ax.set_xticks(range(len(frame)), frame["token"], rotation=60, fontsize=7)
    ax.set_ylabel("distance to the token\nbeside the anchor", fontsize=8)
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    if len(shown) > 1:
        fig.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=len(shown))
    if title:
        ax.set_title(title, fontsize=9)
    return fig


def dots(table: pd.DataFrame, xlabel: str, title: str | None = None) -> Figure:
    """A line per row of the table, a dot per column at its value (0..1)."""
    fig = Figure(figsize=(6.0, 0.27 * len(table) + 1.0), dpi=DPI, layout="constrained", facecolor="white")
    ax, rows = fig.subplots(), range(len(table))
    ax.hlines(rows, 0, 1, color="#e6e6e6", linewidth=1, zorder=0)
    for i, (label, marker) in enumerate(zip(table, "osD^vPX", strict=False)):
        at = [row + 0.16 * (i - (table.shape[1] - 1) / 2) for row in rows]  # dots of one value stay apart
        ax.scatter(table[label], at, color=COLORS[i % len(COLORS)], marker=marker, s=26, label=label, clip_on=False)
    ax.set_yticks(rows, table.index, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=xlabel)
    ax.xaxis.label.set_size(8)
    ax.tick_params(axis="x", labelsize=7)
    ax.spines[:].set_visible(False)
    fig.legend(
        *ax.get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside upper center", ncols=len(table.columns)
    )
    if title:
        ax.set_title(title, fontsize=9)
    return fig
