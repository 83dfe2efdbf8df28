"""MACE itself, with the settings chosen among its candidates, and its five ablations: each is a setting or two."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ..concepts import Concept
from ..config import EraseConfig
from ..erasure import Erasure
from ..errors import MaceError
from ..job import erase
from ..models.families import Family
from .registry import Request, register

BY_TASK = {"celebrity": EraseConfig(defaults="celebrity")}  # many people have settings of their own
AS_PUBLISHED = {  # on a model that has settings of its own: the paper's, without COCO's captions and a detector
    "preset_name": "paper",
    "prior": {"captions": "builtin"},
    "images": {"masks": "attention"},
}


@register("mace", EraseConfig, published=BY_TASK, trains=True)
def mace(request: Request, settings: EraseConfig) -> Erasure:
    """All three stages; names to keep are the domain prior, unless the settings name one."""
    settings = replace(keeping(request.kept, settings), seed=request.seed)
    return erase(request.pipe, request.concepts, settings, progress=request.tell, folder=request.folder)


def keeping(kept: Sequence[str], settings: EraseConfig) -> EraseConfig:
    """The settings with the names to keep as the domain prior, where they have a prior and none of their own."""
    if not kept or not settings.prior.use or settings.prior.domain:
        return settings
    return settings.keeping(kept)


def filled(name: str, settings: EraseConfig, family: Family, concepts: Sequence[Concept], kept=()) -> EraseConfig:
    """What a method of these erases with, filled by the presets as they are: what its results depend on.

    Its own change of the settings is left out, but for the preset "best", once something is chosen for it.
    """
    if name == "mace-best":
        with suppress(MaceError):
            settings = replace(settings, preset_name="best")
    return keeping(kept, settings).for_family(family, concepts)


@register("mace-best", EraseConfig, published=BY_TASK, trains=True)
def best(request: Request, settings: EraseConfig) -> Erasure:
    """The preset "best": what was chosen on names to choose settings by. MaceError while nothing is chosen."""
    return mace(request, replace(settings, preset_name="best"))


@register("mace-stage-1", EraseConfig, published=BY_TASK)
def stage_1(request: Request, settings: EraseConfig) -> Erasure:
    """Stage 1 alone (Eq. 2): residual information goes, no LoRA is trained. Its R is one more text map."""
    return mace(request, replace(settings, stages="1"))


@register("mace-added-up", EraseConfig, published=BY_TASK, trains=True)
def added_up(request: Request, settings: EraseConfig) -> Erasure:
    """Stages 1 and 2, the LoRAs added up (Eq. 6) instead of fused."""
    return mace(request, replace(settings, stages="1+2"))


@register("mace-without-cfis", EraseConfig, published=BY_TASK, trains=True)
def without_cfis(request: Request, settings: EraseConfig) -> Erasure:
    """Training timesteps drawn uniformly instead of from Eq. 5."""
    return mace(request, replace(settings, train=replace(settings.train, timesteps="uniform")))


@register("mace-without-prior", EraseConfig, published=BY_TASK, trains=True)
def without_prior(request: Request, settings: EraseConfig) -> Erasure:
    """No prior in Eq. 2 and Eq. 7."""
    return mace(request, replace(settings, prior=replace(settings.prior, use=False)))


@register("mace-values-only", EraseConfig, published=BY_TASK, trains=True)
def values_only(request: Request, settings: EraseConfig) -> Erasure:
    """The whole erasure, of which only the change of the values is written."""
    return mace(request, replace(settings, written="v"))
