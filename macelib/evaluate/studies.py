"""A protocol of the paper from end to end: erase what it asks for, then measure. A study cut short goes on.

`objects_study`: the ten objects, one erased at a time. `characters_study`: many characters or celebrities together.
`tuning_study`: as that, of concepts in neither, to choose settings by; `grid_study`: a grid of settings on these.
`ablation_study`: what each stage brings.
`pairs_study`: erased things beside others in one prompt. `keeping_study`: what names to keep do to others.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..concepts import Concept, paper_list
from ..config import EraseConfig
from ..errors import MaceError
from ..files import name_of
from ..job import erase
from ..models.families import family_of
from . import protocols
from .companions import Pairs, pairs
from .keeping import DEMO
from .lists import character_lists, companion_lists, object_list, tuning_lists
from .tables import Evaluation
from .tuning import Grid, Tuning, changed, edits, published, tune
from .work import Progress, check_seeds, label


def objects_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    only: Sequence[str] | None = None,
    images: int = 50,
    progress: Progress | None = None,
    **options,
) -> Evaluation:
    """Erase each of the paper's ten objects alone, with the same settings, and measure Acc_e, Acc_s, Acc_g and H_o.

    only: some of the ten. folder: erasures and evaluation. options: of `objects`. MaceError: an object not of the ten.
    """
    check_seeds(images)
    chosen = _chosen(pipe, only)
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
    progress: Progress | None = None,
    **options,
) -> Evaluation:
    """Erase `count` people whom the model is known to draw, or celebrities, together: Acc_e, Acc_s and H_c.

    As many are kept, the paper's 100 where they are celebrities (erase 1, 5, 10 or 100); they are the domain prior, as
    in the paper, unless the settings name one. options: of `characters`.
    """
    lists, measure = character_lists(count, family_of(pipe)), _measure(pipe)
    return _together(pipe, lists, config, Path(folder), f"{count} characters", progress, measure, seeds, options)


def tuning_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    count: int = 60,
    seeds: Sequence[int] = range(3),
    progress: Progress | None = None,
    **options,
) -> Evaluation:
    """As `characters_study`, of concepts that are set apart to choose settings on, in two prompts.

    MaceError: a model of whose family no such names are known.
    """
    options = {"templates": protocols.TUNING_TEMPLATES, **options}
    lists, measure = tuning_lists(count, family_of(pipe)), protocols.characters
    return _together(pipe, lists, config, Path(folder), f"{count} concepts", progress, measure, seeds, options)


def grid_study(
    pipe,
    folder: str | Path,
    grid: Grid,
    config: EraseConfig | None = None,
    *,
    seeds: Sequence[int] = range(3),
    progress: Progress | None = None,
    **options,
) -> Tuning:
    """Every point of a grid on the concepts that settings are chosen on, and the best of them: `tuning.tune`.

    config: what the points of MACE's grid are changes of; those of another method's, of what is published for its task.
    """

    def settled(how: str, concepts: list[Concept], kept: list[str], point: dict) -> EraseConfig:
        settings = changed(config or EraseConfig(), point)
        if how == "together":
            settings = settings if settings.defaults else replace(settings, defaults="celebrity")
            settings = settings if settings.prior.domain else settings.keeping(kept, settings.prior.lambda3)
        return settings

    def erased(how: str, concepts: list[Concept], kept: list[str], point: dict, name: str):
        return _erased(pipe, concepts, settled(how, concepts, kept, point), Path(folder), name, progress)

    def asked(how: str, concepts: list[Concept], kept: list[str], point: dict) -> dict:
        if grid.method != "mace":
            return published(grid.method, how, point)
        return settled(how, concepts, kept, point).for_model(pipe, concepts).to_dict()  # by the presets as they are

    make = erased if grid.method == "mace" else edits(pipe, folder, grid.method, progress)
    return tune(pipe, folder, grid, make, asked, seeds=seeds, progress=progress, **options)


ABLATION: dict[str, dict] = {  # row of the table -> settings
    "stage 1 alone": {"stages": "1"},
    "stage 2 alone": {"stages": "2"},
    "stages 1 and 2, added up": {"stages": "1+2"},
    "all, without CFIS": {"stages": "all", "timesteps": "uniform"},
    "all": {"stages": "all"},
}


def ablation_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    only: Sequence[str] | None = None,
    count: int = 100,
    images: int = 50,
    seeds: Sequence[int] = range(5),
    progress: Progress | None = None,
    **options,
) -> Evaluation:
    """What each stage brings: the same concepts erased with `stages` 1, 2, both added up, and all, and without CFIS.

    The concepts are the characters of `characters_study`, or `only` these of the paper's ten objects, erased together
    and measured as by `objects_study`. The settings are `config`'s but for `ABLATION`; training images are shared.
    """
    config, folder = config or EraseConfig(), Path(folder)
    check_seeds(images if only else len(seeds))
    if only:
        concepts, kept = _chosen(pipe, only), ()
    else:
        concepts, kept, config = _beside(*character_lists(count, family_of(pipe)), config)
    erasures = []
    for name, change in ABLATION.items():
        train = replace(config.train, timesteps=change.get("timesteps", config.train.timesteps))
        settings = replace(config, stages=change["stages"], train=train)
        erasures.append(_erased(pipe, concepts, settings, folder, name, progress))
    options |= {"labels": [*ABLATION], "folder": folder / "evaluation", "progress": progress}
    if only:
        return protocols.objects(pipe, erasures, images=images, **options)
    return _measure(pipe)(pipe, erasures, kept, seeds=seeds, **options)


def pairs_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    only: Sequence[str] | None = None,
    tuning: bool = False,
    seeds: Sequence[int] = range(5),
    progress: Progress | None = None,
    **options,
) -> Pairs:
    """Erased things beside companions that stay, two in a prompt, in both orders: `pairs.pairs`.

    The ship alone, then the demo's three; or `only` these, each alone and all together. tuning: each alone and all
    together of the names that settings may be chosen on, beside companions among them. MaceError: an unknown name.
    """
    known, companions = companion_lists(family_of(pipe), tuning)
    by_name = {concept.name: concept for concept in known}
    only = list(only or (by_name if tuning else DEMO))
    if unknown := [name for name in only if name not in by_name]:
        raise MaceError(f"{', '.join(unknown)}: not among {', '.join(by_name)}.")
    alone = [[by_name[name]] for name in (only if tuning or set(only) != set(DEMO) else DEMO[:1])]
    lists = alone + ([[by_name[name] for name in only]] if len(only) > 1 else [])
    erasures = [_erased(pipe, some, config, Path(folder), label(some), progress) for some in lists]
    folder = Path(folder) / "evaluation"
    return pairs(pipe, erasures, companions, seeds=seeds, folder=folder, progress=progress, **options)


def _measure(pipe):
    """The protocol of people whom the model is known to draw, or that of proper names."""
    return protocols.characters if family_of(pipe).people else protocols.celebrities


def check_only(names: Sequence[str]) -> None:
    """MaceError for a name that is none of the paper's ten objects, which are the same for every model."""
    known = [concept.name for concept in paper_list("objects")]
    if unknown := set(names) - {*known}:
        raise MaceError(f"{', '.join(sorted(unknown))}: not of the paper's ten ({', '.join(known)}).")


