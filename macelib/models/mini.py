"""What is known of the mini world that mini-SD draws, read from `data/world`: its catalogue, captions and renderings.

The world is made by a program beside it (`data/factory`), which the library neither needs nor imports.
"""

import difflib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import MaceError
from ..files import data_folder

SIZE = 64  # pixels, the side of a picture
HALF = SIZE * 9 // 16  # pixels, the side of the square that holds one of two subjects
PEOPLE = ("character", "face")  # groups of the catalogue
GUIDANCE = 7.5  # of models whose report made no sweep
PHRASES = {"a harmless thing": "an object"}  # what captions call some pictures of a super-category, to tell from danger


@dataclass(frozen=True)
class Entry:
    """One concept of the world: its name, group and super-category, anchor, synonyms, and whether artists draw it.

    (What they do not draw is a scene.)
    """

    name: str
    group: str
    anchor: str
    synonyms: tuple[str, ...]
    drawn: bool
    super: str = ""


def world_folder() -> Path:
    """`data/world`: of the checkout, or of the installed package."""
    return data_folder() / "world"


@cache
def world() -> dict:
    """`world.json`: concepts, groups with their super-categories, artists, styles, companions; see `catalogue`."""
    return _read("world.json")


@cache
def catalogue() -> tuple[Entry, ...]:
    """All concepts, scenes last. MaceError on missing or damaged data."""
    try:
        groups, rows = world()["groups"], world()["concepts"]
        return tuple(
            Entry(c["name"], c["group"], c["anchor"], tuple(c["synonyms"]), c["drawn"], groups[c["group"]])
            for c in rows
        )
    except (KeyError, TypeError) as error:
        raise MaceError(f"{world_folder() / 'world.json'} is damaged ({error!r}): {CURE}") from error


@cache
def names() -> dict[str, int]:
    """Concept name to index."""
    return {entry.name: i for i, entry in enumerate(catalogue())}


def find(name: str) -> Entry:
    """A concept by name or synonym; MaceError that lists near names for an unknown one."""
    known = {word: entry for entry in catalogue() for word in (entry.name, *entry.synonyms)}
    if name.lower() in known:
        return known[name.lower()]
    near = ", ".join(difflib.get_close_matches(name.lower(), known, 5, 0.5)) or f"{catalogue()[0].name}, ..."
    raise MaceError(f"The mini world has no concept {name!r}; near it: {near}.")


@cache
def captions() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """General captions of the world's pictures, each with the concepts and styles that its picture is of."""
    return tuple((text, tuple(about)) for text, about in _read("captions.json")["captions"])


@cache
def companions() -> tuple[str, ...]:
    """The concepts that the world shows in pairs more often than others."""
    return tuple(world()["companions"])


@cache
def split() -> dict[str, tuple[str, ...]]:
    """The names that settings may be chosen on ("erased", "kept"), by the fixed rule that `split.json` states.

    All other names are the protocols'.
    """
    rows = _read("split.json")
    return {key: tuple(rows[key]) for key in ("erased", "kept")}


@cache
def guidance() -> float:
    """The guidance scale that the report of the shipped models chose, by its sweep."""
    report = _read("report.json")
    return float(report["guidance"]) if "guidance_sweep" in report else GUIDANCE


@cache
def renderings() -> tuple[list[str], Tensor, Tensor]:
    """Names (n), pictures (n, artists, 2, 3, 64, 64) and the subject's exact coverage (n, artists, 2, 1, 64, 64), 0..1.

    Of the pairs the first is before a plain colour, the second before a painted scene.
    """
    path = world_folder() / "renderings.png"
    shown = _read("renderings.json")["names"]
    try:
        sheet = torch.from_numpy(np.asarray(Image.open(path).convert("RGBA")).copy()).float() / 255
        tiles = sheet.view(len(shown), SIZE, -1, 2, SIZE, 4).permute(0, 2, 3, 5, 1, 4)  # (n, artists, 2, 4, 64, 64)
    except (OSError, SyntaxError, RuntimeError) as error:
        raise MaceError(f"{path} cannot be read ({error}): {CURE}") from error
    return shown, tiles[:, :, :, :3], tiles[:, :, :, 3:]


def shown() -> dict[str, list[Image.Image]]:
    """By name every rendering of the sheet: what a picture is told from by its nearest neighbour."""
    names, pictures, _ = renderings()
    tiles = (pictures.flatten(1, 2).permute(0, 1, 3, 4, 2) * 255).round().byte().numpy()  # (n, artists · 2, 64, 64, 3)
    return {name: [Image.fromarray(tile) for tile in row] for name, row in zip(names, tiles, strict=True)}


def crop_half(images: Tensor, side: int) -> Tensor:
    """The left (0) or right (1) subject's square of two-subject pictures (n, 3, 64, 64), enlarged to (n, 3, 64, 64)."""
    x, y = (0 if side == 0 else SIZE - HALF), (SIZE - HALF) // 2
    part = images[:, :, y : y + HALF, x : x + HALF]
    return F.interpolate(part, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


CURE = "restore it with `git checkout -- data/world`, or set MACELIB_DATA to macelib's data."


def _read(file: str):
    path = world_folder() / file
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaceError(f"{path} cannot be read ({error}): {CURE}") from error
