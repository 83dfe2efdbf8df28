"""Stage 2: one LoRA per concept (Eq. 3-5), many concepts in one forward pass of the frozen model.

A batch holds one sample of each of N concepts, and the layers that read the text add sample i's own LoRA. Losses,
gradient clipping and AdamW are per concept, so the result is that of N separate runs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import LongTensor, Tensor

from ...concepts import Concept, sample_prompt, super_category, templates
from ...concepts import prompts as filled
from ...errors import MaceError
from ...models.denoise import grid_length
from ...models.entrances import denoiser
from ...models.sample import posterior
from ...models.text import added_conditions, encode, spans, tails
from ...presets import RANGES
from ...reading import check_ranges, check_settings
from ...templates import fill
from .forward import per_sample
from .group import Group


@dataclass(frozen=True)
class TrainConfig:
    """How the LoRAs of stage 2 are trained."""

    rank: int = 1  # r of B (out, r) and D (r, d)
    D: Literal["unit", "scaled", "own"] = "scaled"  # start: N(0, 1/r²), N(0, 1/d); own: fixed on the own tokens
    down: Literal["free", "orthogonal"] = "free"  # D: as trained, or off the super-category's tokens (SuPLoRA)
    steps: int = 50  # AdamW steps per concept
    until: float = 0.0  # share of its attention at which a concept stops before that; 0: never
    lr: float = 1e-4  # learning rate
    timesteps: Literal["cfis", "uniform", "adaptive"] = "cfis"  # how the training timestep is drawn
    t1: int = 200  # Eq. 5, timestep 0-999
    t2: int = 400  # Eq. 5, timestep 0-999
    gamma: float = 0.05  # Eq. 5, steepness
    loss: Literal["norm", "squared"] = "squared"  # Eq. 3; norm: one unsquared norm per layer over all of S
    S: Literal["own", "own+tail"] = "own"  # Eq. 3: the phrase's tokens; with [EOS] and padding
    prompt: Literal["sample", "template"] = "sample"  # of a step: the picture's own; one of the templates at random
    mask: Literal["soft", "nearest"] = "soft"  # at a layer's size: means over areas; nearest pixel above 0.5
    latents: Literal["mean", "sample"] = "mean"  # of the VAE's posterior; sample: drawn anew for each step
    shift: Literal["own", "none"] = "own"  # of a flow's noise levels: its scheduler's; or none
    clip: float = 1.0  # largest gradient norm of one concept's LoRA; 0: none
    concepts_per_pass: int = 8  # N
    autocast: Literal["bf16", "fp16"] | None = None  # precision of the forward pass; None: as loaded
    gradient_checkpointing: bool = False  # less memory, more time
    seed: int = 0  # with the concept's name: of D, images, timesteps and noise

    def __post_init__(self):
        check_settings(self)
        ranges = {name.removeprefix("train."): limits for name, limits in RANGES.items()}
        check_ranges(self, {name: limits for name, limits in ranges.items() if name in vars(self)})
        if not self.t1 < self.t2:
            raise MaceError(f"t1 = {self.t1}, t2 = {self.t2}: t1 < t2 is needed.")


def cfis(T: int, t1: float = 200, t2: float = 400, gamma: float = 0.05) -> Tensor:
    """ξ(t) = (σ(γ(t − t1)) − σ(γ(t − t2))) / Z (Eq. 5) for t = 0 .. T − 1: (T,) float64, sums to 1."""
    t = torch.arange(T, dtype=torch.float64)
    xi = torch.sigmoid(gamma * (t - t1)) - torch.sigmoid(gamma * (t - t2))
    return xi / xi.sum()


@dataclass(eq=False)
class Example:
    """Training data of one concept, encoded once: n images with their masks and prompts.

    The prompts are the images' own, or (`free`) any number, of which each step takes one at random.
    """

    name: str
    latents: Tensor  # (n, c, h, w), scaled as the UNet reads them
    masks: Tensor  # (n, 1, H, W), 0..1, any resolution
    embeddings: Tensor  # (m, T, d) of the prompts; m = n unless they are free
    positions: list[LongTensor]  # S per prompt: the phrase's token positions
    tails: list[LongTensor] | None = None  # per prompt: positions of [EOS] and padding, for S "own+tail"
    added: dict[str, Tensor] | None = None  # per prompt, what else the model reads: see `added_conditions`
    free: bool = False  # the prompts are not the images'
    spread: Tensor | None = None  # (n, c, h, w), standard deviation of the latents; None: they are taken as they are
    off: Tensor | None = None  # (s, d), orthonormal rows that D stays orthogonal to, where `down` asks for it

    def __post_init__(self):
        n, m = len(self.latents), len(self.embeddings)
        if not n or not m or len(self.masks) != n or len(self.positions) != m or (m != n and not self.free):
            raise MaceError(
                f"The example {self.name!r} needs as many masks, embeddings and positions as latents ({n})."
            )
        if not all(len(p) for p in self.positions):
            raise MaceError(f"The prompts of {self.name!r} do not name it: S is empty.")
        if not self.masks.any():
            raise MaceError(f"The masks of {self.name!r} are empty: make them with another source, such as full.")

    def S(self, i: int, which: str) -> LongTensor:
        """Token positions of Eq. 3 in prompt i: "own" or "own+tail"."""
        if which == "own":
            return self.positions[i]
        if self.tails is None:
            raise MaceError(f"S = own+tail needs the positions of [EOS] and padding: give {self.name!r} its tails.")
        return torch.cat([self.positions[i], self.tails[i]])


@dataclass(frozen=True)
class Loras:
    """LoRAs of N concepts by layer: W + B[layer][i] D[layer][i]."""

    names: list[str]
    B: dict[str, Tensor]  # (N, out, r), zero at the start
    D: dict[str, Tensor]  # (N, r, d)

    def select(self, which: int | str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(B, D) by layer of one concept, by number or name: (out, r) and (r, d)."""
        i = self.names.index(which) if isinstance(which, str) else which
        return {k: v[i] for k, v in self.B.items()}, {k: v[i] for k, v in self.D.items()}


