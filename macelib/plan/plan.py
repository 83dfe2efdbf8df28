"""`plan`: what an erasure will take on this model and device, for these concepts and settings."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..checks import check_arguments, check_kinds
from ..concepts import Concept, listed, with_synonyms, with_templates
from ..config import EraseConfig
from ..errors import MaceError
from ..groups import groups
from ..job import _layers, _needs_prior, _suggestions
from ..method import prior as priors
from ..method.images import read_manifest
from ..method.lora.work import Work
from ..method.masks import NOISE_LEVELS, check_grounding
from ..method.refine import stored_rank
from ..models.dit import kind_of
from ..models.entrances import denoiser
from ..models.families import family_of
from ..models.offload import runs_on
from ..models.pipelines import check_pipeline, default_guidance, drawing_hash, model_hash
from ..models.sample import image_size
from ..models.text import embedding_size
from ..presets.values import N as COCO
from . import clock
from .memory import Passes, passes

WORDS = {
    "captions": "captions", "statistics": "statistics of the concepts", "drawing": "training pictures",
    "masks": "masks", "training": "LoRAs",
}  # fmt: skip
DETECTOR = 1.1e9  # bytes of GroundingDINO's and SAM's weights, float32
PNG = 1.6  # bytes of a picture's file per pixel
ENCODED = 8  # pictures that the VAE reads at once


@dataclass(frozen=True)
class Plan:
    """What is to be done, and what it takes. Bytes and seconds are estimates, from a few passes on the device."""

    device: str
    title: str  # of the settings
    concepts: int
    pictures: int  # to be drawn
    kept: int  # drawn already
    calls: int  # of the denoiser, for one sample each: drawing and masks
    steps: int  # of training, over all concepts
    captions: int  # captions and prompts of what has to stay that are to be read
    seconds: dict[str, float]  # by part of the work, see `WORDS`
    memory: dict[str, int]  # bytes at the peak of each part, with all that the process holds
    free: int  # bytes of memory that are free, with what the process holds
    disk: dict[str, int]  # bytes: erasure, and what the folder keeps besides
    space: int | None  # bytes that are free there; None: no folder
    missing: tuple[str, ...] = field(default=())  # sentences: what is not there, and what that costs

    @property
    def peak(self) -> int:
        """Most memory, in bytes."""
        return max(self.memory.values())

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())

    def lines(self) -> list[str]:
        """The plan in words."""
        largest = max(self.memory, key=self.memory.get)
        parts = [f"{WORDS[name]} {_time(s)}" for name, s in self.seconds.items() if s >= 0.5]
        kept = f" ({self.kept} more are there)" if self.kept else ""
        lines = [
            f"{_many(self.concepts, 'concept')} on {self.device}; {self.title}",
            f"  to draw: {_many(self.pictures, 'picture')}{kept}; {self.calls:,} passes of the denoiser, and "
            f"{_many(self.steps, 'training step')}",
            f"  time: about {_time(self.total)}" + (f": {', '.join(parts)}" if parts else ""),
            f"  memory: about {_size(self.peak)} at most ({WORDS[largest]}); {_size(self.free)} are there",
            f"  disk: about {_size(sum(self.disk.values()))}, of which the erasure takes "
            f"{_size(self.disk['erasure'])}" + ("" if self.space is None else f"; {_size(self.space)} are free"),
        ]
        if self.captions:
            lines.append(f"  captions of what has to stay: {self.captions:,} to be read, once for each model")
        if self.peak > self.free:
            lines.append("  The memory may not do: --low-memory, a lower images.batch or train.concepts_per_pass.")
        if self.space is not None and sum(self.disk.values()) > self.space:
            lines.append("  The disk may not do: choose another folder.")
        return [*lines, *(f"  {sentence}" for sentence in self.missing)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def plan(pipe, concepts, config: EraseConfig | None = None, folder: str | Path | None = None, prior=None) -> Plan:
    """What `erase` with these arguments will take. It draws nothing, and trains nothing; a few passes are timed.

    Pictures that the folder has already are not counted again. What is missing is said, where `erase` refuses it.
    MaceError: concepts or settings that `erase` would refuse.
    """
    named = config or EraseConfig()
    check_arguments(named, folder, prior)
    check_pipeline(pipe)
    concepts = listed(concepts, lambda: _suggestions(pipe))
    config = named.for_model(pipe, concepts)
    check_kinds(pipe, concepts, config)
    concepts, missing = [with_templates(concept, config.templates) for concept in concepts], []
    captions = 0 if prior else _captions(pipe, concepts, config, missing)
    config = _masked(concepts, config, named, missing)
    wanted, kept = _pictures(pipe, concepts, config, folder)
    guided = _guided(pipe, config.of(concepts[0].kind).images.guidance)
    work = _Done(
        captions=captions,
        pictures=sum(wanted.values()),
        draws=sum(guided * config.of(kind).images.steps * n for kind, n in wanted.items()),
        looks=len(NOISE_LEVELS) * sum(n for kind, n in wanted.items() if config.mask_source(kind) == "attention"),
        steps=0 if config.stages == "1" else sum(config.training(c.kind).steps for c in concepts),
    )
    seconds, memory, base = _reckoned(pipe, concepts, config, work, guided)
    return Plan(
        device=str(runs_on(denoiser(pipe))),
        title=config.title,
        concepts=len(concepts),
        pictures=work.pictures,
        kept=kept,
        calls=work.draws + work.looks,
        steps=work.steps,
        captions=captions,
        seconds=seconds,
        memory=memory,
        free=clock.free(pipe) + base,
        disk=_disk(pipe, concepts, config, image_size(pipe), work.pictures),
        space=None if folder is None else shutil.disk_usage(_existing(Path(folder))).free,
        missing=tuple(missing),
    )


def _guided(pipe, guidance: float | None) -> int:
    """Samples that the denoiser sees for each picture: two with classifier-free guidance, which FLUX.1 does without."""
    scale = default_guidance(pipe) if guidance is None else guidance
    return 1 if kind_of(pipe) == "flux" or (scale is not None and scale <= 1) else 2


@dataclass(frozen=True)
class _Done:
    """How often what is done."""

    captions: int
    pictures: int  # drawn
    draws: int  # passes of the denoiser, for one sample each
    looks: int  # the same, to read its attention
    steps: int  # of training, for one concept each


def _reckoned(pipe, concepts, config: EraseConfig, work: _Done, guided: int) -> tuple[dict, dict, int]:
    """Seconds and bytes by part of the work, and the bytes that the process holds."""
    images, training = config.of(concepts[0].kind).images, config.training(concepts[0].kind)
    pace = clock.pace(pipe, concepts[0], guided * min(images.batch, max(work.pictures, 1)), images.autocast)
    base, cost = clock.held(pipe), passes(pipe, image_size(pipe), training.gradient_checkpointing, training.rank)
    rate = pace.call / max(cost.denoise.flop, 1)  # seconds per operation
    encodes = work.looks // len(NOISE_LEVELS) + work.pictures if work.steps else 0  # for the masks, and to train on
    seconds = {
        "captions": work.captions * pace.prompt,
        "statistics": len(concepts) * pace.concept,
        "drawing": work.draws * pace.call + work.pictures * cost.decode.flop * rate,
        "masks": work.looks * pace.call + encodes * cost.encode.flop * rate,
        "training": work.steps * (cost.train.flop + bool(training.until) * cost.denoise.flop) * rate,
    }
    return seconds, _memory(pipe, concepts, config, cost, guided, base), base


class _Unread(Exception):
    """So many captions are not read yet."""


def _captions(pipe, concepts: Sequence[Concept], config: EraseConfig, missing: list[str]) -> int:
    """How many captions and prompts of what has to stay are to be read; what is missing goes to `missing`."""
    if not _needs_prior(concepts, config):
        return 0
    p, own = config.prior, family_of(pipe).captions
    domain = len(p.domain or ()) if p.lambda3 else 0
    if own is None and p.captions == "coco":
        try:
            priors.coco_files()
        except MaceError as error:
            missing.append(str(error))
            return COCO + domain
    if own is None and p.captions in (None, "builtin"):
        missing.append(
            f"Few captions: the {len(priors.GENERAL)} that are built in protect less than COCO's, with other numbers."
        )

    def tell(_: int, total: int) -> None:
        raise _Unread(total)

    try:
        with _silent(priors.log):
            captions, exclude = priors.captions_for(pipe, p.captions), [with_synonyms(c) for c in concepts]
            how = {"named": p.named, "repeats": p.repeats, "influence": (None, p.influence)}
            priors.prior(pipe, captions, exclude=exclude, progress=tell, **how)
    except _Unread as unread:
        return unread.args[0] * (2 if p.influence else 1) + domain  # to see which count, and again for their statistics
    return domain


@contextmanager
def _silent(log: logging.Logger) -> Iterator[None]:
    """Without notes that `erase` gives, too."""
    before = log.level
    try:
        yield log.setLevel(logging.ERROR)
    finally:
        log.setLevel(before)


def _masked(concepts, config: EraseConfig, named: EraseConfig, missing: list[str]) -> EraseConfig:
    """The settings with the masks that there will be; a detector that is not there is added to `missing`."""
    if config.stages == "1" or "grounding" not in {config.mask_source(c.kind) for c in concepts}:
        return config
    try:
        check_grounding()
    except MaceError as error:
        refused = named.preset_name is not None
        way = "" if refused else " The model's own attention takes its place: four more passes per picture."
        missing.append(f"{error}{way}")
        if not refused:
            return dataclasses.replace(config, images=dataclasses.replace(config.images, masks="attention"))
    return config


def _pictures(pipe, concepts, config: EraseConfig, folder) -> tuple[dict[str, int], int]:
    """Training pictures to be drawn, by kind of concept, and how many the folder has."""
    if config.stages == "1":
        return {}, 0
    wanted, kept, marks = {}, 0, (model_hash(pipe), drawing_hash(pipe))
    for concept in concepts:
        there = 0
        if folder is not None:
            training = config.training(concept.kind)
            work = Work([concept], training, config, (), None, None, *marks, Path(folder), "")
            there = min(len(read_manifest(work.pictures(concept))), config.image_count(concept.kind))
        wanted[concept.kind] = wanted.get(concept.kind, 0) + config.image_count(concept.kind) - there
        kept += there
    return wanted, kept


def _memory(pipe, concepts, config: EraseConfig, cost: Passes, guided: int, base: int) -> dict[str, int]:
    """Bytes at the peak of each part, the largest kind and group of concepts counting."""
    d = embedding_size(pipe)
    own = 4 * d * sum(_layers(pipe).values())  # one more copy of what reads the text, while it is changed
    together = [members for members, _ in groups(concepts, config)]
    most = min(config.images.batch, max(len(some) * config.image_count(some[0].kind) for some in together))  # drawn
    few = min(ENCODED, max(config.image_count(c.kind) for c in concepts))  # of one concept, looked at and encoded
    sliced = getattr(pipe.vae, "use_slicing", False)
    memory = {"statistics": base + 6 * 8 * d * d}
    if config.stages != "1":
        decoded, read = (1 if sliced else most), (1 if sliced else few)
        drawn = max(guided * most * cost.denoise.bytes, decoded * cost.decode.bytes)
        looked = max(few * cost.denoise.bytes, read * cost.encode.bytes)
        detects = "grounding" in {config.mask_source(c.kind) for c in concepts}
        memory["drawing"] = base + own + drawn
        memory["masks"] = base + own + looked + (int(DETECTOR) if detects else 0)
        memory["training"] = base + 2 * own + max(map(len, together)) * cost.train.bytes
    return memory


def _disk(pipe, concepts, config: EraseConfig, size: tuple[int, int], pictures: int) -> dict[str, int]:
    """Bytes that the folder will hold."""
    layers, d = _layers(pipe), embedding_size(pipe)
    rank = max(config.training(c.kind).rank for c in concepts)
    lora = 0 if config.stages == "1" else 4 * rank * (sum(layers.values()) + len(layers) * d)
    k = stored_rank(d, [*layers.values()], rank)
    statistics = 4 * (2 * d * k + k * (k + 1))
    return {
        "erasure": len(concepts) * (statistics + lora) + 8 * d * (d + 1) // 2,
        "LoRAs": len(concepts) * lora,
        "pictures": int(pictures * size[0] * size[1] * PNG),
    }


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _many(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _size(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
