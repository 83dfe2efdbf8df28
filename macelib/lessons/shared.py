"""What the lessons share: pictures by name, who is recognised in them, weights that come and go, and what is said.

A notebook's sentences about the run at hand are written from its numbers, by functions called `..._said` beside the
measure that they tell of; `say` shows them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from ..concepts import Concept
from ..errors import MaceError
from ..evaluate import ClipClassifier, Judge
from ..evaluate.work import choices as choices  # known from here, too
from ..method.fuse import Fusion, changed, less_identity
from ..models.entrances import kv_weights
from ..models.pipelines import cast, fast_precision
from ..models.sample import generate
from ..models.swap import untouched
from ..show.viz import DPI, Figure
from ..templates import COMPANIONS, fill

TEMPLATE = "a photo of the {}"


def fast(pipe) -> AbstractContextManager:
    """Context in which the pipeline draws in bf16, where that is faster at no loss to see; else as it is loaded."""
    return cast(pipe, fast_precision(pipe))


def album(
    pipe, names: Sequence[str], seeds: Sequence[int], template: str = TEMPLATE, **drawing
) -> dict[str, list[Image.Image]]:
    """Pictures of every name, one per seed, in bf16 where that is faster; drawing: for `models.sample.generate`."""
    names = list(dict.fromkeys(names))
    prompts = [fill(template, name) for name in names for _ in seeds]
    with fast(pipe):
        images = generate(pipe, prompts, list(seeds) * len(names), **drawing)
    return {name: images[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(names)}


def one(chosen: Mapping[str, str]) -> Concept:
    """The concept of {name: anchor}; MaceError where that holds none or several."""
    if len(chosen) != 1:
        raise MaceError(f"This lesson erases one concept, {len(chosen)} are given: leave one name with its anchor.")
    return Concept(*next(iter(chosen.items())))


def beside(names: Sequence[str], concepts: Sequence[Concept] = ()) -> list[str]:
    """What CLIP compares: the names, the anchors of what is erased, and things that most models draw."""
    return list(dict.fromkeys([*names, *(concept.anchor for concept in concepts), *COMPANIONS]))


def shares(judge: Judge | ClipClassifier, pictures: Mapping[str, list], among: Sequence[str]) -> dict[str, float]:
    """By name, the share (0..1) of its pictures in which the judge sees it.

    mini-judge chooses among all that it knows, CLIP among the given names. MaceError: a name that the judge does not
    know, a single name for CLIP.
    """
    judge.check(list(pictures))
    options = choices(judge, among)
    if options is not None and len(options) < 2:
        raise MaceError(f"{judge.name} compares names with each other: give two at least.")
    found = judge.top1([image for some in pictures.values() for image in some], options)
    at, result = 0, {}
    for name, some in pictures.items():
        result[name] = sum(f == name for f in found[at : at + len(some)]) / len(some)
        at += len(some)
    return result


def mean(values: Mapping[str, float], names: Sequence[str]) -> float:
    """Mean of the values of some names."""
    return sum(values[name] for name in names) / len(names)


def recognised(
    judge: Judge | ClipClassifier, albums: Mapping[str, Mapping[str, list]], groups: Mapping[str, Sequence[str]],
    concepts: Sequence[Concept] = (),
) -> pd.DataFrame:  # fmt: skip
    """Percent of pictures in which the name is seen, mean over a group of names: a row per album, a column per group.

    CLIP chooses among the names of all groups and what is `beside` them. A group of no names has no column.
    """
    everyone = [name for names in groups.values() for name in names]
    rows = {}
    for label, pictures in albums.items():
        some = {name: pictures[name] for name in dict.fromkeys(everyone)}
        found = shares(judge, some, beside(everyone, concepts))
        rows[label] = {group: 100 * mean(found, names) for group, names in groups.items() if names}
    return pd.DataFrame.from_dict(rows, orient="index")


def typical(judge: Judge | ClipClassifier, albums: Mapping[str, Mapping[str, list]]) -> int:
    """Which seed to show: the one at which the judge's verdicts come nearest to the shares over all seeds.

    albums: by label, then by name, a picture per seed. CLIP chooses among the names of the first album.
    """
    rows = [(name, some) for pictures in albums.values() for name, some in pictures.items()]
    found = judge.top1([image for _, some in rows for image in some], choices(judge, list(next(iter(albums.values())))))
    right = torch.tensor([f == name for f, (name, some) in zip(found, _each(rows), strict=True)]).view(len(rows), -1)
    return int((right.double() - right.double().mean(1, keepdim=True)).abs().sum(0).argmin())


def _each(rows: Sequence[tuple[str, list]]) -> list[tuple[str, list]]:
    return [row for row in rows for _ in row[1]]


def table(markdown: str):
    """A recorded table, in Markdown, as a notebook shows it."""
    from IPython.display import Markdown

    return Markdown(markdown)


def say(*sentences: str, head: str = "In this run."):
    """Sentences as a notebook shows them, behind a heading; empty ones are left out, and it where all are."""
    text = " ".join(filter(None, sentences))
    return table(f"**{head}** {text}" if head and text else text)


def series(names: Sequence[str], most: int = 6) -> str:
    """Names in a row, "none" where there is none.

    >>> series(["ship", "frog", "cat"]), series(["a", "b", "c"], most=2), series([])
    ('ship, frog and cat', 'a, b and 1 more', 'none')
    """
    names = [str(name) for name in names]
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def plain(table: pd.DataFrame) -> list[dict]:
    """The rows of a table as they are recorded: by column, without what is NaN, the index as columns."""
    rows = (table if isinstance(table.index, pd.RangeIndex) else table.reset_index()).to_dict("records")
    return [{name: value for name, value in row.items() if not pd.isna(value)} for row in rows]


def sure_said(sure: Mapping[str, Mapping[str, float]], erased: str, others: Sequence[str]) -> str:
    """How sure the judge is, before and after; sure: by state ("original", "erased"), then by name, 0..1."""
    before, after = sure["original"], sure["erased"]
    name, sure_of = fill("the {}", erased), f"{before[erased]:.2f} before and {after[erased]:.2f} after"
    text = f"The judge gives {name} a probability of {sure_of}."
    if not others:
        return text
    worst = min(others, key=lambda name: after[name] - before[name])
    name = fill("the {}", worst)
    return (
        f"{text} For the other names it is {mean(before, others):.2f} before and {mean(after, others):.2f} after, on "
        f"average; of these {name} loses most or gains least: {before[worst]:.2f} to {after[worst]:.2f}."
    )


def pictures_said(before: Mapping[str, float], after: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> str:
    """In what share of their pictures names are recognised, by group, and which lose; shares 0..1 by name."""
    parts = [
        f"{group} {100 * mean(before, names):.0f} % before and {100 * mean(after, names):.0f} % after"
        for group, names in groups.items()
        if names
    ]
    text = f"Recognised: {'; '.join(parts)}."
    kept = [name for group, names in groups.items() if group != "erased" for name in names]
    lose = sorted((n for n in kept if after[n] < before[n]), key=lambda n: after[n] - before[n])
    told = [f"{name} ({100 * before[name]:.0f} to {100 * after[name]:.0f} %)" for name in lose]
    return f"{text} Of the names that should stay, {series(told)} lose{'s' if len(told) < 2 else ''}."


def steepest_said(levels: Sequence[float], moved: Mapping[str, Sequence[float]]) -> str:
    """Between which levels each curve rises most, and how far it gets."""
    told = []
    for label, values in moved.items():
        rise = [b - a for a, b in pairwise(values)]
        i = rise.index(max(rise))
        told.append(f"“{label}” between {levels[i]:g} and {levels[i + 1]:g} (to {values[-1]:.3f} at {levels[-1]:g})")
    return f"Steepest: {'; '.join(told)}."


def returned_said(distances: Mapping[str, tuple[float, float]]) -> str:
    """Which concepts come nearer to the original without their tick; by name, distances with all ticks and without."""
    told = [f"{name} {ticked:.3f} to {free:.3f}" for name, (ticked, free) in distances.items()]
    away = [name for name, (ticked, free) in distances.items() if free >= ticked]
    return f"Distance to the original when a concept's tick goes: {series(told, 99)}. Not nearer: {series(away)}."


@contextmanager
def written(pipe, fusion: Fusion, lora: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None) -> Iterator[None]:
    """The pipeline with W R̃ in place of every W, or W R̃ + B D; what was there comes back at the end.

    lora: by layer B (out, r) and D (r, d), as `Loras.select` gives them.
    """
    change = less_identity(fusion.R_tilde)
    with untouched(pipe):
        with torch.no_grad():
            for name, w in kv_weights(pipe.unet).items():
                w.copy_(changed(w, change, name, *(part[name] for part in lora or ())))
        yield


def panels(columns: int, width: float = 2.6, height: float = 2.6, **kw) -> tuple[Figure, list]:
    """A figure with plain axes side by side, in inches."""
    return tiles(columns, columns, width, height, **kw)


def tiles(count: int, columns: int, width: float, height: float, **kw) -> tuple[Figure, list]:
    """A figure with so many plain axes in rows of so many, each of a size in inches; the last row may be short."""
    lines = max(1, -(-count // columns))
    fig = Figure(figsize=(columns * width, lines * height), dpi=DPI, layout="constrained")
    fig.set_facecolor("white")
    axes = list(fig.subplots(lines, columns, squeeze=False, **kw).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
    return fig, axes[:count]
