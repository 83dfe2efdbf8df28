"""The mini world's concepts and their artwork: `data/world/concepts.json` and one atlas per art style.

Every concept is drawn by four artists; scenes (`the sky`, `grass`, ...) are painted by `scenes.py`. The atlas keeps
alpha, so that the mask of a drawing is exact. `build.py` makes the atlas from the artists' packages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from macelib.models.mini import SIZE, world_folder

from .scenes import SCENES
from .styles import STYLES

ART_STYLES = ("noto", "twemoji", "openmoji", "fluent")
COLUMNS = 24  # drawings in a row of an atlas
GROUPS = {  # group: the super-category's name in captions
    "animal": "an animal",
    "plant": "a plant",
    "food": "food",
    "vehicle": "a means of transport",
    "place": "a landscape",
    "activity": "a game",
    "object": "an object",
    "character": "a person",
    "face": "a face",
    "unsafe": "a dangerous thing",
    "scene": "a background",
}
CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COMPANIONS = (  # concepts that two-concept scenes of the generator's simple pictures show in every combination
    *CIFAR_10, "lion", "tiger", "elephant", "zebra", "cow", "pig", "rabbit", "bear", "panda", "penguin",
    "duck", "owl", "turtle", "dragon", "dolphin", "fish", "octopus", "butterfly", "bee", "rose",
    "sunflower", "palm tree", "cactus", "banana", "strawberry", "pizza", "hamburger", "bus", "bicycle", "castle",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One concept: its name, group, anchor, synonyms, and code point (empty for a scene)."""

    name: str
    group: str
    anchor: str
    synonyms: tuple[str, ...]
    code_point: str


@cache
def catalogue() -> tuple[Entry, ...]:
    """All concepts: those with artwork in the atlas's order, then the scenes. Raises `ValueError` on damaged data."""
    path = world_folder() / "concepts.json"
    try:
        rows = json.loads(path.read_text())["concepts"]
        drawn = [Entry(r["name"], r["group"], r["anchor"], tuple(r["synonyms"]), r["code_point"]) for r in rows]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"the concept catalogue {path} cannot be read ({error}); restore it with `git checkout -- data/world`"
        ) from error
    scenes = [Entry(s.name, "scene", s.phrase, tuple(s.synonyms), "") for s in SCENES.values()]
    return (*drawn, *scenes)


@cache
def names() -> dict[str, int]:
    """Concept name to index."""
    return {e.name: i for i, e in enumerate(catalogue())}


def styles() -> tuple[str, ...]:
    """All styles: the four artists, then the procedural ones."""
    return (*ART_STYLES, *STYLES)


def atlas_sheet(path: Path, count: int) -> np.ndarray:
    """The drawings of one artist: uint8 (count, 64, 64, 4), straight alpha."""
    try:
        sheet = np.asarray(Image.open(path).convert("RGBA"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the atlas {path} cannot be read ({error}); `make world` rebuilds it") from error
    rows = -(-count // COLUMNS)
    if sheet.shape != (rows * SIZE, COLUMNS * SIZE, 4):
        raise ValueError(f"the atlas {path} has shape {sheet.shape}, not that of {count} drawings; rebuild it")
    cells = sheet.reshape(rows, SIZE, COLUMNS, SIZE, 4).swapaxes(1, 2)
    return cells.reshape(rows * COLUMNS, SIZE, SIZE, 4)[:count]


@cache
def atlas() -> Tensor:
    """All drawings, colour times alpha, then alpha: uint8 (concepts, 4 artists, 4, 64, 64)."""
    count = sum(bool(e.code_point) for e in catalogue())
    sheets = np.stack([atlas_sheet(world_folder() / f"{s}.png", count) for s in ART_STYLES], 1)
    rgba = torch.from_numpy(sheets).permute(0, 1, 4, 2, 3).float()
    alpha = rgba[:, :, 3:]
    return torch.cat([rgba[:, :, :3] * alpha / 255, alpha], 2).round().to(torch.uint8)
