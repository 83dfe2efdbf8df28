"""Lesson 05: naive sum against closed-form fusion of 2 to 32 concepts, and one concept taken back."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..concepts import Concept
from ..erasure import Erasure
from ..errors import MaceError
from ..job import prior_of
from ..method.fuse import Fusion
from ..show.viz import COLORS, Figure
from .interference import WAY_COLORS, WAYS, effect
from .shared import album, beside, mean, panels, series, shares

CONCEPTS = {  # of the mini world: name and anchor, in the order in which the notebook erases them
    "frog": "grass", "ship": "the sea", "pizza": "food", "guitar": "an object",
    "penguin": "an animal", "castle": "a landscape", "police car": "a road", "rose": "a plant",
    "dog": "a meadow", "hamburger": "food", "owl": "a forest", "rocket": "the sky",
    "sailboat": "the sea", "tiger": "an animal", "cupcake": "food", "umbrella": "an object",
    "fox": "a forest", "lion": "an animal", "ice cream": "food", "shortcake": "food",
    "taxi": "a road", "tulip": "a plant", "whale": "the sea", "dolphin": "the sea",
    "drum": "an object", "birthday cake": "food", "polar bear": "an animal", "panda": "an animal",
    "fire engine": "a road", "duck": "the sea", "swan": "the sea", "helicopter": "the sky",
}  # fmt: skip
METHODS = WAYS


def chosen(concepts: Sequence[Concept], counts: Sequence[int], back: str) -> list[Concept]:
    """The first concepts, as many as the largest count.

    MaceError: fewer than two, a count without as many concepts, one to take back that is not among them.
    """
    if not counts or not 2 <= max(counts) <= len(concepts) or min(counts) < 1:
        raise MaceError(
            f"counts are {list(counts)}, of {len(concepts)} concepts: give 1 to {len(concepts)}, one above 1."
        )
    first = list(concepts)[: max(counts)]
    if back not in [concept.name for concept in first]:
        raise MaceError(f"{back!r} is not among the {len(first)} concepts that are erased: take back one of those.")
    return first


def with_method(erasure: Erasure, method: str) -> Erasure:
    """The erasure fused by Eq. 7 ("closed"), by the plain sum of Eq. 6 ("naive"), or "in turn"; its LoRAs stay."""
    if method == "in turn":
        return in_turn(erasure)
    fuse = dataclasses.replace(erasure.config.fuse, method=method)
    return erasure.with_config(dataclasses.replace(erasure.config, fuse=fuse))


def in_turn(erasure: Erasure) -> Erasure:
    """The concepts erased one after the other, each by itself on the model that the one before has left.

    W_k = W_{k−1} R̃_k + B_k D*_k with the R̃_k and D*_k of concept k alone (Eq. 2, 7), which makes in all
    W R̃_1 ... R̃_N + Σ B_k D*_k R̃_{k+1} ... R̃_N. The LoRAs are those that were trained on the original model.
    """
    R, rows = torch.eye(erasure.width, dtype=torch.float64), []
    for part in erasure.parts:
        alone = with_method(erasure.of([part]), "closed").fusion
        rows = [*(D @ alone.R_tilde for D in rows), alone.D_star]
        R = R @ alone.R_tilde
    new = dataclasses.replace(erasure)
    new.__dict__["fusion"] = Fusion(R, torch.cat(rows, 1))  # in place of what it would solve
    return new


def deviations(erasure: Erasure, E: Sequence[Tensor]) -> list[float]:
    """By concept, in the order of erasing: how far all LoRAs together are from its own alone on its own words E_i,
    ‖Σ_j B_j D*_j E_i − B_i D_i E_i‖ / ‖B_i D_i E_i‖ over all layers."""
    B, at, found = torch.cat([part.B for part in erasure.parts], 1), 0, []
    for part, words in zip(erasure.parts, E, strict=True):
        D, r = erasure.fusion.D_star.clone(), part.D.shape[1]
        D[:, at : at + r] -= part.D.double()
        found.append(effect(erasure.layers, B, D, words) / effect(erasure.layers, part.B, part.D, words))
        at += r
    return found


def sweep(
    pipe, judge, erasure: Erasure, counts: Sequence[int], kept: Sequence[str], seeds: Sequence[int], probes: int = 8,
    others: Sequence[str] = (), **drawing,
) -> tuple[list[dict], dict]:  # fmt: skip
    """Erase the first n concepts at once, for every n and method: rows (count, method, and the scores) and pictures.

    Acc_e is read on `probes` of the n names, spread evenly, Acc_s on the kept ones, `others`, if any, on names that
    are not in the domain prior; count 0 is the original model. pictures: by (method, n), then by name.
    """
    names, pictures, rows = [c.name for c in erasure.concepts], {}, []
    everyone = beside([*names, *kept, *others], erasure.concepts)
    for n in (0, *counts):
        asked = spread(names[:n] or names, probes)
        for method in METHODS if n else ("original",):
            if n:
                with_method(erasure.only(names[:n]), method).apply(pipe)
            try:
                pictures[method, n] = album(pipe, [*asked, *kept, *others], seeds, **drawing)
            finally:
                erasure.remove(pipe)
            found = shares(judge, pictures[method, n], everyone)
            scores = {
                "Acc_e": mean(found, asked),
                "Acc_s": mean(found, kept),
                **({"others": mean(found, others)} if others else {}),
            }
            rows.append({"count": n, "method": method, **scores, "found": found})
    return rows, pictures


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread, the first and the last among them.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, min(count, len(names)))]


def sweep_figure(rows: Sequence[Mapping]) -> Figure:
    """Acc_e, Acc_s and, if any, `others` by the number of concepts, a line per method; dashes: the original model."""
    titles = {"Acc_e": "Acc_e, percent", "Acc_s": "Acc_s of kept names, percent"}
    titles |= {"others": "recognised, unmentioned names, percent"} if "others" in rows[0] else {}
    fig, axes = panels(len(titles), 2.6, 2.8, sharey=True)
    for (metric, title), ax in zip(titles.items(), axes, strict=True):
        ax.axhline(100 * rows[0][metric], color=COLORS[6], linestyle="--", linewidth=1, label="original")
        for method, color in zip(METHODS, WAY_COLORS, strict=True):
            some = [row for row in rows if row["method"] == method]
            y = [100 * row[metric] for row in some]
            ax.plot([row["count"] for row in some], y, "o-", color=color, markersize=4, label=method)
        ax.set(xscale="log", ylim=(-3, 103))
        ticks = sorted({row["count"] for row in rows if row["count"]})
        ax.set_xticks(ticks, map(str, ticks))
        ax.minorticks_off()
        ax.set_xlabel("concepts erased together", fontsize=8)
        ax.set_title(title, fontsize=8)
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside lower center", ncols=4)
    return fig


def back(
    pipe, erasure: Erasure, name: str, names: Sequence[str], seeds: Sequence[int], strengths: Sequence[float] = (0.5,),
    told: Erasure | None = None, **drawing,
) -> dict[str, dict[str, list]]:  # fmt: skip
    """Pictures of some names by the original model, with all concepts erased, with one at part strength, without it.

    told: the erasure without it under a prior that knows it as a name to keep, see `told_to_keep`.
    """
    states = {"original": None, "all erased": erasure}
    states |= {f"{name} at {s:g}": erasure.scaled({name: s}) for s in sorted(strengths, reverse=True)}
    states |= {f"without {name}": erasure.without(name)}
    states |= {f"without {name}, kept": told} if told else {}
    albums = {}
    for label, state in states.items():
        if state is not None:
            state.apply(pipe)
        try:
            albums[label] = album(pipe, names, seeds, **drawing)
        finally:
            erasure.remove(pipe)
    return albums


def told_to_keep(pipe, erasure: Erasure, name: str, kept: Sequence[str], weight: float) -> Erasure:
    """The erasure without a concept, under a prior for which it is one more name to keep; nothing is trained."""
    fewer = erasure.without(name)
    found = prior_of(pipe, fewer.concepts, erasure.config.keeping([*kept, name], weight))
    return fewer.with_prior(found.P, found.key, found.pooled) if found else fewer


def trace_left(erasure: Erasure, name: str) -> float:
    """Largest relative difference in D* between taking a concept back and never having fused it."""
    fewer = erasure.without(name)
    fresh = dataclasses.replace(fewer)  # the same parts, no running sums
    return float((fewer.fusion.D_star - fresh.fusion.D_star).abs().max() / fresh.fusion.D_star.abs().max())


# --- what a run found


def sweep_said(rows: Sequence[Mapping]) -> str:
    """Erased, kept and unmentioned names, by the number of concepts and the method; rows: of `sweep`."""
    score, told = {(row["method"], row["count"]): row for row in rows}, []
    whose = {"Acc_e": "erased ones", "Acc_s": "kept ones", "others": "others"}
    whose = {metric: who for metric, who in whose.items() if metric in rows[0]}
    for n in sorted({row["count"] for row in rows} - {0}):
        parts = [
            f"{who} {series([f'{100 * score[method, n][metric]:.0f} % ({method})' for method in METHODS])}"
            for metric, who in whose.items()
        ]
        told.append(f"with {n} concepts {', '.join(parts)}")
    before = [f"{who} {100 * rows[0][metric]:.0f} %" for metric, who in list(whose.items())[1:]]
    return f"Recognised: {'; '.join(told)}. By the original: {', '.join(before)}."


def turns_said(found: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """How far own words are from what their own LoRA makes of them, for the first and the last erased, and the worst.

    found: of `deviations`, by method.
    """
    told = []
    for method, values in found.items():
        worst, half = int(np.argmax(values)), max(1, len(values) // 2)
        first, last = np.median(values[:half]), np.median(values[-half:])
        told.append(f"{method} {first:.2f} and {last:.2f}, worst {names[worst]} ({values[worst]:.2f})")
    return f"Change of own words, median of the half that went first and of the half that went last: {'; '.join(told)}."


def shared_words(name: str, erased: Sequence[str]) -> list[str]:
    """Erased names that share a word with a name.

    >>> shared_words("hot dog", ["dog", "frog"])
    ['dog']
    """
    return [other for other in erased if set(other.split()) & set(name.split())]


def kept_said(table: pd.DataFrame, erased: Sequence[str]) -> str:
    """Which kept names the closed form loses, and whether likeness or a shared word tells which.

    table: a row per kept name: nearest erased, similarity, and the percent recognised: original, closed.
    """
    lose, like = table[table.closed < table.original], table.sort_values("similarity")
    told = [f"{name} ({row.closed:.0f} %, similarity {row.similarity:.2f})" for name, row in lose.iterrows()]
    alike = [name for name in table.index if shared_words(name, erased)]
    last = like.iloc[-1]
    text = (
        f"Kept names that the closed form loses, wholly or in part: {series(told)}. The most similar one, {last.name} "
        f"({last.similarity:.2f} to {last['nearest erased']}), is recognised in {last.closed:.0f} %."
    )
    words = [f"{name} ({table.closed[name]:.0f} %; {series(shared_words(name, erased))})" for name in alike]
    return f"{text} Kept names that share a word with an erased one: {series(words)}."


def back_said(found: pd.DataFrame, name: str) -> str:
    """What becomes of the concept that is taken back, of the other erased ones and of kept ones; rows: states."""
    told = series([f"{found.loc[state, name]:.0f} % ({state})" for state in found.index], 99)
    gone, again = found.loc["all erased"], found.iloc[-1]
    rest = [f"{what} {gone[what]:.0f} to {again[what]:.0f} %" for what in found.columns if what != name]
    return f"The {name} is recognised in {told}. From the second to the last row: {series(rest)}."
