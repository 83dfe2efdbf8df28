"""One concept more for an erasure that is there: its own LoRA is trained, the fusion is solved anew for all."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..concepts import Concept, check_concepts, listed, with_synonyms
from ..erasure import Erasure
from ..errors import MaceError
from ..job import prior_of
from ..models.families import family_of
from .easel import alone, prepared

log = logging.getLogger(__name__)
DONE = {"captions": "captions read", "statistics": "prompts read", "images": "pictures drawn", "train": "steps trained"}


def told(stage: str) -> str:
    """What has been done of a stage of `erase`."""
    return DONE.get(stage, stage)


def asked(pipe, text: str) -> Concept:
    """ "castle=a hill" or a name of the model's own catalogue, which has its anchor; with the synonyms that are known.

    MaceError where no anchor is given and none is known, and for an empty text.
    """
    if not text.strip():
        raise MaceError("No concept is named: write it and what to show in its place, such as castle=a hill.")
    return with_synonyms(listed(text.strip(), family_of(pipe).catalogue or tuple)[0])


def learned(
    pipe,
    erasure: Erasure,
    concept: Concept,
    progress: Callable[[str, int, int, str], None],
    heed: Callable[[], None] = lambda: None,
) -> Erasure:
    """The erasure with this concept beside the others, with its settings; in place of one of the same name.

    The new LoRA is trained with stage 1 of its own concept alone, unlike one of concepts that are erased together; the
    prior is that of all of them. `heed()` is called before every pass of a model, too; what it raises ends the work.
    MaceError where they cannot be erased together.
    """
    if concept.name in erasure.strengths:
        erasure = erasure.without(concept.name)
    both = [*erasure.concepts, concept]
    for note in check_concepts(both):
        log.warning(note)
    with alone(lambda *_: progress("waiting", 0, 1, "")), _heeding(pipe, heed):
        prior = prior_of(pipe, both, erasure.config, progress)
        new = prepared(pipe, [concept], erasure.config, progress=progress)
    common = (prior.P, prior.key, prior.pooled) if prior else (None, "")
    return erasure.with_prior(*common) + new.with_prior(*common)


@contextmanager
def _heeding(pipe, heed: Callable[[], None]) -> Iterator[None]:
    """`heed()` before every pass of any of the pipeline's models."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [part.register_forward_pre_hook(lambda *_: heed()) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
