"""Keeping what the studio shows: its pictures, the settings that draw them again, and the erasure as it is ticked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..erasure import Erasure
from ..errors import MaceError
from ..files import atomic, write_json
from ..models.about import made
from ..models.pipelines import drawing_hash, model_hash
from .easel import alone, drawn
from .results import save_figure

ROWS = {"before": "original", "after": "erased"}  # rows of the page: name of their files


def keep(
    folder: Path, pipe, erasure: Erasure, rows: Mapping[str, Sequence[Image.Image]], figure, settings: Mapping
) -> Path:
    """Write everything into a new folder 001, 002, ... in `folder`, and return it; MaceError where it cannot be made.

    settings: what the page says ("prompt", "seeds", "steps", "guidance", "strengths", ...); what else the
    pictures depend on is added. The erasure holds the concepts of settings["strengths"], at these strengths.
    """
    place = _new(folder)
    for row in drawn(rows):
        what, _, other = row.partition(": ")
        for seed, image in zip(settings["seeds"], rows[row], strict=True):
            with atomic(place / f"{'beside-' if other else ''}{ROWS[what]}-seed-{seed}.png") as temporary:
                image.save(temporary)
    save_figure(place, "page", figure)
    strengths = settings["strengths"]
    if strengths:
        erasure.only(list(strengths)).scaled(strengths).save(place / "erasure.safetensors")
    with alone():
        about = {"model": model_hash(pipe), "drawn_by": drawing_hash(pipe), **made(pipe)}
    write_json(place / "settings.json", {**settings, **about, "config": erasure.config.to_dict()})
    return place


def _new(folder: Path) -> Path:
    """The first folder of a number that is not there; two pages never get the same."""
    number = 1
    while True:
        place = folder / f"{number:03d}"
        try:
            place.mkdir(parents=True)
            return place
        except FileExistsError:
            number += 1
        except OSError as error:
            raise MaceError(f"{place} cannot be made ({error}): give the studio another folder.") from error
