"""Figures of the notebooks. Every function returns a Matplotlib figure, light and readable on dark and white pages."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image

from ..errors import MaceError

LIMIT = 150_000  # bytes of a figure as PNG
DPI = 110
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#f0e442")  # Okabe and Ito
HEAT = "inferno"
MARK = "#ff7f0e"
GOOD = {"low": ("Acc_e", "Acc_g"), "high": ("Acc_s", "Acc_a", "H_o", "H_c")}  # which end of a metric is the good one


class Figure(matplotlib.figure.Figure):
    """A figure that belongs to no window; a notebook shows it as a light PNG whatever the backend."""

    def _repr_png_(self) -> bytes:
        """The PNG, rendered once: a figure is complete when it is first shown or saved."""
        if not hasattr(self, "_shown"):
            self._shown = png(self)
        return self._shown


def png(fig: matplotlib.figure.Figure, limit: int = LIMIT) -> bytes:
    """The figure as PNG of at most `limit` bytes: by a palette of 256 colours (mixed by dots, so that shades do not
    fall into bands, where that is light enough), then by a lower resolution."""
    dpi, data = fig.dpi, b""
    while dpi >= 20:
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor=fig.get_facecolor())
        if len(buffer.getvalue()) <= limit:
            return buffer.getvalue()
        full = Image.open(buffer).convert("RGB")
        plain = full.quantize(256)
        for shown in (full.quantize(palette=plain, dither=Image.Dither.FLOYDSTEINBERG), plain):
            shrunk = io.BytesIO()
            shown.save(shrunk, format="PNG", optimize=True)
            data = shrunk.getvalue()
            if len(data) <= limit:
                return data
        dpi *= max(0.5, 0.97 * (limit / len(data)) ** 0.5)
    return data


def grid(
    rows: Sequence[Sequence],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    size: float = 1.0,
) -> Figure:
    """Pictures in rows and columns, None for a gap. size: inches of a picture. MaceError where there is none."""
    fig, axes = _axes(rows, row_labels, column_labels, title, size)
    for row, line in zip(rows, axes, strict=True):
        for image, ax in zip(row, line, strict=False):
            if image is not None:
                ax.imshow(pixels(image))
    return fig


def attention(
    images: Sequence[Sequence],
    maps: Sequence[Sequence],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    size: float = 1.0,
    highest: float | None = None,
    by_row: bool = False,
) -> Figure:
    """Attention maps (h, w) laid over grey pictures, on one scale from 0 to `highest` (the largest value).

    by_row: every row has a scale of its own, to its largest value.
    """
    values = [[np.asarray(m, dtype=np.float64) for m in row] for row in maps]
    fig, axes = _axes(images, row_labels, column_labels, title, size)
    norm = Normalize(0, highest or max(m.max() for row in values for m in row))
    for row, of_row, line in zip(images, values, axes, strict=True):
        norm = Normalize(0, max(m.max() for m in of_row)) if by_row else norm
        for image, heat, ax in zip(row, of_row, line, strict=False):
            shown = pixels(image)
            ax.imshow(shown.mean(-1), cmap="gray", vmin=0, vmax=1)
            box = (-0.5, shown.shape[1] - 0.5, shown.shape[0] - 0.5, -0.5)
            seen = 0.2 + 0.6 * norm(heat).filled().clip(0, 1)  # little attention, little colour
            ax.imshow(heat, cmap=HEAT, norm=norm, alpha=seen, extent=box, interpolation="bilinear")
        if by_row:
            _bar(fig, norm, line, "")
    if not by_row:
        _bar(fig, norm, axes, "attention (share of 1)")
    return fig


def _bar(fig: Figure, norm: Normalize, axes, label: str) -> None:
    bar = fig.colorbar(ScalarMappable(norm, HEAT), ax=axes, fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=7)


def masks(
    images: Sequence,
    masks: Sequence,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    size: float = 1.0,
    columns: int = 8,
) -> Figure:
    """Pictures with what is outside their mask (h, w) or (1, h, w), 0..1, dimmed, and the mask's edge drawn."""
    count = len(images)
    lines = [list(range(start, min(start + columns, count))) for start in range(0, count, columns)]
    fig, axes = _axes([[images[i] for i in line] for line in lines], None, None, title, size)
    for line, of_line in zip(lines, axes, strict=True):
        for i, ax in zip(line, of_line, strict=False):
            shown = pixels(images[i])
            mask = Image.fromarray(np.asarray(masks[i], dtype=np.float32).squeeze())
            inside = np.asarray(mask.resize(shown.shape[1::-1], Image.Resampling.BILINEAR))
            ax.imshow(shown * (0.3 + 0.7 * inside[..., None]))
            if inside.min() < 0.5 < inside.max():
                ax.contour(inside, levels=[0.5], colors=MARK, linewidths=1)
            if labels is not None:
                ax.set_title(_wrapped(labels[i]), fontsize=7)
    return fig


