"""The recipe of a world, a frozen dataclass per model, read from YAML: seed, steps, batch, optimizer, mixture, stages.

What it does not hold is the models' code: architectures, losses, wordings of captions, disturbances of the judge's
pictures. A training is keyed by the hash of the numbers that it depends on (`key_of`), so that a checkpoint of another
recipe is never used. A recipe for another world is a file of what differs from the shipped one.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from macelib.files import hash_text

from .catalogue import COMPANIONS, names

SHIPPED = Path(__file__).with_name("recipe.yaml")
MODELS = ("clip", "vae", "judge", "unet")  # in the order in which they are trained
SHARES = ("decay", "average", "empty", "context_dropout", "share")
COUNTS = dict.fromkeys(("batch", "steps", "width", "layers", "pool", "passes", "stages", "channels", "heads"), 1) | {
    "whitened_over": 2,
    "guidance": 0,
    "vocabulary": 600,
}  # the least of a number, or of each in a list, which must not be empty


@dataclass(frozen=True)
class World:
    """Shares of pictures and captions; see `recipe.yaml`."""

    pairs: float
    companions: float
    procedural: float
    scenic: float
    synonym: float
    super_category: float
    no_subject: float
    name_artist: float
    name_scene: float
    without: tuple[str, ...] = ()  # taken over from the recipe
    harmless: float = 0.5
    scene_phrase: float = 0.6
    style_alone: float = 0.8
    reworded: float = 0.3


@dataclass(frozen=True)
class Training:
    """What every training has: steps of a batch, AdamW's numbers, the shape of its schedule."""

    batch: int
    lr: float
    weight_decay: float
    warmup: int
    decay: float
    average: float


@dataclass(frozen=True, kw_only=True)
class Clip(Training):
    """mini-CLIP."""

    width: int
    layers: int
    vocabulary: int
    steps: int
    betas: tuple[float, ...] = (0.9, 0.98)
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Vae(Training):
    """The autoencoder."""

    steps: int
    noise: float
    whitened_over: int
    betas: tuple[float, ...] = (0.9, 0.95)
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Judge(Training):
    """mini-judge."""

    steps: int
    betas: tuple[float, ...] = (0.9, 0.999)
    clip_norm: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Unet(Training):
    """mini-SD's denoiser."""

    channels: tuple[int, ...]
    heads: tuple[int, ...]
    empty: float
    context_dropout: float
    pool: int
    passes: int
    stages: tuple[int, ...]
    rewarm: int
    betas: tuple[float, ...] = (0.9, 0.99)
    clip_norm: float = 1.0

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(self.stages)


@dataclass(frozen=True)
class Report:
    """How the finished world is measured."""

    steps: int
    guidance: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class Towers:
    """Text towers of several widths, each by mini-CLIP's training with so many steps, for the lesson on capacity."""

    widths: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class Recipe:
    """A world and how its models are trained."""

    name: str
    seed: int
    world: World
    clip: Clip
    vae: Vae
    judge: Judge
    unet: Unet
    report: Report
    towers: Towers
    models: tuple[str, ...] = MODELS
    without: tuple[str, ...] = field(default=())
    file: str = field(default="", compare=False)  # where it was read from, for the cards; nothing depends on it

    def __post_init__(self):
        if unknown := sorted(set(self.models) - set(MODELS)):
            raise ValueError(f"models has {', '.join(unknown)}; allowed: {', '.join(MODELS)}")
        if [*self.models] != [model for model in MODELS if model in self.models]:
            raise ValueError(f"models is {', '.join(self.models)}: name each once, in the order {', '.join(MODELS)}")
        if unknown := sorted(set(self.without) - names().keys()):
            raise ValueError(f"without has {', '.join(unknown)}: the world has no such concept")
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name is {self.name!r}: use letters, digits, - and _")
        for section in ("world", *MODELS, "report", "towers"):
            for name, value in vars(getattr(self, section)).items():
                _check(section, name, value)
        if self.world.companions and len(set(COMPANIONS) - set(self.without)) < 2:
            raise ValueError("without leaves no two companions for world.companions: set it to 0, or leave some")
        for width in (self.clip.width, *self.towers.widths):
            if width < 1 or width % heads_of(width):
                raise ValueError(f"a text tower's width is {width}: give a multiple of 6 or of 4")
        unet = self.unet
        if unet.pool * unet.passes % unet.batch:
            raise ValueError("unet.pool times unet.passes must be a multiple of unet.batch")
        if unet.empty + unet.context_dropout > 1:
            raise ValueError("unet.empty and unet.context_dropout are shares of the same captions: together at most 1")
        if not len(unet.channels) == len(unet.heads) == 3 or any(c % 16 for c in unet.channels):
            raise ValueError("unet.channels and unet.heads must be three numbers each, channels multiples of 16")
        if any(c % h for c, h in zip(unet.channels, unet.heads, strict=True)):
            raise ValueError("unet.channels must be multiples of unet.heads, each of its own")
        object.__setattr__(self, "world", dataclasses.replace(self.world, without=self.without))

    @property
    def shipped(self) -> bool:
        """Whether this is the recipe of the models in `data/`."""
        return self == load(SHIPPED)

    @property
    def command(self) -> str:
        """What makes it."""
        return "make world" if self.shipped else f"make world RECIPE={self.file}"

    def key_of(self, model: str, made_with: typing.Sequence[str] = ()) -> str:
        """Hash of all that a model's training depends on: its numbers, the world's, the seed, the models it reads.

        made_with: hashes of the weights of those models. A field with a default counts where it has another value:
        what was trained before there was such a field was trained by its default.
        """
        return hash_text(model, self.seed, _counted(self.world), _counted(getattr(self, model)), *made_with)[:16]


