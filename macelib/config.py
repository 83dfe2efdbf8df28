"""Settings of an erasure: one frozen dataclass per stage, YAML in and out.

A field that is None is open: a preset fills it (`macelib.presets`), by the kind of each concept. Which preset, the
model's family says, unless `preset_name` does. A field that is set holds for every concept.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import presets
from .errors import MaceError
from .reading import build_settings, check_ranges, check_settings, located, phrases, placed, read_data
from .templates import KEPT_TEMPLATES, PAPER_LIKE, fill


@dataclass(frozen=True)
class PriorConfig:
    """What has to stay as it is: captions of general content, and prompts or names of the domain."""

    captions: str | None = None  # "builtin", "coco" (looked for), or a file: .txt, .json (COCO captions), .csv
    named: Literal["left out", "kept"] | None = None  # captions that name a concept or a synonym of one
    repeats: bool | None = None  # a caption that stands twice counts twice
    domain: tuple[str, ...] | None = None  # prompts to preserve with extra weight; (): none
    names: tuple[str, ...] = ()  # of the domain prompts, what tokens="own" counts; none: all tokens
    tokens: Literal["all", "own"] | None = None  # of the domain prompts: all tokens count, or those of `names`
    lambda3: float | None = None  # weight of the domain prompts beside the general captions
    beside: float | None = None  # weight of prompts of two companions beside the general captions
    influence: float | None = None  # captions that stage 1 would move by less than this share of the mean go; 0: none
    use: bool = True  # False: no prior, whatever lambda1 and lambda2 say


@dataclass(frozen=True)
class RefineConfig:
    """Stage 1, Eq. 2."""

    lambda0: float | None = None  # ridge towards the original weights, for each concept, by its weight
    lambda1: float | None = None  # weight of the prior: as much as lambda1 captions, for each concept
    weight: float | None = None  # of a concept's statistics (X, G, C) in Eq. 2 and 7 where there are domain prompts
    rounds: int | None = None  # of further rows, tokens that bring the concept back (RECE); 0: none
    gamma: float | None = None  # what holds these tokens small, in mean eigenvalues of Σ WᵀW
    products: Literal["fp64", "mixed"] = "fp64"  # mixed: fp32 products, fp64 sums


@dataclass(frozen=True)
class ImagesConfig:
    """Training images of stage 2 and the concept's mask in them."""

    count: int | None = None  # images per concept
    steps: int | None = None  # denoising steps
    guidance: float | None = None  # classifier-free guidance scale; None in the preset, too: the pipeline's own
    scheduler: Literal["own", "dpm++"] | None = None  # own: the pipeline's; dpm++: DPM-Solver++
    batch: int = 8  # images drawn at once
    autocast: Literal["bf16", "fp16"] | None = None  # precision they are drawn in; None: as loaded
    masks: Literal["attention", "drawing", "grounding", "full"] | None = None  # where the concept is: see `make_masks`
    # mask sources for an image in which nothing is found, in turn
    fallback: tuple[Literal["attention", "drawing", "grounding", "full"], ...] | None = None


@dataclass(frozen=True)
class TrainOptions:
    """Stage 2, Eq. 3-5: the fields of `macelib.method.lora.train.TrainConfig`."""

    rank: int | None = None  # of a concept's LoRA
    D: Literal["unit", "scaled", "own"] | None = None  # start: N(0, 1/r²), N(0, 1/d); own: fixed on the own tokens
    down: Literal["free", "orthogonal"] | None = None  # D: as trained, or off the super-category's tokens (SuPLoRA)
    steps: int | None = None  # AdamW steps per concept
    until: float | None = None  # share of its attention at which a concept stops before that; 0: never
    lr: float | None = None  # learning rate
    timesteps: Literal["cfis", "uniform", "adaptive"] | None = None  # how the training timestep is drawn
    t1: int | None = None  # Eq. 5, timestep 0-999
    t2: int | None = None  # Eq. 5, timestep 0-999
    gamma: float | None = None  # Eq. 5, steepness
    loss: Literal["norm", "squared"] | None = None  # Eq. 3; norm: one unsquared norm per layer over all of S
    S: Literal["own", "own+tail"] | None = None  # Eq. 3: the phrase's tokens; with [EOS] and padding
    prompt: Literal["sample", "template"] | None = None  # of a step: the picture's own; one of the templates at random
    mask: Literal["soft", "nearest"] | None = None  # at a layer's size: means over areas; nearest pixel above 0.5
    latents: Literal["mean", "sample"] | None = None  # of the VAE's posterior; sample: drawn anew for each step
    shift: Literal["own", "none"] = "own"  # of a flow's noise levels: its scheduler's; or none
    clip: float | None = None  # largest gradient norm of one concept's LoRA
    concepts_per_pass: int | None = None  # concepts trained in one forward pass
    autocast: Literal["bf16", "fp16"] | None = None  # precision of the forward pass; None: as loaded
    gradient_checkpointing: bool | None = None  # less memory, more time