def bars(
    frame: pd.DataFrame,
    x: str = "metric",
    by: Sequence[str] = ("erased", "model"),
    y: str = "value",
    title: str | None = None,
    ylabel: str = "percent",
) -> Figure:
    """A group of bars per value of `x`, a bar per combination of `by`; columns low and high are drawn as whiskers.

    The first of `by` gives the colour, the last the shade.
    frame: a row per bar, such as `Evaluation.metrics`.
    """
    ticks = list(dict.fromkeys(frame[x]))
    series = list(frame.groupby(list(by), sort=False))
    families, shades = (list(dict.fromkeys(label[i] for label, _ in series)) for i in (0, -1))
    fig, ax = _plot(max(4.0, 0.35 * len(ticks) * len(series) + 1.5), title, ylabel)
    width = 0.8 / len(series)
    for i, (label, part) in enumerate(series):
        part = part.set_index(x).reindex(ticks)
        at = np.arange(len(ticks)) - 0.4 + (i + 0.5) * width
        color = COLORS[families.index(label[0]) % len(COLORS)]
        alpha = 1 - 0.6 * (len(shades) - 1 - shades.index(label[-1])) / max(len(shades) - 1, 1) if len(by) > 1 else 1
        height = part[y].to_numpy()
        ax.bar(at, height, width * 0.92, color=color, alpha=alpha, label=", ".join(map(str, label)))
        top = height
        if {"low", "high"} <= set(part):
            low, high = part["low"].to_numpy(), part["high"].to_numpy()
            ax.vlines(at, low, high, color="#222222", linewidth=1)
            top = np.fmax(height, high)
        for position, value, above in zip(at, height, top, strict=True):
            ax.annotate(f"{value:.0f}", (position, above), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    good = {name: f"\n({end} is good)" for end, names in GOOD.items() for name in names}
    ax.set_xticks(np.arange(len(ticks)), [f"{tick}{good.get(tick, '')}" for tick in ticks])
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def curves(
    lines: Mapping[str, tuple],
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[str, float] | None = None,
    markers: bool = False,
    falling: bool = False,
) -> Figure:
    """Curves by name: (x, y) or (x, y, low, high) with a band. marks: labelled vertical lines.

    falling: x from high to low, as timesteps run while a picture is drawn.
    """
    fig, ax = _plot(5.5, title, ylabel)
    for i, (label, (x, y, *band)) in enumerate(lines.items()):
        x, y = np.asarray(x), np.asarray(y)
        color = COLORS[i % len(COLORS)]
        ax.plot(x, y, color=color, label=label, linewidth=1.6, marker="o" if markers else None, markersize=3)
        if band:
            ax.fill_between(x, np.asarray(band[0]), np.asarray(band[1]), color=color, alpha=0.2, linewidth=0)
    for label, at in (marks or {}).items():
        ax.axvline(at, color="#777777", linewidth=0.8, linestyle="--")
        ax.annotate(label, (at, 1), (2, -8), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7)
    ax.set_xlabel(xlabel, fontsize=8)
    if log_x:
        ax.set_xscale("log")
    if log_y:
        ax.set_yscale("log")
    if falling:
        ax.invert_xaxis()
    if len(lines) > 1:
        ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def pixels(image) -> np.ndarray:
    """A picture as (h, w, 3) in 0..1: PIL, or an array or tensor (h, w, 3), (3, h, w) or (h, w) of bytes or 0..1."""
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    array = np.asarray(image)
    array = array / 255 if array.dtype == np.uint8 else array.astype(np.float64)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = np.stack([array] * 3, -1)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise MaceError(f"An array of shape {array.shape} is no picture: give (h, w, 3), (3, h, w) or (h, w).")
    return array.clip(0, 1)


def _axes(rows, row_labels, column_labels, title, size):
    """Figure and axes (rows, columns) without ticks, with labels at the first column and above the first row."""
    columns = max(map(len, rows), default=0)
    if not columns:
        raise MaceError("There is no picture to show: give at least one row with one.")
    margin = 1.1 if row_labels else 0.0
    height = len(rows) * size + (0.55 if title else 0.3)
    fig = Figure(figsize=(columns * size + margin, height), dpi=DPI, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    fig.set_facecolor("white")
    axes = fig.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for label, ax in zip(row_labels or (), axes[:, 0], strict=False):
        ax.set_ylabel(_wrapped(label), rotation=0, ha="right", va="center", fontsize=8)
    for label, ax in zip(column_labels or (), axes[0], strict=False):
        ax.set_title(_wrapped(label, int(15 * size)), fontsize=8)
    if title:
        fig.suptitle(title, fontsize=9)
    return fig, axes


def _plot(width: float, title: str | None, ylabel: str):
    """Figure with one plain axis."""
    fig = Figure(figsize=(width, 2.8), dpi=DPI, layout="constrained")
    fig.set_facecolor("white")
    ax = fig.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.set_ylabel(ylabel, fontsize=8)
    if title:
        ax.set_title(title, fontsize=9)
    return fig, ax


def _wrapped(label: str, width: int = 16) -> str:
    return "\n".join(textwrap.wrap(str(label), max(width, 6)))
