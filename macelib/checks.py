"""What can be known about an erasure before any work: arguments, settings and concepts that `erase` refuses."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Literal

from .concepts import Concept, check_concepts, check_kept, with_templates
from .config import EraseConfig
from .errors import MaceError
from .files import cache_folder, check_writable
from .groups import Progress
from .method.prior import Prior, read_captions
from .models.entrances import denoiser, is_joint
from .models.pipelines import elsewhere
from .models.sample import check_drawing
from .models.text import embedding_size

TOLD = "a function of (stage, done, total, detail)"


def check(
    concepts: Sequence[Concept],
    config: EraseConfig,
    folder: str | Path | None = None,
    prior: Prior | None = None,
    progress: Progress | Literal[False] | None = None,
    engine=None,
) -> list[str]:
    """Everything about an erasure that can be known without a model; notes about what deserves a look.

    MaceError: what cannot be erased together or kept beside it, captions or templates that cannot be read, values
    of Eq. 5 that do not fit, a folder or a cache that cannot be written, an argument of another type.
    """
    check_arguments(config, folder, prior, progress, engine)
    notes = [*check_concepts(concepts), *check_kept(concepts, config.prior.names)]
    notes += _unprotected(concepts, config, prior)
    for kind in dict.fromkeys(concept.kind for concept in concepts):
        config.training(kind)
    for concept in concepts if config.templates else ():
        with_templates(concept, config.templates)
    if config.prior.use and config.prior.captions not in (None, "builtin", "coco"):
        read_captions(config.prior.captions)
    for place in (folder, cache_folder()):
        if place is not None:
            check_writable(place)
    return notes


def check_arguments(config, folder=None, prior=None, progress=None, engine=None) -> None:
    """MaceError for an argument of another type than `erase` takes."""
    for name, value, fits, cure in (
        ("config", config, isinstance(config, EraseConfig), "an EraseConfig, such as EraseConfig.from_dict({...})"),
        ("folder", folder, isinstance(folder, (str, os.PathLike, NoneType)), "a path, or None"),
        ("prior", prior, isinstance(prior, (Prior, NoneType)), "what macelib.method.prior.prior returns, or None"),
        ("progress", progress, callable(progress) or progress in (None, False), f"{TOLD}, or False for no bars"),
        ("engine", engine, engine is None or hasattr(engine, "run"), 'macelib.batch.make_engine("local"), or None'),
    ):
        if not fits:
            raise MaceError(f"{name} is {value!r}: give {cure}.")


def check_kinds(pipe, concepts: Sequence[Concept], config: EraseConfig, engine=None) -> None:
    """MaceError for filled settings that the model cannot do: what is written, rank, steps of the training pictures.

    For a pipeline that the processes of an engine cannot load, too.
    """
    own = [config.of(kind) for kind in {concept.kind for concept in concepts}]
    if is_joint(denoiser(pipe)) and any(c.written == "v" for c in own):
        raise MaceError(f"{type(pipe).__name__} reads keys and values by one matrix: leave the setting written at kv.")
    width = embedding_size(pipe)
    for c in own if config.stages != "1" else ():
        check_drawing(pipe, (), c.images.steps)
        if c.train.rank > width:
            raise MaceError(f"train.rank is {c.train.rank}; allowed: 1 to {width}, the width of the model's text.")
    if engine is not None:
        elsewhere(pipe)


def _unprotected(concepts: Sequence[Concept], config: EraseConfig, prior: Prior | None) -> list[str]:
    """A note where the settings leave out what holds other content in place."""
    known = config if config.rows is not None else config.filled(config.preset_name or "mini", concepts)
    own = [known.of(concept.kind) for concept in concepts]
    weights = {"refine.lambda1": max(c.refine.lambda1 for c in own)} if config.stages != "2" else {}
    weights |= {"fuse.lambda2": max(c.fuse.lambda2 for c in own)} if config.stages == "all" else {}
    unused = weights and prior is None and not config.prior.use
    off = " and ".join(["prior.use"] if unused else [name for name, weight in weights.items() if not weight])
    return (
        [f"Without a prior nothing holds other content in place, and most of it may go: {off} is off."] if off else []
    )
