"""Lesson 05: naive sum against closed-form fusion of 2 to 32 concepts, and one concept taken back."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..erasure import Erasure
from ..job import prior_of
from ..show.viz import COLORS, Figure
from .shared import album, mean, panels, shares

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
METHODS = ("naive", "closed")


def with_method(erasure: Erasure, method: str) -> Erasure:
    """The erasure fused by Eq. 7 ("closed") or by the plain sum of Eq. 6 ("naive"); its LoRAs stay."""
    fuse = dataclasses.replace(erasure.config.fuse, method=method)
    return erasure.with_config(dataclasses.replace(erasure.config, fuse=fuse))


def sweep(
    pipe, judge, erasure: Erasure, counts: Sequence[int], kept: Sequence[str], seeds: Sequence[int], probes: int = 8,
    others: Sequence[str] = (), **drawing,
) -> tuple[list[dict], dict]:  # fmt: skip
    """Erase the first n concepts at once, for every n and method: rows (count, method, and the scores) and pictures.

    Acc_e is read on `probes` of the n names, spread evenly, Acc_s on the kept ones, `others` on names that are not
    in the domain prior; count 0 is the original model. pictures: by (method, n), then by name.
    """
    names, pictures, rows = [c.name for c in erasure.concepts], {}, []
    everyone = [*names, *kept, *others]
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
            scores = {"Acc_e": mean(found, asked), "Acc_s": mean(found, kept), "others": mean(found, others or kept)}
            rows.append({"count": n, "method": method, **scores, "found": found})
    return rows, pictures


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread, the first and the last among them.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, min(count, len(names)))]


def sweep_figure(rows: Sequence[Mapping]) -> Figure:
    """Acc_e, Acc_s and `others` by the number of concepts, a line per method; dashes: the original model."""
    titles = {"Acc_e": "Acc_e, percent", "Acc_s": "Acc_s of kept names", "others": "of names the prior does not know"}
    fig, axes = panels(3, 2.6, 2.6, sharey=True)
    for (metric, title), ax in zip(titles.items(), axes, strict=True):
        ax.axhline(100 * rows[0][metric], color=COLORS[6], linestyle="--", linewidth=1, label="original")
        for method, color in zip(METHODS, (COLORS[1], COLORS[0]), strict=True):
            some = [row for row in rows if row["method"] == method]
            y = [100 * row[metric] for row in some]
            ax.plot([row["count"] for row in some], y, "o-", color=color, markersize=4, label=method)
        ax.set(xscale="log", ylim=(-3, 103))
        ticks = sorted({row["count"] for row in rows if row["count"]})
        ax.set_xticks(ticks, map(str, ticks))
        ax.minorticks_off()
        ax.set_xlabel("concepts erased together", fontsize=8)
        ax.set_title(title, fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
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
