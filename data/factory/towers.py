"""Text towers of several widths, by one shortened training, and how many names one map can move on each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from macelib.files import atomic
from macelib.lessons.capacity import capacity, of_tower

from . import measures
from .recipe import Recipe
from .run import FOLDER, TOWERS, World


def recipe_of(recipe: Recipe, width: int) -> Recipe:
    """The recipe of one tower: mini-CLIP alone, with another width and fewer steps."""
    numbers = dataclasses.replace(recipe.clip, width=width, steps=recipe.towers.steps)
    return dataclasses.replace(recipe, name=f"{recipe.name}-tower-{width}", models=("clip",), clip=numbers)


def write_towers(recipe: Recipe, out: Path) -> Path:
    """Train every tower that is still to be trained, measure all, and write `capacity.csv` into `out`."""
    erased, kept = measures.text_names()
    counts, tables = [n for n in measures.NAMES if n <= len(erased)], []
    for width in recipe.towers.widths:
        folder = World(recipe_of(recipe, width)).make() / FOLDER["clip"]
        tables.append(capacity(of_tower(folder, f"tower of {width}"), erased, kept[: measures.BESIDE], counts))
    with atomic(out / TOWERS) as temporary:
        pd.concat(tables).round(4).to_csv(temporary, index=False)
    return out / TOWERS
