"""Lesson 05: naive sum against closed-form fusion, and how much one concept's LoRA disturbs another's prompts."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.colors import LogNorm
from torch import Tensor

from ..concepts import Concept, prompts
from ..erasure import Erasure, Part
from ..fuse import fuse_sums
from ..refine import gram
from ..text import encode
from ..viz import COLORS, HEAT, Figure
from .shared import album, mean, panels, shares

CONCEPTS = (  # of the mini world, in the order in which the notebook erases them
    "frog=grass", "ship=the sea", "pizza=food", "guitar=an object", "penguin=an animal", "castle=a landscape",
    "police car=a road", "rose=a plant", "dog=a meadow", "hamburger=food", "owl=a forest", "rocket=the sky",
    "sailboat=the sea", "tiger=an animal", "cupcake=food", "umbrella=an object", "fox=a forest", "lion=an animal",
    "ice cream=food", "soft ice cream=food", "taxi=a road", "tulip=a plant", "whale=the sea", "dolphin=the sea",
    "drum=an object", "birthday cake=food", "polar bear=an animal", "panda=an animal", "fire engine=a road",
    "duck=the sea", "swan=the sea", "helicopter=the sky",
)  # fmt: skip
METHODS = ("naive", "closed")


def with_method(erasure: Erasure, method: str) -> Erasure:
    """The erasure fused by Eq. 7 ("closed") or by the plain sum of Eq. 6 ("naive"); its LoRAs stay."""
    fuse = dataclasses.replace(erasure.config.fuse, method=method)
    return erasure.with_config(dataclasses.replace(erasure.config, fuse=fuse))


def sweep(
    pipe, judge, erasure: Erasure, counts: Sequence[int], kept: Sequence[str], seeds: Sequence[int], probes: int = 8,
    **drawing,
) -> tuple[list[dict], dict]:  # fmt: skip
    """Erase the first n concepts at once, for every n and method: rows (count, method, Acc_e, Acc_s) and pictures.

    Acc_e is read on `probes` of the n names, spread evenly, Acc_s on the kept ones; count 0 is the original model.
    pictures: by (method, n), then by name.
    """
    names, pictures, rows = [c.name for c in erasure.concepts], {}, []
    everyone = [*names, *kept]
    for n in (0, *counts):
        asked = spread(names[:n] or names, probes)
        for method in METHODS if n else ("original",):
            if n:
                with_method(erasure.only(names[:n]), method).apply(pipe)
            try:
                pictures[method, n] = album(pipe, [*asked, *kept], seeds, **drawing)
            finally:
                erasure.remove(pipe)
            found = shares(judge, pictures[method, n], everyone)
            scores = {"Acc_e": mean(found, asked), "Acc_s": mean(found, kept)}
            rows.append({"count": n, "method": method, **scores, "found": found})
    return rows, pictures


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread, the first and the last among them.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, min(count, len(names)))]


def sweep_figure(rows: Sequence[Mapping]) -> Figure:
    """Acc_e and Acc_s by the number of concepts, a line per method; dashes: the original model."""
    fig, axes = panels(2, 3.2, 2.6, sharey=True)
    for metric, ax in zip(("Acc_e", "Acc_s"), axes, strict=True):
        ax.axhline(100 * rows[0][metric], color=COLORS[0], linestyle="--", linewidth=1, label="original")
        for method, color in zip(METHODS, (COLORS[2], COLORS[1]), strict=True):
            some = [row for row in rows if row["method"] == method]
            y = [100 * row[metric] for row in some]
            ax.plot([row["count"] for row in some], y, "o-", color=color, markersize=4, label=method)
        ax.set(xscale="log", ylim=(-3, 103))
        ticks = sorted({row["count"] for row in rows if row["count"]})
        ax.set_xticks(ticks, map(str, ticks))
        ax.minorticks_off()
        ax.set_xlabel("concepts erased together", fontsize=8)
        ax.set_title(f"{metric}, percent", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    return fig


def effect(layers: Mapping[str, int], B: Tensor, D: Tensor, E: Tensor) -> float:
    """√ Σ_l ‖B_l D_l Eᵀ‖² : how much a LoRA changes the keys and values of tokens E (n, d).

    B: (Σ out, r). D: (L, r, d).
    """
    K = torch.stack([b.T @ b for b in B.double().split(list(layers.values()))])  # (L, r, r)
    read = D.double() @ E.T  # (L, r, n)
    return float((K @ read * read).sum().clamp(min=0).sqrt())


def interference(erasure: Erasure, E: Sequence[Tensor]) -> Tensor:
    """How much the LoRA in column j changes the own words of concept i, relative to what LoRA i alone does to them.

    (N, N). On the diagonal: how far LoRA i in the sum is from LoRA i alone. 0: no interference at all.
    """
    parts, ranks = erasure.parts, [p.D.shape[1] for p in erasure.parts]
    D_star = erasure.fusion.D_star.split(ranks, 1)  # (L, r_j, d) each
    M = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for i, own in enumerate(parts):
        whole = effect(erasure.layers, own.B, own.D, E[i])
        for j, other in enumerate(parts):
            D = D_star[j] - (own.D.double() if i == j else 0)
            M[i, j] = effect(erasure.layers, other.B, D, E[i]) / whole
    return M


def matrix_figure(matrices: Mapping[str, Tensor], names: Sequence[str], low: float = 0.01) -> Figure:
    """Interference matrices side by side on one logarithmic colour scale."""
    fig, axes = panels(len(matrices), 0.1 * len(names) + 2.4, 0.1 * len(names) + 2.0)
    norm = LogNorm(low, max(float(M.max()) for M in matrices.values()))
    for (label, M), ax in zip(matrices.items(), axes, strict=True):
        drawn = ax.imshow(M.clamp(min=low).numpy(), cmap=HEAT, norm=norm)
        ax.set_title(label, fontsize=8)
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
        ax.set_yticks(range(len(names)), names, fontsize=5)
    axes[0].set_ylabel("own words of", fontsize=7)
    axes[0].set_xlabel("LoRA of", fontsize=7)
    bar = fig.colorbar(drawn, ax=axes, fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=6)
    return fig


def pair(erasure: Erasure, own: Part, other: Part, C: Tensor, E: Tensor) -> tuple[float, float]:
    """(naive, closed): what adding `other`, whose prompts have the statistics C, changes in the own words E of `own`,
    relative to what the LoRA of `own` does to them by itself. Two concepts, nothing else fused."""
    f, d, layers = erasure.config.fuse, erasure.width, erasure.layers
    lambda2 = f.lambda2 if erasure.P is not None else 0.0
    DC, C_own = [own.D.double() @ own.statistics.C(), other.D.double() @ C], own.statistics.C()
    eye = torch.eye(d, dtype=torch.float64)
    alone = fuse_sums(eye, DC[0], C_own, erasure.P, lambda2, f.lambda0).D_star
    both = fuse_sums(eye, torch.cat(DC, 1), C_own + C, erasure.P, lambda2, f.lambda0).D_star
    both[:, : own.D.shape[1]] -= alone
    naive = effect(layers, other.B, other.D, E) / effect(layers, own.B, own.D, E)
    closed = effect(layers, torch.cat([own.B, other.B], 1), both, E) / effect(layers, own.B, alone, E)
    return naive, closed


def mixed(pipe, own: Concept, other: Concept, share: float) -> Tensor:
    """C (d, d) of a concept between two: prompt by prompt and token by token, (1 − share) other + share own."""
    e, o = (encode(pipe, prompts(c)).cpu().double() for c in (own, other))
    n = min(len(e), len(o))
    return gram(torch.lerp(o[:n], e[:n], share).flatten(0, 1)) * (len(o) / n)


def threshold(x: Sequence[float], y: Sequence[float], tolerance: float) -> float | None:
    """The smallest x from which on every y exceeds the tolerance (between two points: interpolated); None: no such.

    >>> threshold([0.0, 0.5, 1.0], [0.0, 0.1, 0.3], 0.2)
    0.75
    """
    order = np.argsort(x)
    x, y = np.asarray(x, dtype=float)[order], np.asarray(y, dtype=float)[order]
    below = np.flatnonzero(y <= tolerance)
    if not len(below):
        return float(x[0])
    k = below[-1]
    if k == len(x) - 1:
        return None
    return float(x[k] + (tolerance - y[k]) / (y[k + 1] - y[k]) * (x[k + 1] - x[k]))


def pairs_figure(points: Sequence[Sequence[float]], curve: Sequence[Sequence[float]], tolerance: float) -> Figure:
    """Interference by similarity, (similarity, naive, closed) each: dots for real pairs, a line for `curve`."""
    fig, (ax,) = panels(1, 5.5, 3.0)
    x, *y = zip(*points, strict=True)
    cx, *cy = zip(*curve, strict=True)
    for label, dots, line, color in zip(METHODS, y, cy, (COLORS[2], COLORS[1]), strict=True):
        ax.plot(x, dots, ".", color=color, markersize=3, alpha=0.35, linewidth=0)
        ax.plot(cx, line, "-", color=color, linewidth=1.8, label=f"{label}, prompts mixed by degrees")
    ax.axhline(tolerance, color="#555555", linestyle="--", linewidth=0.8)
    limit = threshold(cx, cy[1], tolerance)
    if limit is not None:
        ax.axvline(limit, color="#555555", linestyle=":", linewidth=0.8)
        ax.annotate(f"{limit:.2f}", (limit, tolerance), (3, -10), textcoords="offset points", fontsize=7)
    ax.set(yscale="log")
    ax.set_xlabel("similarity of the two names (cosine)", fontsize=8)
    ax.set_ylabel("interference", fontsize=8)
    ax.legend(fontsize=7, frameon=False)
    return fig
