"""What the library reads of the world beside the models: catalogue, split of names, renderings with exact masks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from PIL import Image

from macelib.files import atomic
from macelib.models.mini import PEOPLE, SIZE

from .catalogue import ART_STYLES, CIFAR_10, COMPANIONS, GROUPS, catalogue, names, styles
from .render import compose
from .scenes import SCENES

TUNING = 60  # names that settings are tuned on, erased; as many kept
RENDERED = (*CIFAR_10, "pizza", "guitar")  # concepts whose renderings notebook 02 looks at
RULE = (
    "Of all drawn concepts but people (characters and faces), the paper's ten objects and the unsafe group, in the "
    "order of the SHA-256 of their names, the first 60 are erased and the next 60 kept where settings are chosen. All "
    "other names are the protocols'."
)


def world_index() -> dict:
    """`world.json`: every concept, group, artist and style, as the library reads them."""
    concepts = [
        {"name": e.name, "group": e.group, "anchor": e.anchor, "synonyms": [*e.synonyms], "drawn": bool(e.code_point)}
        for e in catalogue()
    ]
    return {
        "groups": GROUPS,
        "artists": [*ART_STYLES],
        "styles": [*styles()],
        "companions": [*COMPANIONS],
        "concepts": concepts,
    }


def split() -> dict:
    """`split.json`: which names settings may be chosen on, by the rule that it states."""
    excluded = (*PEOPLE, "unsafe")
    eligible = [e.name for e in catalogue() if e.code_point and e.group not in excluded and e.name not in CIFAR_10]
    ordered = sorted(eligible, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return {"rule": RULE, "erased": ordered[:TUNING], "kept": ordered[TUNING : 2 * TUNING]}


def rendering_sheet() -> Image.Image:
    """RGBA tiles, a row a concept: every artist before a plain colour and a painted scene; alpha is the exact mask."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for name in RENDERED:
        n = 2 * len(ART_STYLES)
        concept, nothing = torch.full((n,), names()[name]), torch.full((n,), -1)
        style = torch.arange(len(ART_STYLES)).repeat_interleave(2)
        scene = torch.where(torch.arange(n) % 2 == 1, torch.randint(len(SCENES), (n,), generator=generator), nothing)
        batch = compose(concept, nothing, style, scene, generator)
        rows.append(torch.cat([batch.images, batch.alpha], 1))  # (8, 4, 64, 64)
    tiles = torch.stack(rows)  # (n, 8, 4, 64, 64)
    sheet = tiles.permute(0, 3, 1, 4, 2).reshape(len(RENDERED) * SIZE, -1, 4)
    return Image.fromarray((sheet * 255).round().byte().numpy(), "RGBA")


def write_shipped(folder: Path) -> None:
    """Write `world.json`, `split.json`, `renderings.json` and `renderings.png` into a folder."""
    texts = {"world.json": world_index(), "split.json": split(), "renderings.json": {"names": [*RENDERED]}}
    for file, content in texts.items():
        with atomic(folder / file) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic(folder / "renderings.png") as temporary:
        rendering_sheet().save(temporary, format="PNG", optimize=True)
