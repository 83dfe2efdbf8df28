"""Settings of an erasure: one frozen dataclass per stage, defaults by kind of concept, YAML in and out.

The hyper-parameters that depend on the kind of a concept stand in one table, `KINDS`. A field that is None in
`EraseConfig` is read from it; a field that is set holds for every concept.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import MaceError
from .reading import phrases, read_data
from .templates import KEPT_TEMPLATES, fill

KEPT = 250.0  # λ3 of names to keep: together they count as much as 250 times the general captions


@dataclass(frozen=True)
class PriorConfig:
    """What has to stay as it is: captions of general content, and prompts or names of the domain."""

    captions: str | None = None  # .txt, .json (COCO captions) or .csv; None: the built-in captions of the model
    domain: tuple[str, ...] = ()  # prompts to preserve with extra weight, e.g. names to keep
    names: tuple[str, ...] = ()  # of the domain prompts, only the tokens of these names count; none: all tokens
    lambda3: float = 1.0  # weight of the domain prompts beside the general captions
    use: bool = True  # False: no prior, whatever lambda1 and lambda2 say


@dataclass(frozen=True)
class RefineConfig:
    """Stage 1, Eq. 2."""

    lambda0: float = 1.0  # ridge towards the original weights, for each concept, by its weight
    lambda1: float = 50.0  # weight of the prior: as much as lambda1 captions, for each concept
    products: Literal["fp64", "mixed"] = "fp64"  # mixed: fp32 products, fp64 sums


@dataclass(frozen=True)
class ImagesConfig:
    """Training images of stage 2 and the concept's mask in them; None: by kind."""

    count: int | None = None  # images per concept
    steps: int = 25  # denoising steps
    guidance: float | None = None  # classifier-free guidance scale; None: the pipeline's own
    batch: int = 8  # images drawn at once
    autocast: Literal["bf16", "fp16"] | None = None  # precision they are drawn in; None: as loaded
    masks: Literal["attention", "grounding", "full"] | None = None  # where the concept is; None: by kind


@dataclass(frozen=True)
class TrainOptions:
    """Stage 2, Eq. 3-5: the fields of `macelib.method.lora.train.TrainConfig`; None: by kind."""

    rank: int | None = None  # of a concept's LoRA
    D: Literal["random", "own"] | None = None  # random: trained beside B; own: fixed, it answers the own tokens alone
    steps: int | None = None  # AdamW steps per concept
    lr: float | None = None  # learning rate
    timesteps: Literal["cfis", "uniform", "adaptive"] | None = None  # how the training timestep is drawn
    t1: int | None = None  # Eq. 5, timestep 0-999
    t2: int | None = None  # Eq. 5, timestep 0-999
    gamma: float | None = None  # Eq. 5, steepness
    squared: bool | None = None  # Eq. 3; False: the sum of unsquared norms
    include_eos: bool | None = None  # [EOS] and padding belong to S in Eq. 3
    clip: float | None = None  # largest gradient norm of one concept's LoRA
    concepts_per_pass: int | None = None  # concepts trained in one forward pass
    autocast: Literal["bf16", "fp16"] | None = None  # precision of the forward pass; None: as loaded
    gradient_checkpointing: bool | None = None  # less memory, more time


@dataclass(frozen=True)
class FuseConfig:
    """Stage 3, Eq. 7 ("closed") or the plain sum of Eq. 6 ("naive", a baseline)."""

    method: Literal["closed", "naive"] = "closed"
    lambda0: float = 2.0  # ridge towards the refined weights, for each concept, by its weight
    lambda2: float = 50.0  # weight of the prior: as much as lambda2 captions, for each concept


