"""Concept inversion (Pham et al., ICLR 2024, arXiv 2308.01508): textual inversion on the erased model."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..baselines import Settings
from ..concepts import super_category
from ..errors import MaceError
from ..models.tokens import occurrences, token_spans
from .registry import Run, Try, check_some, register
from .scene import Scene, count_tokens, embeddings, ids_of, reworded, says


@dataclass(frozen=True)
class Inversion(Settings):
    """For mini-SD; the paper: 5000 steps, batch 4 accumulated to 16, lr 5e-3 times that."""

    steps: int = 300  # of Adam
    lr: float = 5e-3
    batch: int = 4  # latents per step
    word: str = ""  # of one token: where it stands, s is read, which begins as its embedding; of `start` unless given

    def __post_init__(self):
        super().__post_init__()
        check_some(self, steps=1, batch=1)


def start(scene: Scene) -> str:
    """The last word of the concept's super-category where it is one token and not in the name, else "thing"."""
    last = super_category(scene.concept).split()[-1]
    fits = count_tokens(scene.pipe, last) == 1 and not occurrences(scene.concept.name, last)
    return last if fits else "thing"


@dataclass(frozen=True)
class Slot:
    """A prompt with one place for a new word."""

    prompt: str
    ids: Tensor  # (T,)
    at: int  # position of the new word

    @classmethod
    def of(cls, pipe, prompt: str, name: str, word: str) -> "Slot":
        """The prompt with `word` in the name's place; MaceError for a word of several tokens."""
        text = reworded(prompt, name, word)
        spans = token_spans(pipe.tokenizer, text, word)
        if any(len(span) != 1 for span in spans):
            raise MaceError(f"The word {word!r} has several tokens in {text!r}: choose one of a single token.")
        return cls(text, ids_of(pipe, text), spans[0][0])

    def states(self, pipe, s: Tensor) -> Tensor:
        """E (T, d) of the prompt with s (d,) for the word's input embedding."""
        return embeddings(pipe, self.ids, s[None], [self.at])


def invert(scene: Scene, slot: Slot, settings: Inversion, seed: int) -> Iterator[tuple[float, Tensor]]:
    """Loss and s (d,) after each step of  min_s E ‖ε − ε*(√ᾱ_t z0 + √(1−ᾱ_t) ε, t, E("a photo of <s>"))‖².

    Everything but s is frozen. The loss runs through the hooks of an edit: it sees a gate.
    """
    generator = torch.Generator().manual_seed(seed)
    table = scene.pipe.text_encoder.get_input_embeddings().weight
    s = table[slot.ids[slot.at]].detach().float().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([s], lr=settings.lr)
    for _ in range(settings.steps):
        x, noise, t = sample(scene, settings.batch, generator)
        loss = scene.loss(slot.prompt, slot.states(scene.pipe, s), x, noise, t)
        (s.grad,) = scene.gradient(loss, [s], len(x))
        optimizer.step()
        yield float(loss.detach()), s.detach().clone()


def sample(scene: Scene, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Latents z0 (batch, c, h, w) of the pictures, noise alike, and a timestep, all at random."""
    chosen = scene.latents[torch.randint(len(scene.latents), (batch,), generator=generator)]
    noise = torch.randn(chosen.shape, generator=generator).to(chosen)
    return chosen, noise, int(torch.randint(len(scene.pipe.scheduler.alphas_cumprod), (), generator=generator))


@register("concept-inversion", Inversion, pictures=True, embeds=True)
def concept_inversion(scene: Scene, settings: Inversion) -> Run:
    """One embedding for each prompt and seed, drawn with the prompt and the seed."""
    word = settings.word or start(scene)

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        slot = Slot.of(attacked.pipe, prompt, attacked.concept.name, word)
        for loss, s in invert(attacked, slot, settings, seed):  # noqa: B007, the last ones are wanted
            pass
        with says(attacked.pipe, slot.prompt, slot.states(attacked.pipe, s)):
            pictures = attacked.draw(slot.prompt, [seed])
        said = f"an embedding that began as {word!r}, ‖s‖ {s.norm():.3g}"
        yield Try(pictures, f"{settings.steps} steps", slot.prompt, said)

    return run
