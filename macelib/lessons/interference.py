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
from ..models.entrances import kv_weights
from ..models.text import encode, tokenizers
from ..models.tokens import token_spans
from ..show.viz import COLORS, HEAT, Figure
from .shared import panels, series

WAYS = ("naive", "closed", "in turn")  # the sum (Eq. 6), the fusion (Eq. 7), one erasure after the other
WAY_COLORS = (COLORS[1], COLORS[0], COLORS[2])


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
            "all others together, root of squares": float(M.masked_fill(~off, 0).square().sum(1).sqrt().median()),
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
    bar.set_label("change, relative to the row's own LoRA", fontsize=7)
    return fig


def pair(erasure: Erasure, own: Part, other: Part, C: Tensor, E: Tensor) -> tuple[float, float, float]:
    """(naive, closed, in turn): what adding `other`, whose prompts have the statistics C, changes in the own words E of
    `own`, relative to what the LoRA of `own` does to them by itself. Two concepts, nothing else fused.

    In turn: `other` is fused by itself into the model in which `own` is erased already. C counts with the weight of
    `other`, as its own statistics do in the fusion.
    """
    layers, D = erasure.layers, (own.D.double(), other.D.double())
    one, later, two = (
        {"lambda2": some.prior_weight("fuse.lambda2"), "lambda0": some.ridge("fuse.lambda0"), "U": some.directions}
        for some in (erasure.of([own]), erasure.of([other]), erasure.of([own, other]))
    )
    C_own, C = own.weight * own.statistics.C(), other.weight * C
    DC, eye = (D[0] @ C_own, D[1] @ C), torch.eye(erasure.width, dtype=torch.float64)
    alone = fuse_sums(eye, DC[0], C_own, erasure.P, **one).D_star
    after = fuse_sums(eye, DC[1], C, erasure.P, **later).D_star
    both = fuse_sums(eye, torch.cat(DC, 1), C_own + C, erasure.P, **two).D_star
    both[:, : own.D.shape[1]] -= alone
    naive = effect(layers, other.B, D[1], E) / effect(layers, own.B, D[0], E)
    whole = effect(layers, own.B, alone, E)
    closed = effect(layers, torch.cat([own.B, other.B], 1), both, E) / whole
    return naive, closed, effect(layers, other.B, after, E) / whole


def all_pairs(erasure: Erasure, E: Sequence[Tensor], alike: Tensor) -> list[tuple[float, ...]]:
    """(similarity, naive, closed, in turn) of every two concepts, see `pair`; alike: (N, N)."""
    parts = erasure.parts
    return [
        (float(alike[i, j]), *pair(erasure, parts[i], parts[j], parts[j].statistics.C(), E[i]))
        for i in range(len(parts))
        for j in range(i)
    ]


def two_words(names: Sequence[str]) -> int:
    """Which concept is brought near the first: the next whose name has several words, or the second.

    >>> two_words(["frog", "ship", "police car"]), two_words(["frog", "ship"])
    (2, 1)
    """
    return next((i for i, name in enumerate(names) if i and " " in name), 1)


def approach(
    pipe, erasure: Erasure, E: Tensor, vectors: Sequence[Tensor], degrees: Sequence[float], j: int = 1
) -> list[tuple]:
    """(similarity, naive, closed, in turn) of the first concept and the j-th, whose prompts move towards the first's.

    E: own words of the first. vectors: name vectors of all concepts. degrees: 0 (as it is) to 1 (the same prompts).
    """
    own, other = erasure.parts[0], erasure.parts[j]
    points = []
    for share in degrees:
        e, o = (encode(pipe, prompts(part.concept)).cpu().double() for part in (own, other))
        counted = counted_tokens(pipe, (other if share < 1 else own).concept, o.shape[1])
        n = min(len(e), len(o))
        C = all_tokens(torch.lerp(o[:n], e[:n], share), counted[:n]) * (len(o) / n)
        near = similarity([*vectors[:j], torch.lerp(vectors[j], vectors[0], share), *vectors[j + 1 :]])
        points.append((float(near[0, j]), *pair(erasure, own, other, C, E)))
    return points