# The values that fields left at None take, by the kind of a concept. `weight` multiplies the concept's statistics
# (X, G, C) in Eq. 2 and Eq. 7 where there are names to keep: these hold few directions, general captions hold many, and
# so much less of a prior is needed. Prior and ridge count anew for each concept (the ridge by its weight), so that what
# a concept meets does not depend on how many go with it, and R does not grow in directions that hold next to nothing.
# Tuned on mini-SD: objects on wolf, rocket, castle, pizza and penguin, alone and together; celebrities by `mace study
# tuning`, a hundred concepts beside a hundred kept that no protocol asks for (--seeds 3 --steps 8 --autocast bf16,
# guidance 5, the denoiser before its last 850 steps): H_c is 91.1 with these values; 89.6 with a λ3 of 120, 91.5 with
# 500; 90.2 with lr 2e-2. They had been looked for first on the characters' protocol with exchanged roles, the hundred
# that it keeps erased: the same names, not its erasure.
# A celebrity's D is its own tokens' ("own") and B alone is learned, at a high rate: beside a hundred others, and names
# to keep, fusion leaves a third to a half of what D answers to them.
KINDS: dict[str, dict[str, Any]] = {
    "object": {"weight": 1.0, "count": 8, "masks": "attention", "train": {"lr": 3e-3, "steps": 50}},
    "style": {"weight": 1.0, "count": 8, "masks": "full", "train": {"lr": 1e-3, "steps": 50}},
    "celebrity": {"weight": 130.0, "count": 8, "masks": "attention", "train": {"D": "own", "lr": 5e-2, "steps": 50}},
}