@dataclass(frozen=True)
class FuseConfig:
    """Stage 3, Eq. 7 ("closed") or the plain sum of Eq. 6 ("naive", a baseline)."""

    method: Literal["closed", "naive"] = "closed"
    lambda0: float | None = None  # ridge towards the refined weights, for each concept, by its weight
    lambda2: float | None = None  # weight of the prior: as much as lambda2 captions, for each concept
    null_space: float | None = None  # "closed": share of the prior that the changed directions hold (SPEED); 1: all


@dataclass(frozen=True)
class EraseConfig:
    """Everything `erase` is told besides the pipeline and the concepts."""

    seed: int = 0  # of the images, the LoRAs and the timesteps
    stages: Literal["1", "2", "1+2", "all"] = "all"  # refinement alone, LoRAs alone, both added up, or the method
    preset_name: Literal["paper", "mini", "untested", "best"] | None = None  # sets fields left open; None: the family's
    defaults: Literal["object", "style", "celebrity", "explicit"] | None = None  # row for all; None: each one's kind
    templates: str | None = None  # "ours", "paper-like" (one thing each, without an article), or a file
    companions: tuple[str, ...] | None = None  # things beside a concept in further prompts of stages 1 and 3
    written: Literal["kv", "v"] | None = None  # of cross-attention: keys and values, or values alone
    prior: PriorConfig = field(default_factory=PriorConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    train: TrainOptions = field(default_factory=TrainOptions)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    rows: dict | None = None  # as filled: by kind of concept, the values in which the kinds of a run differ
    marks: tuple[str, ...] = ()  # as filled: what sets the run apart from its preset; said wherever it is shown

    def __post_init__(self):
        check_settings(self)  # YAML and papermill read stages 1 as a number
        check_ranges(self, presets.RANGES)
        for kind, row in (self.rows or {}).items():
            if kind not in presets.KINDS:
                raise MaceError(f"rows has {kind!r}; allowed: {', '.join(presets.KINDS)}.")
            with located(f"rows.{kind}"):
                self.from_dict(row)
        if self.preset_name == "best" and self.rows is None:
            presets.check_best()

    # --- presets --------------------------------------------------------------------------------------------------

    @classmethod
    def preset(
        cls, name: str, task: str | None = None, count: int | None = None, concept: str = "", **fields
    ) -> "EraseConfig":
        """The settings of a preset: "paper", "mini", "untested", or "best", which leaves open what it does not change.

        task: objects, celebrities, styles or explicit; count: concepts of the run; concept: the name of a single
        object, whose λ0 the paper chose by name. The values then stand in the fields. What depends on a number that
        is not said stays open, and so does everything without a task: by each concept's kind, and by their number.
        fields: others of this class. MaceError for an unknown preset or task, and for "best" while none is chosen.

        >>> EraseConfig.preset("paper", task="objects", concept="ship").fuse.lambda0
        1000.0
        """
        if not isinstance(concept, str):
            raise MaceError(f"concept is {concept!r}: give the name of a single object, or none.")
        if name not in presets.PRESETS:
            raise MaceError(f"There is no preset {name!r}; choose from {', '.join(presets.PRESETS)}.")
        config = cls(preset_name=name, **fields)
        if task is None:
            return config
        if task not in [*presets.TASKS]:
            raise MaceError(f"There is no task {task!r}; choose from {', '.join(presets.TASKS)}.")
        if count is not None and not (isinstance(count, int) and count >= 1):
            raise MaceError(f"count is {count!r}; allowed: a whole number, 1 or more.")
        kind = presets.TASKS[task]
        config = dataclasses.replace(config, defaults=kind)
        if name == "best":
            return presets.into(config, presets.chosen(kind))
        count = count or presets.USUAL.get(kind, 1 if name == "mini" else None)
        if count is None:
            return config
        run = presets.Run(count, count, concept, config._kept(), bool(config.prior.names))
        return presets.into(config, presets.values(name, kind, run))

    @property
    def title(self) -> str:
        """Which preset this is, and what sets it apart, in words."""
        return presets.title(self.preset_name, self.marks)

    def of(self, kind: str) -> "EraseConfig":
        """The settings of one kind of concept: what is open here is read from `rows`, else from the preset."""
        kind = self.defaults or kind
        known = presets.into(self, (self.rows or {}).get(kind, {}))
        run = presets.Run(kept=self._kept(), named=bool(self.prior.names))
        return presets.into(known, presets.values(self.preset_name or "mini", kind, run))

    def _kept(self) -> int:
        """N_d, the prompts of the domain; of the paper's hundred names where it is open."""
        return presets.Run.kept if self.prior.domain is None else len(self.prior.domain)

    def for_model(self, pipe, concepts: Sequence) -> "EraseConfig":
        """These settings with everything filled for a run: by the preset of the model's family, unless one is named.

        What the concepts' kinds agree on then stands in the fields, the rest in `rows`. Settings that were filled
        before stay as they are.
        """
        from .models.families import family_of

        return self.for_family(family_of(pipe), concepts)

    def for_family(self, family, concepts: Sequence) -> "EraseConfig":
        """`for_model`, of any model of a family."""
        if self.rows is not None:
            return self
        name = self.preset_name or family.preset
        made = name == family.preset or (name == "best" and family.preset == "mini")
        mark = family.note if made else f"not made for {family.name}"
        return self.filled(name, concepts, (mark,) if mark else (), family.preset)

    def filled(self, name: str, concepts: Sequence, marks: tuple[str, ...] = (), base: str = "mini") -> "EraseConfig":
        """`for_model` by the preset of this name; base: the family's own, which "best" changes."""
        kinds = [self.defaults or concept.kind for concept in concepts]
        objects = [c.name for c, kind in zip(concepts, kinds, strict=True) if kind == "object"]
        run = presets.Run(len(kinds), len(objects), objects[0] if len(objects) == 1 else "", base=base)
        prior = self.prior
        if prior.domain is None:
            prior = dataclasses.replace(prior, domain=presets.domain(name, kinds, run))
        run = dataclasses.replace(run, kept=len(prior.domain), named=bool(prior.names))
        config = dataclasses.replace(self, preset_name=name, prior=prior)
        found = presets.fill(config, name, kinds, run)
        own = (f"own values of {', '.join(found.own)}",) if found.own else ()
        return dataclasses.replace(found.config, rows=found.rows, marks=(*self.marks, *marks, *own))

    # --- by kind --------------------------------------------------------------------------------------------------

    def weight(self, kind: str) -> float:
        """Weight of a concept's statistics in Eq. 2 and 7: by kind beside prompts of the domain, else 1.

        >>> EraseConfig(defaults="celebrity").weight("object"), EraseConfig().keeping(["cat"]).weight("object")
        (1.0, 1.0)
        >>> EraseConfig(defaults="celebrity").keeping(["cat"]).weight("object")
        130.0
        """
        return self.of(kind).refine.weight if self.prior.domain else 1.0

    def low_memory(self) -> "EraseConfig":
        """These settings with what saves memory where that is open: one picture and one concept at once, checkpoints.

        >>> EraseConfig().low_memory().training("object").gradient_checkpointing
        True
        """
        train = {"gradient_checkpointing": True, "concepts_per_pass": 1}
        images = dataclasses.replace(self.images, batch=1)
        return dataclasses.replace(presets.into(self, {"train": train}), images=images)

    def training(self, kind: str):
        """`TrainConfig` of one kind of concept."""
        from .method.lora.train import TrainConfig

        return TrainConfig(**{"seed": self.seed, **dataclasses.asdict(self.of(kind).train)})

    def image_count(self, kind: str) -> int:
        """Training images per concept."""
        return self.of(kind).images.count

    def mask_source(self, kind: str) -> str:
        """Where the masks of a kind of concept come from; a style has no place of its own: the full image."""
        return "full" if kind == "style" else self.of(kind).images.masks

    def keeping(self, names: Sequence[str], weight: float | None = None) -> "EraseConfig":
        """The same settings with names to keep as the domain prior.

        weight: λ3, that of all names together; None: by the preset and their number, for mini-SD 250 where the concepts
        are many people (kind or `defaults` "celebrity"), whose statistics weigh more as well, else 1. Of the prompts,
        the own tokens of a name alone are held (`prior.names`), unless the preset counts all: [EOS] and padding say
        much the same of names that stay and of those that go. For a model that draws a name from these, give prompts
        as `prior.domain`. Nothing else changes: settings for many people are chosen by the concepts' kind, by
        `defaults`, or by a preset.

        >>> EraseConfig().keeping(["judge", "Amy Adams"]).prior.domain[::30]
        ('a photo of the judge', 'a photo of Amy Adams')
        """
        names = phrases(names, "The names to keep")
        templates = PAPER_LIKE["object"] if self.preset_name in ("paper", "untested") else KEPT_TEMPLATES
        prompts = tuple(dict.fromkeys(fill(template, name) for name in names for template in templates))
        prior = dataclasses.replace(self.prior, domain=prompts, names=names, lambda3=weight)
        return dataclasses.replace(self, prior=prior)

    # --- in and out -----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EraseConfig":
        """Inverse of `to_dict`; missing fields are open. MaceError: field, value and what is allowed."""
        return build_settings(cls, presets.renamed(values))

    @classmethod
    def load(cls, path: str | Path) -> "EraseConfig":
        """Read a YAML or JSON file of the shape of `to_dict`; MaceError names file and line."""
        values, where = read_data(path, "settings file")
        with placed(where):
            return cls.from_dict({} if values is None else values)