def threshold(x: Sequence[float], y: Sequence[float], tolerance: float) -> tuple[str, float] | None:
    """("at", x): from this x on every y exceeds the tolerance (between two points: interpolated); None: no such.

    ("below", x): every y exceeds it, from the smallest x on: where it begins was not measured.

    >>> threshold([0.0, 0.5, 1.0], [0.0, 0.1, 0.3], 0.2), threshold([0.5, 1.0], [0.3, 0.4], 0.2)
    (('at', 0.75), ('below', 0.5))
    """
    order = np.argsort(x)
    x, y = np.asarray(x, dtype=float)[order], np.asarray(y, dtype=float)[order]
    below = np.flatnonzero(y <= tolerance)
    if not len(below):
        return "below", float(x[0])
    k = below[-1]
    if k == len(x) - 1:
        return None
    return "at", float(x[k] + (tolerance - y[k]) / (y[k + 1] - y[k]) * (x[k + 1] - x[k]))


def threshold_said(limit: tuple[str, float] | None) -> str:
    """A `threshold` in a word.

    >>> threshold_said(("at", 0.75)), threshold_said(("below", 0.5)), threshold_said(None)
    ('0.75', 'below 0.50', 'none')
    """
    return "none" if limit is None else f"{'below ' * (limit[0] == 'below')}{limit[1]:.2f}"


def pairs_figure(points: Sequence[Sequence[float]], curve: Sequence[Sequence[float]], tolerance: float) -> Figure:
    """Interference by similarity, (similarity, *WAYS) each: dots for real pairs, a line for `curve`.

    Beside it how the real pairs' interference is spread, in bins of equal width on the same logarithmic axis.
    """
    fig, (ax, side) = panels(2, 3.9, 3.2, sharey=True)
    x, *y = zip(*points, strict=True)
    cx, *cy = zip(*curve, strict=True)
    for label, dots, line, color in zip(WAYS, y, cy, WAY_COLORS, strict=True):
        ax.plot(x, dots, ".", color=color, markersize=3, alpha=0.35, linewidth=0)
        ax.plot(cx, line, "-", color=color, linewidth=1.8, label=f"{label}, prompts mixed by degrees")
    ax.axhline(tolerance, color="#555555", linestyle="--", linewidth=0.8)
    limit = threshold(cx, cy[1], tolerance)
    if limit is not None:
        ax.axvline(limit[1], color="#555555", linestyle=":", linewidth=0.8)
        at = (limit[1], tolerance)
        ax.annotate(threshold_said(limit), at, (3, -10), textcoords="offset points", fontsize=7)
    ends = np.log10(np.clip([min(map(min, y)), max(map(max, y))], 1e-9, None))
    for dots, color in zip(y, WAY_COLORS, strict=True):
        options = {"orientation": "horizontal", "histtype": "step", "linewidth": 1.4}
        side.hist(dots, np.logspace(ends[0], ends[1] + 1e-6, 40), color=color, **options)
    side.set_xlabel("pairs", fontsize=8)
    ax.set(yscale="log")
    ax.set_xlabel("similarity of the two names (cosine)", fontsize=8)
    ax.set_ylabel("change of own words by the other concept,\nrelative to their own LoRA's", fontsize=8)
    fig.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    return fig


# --- what a run found


