"""Stage 2: one LoRA per concept (Eq. 3-5), many concepts in one forward pass of the frozen UNet.

A batch holds one sample of each of N concepts, and to_k and to_v add sample i's own LoRA. Losses, gradient clipping and
AdamW are per concept, so the result is that of N separate runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import LongTensor, Tensor

from ...concepts import Concept, sample_prompt
from ...errors import MaceError
from ...models.pipelines import AUTOCAST
from ...models.sample import encode_images
from ...models.text import added_conditions, encode, tokenizers
from ...models.tokens import token_spans, tokenize
from .forward import per_sample
from .group import Group


@dataclass(frozen=True)
class TrainConfig:
    """How the LoRAs of stage 2 are trained."""

    rank: int = 1  # r of B (out, r) and D (r, d)
    D: Literal["random", "own"] = "random"  # random: trained beside B; own: fixed, it answers the own tokens alone
    steps: int = 50  # AdamW steps per concept
    lr: float = 1e-4  # learning rate
    timesteps: Literal["cfis", "uniform", "adaptive"] = "cfis"  # how the training timestep is drawn
    t1: int = 200  # Eq. 5, timestep 0-999
    t2: int = 400  # Eq. 5, timestep 0-999
    gamma: float = 0.05  # Eq. 5, steepness
    squared: bool = True  # Eq. 3; False: the sum of unsquared norms
    include_eos: bool = False  # [EOS] and padding belong to S in Eq. 3
    clip: float = 1.0  # largest gradient norm of one concept's LoRA; 0: none
    concepts_per_pass: int = 8  # N
    autocast: Literal["bf16", "fp16"] | None = None  # precision of the forward pass; None: as loaded
    gradient_checkpointing: bool = False  # less memory, more time
    seed: int = 0  # with the concept's name: of D, images, timesteps and noise

    def __post_init__(self):
        allowed = {"timesteps": ("cfis", "uniform", "adaptive"), "autocast": (None, *AUTOCAST), "D": ("random", "own")}
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise MaceError(f"{field} is {getattr(self, field)!r}; allowed: {', '.join(map(str, values))}.")
        for field, low in {"rank": 1, "steps": 1, "concepts_per_pass": 1, "lr": 0, "clip": 0, "seed": 0}.items():
            if not getattr(self, field) >= low:
                raise MaceError(f"{field} is {getattr(self, field)!r}; allowed: {low} or more.")
        if not (self.t1 < self.t2 and self.gamma > 0):
            raise MaceError(f"t1 = {self.t1}, t2 = {self.t2}, gamma = {self.gamma}: t1 < t2 and gamma > 0 are needed.")


def cfis(T: int, t1: float = 200, t2: float = 400, gamma: float = 0.05) -> Tensor:
    """ξ(t) = (σ(γ(t − t1)) − σ(γ(t − t2))) / Z (Eq. 5) for t = 0 .. T − 1: (T,) float64, sums to 1."""
    t = torch.arange(T, dtype=torch.float64)
    xi = torch.sigmoid(gamma * (t - t1)) - torch.sigmoid(gamma * (t - t2))
    return xi / xi.sum()


@dataclass(eq=False)
class Example:
    """Training data of one concept, encoded once: n images with their masks and prompts."""

    name: str
    latents: Tensor  # (n, c, h, w), scaled as the UNet reads them
    masks: Tensor  # (n, 1, H, W), 0..1, any resolution
    embeddings: Tensor  # (n, T, d)
    positions: list[LongTensor]  # S per image: the phrase's token positions
    tails: list[LongTensor] | None = None  # per image: positions of [EOS] and padding, for include_eos
    added: dict[str, Tensor] | None = None  # SDXL: text_embeds (n, p), time_ids (n, 6)

    def __post_init__(self):
        n = len(self.latents)
        if not n or {len(self.masks), len(self.embeddings), len(self.positions)} != {n}:
            raise MaceError(
                f"The example {self.name!r} needs as many masks, embeddings and positions as latents ({n})."
            )
        if not all(len(p) for p in self.positions):
            raise MaceError(f"The prompts of {self.name!r} do not name it: S is empty.")
        if not self.masks.any():
            raise MaceError(f"The masks of {self.name!r} are empty: make them with another source, such as full.")

    def S(self, i: int, include_eos: bool) -> LongTensor:
        """Token positions of Eq. 3 of image i."""
        if not include_eos:
            return self.positions[i]
        if self.tails is None:
            raise MaceError(f"include_eos needs the positions of [EOS] and padding: give {self.name!r} its tails.")
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


def example(pipe, concept: Concept, images: Sequence, masks: Tensor, prompts: Sequence[str] | None = None) -> Example:
    """Encode images (PIL), masks (n, 1, H, W) and prompts (the sample prompt of the concept) of one concept, once.

    MaceError where a prompt does not name the concept.
    """
    prompts = list(prompts or [sample_prompt(concept)] * len(images))
    tokenizer = tokenizers(pipe)[0]
    own = {p: sorted({i for span in token_spans(tokenizer, p, concept.name) for i in span}) for p in set(prompts)}
    tails = {p: _tail(tokenizer, p) for p in own}
    return Example(
        concept.name,
        encode_images(pipe, images),
        masks,
        encode(pipe, prompts),
        [torch.tensor(own[p], dtype=torch.long) for p in prompts],
        [torch.tensor(tails[p], dtype=torch.long) for p in prompts],
        added_conditions(pipe, prompts, images[0].size[::-1]),
    )


def _tail(tokenizer, prompt: str) -> list[int]:
    """Positions of [EOS] and padding."""
    ids, offsets = tokenize(tokenizer, prompt)
    return list(range(1 + max((i for i, (a, b) in enumerate(offsets) if a < b), default=0), len(ids)))


class Training:
    """Iterate to train: a `Record` per step. `loras` holds the result; `finish` iterates to the end and returns it."""

    def __init__(self, pipe, examples: Sequence[Example], config: TrainConfig, checkpoint: Path | None, every: int):
        if not examples:
            raise MaceError("There is nothing to train: give at least one example.")
        self.pipe, self.config, self.every = pipe, config, every
        N = config.concepts_per_pass
        groups = [list(examples[i : i + N]) for i in range(0, len(examples), N)]
        T = pipe.scheduler.config.num_train_timesteps
        xi = cfis(T, config.t1, config.t2, config.gamma)
        density = xi if config.timesteps == "cfis" else torch.full((T,), 1 / T, dtype=torch.float64)
        self.groups = [Group(pipe, group, config, density) for group in groups]
        self.paths = [_numbered(checkpoint, i, len(groups)) for i in range(len(groups))]

    def __iter__(self) -> Iterator[Record]:
        for group, path in zip(self.groups, self.paths, strict=True):
            if path is not None:
                group.load(path)
            with per_sample(self.pipe.unet, self.config.squared, self.config.gradient_checkpointing) as forward:
                while group.step < self.config.steps:
                    losses, timesteps = group.train_step(forward)
                    if path is not None and (group.step % self.every == 0 or group.step == self.config.steps):
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
    """Train one LoRA per example against Eq. 3, `concepts_per_pass` in one forward pass; W' is what the UNet holds.

    `for record in (run := train(...)): ...`, then `run.loras`. With a `checkpoint` (.safetensors; with several passes
    one numbered file each) the state is written every `every` steps, and the same call goes on from it.
    MaceError: NaN or divergence, unusable examples.
    """
    return Training(pipe, examples, config, None if checkpoint is None else Path(checkpoint), every)


def _numbered(path: Path | None, i: int, count: int) -> Path | None:
    return path if path is None or count == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}")
