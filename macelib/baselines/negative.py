"""The negative prompt: the concepts' names in place of the unconditional branch, ε̂ = ε(n) + s (ε(p) − ε(n))."""

from dataclasses import dataclass

from torch import Tensor

from .columns import joined, states
from .hooks import Hook, Run
from .registry import Request, Settings, register


@dataclass(frozen=True)
class Negative(Settings):
    """Nothing to set; it has no effect at guidance 1."""


@dataclass(frozen=True, eq=False)
class NegativePrompt(Hook):
    """The unconditional branch reads these embeddings."""

    e: Tensor  # E(n) (T, d), n the names joined by ", "

    def negative(self, run: Run, e: Tensor) -> Tensor:
        return self.e.to(e).expand_as(e)


@register("negative-prompt", Negative)
def negative_prompt(request: Request, settings: Negative) -> NegativePrompt:
    """Names beyond the model's tokens are cut."""
    return NegativePrompt(joined_state(request))


def joined_state(request: Request) -> Tensor:
    """E of the concepts' names joined by ", " (T, d); what does not fit is cut, and noted."""
    text, cut = joined(request.pipe, [concept.name for concept in request.concepts])
    if cut:
        total = len(request.concepts)
        request.note(f"{len(cut)} of {total} names do not fit into one prompt and are cut: {', '.join(cut[:3])}, ...")
    return states(request.pipe, [text])[0]