def _chosen(pipe, only: Sequence[str] | None) -> list[Concept]:
    """Some of the paper's ten objects, or all; MaceError for another name."""
    check_only(only or ())
    return [c for c in object_list(family_of(pipe)) if not only or c.name in only]


def _beside(
    erased: list[Concept], kept: list[str], config: EraseConfig
) -> tuple[list[Concept], list[str], EraseConfig]:
    """The two lists, and the settings for many concepts with the second list as the domain prior, unless they say."""
    config = config if config.defaults else replace(config, defaults="celebrity")
    return erased, kept, config if config.prior.domain else config.keeping(kept)


def _together(pipe, lists, config, folder: Path, label: str, progress, measure, seeds, options: dict) -> Evaluation:
    """Erase the first of two lists beside the second, and measure both."""
    check_seeds(len(seeds))
    erased, kept, config = _beside(*lists, config or EraseConfig())
    erasure = _erased(pipe, erased, config, folder, label, progress)
    return measure(pipe, erasure, kept, seeds=seeds, folder=folder / "evaluation", progress=progress, **options)


def _erased(pipe, concepts: list[Concept], config, folder: Path, label: str, progress):
    """Erase, and keep the erasure under its label; training images are shared among a study's erasures."""

    def tell(stage: str, done: int, total: int, detail: str) -> None:
        if progress:
            progress(f"{label}: {stage}", done, total, detail)

    erasure = erase(pipe, concepts, config, folder=folder / "work", progress=tell)
    erasure.save(folder / f"{file_name(label)}.safetensors")
    return erasure


def file_name(label: str) -> str:
    """The name of the file that holds a study's erasure.

    >>> file_name("all, without CFIS")
    'all-without-cfis'
    """
    readable = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    return readable if label.isascii() and 0 < len(readable) < 100 else name_of(label)
