"""Running a method by its name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..concepts import Concept, check_concepts, refuse_both
from ..config import EraseConfig
from ..errors import MaceError, explained
from ..models.swap import untouched
from ..reading import build_settings
from .changes import Change
from .edit import Edit
from .registry import Progress, Request, method


def build(
    pipe,
    concepts: Sequence[Concept],
    name: str,
    settings: Any = None,
    *,
    task: str = "object",
    kept: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
    folder: str | None = None,
):
    """Run one method on a pipeline, which is left as it was: an `Edit`, or for MACE and its ablations an `Erasure`.

    settings: of the method's class, a mapping of some of its fields, or None: as published for `task`. kept: names that
    must stay. MaceError: an unknown method, kind of task or setting, a concept that is also kept, what the method
    itself refuses.
    """
    chosen, concepts = method(name), tuple(concepts)
    check_concepts(concepts)
    refuse_both([concept.name for concept in concepts], kept)
    start = dataclasses.asdict(chosen.settings_for(task))
    if settings is None or isinstance(settings, Mapping):
        settings = build_settings(chosen.settings, start | dict(settings or {}))
    if not isinstance(settings, chosen.settings):
        raise MaceError(f"The settings of {name!r} must be {chosen.settings.__name__}, not {type(settings).__name__}.")
    if getattr(pipe, "unet", None) is None and chosen.settings is not EraseConfig:
        raise MaceError(f"{name} is written for models with a UNet; {type(pipe).__name__} has none: choose mace.")
    with explained(), untouched(pipe):
        request = Request(pipe, concepts, tuple(kept), seed, progress or (lambda *_: None), folder)
        change = chosen.make(request, settings)
    return Edit.of(request, name, settings, change) if isinstance(change, Change) else change