@dataclass(frozen=True)
class Record:
    """One training step of the concepts of one pass."""

    step: int  # 1 .. steps
    steps: int
    names: list[str]
    losses: Tensor  # (N,), Eq. 3
    timesteps: Tensor  # (N,), 0-999


def example(
    pipe,
    concept: Concept,
    images: Sequence,
    masks: Tensor,
    prompts: Sequence[str] | None = None,
    config: TrainConfig | None = None,
) -> Example:
    """Encode images (PIL), masks (n, 1, H, W) and prompts (the sample prompt of the concept) of one concept, once.

    config: `prompt` "template" takes the concept's templates for prompts, `latents` "sample" keeps their deviation.
    MaceError where a prompt does not name the concept.
    """
    config = config or TrainConfig()
    free = prompts is None and config.prompt == "template"
    prompts = filled(concept, alone=True) if free else list(prompts or [sample_prompt(concept)] * len(images))
    own = {p: spans(pipe, p, concept.name) for p in set(prompts)}
    behind = {p: tails(pipe, p) for p in own}
    mean, spread = posterior(pipe, images)
    return Example(
        concept.name,
        mean,
        masks,
        encode(pipe, prompts),
        [torch.tensor(own[p], dtype=torch.long) for p in prompts],
        [torch.tensor(behind[p], dtype=torch.long) for p in prompts],
        added_conditions(pipe, prompts, images[0].size[::-1]),
        free,
        spread if config.latents == "sample" else None,
        super_directions(pipe, concept) if config.down == "orthogonal" else None,
    )


def super_directions(pipe, concept: Concept) -> Tensor:
    """V (s, d), orthonormal: the leading right singular vectors of the own tokens of the concept's super-category.

    s: its number of tokens, read in the concept's templates. Orthogonal to them, D answers to what the concept has
    beside its super-category (after SuPLoRA, AAAI 2026, which holds one LoRA of a group of concepts so).
    """
    whole = super_category(concept)
    name = re.sub(r"^(the|an?) ", "", whole)  # an article says nothing of it
    texts = [fill(template, whole) for template in templates(concept, alone=True)]
    own = [spans(pipe, text, name) for text in texts]
    rows = torch.cat([e[list(some)] for e, some in zip(encode(pipe, texts).double().cpu(), own, strict=True)])
    return torch.linalg.svd(rows, full_matrices=False).Vh[: len(own[0])].float()


class Training:
    """Iterate to train: a `Record` per step. `loras` holds the result; `finish` iterates to the end and returns it."""

    def __init__(self, pipe, examples: Sequence[Example], config: TrainConfig, checkpoint: Path | None, every: int):
        if not examples:
            raise MaceError("There is nothing to train: give at least one example.")
        self.pipe, self.config, self.every = pipe, config, every
        N = config.concepts_per_pass
        groups = [list(examples[i : i + N]) for i in range(0, len(examples), N)]
        T = grid_length(pipe)
        xi = cfis(T, config.t1, config.t2, config.gamma)
        density = xi if config.timesteps == "cfis" else torch.full((T,), 1 / T, dtype=torch.float64)
        self.groups = [Group(pipe, group, config, density) for group in groups]
        self.paths = [_numbered(checkpoint, i, len(groups)) for i in range(len(groups))]

    def __iter__(self) -> Iterator[Record]:
        for group, path in zip(self.groups, self.paths, strict=True):
            if path is not None:
                group.load(path)
            c = self.config
            with per_sample(denoiser(self.pipe), c.loss, c.mask, c.gradient_checkpointing) as forward:
                while not group.done:
                    losses, timesteps = group.train_step(forward)
                    if path is not None and (group.step % self.every == 0 or group.done):
                        group.save(path)
                    names = [example.name for example in group.examples]
                    yield Record(group.step, self.config.steps, names, losses, timesteps)

    @property
    def loras(self) -> Loras:
        """The LoRAs as trained so far, float32."""
        views = [group.views() for group in self.groups]
        B, D = ({k: torch.cat([v[i][k].detach() for v in views]) for k in views[0][i]} for i in (0, 1))
        return Loras([example.name for group in self.groups for example in group.examples], B, D)

    def finish(self) -> Loras:
        """Train to the end."""
        for _ in self:
            pass
        return self.loras


def train(
    pipe, examples: Sequence[Example], config: TrainConfig, checkpoint: str | Path | None = None, every: int = 10
) -> Training:
    """Train one LoRA per example against Eq. 3, `concepts_per_pass` in one forward pass; W' is what the model holds.

    `for record in (run := train(...)): ...`, then `run.loras`. With a `checkpoint` (.safetensors; with several passes
    one numbered file each) the state is written every `every` steps, and the same call goes on from it.
    MaceError: NaN or divergence, unusable examples.
    """
    return Training(pipe, examples, config, None if checkpoint is None else Path(checkpoint), every)


def _numbered(path: Path | None, i: int, count: int) -> Path | None:
    return path if path is None or count == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}")