@dataclass(frozen=True)
class EraseConfig:
    """Everything `erase` is told besides the pipeline and the concepts."""

    seed: int = 0  # of the images, the LoRAs and the timesteps
    stages: Literal["1", "2", "1+2", "all"] = "all"  # refinement alone, LoRAs alone, both added up, or the method
    defaults: Literal["object", "style", "celebrity"] | None = None  # row of KINDS for all; None: each concept's kind
    prior: PriorConfig = field(default_factory=PriorConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    train: TrainOptions = field(default_factory=TrainOptions)
    fuse: FuseConfig = field(default_factory=FuseConfig)

    def __post_init__(self):
        object.__setattr__(self, "stages", str(self.stages))  # YAML and papermill read 1 as a number
        _check(self, "")
        for name, at_least in _RANGES.items():
            value = self
            for part in name.split("."):
                value = getattr(value, part)
            if value is not None and not value >= at_least:
                raise MaceError(f"{name} is {value!r}; allowed: {at_least} or more.")

    def kind(self, kind: str) -> dict[str, Any]:
        """Row of `KINDS` for a concept's kind; MaceError where there is none."""
        kind = self.defaults or kind
        if kind not in KINDS:
            raise MaceError(f"kind {kind!r} has no defaults; choose from {', '.join(KINDS)}.")
        return KINDS[kind]

    def weight(self, kind: str) -> float:
        """Weight of a concept's statistics in Eq. 2 and 7: by kind beside names to keep, else 1.

        >>> EraseConfig(defaults="celebrity").weight("object"), EraseConfig().keeping(["cat"]).weight("object")
        (1.0, 130.0)
        """
        return self.kind(kind)["weight"] if self.prior.domain else 1.0

    def training(self, kind: str):
        """`TrainConfig` of one kind of concept: fields set here, else `KINDS`, else its own defaults."""
        from .method.lora.train import TrainConfig

        chosen = {k: v for k, v in dataclasses.asdict(self.train).items() if v is not None}
        return TrainConfig(**{"seed": self.seed, **self.kind(kind)["train"], **chosen})

    def image_count(self, kind: str) -> int:
        """Training images per concept."""
        return self.images.count or self.kind(kind)["count"]

    def mask_source(self, kind: str) -> str:
        """Where the masks of a kind of concept come from; a style has no place of its own: the full image."""
        return "full" if kind == "style" else self.images.masks or self.kind(kind)["masks"]

    def keeping(self, names: Sequence[str], weight: float = KEPT) -> "EraseConfig":
        """The same settings with names to keep as the domain prior; `weight` is λ3, that of all names together.

        Where a few names stand beside many that go, a larger weight protects them better. Of the prompts, the own
        tokens of a name alone are held (`prior.names`): [EOS] and padding say much the same of names that stay and of
        those that go. For a model that draws a name from these, give prompts as `prior.domain`: all tokens are held.
        Unless `defaults` is set, it becomes "celebrity": the values for concepts beside names to keep. With another row
        of `KINDS` give a `weight` of 1 or less: the default goes with that row, and would hold everything as it is.

        >>> EraseConfig().keeping(["judge", "Amy Adams"]).prior.domain[::30]
        ('a photo of the judge', 'a photo of Amy Adams')
        """
        names = phrases(names, "The names to keep")
        prompts = tuple(dict.fromkeys(fill(template, name) for name in names for template in KEPT_TEMPLATES))
        prior = dataclasses.replace(self.prior, domain=prompts, names=names, lambda3=weight)
        return dataclasses.replace(self, prior=prior, defaults=self.defaults or "celebrity")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EraseConfig":
        """Inverse of `to_dict`; missing fields keep their defaults. MaceError: field, value and what is allowed."""
        return _build(cls, values, "")

    @classmethod
    def load(cls, path: str | Path) -> "EraseConfig":
        """Read a YAML or JSON file of the shape of `to_dict`; MaceError names file and line."""
        values, where = read_data(path, "settings file")
        try:
            return cls.from_dict({} if values is None else values)
        except MaceError as error:
            field = str(error).partition(" ")[0]  # the message begins with it
            raise MaceError(f"{where(field)}: {error}") from error


_RANGES = {
    "prior.lambda3": 0, "refine.lambda0": 0, "refine.lambda1": 0, "fuse.lambda0": 0, "fuse.lambda2": 0,
    "images.count": 1, "images.steps": 1, "images.batch": 1, "seed": 0, "train.rank": 1, "train.steps": 1,
    "train.lr": 0, "train.concepts_per_pass": 1, "train.clip": 0, "train.t1": 0, "train.t2": 0, "train.gamma": 0,
}  # fmt: skip


def check_settings(config) -> None:
    """MaceError for a field of a dataclass, at any depth, whose value its annotation does not allow."""
    _check(config, "")


def build_settings(cls, values: dict[str, Any]):
    """A dataclass of settings from plain values; MaceError: field, value and what is allowed."""
    return _build(cls, values, "")


def _build(cls, values: Any, prefix: str):
    """Dataclass from a mapping, each value checked against the field's annotation."""
    if not isinstance(values, dict):
        raise MaceError(f"{prefix.rstrip('.') or 'The settings'} is {values!r}; allowed: a mapping of fields.")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise MaceError(f"{prefix}{name} is not a setting; choose from {', '.join(prefix + n for n in hints)}.")
    return cls(**{name: _value(hints[name], value, prefix + name) for name, value in values.items()})


def _check(config, prefix: str) -> None:
    """MaceError for a field that its annotation does not allow, at any depth."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            _check(value, f"{prefix}{name}.")
        else:
            _value(hint, value, prefix + name)


def _value(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type that `hint` says, or MaceError."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the second where a Literal is part of it
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option):
            return _build(option, value, name + ".")
        is_word = isinstance(value, (str, int)) and not isinstance(value, bool)
        if typing.get_origin(option) is Literal and is_word and str(value) in typing.get_args(option):
            return str(value)
        if option is types.NoneType and value is None:
            return None
        is_texts = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
        if typing.get_origin(option) is tuple and is_texts:
            return tuple(value)
        if option in (bool, str) and isinstance(value, option):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is float and (number := _number(value)) is not None:
            return number
    allowed = " or ".join(_say(option) for option in options)
    hint = " in quotes" if "text" in allowed and not isinstance(value, str) else ""
    raise MaceError(f"{name} is {value!r}; allowed: {allowed}{hint}.")


def _number(value: Any) -> float | None:
    """A finite float from a number, or from text such as 1e-4, which YAML reads as text."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and abs(number) < float("inf") else None


def _say(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "a list of text"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, "nothing (null)")
