"""A protocol of the paper from end to end: erase what it asks for, then measure. A study cut short goes on.

`objects_study`: the ten objects, one erased at a time. `characters_study`: many characters or celebrities together.
`tuning_study`: as that, of concepts in neither, to choose settings by.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..concepts import Concept, paper_list, retained
from ..config import EraseConfig
from ..errors import MaceError
from ..job import erase
from ..models.pipelines import is_mini
from . import protocols
from .lists import character_lists, object_list, tuning_lists
from .tables import Evaluation


def objects_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    only: Sequence[str] | None = None,
    images: int = 50,
    progress: protocols.Progress | None = None,
    **options,
) -> Evaluation:
    """Erase each of the paper's ten objects alone, with the same settings, and measure Acc_e, Acc_s, Acc_g and H_o.

    only: some of the ten. folder: erasures and evaluation. options: of `objects`. MaceError: an object not of the ten.
    """
    protocols.check_seeds(images)
    chosen = object_list(is_mini(pipe))
    if unknown := set(only or ()) - {c.name for c in chosen}:
        raise MaceError(f"{', '.join(sorted(unknown))}: not of the paper's ten ({', '.join(c.name for c in chosen)}).")
    chosen = [c for c in chosen if not only or c.name in only]
    erasures = [_erased(pipe, [concept], config, Path(folder), concept.name, progress) for concept in chosen]
    return protocols.objects(
        pipe, erasures, images=images, folder=Path(folder) / "evaluation", progress=progress, **options
    )


def characters_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    count: int = 100,
    seeds: Sequence[int] = range(5),
    progress: protocols.Progress | None = None,
    **options,
) -> Evaluation:
    """Erase `count` characters of the mini world, or the paper's celebrities, together: Acc_e, Acc_s and H_c.

    As many are kept, the paper's 100 where they are celebrities (erase 1, 5, 10 or 100); they are the domain prior, as
    in the paper, unless the settings name one. options: of `characters`.
    """
    mini = is_mini(pipe)
    lists = character_lists(count) if mini else (paper_list(f"celebrities_{count}"), retained("celebrities"))
    measure = protocols.characters if mini else protocols.celebrities
    return _together(pipe, lists, config, Path(folder), f"{count} characters", progress, measure, seeds, options)


def tuning_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    count: int = 60,
    seeds: Sequence[int] = range(3),
    progress: protocols.Progress | None = None,
    **options,
) -> Evaluation:
    """As `characters_study`, of concepts of the mini world that no protocol asks for, in two prompts.

    MaceError: a model that does not draw the mini world.
    """
    if not is_mini(pipe):
        raise MaceError(
            "The tuning study is of the mini world's concepts: use mini-sd, or lists of your own with erase."
        )
    options = {"templates": protocols.TUNING_TEMPLATES, **options}
    lists, measure = tuning_lists(count), protocols.characters
    return _together(pipe, lists, config, Path(folder), f"{count} concepts", progress, measure, seeds, options)


def _together(pipe, lists, config, folder: Path, label: str, progress, measure, seeds, options: dict) -> Evaluation:
    """Erase the first of two lists beside the second, and measure both."""
    protocols.check_seeds(len(seeds))
    erased, kept = lists
    config = config or EraseConfig()
    config = config if config.defaults else replace(config, defaults="celebrity")
    config = config if config.prior.domain else config.keeping(kept)
    erasure = _erased(pipe, erased, config, folder, label, progress)
    return measure(pipe, erasure, kept, seeds=seeds, folder=folder / "evaluation", progress=progress, **options)


def _erased(pipe, concepts: list[Concept], config, folder: Path, label: str, progress):
    """Erase, and keep the erasure under its label; training images are shared among a study's erasures."""

    def tell(stage: str, done: int, total: int, detail: str) -> None:
        if progress:
            progress(f"{label}: {stage}", done, total, detail)

    erasure = erase(pipe, concepts, config, folder=folder / "work", progress=tell)
    erasure.save(folder / f"{re.sub(r'[^a-z0-9]+', '-', label.lower())}.safetensors")
    return erasure