def columns_said(matrices: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """Whose LoRA changes others' words most, and what names of several words do; matrices: sum, then closed form."""
    off = ~torch.eye(len(names), dtype=torch.bool)
    column = {
        label: torch.stack([M[off[:, j], j].median() for j in range(len(names))]) for label, M in matrices.items()
    }
    (first, naive), (second, closed) = column.items()
    error, largest = matrices[second].diagonal(), naive.argsort(descending=True)[:5].tolist()
    told = series([f"{names[j]} {float(naive[j]):.2f}" for j in largest])
    text = (
        f"In the {first}, the LoRAs that change others' words most are those of {told} (median over the others); of "
        f"all LoRAs the median is {float(naive.median()):.2f}, and {float(closed.median()):.2f} in the {second}."
    )
    several = torch.tensor([" " in name for name in names])
    if not several.any() or several.all():
        return text
    parts = [
        f"names of {what} word{'s' * (what == 'several')} {float(naive[of].median()):.2f} in the {first} and "
        f"{float(closed[of].median()):.2f} in the {second}, where they deviate by "
        f"{100 * float(error[of].median()):.0f} % from what they do alone"
        for what, of in (("several", several), ("one", ~several))
    ]
    return f"{text} By the number of words, in the median: {'; '.join(parts)}."


def tail(points: Sequence[Sequence[float]]) -> pd.DataFrame:
    """Quantiles of the interference of real pairs, (similarity, *WAYS) each: a row per quantile."""
    frame = pd.DataFrame([point[1:] for point in points], columns=WAYS)
    rows = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}
    return pd.DataFrame({label: frame.quantile(q) for label, q in rows.items()} | {"mean": frame.mean()}).T


def pairs_said(
    points: Sequence[Sequence[float]], table: pd.DataFrame, limits: Mapping[str, tuple | None], tolerance: float
) -> str:
    """Which way interferes more, in how many pairs and how far; table: of `tail`; limits: by way, of `threshold`."""
    more = sum(point[2] > point[1] for point in points) / len(points)
    less = sum(point[2] < point[3] for point in points) / len(points)
    row = lambda label: ", ".join(f"{table[way][label]:.2f}" for way in WAYS)  # noqa: E731
    ends = [f"{way} {threshold_said(limit)}" for way, limit in limits.items()]
    return (
        f"{series(WAYS)}, over {len(points)} pairs: median {row('median')}, 99 % {row('99 %')}, largest "
        f"{row('largest')}. The closed form interferes more than the sum in {100 * more:.0f} % of the pairs, and less "
        f"than one after the other in {100 * less:.0f} %. Similarity from which the mixed pair stays above "
        f"{tolerance:g}: {series(ends)}."
    )


def missed(pipe, erasure: Erasure) -> float:
    """What Eq. 7 minimises, ridge included, at the erasure's fusion, relative to no change at all (W* = W').

    Σ_i ‖(W* − W' − B_i D_i) E_i‖² + λ2 ‖(W* − W) E_p‖² + λ0 ‖W* − W'‖², over all layers; the closed form has the least.
    """
    R, fusion, layers = erasure.refinement.R, erasure.fusion, list(erasure.layers.values())
    P = erasure.prior_weight("fuse.lambda2") * (0 if erasure.P is None else erasure.P)
    ridge, ranks = erasure.ridge("fuse.lambda0"), [part.D.shape[1] for part in erasure.parts]
    C = [part.weight * part.statistics.C() for part in erasure.parts]
    B, W = [part.B.double().split(layers) for part in erasure.parts], kv_weights(pipe.unet)
    eye, total = torch.eye(erasure.width, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for at, name in enumerate(erasure.layers):
        w = W[name].detach().cpu().double()
        stars = fusion.D_star[at].split(ranks)
        change = w @ (fusion.R_tilde - R) + sum(b[at] @ star.double() for b, star in zip(B, stars, strict=True))
        for k, now in enumerate((change, torch.zeros_like(change))):
            total[k] += ridge * now.square().sum()
            for part, b, c in zip(erasure.parts, B, C, strict=True):
                gap = now - part.strength * b[at] @ part.D[at].double()
                total[k] += ((gap @ c) * gap).sum()
            gap = now - w @ (eye - R)
            total[k] += ((gap @ P) * gap).sum() if erasure.P is not None else 0
    return float(total[0] / total[1])