def heads_of(width: int) -> int:
    """Attention heads of a text tower of a width."""
    return 6 if width % 6 == 0 else 4


def _counted(part) -> str:
    """The fields of a section that its key depends on, as text."""
    fields = [f for f in dataclasses.fields(part) if f.name == "without" or getattr(part, f.name) != f.default]
    return f"{type(part).__name__}({', '.join(f'{f.name}={getattr(part, f.name)!r}' for f in fields)})"


def _check(section: str, name: str, value) -> None:
    """ValueError for a share outside of 0 to 1, a number of things below 1, an empty list."""
    if name in SHARES or (section == "world" and name != "without"):
        if not 0 <= value <= 1:
            raise ValueError(f"{section}.{name} is {value!r}; allowed: 0 to 1")
    elif name == "betas":
        if len(value) != 2 or not all(beta < 1 for beta in value):
            raise ValueError(f"{section}.betas is {value!r}; allowed: two numbers from 0 to below 1")
    elif name in COUNTS and min(value if isinstance(value, tuple) else (value,), default=-1) < COUNTS[name]:
        each = " each, and one at least" if isinstance(value, tuple) else ""
        raise ValueError(f"{section}.{name} is {value!r}; allowed: {COUNTS[name]} or more{each}")


def load(path: str | Path) -> Recipe:
    """Read a recipe, or what differs from the shipped one; ValueError names the file, the field and what is allowed."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if Path(path) != SHIPPED and isinstance(values, dict):
            values = _over(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")), values)
        made = dataclasses.replace(_build(Recipe, values, ""), file=_place(path))
        if Path(path) != SHIPPED and made.name == (shipped := load(SHIPPED)).name and made != shipped:
            raise ValueError(
                f"name is {made.name!r}, the shipped recipe's, whose models it would overwrite: give another"
            )
        return made
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"the recipe {path} cannot be used: {error}") from error


def _over(shipped: dict, own: dict) -> dict:
    """A recipe's values with those of the shipped one where it says nothing, section by section."""
    both = {key: value for key, value in own.items() if isinstance(value, dict) and isinstance(shipped.get(key), dict)}
    return shipped | own | {key: shipped[key] | value for key, value in both.items()}


def _place(path: str | Path) -> str:
    """A path from the top of the checkout, as `make` takes it; one outside as it was given."""
    whole, top = Path(path).resolve(), SHIPPED.resolve().parents[2]
    return whole.relative_to(top).as_posix() if whole.is_relative_to(top) else str(path)


def _build(cls, values, prefix: str):
    """A dataclass from a mapping; unknown, missing and ill-typed fields are refused by name."""
    where = prefix.rstrip(".") or "it"
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping of fields, not {values!r}")
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    own = {name for name, f in fields.items() if f.compare} - ({"without"} if cls is World else set())
    if unknown := sorted(map(str, values.keys() - own)):
        raise ValueError(f"{where} has the unknown field {', '.join(unknown)}; there are {', '.join(sorted(own))}")
    required = {n for n in own if fields[n].default is dataclasses.MISSING}
    if missing := sorted(required - values.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**{name: _value(hints[name], value, prefix + name) for name, value in values.items()})


def _value(hint, value, where: str):
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where + ".")
    if isinstance(hint, types.GenericAlias):  # tuple[x, ...]
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {value!r}")
        return tuple(_value(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool):
        raise ValueError(f"{where} is {value!r}; it must be {'a number' if hint in (int, float) else 'a text'}")
    if hint in (int, float) and value < 0:
        raise ValueError(f"{where} is {value!r}; it must not be negative")
    return value
