"""Lesson 05: how much one concept's LoRA changes what another concept's words are read as."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from torch import Tensor

from ..concepts import Concept, align, prompts, sample_prompt, templates
from ..erasure import Erasure, Part
from ..method.fuse import fuse_sums
from ..method.refine import all_tokens, counted_tokens
from ..models.text import encode, tokenizers
from ..models.tokens import token_spans
from ..show.viz import COLORS, HEAT, Figure
from .shared import panels


def own_tokens(pipe, concept: Concept) -> Tensor:
    """E_i: embeddings of the concept's own tokens in all its prompts (n, d) float64."""
    e = encode(pipe, prompts(concept)).cpu().double()
    found = [align(tokenizers(pipe)[0], t, concept.name, concept.anchor) for t in templates(concept)]
    return torch.cat([e[i, pair.own] for i, pair in enumerate(found)])


def name_vector(pipe, concept: Concept) -> Tensor:
    """Mean embedding of the name's tokens in the sample prompt (d,) float64."""
    prompt = sample_prompt(concept)
    at = sorted({i for span in token_spans(tokenizers(pipe)[0], prompt, concept.name) for i in span})
    return encode(pipe, [prompt])[0, at].mean(0).cpu().double()


def similarity(vectors: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """Cosines (n, m) of vectors after their common mean (over both lists) is taken away."""
    a = torch.stack(list(vectors))
    b = a if others is None else torch.stack(list(others))
    centre = (a if others is None else torch.cat([a, b])).mean(0)
    a, b = (torch.nn.functional.normalize(x - centre, dim=1) for x in (a, b))
    return a @ b.T


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


def summary(matrices: Mapping[str, Tensor]) -> pd.DataFrame:
    """Medians of interference matrices: a column per matrix."""
    columns = {}
    for label, M in matrices.items():
        off = ~torch.eye(len(M), dtype=torch.bool)
        columns[label] = {
            "another LoRA on my words": float(M[off].median()),
            "all others together": float(M.masked_fill(~off, 0).square().sum(1).sqrt().median()),
            "my own LoRA's error": float(M.diagonal().median()),
        }
    return pd.DataFrame(columns).rename_axis("median")


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
    d, layers = erasure.width, erasure.layers
    one, two = (
        {"lambda2": some.prior_weight("fuse.lambda2"), "lambda0": some.ridge("fuse.lambda0")}
        for some in (erasure.of([own]), erasure.of([own, other]))
    )
    DC, C_own = [own.D.double() @ own.statistics.C(), other.D.double() @ C], own.statistics.C()
    eye = torch.eye(d, dtype=torch.float64)
    alone = fuse_sums(eye, DC[0], C_own, erasure.P, **one).D_star
    both = fuse_sums(eye, torch.cat(DC, 1), C_own + C, erasure.P, **two).D_star
    both[:, : own.D.shape[1]] -= alone
    naive = effect(layers, other.B, other.D, E) / effect(layers, own.B, own.D, E)
    closed = effect(layers, torch.cat([own.B, other.B], 1), both, E) / effect(layers, own.B, alone, E)
    return naive, closed


def all_pairs(erasure: Erasure, E: Sequence[Tensor], alike: Tensor) -> list[tuple[float, float, float]]:
    """(similarity, naive, closed) of every two concepts, see `pair`; alike: (N, N)."""
    parts = erasure.parts
    return [
        (float(alike[i, j]), *pair(erasure, parts[i], parts[j], parts[j].statistics.C(), E[i]))
        for i in range(len(parts))
        for j in range(i)
    ]


def approach(pipe, erasure: Erasure, E: Tensor, vectors: Sequence[Tensor], degrees: Sequence[float]) -> list[tuple]:
    """(similarity, naive, closed) of the first two concepts while the second's prompts move towards the first's.

    E: own words of the first. vectors: name vectors of all concepts. degrees: 0 (as it is) to 1 (the same prompts).
    """
    own, other = erasure.parts[:2]
    points = []
    for share in degrees:
        e, o = (encode(pipe, prompts(part.concept)).cpu().double() for part in (own, other))
        counted = counted_tokens(pipe, (other if share < 1 else own).concept, o.shape[1])
        n = min(len(e), len(o))
        C = all_tokens(torch.lerp(o[:n], e[:n], share), counted[:n]) * (len(o) / n)
        near = similarity([vectors[0], torch.lerp(vectors[1], vectors[0], share), *vectors[2:]])
        points.append((float(near[0, 1]), *pair(erasure, own, other, C, E)))
    return points


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
    for label, dots, line, color in zip(("naive", "closed"), y, cy, (COLORS[1], COLORS[0]), strict=True):
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
    fig.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    return fig
